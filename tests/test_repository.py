"""The project's own files agree: workflows, hooks, classifiers, citation, changelog, bounds of dependencies."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from colddiff_core import __version__

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = [ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml" for name in ("bug", "feature")]


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def pythons() -> list[str]:
    """Return the Python versions of the classifiers, such as 3.11."""
    prefix = "Programming Language :: Python :: 3."
    return [f"3.{text.removeprefix(prefix)}" for text in PROJECT["classifiers"] if text.startswith(prefix)]


def steps(workflow: Path) -> list[str]:
    """Return the commands of a workflow."""
    return [step["run"] for job in load(workflow)["jobs"].values() for step in job["steps"] if "run" in step]


def checks() -> list[str]:
    """Return the commands of .ci/run that check the code."""
    commands = re.findall(r"^\$bin/(.+)$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.M)
    return [command for command in commands if not command.startswith("pip ")]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_ends_in_time_and_may_only_read(path):
    workflow = load(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert all(0 < job["timeout-minutes"] <= 180 for job in workflow["jobs"].values())


def test_every_python_that_the_project_claims_is_tested():
    test = load(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]["test"]
    assert test["strategy"]["matrix"]["python"] == pythons()
    assert PROJECT["requires-python"] == f">={pythons()[0]}"


def test_the_workflow_and_the_hooks_check_what_ci_run_checks():
    hooks = [hook for repo in load(ROOT / ".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    assert checks() == ["ruff format --check .", "ruff check .", "mypy", "lint-imports"]
    assert [hook["entry"] for hook in hooks] == checks()
    assert {*checks(), "bash .ci/test", "mkdocs build --strict"} <= set(steps(WORKFLOWS[0]))
    assert "\nbash .ci/test\n" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_an_issue_form_asks_each_question_once(path):
    form = load(path)
    names = [field["id"] for field in form["body"]]
    assert len(set(names)) == len(names)
    assert all(field["attributes"]["label"] for field in form["body"])
    assert form["name"]
    assert form["description"]


def test_updates_are_asked_for_weekly_and_in_groups():
    for update in load(ROOT / ".github" / "dependabot.yml")["updates"]:
        assert update["schedule"]["interval"] == "weekly"
        assert update["groups"]


def test_the_changelog_tells_of_every_version_newest_first():
    headings = re.findall(r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", CHANGELOG, re.M)
    assert len(headings) == len(re.findall(r"^## ", CHANGELOG, re.M))
    assert headings[0] == ("Unreleased", "")
    assert headings[1][0] == __version__
    dates = [date for _, date in headings[1:]]
    assert all(dates)
    assert dates == sorted(dates, reverse=True)
    assert re.findall(r"^\[(.+?)\]: https://", CHANGELOG, re.M) == [name for name, _ in headings]
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.+)$", CHANGELOG, re.M)) <= kinds


def test_the_citation_names_this_version():
    citation = load(ROOT / "CITATION.cff")
    assert citation["version"] == __version__
    assert f"## [{__version__}] - {citation['date-released']}\n" in CHANGELOG
    assert citation["license"] == PROJECT["license"]
    assert citation["repository-code"] == PROJECT["urls"]["Source"]
    assert [author["family-names"] for author in citation["preferred-citation"]["authors"]][::8] == [
        "Bansal",
        "Goldstein",
    ]


def test_every_extra_is_explained():
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md"))
    assert [extra for extra in PROJECT["optional-dependencies"] if f"| `{extra}` |" not in text] == []


def private_names(tree: ast.AST) -> Iterator[str]:
    """Yield the packages other than ours whose modules or names with an underscore are used."""
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        imported |= {name.partition(".")[0] for name in names}
        yield from (name.partition(".")[0] for name in names if is_private(name))
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and ast.unparse(node).partition(".")[0] in imported
            and is_private(node.attr)
        ):
            yield ast.unparse(node).partition(".")[0]


def is_private(dotted: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in dotted.split("."))


def test_dependencies_whose_private_names_are_used_have_an_upper_bound():
    bounded = {re.split(r"[<>=]", line)[0] for line in PROJECT["dependencies"] if "<" in line}
    known = {re.split(r"[<>=]", line)[0] for line in PROJECT["dependencies"]}
    paths = [path for package in ("colddiff_core", "colddiff_cli") for path in (ROOT / package).rglob("*.py")]
    used = {name for path in paths for name in private_names(ast.parse(path.read_text(encoding="utf-8")))}
    assert {"torch", "torchmetrics"} <= used
    assert (used & known) - bounded == set()


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("from a.b import _c", {"a"}),
        ("from a._b import c", {"a"}),
        ("import a._b as c", {"a"}),
        ("import a\na.b._c()", {"a"}),
        ("import a\na.b.__version__", set()),
        ("def f(self):\n    self._c", set()),
    ],
)
def test_private_names_are_found(code, expected):
    assert set(private_names(ast.parse(code))) == expected

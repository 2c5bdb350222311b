"""The docs match the program; generated pages are regenerated and compared."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_command_reference_is_current():
    command = [sys.executable, "-m", "typer", "docs/every_command.py", "utils", "docs", "--name", "colddiff"]
    generated = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=ROOT, env=os.environ | {"COLUMNS": "100"}
    )
    written = (ROOT / "docs" / "cli.md").read_text()
    assert generated.stdout.strip() == written.strip(), f"run: {' '.join(['python', *command[1:]])} > docs/cli.md"


COMMANDS = ["degrade", "train", "sample", "generate", "eval", "compare", "reproduce", "monitor", "presets", "data pack"]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_readme_shows_every_command(command):
    assert f"colddiff {command}" in (ROOT / "README.md").read_text()


def test_every_dependency_is_explained():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    reasons = (ROOT / "docs" / "decisions" / "001-dependencies.md").read_text()
    for requirement in project["dependencies"]:
        name = requirement.split(">")[0]
        assert f"`{name}`" in reasons, f"{name} is not explained"


@pytest.mark.parametrize(
    "page", [path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]]
)
def test_links_are_not_broken(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if "://" not in target:
            assert (ROOT / page).parent.joinpath(target).exists(), f"{page}: {target}"


def test_the_tests_that_the_reports_name_exist():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "reports.md").read_text()))
    there = {
        name for file in ROOT.glob("tests/**/*.py") for name in re.findall(r"^def (test_\w+)", file.read_text(), re.M)
    }
    assert named
    assert named <= there, named - there


def test_contributing_names_files_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    paths = set(re.findall(r"colddiff_(?:core|cli)/[\w/]+(?:\.\w+|/)", text))
    assert paths
    missing = sorted(path for path in paths if not (ROOT / path).exists())
    assert not missing, f"CONTRIBUTING.md: {missing}"

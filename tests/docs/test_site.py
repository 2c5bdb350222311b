"""The documentation site: every page is reachable, the gallery and the library's pages are current."""

from __future__ import annotations

import pkgutil
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import colddiff_core
from colddiff_cli.__main__ import run
from colddiff_core import degradations
from colddiff_core.degradations import registry

sys.path.insert(0, str(Path(__file__).parents[2] / "docs"))
import make_gallery

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
OF_THE_ROOT = ["CHANGELOG.md", "CONTRIBUTING.md"]  # docs/site_hooks.py brings them in


def targets(text: str) -> list[str]:
    return re.findall(r"\]\(([^)#]+)[^)]*\)", text)


def nav_pages(entry: object) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    elif isinstance(entry, dict):
        yield from nav_pages(list(entry.values()))
    elif isinstance(entry, list):
        for part in entry:
            yield from nav_pages(part)


def test_every_page_is_in_the_navigation_once():
    yaml = pytest.importorskip("yaml")
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert sorted(nav_pages(site["nav"])) == sorted(PAGES + OF_THE_ROOT)


def test_the_front_page_lists_every_page():
    listed = {*targets((DOCS / "index.md").read_text())}
    expected = {page for page in PAGES if not page.startswith("decisions/0")} - {"index.md"}
    assert expected | {f"../{page}" for page in OF_THE_ROOT} <= listed


def test_every_decision_is_listed():
    written = [path.name for path in sorted((DOCS / "decisions").glob("0*.md"))]
    assert written
    assert targets((DOCS / "decisions" / "README.md").read_text()) == written


def test_pictures_on_pages_are_used():
    used = {DOCS / page for page in PAGES}
    used = {(page.parent / target).resolve() for page in used for target in targets(page.read_text())}
    used |= {(ROOT / target).resolve() for target in targets((ROOT / "README.md").read_text())}
    kept = {path.resolve() for path in (DOCS / "images").rglob("*.*")}
    assert sorted(path.name for path in kept - used) == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("api/")])
def test_the_library_pages_name_what_exists(page):
    for name in re.findall(r"^::: (\S+)$", (DOCS / page).read_text(), re.MULTILINE):
        found = pkgutil.resolve_name(name)
        assert found.__doc__, f"{page}: {name} has no docstring"


def test_the_front_door_is_on_the_library_page():
    page = (DOCS / "api" / "README.md").read_text()
    names = re.findall(r"^::: colddiff_core\.(\w+)$", page, re.MULTILINE)
    assert sorted(["__version__", *names]) == sorted(colddiff_core.__all__)
    (example,) = re.findall(r"<!-- library -->\n(```python\n.*?^```)", (ROOT / "README.md").read_text(), re.M | re.S)
    assert example in page, "the example is the README's"


def test_every_operator_is_in_the_gallery():
    own = {name for name in degradations.names() if degradations.find(name).__module__.startswith("colddiff_core.")}
    assert own == make_gallery.sections().keys() - {"Compositions"}


def test_the_gallery_is_current():
    assert (DOCS / "gallery.md").read_text(encoding="utf-8") == make_gallery.page(), "run: python docs/make_gallery.py"


@pytest.mark.parametrize("strip", make_gallery.STRIPS, ids=lambda strip: strip.name)
def test_a_command_of_the_gallery_makes_its_picture(strip, tmp_path, capsys):
    out = tmp_path / "strip.jpg"
    assert run([*make_gallery.with_photos(strip.command), "--out", str(out)]) == 0
    with Image.open(out) as made, Image.open(DOCS / strip.file) as shown:
        assert made.size == shown.size == (6 * 128, 128)
        difference = np.abs(np.asarray(made, dtype=float) - np.asarray(shown, dtype=float)).mean()
    assert difference < 2, "run: python docs/make_gallery.py"


def test_the_operator_of_the_extending_page_works(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    (code,) = re.findall(r"^```python\n(import .*?)^```", (DOCS / "extending.md").read_text(), re.MULTILINE | re.DOTALL)
    exec(compile(code, "extending.md", "exec", dont_inherit=True), {"__name__": "fade"})
    fade = degradations.build("fade", steps=4, strength=0.8)
    assert fade(torch.ones(1, 1, 2, 2), 2).allclose(torch.tensor(0.6))


def options_by_command() -> dict[str, set[str]]:
    """Return the options of every command, from the generated reference."""
    parts = re.split(r"^##+ `colddiff (.*)`$", (DOCS / "cli.md").read_text(), flags=re.MULTILINE)[1:]
    names = zip(parts[::2], parts[1::2], strict=True)
    return {name: {"--help", *re.findall(r"(?<![\w-])--[a-z][\w-]*", text)} for name, text in names}


@pytest.mark.parametrize("page", ["../README.md", *(page for page in PAGES if page != "cli.md")])
def test_command_lines_have_options_that_exist(page):
    known = options_by_command()
    for block in re.findall(r"^```sh\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True) if line.startswith("colddiff ") else []
            if not words:
                continue
            command = " ".join(words[1:3]) if words[1] == "data" else words[1]
            assert command in known or command.startswith("-"), f"{page}: {line}"
            given = {word.partition("=")[0] for word in words[2:] if word.startswith("--")}
            if "--op" not in given:  # an operator's own options are not in the reference
                assert given <= known.get(command, set()), f"{page}: {line}"

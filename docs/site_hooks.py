"""Hooks of mkdocs.yml: the repository's own pages join the site, and links out of docs/ lead to the repository.

A page is written for readers of the repository, with links relative to the file. On the site a link to a file outside
docs/ becomes a link to https://github.com/colddiff/colddiff; the build fails if there is no such file.
"""

from __future__ import annotations

import os.path
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("CHANGELOG.md", "CONTRIBUTING.md")  # of the repository's root, on the site too
# Code is matched first, so that what looks like a link in it stays.
LINK = re.compile(
    r"(?P<code>^```.*?^```|`[^`\n]+`)|(?P<before>\]\()(?P<target>[^)\s#]+)(?P<after>[^)]*\))", re.M | re.S
)
LOADS = re.compile(
    r"""<(?:script|img|iframe|source)[^>]*\ssrc=["']?(?:https?:)?//|<link[^>]*rel=["']?(?:stylesheet|pre)[^>]*//"""
)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    for name in PAGES:
        files.append(File.generated(config, name, content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    origin = ROOT / page.file.src_uri if page.file.src_uri in PAGES else ROOT / "docs" / page.file.src_uri

    def replace(match: re.Match[str]) -> str:
        if match["code"] or "://" in match["target"]:
            return match[0]
        return match["before"] + target_on_site(match["target"], origin, page, str(config.repo_url)) + match["after"]

    return LINK.sub(replace, markdown)


def target_on_site(target: str, origin: Path, page: Page, repository: str) -> str:
    """Return where a link of the file `origin` leads on the site: to another page, or into the repository."""
    path = Path(os.path.normpath(origin.parent / target))
    if not path.exists() or not path.is_relative_to(ROOT):
        raise PluginError(f"{origin.relative_to(ROOT)}: there is no file {target}.")
    within = path.relative_to(ROOT).as_posix()
    if within in PAGES or (path.is_relative_to(ROOT / "docs") and path.is_file() and path.suffix != ".py"):
        return os.path.relpath(within.removeprefix("docs/"), Path(page.file.src_uri).parent)
    return f"{repository.rstrip('/')}/{'tree' if path.is_dir() else 'blob'}/main/{within}"


def on_post_page(output: str, *, page: Page, config: MkDocsConfig) -> str:
    # Without this mark, the theme's script does not ask api.github.com for the number of stars.
    output = output.replace(' data-md-component="source"', "")
    if found := LOADS.search(output):
        raise PluginError(f"{page.file.src_uri} loads something from another site: {found[0]}")
    return output

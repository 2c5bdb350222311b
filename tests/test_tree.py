"""What keeps the source tree easy to enter: few files at the root, short files, one meaning per class, no circles."""

from __future__ import annotations

import ast
import collections
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = ("colddiff_core", "colddiff_cli", "benchmarks", "docs", "tests")
PRODUCT = ("colddiff_core", "colddiff_cli")
MOST_LINES = 350
MOST_ENTRIES = 22


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted(path for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in path.parts)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def test_the_core_lists_on_one_screen():
    entries = [path.name for path in (ROOT / "colddiff_core").iterdir() if path.name != "__pycache__"]
    assert len(entries) <= MOST_ENTRIES, sorted(entries)


def test_files_are_short():
    counts = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in sources(*CODE)}
    assert {str(path.relative_to(ROOT)): count for path, count in counts.items() if count > MOST_LINES} == {}


def test_no_two_classes_share_a_name():
    places = collections.defaultdict(list)
    for path in sources(*CODE):
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


@pytest.mark.parametrize("path", list(sources(*PRODUCT)), ids=lambda path: str(path.relative_to(ROOT)))
def test_product_code_is_imported_by_statements_alone(path):
    for node in ast.walk(parse(path)):
        name = ast.unparse(node) if isinstance(node, ast.Attribute | ast.Name) else ""
        assert name not in ("sys.modules", "importlib.import_module", "__import__"), f"{path}:{node.lineno}"


def modules() -> dict[str, Path]:
    """Return every module of the product and of the benchmarks by its dotted name."""
    found = {}
    for path in sources(*PRODUCT, "benchmarks"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts[1:] if parts[0] == "benchmarks" else parts  # they import each other by their plain names
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imported(tree: ast.Module, known: dict[str, Path]) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                names.add(inner if inner in known else node.module)
    return names & known.keys()


def is_typing_only(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def test_no_module_imports_itself_in_a_circle():
    """Imports inside functions count; those for type checkers alone do not."""
    known = modules()
    graph = {}
    for name, path in known.items():
        tree = parse(path)
        tree.body = [node for node in tree.body if not is_typing_only(node)]
        graph[name] = imported(tree, known) - {name}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"imports go in a circle: {' -> '.join(error.args[1])}")

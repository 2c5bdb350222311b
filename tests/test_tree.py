"""What keeps the source tree easy to enter: short listings, short files, unique class names, no import circles."""

from __future__ import annotations

import ast
import collections
import functools
import gc
import graphlib
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = ("colddiff_core", "colddiff_cli", "benchmarks", "docs", "tests", "tools")
PRODUCT = ("colddiff_core", "colddiff_cli")
MOST_LINES = 350
MOST_ENTRIES = 22
# Ways to import that neither import-linter nor the circle test can follow.
HIDDEN_IMPORTS = {
    "__import__",
    "builtins.__import__",
    "exec",
    "importlib.__import__",
    "importlib.import_module",
    "importlib.reload",
    "pkgutil.resolve_name",
    "runpy.run_module",
    "runpy.run_path",
    "sys.modules",
}


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        paths = sorted(path for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in path.parts)
        assert paths, f"no code in {folder}"
        yield from paths


@pytest.fixture(scope="module", autouse=True)
def no_collections() -> Iterator[None]:
    """Pause garbage collection: going through a million syntax nodes takes longer than parsing them."""
    gc.disable()
    yield
    parse.cache_clear()
    gc.enable()


@functools.cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def nested(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the children that can contain statements; expressions, which are most of a tree, cannot."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            yield child


def statements(node: ast.AST) -> Iterator[ast.AST]:
    for child in nested(node):
        yield child
        yield from statements(child)


def test_the_core_lists_on_one_screen():
    entries = [path.name for path in (ROOT / "colddiff_core").iterdir() if path.name != "__pycache__"]
    assert len(entries) <= MOST_ENTRIES, sorted(entries)


def test_files_are_short():
    counts = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in sources(*CODE)}
    assert {str(path.relative_to(ROOT)): count for path, count in counts.items() if count > MOST_LINES} == {}


def test_no_two_classes_share_a_name():
    places = collections.defaultdict(list)
    for path in sources(*CODE):
        for node in statements(parse(path)):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def hidden_imports(tree: ast.Module) -> Iterator[str]:
    """Yield "line: name" for every star import and every import that is not a statement, under any alias."""
    aliases = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            aliases |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom):
            aliases |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            if node.names[0].name == "*":
                yield f"{node.lineno}: *"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name):
            first, dot, rest = dotted(node).partition(".")
            name = aliases.get(first, first) + dot + rest
            if name in HIDDEN_IMPORTS:
                yield f"{node.lineno}: {name}"


def dotted(node: ast.AST) -> str:
    """Return a dotted name, such as "a.b.c"; what is not a name at its start is left out, as in ".b" for f().b."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def test_product_code_is_imported_by_statements_alone():
    found = [f"{path.relative_to(ROOT)}:{use}" for path in sources(*PRODUCT) for use in hidden_imports(parse(path))]
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "import sys\nsys.modules['a']",
        "from sys import modules\nmodules['a']",
        "import importlib as i\ni.import_module('a')",
        "from importlib import import_module as load\nload('a')",
        "__import__('a')",
        "from a import *",
    ],
)
def test_hidden_imports_are_found(code):
    assert list(hidden_imports(ast.parse(code)))


def test_searching_for_a_package_is_no_import():
    assert not list(hidden_imports(ast.parse("import importlib.util\nimportlib.util.find_spec('a')\nimport sys")))


def modules() -> dict[str, Path]:
    """Return every module of the product and of the benchmarks by its dotted name."""
    found = {}
    for path in sources(*PRODUCT, "benchmarks"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts[1:] if parts[0] == "benchmarks" else parts  # they import each other by their plain names
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def is_typing_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def import_statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield the imports that may run, those inside functions included."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node
    for child in node.orelse if is_typing_only(node) else nested(node):
        yield from import_statements(child)


def with_parents(name: str) -> set[str]:
    parts = name.split(".")
    return {".".join(parts[:count]) for count in range(1, len(parts) + 1)}


def imported(tree: ast.AST, module: str, known: Collection[str], *, is_package: bool = False) -> set[str]:
    """Return the known modules that importing `module` runs, and that do not run before it.

    Importing a.b.c runs a and a.b first, so they count too, unless they are packages around `module`.
    """
    names = set()
    for node in import_statements(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
            continue
        around = module.split(".")
        around = around[: len(around) + is_package - node.level] if node.level else []
        origin = ".".join([*around, *([node.module] if node.module else [])])
        for alias in node.names:
            inner = f"{origin}.{alias.name}"
            names.add(inner if inner in known else origin)
    explicit = names - {module}
    implicit = {parent for name in names for parent in with_parents(name)} - with_parents(module)
    return (explicit | implicit) & set(known)


def find_circle(trees: dict[str, ast.Module], packages: Collection[str] = ()) -> list[str]:
    graph = {name: imported(tree, name, trees, is_package=name in packages) for name, tree in trees.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def test_no_module_imports_itself_in_a_circle():
    """Imports inside functions count; those for type checkers alone do not."""
    paths = modules()
    packages = {name for name, path in paths.items() if path.name == "__init__.py"}
    circle = find_circle({name: parse(path) for name, path in paths.items()}, packages)
    assert not circle, f"imports go in a circle: {' -> '.join(circle)}"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import a.b.c", {"a.b.c"}),  # a and a.b are loaded before a.b.x
        ("import z.y", {"z", "z.y"}),
        ("from z.y import name", {"z", "z.y"}),
        ("from z import y", {"z", "z.y"}),
        ("from z import *", {"z"}),
        ("from a.b import name", {"a.b"}),
        ("from . import c", {"a.b.c"}),
        ("from .c import name", {"a.b.c"}),
        ("from .. import d", {"a.d"}),
        ("from ..d import name", {"a.d"}),
        ("from . import name", {"a.b"}),
        ("def f():\n    import a.d", {"a.d"}),
        ("if TYPE_CHECKING:\n    import a.d\nelse:\n    import z", {"z"}),
        ("try:\n    if typing.TYPE_CHECKING:\n        import a.d\nfinally:\n    pass", set()),
        ("if not TYPE_CHECKING:\n    import a.d", {"a.d"}),
        ("import json, a.b.x", set()),
    ],
)
def test_imports_are_resolved(code, expected):
    known = {"a", "a.b", "a.b.c", "a.b.x", "a.d", "z", "z.y"}
    assert imported(ast.parse(code), "a.b.x", known) == expected


def test_a_package_resolves_relative_imports_from_itself():
    known = {"a", "a.b", "a.b.c", "a.d"}
    tree = ast.parse("from .c import name\nfrom ..d import other")
    assert imported(tree, "a.b", known, is_package=True) == {"a.b.c", "a.d"}


@pytest.mark.parametrize(
    ("files", "is_circle"),
    [
        ({"a": "from a import b", "a.b": "from a import c", "a.c": ""}, False),  # a package and its own modules
        ({"a": "from a.b import x", "a.b": "from z import y", "a.c": "", "z": "", "z.y": "import a.c"}, True),
        ({"a": "", "a.b": "from z import y", "a.c": "", "z": "", "z.y": "import a.c"}, False),
        ({"a": "from .b import x", "a.b": "from . import x"}, True),
    ],
)
def test_circles_through_packages_are_found(files, is_circle):
    circle = find_circle({name: ast.parse(code) for name, code in files.items()}, {"a", "z"})
    assert bool(circle) == is_circle

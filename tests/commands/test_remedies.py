"""What messages tell people to type exists: options, commands and settings, on the command that says so."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from colddiff_cli import app
from colddiff_cli.__main__ import run
from colddiff_cli.console import memory_remedies
from colddiff_core import degradations
from colddiff_core.config import schema
from colddiff_core.config.fields import settings_of

ROOT = Path(__file__).parents[2]
OPTION = re.compile(r"--[a-z][a-z0-9-]*")
SETTING = re.compile(rf"\b({'|'.join(schema.SECTIONS)})\.([a-z_]+)")
SAID_BY = {  # files whose messages are about certain commands; the others may name an option of any
    **{
        f"colddiff_cli/commands/{name}.py": (name,) for name in ("compare", "degrade", "generate", "reproduce", "train")
    },
    "colddiff_cli/commands/evaluate.py": ("eval",),
    "colddiff_cli/commands/monitor.py": ("monitor",),
    "colddiff_cli/commands/data.py": ("data",),
    "colddiff_cli/commands/restore.py": ("restore",),
    "colddiff_cli/commands/restore_photographs.py": ("restore", "sample"),
    "colddiff_cli/commands/restorers.py": ("restore", "sample"),
    "colddiff_cli/commands/sample.py": ("sample",),
}
MEMORY_ERROR = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"


@functools.cache
def options() -> dict[str, frozenset[str]]:
    """Return the options of every command, those of all operators included."""
    arguments = [["--op", name] for name in degradations.names()]
    found: dict[str, set[str]] = {}
    for words in ([], *arguments):
        group = typer.main.get_command(app.with_commands(app.LOADERS, words))
        for name, command in group.commands.items():
            inner = [command, *getattr(command, "commands", {}).values()]
            flags = {flag for each in inner for p in each.params for flag in [*p.opts, *p.secondary_opts]}
            found.setdefault(name, set()).update(flags | {"--help", "--debug", "--version", "--show-completion"})
    return {name: frozenset(flags) for name, flags in found.items()}


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the texts for people in a file: constants of several words, docstrings left out; an f-string is one."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        text = ""
        if isinstance(node, ast.JoinedStr):
            text = "".join(p.value if isinstance(p, ast.Constant) else "{}" for p in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not {id(node)} & (docstrings | parts):
            text = node.value
        if " " in text.strip():
            yield node.lineno, text


def every_text() -> Iterator[tuple[str, int, str]]:
    for package in ("colddiff_core", "colddiff_cli"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            yield from ((name, line, text) for line, text in texts(path))


def wrong_options(name: str, text: str) -> list[str]:
    """Return the options that a text names and the command that says it does not have."""
    known = options()
    spoken = re.search(rf"colddiff ({'|'.join(known)})\b", text)
    said_by = (spoken[1],) if spoken else SAID_BY.get(name, tuple(known))
    return [word for word in OPTION.findall(text) if not any(word.rstrip("-") in known[one] for one in said_by)]


def test_every_option_that_a_message_names_exists():
    named = [(name, line, text) for name, line, text in every_text() if OPTION.search(text)]
    assert len(named) > 80
    wrong = [f"{name}:{line}: {bad} in {text!r}" for name, line, text in named if (bad := wrong_options(name, text))]
    assert [entry for entry in wrong if "'--no-'" not in entry] == []


def test_every_command_that_a_message_names_exists():
    words = re.compile(r"(?:with|it|them|one|run|instead|:|or|`)\s*`?colddiff ([a-z]+)")
    named = [(name, line, match[1]) for name, line, text in every_text() for match in words.finditer(text)]
    assert len(named) > 10
    assert [entry for entry in named if entry[2] not in app.LOADERS] == []


def test_every_setting_that_a_message_names_exists():
    known = {section: {field.name for field in settings_of(owner)} for section, owner in schema.SECTIONS.items()}
    known["degradation"] |= {
        field.name for name in degradations.names() for field in settings_of(degradations.find(name))
    }
    found = [
        (name, line, match[0])
        for name, line, text in every_text()
        for match in SETTING.finditer(text)
        if match[0] != "train.urls"  # a list of shards
    ]
    assert len(found) > 20
    assert [entry for entry in found if entry[2].split(".")[1] not in known[entry[2].split(".")[0]]] == []


@pytest.mark.parametrize(
    ("name", "text", "wrong"),
    [
        ("colddiff_cli/commands/train.py", "Use a smaller --size.", ["--size"]),
        ("colddiff_core/errors.py", "Use --sizes, or colddiff eval", ["--sizes"]),
        ("colddiff_core/errors.py", "Try: colddiff eval RUN --set x=1", ["--set"]),
        ("colddiff_core/errors.py", "Try: colddiff train --set x=1", []),
    ],
)
def test_an_option_that_is_missing_is_found(name, text, wrong):
    assert wrong_options(name, text) == wrong


@pytest.mark.parametrize("command", app.LOADERS)
def test_out_of_memory_says_what_the_command_itself_can_do(command):
    remedy = memory_remedies.remedy(["--debug", command, "RUN"])
    assert all(option in options()[command] for option in OPTION.findall(remedy)), remedy
    has_remedy = command not in ("monitor", "runs", "presets")  # these read files
    assert (remedy != memory_remedies.OTHERWISE) == has_remedy


def test_a_training_that_runs_out_of_memory_names_its_own_settings(in_folder, monkeypatch, capsys):
    from colddiff_core.training.step import Stepper

    def fail(*_):
        raise RuntimeError(MEMORY_ERROR)

    monkeypatch.setattr(Stepper, "take", fail)
    words = ["--set", "train.steps=2", "--set", "data.size=12", "--set", "model.multipliers=[1]"]
    assert run(["train", "--preset", "digits-blur", "--device", "cpu", "--out", "run", *words]) == 1
    what, remedy = capsys.readouterr().err.strip().splitlines()
    assert "not enough memory" in what
    assert "train.batch_size" in remedy
    assert "--size" not in remedy

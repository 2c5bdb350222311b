"""The shape of the code: what a signature and a call may look like."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

from colddiff_core import experiment, sampling

HOME = Path(__file__).parents[1]
PACKAGES = ("colddiff_core", "colddiff_cli")
MOST_PARAMETERS = 6

# Calls that may take a dict of keywords: what varies in them is data, and its keys are checked where it comes from.
SPLATTING = {
    # the standard library and Pillow
    "dataclasses.replace",
    "picture.save",
    # an operator's parameters, checked by `validate`, and its random fields, tensors by name
    "degradations.build",
    "operator",
    "op",
    "freeze",
    "frozen_type",
    "FrozenMask",
    "FrozenSnow",
    # a table of a file, checked by `validate`
    "Config",
    "DegradationConfig",
    "SECTIONS[section]",
    # tensors of a file by name; metadata of a photograph
    "ImageMeasurements",
    "Photograph",
    # lines of events.jsonl and metrics.jsonl
    "run.event",
    "run.log",
    # wrappers that pass on what they are called with
    "restorer",
    "command",
}


@pytest.mark.parametrize("function", [experiment.Experiment.restore, sampling.sample])
def test_sampling_takes_few_parameters(function):
    assert len(inspect.signature(function).parameters) <= MOST_PARAMETERS


def splats(tree: ast.AST) -> Iterator[ast.Call]:
    """Yield the calls that are given a dict of keywords, as in f(**options)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and any(keyword.arg is None for keyword in node.keywords):
            yield node


def is_allowed(call: ast.Call) -> bool:
    name = ast.unparse(call.func)
    return any(name == allowed or name.endswith(f".{allowed}") for allowed in SPLATTING)


@pytest.mark.parametrize("package", PACKAGES)
def test_arguments_of_our_functions_do_not_travel_in_dicts(package):
    found = [
        f"{path.relative_to(HOME)}:{call.lineno}: {ast.unparse(call.func)}"
        for path in sorted((HOME / package).rglob("*.py"))
        for call in splats(ast.parse(path.read_text(encoding="utf-8")))
        if not is_allowed(call)
    ]
    assert found == []


def test_a_dict_given_to_a_function_is_found():
    assert not is_allowed(next(splats(ast.parse("evaluate.restore(experiment, **options)"))))
    assert is_allowed(next(splats(ast.parse("self.run.event('saved', **details)"))))

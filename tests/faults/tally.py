"""Counts of the fault tests by scenario, for the table at the end of their output."""

from __future__ import annotations

import collections
import json
from pathlib import Path

_COUNTS: dict[str, collections.Counter[str]] = {}


def add(scenario: str, **counts: int) -> None:
    """Add to a scenario's counts, such as `add("killed", tried=1, survived=1)`."""
    _COUNTS.setdefault(scenario, collections.Counter()).update(counts)


def counts() -> dict[str, dict[str, int]]:
    """Return the counts of every scenario."""
    return {scenario: dict(counter) for scenario, counter in _COUNTS.items()}


def lines() -> list[str]:
    """Return the lines of the table, one per scenario."""
    return [
        f"{scenario:<28}" + "  ".join(f"{name.replace('_', ' ')} {number:,}" for name, number in counter.items())
        for scenario, counter in _COUNTS.items()
    ]


def write(path: Path) -> None:
    """Write the counts as JSON."""
    path.write_text(json.dumps(counts(), indent=1) + "\n", encoding="utf-8")

"""A log of measurements, one JSON object per line, to find what became slower on the same machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Entry = dict[str, Any]
SAME_MACHINE = ("device", "threads", "torch", "quick", "data", "compile")  # entries that differ here are not comparable


def read(path: Path) -> list[Entry]:
    """Return the entries, oldest first; an empty list if there is no file."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def append(path: Path, entry: Entry) -> None:
    """Add an entry at the end of the log."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def before(entries: list[Entry], machine: Entry, case: str, label: str) -> Entry | None:
    """Return the newest measurement of a row on the same machine with the same torch, or None."""
    for entry in reversed(entries):
        if all(entry.get(key) == machine[key] for key in SAME_MACHINE):
            for row in entry["cases"].get(case, {}).get("rows", []):
                if row["row"] == label:
                    return row
    return None


def is_slower(now: Entry, then: Entry) -> bool:
    """Return whether our side became slower by more than the spread of both measurements; False for single repeats."""
    if now["unit"] == "%" or min(row["ours"]["n"] for row in (now, then)) < 2:
        return False
    spreads = [row["ours"]["high"] - row["ours"]["low"] for row in (now, then)]
    return now["ours"]["median"] - then["ours"]["median"] > max(spreads)

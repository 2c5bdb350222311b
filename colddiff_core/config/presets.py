"""Load configurations: TOML presets, one level of `extends`, `--set key=value`.

Imports no torch, so listing presets and reading a run's configuration are instant.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from colddiff_core.config.fields import LARGEST, is_text, validate
from colddiff_core.config.schema import OWN, SECTIONS, Config, DegradationConfig
from colddiff_core.config.toml import MOST_LINE_CHARACTERS, read_toml, spelled
from colddiff_core.errors import UsageError
from colddiff_core.text import CONTROLS, beginning, nearest, shown


def restrict_downloads(config: Config, overrides: Iterable[str]) -> Config:
    """Turn off downloads, and commands that shards are read from, for folders that only the file names.

    The file may come from anyone; the user allows a folder by naming it, or the download, in the overrides.
    """
    named = {text.partition("=")[0].strip() for text in overrides}
    places = {"data.directory": config.data.directory, "data.second_directory": config.data.second_directory}
    if "data.download" in named or all(key in named for key, place in places.items() if place):
        return config
    return config.without_downloads()


def directory() -> Path:
    """Return the folder of the presets: in the installed package, or in the source tree."""
    installed = Path(__file__).parents[1] / "_presets"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "presets"


def names() -> list[str]:
    """Return every preset's name, sorted."""
    return sorted(path.stem for path in directory().glob("*.toml"))


def load(name: str, overrides: Iterable[str] = ()) -> Config:
    """Return the preset `name` (or a path ending in .toml) with `key=value` overrides.

    A preset that names a folder of data may not download into it, unless an override names the folder or the download.
    Bundled presets name none: they download into the cache folder.

    Raises:
        UsageError: the preset is unknown or invalid; names the file, the key and the nearest known one.
    """
    path, table = _read_preset(name)
    base = table.pop("extends", None)
    if base is not None:
        if not isinstance(base, str):
            raise UsageError(f"{path}: extends = {shown(base)} is not a preset's name.", nearest(str(base), names()))
        base_path, base_table = _read_preset(base, beside=path)
        if "extends" in base_table:
            raise UsageError(
                f"{path}: extends '{base}', which itself extends another.", f"Copy the settings of {base_path} instead."
            )
        table = _merged(_without_foreign_parameters(base_table, table.get("degradation", {})), table)
    overrides = list(overrides)
    return restrict_downloads(from_table({"name": path.stem} | table, str(path), overrides), overrides)


def from_table(table: Mapping[str, Any], where: str, overrides: Iterable[str] = ()) -> Config:
    """Return a Config from plain tables; errors start with `where`, or with the override that is wrong."""
    sections = {key: value for key, value in table.items() if key in SECTIONS}
    parts = {section: _take_section(section, sections.get(section, {}), where) for section in SECTIONS}
    for key in table:
        if key not in SECTIONS and key not in ("name", "description", "paper"):
            raise UsageError(
                f"{where}: unknown key {shown(key)}.", nearest(key, [*SECTIONS, "description", "paper", "extends"])
            )
    # The operator's name first: a new operator drops the parameters of the old one.
    for override in sorted(overrides, key=lambda text: not text.strip().startswith("degradation.name")):
        section, key, value = _parse(override)
        checked = _take_section(section, {key: value}, f"--set {beginning(override)}")
        parts = _without_foreign_parameters(parts, checked) if section == "degradation" else parts
        parts[section] = _merged(parts[section], checked)
    made = {section: _make(section, parts[section]) for section in SECTIONS}
    name, description = (_text(key, table.get(key, ""), where) for key in ("name", "description"))
    if name != Path(name).name:
        raise UsageError(
            f"{where}: name = '{name}' is not a plain name.", "Remove the slashes: runs are named after it."
        )
    return Config(name=name, description=description, paper=_published(table.get("paper", {}), where), **made)


def _text(key: str, value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{where}: {key} = {shown(value)} is not text.", "Put it in quotation marks.")
    if len(value) > MOST_LINE_CHARACTERS or CONTROLS.search(value.replace("\n", "") if key == "description" else value):
        raise UsageError(f"{where}: {key} is too long or contains control characters.", "Write a short plain text.")
    return value


def _published(paper: Any, where: str) -> Mapping[str, Any]:
    """Return the published figures, checked: a source, an optional note, and tables of numbers."""
    fits = isinstance(paper, Mapping) and all(
        isinstance(value, str)
        if key in ("source", "note")
        else isinstance(value, Mapping)
        and all(type(number) in (int, float) and abs(number) <= LARGEST for number in value.values())
        for key, value in paper.items()
    )
    if not fits or (paper and "source" not in paper):
        raise UsageError(
            f"{where}: [paper] is not a source and tables of numbers.", "For example: direct = { rmse = 0.1 }"
        )
    found: Mapping[str, Any] = paper
    return found


def _read_preset(name: str, beside: Path | None = None) -> tuple[Path, dict[str, Any]]:
    if name.endswith(".toml"):
        path = Path(name)
        return path, read_toml(path)
    near = beside.parent / f"{name}.toml" if beside else None
    path = near if near and near.is_file() else directory() / f"{name}.toml"
    if "/" in name or not path.is_file():
        raise UsageError(f"Unknown preset '{name}'.", nearest(name, names()) + " List them with: colddiff presets")
    return path, read_toml(path)


def _parse(override: str) -> tuple[str, str, Any]:
    """Return (section, key, value) of `section.key=value`."""
    dotted, equals, text = override.partition("=")
    section, dot, key = dotted.strip().partition(".")
    if not (equals and dot and key):
        raise UsageError(
            f"--set {beginning(override)}: not of the form section.key=value.", "For example: --set train.lr=2e-4"
        )
    if section not in SECTIONS:
        raise UsageError(f"--set {beginning(override)}: unknown section {shown(section)}.", nearest(section, SECTIONS))
    is_operators = section == "degradation" and key not in OWN
    return section, key, spelled(text, is_text=is_text(SECTIONS[section], key), keeps_point=is_operators)


def _take_section(section: str, values: Any, where: str) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise UsageError(f"{where}: '{section}' is not a table.", f"Write [{section}] above its keys.")
    if section == "degradation":
        # Operators are a layer above: their parameters are checked when one is built.
        own = {key: value for key, value in values.items() if key in OWN}
        return dict(values) | validate(DegradationConfig, own, f"{where}: [degradation]")
    return validate(SECTIONS[section], dict(values), f"{where}: [{section}]")


def _make(section: str, values: dict[str, Any]) -> Any:
    if section != "degradation":
        return SECTIONS[section](**values)
    own = {key: values.pop(key) for key in OWN if key in values}
    made = DegradationConfig(**own)
    object.__setattr__(made, "parameters", values)
    return made


def _without_foreign_parameters(below: Mapping[str, Any], degradation: Mapping[str, Any]) -> dict[str, Any]:
    """Return `below` without its operator's parameters if `degradation` names another operator."""
    old = below.get("degradation", {})
    if "name" not in degradation or degradation["name"] == old.get("name"):
        return dict(below)
    return {**below, "degradation": {key: value for key, value in old.items() if key in OWN and key != "name"}}


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return `below` updated with `above`, tables merged key by key."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged

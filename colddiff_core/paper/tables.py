"""The paper's tables: the presets behind them, the published values, and verdicts on ours.

Needs no torch. The numbers are the full paper's. The shorter version has the same Tables 1 to 3, its Table 4 is snow
(`snow` here), and its Table 5 is the full paper's Table 4.

Source: Bansal et al. 2022.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from colddiff_core.config import presets, schema
from colddiff_core.config.schema import Config
from colddiff_core.errors import UsageError
from colddiff_core.text import nearest

Scale = Literal["small", "paper"]
SMALL = "-small"  # suffix of presets for the same experiment at a size for two cores
IS_LOWER_BETTER = {"rmse": True, "psnr": False, "ssim": False, "lpips": True, "fid": True, "kid": True}
RESTORED = ("degraded", "direct", "sampled")
GENERATED = {  # the paper's columns and their keys in [paper.generated]
    "fixed noise": "fid_fixed_noise",
    "estimated noise": "fid_estimated_noise",
    "perfect symmetry": "fid_perfect_symmetry",
    "broken symmetry": "fid_broken_symmetry",
}


@dataclasses.dataclass(frozen=True)
class TableRowSpec:
    """The rows of a table that come from one preset: their title, the preset, the kinds of images measured."""

    title: str
    preset: str
    kinds: tuple[str, ...]

    def preset_at(self, scale: Scale) -> str:
        """Return the name of the preset at a scale."""
        return self.preset + (SMALL if scale == "small" else "")

    @property
    def dataset(self) -> str:
        """Return the name of the data set."""
        return self.preset.partition("-")[0]

    @property
    def is_generated(self) -> bool:
        """Return whether the rows are about generated images."""
        return self.kinds[0] in GENERATED


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of the paper: its name here, its title, its numbers in both versions, its parts and metrics."""

    name: str
    title: str
    numbers: str
    parts: tuple[TableRowSpec, ...]
    metrics: tuple[str, ...] = ("rmse", "ssim", "fid")


def _restored(operator: str, kinds: tuple[str, ...], *sets: str) -> tuple[TableRowSpec, ...]:
    titles = {"mnist": "MNIST", "cifar10": "CIFAR-10", "celeba": "CelebA"}
    return tuple(TableRowSpec(titles[name], f"{name}-{operator}", kinds) for name in sets)


_EVERY, _COLOR = ("mnist", "cifar10", "celeba"), ("cifar10", "celeba")
_HOT, _COLD = ("fixed noise", "estimated noise"), ("perfect symmetry", "broken symmetry")
_TABLES = (
    Table("table1", "Deblurring", "Table 1 in both versions", _restored("blur", RESTORED, *_EVERY)),
    Table("table2", "Inpainting", "Table 2 in both versions", _restored("mask", RESTORED, *_EVERY)),
    Table("table3", "Superresolution", "Table 3 in both versions", _restored("pixelate", RESTORED, *_EVERY)),
    Table(
        "table4",
        "Generation, hot and cold",
        "Table 4; Table 5 in the shorter version",
        (
            TableRowSpec("CelebA", "celeba-noise", _HOT),
            TableRowSpec("CelebA", "celeba-blur-generate", _COLD),
            TableRowSpec("AFHQ", "afhq-noise", _HOT),
            TableRowSpec("AFHQ", "afhq-blur-generate", _COLD),
        ),
        ("fid",),
    ),
    Table(
        "table5",
        "Colorization",
        "Table 5; not in the shorter version",
        _restored("desaturate", ("degraded", "sampled"), *_COLOR),
    ),
    Table(
        "table6",
        "Algorithms on blur",
        "Table 6; not in the shorter version",
        _restored("blur", ("direct", "naive", "sampled"), *_EVERY),
        ("fid",),
    ),
    Table(
        "snow",
        "Snow removal",
        "Table 4 in the shorter version; not in the full paper",
        _restored("snow", ("degraded", "sampled"), *_COLOR),
    ),
)


def names() -> list[str]:
    """Return every table's name, in the paper's order."""
    return [table.name for table in _TABLES]


def find(name: str) -> Table:
    """Return a table by its name.

    Raises:
        UsageError: There is none; the error suggests the nearest name.
    """
    for table in _TABLES:
        if table.name == name:
            return table
    raise UsageError(f"No table '{name}'.", nearest(name, names()))


def plan(chosen: Sequence[Table], scale: Scale, datasets: Collection[str] = ()) -> dict[str, list[str]]:
    """Return the kinds of images to measure for each preset, in the tables' order; `datasets` limits the rows."""
    kinds_by_preset: dict[str, list[str]] = {}
    for part in (part for table in chosen for part in table.parts):
        if not datasets or part.dataset in datasets:
            kinds = kinds_by_preset.setdefault(part.preset_at(scale), [])
            kinds += [kind for kind in part.kinds if kind not in kinds]
    return kinds_by_preset


def published(config: Config, kind: str) -> dict[str, float]:
    """Return the paper's values for a kind of image by metric, {} if it has none."""
    if kind in GENERATED:
        value = config.paper.get("generated", {}).get(GENERATED[kind])
        return {} if value is None else {"fid": float(value)}
    figures = config.paper.get(kind, {})
    return dict(figures) if isinstance(figures, Mapping) else {}


def judge(metric: str, value: float, interval: tuple[float, float] | None, paper: float) -> str:
    """Return "better" or "worse", or "same" if the paper's value lies in our interval."""
    low, high = interval or (value, value)
    if low <= paper <= high:
        return "same"
    return "better" if (value < paper) == IS_LOWER_BETTER[metric] else "worse"


def verdicts(
    kind: str,
    figures: Mapping[str, Any],
    intervals: Mapping[str, Any],
    paper: Mapping[str, float],
    *,
    has_too_few_images: bool,
) -> dict[str, str]:
    """Return the verdict on each metric that the paper reports too.

    Degraded images get none, because nothing was restored, and neither does FID on too few images, which is biased.
    """
    if kind == "degraded":
        return {}
    both = [key for key in paper if figures.get(key) is not None and not (key == "fid" and has_too_few_images)]
    return {key: judge(key, figures[key], intervals.get(key), paper[key]) for key in both}


def differences(config: Config, overrides: tuple[str, ...], found: Config) -> dict[str, str]:
    """Return how a run's configuration differs from its preset, such as {"train.lr": "0.5, not 0.001"}.

    File locations, logging and checkpoint intervals, and precision do not count: they are the same experiment.
    """
    expected = presets.load(config.name, overrides).to_table()
    differing = schema.changes(found.to_table(), expected)
    return {key: f"{_word(ours)}, not {_word(theirs)}" for key, (ours, theirs) in differing.items() if key not in _FREE}


_FREE = {
    f"{section}.{key}"
    for section, keys in {
        "data": ("directory", "second_directory", "download"),
        "train": ("log_every", "sample_every", "checkpoint_every", "keep", "precision"),
    }.items()
    for key in keys
}


def _word(value: Any) -> str:
    return "unset" if value is None else str(value)

"""The paper's tables: presets, plans, verdicts, and what differs from the paper."""

from __future__ import annotations

import re

import pytest

from colddiff_core.config import presets
from colddiff_core.errors import UsageError
from colddiff_core.paper import tables


def test_every_table_uses_presets_with_the_papers_values():
    for name in tables.names():
        for part in tables.find(name).parts:
            for scale in ("small", "paper"):
                config = presets.load(part.preset_at(scale))
                assert config.data.dataset == part.dataset
                for kind in part.kinds:
                    assert tables.published(config, kind), (name, part.preset_at(scale), kind)


def test_the_presets_have_the_papers_values(shared):
    """All values of a row are in one line of the paper, the one that starts with the data set's name."""
    text = "".join(path.read_text() for path in (shared / "paper").glob("00[13]*")).replace("0.94 8", "0.948")
    lines = [(line, {float(word) for word in re.findall(r"\d+\.\d+", line)}) for line in text.splitlines()]
    for name in tables.names():
        table = tables.find(name)
        for part in table.parts:
            config = presets.load(part.preset)
            figures = {
                (kind, key): value for kind in part.kinds for key, value in tables.published(config, kind).items()
            }
            values = {value for (_, key), value in figures.items() if key in table.metrics}
            is_found = any(line.startswith(part.title) and values <= numbers for line, numbers in lines)
            assert is_found, (name, part, values)


def test_a_plan_measures_every_kind_once():
    kinds = tables.plan([tables.find("table1"), tables.find("table6")], "small", ["mnist"])
    assert kinds == {"mnist-blur-small": ["degraded", "direct", "sampled", "naive"]}
    assert list(tables.plan([tables.find("table4")], "paper")) == [
        "celeba-noise",
        "celeba-blur-generate",
        "afhq-noise",
        "afhq-blur-generate",
    ]
    with pytest.raises(UsageError, match="No table 'tabel1'"):
        tables.find("tabel1")


@pytest.mark.parametrize(
    ("metric", "value", "interval", "paper", "verdict"),
    [
        ("rmse", 0.10, (0.09, 0.11), 0.12, "better"),
        ("rmse", 0.10, (0.09, 0.11), 0.08, "worse"),
        ("rmse", 0.10, (0.09, 0.11), 0.105, "same"),
        *(("rmse", 0.10, (0.09, 0.11), end, "same") for end in (0.09, 0.11)),
        ("ssim", 0.90, (0.89, 0.91), 0.80, "better"),
        ("ssim", 0.90, None, 0.91, "worse"),
        ("fid", 5.0, None, 6.0, "better"),
    ],
)
def test_verdicts(metric, value, interval, paper, verdict):
    assert tables.judge(metric, value, interval, paper) == verdict


def test_a_run_with_other_settings_differs_from_its_preset():
    config = presets.load("mnist-blur-small")
    assert tables.differences(config, (), presets.load("mnist-blur-small", ["data.directory=x", "train.keep=9"])) == {}
    other = presets.load("mnist-blur-small", ["train.lr=0.5", "degradation.std=2.0"])
    assert tables.differences(config, (), other) == {"degradation.std": "2.0, not 7.0", "train.lr": "0.5, not 0.001"}
    assert tables.differences(config, ("train.lr=0.5", "degradation.std=2.0"), other) == {}

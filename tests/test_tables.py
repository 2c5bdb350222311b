"""The paper's tables: what they are made of, the verdicts, and a command that makes them and can be cut off."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image

from colddiff_cli.__main__ import run
from colddiff_core import presets, report, runs, seeds, tables
from colddiff_core.errors import UsageError

SMALL = {
    "data.size": "16",
    "model.inputs": "plain",
    "model.consistent": "false",
    "model.width": "8",
    "model.multipliers": "[1,2]",
    "train.steps": "6",
    "train.batch_size": "4",
    "train.checkpoint_every": "3",
    "train.sample_every": "0",
    "degradation.steps": "4",
}
CHANGES = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]


def test_every_table_is_made_of_presets_with_the_papers_figures():
    for name in tables.names():
        for part in tables.find(name).parts:
            for scale in ("small", "paper"):
                config = presets.load(part.preset_at(scale))
                assert config.data.dataset == part.dataset
                for kind in part.kinds:
                    assert tables.published(config, kind), (name, part.preset_at(scale), kind)


def test_the_presets_hold_what_the_paper_prints(shared):
    """Each figure of a preset stands in the paper's text, in the table that the preset names."""
    text = "".join(path.read_text() for path in (shared / "paper").glob("00[13]*")).replace("0.94 8", "0.948")
    for name in tables.names():
        for part in tables.find(name).parts:
            for kind in part.kinds:
                for value in tables.published(presets.load(part.preset), kind).values():
                    assert any(f"{value:.{digits}f}" in text for digits in (2, 3)), (part.preset, kind, value)


def test_a_plan_measures_every_kind_once():
    wanted = tables.plan([tables.find("table1"), tables.find("table6")], "small", ["mnist"])
    assert wanted == {"mnist-blur-small": ["degraded", "direct", "sampled", "naive"]}
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
        ("ssim", 0.90, (0.89, 0.91), 0.80, "better"),
        ("ssim", 0.90, None, 0.91, "worse"),
        ("fid", 5.0, None, 6.0, "better"),
    ],
)
def test_verdicts(metric, value, interval, paper, verdict):
    assert tables.judge(metric, value, interval, paper) == verdict


def test_a_run_under_other_settings_is_told_from_its_presets():
    config = presets.load("mnist-blur-small")
    assert tables.differences(config, (), presets.load("mnist-blur-small", ["data.directory=x", "train.keep=9"])) == []
    other = presets.load("mnist-blur-small", ["train.lr=0.5", "degradation.std=2.0"])
    assert tables.differences(config, (), other) == [
        "degradation.std = 2.0, not 7.0",
        "train.lr = 0.5, not 0.001",
    ]
    assert tables.differences(config, ("train.lr=0.5", "degradation.std=2.0"), other) == []


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A folder with a tiny CIFAR-10 of PNG files, two classes that a network can tell apart."""
    root = tmp_path_factory.mktemp("data")
    numbers = seeds.generator(5)
    for split, count in (("train", 24), ("test", 12)):
        for label, shade in (("dark", 0), ("light", 128)):
            folder = root / "cifar10" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = torch.randint(shade, shade + 128, (16, 16, 3), generator=numbers).to(torch.uint8)
                Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")  # noise: the paper's figures are better
    return root


@pytest.fixture
def command(pictures, in_folder, monkeypatch):
    from colddiff_core import classifier

    monkeypatch.setattr(classifier, "STEPS", 20)
    monkeypatch.setenv("XDG_CACHE_HOME", str(in_folder / "cache"))
    monkeypatch.setattr(sys, "argv", ["colddiff", "reproduce", "table1"])
    common = ["--datasets", "cifar10", "--data-dir", str(pictures), *CHANGES, "--n", "10"]
    return lambda *words: ["reproduce", *words, *common]


def test_a_table_is_trained_measured_written_and_gone_on_with(command, capsys):
    assert run(command("table1", "table6", "--json")) == 0
    told = json.loads(capsys.readouterr().out)
    first, last = told["tables"]
    assert [row["kind"] for row in first["rows"]] == ["degraded", "direct", "sampled"]
    assert [row["kind"] for row in last["rows"]] == ["direct", "naive", "sampled"]
    assert first["rows"][1]["title"] == "CIFAR-10, 16 px"
    assert first["rows"][1]["paper"] == {"rmse": 0.071, "ssim": 0.775, "fid": 83.69}
    assert first["rows"][1]["verdicts"] == {"rmse": "worse", "ssim": "worse"}
    assert "fid" not in first["rows"][1]["verdicts"], "FD is not FID"
    assert first["rows"][2] == last["rows"][2]
    assert told["runs"][0]["changed"] == [f"{key}={value}" for key, value in SMALL.items()]
    assert told["runs"][0]["n"] == 10
    assert told["gaps"][0]["share"] == max(gap["share"] for gap in told["gaps"])
    page = Path(told["page"]).read_text()
    assert page.startswith(report.MARK)
    assert "`colddiff reproduce table1`" in page
    for table in told["tables"]:
        assert f"![{table['title']}]({table['name']}.png)" in page
        with Image.open(Path("reproduced", f"{table['name']}.png")) as sheet:
            assert sheet.width > 4 * 64
    for row in first["rows"]:
        assert f"{row['metrics']['rmse']:.4f} ±" in page
    assert told | {"page": ""} == json.loads(Path("reproduced/tables.json").read_text()) | {"page": ""}

    # Again: nothing is trained or measured anew. Then from a checkpoint, and with a kind lost.
    trained = runs.Run(Path("runs/cifar10-blur-small"))
    before = {path: path.stat().st_mtime_ns for path in trained.path.rglob("*.json*")}
    assert run(command("table1", "table6", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["tables"] == told["tables"]
    assert {path: path.stat().st_mtime_ns for path in trained.path.rglob("*.json*")} == before
    shutil.rmtree(trained.newest_checkpoint())
    next(trained.path.glob("reproduced/*/direct.json")).write_text("{")
    assert run(command("table1", "table6", "--json")) == 0
    again = json.loads(capsys.readouterr().out)["tables"]
    assert [event["event"] for event in trained.events()].count("resumed") == 1
    assert [row["metrics"]["rmse"] for row in again[0]["rows"]] == [row["metrics"]["rmse"] for row in first["rows"]]


def test_rows_without_a_finished_run_can_be_left_out(command, capsys):
    assert run(command("table1", "--no-train")) == 2
    assert "No run in runs is finished." in capsys.readouterr().err
    assert run(command("table3")) == 0
    capsys.readouterr()
    assert run(command("table1", "table3", "--no-train", "--json", "--uint8")) == 0
    streams = capsys.readouterr()
    told = json.loads(streams.out)
    assert [table["name"] for table in told["tables"]] == ["table3"]
    assert told["missing"] == ["cifar10-blur-small"]
    assert told["protocol"] == "uint8"
    assert "cifar10-blur-small is not a finished run" in " ".join(streams.err.split())
    assert "rounded to 8 bits" in Path("reproduced/tables.md").read_text()


def test_what_cannot_be_reproduced_is_told_before_anything_is_trained(command, capsys, pictures):
    def refused(*words: str) -> str:
        assert run(list(words)) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) <= 2, lines
        assert not list(Path("runs").glob("*/checkpoints/*"))
        return " ".join(lines)

    assert "Did you mean 'table1'" in refused("reproduce", "tabel1")
    assert "No scale 'big'" in refused("reproduce", "table1", "--scale", "big")
    assert "no row of 'afhq'" in refused("reproduce", "table1", "--datasets", "afhq")
    assert "names none" in refused("reproduce", "table1", "--datasets", ",")
    assert "CelebA is not in" in refused(
        "reproduce", "table1", "--datasets", "cifar10,celeba", "--data-dir", str(pictures), *CHANGES
    )
    assert "No features 'incepton'" in refused("reproduce", "table1", "--features", "incepton")
    Path("reproduced").mkdir()
    Path("reproduced/tables.md").write_text("my notes")
    assert "is not a page of this command" in refused(*command("table1"))
    Path("reproduced/tables.md").unlink()
    Path("runs/cifar10-blur-small").mkdir(parents=True)
    assert "it has no run.toml" in refused(*command("table1"))
    Path("runs/cifar10-blur-small").rmdir()
    other = presets.load("cifar10-blur-small", ["train.lr=0.5"])
    runs.create(Path("runs/cifar10-blur-small"), other, {}).close()
    assert "train.lr = 0.5, not 0.001" in refused("reproduce", "table1", "--data-dir", str(pictures))


def test_fid_is_measured_with_weights_of_ones_own_and_their_hash_recorded(command, pictures, tmp_path, capsys):
    pytest.importorskip("torch_fidelity")
    from test_weights import random_inception

    path = tmp_path / "inception.safetensors"
    safetensors.torch.save_file(random_inception(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert run(command("table3", "--features", "inception", "--weights", str(path), "--json")) == 0
    streams = capsys.readouterr()
    told = json.loads(streams.out)
    assert told["runs"][0]["features"] == {"name": "FID", "weights": path.name, "sha256": digest}
    row = told["tables"][0]["rows"][1]
    assert row["is_scarce"]
    assert set(row["verdicts"]) == {"rmse", "ssim", "fid"}
    assert row["metrics"]["fid"] > 0
    assert row["metrics"]["kid"] is not None
    assert "(too few images)" in Path("reproduced/tables.md").read_text()
    assert f"`{digest[:8]}`" in Path("reproduced/tables.md").read_text()
    own = ["--features", "inception", "--weights", str(path)]
    assert run(["eval", "--data-dir", str(pictures), *own, "--n", "9"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "FID: too few images for 2,048 features" in said
    assert "FID" in said

"""A command that reproduces the paper's tables and can be interrupted."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import seal
from PIL import Image

from colddiff_cli.__main__ import run
from colddiff_core import runs, seeds
from colddiff_core.config import presets
from colddiff_core.evaluation.inception import Inception
from colddiff_core.paper import report
from colddiff_core.training import sample_sheet

SMALL = {
    "data.size": "12",
    "model.inputs": "plain",
    "model.consistent": "false",
    "model.width": "8",
    "model.multipliers": "[1]",
    "model.attention": "none",
    "train.precision": "float32",
    "train.steps": "6",
    "train.batch_size": "4",
    "train.checkpoint_every": "3",
    "train.sample_every": "0",
}
SETTINGS = hashlib.blake2b("\n".join(sorted(f"{k}={v}" for k, v in SMALL.items())).encode(), digest_size=3).hexdigest()
CHANGES = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Return a folder with a tiny CIFAR-10 of PNG files in two classes that a network can separate."""
    root = tmp_path_factory.mktemp("data")
    numbers = seeds.generator(5)
    for split, count in (("train", 8), ("test", 12)):
        for label, shade in (("dark", 0), ("light", 128)):
            folder = root / "cifar10" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = torch.randint(shade, shade + 128, (16, 16, 3), generator=numbers).to(torch.uint8)
                Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")  # noise: the paper's values are better
    return root


@pytest.fixture(scope="module")
def common(pictures) -> list[str]:
    return ["--datasets", "cifar10", "--data-dir", str(pictures), *CHANGES, "--n", "10"]


@pytest.fixture
def command(common, in_folder, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["colddiff", "reproduce", "table1"])
    monkeypatch.setattr(sample_sheet, "IMAGES", 1)  # the tables need no sheets
    return lambda *words: ["reproduce", *words, *common]


@pytest.fixture(scope="module")
def table3(common, tmp_path_factory) -> Path:
    """The runs folder that `reproduce table3` leaves; copy it into the current folder."""
    folder = tmp_path_factory.mktemp("table3")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.chdir(folder)
        patch.setattr(sample_sheet, "IMAGES", 1)
        assert run(["reproduce", "table3", *common]) == 0
    return folder / "runs"


def test_a_table_is_trained_measured_written_and_resumed(command, capsys):
    assert run(command("table1", "table6", "--json")) == 0
    output = json.loads(capsys.readouterr().out)
    first, last = output["tables"]
    assert [row["kind"] for row in first["rows"]] == ["degraded", "direct", "sampled"]
    assert [row["kind"] for row in last["rows"]] == ["direct", "naive", "sampled"]
    assert first["rows"][1]["title"] == "CIFAR-10, 12 px"
    assert first["rows"][1]["paper"] == {"rmse": 0.071, "ssim": 0.775, "fid": 83.69}
    assert first["rows"][1]["verdicts"] == {"rmse": "worse", "ssim": "worse"}
    assert "fid" not in first["rows"][1]["verdicts"], "FD is not FID"
    assert first["rows"][2]["metrics"] == last["rows"][2]["metrics"]
    assert last["rows"][0]["paper"] == {"fid": 83.69}, "Table 6 has nothing else"
    assert output["runs"][0]["changed"] == [f"{key}={value}" for key, value in SMALL.items()]
    assert first["rows"][0]["n"] == 10
    assert output["gaps"][0]["share"] == max(gap["share"] for gap in output["gaps"])
    page = Path(output["page"]).read_text()
    assert page.startswith(report.MARK)
    assert "`colddiff reproduce table1`" in page
    for table in output["tables"]:
        assert f"![{table['title']}]({table['name']}.png)" in page
        with Image.open(Path(output["page"]).with_name(f"{table['name']}.png")) as sheet:
            assert sheet.width > 4 * 64
    for row in first["rows"]:
        assert f"{row['metrics']['rmse']:.4f} ±" in page
    assert Path(output["page"]) == Path(f"reproduced/table1+table6-small-cifar10-n10-{SETTINGS}/tables.md")
    assert output.items() >= json.loads(Path(output["page"]).with_suffix(".json").read_text()).items()

    # A second call trains and measures nothing. Then continue from a checkpoint, with some results damaged.
    trained = runs.Run(Path("runs/cifar10-blur-small"))
    before = {path: path.stat().st_mtime_ns for path in trained.path.rglob("*.json*")}
    assert run(command("table1", "table6", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["tables"] == output["tables"]
    assert {path: path.stat().st_mtime_ns for path in trained.path.rglob("*.json*")} == before
    shutil.rmtree(trained.newest_checkpoint())
    results = {path.stem: path for path in trained.path.glob("reproduced/*/*.json")}
    results["direct"].write_text("{")
    results["naive"].write_text(results["naive"].read_text().replace('"rmse": 0', '"rmse": "0'))
    results["degraded"].with_suffix(".png").write_bytes(results["direct"].with_suffix(".png").read_bytes()[:99])
    assert run(command("table1", "table6", "--json")) == 0
    again = json.loads(capsys.readouterr().out)["tables"]
    assert [event["event"] for event in trained.events()].count("resumed") == 1
    assert [row["metrics"]["rmse"] for row in again[0]["rows"]] == [row["metrics"]["rmse"] for row in first["rows"]]


def test_rows_without_a_finished_run_can_be_left_out(command, table3, capsys):
    assert run(command("table1", "--no-train")) == 2
    assert "No run in runs is finished." in capsys.readouterr().err
    shutil.copytree(table3, "runs", dirs_exist_ok=True)
    assert run(command("table1", "table3", "--no-train", "--json", "--uint8")) == 0
    streams = capsys.readouterr()
    output = json.loads(streams.out)
    assert [table["name"] for table in output["tables"]] == ["table3"]
    assert output["missing"] == ["cifar10-blur-small"]
    assert output["protocol"] == "uint8"
    assert "cifar10-blur-small is not a finished run" in " ".join(streams.err.split())
    assert "rounded to 8 bits" in Path(output["page"]).read_text()
    assert output["tables"][0]["rows"][1]["verdicts"] == {}, "the paper measured something else"


def test_finished_runs_find_their_images_and_few_images_suffice(in_folder, table3, capsys):
    shutil.copytree(table3, in_folder / "runs")
    options = ["--datasets", "cifar10", *CHANGES, "--no-train", "--json"]
    for n in (1, 5):
        assert run(["reproduce", "table3", *options, "--n", str(n), "--features", "none"]) == 0
        output = json.loads(capsys.readouterr().out)
        assert output["tables"][0]["rows"][0]["n"] == n
    other = [*options, "--n", "5", "--features", "none", "--seed", "3", "--runs", "runs"]
    assert run(["reproduce", "table3", *other]) == 2, "the run has another seed"


def test_reproduce_and_eval_agree_on_every_metric(command, pictures, capsys):
    assert run(command("table2", "--json", "--set", "train.seed=5")) == 0
    output = json.loads(capsys.readouterr().out)
    assert run(["eval", "--n", "10", "--json"]) == 0
    evaluated = json.loads(capsys.readouterr().out)
    assert output["runs"][0]["seed"] == evaluated["seed"] == 5
    for row in output["tables"][0]["rows"]:
        for metric in ("rmse", "ssim", "psnr", "fd"):
            assert row["metrics"][metric] == evaluated["metrics"][row["kind"]][metric]
            assert row["intervals"][metric] == evaluated["intervals"][row["kind"]][metric]


def test_other_settings_than_the_papers_get_no_verdict(command, capsys):
    for change in ("sample.stride=2", "degradation.steps=2"):
        assert run(command("table3", "--json", "--runs", change, "--set", change)) == 0
        output = json.loads(capsys.readouterr().out)
        assert output["gaps"] == []
        assert {str(row["paper"]) for row in output["tables"][0]["rows"]} == {"{}"}


def test_a_diverged_network_is_reported(command, table3, capsys):
    shutil.copytree(table3, "runs")
    newest = runs.Run(Path("runs/cifar10-pixelate-small")).newest_checkpoint() / "ema.safetensors"
    state = safetensors.torch.load(newest.read_bytes())
    # The weights are finite, or they would not load; the output is not.
    safetensors.torch.save_file({key: torch.full_like(value, 1e30) for key, value in state.items()}, newest)
    seal(newest)
    assert run(command("table3", "--json")) == 0
    output = json.loads(capsys.readouterr().out)
    assert output["diverged"] == [
        "Superresolution, CIFAR-10, 12 px, direct",
        "Superresolution, CIFAR-10, 12 px, sampled",
    ]
    assert "the network has diverged" in Path(output["page"]).read_text()
    assert "No metric is known to be worse" not in Path(output["page"]).read_text()
    assert run(["eval", "--n", "9"]) == 0
    assert "direct: some pixels are not finite" in " ".join(capsys.readouterr().out.split())


def test_bad_requests_fail_before_training(command, capsys, pictures):
    def refused(*words: str) -> str:
        assert run(list(words)) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) <= 2, lines
        assert not list(Path("runs").glob("*/checkpoints/*"))
        return " ".join(lines)

    assert "Did you mean 'table1'" in refused("reproduce", "tabel1")
    assert "No scale 'big'" in refused("reproduce", "table1", "--scale", "big")
    assert "no rows for 'afhq'" in refused("reproduce", "table1", "--datasets", "afhq")
    assert "names no data set" in refused("reproduce", "table1", "--datasets", ",")
    assert "CelebA is not in" in refused(
        "reproduce", "table1", "--datasets", "cifar10,celeba", "--data-dir", str(pictures), *CHANGES
    )
    assert "No features 'incepton'" in refused("reproduce", "table1", "--features", "incepton")
    assert "table4 is about generated ones" in refused("reproduce", "table1", "table4", "--uint8")
    assert "halved" in refused(*command("table1", "table3"), "--set", "degradation.steps=5"), (
        "the last one must fail before the first is trained"
    )
    for name in ("tables.md", "tables.json", "table1.png"):
        mine = Path("mine", name)
        mine.parent.mkdir(exist_ok=True)
        mine.write_text("my notes")
        assert f"{mine} was not written by this command" in refused(*command("table1"), "--out-dir", "mine")
        assert mine.read_text() == "my notes"
        mine.unlink()
    assert "Use --data-dir" in refused(*command("table1"), "--set", "data.directory=x")
    assert "the paper has no such row" in refused(*command("table1"), "--set", "data.dataset=digits")
    Path("file").touch()
    assert "is not a folder" in refused(*command("table1"), "--runs", "file")
    assert "is empty" in refused(*command("table1"), "--runs", "")
    Path("runs").mkdir()
    Path("runs/cifar10-blur-small").symlink_to("nowhere")
    assert "it has no run.toml" in refused(*command("table1"))
    Path("runs/cifar10-blur-small").unlink()
    Path("runs/cifar10-blur-small").mkdir()
    assert "it has no run.toml" in refused(*command("table1"))
    Path("runs/cifar10-blur-small").rmdir()
    other = presets.load("cifar10-blur-small", ["train.clip=0.5"])
    runs.create(Path("runs/cifar10-blur-small"), other, {}).close()
    assert "train.clip = 0.5, not 1.0" in refused("reproduce", "table1", "--data-dir", str(pictures))
    # The last row's run is in use or damaged: that must fail before the first is trained.
    last = Path("runs/cifar10-pixelate-small")
    shutil.rmtree("runs/cifar10-blur-small")
    config = presets.load(last.name, [f"{key}={value}" for key, value in SMALL.items()])
    trainer = runs.create(last, config, {})
    assert run(command("table1", "table3")) == 1
    assert "is being trained by another process" in capsys.readouterr().err
    trainer.close()
    (last / "checkpoints" / "step-000006").mkdir()
    assert run(command("table1", "table3")) == 2
    assert f"Move {last} away" in capsys.readouterr().err
    assert not Path("runs/cifar10-blur-small").exists()


def test_a_changed_rate_is_reported_and_a_read_only_run_is_measured(command, table3, capsys, monkeypatch):
    from colddiff_core import files

    shutil.copytree(table3, "runs")
    path = Path("runs/cifar10-pixelate-small")
    reader = runs.Run(path)
    reader.config_file.write_text(reader.config_file.read_text().replace("lr = 0.001", "lr = 0.0005"))
    shutil.rmtree(path / "reproduced")
    flush = files.flush

    def refuse(target: Path) -> None:
        if "reproduced" in target.parts[2:]:
            raise PermissionError(13, "Permission denied", str(target))
        flush(target)

    monkeypatch.setattr(files, "flush", refuse)
    assert run(command("table3", "--json")) == 0
    output = json.loads(capsys.readouterr().out)
    assert output["runs"][0]["changed"][-1] == "train.lr=0.0005"
    assert output["tables"][0]["rows"][2]["metrics"]["rmse"] > 0
    reader.config_file.write_text(reader.config_file.read_text().replace("lr = 0.0005", "lr = 0.9"))
    assert run(command("table3")) == 2
    assert "train.lr = 0.9, not 0.001" in capsys.readouterr().err


@pytest.mark.parametrize("size", [192, pytest.param(Inception.size, marks=pytest.mark.slow)])
def test_fid_with_the_users_weights_records_their_hash(command, pictures, tmp_path, capsys, monkeypatch, size):
    """FID with 2,048 features takes seconds for each matrix root, so the short form uses an earlier layer."""
    pytest.importorskip("torch_fidelity")
    from inceptions import random_inception
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    monkeypatch.setattr(FeatureExtractorInceptionV3, "INPUT_IMAGE_SIZE", 75)  # the least; with 299 it takes 16 times
    monkeypatch.setattr(Inception, "size", size)
    path = tmp_path / "inception.safetensors"
    safetensors.torch.save_file(random_inception(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    weights = ["--features", "inception", "--weights", str(path)]
    assert run(command("table3", *weights, "--json")) == 0
    output = json.loads(capsys.readouterr().out)
    known = {"name": "FID", "size": size, "images": 24, "weights": path.name, "sha256": digest}
    assert output["runs"][0]["features"] == known
    assert (row := output["tables"][0]["rows"][1])["is_scarce"]
    assert set(row["verdicts"]) == {"rmse", "ssim"}, "too few images for a verdict on FID"
    assert row["metrics"]["fid"] > 0
    assert row["metrics"]["kid"] is not None
    assert "(too few images)" in Path(output["page"]).read_text()
    assert f"`{digest[:8]}`" in Path(output["page"]).read_text()
    assert run(["eval", "--data-dir", str(pictures), *weights, "--n", "9"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"FID: too few images for {size:,} features" in text

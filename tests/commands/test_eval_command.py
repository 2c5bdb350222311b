"""`colddiff eval`: its table, its JSON, the paper's row, photographs' 8 bits, curves, and what it refuses."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import processes
import pytest
import torch
from conftest import finish, make_trainer

from colddiff_cli.__main__ import run
from colddiff_core import runs
from colddiff_core.config import toml
from colddiff_core.evaluation import distances

KINDS = ["degraded", "direct", "sampled", "naive"]


@pytest.fixture
def here(tiny_run, in_folder, monkeypatch):
    """A copy of the tiny run as the newest, and no network."""

    def refuse(*_, **__):
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("TORCH_HOME", str(in_folder / "hub"))
    return shutil.copytree(tiny_run, in_folder / "runs" / "own")


def result_of(capsys, *arguments: str) -> dict:
    assert run(["eval", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *arguments: str, code: int = 2) -> str:
    assert run(["eval", *arguments]) == code
    lines = capsys.readouterr().err.splitlines()
    assert 1 <= len(lines) <= 2, lines
    return " ".join(lines)


def with_paper(run_folder: Path, paper: dict) -> None:
    """Write published figures into a run."""
    found = runs.Run(run_folder)
    table = found.table() | {"paper": paper}
    found.config_file.write_text(toml.dump(table))


def test_every_figure_has_its_number_of_images_and_an_interval(here, capsys, monkeypatch):
    monkeypatch.setattr(distances, "REPLICATES", 20)  # each costs a millisecond
    found = result_of(capsys, "--n", "80")  # the fewest for an interval of FD
    assert found["n"] == 80
    assert found["protocol"] == "float"
    assert list(found["metrics"]) == KINDS
    assert found["features"]["name"] == "FD-digits"
    assert len(found["features"]["sha256"]) == 64
    for kind in KINDS:
        for metric in ("rmse", "psnr", "ssim", "fd", "accuracy"):
            value, (low, high) = found["metrics"][kind][metric], found["intervals"][kind][metric]
            assert low <= value <= high, (kind, metric)
        assert found["metrics"][kind]["kd"] is not None
    assert run(["eval", "--n", "80"]) == 0
    shown = capsys.readouterr().out
    assert "80 test images of digits at t = 5" in shown
    assert "FD-digits" in shown
    assert "FID" not in shown
    half = (found["intervals"]["direct"]["rmse"][1] - found["intervals"]["direct"]["rmse"][0]) / 2
    assert f"{found['metrics']['direct']['rmse']:.4f} ±{half:.4f}".replace("±0.", "±.") in shown


def test_the_papers_row_stands_below_ours_with_a_verdict(here, capsys):
    ours = result_of(capsys, "--n", "60", "--features", "none")["metrics"]
    paper = {
        "source": "A paper, Table 1",
        "note": "One figure is a copy of another.",
        "degraded": {"rmse": round(ours["degraded"]["rmse"] / 1.1, 4)},
        "direct": {"rmse": 0.9, "ssim": 0.999, "fid": 5.1},
        "sampled": {"rmse": round(ours["sampled"]["rmse"], 4)},
    }
    with_paper(here, paper)
    assert run(["eval", "--n", "60", "--features", "none"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: below for line, below in itertools.pairwise(lines) if line.split()}
    assert rows["degraded"].split() == ["paper", f"{paper['degraded']['rmse']:g}", "+10.0", "%"]
    assert rows["direct"].split() == ["paper", "0.9", "better", "0.999", "worse"]
    assert rows["sampled"].split()[-1] == "same"
    assert "paper: A paper, Table 1; same: the paper's figure is in our interval" in lines
    assert "One figure is a copy of another." in lines
    assert any("FID, on Inception features and not comparable with these: direct 5.1" in line for line in lines)
    for other in (["--t", "3"], ["--uint8"], ["--stride", "2"]):
        assert run(["eval", "--n", "9", "--features", "none", *other]) == 0
        assert "paper" not in capsys.readouterr().out, "the paper measured something else"


def test_photographs_have_8_bits(here, capsys):
    command = ["--n", "20", "--features", "none"]
    exact, rounded = result_of(capsys, *command), result_of(capsys, *command, "--uint8")
    assert rounded["protocol"] == "uint8"
    # Shown an inverse that counts on float32, the network falls far behind.
    assert rounded["metrics"]["direct"]["rmse"] > exact["metrics"]["direct"]["rmse"]
    assert rounded["metrics"]["degraded"]["rmse"] == pytest.approx(exact["metrics"]["degraded"]["rmse"], abs=0.002)
    assert run(["eval", "--n", "20", "--uint8"]) == 0
    assert "rounded to 8 bits" in capsys.readouterr().out


def test_a_curve_over_severities(here, capsys):
    rows = result_of(capsys, "--n", "12", "--by-severity", "--stride", "2")["by_severity"]
    assert [row["t"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["metrics"]["degraded"]["rmse"] for row in rows] == sorted(
        r["metrics"]["degraded"]["rmse"] for r in rows
    )
    at_last = result_of(capsys, "--n", "12", "--stride", "2", "--features", "none")["metrics"]
    assert rows[-1]["metrics"]["sampled"]["rmse"] == pytest.approx(at_last["sampled"]["rmse"], rel=1e-6)
    assert rows[-1]["intervals"]["sampled"]["rmse"]
    assert run(["eval", "--n", "12", "--by-severity"]) == 0
    assert "sampled RMSE" in " ".join(capsys.readouterr().out.split())
    assert "many t" in refused(capsys, "--by-severity", "--t", "3")
    assert "no distances" in refused(capsys, "--by-severity", "--features", "inception")
    assert "Did you mean 'inception'" in refused(capsys, "--by-severity", "--features", "incepton")


def print_into(pipe: Path) -> None:
    os.dup2(os.open(pipe, os.O_WRONLY), 1)
    processes.open_streams()


def test_a_closed_output_pipe_does_not_stop_the_work(here, tmp_path):
    os.mkfifo(pipe := tmp_path / "pipe")
    command = ["eval", str(here), "--n", "9", "--features", "none"]
    process = processes.start(command, here.parent, prepare=functools.partial(print_into, pipe))
    head = subprocess.run(["head", "-n1", pipe], capture_output=True, text=True, check=True)
    _, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")
    assert len(head.stdout.splitlines()) == 1
    assert not (here / "evaluated").exists(), "it was not measured to the end"


def test_a_pipe_that_is_closed_before_the_first_line_is_no_failure():
    command = f"{sys.executable} -m colddiff_cli presets | head -n0"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_few_images_get_a_warning_beside_the_number(here, capsys):
    assert run(["eval", "--n", "9"]) == 0
    shown = capsys.readouterr().out
    assert "warning: FD-digits: too few images for 48 features" in shown
    assert any(line.startswith("direct") and "*" in line for line in shown.splitlines())
    assert result_of(capsys, "--n", "48")["is_scarce"]
    assert not result_of(capsys, "--n", "49")["is_scarce"]


def test_an_unmeasurable_metric_is_reported(here, capsys):
    assert "Did you mean 'inception'" in refused(capsys, "--features", "incepton")
    assert "Add --features inception" in refused(capsys, "--weights", "w.pth")
    pytest.importorskip("torch_fidelity")
    assert "--weights 'w.pth': no such file" in refused(capsys, "--features", "inception", "--weights", "w.pth")
    message = refused(capsys, "--features", "inception", code=1)
    assert "weights-inception-2015-12-05-6726825d.pth" in message
    assert "Put that file into" in message
    assert "--weights FILE" in message
    Path("w.pth").write_bytes(b"PK\x03\x04 not weights")
    assert "is not weights-inception" in refused(capsys, "--features", "inception", "--weights", "w.pth")
    Path("w.safetensors").write_bytes(b"cut")
    assert "w.safetensors" in refused(capsys, "--features", "inception", "--weights", "w.safetensors")


def test_wrong_features_are_refused_without_torch(in_folder):
    """In one fresh Python: what any of the commands imports stays visible."""
    commands = [["eval"], ["compare"], ["reproduce", "table1"]]
    wrong = {"incepton": ["--features", "incepton"], "Inception's": ["--weights", "w.pth"]}
    code = (
        "import contextlib, io, json, sys; from colddiff_cli.__main__ import run; results = []\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    with contextlib.redirect_stderr(io.StringIO()) as err: code = run(words)\n"
        "    results.append((code, err.getvalue(), sorted({'torch', 'numpy', 'PIL'} & set(sys.modules))))\n"
        "print(json.dumps(results))"
    )
    asked = [(word, [*command, *options]) for command in commands for word, options in wrong.items()]
    words = [sys.executable, "-c", code, json.dumps([arguments for _, arguments in asked])]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    for (word, arguments), (exit_code, said, heavy) in zip(asked, json.loads(done.stdout), strict=True):
        assert (exit_code, heavy) == (2, []), arguments
        assert word in said, arguments


def test_a_run_whose_images_are_gone(in_folder, capsys):
    from PIL import Image

    for split in ("train", "test"):
        for number in range(6):
            path = in_folder / "photos" / split / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (12 + number, 20), number * 40).save(path)  # of mixed sizes: cropped to one
    settings = ["data.dataset=folder", "data.channels=1", f"data.directory={in_folder / 'photos'}"]
    finish(make_trainer(in_folder / "runs" / "own", *settings))
    assert run(["eval", "--features", "none"]) == 0
    capsys.readouterr()
    (in_folder / "photos" / "test" / "3.png").write_bytes(b"cut")
    assert run(["eval", "--features", "none"]) == 0
    assert "left out 1 test file that could not be read" in " ".join(capsys.readouterr().err.split())
    (in_folder / "photos").rename(in_folder / "moved")
    assert f"{in_folder / 'photos'}" in refused(capsys)
    assert run(["eval", "--features", "none", "--data-dir", "moved"]) == 0


def test_lpips_is_measured_where_its_weights_are(in_folder, tmp_path, monkeypatch, capsys):
    from torchmetrics.functional.image.lpips import _NoTrainLpips

    from colddiff_core.evaluation import lpips, published_weights

    small = ["model.multipliers=[1]", "model.attention=none", "degradation.steps=2", "train.steps=2"]
    finish(make_trainer(in_folder / "runs" / "own", "data.size=32", *small))
    monkeypatch.setenv("TORCH_HOME", str(in_folder / "hub"))
    assert "lpips" not in result_of(capsys, "--n", "4", "--features", "none")["metrics"]["direct"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(in_folder / "cache"))
    from colddiff_core.evaluation import classifier

    monkeypatch.setattr(classifier, "STEPS", 1)
    assert "lpips" not in result_of(capsys, "--n", "4")["metrics"]["direct"]
    with published_weights.LeftUnfilled():
        network = _NoTrainLpips(net="alex", pnet_rand=True)
    layers = {n: layer for part in network.net.children() for n, layer in part.named_children()}
    for layer in layers.values():
        if isinstance(layer, torch.nn.Conv2d):
            layer.reset_parameters()
    state = {f"features.{n}.{key}": t for n, layer in layers.items() for key, t in layer.state_dict().items()}
    path = in_folder / "cache" / "colddiff" / "weights" / published_weights.ALEXNET.file
    path.parent.mkdir(parents=True)
    torch.save(state, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(
        published_weights, "ALEXNET", published_weights.PublishedWeights("AlexNet", path.name, "", digest)
    )
    monkeypatch.setattr(lpips, "ALEXNET", published_weights.ALEXNET)
    found = result_of(capsys, "--n", "4")
    assert found["metrics"]["direct"]["lpips"] > 0
    assert found["intervals"]["direct"]["lpips"]
    assert found["perceptual"] == {"weights": path.name, "sha256": digest}
    assert result_of(capsys, "--n", "4", "--features", "none")["metrics"]["direct"]["lpips"]
    assert run(["eval", "--n", "4", "--features", "none"]) == 0
    assert "LPIPS" in capsys.readouterr().out
    path.write_bytes(b"cut")
    assert run(["eval", "--n", "4", "--features", "none"]) == 0
    shown = capsys.readouterr().err
    assert f"warning: no LPIPS: {path} is not {path.name} as published" in " ".join(shown.split())

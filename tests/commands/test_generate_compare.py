"""`colddiff generate` and `colddiff compare`: what they write, count and explain."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import TINY, left_behind, pictures_in
from PIL import Image

from colddiff_cli.__main__ import run

NOISE = ["--noise", "0.002"]  # given: the tiny run restores, and generates only noise
SETTINGS = [word for value in TINY for word in ("--set", value)]


@pytest.fixture
def own_run(tiny_run, in_folder):
    """A copy of the tiny run in the current folder."""
    return shutil.copytree(tiny_run, in_folder / "runs" / "own")


def test_generate_writes_a_grid_single_images_a_film_and_neighbors(own_run, capsys):
    command = ["generate", *NOISE, "--n", "18", "--sampler", "tacos", "--seed", "4"]
    assert run([*command, "--out-dir", "many", "--animate", "--diversity", "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert output["prior"] == "gmm"
    assert output["noise"] == 0.002
    assert pictures_in(Path("many")) == [f"{number:06d}.png" for number in range(18)]
    with Image.open("many/000000.png") as single:
        assert (single.size, single.mode) == ((12, 12), "L")
    with Image.open(output["animation"]) as film:
        assert film.n_frames == 6
    assert output["picture"].endswith("generated/gmm-tacos.png")
    assert Path(output["neighbours"]).is_file()
    assert set(output["figures"]) == {"fd", "kd", "confidence", "classes", "nearest", "pairwise"}
    assert sum(output["figures"]["classes"]) == 18
    assert output["figures_of_real_images"]["nearest"] > 0
    assert run(["generate", *NOISE, "--n", "3", "--seed", "4", "--out-dir", "few"]) == 0
    for name in pictures_in(Path("few")):
        assert Path("few", name).read_bytes() == Path("many", name).read_bytes()
    assert capsys.readouterr().out.splitlines()[-1].endswith("generated/gmm-tacos-2.png")
    assert run(["generate", *NOISE, "--n", "2", "--animate", "--out", "way.gif", "--json"]) == 0
    film = json.loads(capsys.readouterr().out)
    assert (film["picture"], film["animation"]) == ("way.png", "way.gif")
    assert run(["generate", "--interpolate", "5", "--out-dir", "way", "--prior", "degraded"]) == 0
    assert len(pictures_in(Path("way"))) == 5


def test_images_left_from_an_earlier_call_are_counted(own_run, capsys):
    def warnings(*arguments: str) -> list[str]:
        assert run(["generate", *NOISE, *arguments, "--out-dir", "many", "--json"]) == 0
        lines = capsys.readouterr().err.splitlines()
        return [line for line in lines if line.startswith("warning: ") and "only noise" not in line]

    assert warnings("--n", "5", "--out", "many/grid.png") == []
    Path("many/grid.png").unlink()
    assert warnings("--n", "4", "--force") == ["warning: many has 1 other PNG file from other calls"]
    assert warnings("--n", "2", "--force") == ["warning: many has 3 other PNG files from other calls"]
    assert len(pictures_in(Path("many"))) == 5


def test_one_image_has_no_pairwise_distance(own_run, capsys):
    for command in (["generate", *NOISE, "--diversity"], ["compare", "--generate", *NOISE]):
        assert run([*command, "--n", "1", "--json"]) == 0
        output = json.loads(capsys.readouterr().out)
        figures = output.get("figures") or output["metrics"]["tacos"]
        assert figures["pairwise"] is None
        assert figures["nearest"] > 0
        assert run([*command, "--n", "1"]) == 0
        assert "pairwise" not in capsys.readouterr().out


@pytest.mark.parametrize("command", [["generate", *NOISE], ["compare"], ["eval"], ["sample"]])
def test_older_weights_are_used_with_a_warning(command, own_run, capsys):
    newest = max((own_run / "checkpoints").iterdir())
    (newest / "ema.safetensors").write_bytes(b"x")
    assert run([*command, "--n", "2"]) == 0
    assert f"{newest.name} is damaged; using the weights of step 3" in " ".join(capsys.readouterr().err.split())


def test_generate_works_when_priors_cannot_be_written(own_run, capsys):
    (own_run / "priors").write_text("in the way of the folder")
    assert run(["generate", *NOISE, "--n", "2", "--out", "grid.png"]) == 0
    assert Path("grid.png").is_file()


def test_compare_takes_samplers_strides_runs_and_symmetries(own_run, capsys):
    def compare(*arguments: str, n: int = 4) -> dict:
        assert run(["compare", *arguments, "--n", str(n), "--json"]) == 0
        output = json.loads(capsys.readouterr().out)
        assert Path(output["picture"]).is_file()
        return output

    restored = compare(n=20)
    assert list(restored["metrics"]) == ["direct", "naive", "tacos"]
    assert restored["metrics"]["direct"]["evaluations"] == 1
    assert restored["metrics"]["tacos"]["evaluations"] == 5
    assert set(restored["metrics"]["naive"]) >= {"rmse", "psnr", "ssim", "fd", "kd", "accuracy", "milliseconds"}
    assert run(["eval", "--n", "20", "--json"]) == 0
    evaluated = json.loads(capsys.readouterr().out)["metrics"]
    assert evaluated["sampled"]["rmse"] == pytest.approx(restored["metrics"]["tacos"]["rmse"], rel=1e-6)
    assert list(compare("--samplers", "direct, ,tacos,")["metrics"]) == ["direct", "tacos"]
    strides = compare("--strides", "1,2,5", "--samplers", "tacos,naive", "--t", "4")
    assert [row["evaluations"] for row in strides["metrics"].values()] == [4, 2, 1, 4, 2, 1]
    assert strides["t"] == [4]
    assert list(strides["metrics"])[:2] == ["tacos, stride 1", "tacos, stride 2"]
    assert list(compare("--strides", "5")["metrics"]) == ["tacos, stride 5"]
    assert list(compare("--strides", "1")["metrics"]) == ["tacos"]
    assert next(iter(compare("--strides", "2", "--symmetry", *NOISE)["metrics"])) == "perfect symmetry, stride 2"
    shutil.copytree(own_run, "runs/other")
    assert list(compare("own", "other", "--strides", "2")["metrics"]) == ["own, stride 2", "other, stride 2"]
    both = compare("own", "other")
    assert both["metrics"]["own"]["rmse"] == both["metrics"]["other"]["rmse"]
    generated = compare("own", "--symmetry", *NOISE)
    assert list(generated["metrics"]) == ["perfect symmetry", "broken symmetry", "(real images)"]
    assert run(["train", "--preset", "digits-noise", *SETTINGS, "--out", "runs/hot"]) == 0
    generates = ["--set", "model.consistent=false", "--set", "degradation.dither=0.01"]
    assert run(["train", "--preset", "digits-blur", *SETTINGS, *generates, "--out", "runs/warm"]) == 0
    capsys.readouterr()
    mixed = compare("warm", "hot", "--samplers", "tacos,fixed-noise", "--generate")
    assert list(mixed["metrics"]) == ["warm", "hot, tacos", "hot, fixed-noise", "(real images)"]
    assert run(["compare", "own", "hot", "--samplers", "tacos,nave"]) == 2
    assert "Unknown sampler 'nave'" in capsys.readouterr().err
    assert generated["metrics"]["broken symmetry"]["pairwise"] > 0
    assert (generated["t"], generated["kind"]) == (None, "generated")
    assert Path(generated["picture"]).name.startswith("generated")
    assert run(["compare", "own", "--n", "4"]) == 0
    assert "FD-digits" in capsys.readouterr().out


def test_compare_explains_only_the_columns_it_shows(own_run, capsys):
    from colddiff_core.evaluation.classifier import FEATURES

    def compare(*arguments: str) -> str:
        assert run(["compare", *arguments, "--samplers", "direct"]) == 0
        return capsys.readouterr().out

    restored = compare("--n", "60")
    assert "FD-digits, accuracy: by a small classifier (" in restored
    assert "FD-digits: distance to all 300 test images\n" in restored
    assert "too few" not in restored
    assert "confidence" not in restored
    generated = compare("--n", "60", "--generate", *NOISE)
    assert "FD-digits, confidence, classes: by a small classifier" in generated
    assert "FD-digits: distance to all 300 test images\n(real images): as many" in generated
    assert "accuracy" not in generated
    few = compare("--n", str(FEATURES))
    assert f"warning: FD-digits: too few images for {FEATURES} features" in few


def test_data_without_classes_is_compared_by_quarter_turns(own_run, photo, capsys):
    (photo.parent / "photos").mkdir()
    for number in range(12):
        shade = Image.new("L", (12, 12), number * 20)
        shade.save(photo.parent / "photos" / f"{number}.png")
    settings = ["--set", "data.dataset=folder", "--set", "data.channels=1", "--data-dir", "photos"]
    assert run(["train", "--preset", "digits-blur", *SETTINGS, *settings, "--out", "plain"]) == 0
    capsys.readouterr()
    assert run(["compare", "plain", "--generate", *NOISE, "--n", "4", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)["metrics"]["tacos"]
    assert {"fd", "kd", "nearest"} <= set(row)
    assert row["nearest"] >= 0
    assert run(["compare", "plain", "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert output["features"]["of"] == "quarter turns"
    assert "accuracy" not in output["metrics"]["tacos"]
    assert run(["compare", "plain"]) == 0
    shown = capsys.readouterr().out
    assert "accuracy" not in shown
    assert "accurate on the rotation of the test images" in " ".join(shown.split())


def test_one_image_is_singular(own_run, capsys):
    for command in (
        ["eval"],
        ["compare"],
        ["compare", "--generate", *NOISE],
        ["generate", *NOISE, "--out-dir", "out"],
        ["generate", *NOISE, "--diversity"],
    ):
        assert run([*command, "--n", "1"]) == 0
        text = capsys.readouterr().out
        assert re.search(r"\b1 (test )?image\b", text), text
        assert "1 images" not in text
        assert "1 test images" not in text


@pytest.mark.parametrize("command", [["generate"], ["compare", "--generate"]])
def test_a_run_that_can_only_make_noise_is_refused_with_one_that_generates(command, own_run, capsys):
    before = left_behind(Path())
    assert run([*command, "--n", "2"]) == 2
    what, remedy = capsys.readouterr().err.splitlines()
    assert "runs/own restores pictures; generating with it makes only noise" in what
    assert "pretrained:digits-blur-generate" in remedy
    assert "--noise 0.002" in remedy
    assert left_behind(Path()) == before
    assert run([*command, "--n", "2", *NOISE]) == 0
    assert "only noise" in capsys.readouterr().err

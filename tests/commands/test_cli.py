"""The command line: what it answers, what it refuses, what it leaves behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from checkpoints import assert_same_checkpoint
from conftest import TINY, left_behind, pictures_in
from PIL import Image

from colddiff_cli.__main__ import run
from colddiff_core import degradations, runs
from colddiff_core.config.fields import settings_of

COMMANDS = ("degrade", "train", "sample", "generate", "eval", "compare", "presets")
SETTINGS = [word for value in TINY for word in ("--set", value)]


def colddiff(*arguments: str, **keywords) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "colddiff_cli", *arguments], capture_output=True, text=True, check=False, **keywords
    )


@pytest.mark.parametrize(
    "arguments", [["--help"], *([command, "--help"] for command in COMMANDS), ["presets"], ["--version"]]
)
def test_help_and_presets_import_no_torch(arguments):
    code = (
        "import sys; from colddiff_cli.__main__ import run; code = run(sys.argv[1:]);"
        "heavy = {'torch', 'torchvision', 'numpy', 'PIL', 'sklearn', 'textual'} & set(sys.modules);"
        "print('HEAVY', sorted(heavy)); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "HEAVY []" in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_option_has_help(command, capsys):
    assert run([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert "--help" in text
    from typer.main import get_command

    from colddiff_cli.app import app

    chosen = get_command(app).commands[command]
    assert chosen.help
    for parameter in chosen.params:
        assert getattr(parameter, "help", None), f"{command} {parameter.name} has no help"


def test_the_whole_way(in_folder, capsys):
    assert run(["train", "--preset", "digits-blur", *SETTINGS, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["finished"] is True
    assert made["run"] == "runs/digits-blur"
    with Image.open(made["sheet"]) as sheet:
        assert sheet.width > sheet.height / 2

    assert run(["eval", "--n", "20", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["n"] == 20
    assert set(figures["metrics"]) == {"degraded", "direct", "sampled", "naive"}
    assert set(figures["metrics"]["sampled"]) >= {"rmse", "psnr", "ssim"}

    assert run(["sample", "digits-blur", "--n", "3", "--animate", "--json"]) == 0
    drawn = json.loads(capsys.readouterr().out)
    with Image.open(drawn["animation"]) as film:
        assert film.n_frames == 6
    assert Path(drawn["picture"]).is_file()
    assert run(["sample", "digits-blur", "--n", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["picture"] != drawn["picture"]

    assert run(["train", "--preset", "digits-blur", *SETTINGS]) == 0
    assert Path("runs/digits-blur-2/run.toml").is_file()
    assert capsys.readouterr().out.splitlines()[-1] == "runs/digits-blur-2/samples/step-000006.png"
    assert left_behind(in_folder) == ["runs"]


def test_same_seed_same_bytes(tiny_run, in_folder, capsys):
    for name, seed in (("a.png", "1"), ("b.png", "1")):
        assert run(["sample", str(tiny_run), "--n", "4", "--seed", seed, "--out", name]) == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    assert run(["sample", str(tiny_run), "--n", "4", "--out", "a.png"]) == 2
    assert "--force" in capsys.readouterr().err
    assert run(["sample", str(tiny_run), "--n", "2", "--out", "a.png", "--force"]) == 0


def test_own_pictures_are_degraded_and_restored(tiny_run, photo, capsys):
    assert run(["sample", str(tiny_run), "photo.png", "--out", "out.webp", "--animate", "--stride", "2"]) == 0
    with Image.open("out.webp") as film:
        assert film.n_frames == 4
    assert Path("out.png").is_file()


def test_ctrl_c_saves_and_resume_gives_the_same_bits(tmp_path):
    settings = [
        "--preset",
        "digits-blur",
        *SETTINGS,
        "--set",
        "train.steps=300",
        "--set",
        "train.checkpoint_every=1000",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    whole = colddiff("train", *settings, "--out", str(tmp_path / "whole"), env=environment)
    assert whole.returncode == 0, whole.stderr
    command = [sys.executable, "-m", "colddiff_cli", "train", *settings, "--out", str(tmp_path / "parts")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    deadline = time.monotonic() + 120
    while not runs.Run(tmp_path / "parts").metrics():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 130, text
    assert "--resume" in text
    parts = runs.Run(tmp_path / "parts")
    assert parts.events()[-1]["event"] == "stopped"
    stopped_at = parts.events()[-1]["step"]
    assert 0 < stopped_at < 300
    done = colddiff("train", "--resume", str(tmp_path / "parts"), env=environment)
    assert done.returncode == 0, done.stderr
    assert_same_checkpoint(runs.Run(tmp_path / "whole").newest_checkpoint(), parts.newest_checkpoint())


@pytest.fixture
def own_run(tiny_run, in_folder, monkeypatch):
    """A copy of the tiny run in the current folder, and a cache folder of its own for classifiers."""
    from colddiff_core.evaluation import classifier

    monkeypatch.setattr(classifier, "STEPS", 20)
    monkeypatch.setenv("XDG_CACHE_HOME", str(in_folder / "cache"))
    return shutil.copytree(tiny_run, in_folder / "runs" / "own")


def test_generate_writes_a_grid_single_images_a_film_and_neighbors(own_run, capsys):
    command = ["generate", "--n", "18", "--sampler", "tacos", "--seed", "4"]
    assert run([*command, "--out-dir", "many", "--animate", "--diversity", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["prior"] == "gmm"
    assert told["noise"] == 0.002
    assert pictures_in(Path("many")) == [f"{number:06d}.png" for number in range(18)]
    with Image.open("many/000000.png") as single:
        assert (single.size, single.mode) == ((12, 12), "L")
    with Image.open(told["animation"]) as film:
        assert film.n_frames == 6
    assert told["picture"].endswith("generated/gmm-tacos.png")
    assert Path(told["neighbours"]).is_file()
    assert set(told["figures"]) == {"fd", "kd", "confidence", "classes", "nearest", "pairwise"}
    assert sum(told["figures"]["classes"]) == 18
    assert told["figures_of_real_images"]["nearest"] > 0
    assert run(["generate", "--n", "3", "--seed", "4", "--out-dir", "few"]) == 0
    for name in pictures_in(Path("few")):
        assert Path("few", name).read_bytes() == Path("many", name).read_bytes()
    assert capsys.readouterr().out.splitlines()[-1].endswith("generated/gmm-tacos-2.png")
    assert run(["generate", "--n", "2", "--animate", "--out", "way.gif", "--json"]) == 0
    film = json.loads(capsys.readouterr().out)
    assert (film["picture"], film["animation"]) == ("way.png", "way.gif")
    assert run(["generate", "--interpolate", "5", "--out-dir", "way", "--prior", "degraded"]) == 0
    assert len(pictures_in(Path("way"))) == 5


def test_images_left_from_an_earlier_call_are_counted(own_run, capsys):
    def warnings(*arguments: str) -> list[str]:
        assert run(["generate", *arguments, "--out-dir", "many", "--json"]) == 0
        return [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]

    assert warnings("--n", "5", "--out", "many/grid.png") == []
    Path("many/grid.png").unlink()
    assert warnings("--n", "4", "--force") == ["warning: many has 1 other PNG file from other calls"]
    assert warnings("--n", "2", "--force") == ["warning: many has 3 other PNG files from other calls"]
    assert len(pictures_in(Path("many"))) == 5


def test_one_image_has_no_distance_between_two(own_run, capsys):
    for command in (["generate", "--diversity"], ["compare", "--generate"]):
        assert run([*command, "--n", "1", "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        figures = told.get("figures") or told["metrics"]["tacos"]
        assert figures["pairwise"] is None
        assert figures["nearest"] > 0
        assert run([*command, "--n", "1"]) == 0
        assert "pairwise" not in capsys.readouterr().out


@pytest.mark.parametrize("command", ["generate", "compare", "eval", "sample"])
def test_weights_older_than_the_newest_are_used_with_a_word(command, own_run, capsys):
    newest = max((own_run / "checkpoints").iterdir())
    (newest / "ema.safetensors").write_bytes(b"x")
    assert run([command, "--n", "2"]) == 0
    assert f"{newest.name} is damaged; using the weights of step 3" in " ".join(capsys.readouterr().err.split())


def test_a_run_that_cannot_be_written_to_can_be_generated_from(own_run, capsys):
    (own_run / "priors").write_text("in the way of the folder")
    assert run(["generate", "--n", "2", "--out", "grid.png"]) == 0
    assert Path("grid.png").is_file()


def test_compare_holds_samplers_strides_runs_and_symmetries_against_each_other(own_run, capsys):
    def told(*arguments: str) -> dict:
        assert run(["compare", *arguments, "--n", "60", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert Path(found["picture"]).is_file()
        return found

    restored = told()
    assert list(restored["metrics"]) == ["direct", "naive", "tacos"]
    assert restored["metrics"]["direct"]["evaluations"] == 1
    assert restored["metrics"]["tacos"]["evaluations"] == 5
    assert set(restored["metrics"]["naive"]) >= {"rmse", "psnr", "ssim", "fd", "kd", "accuracy", "milliseconds"}
    assert run(["eval", "--n", "60", "--json"]) == 0
    evaluated = json.loads(capsys.readouterr().out)["metrics"]
    assert evaluated["sampled"]["rmse"] == pytest.approx(restored["metrics"]["tacos"]["rmse"], rel=1e-6)
    assert list(told("--samplers", "direct, ,tacos,")["metrics"]) == ["direct", "tacos"]
    strides = told("--strides", "1,2,5", "--samplers", "tacos,naive", "--t", "4")
    assert [row["evaluations"] for row in strides["metrics"].values()] == [4, 2, 1, 4, 2, 1]
    assert strides["t"] == [4]
    assert list(strides["metrics"])[:2] == ["tacos, stride 1", "tacos, stride 2"]
    assert list(told("--strides", "5")["metrics"]) == ["tacos, stride 5"]
    assert list(told("--strides", "1")["metrics"]) == ["tacos"]
    assert next(iter(told("--strides", "2", "--symmetry")["metrics"])) == "perfect symmetry, stride 2"
    shutil.copytree(own_run, "runs/other")
    assert list(told("own", "other", "--strides", "2")["metrics"]) == ["own, stride 2", "other, stride 2"]
    both = told("own", "other")
    assert both["metrics"]["own"]["rmse"] == both["metrics"]["other"]["rmse"]
    generated = told("own", "--symmetry")
    assert list(generated["metrics"]) == ["perfect symmetry", "broken symmetry", "(real images)"]
    assert run(["train", "--preset", "digits-noise", *SETTINGS, "--out", "runs/hot"]) == 0
    capsys.readouterr()
    mixed = told("own", "hot", "--samplers", "tacos,fixed-noise", "--generate")
    assert list(mixed["metrics"]) == ["own", "hot, tacos", "hot, fixed-noise", "(real images)"]
    assert run(["compare", "own", "hot", "--samplers", "tacos,nave"]) == 2
    assert "Unknown sampler 'nave'" in capsys.readouterr().err
    assert generated["metrics"]["broken symmetry"]["pairwise"] > 0
    assert generated["t"] is None
    assert run(["compare", "own", "--n", "60"]) == 0
    assert "FD-digits" in capsys.readouterr().out


def test_compare_explains_the_columns_it_shows_and_no_others(own_run, capsys):
    from colddiff_core.evaluation.classifier import FEATURES

    def told(*arguments: str) -> str:
        assert run(["compare", *arguments, "--samplers", "direct"]) == 0
        return capsys.readouterr().out

    restored = told("--n", "60")
    assert "FD-digits, accuracy: by a small classifier, right about which class" in restored
    assert "FD-digits: to all 300 test images\n" in restored
    assert "too few" not in restored
    assert "confidence" not in restored
    generated = told("--n", "60", "--generate")
    assert "FD-digits, confidence, classes: by a small classifier" in generated
    assert "FD-digits: to all 300 test images\n(real images): as many" in generated
    assert "accuracy" not in generated
    few = told("--n", str(FEATURES))
    assert f"warning: FD-digits: too few images for {FEATURES} features" in few


def test_data_without_classes_are_compared_by_quarter_turns(own_run, photo, capsys):
    (photo.parent / "photos").mkdir()
    for number in range(12):
        shade = Image.new("L", (12, 12), number * 20)
        shade.save(photo.parent / "photos" / f"{number}.png")
    settings = ["--set", "data.dataset=folder", "--set", "data.channels=1", "--data-dir", "photos"]
    assert run(["train", "--preset", "digits-blur", *SETTINGS, *settings, "--out", "plain"]) == 0
    capsys.readouterr()
    assert run(["compare", "plain", "--generate", "--n", "20", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)["metrics"]["tacos"]
    assert {"fd", "kd", "nearest"} <= set(row)
    assert row["nearest"] >= 0
    assert run(["compare", "plain", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["features"]["of"] == "quarter turns"
    assert "accuracy" not in told["metrics"]["tacos"]
    assert run(["compare", "plain"]) == 0
    shown = capsys.readouterr().out
    assert "accuracy" not in shown
    assert "by how many quarter turns an image is turned" in " ".join(shown.split())


def test_degrade_writes_a_picture_a_strip_and_a_film(photo, capsys):
    blur = ["--op", "blur", "--steps", "10", "--std", "2", "--kernel-size", "9"]
    assert run(["degrade", "photo.png", *blur]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "photo-blur-t010.png"
    with Image.open("photo-blur-t010.png") as blurred:
        assert blurred.size == (40, 30)
    assert run(["degrade", "photo.png", *blur, "--strip", "4", "--out", "strip.png"]) == 0
    with Image.open("strip.png") as strip:
        assert strip.size == (160, 30)
    assert run(["degrade", "photo.png", *blur, "--animate", "--t", "6", "--out", "film.gif"]) == 0
    with Image.open("film.gif") as film:
        assert film.n_frames == 7
    assert (
        run(["degrade", "photo.png", "--preset", "digits-noise", "--t", "0", "--out", "same.png", "--seed", "3"]) == 0
    )
    with Image.open("same.png") as same, Image.open("photo.png") as original:
        assert same.tobytes() == original.tobytes()


@pytest.mark.parametrize("name", [*degradations.names(), "mask+snow"])
def test_every_operator_degrades_a_picture_and_lists_its_parameters(name, photo, capsys):
    second = ["--second", "photo.png"] if degradations.build(name).second_field else []
    assert run(["degrade", "photo.png", "--op", name, *second, "--seed", "5", "--out", "a.png"]) == 0
    assert run(["degrade", "photo.png", "--op", name, *second, "--seed", "5", "--out", "b.png"]) == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    with Image.open("a.png") as degraded:
        assert degraded.size == (40, 30)
        if name not in ("noise", "desaturate"):  # a blurred gray gradient is still gray; see the laws for the rest
            assert degraded.mode == "RGB"
    capsys.readouterr()
    assert run(["degrade", "--op", name, "--help"]) == 0
    listed = capsys.readouterr().out
    for part in name.split("+"):
        for field in settings_of(degradations.find(part)):
            flag = f"--{part}-{field.name}" if "+" in name else f"--{field.name}"
            assert flag.replace("_", "-") in listed


def test_folders_and_globs_and_what_is_broken_in_them(photo, capsys):
    (photo.parent / "in").mkdir()
    for name in ("a.png", "b.png"):
        (photo.parent / "in" / name).write_bytes(photo.read_bytes())
    (photo.parent / "in" / "cut.png").write_bytes(photo.read_bytes()[:60])
    command = ["degrade", "--op", "desaturate", "--json", "--out-dir", "out"]
    assert run([*command, "in"]) == 0
    told = capsys.readouterr()
    assert sorted(json.loads(told.out)["files"]) == ["out/a-desaturate-t050.png", "out/b-desaturate-t050.png"]
    assert "cut.png" in told.err
    assert run([*command, "in/*.png"]) == 2
    assert "--force" in capsys.readouterr().err
    assert run([*command, "in/a*.png", "--force"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == ["out/a-desaturate-t050.png"]
    assert pictures_in(photo.parent / "out") == ["a-desaturate-t050.png", "b-desaturate-t050.png"]


def test_describe_tells_heavy_from_light(in_folder, capsys):
    gains = {}
    for preset in ("cifar10-blur", "mnist-blur-small"):
        assert run(["degrade", "--preset", preset, "--describe", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["size"] == [32, 32]
        first, last = found["severities"][0], found["severities"][-1]
        assert first["rmse"] == 0
        assert first["gain_low"] == pytest.approx(1, abs=1e-5)
        gains[preset] = last["gain_low"]
    assert gains["cifar10-blur"] > 0.4
    assert gains["mnist-blur-small"] < 0.05
    assert run(["degrade", "--op", "mask", "--location", "center", "--size", "32", "--describe"]) == 0
    assert "pixels kept" in capsys.readouterr().out
    assert left_behind(in_folder) == []


def test_an_operator_of_another_package_needs_no_edit_here(in_folder, photo):
    """What `pip install` would leave behind: a module, and a dist-info that names its entry point."""
    packages = in_folder / "packages"
    (packages / "tiny-1.0.dist-info").mkdir(parents=True)
    (packages / "tiny-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
    (packages / "tiny-1.0.dist-info" / "entry_points.txt").write_text("[colddiff.degradations]\nfade = tiny:Fade\n")
    (packages / "tiny.py").write_text(
        "import dataclasses\n"
        "from colddiff_core.degradations import Degradation\n"
        "from colddiff_core.config.fields import setting\n"
        "@dataclasses.dataclass(frozen=True, kw_only=True)\n"
        "class Fade(Degradation):\n"
        "    depth: float = setting(0.5, 'how dark it gets', above=0)\n"
        "    def _degrade(self, x0, t, frozen):\n"
        "        share = self.depth * t / self.steps\n"
        "        share = share if isinstance(share, float) else share.view(-1, 1, 1, 1)\n"
        "        return x0 - share * (x0 + 1)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(packages), str(Path(__file__).parents[2])])}

    def told(*arguments: str) -> str:
        done = colddiff(*arguments, env=environment, cwd=in_folder)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "how dark it gets" in told("degrade", "--op", "fade", "--help")
    told("degrade", "photo.png", "--op", "fade", "--depth", "0.9", "--out", "dark.png")
    with Image.open("dark.png") as dark:
        assert max(dark.convert("L").tobytes()) < 30
    (in_folder / "mine.toml").write_text(
        'extends = "digits-blur"\n[degradation]\nname = "fade"\ndepth = 0.8\n'
        '[model]\ninputs = "plain"\nconsistent = false\n'
    )
    told("train", "--preset", "mine.toml", *SETTINGS, "--out", "run")
    assert json.loads(told("eval", "run", "--n", "8", "--json"))["n"] == 8
    told("sample", "run", "--out", "sheet.png")
    assert json.loads(told("generate", "run", "--n", "2", "--json"))["prior"] == "degraded"
    broken = (packages / "tiny.py").read_text().replace("import dataclasses", "import nowhere")
    (packages / "tiny.py").write_text(broken)
    done = colddiff("degrade", "photo.png", "--op", "fade", env=environment, cwd=in_folder)
    assert done.returncode == 1
    assert "of the package tiny does not load" in done.stderr


def test_a_data_dir_for_the_second_data_set_alone_has_its_use(in_folder, capsys):
    for number in range(12):
        Path("photos").mkdir(exist_ok=True)
        Image.new("L", (12, 12), number * 20).save(f"photos/{number}.png")
    second = ["--set", "data.second=folder", "--data-dir", "photos"]
    assert run(["train", "--preset", "digits-animorph", *SETTINGS, *second, "--out", "mixed"]) == 0
    Path("photos").rename("moved")
    assert run(["eval", "mixed", "--n", "2"]) == 2
    assert "No such folder" in capsys.readouterr().err
    assert run(["eval", "mixed", "--n", "2", "--data-dir", "moved"]) == 0


def test_pictures_that_do_not_suit_an_operator_are_left_out_of_a_folder(in_folder, capsys):
    (in_folder / "in").mkdir()
    Image.new("RGB", (9, 9), (200, 10, 10)).save("in/a.png")
    Image.new("L", (9, 9)).save("in/b.png")
    Image.new("RGB", (9, 9), (10, 200, 10)).save("in/c.png")
    assert run(["degrade", "in", "--op", "desaturate", "--out-dir", "out"]) == 0
    assert "b.png" in capsys.readouterr().out
    assert pictures_in(in_folder / "out") == ["a-desaturate-t050.png", "c-desaturate-t050.png"]


def test_one_is_not_told_as_many(own_run, capsys):
    for command in (
        ["eval"],
        ["compare"],
        ["compare", "--generate"],
        ["generate", "--out-dir", "out"],
        ["generate", "--diversity"],
    ):
        assert run([*command, "--n", "1"]) == 0
        told = capsys.readouterr().out
        assert re.search(r"\b1 (test )?image\b", told), told
        assert "1 images" not in told
        assert "1 test images" not in told


def test_json_holds_no_nan(capsys):
    from colddiff_cli.console.screen import Screen

    Screen(is_json=True).result({"a": float("nan"), "b": [1.5, float("inf")]})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [1.5, None]}


def test_without_arguments_the_help_is_shown(capsys):
    assert run([]) == 2
    told = capsys.readouterr()
    assert "degrade" in told.out + told.err
    assert "colddiff: " not in told.err


def test_a_traceback_is_shown_only_when_asked_for(in_folder, monkeypatch, capsys):
    from colddiff_core.config import presets

    def broken(*arguments):
        raise ZeroDivisionError("one over none")

    monkeypatch.setattr(presets, "load", broken)
    assert run(["presets", "digits-blur"]) == 1
    told = capsys.readouterr().err
    assert "one over none" in told
    assert "--debug" in told
    with pytest.raises(ZeroDivisionError):
        run(["--debug", "presets", "digits-blur"])


@pytest.mark.parametrize("module", ["colddiff_core.errors", "typer", "colddiff_cli.app", "torch", "sklearn"])
def test_ctrl_c_while_a_module_is_imported_is_no_traceback(module):
    code = (
        "import signal, sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, *rest):\n"
        f"        if name == {module!r}:\n"
        "            signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "from colddiff_cli.__main__ import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", code, "degrade", "--op", "blur", "--describe"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "colddiff: Interrupted.\n")

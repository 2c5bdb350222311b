"""The command line: help, a whole workflow, interrupts and errors."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import processes
import pytest
from checkpoints import assert_same_checkpoint
from conftest import TINY, left_behind
from PIL import Image
from typer.main import get_command

from colddiff_cli.__main__ import run
from colddiff_cli.app import LOADERS, with_commands
from colddiff_core import runs

COMMANDS = ("degrade", "train", "sample", "generate", "eval", "compare", "presets")
SETTINGS = [word for value in TINY for word in ("--set", value)]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        *([command, "--help"] for command in COMMANDS),
        ["degrade", "--op", "blur+snow", "--help"],
        ["presets"],
        ["--version"],
    ],
)
def test_help_and_presets_import_no_torch(arguments):
    code = (
        "import sys; from colddiff_cli.__main__ import run; code = run(sys.argv[1:]);"
        "heavy = {'torch', 'torchvision', 'numpy', 'PIL', 'sklearn', 'textual'} & set(sys.modules);"
        "print('HEAVY', sorted(heavy)); sys.exit(code)"
    )
    finished = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "HEAVY []" in finished.stdout


@pytest.mark.parametrize(("arguments", "imported"), [(["--help"], []), (["train", "--help"], ["train"])])
def test_only_the_command_that_runs_is_imported(arguments, imported):
    code = (
        "import sys; from colddiff_cli.__main__ import run; code = run(sys.argv[1:]);"
        "names = [name.partition('colddiff_cli.commands.')[2] for name in sys.modules];"
        "print('COMMANDS', list(filter(None, names))); sys.exit(code)"
    )
    finished = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert finished.stdout.splitlines()[-1] == f"COMMANDS {imported}"


def test_the_help_has_a_line_for_every_command(capsys):
    assert run(["--help"]) == 0
    rows = [line.strip("│ ") for line in capsys.readouterr().out.splitlines()]
    for name, loader in LOADERS.items():
        assert f"{name:<10} {loader.__doc__}" in rows


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_option_has_help(command, capsys):
    assert run([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert "--help" in text
    chosen = get_command(with_commands([command], [])).commands[command]
    assert chosen.help
    for parameter in chosen.params:
        assert getattr(parameter, "help", None), f"{command} {parameter.name} has no help"


def test_a_run_is_trained_evaluated_and_sampled(in_folder, capsys):
    assert run(["train", "--preset", "digits-blur", *SETTINGS, "--json"]) == 0
    trained = json.loads(capsys.readouterr().out)
    assert trained["finished"] is True
    assert trained["run"] == "runs/digits-blur"
    with Image.open(trained["sheet"]) as sheet:
        assert sheet.width > sheet.height / 2

    assert run(["eval", "--n", "20", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["n"] == 20
    assert set(figures["metrics"]) == {"degraded", "direct", "sampled", "naive"}
    assert set(figures["metrics"]["sampled"]) >= {"rmse", "psnr", "ssim"}

    assert run(["sample", "digits-blur", "--n", "3", "--animate", "--json"]) == 0
    sampled = json.loads(capsys.readouterr().out)
    with Image.open(sampled["animation"]) as film:
        assert film.n_frames == 6
    assert Path(sampled["picture"]).is_file()
    assert run(["sample", "digits-blur", "--n", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["picture"] != sampled["picture"]

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


def test_user_pictures_are_degraded_and_restored(tiny_run, photo, capsys):
    assert run(["sample", str(tiny_run), "photo.png", "--out", "out.webp", "--animate", "--stride", "2"]) == 0
    with Image.open("out.webp") as film:
        assert film.n_frames == 4
    assert Path("out.png").is_file()


def test_ctrl_c_saves_and_resuming_gives_the_same_bits(tmp_path):
    settings = [
        "--preset",
        "digits-blur",
        *SETTINGS,
        "--set",
        "train.steps=150",
        "--set",
        "train.checkpoint_every=1000",
    ]
    processes.finish(["train", *settings, "--out", "whole"], tmp_path)
    process = processes.start(["train", *settings, "--out", "parts"], tmp_path)
    deadline = time.monotonic() + 120
    while not runs.Run(tmp_path / "parts").metrics():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 130, process.communicate()
    text = "".join(process.communicate())
    assert "--resume" in text
    parts = runs.Run(tmp_path / "parts")
    assert parts.events()[-1]["event"] == "stopped"
    stopped_at = parts.events()[-1]["step"]
    assert 0 < stopped_at < 150
    processes.finish(["train", "--resume", "parts"], tmp_path)
    assert_same_checkpoint(runs.Run(tmp_path / "whole").newest_checkpoint(), parts.newest_checkpoint())


def test_nan_becomes_null_in_json(capsys):
    from colddiff_cli.console.screen import Screen

    Screen(is_json=True).result({"a": float("nan"), "b": [1.5, float("inf")]})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [1.5, None]}


def test_help_is_shown_without_arguments(capsys):
    assert run([]) == 2
    streams = capsys.readouterr()
    assert "degrade" in streams.out + streams.err
    assert "colddiff: " not in streams.err


def test_a_traceback_is_shown_only_when_asked_for(in_folder, monkeypatch, capsys):
    from colddiff_core.config import presets

    def broken(*arguments):
        raise ZeroDivisionError("one over none")

    monkeypatch.setattr(presets, "load", broken)
    assert run(["presets", "digits-blur"]) == 1
    message = capsys.readouterr().err
    assert "one over none" in message
    assert "--debug" in message
    with pytest.raises(ZeroDivisionError):
        run(["--debug", "presets", "digits-blur"])


@pytest.mark.parametrize("module", ["colddiff_core.errors", "typer", "colddiff_cli.app", "torch", "sklearn"])
def test_ctrl_c_during_an_import_shows_no_traceback(module):
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
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stderr) == (130, "colddiff: Interrupted.\n")

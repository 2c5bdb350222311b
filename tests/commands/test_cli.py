"""The command line: help, a whole workflow, interrupts and errors."""

from __future__ import annotations

import functools
import json
import signal
import subprocess
import sys
import types
from pathlib import Path

import processes
import pytest
from checkpoints import assert_same_checkpoint
from conftest import TINY, left_behind
from PIL import Image
from typer.main import get_command

from colddiff_cli.__main__ import run
from colddiff_cli.app import LOADERS, with_commands
from colddiff_cli.console import training_progress
from colddiff_core import runs
from colddiff_core.training import step, trainer

COMMANDS = ("degrade", "train", "sample", "generate", "eval", "compare", "presets")
SETTINGS = [word for value in TINY for word in ("--set", value)]


def test_help_and_presets_import_no_torch_and_only_the_command_that_runs():
    """One fresh Python runs the command lines in turn and reports what is imported after each."""
    code = (
        "import json, sys; from colddiff_cli.__main__ import run\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    code = run(arguments)\n"
        "    heavy = {'torch', 'torchvision', 'numpy', 'PIL', 'sklearn', 'textual'} & set(sys.modules)\n"
        "    names = [name.partition('colddiff_cli.commands.')[2] for name in sys.modules]\n"
        "    print('IMPORTED', json.dumps([arguments, code, list(heavy), list(filter(None, names))]))\n"
    )
    first = [["--version"], ["--help"], ["train", "--help"]]
    others = [[command, "--help"] for command in COMMANDS if command != "train"]
    calls = [*first, *others, ["degrade", "--op", "blur+snow", "--help"], ["presets"]]
    finished = subprocess.run(
        [sys.executable, "-c", code, json.dumps(calls)], capture_output=True, text=True, check=True
    )
    lines = [line for line in finished.stdout.splitlines() if line.startswith("IMPORTED ")]
    reports = [json.loads(line.removeprefix("IMPORTED ")) for line in lines]
    assert [report[:3] for report in reports] == [[arguments, 0, []] for arguments in calls], finished.stderr
    assert [report[3] for report in reports[:3]] == [[], [], ["train"]]


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
    whole = tmp_path / "whole"
    changes = ["--set", "train.steps=12", "--set", "train.checkpoint_every=1000"]
    settings = ["--preset", "digits-blur", *SETTINGS, *changes]
    assert run(["train", *settings, "--out", str(whole)]) == 0
    interrupt = functools.partial(processes.signal_in_step, signal.SIGINT, 7)
    process = processes.start(["train", *settings, "--out", "parts"], tmp_path, prepare=interrupt)
    assert process.wait(120) == 130, process.communicate()
    text = "".join(process.communicate())
    assert "--resume" in text
    parts = runs.Run(tmp_path / "parts")
    assert parts.events()[-1]["event"] == "stopped"
    assert parts.events()[-1]["step"] == 8  # the step is finished
    processes.finish(["train", "--resume", "parts"], tmp_path)
    assert_same_checkpoint(runs.Run(whole).newest_checkpoint(), parts.newest_checkpoint())


@pytest.fixture
def slow_steps(monkeypatch):
    """Return a function that makes every optimizer step take so many seconds by the display's clock, the first more."""
    clock, take = [0.0], step.Stepper.take

    def slow(seconds: float) -> None:
        taken: list[int] = []

        def take_long(stepper, number, meter):
            take(stepper, number, meter)
            clock[0] += seconds if taken else 40 * seconds
            taken.append(number)

        monkeypatch.setattr(step.Stepper, "take", take_long)

    monkeypatch.setattr(training_progress, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(training_progress.MachineUse, "by_others", lambda _: 0.0)
    return slow


def test_training_on_a_cpu_says_after_a_few_steps_how_long_it_will_take(slow_steps, in_folder, capsys):
    """The median of the second to the sixth step, for the fourteen that are left."""
    slow_steps(1.0)
    assert run(["train", "--preset", "digits-blur", *SETTINGS, "--set", "train.steps=20", "--json"]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out)["finished"] is True
    lines = output.err.splitlines()
    said = lines.index("about 20 s on this CPU")
    assert lines[said - 1].startswith("step 2/20")
    assert lines[said + 1].startswith("step 14/20")
    assert "small" not in output.err  # digits-blur has no small sibling


def test_training_says_what_other_programs_take(slow_steps, in_folder, monkeypatch, capsys):
    slow_steps(1.0)
    monkeypatch.setattr(training_progress.MachineUse, "by_others", lambda _: 2.6)
    monkeypatch.setattr(training_progress.environment, "processors", lambda: 4)
    assert run(["train", "--preset", "digits-blur", *SETTINGS, "--set", "train.steps=20"]) == 0
    said = "about 20 s on this CPU; other programs use 2.6 of its 4 processors"
    assert said in capsys.readouterr().out.splitlines()


def test_what_this_process_uses_is_not_counted_as_that_of_others(monkeypatch):
    times = iter([(10.0, 1.0, 100.0), (30.0, 16.0, 110.0)])  # busy, own, clock: five of twenty seconds are of others
    monkeypatch.setattr(training_progress.MachineUse, "_measured", staticmethod(lambda: next(times)))
    assert training_progress.MachineUse().by_others() == 0.5


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (11, "about 20 s"),
        (89, "about 90 s"),
        (100, "about 2 min"),
        (5000, "about 83 min"),
        (20_000, "about 6 h"),
        (100_000, "about 1.2 days"),
        (1e6, "about 12 days"),
    ],
)
def test_long_times_are_rounded(seconds, text):
    assert training_progress.about(seconds) == text


def test_a_training_of_days_names_the_small_preset_before_it_goes_on(slow_steps, in_folder, capsys):
    Path("mnist-blur.toml").write_text('extends = "digits-blur"', encoding="utf-8")
    slow_steps(86_400.0)
    train = ["train", "--preset", "mnist-blur.toml", *SETTINGS, "--set", "train.steps=20"]
    assert run(train) == 0
    lines = capsys.readouterr().out.splitlines()
    (said,) = (number for number, line in enumerate(lines) if line == "about 18 days on this CPU")
    assert "colddiff train --preset mnist-blur-small" in lines[said + 1]
    assert lines[said + 2].startswith("step 2/20")

    resumed = ["train", "--resume", "runs/mnist-blur", "--set", "train.steps=32"]
    assert run(resumed) == 0
    assert "about 10 days on this CPU" in capsys.readouterr().out.splitlines()  # of the twelve that are left


def test_a_pause_is_not_taken_for_a_slow_step(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(training_progress, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    forecast = training_progress.Forecast(0)
    ticks = [
        (1, 9.0, False),
        (2, 1.0, False),
        (2, 0.0, True),
        (2, 3600.0, False),
        *((n, 1.0, False) for n in range(3, 7)),
    ]
    for number, seconds, is_paused in ticks:
        clock[0] += seconds
        left = forecast.add(trainer.Tick(number, is_paused=is_paused), 100)
        if left is not None:
            break
    assert left == 94.0


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


@pytest.mark.parametrize(
    "module",
    ["colddiff_core.errors", "typer", "colddiff_cli.app", "torch", pytest.param("sklearn", marks=pytest.mark.slow)],
)
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

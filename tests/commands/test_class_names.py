"""Classes on the command line: trained without counting, named, listed, completed, leaned towards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import TINY
from PIL import Image

from colddiff_cli.__main__ import run
from colddiff_cli.arguments import shell_scripts
from colddiff_core import runs
from colddiff_core.runs import classes

SETTINGS = [word for value in TINY for word in ("--set", value)]
CONDITIONAL = ["--preset", "digits-blur-generate", *SETTINGS, "--device", "cpu"]
PETS = ["--set", "data.dataset=folder", "--set", "model.classes=all", "--data-dir"]


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """A folder of three classes, one with a name that shells and Rich could take for theirs."""
    root = tmp_path_factory.mktemp("pets")
    for number, name in enumerate(["cat", "dog", "[red]owl"] * 8):
        (root / name).mkdir(exist_ok=True)
        Image.new("L", (12, 12), 9 * number).save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def trained(pets, tmp_path_factory):
    path = tmp_path_factory.mktemp("trained") / "pets"
    assert run(["train", *CONDITIONAL, *PETS, str(pets), "--set", "data.channels=1", "--out", str(path)]) == 0
    return path


@pytest.fixture
def own(trained, in_folder):
    return shutil.copytree(trained, in_folder / "runs" / "pets")


def test_a_training_counts_the_classes_and_keeps_their_names(own):
    assert runs.Run(own).config().model.classes == 3
    assert runs.Run(own).classes() == ("[red]owl", "cat", "dog")


def test_a_class_is_generated_by_name_and_stands_above_its_images(own, capsys):
    def generated(*arguments):
        assert run(["generate", "--n", "4", "--out", "grid.png", "--force", "--json", *arguments]) == 0
        output = json.loads(capsys.readouterr().out)
        return output, Path("grid.png").read_bytes()

    of_cat, cats = generated("--class", "cat")
    assert (of_cat["class"], of_cat["classes"], of_cat["guidance"]) == (1, ["cat"], 1.0)
    assert cats == generated("--class", "1", "--guidance", "1")[1]
    assert cats != generated()[1]
    of_all, _ = generated("--class", "all", "--guidance", "2.5")
    assert (of_all["class"], of_all["classes"], of_all["guidance"]) == ([0, 1, 2], ["[red]owl", "cat", "dog"], 2.5)
    of_two, _ = generated("--class", "dog", "--class", "cat")
    assert of_two["classes"] == ["dog", "cat"]


def test_images_of_classes_are_judged_by_the_class_that_was_asked_for(own, capsys):
    assert run(["generate", "--n", "6", "--class", "all", "--diversity", "--json"]) == 0
    assert 0 <= json.loads(capsys.readouterr().out)["figures"]["accuracy"] <= 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--class", "cta"], "Did you mean 'cat'?"),
        (["--class", "elephant"], "Known: [red]owl, cat, dog."),
        (["--class", "3"], "Known: [red]owl, cat, dog."),
        (["--class", "cat", "--guidance", "nan"], "Use 0 to 20"),
        (["--class", "cat", "--guidance", "-1"], "Use 0 to 20"),
        (["--guidance", "2"], "Name one with --class"),
        (["--class", "all", "--interpolate", "4"], "Give --class once"),
    ],
)
def test_a_wrong_class_or_guidance_is_refused_in_two_lines_and_nothing_is_written(own, options, words, capsys):
    assert run(["generate", *options]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 2
    assert not (own / "generated").exists()


def test_a_run_without_names_goes_by_numbers(own, capsys):
    (own / classes.FILE).unlink()
    assert run(["generate", "--n", "2", "--class", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == ["class 2"]
    assert run(["generate", "--class", "cat"]) == 2
    assert "Use 0 to 2, or all." in capsys.readouterr().err


def test_runs_lists_the_classes(own, capsys):
    assert run(["runs"]) == 0
    assert "[red]owl, cat, dog" in capsys.readouterr().out
    assert run(["runs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs/pets"]["classes"] == ["[red]owl", "cat", "dog"]
    (own / classes.FILE).write_text("damaged")
    assert run(["runs", "--json"]) == 0
    output = capsys.readouterr()
    assert "classes.json is damaged" in output.err
    assert json.loads(output.out)["runs/pets"]["classes"] == ["0", "1", "2"]
    assert run(["generate", "--class", "1"]) == 2
    assert "Delete it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("generate pets --class ", ["[red]owl", "cat", "dog", "all"]),
        ("generate --class c", ["cat"]),
        ("generate --class cat --class ", ["[red]owl", "dog", "all"]),
        ("generate pretrained:digits-blur-generate --class ", []),
        ("train --set model.classes=", ["model.classes=all"]),
    ],
)
@pytest.mark.usefixtures("own")
def test_tab_completes_the_classes_of_the_run(line, expected, monkeypatch, capsys):
    monkeypatch.setenv(shell_scripts.ASKING, "complete_line")
    monkeypatch.setenv(shell_scripts.LINE, f"colddiff {line}")
    shell_scripts.register()
    with pytest.raises(SystemExit):
        run([])
    assert [answer.partition("\t")[0] for answer in capsys.readouterr().out.splitlines() if answer] == expected


def test_all_classes_of_a_data_set_without_any_are_refused_before_a_run_exists(in_folder, capsys):
    Path("plain").mkdir()
    for number in range(12):
        Image.new("L", (12, 12), number).save(f"plain/{number}.png")
    assert run(["train", *CONDITIONAL, *PETS, "plain", "--out", "run"]) == 2
    assert "model.classes = all: folder has no classes." in capsys.readouterr().err
    assert not Path("run").exists()


def test_a_training_with_all_classes_may_be_called_again_with_continue(pets, trained, in_folder, capsys):
    shutil.copytree(trained, "run")
    words = ["train", *CONDITIONAL, *PETS, str(pets), "--set", "data.channels=1", "--out", "run", "--continue"]
    assert run(words) == 0
    assert "is finished" in capsys.readouterr().out
    assert run(["train", "--preset", "digits-blur-generate", "--set", "model.classes=all", "--dry-run"]) == 0
    assert 'classes = "all"' in capsys.readouterr().out


def test_a_renamed_class_is_a_change_that_a_resumed_run_asks_about(pets, tmp_path, capsys):
    data, path = shutil.copytree(pets, tmp_path / "data"), tmp_path / "run"
    words = ["train", *CONDITIONAL, *PETS, str(data), "--set", "data.channels=1", "--out", str(path)]
    assert run(words) == 0
    (data / "dog").rename(data / "wolf")
    again = ["train", "--resume", str(path), "--set", "train.steps=9", "--device", "cpu"]
    assert run(again) == 2
    assert "classes" in capsys.readouterr().err
    assert runs.Run(path).classes()[-1] == "dog"
    assert run([*again, "--allow-change"]) == 0
    assert runs.Run(path).classes()[-1] == "wolf"

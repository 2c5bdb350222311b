"""`colddiff degrade`: pictures, strips, films, folders, and operators from other packages."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import processes
import pytest
from conftest import TINY, left_behind, pictures_in
from PIL import Image

from colddiff_cli.__main__ import run
from colddiff_core import degradations
from colddiff_core.config.fields import settings_of

END = "-- end --"
SETTINGS = [word for value in TINY for word in ("--set", value)]


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


def test_folders_and_globs_skip_broken_files(photo, capsys):
    (photo.parent / "in").mkdir()
    for name in ("a.png", "b.png"):
        (photo.parent / "in" / name).write_bytes(photo.read_bytes())
    (photo.parent / "in" / "cut.png").write_bytes(photo.read_bytes()[:60])
    command = ["degrade", "--op", "desaturate", "--json", "--out-dir", "out"]
    assert run([*command, "in"]) == 0
    streams = capsys.readouterr()
    assert sorted(json.loads(streams.out)["files"]) == ["out/a-desaturate-t050.png", "out/b-desaturate-t050.png"]
    assert "cut.png" in streams.err
    assert run([*command, "in/*.png"]) == 2
    assert "--force" in capsys.readouterr().err
    assert run([*command, "in/a*.png", "--force"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == ["out/a-desaturate-t050.png"]
    assert pictures_in(photo.parent / "out") == ["a-desaturate-t050.png", "b-desaturate-t050.png"]


def test_describe_shows_how_heavy_a_degradation_is(in_folder, capsys):
    gains = {}
    for preset in ("cifar10-blur", "mnist-blur-small"):
        assert run(["degrade", "--preset", preset, "--describe", "--json"]) == 0
        output = json.loads(capsys.readouterr().out)
        assert output["size"] == [32, 32]
        first, last = output["severities"][0], output["severities"][-1]
        assert first["rmse"] == 0
        assert first["gain_low"] == pytest.approx(1, abs=1e-5)
        gains[preset] = last["gain_low"]
    assert gains["cifar10-blur"] > 0.4
    assert gains["mnist-blur-small"] < 0.05
    assert run(["degrade", "--op", "mask", "--location", "center", "--size", "32", "--describe"]) == 0
    assert "pixels kept" in capsys.readouterr().out
    assert left_behind(in_folder) == []


def run_all(lines: list[list[str]], folder: Path, prepare: Callable[[], None]) -> int:
    """Run command lines in a folder, each followed by END, until one fails."""
    os.chdir(folder)
    prepare()
    for words in lines:
        if code := run(words):
            return code
        sys.stdout.write(END)
    return 0


def test_an_operator_from_another_package_works(in_folder, photo):
    """Lay out what `pip install` writes: a module, and a dist-info that names its entry point."""
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
    prepare = functools.partial(processes.add_packages, packages)
    (in_folder / "mine.toml").write_text(
        'extends = "digits-blur"\n[degradation]\nname = "fade"\ndepth = 0.8\n'
        '[model]\ninputs = "plain"\nconsistent = false\n'
    )
    lines = [
        ["degrade", "--op", "fade", "--help"],
        ["degrade", "photo.png", "--op", "fade", "--depth", "0.9", "--out", "dark.png"],
        ["train", "--preset", "mine.toml", *SETTINGS, "--out", "run"],
        ["eval", "run", "--n", "8", "--features", "none", "--json"],
        ["sample", "run", "--out", "sheet.png"],
        ["generate", "run", "--n", "2", "--json"],
    ]
    process = processes.fork(functools.partial(run_all, lines, in_folder, prepare))
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    listed, _, _, evaluated, _, generated = out.split(END)[:-1]
    assert "how dark it gets" in listed
    with Image.open("dark.png") as dark:
        assert max(dark.convert("L").tobytes()) < 30
    assert json.loads(evaluated)["n"] == 8
    assert Path("sheet.png").is_file()
    assert json.loads(generated)["prior"] == "degraded"
    broken = (packages / "tiny.py").read_text().replace("import dataclasses", "import nowhere")
    (packages / "tiny.py").write_text(broken)
    process = processes.start(["degrade", "photo.png", "--op", "fade"], in_folder, prepare=prepare)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert "of the package tiny does not load" in errors


def test_data_dir_may_hold_only_the_second_data_set(in_folder, capsys):
    for number in range(12):
        Path("photos").mkdir(exist_ok=True)
        Image.new("L", (12, 12), number * 20).save(f"photos/{number}.png")
    measured = ["eval", "mixed", "--n", "2", "--features", "none"]
    second = ["--set", "data.second=folder", "--data-dir", "photos"]
    assert run(["train", "--preset", "digits-animorph", *SETTINGS, *second, "--out", "mixed"]) == 0
    Path("photos").rename("moved")
    assert run(measured) == 2
    assert "No such folder" in capsys.readouterr().err
    assert run([*measured, "--data-dir", "moved"]) == 0


def test_unsuitable_pictures_in_a_folder_are_skipped(in_folder, capsys):
    (in_folder / "in").mkdir()
    Image.new("RGB", (9, 9), (200, 10, 10)).save("in/a.png")
    Image.new("L", (9, 9)).save("in/b.png")
    Image.new("RGB", (9, 9), (10, 200, 10)).save("in/c.png")
    assert run(["degrade", "in", "--op", "desaturate", "--out-dir", "out"]) == 0
    assert "b.png" in capsys.readouterr().out
    assert pictures_in(in_folder / "out") == ["a-desaturate-t050.png", "c-desaturate-t050.png"]


def test_an_operators_whole_number_may_have_a_point_or_an_exponent(photo, capsys):
    written = []
    for value in ("11", "11.0", "1.1e1", "1_1"):
        words = ["--op", "blur", "--t", "3", "--kernel-size", value, "--std", ".5", "--out", "out.png", "--force"]
        assert run(["degrade", str(photo), *words]) == 0, capsys.readouterr().err
        written.append(Path("out.png").read_bytes())
    assert len(set(written)) == 1
    for value in ("2.5", "x", "true"):
        assert run(["degrade", str(photo), "--op", "blur", "--kernel-size", value, "--out", "no.png"]) == 2
        assert "is not a whole number" in capsys.readouterr().err
    assert "no.png" not in left_behind(Path())

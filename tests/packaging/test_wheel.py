"""A release: the wheel and the sdist hold what they should, and the wheel works in a fresh environment.

The fresh environment gets torch and the rest from the package index, so these tests need an internet connection.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest
from PIL import Image

from colddiff_core import __version__

pytest.importorskip("build.env", reason="needs the package build: pip install -e '.[dev]'")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PACKAGES = ("colddiff_core", "colddiff_cli")
DATA = f"colddiff-{__version__}.data/data/"
INFO = f"colddiff-{__version__}.dist-info/"
LIBRARY = """
import colddiff_core as colddiff
trained = colddiff.open_run("runs/first", device="cpu")
assert colddiff.generate(trained, 2, noise=0.002).shape == (2, 1, 16, 16)
print(colddiff.__file__)
"""


def call(*command: str | Path, folder: Path) -> str:
    """Run a command and return its output; a checkout on PYTHONPATH is kept from it."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}"
    return done.stdout


def build(source: Path, out: Path, *kinds: str) -> None:
    """Build a project with the hatchling that is installed, or else with one from the index."""
    isolation = ["--no-isolation"] if importlib.util.find_spec("hatchling") else []
    call(sys.executable, "-m", "build", *kinds, *isolation, "--outdir", out, source, folder=out)


def tracked() -> set[str]:
    """Return the paths of the files that git has under version control."""
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("needs git and its checkout")
    return set(call("git", "ls-files", folder=ROOT).splitlines())


def in_wheel(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel."""
    out = tmp_path_factory.mktemp("release")
    build(ROOT, out, "--sdist", "--wheel")
    assert len(list(out.iterdir())) == 2
    return out


@pytest.fixture(scope="module")
def wheel(release: Path) -> Path:
    return next(release.glob("*.whl"))


@pytest.fixture(scope="module")
def unpacked(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, unpacked."""
    out = tmp_path_factory.mktemp("sdist")
    with tarfile.open(next(release.glob("*.tar.gz"))) as archive:
        archive.extractall(out, filter="data")
    return out / f"colddiff-{__version__}"


@pytest.fixture(scope="module")
def fresh(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The programs of a fresh environment with the wheel and what it asks for."""
    folder = tmp_path_factory.mktemp("fresh")
    call(sys.executable, "-m", "venv", folder / "venv", folder=folder)
    bin_folder = folder / "venv" / "bin"
    call(bin_folder / "pip", "install", "--quiet", "--no-cache-dir", wheel, folder=folder)
    yield bin_folder
    shutil.rmtree(folder)  # gigabytes


def test_the_wheel_holds_the_packages_the_presets_and_the_pretrained_runs(wheel):
    files = tracked()
    code = {name for name in files if name.startswith(tuple(f"{package}/" for package in PACKAGES))}
    presets = {f"colddiff_core/_presets/{PurePosixPath(name).name}" for name in files if name.startswith("presets/")}
    bundled = {name for name in files if name.startswith("pretrained/")}
    installed = {f"colddiff_core/_{name}" for name in bundled}
    held = in_wheel(wheel)
    assert {name for name in held if not name.startswith((INFO, DATA))} == code | presets | installed
    assert all(held[f"colddiff_core/_{name}"] == (ROOT / name).read_bytes() for name in bundled)
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(held)
    assert held[f"{INFO}licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    assert re.search(rb"^License-Expression: MIT$", held[f"{INFO}METADATA"], re.M)


def test_the_wheel_installs_every_completion_under_share(wheel):
    scripts = sorted(path.read_bytes() for path in (ROOT / "completions").glob("*"))
    held = in_wheel(wheel)
    assert sorted(content for name, content in held.items() if name.startswith(f"{DATA}share/")) == scripts
    assert all(name.startswith(f"{DATA}share/") for name in held if name.startswith(DATA))


def test_the_sdist_holds_every_tracked_file(unpacked):
    held = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    assert tracked() - held == set()


def test_a_wheel_of_the_sdist_is_the_same(wheel, unpacked, tmp_path):
    build(unpacked, tmp_path, "--wheel")
    assert in_wheel(tmp_path / wheel.name) == in_wheel(wheel)


def test_the_wheel_works_outside_the_checkout(fresh, tmp_path):
    Image.radial_gradient("L").convert("RGB").resize((40, 30)).save(tmp_path / "photo.png")
    colddiff = fresh / "colddiff"

    assert call(colddiff, "--version", folder=tmp_path) == f"colddiff {__version__}\n"
    listed = call(colddiff, "presets", folder=tmp_path)
    assert [path.stem for path in (ROOT / "presets").iterdir() if path.stem not in listed] == []
    call(colddiff, "degrade", "photo.png", "--op", "snow", "--t", "150", folder=tmp_path)
    assert "pretrained:digits-blur" in call(colddiff, "sample", "--n", "4", "--out", "bundled.png", folder=tmp_path)
    call(colddiff, "generate", "--prior", "gmm", "--n", "4", "--out", "generated.png", folder=tmp_path)
    settings = [part for text in ("steps=20", "sample_every=0") for part in ("--set", f"train.{text}")]
    call(colddiff, "train", "--preset", "digits-blur", *settings, "--out", "runs/first", folder=tmp_path)
    call(colddiff, "sample", "--n", "4", "--out", "restored.png", folder=tmp_path)
    for name in ("photo-snow-t150.png", "bundled.png", "generated.png", "restored.png"):
        with Image.open(tmp_path / name) as picture:
            picture.load()

    place = call(fresh / "python", "-c", LIBRARY, folder=tmp_path)
    assert Path(place.strip()).is_relative_to(fresh.parent)


def test_type_checkers_see_the_types_of_the_installed_library(fresh, tmp_path):
    """As in the checkout, mypy finds every wrong line of a user's file wrong, and the others right."""
    pytest.importorskip("mypy", reason="needs mypy: pip install -e '.[dev]'")
    shutil.copy(ROOT / "tests" / "typed_door.py", tmp_path)
    options = ("--strict", "--cache-dir", "cache", "--python-executable", fresh / "python")
    assert "no issues found in 1 source file" in call(
        sys.executable, "-m", "mypy", *options, "typed_door.py", folder=tmp_path
    )

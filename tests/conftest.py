"""Fixtures shared by the tests: where reference data may lie, and a run that trains in a second.

torch and Hypothesis are imported late, so that the process that only hands out tests starts the others three seconds
sooner.
"""

from __future__ import annotations

import functools
import gc
import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import processes
import pytest
import tally
import trainings
from PIL import Image

from colddiff_core import runs
from colddiff_core.distributed import environment

if TYPE_CHECKING:
    from slow_disk import SlowDisk

    from colddiff_core.training.trainer import Trainer

SHARED = Path(__file__).parents[2] / "shared"
TINY = (
    "train.precision=float32",
    "data.size=12",
    "model.width=8",
    "model.multipliers=[1]",
    "model.attention=none",
    "train.steps=6",
    "train.batch_size=8",
    "train.log_every=2",
    "train.checkpoint_every=3",
    "train.sample_every=0",
    "degradation.steps=5",
    "sample.stride=1",
)

CLASSIFIER_STEPS = 20
MOST_WORKERS = 8  # more would wait for the longest file
LONGEST_FIRST = (
    "test_together.py",
    "test_tables.py",
    "test_null_cuda.py",
    "test_screens.py",
    "test_machine.py",
    "test_eval_command.py",
    "test_memory.py",
    "test_hostile_files.py",
    "test_training.py",
    "test_speed.py",
    "test_panes.py",
    "test_background.py",
    "test_generate_compare.py",
    "test_completion.py",
    "test_series_of_runs.py",
    "test_estimates.py",
    "test_resumable.py",
    "test_trainer_keys.py",
    "test_divergence.py",
    "test_bad_input.py",
    "test_group.py",
    "test_series_killed.py",
    "test_distances.py",
    "test_generate.py",
    "test_published_weights.py",
)

# Imports create a million objects, few of them garbage: by default, collecting takes a twentieth of the tests' time.
gc.set_threshold(40_000, 20, 10)


@functools.cache
def load_hypothesis_profile() -> None:
    from hypothesis import settings

    # A machine under load must not fail a law; a fixed seed makes a failure the same everywhere.
    settings.register_profile("laws", deadline=None, derandomize=True, max_examples=25)
    settings.load_profile("laws")


def pytest_collectstart() -> None:
    """Set the profile of Hypothesis before a test module imports it."""
    load_hypothesis_profile()


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of the tests' own, not the user's, where the classifier behind FD is trained once and briefly."""
    from colddiff_core.evaluation import classifier

    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(path))
        patch.setattr(classifier, "STEPS", CLASSIFIER_STEPS)
        yield path


@pytest.fixture
def shared() -> Path:
    """The folder of reference data beside the checkout; tests that need it skip without it."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared, which is absent")
    return SHARED


def make_trainer(
    path: Path, *overrides: str, preset: str = "digits-blur", run: runs.RunWriter | None = None
) -> Trainer:
    """Return a trainer of a tiny run at `path`: a new one, or the one that is there (held as `run`, if given)."""
    from colddiff_core import devices, experiment
    from colddiff_core.config import presets
    from colddiff_core.datasets import from_config
    from colddiff_core.training.trainer import Trainer

    if (path / "run.toml").exists():
        config, run = runs.Run(path).config(overrides), run or runs.RunWriter(path)
    else:
        config = presets.load(preset, [*TINY, *overrides])
        run = runs.create(path, config, {})
    sets = from_config.load_images(config, "train", has_margin=True), from_config.load_images(config, "test")
    return Trainer(experiment.build(config, sets[0].channels, devices.choose("cpu")), *sets, run)


def finish(trainer: Trainer) -> Trainer:
    """Train to the end and let go of the run."""
    for _ in trainer.steps():
        pass
    trainer.run.close()
    return trainer


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny run of digits-blur; read it, do not write to it."""
    path = tmp_path_factory.mktemp("tiny") / "run"
    finish(make_trainer(path))
    return path


@pytest.fixture
def small_sheets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sample sheets of 2 images: 16 take a quarter of a tiny training's time."""
    from colddiff_core.training import sample_sheet

    monkeypatch.setattr(sample_sheet, "IMAGES", 2)


@pytest.fixture
def own_run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the tiny run that the test may change."""
    return shutil.copytree(tiny_run, tmp_path / "run")


@pytest.fixture(scope="session")
def train_undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[trainings.Length], trainings.RunFiles]:
    """Return a function that gives the files of an uninterrupted training; each length is trained once."""

    @functools.cache
    def train(length: trainings.Length) -> trainings.RunFiles:
        run = tmp_path_factory.mktemp("undisturbed") / "run"
        trainings.finish(run, length)
        return trainings.read_files(run, length)

    return train


@pytest.fixture
def undisturbed(
    request: pytest.FixtureRequest, train_undisturbed: Callable[[trainings.Length], trainings.RunFiles]
) -> trainings.RunFiles:
    """The files of an uninterrupted training: a long one if the test is slow."""
    is_slow = request.node.get_closest_marker("slow") is not None
    return train_undisturbed(trainings.LONG if is_slow else trainings.SHORT)


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, so that what a command leaves behind can be counted."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def photo(in_folder: Path) -> Path:
    path = in_folder / "photo.png"
    Image.radial_gradient("L").convert("RGB").resize((40, 30)).save(path)
    return path


def seal(path: Path) -> None:
    """Have a checkpoint vouch for a file as it is now."""
    from colddiff_core.runs import checkpoint

    state = json.loads((path.parent / "state.json").read_text())
    state["sha256"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    state["digest"] = checkpoint.digest(state)
    (path.parent / "state.json").write_text(json.dumps(state))


def left_behind(folder: Path) -> list[str]:
    """Return everything in a folder, hidden files included."""
    return sorted(os.listdir(folder))


def pictures_in(folder: Path) -> list[str]:
    """Return what is to be seen in a folder: no mark of a series."""
    return [name for name in left_behind(folder) if not name.startswith(".")]


def pytest_configure(config: pytest.Config) -> None:
    """Interrupt as usual, and compute with one thread, so that several tests can run at once and agree everywhere."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell started the tests in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, here and in the processes that tests start
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # for processes, as `--nproc` sets it
    for name in ("COLUMNS", "LINES"):  # which pytest-xdist sets in its workers; colddiff would obey
        os.environ.pop(name, None)
    config.option.loadscopereorder = False  # keep the order of pytest_collection_modifyitems


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return how many processes `-n auto` is: one per processor that this machine, or its container, has."""
    return min(environment.processors(), MOST_WORKERS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest files first, so that no process ends long after the others."""
    ranks = {name: rank for rank, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: ranks.get(item.path.name, len(ranks)))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowDisk]:
    """A disk that takes checkpoints only once the test lets it."""
    import slow_disk

    slow = slow_disk.SlowDisk(monkeypatch)
    yield slow
    slow.open.set()


@pytest.fixture(scope="session")
def null_gpu(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment variables that give a process a GPU that executes nothing; see cuda/null_cuda.py."""
    import null_cuda

    try:
        return null_cuda.build(tmp_path_factory.mktemp("null-cuda"))
    except null_cuda.UnavailableError as error:
        pytest.skip(str(error))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write golden files anew, to be looked at")
    parser.addoption("--tally", type=Path, help="write what the fault tests counted, as JSON")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send the counts of this process to the one that reports, where there are several."""
    if output := getattr(session.config, "workeroutput", None):
        output["tally"] = tally.counts()


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Start the server for forked processes before the first test, if tests need it."""
    modules = {item.module for item in session.items if isinstance(item, pytest.Function)}
    if any(hasattr(module, name) for module in modules for name in ("processes", "launches", "trainings", "fuzzing")):
        processes.start_server()
    gc.freeze()  # what is imported by now stays; looking through it for garbage takes a tenth of the tests' time


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    for scenario, counts in getattr(node, "workeroutput", {}).get("tally", {}).items():
        tally.add(scenario, **counts)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if table := tally.lines():
        terminalreporter.section("faults: what was tried and what came of it")
        terminalreporter.write_line("\n".join(table))
    if path := config.getoption("--tally"):
        tally.write(path)

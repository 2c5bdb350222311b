"""On "cuda" without a GPU (null/): nothing fails, no step makes the CPU wait, and launches do not grow unnoticed.

`launches.json` has the kernel launches of a step per preset, and the torch version they were recorded with. Another
version may split operations differently, so it is allowed some more.
"""

from __future__ import annotations

import json
from pathlib import Path

import null_cuda
import pytest
import torch

from colddiff_core import images
from colddiff_core.config import presets

RECORDED = Path(__file__).with_name("launches.json")
ROOM_OF_ANOTHER_TORCH = 1.1
VARIATIONS = (
    "mnist-blur train.precision=float32",
    "mnist-blur model.stem=tf32",
    "cifar10-blur-small model.stem=split",
    "photos-blur-small degradation.jpeg=50",
    "digits-blur model.classes=10 train.clip=0",
    "digits-mask degradation.jitter=0.2 degradation.dither=0.02",
)
TINY = "model.width=8 model.multipliers=[1] model.attention=none"
EVALUATED = "pretrained:digits-blur --n 4 --features none"
COMMANDS = {
    "degrade": "degrade {picture} --op blur --out blurred.png",
    "train": "train --preset digits-blur --set train.steps=4 --set train.checkpoint_every=2 --out trained",
    "resume": "train --resume trained --set train.steps=6",
    "sample": "sample trained --out sampled.png",
    "eval": f"eval {EVALUATED}",
    "eval with distances": "eval trained --n 16",
    "generate": "generate pretrained:digits-blur-generate --n 4 --stride 10 --out generated.png",
    "compare": f"compare {EVALUATED}",
    "restore": "restore blurred.png --op blur --t 20 --out restored.png",
}


def work(null_gpu, folder, *cases):
    """Return the results of cases of cuda_worker.py, by case."""
    printed = null_cuda.run_worker(null_gpu, "cuda_worker.py", *cases, folder=folder)
    return {found["case"]: found for found in map(json.loads, printed.splitlines())}


@pytest.fixture(scope="module")
def trainings(null_gpu, tmp_path_factory):
    names = [*presets.names(), *VARIATIONS]
    return work(null_gpu, tmp_path_factory.mktemp("trainings"), *(f"train {name}" for name in names))


def test_no_presets_training_step_fails_or_waits(trainings):
    found = {case: (each.get("failed"), each.get("where"), each.get("said")) for case, each in trainings.items()}
    assert found == dict.fromkeys(found, (None, [], []))


def test_a_training_step_launches_no_more_kernels_than_recorded(trainings, pytestconfig):
    found = {case.removeprefix("train "): each["launches"] for case, each in trainings.items()}
    version = torch.__version__.split("+")[0].rpartition(".")[0]
    if pytestconfig.getoption("update_golden"):
        RECORDED.write_text(json.dumps({"torch": version, "launches": found}, indent=1) + "\n")
    recorded = json.loads(RECORDED.read_text())
    room = 1 if recorded["torch"] == version else ROOM_OF_ANOTHER_TORCH
    more = {name: (n, recorded["launches"].get(name)) for name, n in found.items()}
    assert {name: pair for name, pair in more.items() if pair[0] > room * (pair[1] or 0)} == {}, (
        "if this is intended: pytest --update-golden"
    )


def test_the_training_loop_waits_no_more_often_for_more_steps(null_gpu, tmp_path):
    """Only log lines, checkpoints and sheets read from the GPU."""
    case = (
        "command train --preset digits-blur --device cuda --set train.sample_every=0 --set train.steps={} --out run-{}"
    )
    short, long = work(null_gpu, tmp_path, *(case.format(n, n) for n in (4, 16))).values()
    assert (short["status"], long["status"]) == (0, 0), short["said"] + long["said"]
    assert short["waits"] == long["waits"], (short["where"], long["where"])


def test_every_command_works_on_cuda(null_gpu, tmp_path):
    picture = tmp_path / "picture.png"
    images.write(images.to_pillow(torch.rand(3, 64, 48) * 2 - 1), picture)
    lines = [f"command {words.format(picture=picture)} --device cuda" for words in COMMANDS.values()]
    found = work(null_gpu, tmp_path, *lines)
    failed = {case: each for case, each in found.items() if each.get("status") != 0 or each["errors"]}
    assert len(found) == len(lines)
    assert not failed, json.dumps(failed, indent=1)


@pytest.mark.parametrize("kind", ["operators", "samplers"])
def test_no_operator_or_sampler_waits_after_its_first_use(null_gpu, tmp_path, kind):
    found = work(null_gpu, tmp_path, kind)[kind]
    assert "failed" not in found, found
    waits = {name: each["where"] for name, each in found.items() if name != "case"}
    assert len(waits) > 15
    assert not {name: where for name, where in waits.items() if where}


@pytest.mark.slow  # compiling takes a minute
def test_a_compiled_step_replays_graphs_and_does_not_wait(null_gpu, tmp_path):
    case = f"train digits-blur {TINY} train.compile=reduce-overhead"
    found = work(null_gpu, tmp_path, case)[case]
    assert found["said"] == found["where"] == [], found
    assert found["graphs"] == 2

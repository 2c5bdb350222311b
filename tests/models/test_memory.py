"""Batch sizes that fit into memory, and the estimate of an image's memory that they follow from."""

from __future__ import annotations

import functools
import os
import shutil
import weakref

import pytest
import torch
from small_memory import masked_run, small_machine
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from colddiff_cli.__main__ import run
from colddiff_core import runs, sampling
from colddiff_core.config import presets
from colddiff_core.config.schema import ModelConfig
from colddiff_core.evaluation import evaluate
from colddiff_core.evaluation.published_weights import LeftUnfilled
from colddiff_core.inference import batches, generate, open_run
from colddiff_core.models import UNet, memory
from colddiff_core.sampling import Sampling

CPU = torch.device("cpu")
PAPER = ModelConfig()
IMAGES = 512


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    """A run with classes, whose operator has frozen fields for each image."""
    return masked_run(tmp_path_factory.mktemp("masked") / "run")


@pytest.fixture
def run_folder(tiny_run, in_folder):
    return shutil.copytree(tiny_run, in_folder / "runs" / "own")


def set_total_memory(monkeypatch, total: float) -> None:
    """Pretend that every device has `total` bytes."""
    monkeypatch.setattr(memory, "total_bytes", lambda device: int(total))


def test_batch_size_is_the_largest_that_fits(monkeypatch):
    gpu, cpu = torch.device("cuda"), CPU
    sizes = []
    for total in (1e8, 1e9, 8e9, 24e9, 80e9):
        set_total_memory(monkeypatch, total)
        for side in (32, 128):
            size = memory.batch_size(PAPER, side, torch.bfloat16, gpu, 10**9)
            assert size.bit_count() == 1
            room = memory.MEMORY_SHARE["cuda"] * total / memory.image_bytes(PAPER, side, torch.bfloat16)
            assert size <= max(1, room) < 2 * max(size, 1)
            assert memory.batch_size(PAPER, side, torch.float32, gpu, 10**9) <= size
            assert memory.batch_size(PAPER, side, torch.bfloat16, gpu, 100) == min(size, 100)
            assert memory.batch_size(PAPER, side, torch.bfloat16, cpu, 10**9) <= size
        sizes.append(size)
    assert sizes == sorted(sizes)
    assert sizes[0] == 1
    assert sizes[2] < 128 < sizes[-1]


def test_batch_size_follows_memory_and_images_do_not_depend_on_the_count(masked, monkeypatch):
    built = open_run.open_run(masked, device=CPU).experiment
    set_total_memory(monkeypatch, 1e12)
    assert built.batch_size(batches.MOST) == 16
    assert built.batch_size(evaluate.MOST) == 64
    set_total_memory(
        monkeypatch, 4 * memory.image_bytes(built.config.model, 12, torch.float32) / memory.MEMORY_SHARE["cpu"]
    )
    assert built.batch_size(batches.MOST) == built.batch_size(evaluate.MOST) == 4
    generator = generate.prepare(masked, built, None)
    generated = {}
    with small_machine(monkeypatch, 4) as machine:
        for count in (2, 7):
            drawn = generator.generate(count, Sampling(seed=1))
            generated[count] = torch.cat([sampling.final(batch.steps)[: batch.count] for batch in drawn])
    assert set(machine.counts) == {4}
    assert torch.equal(generated[2], generated[7][:2])


def test_eval_uses_the_batch_size_that_fits_or_is_given(run_folder, monkeypatch, capsys):
    set_total_memory(
        monkeypatch,
        4 * memory.image_bytes(runs.Run(run_folder).config().model, 12, torch.float32) / memory.MEMORY_SHARE["cpu"],
    )
    command = ["eval", "--n", "10", "--features", "none", "--precision", "float32"]
    for more, sizes in (([], {4}), (["--batch-size", "6"], {6})):
        with small_machine(monkeypatch, 99) as machine:
            assert run([*command, *more]) == 0
        assert set(machine.counts) == sizes


def test_a_cgroup_limit_bounds_the_memory(tmp_path, monkeypatch):
    physical = memory.total_bytes(CPU)
    assert physical > 2**20
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "CGROUP_LIMIT_FILES", (str(limit), str(tmp_path / "absent")))
    for text, total in (("1048576\n", 2**20), ("max\n", None), (f"{2**62}\n", None)):
        limit.write_text(text)
        assert memory.total_bytes(CPU) == total if total else memory.total_bytes(CPU) >= physical


def test_memory_is_known_without_sysconf(monkeypatch):
    known = memory.total_bytes(CPU)
    monkeypatch.delattr(os, "sysconf")  # as on Windows
    assert memory.total_bytes(CPU) == pytest.approx(known, rel=0.01)


class LiveBytes(TorchDispatchMode):
    """Add up the bytes of live tensors, except a network's weights and their copies in other dtypes."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.bytes_by_storage: dict[int, int] = {}
        self.weights = {weight.untyped_storage()._cdata for weight in network.parameters()}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        outputs = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._to_copy.default and args[0].untyped_storage()._cdata in self.weights:
            return outputs
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.bytes_by_storage:
                storage = tensor.untyped_storage()
                self.bytes_by_storage[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.forget, storage._cdata)
        return outputs

    def forget(self, key: int) -> None:
        self.now -= self.bytes_by_storage.pop(key)


MODELS = {(config.model, config.data.size): name for name in presets.names() for config in [presets.load(name)]}
OTHERS = [
    (ModelConfig(width=32, multipliers=(1, 8, 8)), 32),
    (ModelConfig(width=16, multipliers=(1, 8), block="resnet", attention="none"), 32),
    (ModelConfig(width=32, multipliers=(1, 4, 8), attention="middle"), 64),
    (ModelConfig(width=256, multipliers=(1,), attention="middle"), 32),
]


def network_of(model: ModelConfig) -> tuple[int, tuple[int, ...], str, str]:
    return model.width, model.multipliers, model.block, model.attention


SIDES: dict[tuple, int] = {}
for model, side in MODELS:
    SIDES.setdefault(network_of(model), side)

CASES = [(*case, "bf16", name) for case, name in MODELS.items() if SIDES[network_of(case[0])] == case[1]]
CASES += [(*case, precision, str(number)) for number, case in enumerate(OTHERS, 1) for precision in ("bf16", "float32")]
LONG = [(*case, "bf16", name) for case, name in MODELS.items() if SIDES[network_of(case[0])] != case[1]]
LONG += [(*case, "float32", name) for case, name in MODELS.items()]


@functools.cache
def measured_peak(
    width: int, multipliers: tuple[int, ...], block: str, attention: str, side: int, dtype: torch.dtype
) -> int:
    """Return the peak bytes of activations for IMAGES images; cached, because many presets share a network."""
    with FakeTensorMode(), torch.no_grad():
        with LeftUnfilled():
            net = UNet(3, 3, width=width, multipliers=multipliers, block=block, attention=attention, body_dtype=dtype)
        with LiveBytes(net) as live:
            net(torch.zeros(IMAGES, 3, side, side), torch.ones(IMAGES, dtype=torch.int64))
    return live.peak


@pytest.mark.parametrize(
    ("model", "side", "precision"),
    [pytest.param(*case, id=f"{name}-{case[2]}") for *case, name in CASES]
    + [pytest.param(*case, id=f"{name}-{case[2]}", marks=pytest.mark.slow) for *case, name in LONG],
)
def test_image_bytes_is_near_the_measured_peak(model, side, precision):
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    bytes_per_image = measured_peak(*network_of(model), side, dtype) / IMAGES
    # Kernels need workspace, and on a GPU norms and softmax stay float32 where the CPU uses bf16.
    assert bytes_per_image < memory.image_bytes(model, side, dtype) < 3 * bytes_per_image

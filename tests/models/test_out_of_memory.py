"""Running out of memory costs time, not the result: the batch is halved until it fits."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
import weakref
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
from conftest import finish, make_trainer
from PIL import Image, ImageChops
from small_memory import COMMANDS, SmallMachine, masked_run, small_machine

from colddiff_cli.__main__ import run
from colddiff_core import degradations, sampling, seeds
from colddiff_core.errors import ColddiffWarning, MachineError
from colddiff_core.inference import open_run
from colddiff_core.models import Restorer, UNet, memory
from colddiff_core.sampling import DegradedImages, Sampling

CPU = torch.device("cpu")
ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("could not create a primitive"),
    MemoryError(),
]


@pytest.mark.parametrize("name", ["mask", "noise", "snow", "blur", "blur+noise"])
@pytest.mark.parametrize("has_own_t", [True, False])
def test_chunks_keep_each_images_t_fields_and_label(name, has_own_t):
    op = degradations.build(name, steps=6)
    x0 = torch.rand(11, 3, 12, 12, generator=seeds.generator(1)) * 2 - 1
    frozen = op.freeze(x0, generator=seeds.generator(2))
    t = torch.arange(11) % 6 + 1 if has_own_t else 4
    labels = torch.arange(11) if has_own_t else None
    whole = memory.ChunkedRestorer()(SmallMachine(99).restorer(op), x0, t, frozen, labels=labels)
    chunked, machine = memory.ChunkedRestorer(), SmallMachine(3)
    with pytest.warns(ColddiffWarning) as records:
        restored = chunked(machine.restorer(op), x0, t, frozen, labels=labels)
    torch.testing.assert_close(restored, whole, rtol=0, atol=1e-6)
    assert machine.counts == [11, 5, 2, 2, 2, 2, 2, 1]
    assert [str(record.message).partition(" with ")[2] for record in records] == [
        "11 images at a time; continuing with 5",
        "5 images at a time; continuing with 2",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chunked(machine.restorer(op), x0[:5], 4, frozen[:5])
    assert machine.counts[8:] == [2, 2, 1]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_out_of_memory_errors_are_recognized_and_others_are_raised(error):
    op = degradations.build("blur", steps=6)
    x0 = torch.rand(2, 1, 8, 8)
    frozen = op.freeze(x0)
    with pytest.warns(ColddiffWarning, match=r"memory ran out on cpu with 2 images at a time; continuing with 1"):
        memory.ChunkedRestorer()(SmallMachine(1, error).restorer(op), x0, 1, frozen)
    with pytest.warns(ColddiffWarning), pytest.raises(MachineError, match="one image of 8x8 pixels") as failure:
        memory.ChunkedRestorer()(SmallMachine(0, error).restorer(op), x0, 1, frozen)
    assert len(str(failure.value).splitlines()) == 2
    with pytest.raises(RuntimeError, match="shapes"):
        memory.ChunkedRestorer()(SmallMachine(0, RuntimeError("shapes do not fit")).restorer(op), x0, 1, frozen)


def test_activations_are_freed_before_the_retry():
    class Activations:
        pass

    references: list[weakref.ref] = []

    def restore(x_t, t, frozen, labels=None):
        assert not any(reference() for reference in references)
        activations = Activations()
        references.append(weakref.ref(activations))
        if len(x_t) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return x_t

    op = degradations.build("blur", steps=6)
    x0 = torch.rand(4, 1, 8, 8)
    with pytest.warns(ColddiffWarning):
        assert torch.equal(memory.ChunkedRestorer()(restore, x0, 1, op.freeze(x0)), x0)


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    """A run with classes, whose operator has frozen fields for each image."""
    return masked_run(tmp_path_factory.mktemp("masked") / "run")


@pytest.mark.parametrize("sampler", ["direct", "naive", "tacos"])
def test_sampling_in_chunks_gives_the_same_result_and_keeps_the_size(masked, sampler, monkeypatch):
    built = open_run.open_run(masked, device=CPU).experiment
    x0 = torch.rand(10, built.channels, 12, 12, generator=seeds.generator(1)) * 2 - 1
    x_t, frozen = built.degrade(x0, 5, seeds.image_generators(0, range(10)))
    request = (DegradedImages(x_t, 5, frozen), Sampling(sampler), torch.arange(10))
    whole = sampling.final(built.restore(*request))
    with small_machine(monkeypatch, 3) as machine:
        with pytest.warns(ColddiffWarning) as records:
            restored = sampling.final(built.restore(*request))
        assert len(records) == 2
        assert machine.counts[:2] == [10, 5]
        assert max(machine.counts[2:]) == built.pieces.size == 2
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sampling.final(built.with_network(built.restorer.unet).restore(*request))
    torch.testing.assert_close(restored, whole, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory):
    """A run whose network gets no inverse, which would amplify the rounding of another batch size."""
    path = tmp_path_factory.mktemp("plain") / "run"
    finish(make_trainer(path, "model.inputs=plain", "model.consistent=false"))
    return path


@pytest.fixture
def run_folder(plain_run, in_folder):
    return shutil.copytree(plain_run, in_folder / "runs" / "own")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_continues_with_warnings_and_one_json_object(command, run_folder, monkeypatch, capsys):
    arguments = [command, *COMMANDS[command], "--json", "--precision", "float32"]
    assert run(arguments) == 0
    normal = capsys.readouterr()
    assert "memory" not in normal.err
    pixels = Image.open("output.png").copy() if "--out" in arguments else None
    with small_machine(monkeypatch, 3):
        assert run(arguments) == 0
    limited = capsys.readouterr()
    after, before = json.loads(limited.out), json.loads(normal.out)
    lines = [line for line in limited.err.splitlines() if "memory" in line]
    assert lines == [
        f"warning: memory ran out on cpu with {size} images at a time; continuing with {size // 2}"
        for size in ((8, 4) if command == "sample" else (16, 8, 4))  # the others pad the last batch
    ]
    assert "colddiff_core" not in limited.err
    if pixels:
        again = Image.open("output.png")
        assert (again.size, again.mode) == (pixels.size, pixels.mode)
        extremes = np.ravel(ImageChops.difference(pixels, again).getextrema())
        assert extremes.max() <= 1  # of 256 levels
    if command == "eval":
        assert after["metrics"]["sampled"]["rmse"] == pytest.approx(before["metrics"]["sampled"]["rmse"], abs=1e-3)


@pytest.mark.parametrize("command", COMMANDS)
def test_an_image_that_does_not_fit_is_a_two_line_error(command, run_folder, monkeypatch, capsys):
    with small_machine(monkeypatch, 0):
        assert run([command, *COMMANDS[command]]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: memory ran out")]
    assert lines == [
        "colddiff: Not enough memory on cpu for one image of 12x12 pixels.",
        "  A smaller batch does not help. Use a run of smaller images.",
    ]


def test_other_warnings_pass_through(run_folder, monkeypatch, capsys):
    original = UNet.forward

    def forward(self, *arguments):
        warnings.warn("not ours", UserWarning, stacklevel=1)
        return original(self, *arguments)

    monkeypatch.setattr(UNet, "forward", forward)
    with pytest.warns(UserWarning, match="not ours"):
        assert run(["sample", *COMMANDS["sample"]]) == 0
    assert "warning:" not in capsys.readouterr().err


def restore_in_little_memory() -> int:
    """Restore 256 images with 50 MiB left; print the batch size, the count and the error of the first image."""
    import resource

    op = degradations.build("mask", steps=6)
    net = Restorer(UNet(3, 3, width=32, multipliers=(1,), block="resnet", attention="none"), op).eval()
    x0 = torch.rand(256, 3, 32, 32)
    frozen = op.freeze(x0)
    chunked = memory.ChunkedRestorer()
    with torch.no_grad():
        whole = chunked(net, x0[:1], 3, frozen[:1])
        lines = Path("/proc/self/status").read_text().splitlines()
        used = int(next(line for line in lines if line.startswith("VmSize")).split()[1]) * 1024
        resource.setrlimit(resource.RLIMIT_AS, (used + 50 * 2**20, -1))
        warnings.simplefilter("ignore")
        restored = chunked(net, x0, 3, frozen)
    print(chunked.size, len(restored), float((restored[:1] - whole).abs().max()))  # noqa: T201
    return 0


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS limits memory on Linux only")
def test_a_real_memory_limit_is_survived():
    process = processes.fork(restore_in_little_memory)
    printed, errors = process.communicate()
    assert process.returncode == 0, errors
    size, count, difference = printed.split()
    assert 1 <= int(size) < 256
    assert int(count) == 256
    assert float(difference) < 1e-5

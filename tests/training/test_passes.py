"""Dividing a step's images into passes changes neither the images nor the step; the size follows from memory."""

from __future__ import annotations

import types

import pytest
import torch
from conftest import finish, make_trainer

from colddiff_core import devices, runs
from colddiff_core.config import presets
from colddiff_core.config.schema import ModelConfig
from colddiff_core.distributed import group
from colddiff_core.distributed.environment import ProcessInfo
from colddiff_core.errors import ColddiffWarning, MachineError
from colddiff_core.models import UNet, compiling, memory
from colddiff_core.training import passes
from colddiff_core.training.log_meter import TrainingLog
from colddiff_core.training.step import UNTRIED

pytestmark = pytest.mark.usefixtures("small_sheets")
MEMORY_ERROR = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
# A blur's inverse would amplify the rounding of another batch size.
PLAIN = ("model.inputs=plain", "model.consistent=false", "train.log_every=1", "train.checkpoint_every=1")


@pytest.fixture
def like_a_gpu(monkeypatch):
    """Make passes on the CPU follow memory, as on a GPU."""
    monkeypatch.setattr(passes, "follow_memory", lambda device: True)


def set_memory(monkeypatch, total: float) -> None:
    monkeypatch.setattr(memory, "total_bytes", lambda device: int(total))


def sizes(trainer) -> list[int]:
    return [len(part.slots) for part in trainer.stepper.draw(0)]


@pytest.mark.parametrize(
    ("count", "most", "is_even", "expected"),
    [
        (64, 64, True, [64]),
        (64, 1000, True, [64]),
        (64, 63, True, [32, 32]),
        (64, 17, True, [16] * 4),
        (96, 40, True, [32] * 3),
        (20, 19, True, [10, 10]),
        (13, 12, True, [7, 6]),  # 13 is prime: two sizes, as even as possible
        (13, 5, True, [5, 5, 3]),
        (5, 1, True, [1] * 5),
        (1, 1, True, [1]),
        (64, 48, False, [48, 16]),  # on a CPU, users choose the size
        (20, 32, False, [20]),
    ],
)
def test_a_share_is_divided_into_passes_that_fit_and_are_even_if_possible(count, most, is_even, expected):
    divided = passes.divide(range(7, 7 + count), most, is_even=is_even)
    assert [len(slots) for slots in divided] == expected
    assert [slot for slots in divided for slot in slots] == list(range(7, 7 + count))


def test_on_the_cpu_a_pass_takes_the_batch_size(tmp_path, monkeypatch):
    for total in (1e6, 1e12):
        set_memory(monkeypatch, total)
        trainer = make_trainer(tmp_path / f"{total}", "train.batch_size=6", "train.accumulate=3")
        assert sizes(trainer) == [6, 6, 6]


def test_on_a_gpu_a_pass_takes_what_the_total_memory_takes(tmp_path, monkeypatch, like_a_gpu):
    overrides = ("train.batch_size=8", "train.accumulate=4")
    probe = make_trainer(tmp_path / "probe", *overrides)
    config, stepper = probe.experiment.config, probe.stepper
    each = memory.training_image_bytes(config.model, config.data.size, torch.float32)
    weights = 24 * sum(p.numel() for p in probe.experiment.restorer.parameters())
    pixels = stepper.feed.pixel_bytes
    assert pixels == probe.train_set.pixels.nbytes > 0
    for images, expected in ((1000, [32]), (32, [32]), (31, [16, 16]), (9, [8] * 4), (1, [1] * 32), (0, [1] * 32)):
        set_memory(monkeypatch, weights + (images + 0.5) * each / memory.TRAINING_SHARE)
        probe.stepper.most = passes.most_images(probe.experiment, 0)
        assert sizes(probe) == expected
    # A new process divides the same way, and images kept on the GPU reduce its budget.
    set_memory(monkeypatch, weights + pixels + 17.5 * each / memory.TRAINING_SHARE + pixels)
    expected = int((17.5 * each + memory.TRAINING_SHARE * pixels) / each)
    for name in ("first", "second"):
        assert make_trainer(tmp_path / name, *overrides).stepper.most == expected
    # Images that do not fit on the GPU do not.
    set_memory(monkeypatch, 1.9 * pixels)
    room = 1.9 * pixels - weights
    assert passes.most_images(probe.experiment, pixels) == int(memory.TRAINING_SHARE * room) // each


@pytest.mark.parametrize(
    ("preset", "gib", "least"),
    [("mnist-blur", 8, 64), ("celeba-blur", 24, 64), ("celeba-blur", 16, 32), ("celeba-blur", 80, 256)],
)
def test_the_papers_steps_fit_into_common_gpus(preset, gib, least):
    """64 images per step, 56.6 M parameters."""
    config = presets.load(preset)
    room = gib * 2**30 - passes.WEIGHT_COPIES * passes.FLOAT_BYTES * 56_600_000
    assert memory.training_batch_size(config.model, config.data.size, torch.bfloat16, room) >= least


NETWORKS = [
    (ModelConfig(width=32), 16),
    (ModelConfig(width=32, multipliers=(1, 2), block="resnet", attention="middle"), 16),
    (ModelConfig(width=32, multipliers=(1, 2), block="local", attention="none"), 16),
    (ModelConfig(width=16, multipliers=(1,), attention="none"), 16),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("model", "side"), NETWORKS, ids=lambda value: getattr(value, "block", value))
def test_the_estimate_is_near_what_is_kept_for_the_backward_pass(model, side, dtype):
    """A GPU also holds gradients of activations; docs/decisions/012-memory.md compares the estimate with both."""

    def kept_bytes(count: int) -> int:
        storages: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = net(torch.zeros(count, 3, side, side), torch.ones(count, dtype=torch.int64))
            total = sum(storages.values())
            del output
        return total

    shape = {"width": model.width, "multipliers": model.multipliers}
    net = UNet(3, 3, **shape, block=model.block, attention=model.attention, body_dtype=dtype)
    net.to(memory_format=torch.channels_last)  # as on a GPU
    measured = (kept_bytes(6) - kept_bytes(2)) / 4
    assert 0.9 * measured < memory.training_image_bytes(model, side, dtype) < 2.2 * measured


RANDOM = (
    "data.margin=2",
    "data.flip=true",
    "degradation.dither=0.1",
    "model.classes=10",
    "train.batch_size=40",
    "train.unlabeled=0.5",
    *PLAIN,
)


@pytest.mark.parametrize("preset", ["digits-mask", "digits-snow", "digits-noise"])
def test_images_severities_and_draws_do_not_depend_on_the_division(tmp_path, preset):
    """40 slots are two and a half groups, each of which shares a generator."""
    seen = {}
    for most in (40, 16, 9, 1):
        trainer = make_trainer(tmp_path / f"{most}", *RANDOM, preset=preset)
        trainer.stepper.most = most
        inputs: list[tuple[torch.Tensor, ...]] = []
        network = trainer.parts.network

        def forward(x, t, labels, network=network, inputs=inputs):
            inputs.append((x, t, labels))
            return type(network).forward(network, x, t, labels)

        network.forward = forward
        meter = TrainingLog(torch.device("cpu"), 0)
        loss = trainer.stepper._try(3, meter)
        gradient = torch.cat([p.grad.flatten() for p in network.parameters()])
        assert [len(x) for x, _, _ in inputs] == [most] * (40 // most) + [40 % most] * (40 % most > 0)
        seen[most] = [*(torch.cat(one) for one in zip(*inputs, strict=True)), torch.cat(meter.losses), loss, gradient]
    for most in (16, 9, 1):
        for whole, parts in zip(seen[40][1:3], seen[most][1:3], strict=True):
            assert torch.equal(whole, parts)  # t and labels
        torch.testing.assert_close(seen[most][0], seen[40][0], rtol=0, atol=1e-6)  # x_t; an operator may round
        for whole, parts in zip(seen[40][3:], seen[most][3:], strict=True):
            torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


def limit(monkeypatch, room: int, calls: list[int], when=lambda: True, fails_late=False) -> None:
    """Make training run out of memory with more than `room` images, in the backward pass if `fails_late`."""
    forward = UNet.forward

    class Late(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            raise MEMORY_ERROR

    def limited(self, x, *rest):
        if not (torch.is_grad_enabled() and when()):
            return forward(self, x, *rest)
        calls.append(len(x))
        if len(x) > room and not fails_late:
            raise MEMORY_ERROR
        output = forward(self, x, *rest)
        return Late.apply(output) if len(x) > room else output

    monkeypatch.setattr(UNet, "forward", limited)


@pytest.mark.parametrize("is_resident", [True, False])
@pytest.mark.parametrize("fails_late", [True, False])
def test_passes_are_halved_when_memory_runs_out_and_stay_so(tmp_path, monkeypatch, like_a_gpu, is_resident, fails_late):
    monkeypatch.setattr(devices, "fits", lambda pixels, device: is_resident)
    overrides = ("train.batch_size=5", "train.accumulate=4", "train.steps=4", *PLAIN)
    whole = finish(make_trainer(tmp_path / "whole", *overrides))
    calls: list[int] = []
    trainer = make_trainer(tmp_path / "run", *overrides)
    # Memory runs out in the second step, after a first one has made gradients and an average.
    limit(monkeypatch, 6, calls, when=lambda: trainer.step > 0, fails_late=fails_late)
    with pytest.warns(ColddiffWarning) as records:
        finish(trainer)
    assert calls == [20, 10] + [5] * 4 * 3
    said = [
        "memory ran out on cpu with 20 images in a pass; continuing with 10",
        "memory ran out on cpu with 10 images in a pass; continuing with 5",
    ]
    assert [str(record.message) for record in records] == said
    warned = [event for event in trainer.run.events() if event["event"] == "warning"]
    assert [(event["step"], event["message"]) for event in warned] == [(1, text) for text in said]
    for ours, theirs in zip(trainer.run.metrics(), whole.run.metrics(), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
    for one, other in zip(trainer.parts.network.parameters(), whole.parts.network.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


def test_a_compiled_network_stays_compiled_in_smaller_passes(tmp_path, monkeypatch, like_a_gpu):
    calls, forgotten = [], []

    def compile_network(network, mode):
        def call(x, *rest):
            calls.append(len(x))
            if len(x) > 4:
                raise MEMORY_ERROR
            return network.forward(x, *rest)

        network._compiled_call_impl = call

    monkeypatch.setattr(compiling, "compile_network", compile_network)
    monkeypatch.setattr(compiling, "forget", lambda: forgotten.append(True))
    trainer = make_trainer(tmp_path / "run", "train.compile='default'", *PLAIN)
    trainer.stepper.most = 8
    with pytest.warns(ColddiffWarning, match="with 8 images in a pass; continuing with 4"):
        trainer.stepper.take(0, TrainingLog(torch.device("cpu"), 0))
    assert calls == [8, 4, 4]
    assert forgotten == [True]
    assert trainer.stepper.compile_mode == "default"
    assert trainer.stepper._untried == UNTRIED - 1  # the smaller passes compile again, which may fail


def test_if_compiling_takes_all_memory_training_goes_on_without(tmp_path, monkeypatch, like_a_gpu):
    calls: list[int] = []

    def compile_network(network, mode):
        def call(x, *rest):
            calls.append(len(x))
            raise MEMORY_ERROR

        network._compiled_call_impl = call

    monkeypatch.setattr(compiling, "compile_network", compile_network)
    monkeypatch.setattr(compiling, "forget", lambda: None)
    trainer = make_trainer(tmp_path / "run", "train.compile='default'", "train.batch_size=4", *PLAIN)
    with pytest.warns(ColddiffWarning) as records:
        trainer.stepper.take(0, TrainingLog(torch.device("cpu"), 0))
    assert calls == [4, 2, 1]
    assert str(records[-1].message).startswith("the network is not compiled: OutOfMemoryError: CUDA out of memory.")
    assert sizes(trainer) == [4]  # without the compiler, memory is enough again


def failed(trainer) -> MachineError:
    with pytest.raises(MachineError) as failure:
        finish(trainer)
    assert [event["event"] for event in trainer.run.events()][-1] == "failed"
    return failure.value


def test_an_image_that_does_not_fit_ends_training_and_loses_nothing(tmp_path, monkeypatch, like_a_gpu):
    calls: list[int] = []
    trainer = make_trainer(tmp_path / "run", "train.batch_size=2", *PLAIN)
    limit(monkeypatch, 0, calls, when=lambda: trainer.step > 1)
    with pytest.warns(ColddiffWarning, match="with 2 images in a pass; continuing with 1"):
        error = failed(trainer)
    assert error.what == "Not enough memory on cpu for a training pass of 1 image of 12x12 pixels."
    assert error.remedy == "A smaller train.batch_size does not help. Use a smaller model.width or data.size."
    assert runs.Run(tmp_path / "run").newest_checkpoint().name == "step-000002"


def test_one_of_several_processes_does_not_repeat_a_step(tmp_path, monkeypatch, like_a_gpu):
    """The others would wait for its gradients forever."""
    trainer = make_trainer(tmp_path / "run", "train.batch_size=8", *PLAIN)
    limit(monkeypatch, 3, [])
    trainer.stepper.ranks = group.Group(ProcessInfo(rank=1, count=2))
    with pytest.raises(MachineError) as failure:
        trainer.stepper.take(0, TrainingLog(torch.device("cpu"), 0))
    assert failure.value.what == "Not enough memory on cpu for a training pass of 4 images of 12x12 pixels."
    assert failure.value.remedy.startswith("Use more processes, or a smaller train.batch_size, model.width")


def test_on_the_cpu_the_user_divides_a_step(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path / "run", "train.batch_size=8", *PLAIN)
    with monkeypatch.context() as patch:
        limit(patch, 4, [], when=lambda: trainer.step > 1)
        error = failed(trainer)
    trainer.run.close()
    assert error.what == "Not enough memory on cpu for a training pass of 8 images of 12x12 pixels."
    assert "a smaller train.batch_size, with a larger train.accumulate to keep the images per step" in error.remedy
    assert "--resume also needs --allow-change" in error.remedy
    again = make_trainer(tmp_path / "run", "train.batch_size=4", "train.accumulate=2")  # as the remedy says
    again.resume(may_change=True)
    assert again.step == 2
    assert sizes(finish(again)) == [4, 4]


def test_other_errors_of_a_pass_are_raised_as_they_are(tmp_path, monkeypatch, like_a_gpu):
    def forward(self, *_):
        raise RuntimeError("shapes do not fit")

    trainer = make_trainer(tmp_path / "run")
    monkeypatch.setattr(UNet, "forward", forward)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        finish(trainer)


def test_only_a_gpu_follows_memory():
    assert passes.follow_memory(torch.device("cuda:1"))
    assert not passes.follow_memory(types.SimpleNamespace(type="cpu"))

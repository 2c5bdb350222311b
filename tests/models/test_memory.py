"""Memory that runs out while sampling costs time and no result, and how many images are taken at a time."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import warnings
import weakref
from pathlib import Path

import pytest
import torch
from conftest import finish, make_trainer
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from colddiff_cli.__main__ import run
from colddiff_core import degradations, runs, sampling, seeds
from colddiff_core.config import presets, toml
from colddiff_core.config.schema import ModelConfig
from colddiff_core.errors import ColddiffWarning, MachineError
from colddiff_core.evaluation import evaluate
from colddiff_core.inference import generate, open_run
from colddiff_core.models import UNet, memory
from colddiff_core.sampling import DegradedImages, Sampling

CPU = torch.device("cpu")
PAPER = ModelConfig()
ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("could not create a primitive"),
    MemoryError(),
]


class Small:
    """A machine with memory for `room` images at a time in a restorer or a network; `seen` are those it was given."""

    def __init__(self, room: int, error: BaseException = ERRORS[0]) -> None:
        self.room, self.error, self.seen = room, error, []

    def check(self, images: torch.Tensor) -> None:
        self.seen.append(len(images))
        if len(images) > self.room:
            raise self.error

    def restorer(self, op: degradations.Degradation):
        def restore(x_t, t, frozen, labels=None):
            self.check(x_t)
            known = torch.zeros(len(x_t)) if labels is None else labels
            times = t if isinstance(t, torch.Tensor) else torch.full((len(x_t),), t)
            # Whatever is not the image's own, its frozen fields, severity or label, changes the answer.
            return op(x_t, t, frozen) + (0.1 * known + 0.01 * times).view(-1, 1, 1, 1)

        return restore


@pytest.mark.parametrize("name", ["mask", "noise", "snow", "blur", "blur+noise"])
@pytest.mark.parametrize("has_own", [True, False])
def test_pieces_are_of_the_same_images_throughout(name, has_own):
    op = degradations.build(name, steps=6)
    x0 = torch.rand(11, 3, 12, 12, generator=seeds.generator(1)) * 2 - 1
    frozen = op.freeze(x0, generator=seeds.generator(2))
    t = torch.arange(11) % 6 + 1 if has_own else 4
    labels = torch.arange(11) if has_own else None
    whole = memory.ChunkedRestorer()(Small(99).restorer(op), x0, t, frozen, labels=labels)
    pieces, machine = memory.ChunkedRestorer(), Small(3)
    with pytest.warns(ColddiffWarning) as told:
        made = pieces(machine.restorer(op), x0, t, frozen, labels=labels)
    torch.testing.assert_close(made, whole, rtol=0, atol=1e-6)
    assert machine.seen == [11, 5, 2, 2, 2, 2, 2, 1]
    assert [str(warning.message).partition(" with ")[2] for warning in told] == [
        "11 images at a time; going on with 5",
        "5 images at a time; going on with 2",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pieces(machine.restorer(op), x0[:5], 4, frozen[:5])
    assert machine.seen[8:] == [2, 2, 1]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_every_word_for_no_memory_is_known_and_no_other_error_is(error):
    op = degradations.build("blur", steps=6)
    x0 = torch.rand(2, 1, 8, 8)
    frozen = op.freeze(x0)
    with pytest.warns(ColddiffWarning, match=r"memory ran out on cpu with 2 images at a time; going on with 1"):
        memory.ChunkedRestorer()(Small(1, error).restorer(op), x0, 1, frozen)
    with pytest.warns(ColddiffWarning), pytest.raises(MachineError, match="one image of 8x8 pixels") as refusal:
        memory.ChunkedRestorer()(Small(0, error).restorer(op), x0, 1, frozen)
    assert len(str(refusal.value).splitlines()) == 2
    with pytest.raises(RuntimeError, match="shapes"):
        memory.ChunkedRestorer()(Small(0, RuntimeError("shapes do not fit")).restorer(op), x0, 1, frozen)


def test_what_the_network_had_made_is_gone_before_less_is_tried():
    class Held:
        pass

    alive: list[weakref.ref] = []

    def restore(x_t, t, frozen, labels=None):
        assert not any(held() for held in alive)
        held = Held()
        alive.append(weakref.ref(held))
        if len(x_t) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return x_t

    op = degradations.build("blur", steps=6)
    x0 = torch.rand(4, 1, 8, 8)
    with pytest.warns(ColddiffWarning):
        assert torch.equal(memory.ChunkedRestorer()(restore, x0, 1, op.freeze(x0)), x0)


@contextlib.contextmanager
def small_machine(monkeypatch, room: int):
    machine, usual = Small(room), UNet.forward

    def forward(self, x, *rest):
        machine.check(x)
        return usual(self, x, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(UNet, "forward", forward)
        yield machine


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    """A run with classes, whose operator has fields of its own for each image."""
    path = tmp_path_factory.mktemp("masked") / "run"
    changes = ("model.classes=10", "train.precision=float32", "train.steps=2")
    return finish(make_trainer(path, *changes, preset="digits-mask")).run


@pytest.mark.parametrize("sampler", ["direct", "naive", "tacos"])
def test_sampling_in_pieces_comes_to_the_same_and_remembers(masked, sampler, monkeypatch):
    built = open_run.open_run(masked, device=CPU).experiment
    x0 = torch.rand(10, built.channels, 12, 12, generator=seeds.generator(1)) * 2 - 1
    x_t, frozen = built.degrade(x0, 5, seeds.image_generators(0, range(10)))
    request = (DegradedImages(x_t, 5, frozen), Sampling(sampler), torch.arange(10))
    whole = sampling.final(built.restore(*request))
    with small_machine(monkeypatch, 3) as machine:
        with pytest.warns(ColddiffWarning) as told:
            made = sampling.final(built.restore(*request))
        assert len(told) == 2
        assert machine.seen[:2] == [10, 5]
        assert max(machine.seen[2:]) == built.pieces.size == 2
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sampling.final(built.with_network(built.restorer.unet).restore(*request))
    torch.testing.assert_close(made, whole, rtol=0, atol=1e-5)


@pytest.fixture
def here(tiny_run, in_folder, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(in_folder / "cache"))
    return shutil.copytree(tiny_run, in_folder / "runs" / "own")


COMMANDS = {
    "sample": ["--n", "8", "--out", "made.png", "--force"],
    "generate": ["--n", "8", "--out", "made.png", "--force"],
    "eval": ["--n", "8", "--features", "none"],
    "compare": ["--n", "8", "--features", "none", "--out", "made.png", "--force"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_goes_on_with_a_word_and_one_json_object(command, here, monkeypatch, capsys):
    arguments = [command, *COMMANDS[command], "--json", "--precision", "float32"]
    assert run(arguments) == 0
    usual = capsys.readouterr()
    assert "memory" not in usual.err
    pixels = Image.open("made.png").tobytes() if "--out" in arguments else b""
    with small_machine(monkeypatch, 3):
        assert run(arguments) == 0
    told = capsys.readouterr()
    found, before = json.loads(told.out), json.loads(usual.out)
    lines = [line for line in told.err.splitlines() if "memory" in line]
    assert lines == [
        f"warning: memory ran out on cpu with {size} images at a time; going on with {size // 2}"
        for size in ((8, 4) if command == "sample" else (16, 8, 4))  # the others fill a batch up
    ]
    assert "colddiff_core" not in told.err
    if pixels:
        differences = [abs(a - b) for a, b in zip(pixels, Image.open("made.png").tobytes(), strict=True)]
        assert max(differences) <= 4  # levels of 256: the inverse magnifies what is rounded
    if command == "eval":
        assert found["metrics"]["sampled"]["rmse"] == pytest.approx(before["metrics"]["sampled"]["rmse"], abs=1e-3)


@pytest.mark.parametrize("command", COMMANDS)
def test_an_image_too_large_is_told_in_two_lines(command, here, monkeypatch, capsys):
    with small_machine(monkeypatch, 0):
        assert run([command, *COMMANDS[command]]) == 1
    told = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: memory ran out")]
    assert told == [
        "colddiff: There is not enough memory on cpu for one image of 12x12 pixels.",
        "  A smaller batch does not help: use a run of smaller images.",
    ]


def test_other_warnings_are_shown_as_ever(here, monkeypatch, capsys):
    usual = UNet.forward

    def forward(self, *arguments):
        warnings.warn("not ours", UserWarning, stacklevel=1)
        return usual(self, *arguments)

    monkeypatch.setattr(UNet, "forward", forward)
    with pytest.warns(UserWarning, match="not ours"):
        assert run(["sample", *COMMANDS["sample"]]) == 0
    assert "warning:" not in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_a_real_shortage_is_survived():
    code = """
import resource, warnings, torch
from colddiff_core import degradations
from colddiff_core.models import Restorer, UNet, memory
op = degradations.build("mask", steps=6)
net = Restorer(UNet(3, 3, width=64, multipliers=(1, 2), block="resnet", attention="none"), op).eval()
x0 = torch.rand(256, 3, 32, 32)
frozen = op.freeze(x0)
pieces = memory.ChunkedRestorer()
with torch.no_grad():
    whole = pieces(net, x0[:1], 3, frozen[:1])
    used = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (used + 200 * 2**20, -1))
    warnings.simplefilter("ignore")
    made = pieces(net, x0, 3, frozen)
print(pieces.size, len(made), float((made[:1] - whole).abs().max()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    size, count, difference = done.stdout.split()
    assert 1 <= int(size) < 256
    assert int(count) == 256
    assert float(difference) < 1e-5


def limited(monkeypatch, total: float) -> None:
    monkeypatch.setattr(memory, "total", lambda device: int(total))


def test_batches_are_as_large_as_memory_allows_within_bounds(monkeypatch):
    gpu, cpu = torch.device("cuda"), CPU
    sizes = []
    for total in (1e8, 1e9, 8e9, 24e9, 80e9):
        limited(monkeypatch, total)
        for side in (32, 128):
            found = memory.batch_size(PAPER, side, torch.bfloat16, gpu, 10**9)
            assert found.bit_count() == 1
            room = memory.SHARE["cuda"] * total / memory.image_bytes(PAPER, side, torch.bfloat16)
            assert found <= max(1, room) < 2 * max(found, 1)
            assert memory.batch_size(PAPER, side, torch.float32, gpu, 10**9) <= found
            assert memory.batch_size(PAPER, side, torch.bfloat16, gpu, 100) == min(found, 100)
            assert memory.batch_size(PAPER, side, torch.bfloat16, cpu, 10**9) <= found
        sizes.append(found)
    assert sizes == sorted(sizes)
    assert sizes[0] == 1
    assert sizes[2] < 128 < sizes[-1]


def test_a_run_takes_as_many_as_fit_and_image_k_stays_the_same(masked, monkeypatch):
    built = open_run.open_run(masked, device=CPU).experiment
    limited(monkeypatch, 1e12)
    assert built.batch_size(generate.MOST) == 16
    assert built.batch_size(evaluate.MOST) == 64
    limited(monkeypatch, 4 * memory.image_bytes(built.config.model, 12, torch.float32) / memory.SHARE["cpu"])
    assert built.batch_size(generate.MOST) == built.batch_size(evaluate.MOST) == 4
    generator = generate.prepare(masked, built, None)
    made = {}
    with small_machine(monkeypatch, 4) as machine:
        for count in (2, 7):
            batches = generator.generate(count, Sampling(seed=1))
            made[count] = torch.cat([sampling.final(batch.steps)[: batch.count] for batch in batches])
    assert set(machine.seen) == {4}
    assert torch.equal(made[2], made[7][:2])


def test_eval_takes_as_many_as_fit_unless_told(here, monkeypatch, capsys):
    limited(monkeypatch, 4 * memory.image_bytes(runs.Run(here).config().model, 12, torch.float32) / memory.SHARE["cpu"])
    way = ["eval", "--n", "10", "--features", "none", "--precision", "float32"]
    for more, sizes in (([], {4}), (["--batch-size", "6"], {6})):
        with small_machine(monkeypatch, 99) as machine:
            assert run([*way, *more]) == 0
        assert set(machine.seen) == sizes


def test_a_container_bounds_the_memory(tmp_path, monkeypatch):
    own = memory.total(CPU)
    assert own > 2**20
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "CONTAINER", (str(limit), str(tmp_path / "absent")))
    for text, total in (("1048576\n", 2**20), ("max\n", None), (f"{2**62}\n", None)):
        limit.write_text(text)
        assert memory.total(CPU) == total if total else memory.total(CPU) >= own


class Live(TorchDispatchMode):
    """Adds up the bytes of all tensors alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: dict[int, int] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.known:
                storage = tensor.untyped_storage()
                self.known[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.forget, storage._cdata)
        return made

    def forget(self, key: int) -> None:
        self.now -= self.known.pop(key)


MODELS = {(config.model, config.data.size): name for name in presets.names() for config in [presets.load(name)]}
OTHERS = [
    (ModelConfig(width=32, multipliers=(1, 8, 8)), 32),
    (ModelConfig(width=16, multipliers=(1, 8), block="resnet", attention="none"), 32),
    (ModelConfig(width=32, multipliers=(1, 4, 8), attention="middle"), 64),
    (ModelConfig(width=256, multipliers=(1,), attention="middle"), 32),
]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize(("model", "side"), [*MODELS, *OTHERS], ids=[*MODELS.values(), *"1234"])
def test_the_estimate_is_near_what_lives_in_the_network(model, side, precision):
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    peaks = []
    with FakeTensorMode(), torch.no_grad():
        shape = {"width": model.width, "multipliers": model.multipliers, "block": model.block}
        net = UNet(3, 3, **shape, attention=model.attention, body_dtype=dtype)
        for count in (256, 512):  # the weights count once, the images twice
            with Live() as live:
                net(torch.zeros(count, 3, side, side), torch.ones(count, dtype=torch.int64))
            peaks.append(live.peak)
    lives = (peaks[1] - peaks[0]) / 256
    # Kernels take some for themselves, and on a GPU norms and softmax stay float32 where they are bf16 on the CPU.
    assert lives < memory.image_bytes(model, side, dtype) < 3 * lives


@pytest.mark.parametrize("command", COMMANDS)
def test_the_precision_is_the_one_asked_for_and_told(command, here, monkeypatch, capsys):
    ran = set()
    usual = UNet.forward

    def forward(self, *arguments):
        ran.add(self.body_dtype)
        return usual(self, *arguments)

    monkeypatch.setattr(UNet, "forward", forward)
    for word, dtype in (("bf16", torch.bfloat16), ("float32", torch.float32)):
        for given, own in (([], word), (["--precision", word], "float32" if word == "bf16" else "bf16")):
            table = runs.Run(here).table()
            table["train"]["precision"] = own
            Path(here, "run.toml").write_text(toml.dump(table))
            ran.clear()
            assert run([command, *COMMANDS[command], *given, "--json"]) == 0
            assert json.loads(capsys.readouterr().out)["precision"] == word
            assert ran == {dtype}
    assert run([command, *COMMANDS[command], "--precision", "auto", "--json"]) == 0
    assert ran >= {torch.bfloat16 if json.loads(capsys.readouterr().out)["precision"] == "bf16" else torch.float32}
    assert runs.Run(here).config().train.precision == "bf16"

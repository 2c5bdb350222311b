"""What makes training and sampling fast changes nothing in what they compute."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import finish, make_trainer

from colddiff_core import degradations, devices, seeds
from colddiff_core.degradations import pixelate, separable
from colddiff_core.distributed import environment
from colddiff_core.models import UNet
from colddiff_core.models.blocks import LinearAttention
from colddiff_core.models.depthwise import depthwise, weight_gradient

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import plain

BF16 = 2.0**-8


def gradients(of: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    g = torch.randn(of.shape, generator=seeds.generator(9)).to(of.dtype)
    return torch.autograd.grad(of, inputs, g)


@pytest.mark.parametrize("shape", [(3, 5, 4, 4), (2, 8, 9, 6), (4, 3, 32, 32), (1, 2, 1, 70)])
def test_a_depthwise_convolution_and_its_gradients_are_the_librarys(shape):
    numbers = seeds.generator(0)
    x = torch.randn(shape, generator=numbers)
    weight, bias = torch.randn(shape[1], 1, 7, 7, generator=numbers) / 7, torch.randn(shape[1], generator=numbers)
    low = [a.bfloat16().requires_grad_() for a in (x, weight, bias)]
    high = [a.detach().double().requires_grad_() for a in low]
    wanted = F.conv2d(*high, padding=3, groups=shape[1])
    found = depthwise(*low)
    for ours, exact in zip((found, *gradients(found, *low)), (wanted, *gradients(wanted, *high)), strict=True):
        assert ours.dtype == torch.bfloat16
        assert ours.shape == exact.shape
        assert (ours.double() - exact).abs().max() <= 2 * BF16 * exact.abs().max()


def test_the_gradient_of_depthwise_weights_is_exact_where_the_products_are():
    numbers = seeds.generator(0)
    x, g = (torch.randn(3, 4, 6, 9, generator=numbers, dtype=torch.float64) for _ in range(2))
    weight = torch.zeros(4, 1, 5, 5, dtype=torch.float64, requires_grad=True)
    (wanted,) = torch.autograd.grad(F.conv2d(x, weight, padding=2, groups=4), weight, g)
    torch.testing.assert_close(weight_gradient(x, g, 5).double(), wanted, rtol=1e-5, atol=1e-5)  # summed in float32


def test_attention_is_its_formula_head_by_head():
    torch.manual_seed(0)
    attention = LinearAttention(12).double()
    x = torch.randn(2, 12, 3, 5, dtype=torch.float64)
    q, k, v = attention.to_qkv(attention.norm(x)).reshape(2, 3, attention.heads, attention.head_width, 15).unbind(1)
    context = torch.einsum("bhdn,bhen->bhde", k.softmax(-1), v) / 15
    mixed = torch.einsum("bhde,bhdn->bhen", context, q.softmax(-2) * attention.head_width**-0.5)
    wanted = x + attention.to_out(mixed.reshape(2, -1, 3, 5))
    torch.testing.assert_close(attention(x), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", ["convnext", "resnet"])
def test_laying_out_and_settling_keep_a_networks_output(block, dtype):
    torch.manual_seed(0)
    network = UNet(1, 1, width=8, multipliers=(1, 2, 4), block=block, body_dtype=dtype)
    x, t = torch.randn(4, 1, 16, 16), torch.tensor([1, 2, 3, 4])
    with torch.no_grad():
        before = network(x, t)
        network.lay_out(16)
        wanted = (block == "convnext", block == "resnet")  # contiguous, channels innermost
        coarse = network.middle.before.expand if block == "convnext" else network.middle.before.conv1
        layouts = (torch.contiguous_format, torch.channels_last)
        assert tuple(coarse.weight.is_contiguous(memory_format=layout) for layout in layouts) == wanted
        assert network.shrink[0].weight.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(network(x, t), before, rtol=0, atol=0.02 if dtype == torch.bfloat16 else 1e-5)
        laid_out = network(x, t)
        network.prepare_for_inference()
        assert torch.equal(network(x, t), laid_out)
    assert {p.dtype for part in (network.time, network.stem, network.head) for p in part.parameters()} == {
        torch.float32
    }
    assert {p.dtype for p in network.shrink.parameters()} == {dtype}
    assert not any(p.requires_grad for p in network.parameters())


def losses(trainer) -> list[float]:
    return [line["loss"] for line in trainer.run.metrics()]


def test_the_loss_falls_as_in_the_plain_network(tmp_path):
    """float32 throughout: the fast network and the plain one differ by rounding alone."""
    overrides = ("train.steps=24", "train.checkpoint_every=24", "train.lr=3e-3", "model.block=convnext")
    overrides += ("model.inputs=plain", "model.consistent=false", "model.multipliers=[1,2]", "model.attention=middle")
    fast = make_trainer(tmp_path / "fast", *overrides)
    slow = make_trainer(tmp_path / "slow", *overrides)
    network = slow.experiment.restorer.unet
    model = slow.experiment.config.to_table()["model"]
    written_out = plain.PlainUNet(network.head.out_channels, network.head.out_channels, model)
    written_out.load_state_dict(network.state_dict())

    def forward(x, t, labels=None):
        return torch.func.functional_call(written_out, dict(network.named_parameters()), (x, t))

    network.forward = forward
    ours, theirs = losses(finish(fast)), losses(finish(slow))
    assert ours[-1] < 0.7 * ours[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=0)


@pytest.mark.parametrize(("steps", "rate"), [(20, 5e-3), pytest.param(120, 1e-3, marks=pytest.mark.slow)])
def test_the_loss_falls_as_in_float32(tmp_path, steps, rate):
    """bfloat16 in the body costs less than the loss's own noise."""
    overrides = (f"train.steps={steps}", f"train.lr={rate}", "train.log_every=10", f"train.checkpoint_every={steps}")
    low = losses(finish(make_trainer(tmp_path / "low", *overrides, "train.precision=bf16")))
    high = losses(finish(make_trainer(tmp_path / "high", *overrides, "train.precision=float32")))
    assert low != high
    assert high[-1] < 0.95 * high[0]
    torch.testing.assert_close(low, high, rtol=0.02, atol=0)


PAIRS = {
    **{name: (name, {"steps": 3}) for name in degradations.names() if name != "animorph"},
    "generation": ("blur", {"steps": 3, "final_mean": True}),
    "reflect": ("blur", {"steps": 3, "padding": "reflect"}),
    "composition": ("blur+mask", {"steps": 3}),
}


@pytest.mark.parametrize("is_large", [False, True])
@pytest.mark.parametrize("case", sorted(PAIRS))
def test_a_pair_is_two_calls(case, is_large, monkeypatch):
    if is_large:  # beyond what matrices are kept for
        monkeypatch.setattr(separable, "DENSE_TABLE_BYTES", 0)
        monkeypatch.setattr(pixelate, "MATRIX_SIDE_PIXELS", 8)
    op = degradations.build(PAIRS[case][0], **PAIRS[case][1])
    x0 = torch.rand(2, 3, 16, 24, generator=seeds.generator(0)) * 2 - 1
    frozen = op.freeze(x0, generator=seeds.generator(1))
    for s, r in ((3, 2), (3, 1), (2, 1), (1, 0), (2, 2)):
        for found, t in zip(op.pair(x0, s, r, frozen), (s, r), strict=True):
            torch.testing.assert_close(found, op(x0, t, frozen), rtol=0, atol=1e-6)
    assert op.pair(x0, 1, 0, frozen)[1] is x0


@pytest.mark.parametrize(
    ("text", "processors"), [("max 100000", 2**16), ("150000 100000", 2), ("50000 100000", 1), ("nonsense", 2**16)]
)
def test_a_container_has_the_processors_that_it_is_given(tmp_path, text, processors):
    (tmp_path / "cpu.max").write_text(text)
    assert environment._quota(tmp_path) == processors
    assert environment._quota(tmp_path / "absent") == 2**16


def test_a_table_is_brought_to_a_device_once():
    table, meta = torch.arange(3.0), torch.device("meta")
    assert devices.on_device(table, torch.device("cpu")) is table
    assert devices.on_device(table, meta) is devices.on_device(table, meta)
    assert devices.on_device(torch.arange(3.0), meta) is not devices.on_device(table, meta)


def test_no_more_threads_than_processors_unless_asked_for(monkeypatch):
    given = []
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(environment, "processors", lambda: 3)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    devices.choose("cpu")
    assert given == [3]
    monkeypatch.setattr(environment, "processors", lambda: 8)
    devices.choose("cpu")
    monkeypatch.setattr(environment, "processors", lambda: 3)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    devices.choose("cpu")
    assert given == [3]


def test_memory_is_kept_where_the_library_can_unless_the_user_set_it(monkeypatch):
    asked = []
    library = types.SimpleNamespace(mallopt=lambda *values: asked.append(values))
    monkeypatch.setattr(devices.ctypes, "CDLL", lambda name: library)
    for name in ("MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    devices.choose("cpu")
    assert asked == [(-3, 2**25), (-1, -1)]
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    devices.choose("cpu")
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_")
    monkeypatch.setattr(devices.ctypes, "CDLL", lambda name: types.SimpleNamespace())  # a library without it
    devices.choose("cpu")
    assert len(asked) == 2

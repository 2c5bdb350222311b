"""The restorer and its U-Net: sizes, channels, precision, the inverse as input, consistency and labels."""

from __future__ import annotations

import pytest
import torch

from colddiff_core import degradations, seeds
from colddiff_core.errors import UsageError
from colddiff_core.models import Restorer, UNet
from colddiff_core.models.unet import BLOCKS


def count_parameters(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_default_network_has_the_papers_size():
    with torch.device("meta"):
        assert count_parameters(UNet(1, 1)) == 56_617_076


ATTENTIONS, SHAPES = ("all", "middle", "none"), ((1, 8, 8), (3, 12, 20), (4, 4, 4))
PAIRWISE = [  # each two of block, attention and shape meet
    (block, ATTENTIONS[i], *SHAPES[(i + j) % 3]) for j, block in enumerate(sorted(BLOCKS)) for i in range(3)
]


@pytest.mark.parametrize(("block", "attention", "channels", "height", "width"), PAIRWISE)
def test_forward_and_backward_work_for_any_channels_and_divisible_size(block, attention, channels, height, width):
    torch.manual_seed(0)
    network = UNet(channels, channels, width=8, multipliers=(1, 2, 2), block=block, attention=attention)
    x = torch.randn(2, channels, height, width)
    out = network(x, torch.tensor([1, 5]))
    assert out.shape == x.shape
    assert out.isfinite().all()
    out.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("block", sorted(BLOCKS))
def test_output_depends_on_t_and_pixels_but_not_on_the_batch(block):
    torch.manual_seed(0)
    network = UNet(1, 1, width=8, multipliers=(1, 2), block=block, attention="middle")
    torch.nn.init.normal_(network.head.weight)  # a local network starts with a zero head
    x, t = torch.randn(3, 1, 8, 8), torch.tensor([1, 2, 3])
    out = network(x, t)
    assert (network(x, t + 1) - out).abs().min(dim=0).values.max() > 1e-6
    torch.testing.assert_close(network(x[1:2], t[1:2]), out[1:2], rtol=0, atol=1e-5)
    touched = x.clone()
    touched[0, 0, 0, 0] += 1
    assert (network(touched, t)[0] - out[0]).abs().max() > 1e-6


def test_a_size_that_is_not_divisible_is_rejected():
    with pytest.raises(UsageError, match="10x8") as error:
        UNet(1, 1, width=8, multipliers=(1, 2, 2))(torch.zeros(1, 1, 8, 10), torch.tensor([1]))
    assert "divisible by 4" in str(error.value)


def test_small_deviations_survive_a_bfloat16_body():
    """Deviations of 1e-4 from a constant vanish in bfloat16; the float32 stem must still pass them on."""
    torch.manual_seed(0)
    network = UNet(1, 1, width=8, multipliers=(1, 2), block="resnet", attention="none", body_dtype=torch.bfloat16)
    flat = torch.full((1, 1, 8, 8), 0.7)
    dented = flat + 1e-4 * torch.randn(1, 1, 8, 8, generator=seeds.generator(0))
    assert torch.equal(dented.bfloat16(), flat.bfloat16())
    with torch.no_grad():
        kernels = network.stem.conv.weight
        kernels -= kernels.mean((2, 3), keepdim=True)  # difference filters, as training learns them
        network.stem.conv.bias.zero_()
        bodies = []
        network.down[0].register_forward_pre_hook(lambda module, inputs: bodies.append(inputs[0]))
        network(dented, torch.tensor([1]))
        network(flat, torch.tensor([1]))
    inner = slice(1, -1)  # without the effects of zero padding
    assert bodies[0].dtype == torch.bfloat16
    assert bodies[0][..., inner, inner].float().std() > 100 * bodies[1][..., inner, inner].float().std()


def test_a_zero_network_with_inverse_input_returns_the_inverse():
    op = degradations.build("blur", steps=3, schedule="constant", std=0.5, kernel_size=5)
    network = UNet(2, 1, width=8, multipliers=(1, 2))
    for parameter in network.head.parameters():
        torch.nn.init.zeros_(parameter)
    restorer = Restorer(network, op, inputs="inverse")
    x0 = torch.rand(2, 1, 8, 8, generator=seeds.generator(0)) * 2 - 1
    for t in (3, torch.tensor([1, 3])):
        torch.testing.assert_close(restorer(op(x0, t), t), x0, rtol=0, atol=1e-3)


def test_inverse_input_needs_an_operator_with_inverse():
    class OperatorWithoutInverse:
        has_inverse = False

    with pytest.raises(UsageError, match="no inverse"):
        Restorer(UNet(2, 1, width=8, multipliers=(1,)), OperatorWithoutInverse(), inputs="inverse")


@pytest.mark.parametrize(
    ("name", "values", "inputs"),
    [
        ("blur", {"steps": 6, "schedule": "constant", "std": 2.0, "kernel_size": 7}, "inverse"),
        ("blur", {"steps": 6, "schedule": "constant", "std": 2.0, "kernel_size": 7}, "plain"),
        ("mask", {"steps": 9, "std": 1.0, "growth": 0.3}, "inverse"),
        ("mask", {"steps": 9, "std": 1.0, "growth": 0.3, "fill": "color"}, "plain"),
        ("pixelate", {"steps": 2, "mode": "area"}, "inverse"),
        ("desaturate", {"steps": 5}, "plain"),
    ],
)
def test_a_consistent_restoration_degrades_to_its_input(name, values, inputs):
    op, floor = degradations.build(name, **values), 1e-3
    x0 = torch.rand(2, 3, 8, 8, generator=seeds.generator(0)) * 2 - 1
    torch.manual_seed(0)
    network = UNet(6 if inputs == "inverse" else 3, 3, width=8, multipliers=(1, 2))
    frozen = op.freeze(x0, generator=seeds.generator(1))
    for t in (op.steps, torch.tensor([1, op.steps])):
        x_t = op(x0, t, frozen)
        errors = []
        for consistent in (False, True):
            restorer = Restorer(network, op, inputs=inputs, floor=floor, consistent=consistent)
            with torch.no_grad():
                errors.append(float((op(restorer(x_t, t, frozen), t, frozen) - x_t).abs().max()))
        assert errors[1] < 4 * floor < errors[0]


def test_consistency_keeps_a_perfect_restoration():
    op = degradations.build("blur", steps=6, schedule="constant", std=2.0, kernel_size=7)
    x0 = torch.rand(2, 3, 8, 8, generator=seeds.generator(0)) * 2 - 1

    class Oracle(torch.nn.Module):
        def forward(self, x_t, t, labels):
            return x0

    restored = Restorer(Oracle(), op, consistent=True)(op(x0, 6), 6)
    torch.testing.assert_close(restored, x0, rtol=0, atol=2e-2)  # the floor of 1e-5 amplifies the rounding of x_t


def test_consistency_needs_a_linear_operator():
    for name in ("noise", "snow", "animorph", "blur+noise", "mask+blur"):
        with pytest.raises(UsageError, match="not linear"):
            Restorer(UNet(1, 1, width=8, multipliers=(1,)), degradations.build(name, steps=5), consistent=True)


def test_labels_change_the_output_of_a_conditional_network():
    network = UNet(1, 1, width=8, multipliers=(1, 2), classes=3)
    x, t = torch.zeros(2, 1, 8, 8), torch.tensor([1, 1])
    with torch.no_grad():
        unknown, known, same = network(x, t), network(x, t, torch.tensor([0, 2])), network(x, t, torch.tensor([3, 3]))
    assert torch.equal(unknown, same)
    assert not torch.equal(unknown[0], known[0])
    assert not torch.equal(known[0], known[1])

"""The samplers: what the paper proves of them."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from colddiff_core import degradations, sampling, seeds
from colddiff_core.degradations import Degradation, Frozen
from colddiff_core.errors import UsageError
from colddiff_core.images import dequantize, quantize
from colddiff_core.sampling import SAMPLERS, DegradedImages, Sampling, final, sample


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drift(Degradation):
    """D(x, s) = x + s e, for which TACoS is exact whatever R does (section 3.3)."""

    name = "drift"

    def _degrade(self, x0: Tensor, t: int | Tensor, frozen: Frozen) -> Tensor:
        e = torch.linspace(-0.1, 0.1, x0[0].numel()).view_as(x0[0])
        return x0 + t * e


def batch(channels: int = 3) -> Tensor:
    return torch.rand(2, channels, 12, 12, generator=seeds.generator(5)) * 2 - 1


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
@pytest.mark.parametrize("name", [*degradations.names(), "mask+blur"])
@pytest.mark.parametrize("stride", [1, 4])
def test_a_perfect_restorer_brings_every_operator_back(sampler, name, stride):
    steps = 3 if name == "pixelate" else 10
    op, x0 = degradations.build(name, steps=steps), batch()
    if sampler not in sampling.names(op):
        with pytest.raises(UsageError, match="Use one of"):
            sample(lambda x, t, f: x0, op, DegradedImages(x0, steps, Frozen()), Sampling(sampler))
        return
    others = {op.second_field: x0.flip(-1)} if op.second_field else {}
    frozen = op.freeze(x0, generator=seeds.generator(1), **others)
    x_t = op(x0, steps, frozen)
    steps = list(sample(lambda x, t, f: x0, op, DegradedImages(x_t, steps, frozen), Sampling(sampler, stride)))
    torch.testing.assert_close(steps[-1].x, x0, rtol=0, atol=2e-6)
    for step in steps if sampler != "ddpm" else ():  # which draws another noise at every step
        torch.testing.assert_close(step.x, op(x0, step.severity, frozen), rtol=0, atol=1e-5)


def test_tacos_recovers_with_any_restorer_if_d_is_linear_in_t():
    op, x0 = Drift(steps=9), batch()

    def wrong(x: Tensor, t: int, frozen: Frozen) -> Tensor:
        return 0.3 * x.flip(-1) + 0.1 * t

    drifted = DegradedImages(op(x0, 9), 9, Frozen())
    tacos = final(sample(wrong, op, drifted, Sampling("tacos")))
    naive = final(sample(wrong, op, drifted, Sampling("naive")))
    torch.testing.assert_close(tacos, x0, rtol=0, atol=1e-5)
    assert (naive - x0).abs().max() > 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneFrequencyLess(Degradation):
    """Every step removes the highest row of frequencies that is left (appendix A.9, along one axis)."""

    name = "one-frequency-less"

    def _degrade(self, x0: Tensor, t: int | Tensor, frozen: Frozen) -> Tensor:
        spectrum = torch.fft.rfft(x0.double())
        spectrum[..., spectrum.shape[-1] - t :] = 0
        return torch.fft.irfft(spectrum, n=x0.shape[-1]).to(x0.dtype)


def test_one_step_of_tacos_errs_in_the_revealed_frequency_alone():
    """Appendix A.9: E_t of Algorithm 1 sums R's mistakes over all that x_{t-1} has, of Algorithm 2 over what is new."""
    op, x0 = OneFrequencyLess(steps=6), batch()
    mistake = 0.1 * torch.randn(x0.shape, generator=seeds.generator(6))
    for t in range(6, 0, -1):
        errors = {}
        for sampler in ("naive", "tacos"):
            degraded = DegradedImages(op(x0, t), t, Frozen())
            steps = sample(lambda x, s, f: x0 + mistake, op, degraded, Sampling(sampler))
            errors[sampler] = next(steps).x - op(x0, t - 1)
        torch.testing.assert_close(errors["naive"], op(mistake, t - 1), rtol=0, atol=1e-5)
        torch.testing.assert_close(errors["tacos"], op(mistake, t - 1) - op(mistake, t), rtol=0, atol=1e-5)
        assert errors["tacos"].norm() < 0.9 * errors["naive"].norm()


def test_ddpm_keeps_the_noise_at_the_level_of_its_step():
    """x_r has sqrt(1 - abar_r) of noise whichever part of it is new: R perfect, the rest is the noise."""
    op = degradations.build("noise", steps=10)
    x0 = torch.zeros(1, 1, 64, 64)
    frozen = op.freeze(x0, generator=seeds.generator(1))
    steps = sample(lambda x, t, f: x0, op, DegradedImages(op(x0, 10, frozen), 10, frozen), Sampling("ddpm", seed=2))
    before = op(x0, 10, frozen)
    for step in steps:
        level = float((1 - op.abar[step.severity]).sqrt())
        assert float(step.x.std()) == pytest.approx(level, rel=0.05)
        if step.severity:
            abar_s, abar_r = op.abar[step.severity + 1], op.abar[step.severity]
            kept = 1 - (1 - abar_s / abar_r) / (1 - abar_s)  # of the noise's energy: the rest is drawn anew
            together = torch.corrcoef(torch.stack([before.flatten(), step.x.flatten()]))[0, 1]
            assert float(together) == pytest.approx(float(kept.sqrt()), abs=0.05)
        before = step.x
    assert torch.equal(before, x0)


def test_fixed_noise_keeps_to_the_noise_it_was_given():
    op, x0 = degradations.build("noise", steps=8), batch(1)
    frozen = op.freeze(x0, generator=seeds.generator(1))
    seen = []

    def restore(x: Tensor, t: int, known: Frozen) -> Tensor:
        seen.append(known.z)
        return torch.tanh(x)

    noisy = DegradedImages(op(x0, 8, frozen), 8, frozen)
    final(sample(restore, op, noisy, Sampling("fixed-noise")))
    assert all(torch.equal(z, frozen.z) for z in seen)
    seen.clear()
    final(sample(restore, op, noisy, Sampling("tacos")))
    assert not torch.equal(seen[-1], frozen.z)


def test_with_estimated_noise_tacos_is_naive_is_ddim():
    """Appendix A.6: x_r = sqrt(abar_r) x0_hat + sqrt(1 - abar_r) z_hat."""
    op, x0 = degradations.build("noise", steps=8), batch(1)
    frozen = op.freeze(x0, generator=seeds.generator(1))
    unknown = op.freeze(x0, generator=seeds.generator(2))

    def restore(x: Tensor, t: int, frozen: Frozen) -> Tensor:
        return torch.tanh(x)

    x = x_t = op(x0, 8, frozen)
    for s in range(8, 0, -1):
        a_s, a_r = op.abar[s], op.abar[s - 1]
        z_hat = (x - a_s.sqrt() * torch.tanh(x)) / (1 - a_s).sqrt()
        x = a_r.sqrt() * torch.tanh(x) + (1 - a_r).sqrt() * z_hat
    for sampler in ("tacos", "naive", "ddim"):
        found = final(sample(restore, op, DegradedImages(x_t, 8, unknown), Sampling(sampler)))
        torch.testing.assert_close(found, x.float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("t", "stride", "severities"), [(5, 1, [4, 3, 2, 1, 0]), (5, 2, [3, 1, 0]), (4, 9, [0])])
def test_strides_end_at_zero(t, stride, severities):
    op, x0 = degradations.build("blur", steps=5, kernel_size=5), batch()
    seen = []

    def restore(x: Tensor, s: int, frozen: Frozen) -> Tensor:
        seen.append(s)
        return x

    steps = list(sample(restore, op, DegradedImages(op(x0, t), t, Frozen()), Sampling(stride=stride)))
    assert [step.severity for step in steps] == severities
    assert seen == [t, *severities[:-1]]
    assert [step.index for step in steps] == list(range(1, len(severities) + 1))
    assert {step.count for step in steps} == {len(severities)}


def test_direct_is_one_evaluation():
    op, x0 = degradations.build("blur", steps=5, kernel_size=5), batch()
    steps = list(sample(lambda x, t, f: 2 * x, op, DegradedImages(x0, 5, Frozen()), Sampling("direct")))
    assert len(steps) == 1
    assert torch.equal(steps[0].x, 2 * x0)


@pytest.mark.parametrize(
    ("sampling_", "t", "words"),
    [
        (Sampling("taco"), 5, "Did you mean 'tacos'"),
        (Sampling(), 0, "out of range"),
        (Sampling(), 6, "out of range"),
        (Sampling(stride=0), 5, "stride"),
    ],
)
def test_bad_requests_are_refused_before_anything_runs(sampling_, t, words):
    op = degradations.build("blur", steps=5, kernel_size=5)
    with pytest.raises(UsageError) as refusal:
        sample(lambda x, t, f: x, op, DegradedImages(batch(), t, Frozen()), sampling_)
    assert words in str(refusal.value)


@pytest.mark.parametrize("name", ["mask", "blur", "pixelate"])
def test_a_perfect_restorer_brings_images_back_from_rounded_ones(name):
    op = degradations.build(name, steps=3)
    x0 = torch.rand(4, 3, 16, 16, generator=seeds.generator(6)) * 2 - 1
    frozen = op.freeze(x0, generator=seeds.generator(7))
    x_t = quantize(op(x0, 3, frozen), 8)

    def restored(bits: int) -> torch.Tensor:
        return final(sample(lambda x, s, f: x0, op, DegradedImages(x_t, 3, frozen), Sampling(bits=bits)))

    torch.testing.assert_close(restored(8), x0, rtol=0, atol=1e-6)
    assert (restored(0) - x0).abs().max() > 1e-3, "the rounding stays in every step of Algorithm 2"


def test_dequantizing_gives_the_nearest_values_to_a_guess_that_round_to_the_picture():
    x = quantize(torch.tensor([0.3, 0.3, 0.3]), 8)
    found = dequantize(x, torch.tensor([x[0] + 0.001, x[1] + 0.5, x[2] - 0.5]), 8)
    torch.testing.assert_close(found, x + torch.tensor([0.001, 1 / 255, -1 / 255]))
    assert dequantize(x, found, 0) is x

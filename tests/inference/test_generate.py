"""Generated images: image k is the same for any number of images."""

from __future__ import annotations

import dataclasses
import shutil
import warnings

import pytest
import torch
from conftest import finish, make_trainer
from PIL import Image

from colddiff_core import degradations, experiment, runs, seeds
from colddiff_core.config import presets
from colddiff_core.datasets import from_config
from colddiff_core.errors import ColddiffWarning, UsageError
from colddiff_core.inference import generate, open_run
from colddiff_core.sampling import Sampling, priors

CPU = torch.device("cpu")
BLUR = (
    "degradation.schedule=exponential",
    "degradation.final_mean=true",
    "degradation.dither=0.01",
    "model.consistent=false",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return finish(make_trainer(tmp_path_factory.mktemp("generation") / "run", *BLUR)).run


def images(generator: generate.Generator, count: int, **values) -> torch.Tensor:
    made = []
    for batch in generator.generate(count, Sampling(**{"seed": 3} | values)):
        *_, last = batch.steps
        made.append(last.x[: batch.count])
    return torch.cat(made)


def test_image_k_is_the_same_bits_whatever_n_is(run):
    built = open_run.open_run(run, device=CPU).experiment
    generator = generate.prepare(run, built, None)
    many = images(generator, generator.batch_size + 4)
    assert torch.equal(images(generator, 3), many[:3])
    assert torch.equal(images(generator, generator.batch_size + 1)[-1], many[generator.batch_size])
    assert torch.equal(images(generator, generator.batch_size + 4), many)
    assert not torch.equal(images(generator, 3, seed=4), many[:3])


def test_the_noise_is_the_runs_own_unless_said_otherwise(run):
    built = open_run.open_run(run, device=CPU).experiment
    assert generate.prepare(run, built, None).noise == 0.01
    assert generate.prepare(run, built, None, noise=0.0).noise == 0.0
    assert generate.prepare(run, built, "degraded").noise == 0.0
    with pytest.raises(UsageError, match="no symmetry"):
        generate.prepare(run, built, "degraded", noise=0.1)
    plain = open_run.open_run(run, device=CPU, overrides=("degradation.dither=0.0",)).experiment
    with pytest.raises(UsageError, match="only noise"):
        generate.prepare(run, plain, None)
    assert generate.usual_noise(plain, priors.find(None, plain.operator)) == 0.002


def test_a_prior_is_kept_in_the_run_and_needs_no_data_after_that(run, tmp_path, monkeypatch):
    copy = shutil.copytree(run.path, tmp_path / "copy", ignore=shutil.ignore_patterns("priors"))
    here = runs.Run(copy)
    built = open_run.open_run(here, device=CPU).experiment
    first = images(generate.prepare(here, built, None), 2)
    assert (copy / "priors" / "gmm-1.safetensors").is_file()
    monkeypatch.setattr(from_config, "load_images", lambda *a: pytest.fail("the data set was read"))
    assert torch.equal(images(generate.prepare(here, built, None), 2), first)


def test_interpolation_begins_and_ends_with_images_0_and_1(run):
    built = open_run.open_run(run, device=CPU).experiment
    generator = generate.prepare(run, built, None)
    count = generator.batch_size + 3
    made = []
    for batch in generator.interpolate(count, Sampling(seed=3)):
        *_, last = batch.steps
        made.append(last.x[: batch.count])
    way = torch.cat(made)
    assert len(way) == count
    torch.testing.assert_close(way[[0, -1]], images(generator, 2), rtol=0, atol=0.02)
    strides = (way[1:] - way[:-1]).square().mean((1, 2, 3)).sqrt()
    assert float(strides.max()) < 0.6 * float((way[0] - way[-1]).square().mean().sqrt())


def test_a_sampler_that_draws_noise_takes_image_0s_all_the_way(tmp_path):
    trainer = finish(make_trainer(tmp_path / "run", "train.steps=2", preset="digits-noise"))
    built = open_run.open_run(trainer.run, device=CPU).experiment
    generator = generate.prepare(trainer.run, built, None)
    (batch,) = generator.interpolate(3, Sampling("ddpm", seed=3))
    *_, last = batch.steps
    wanted = images(generator, 2, sampler="ddpm")
    torch.testing.assert_close(last.x[0], wanted[0], rtol=0, atol=0.02)
    assert (last.x[2] - wanted[1]).abs().max() > 0.1


SMALL = [name for name in presets.names() if name.startswith(("digits-", "folder-"))]


def test_every_operator_has_a_small_preset():
    assert {presets.load(name).degradation.name for name in SMALL} == set(degradations.names())


@pytest.mark.parametrize("preset", SMALL)
@pytest.mark.usefixtures("small_sheets")
def test_every_small_preset_trains_restores_and_generates_from_its_operators_own_prior(preset, tmp_path):
    for number in range(12):
        shades = torch.randint(256, (3, 12, 12), generator=seeds.generator(number)).to(torch.uint8)
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(shades.permute(1, 2, 0).numpy()).save(tmp_path / "photos" / f"{number}.png")
    overrides = ["train.steps=2", f"data.directory={tmp_path / 'photos'}"]
    overrides += ["model.multipliers=[1,2]", "model.attention=middle"] if preset.startswith("digits-") else []
    overrides += ["degradation.steps=2"] if preset == "digits-pixelate" else []
    trainer = finish(make_trainer(tmp_path / "run", *overrides, preset=preset))
    built = open_run.open_run(trainer.run, device=CPU).experiment
    x0 = trainer.test_set.images(slice(0, 3))
    x_t, frozen = built.degrade(x0, built.operator.steps, seeds.image_generators(0, range(3)))
    alone, _ = built.degrade(x0[2:], built.operator.steps, seeds.image_generators(0, [2]))
    assert torch.allclose(x_t[2:], alone, atol=1e-6)
    assert built.restorer(x_t, built.operator.steps, frozen).isfinite().all()
    width = generate.usual_noise(built, priors.find(None, built.operator)) or None  # given, for runs that restore
    generator = generate.prepare(trainer.run, built, None, noise=width)
    assert generator.prior.name == built.operator.priors[0]
    made = images(generator, 3)
    assert made.shape == (3, built.channels, 12, 12)
    assert made.isfinite().all()
    assert not torch.equal(made[0], made[1])


def test_ddpm_draws_the_same_noise_for_an_image_every_time(tmp_path):
    trainer = finish(make_trainer(tmp_path / "run", "train.steps=2", preset="digits-noise"))
    built = open_run.open_run(trainer.run, device=CPU).experiment
    generator = generate.prepare(trainer.run, built, None)
    many = images(generator, 5, sampler="ddpm")
    assert torch.equal(images(generator, 2, sampler="ddpm"), many[:2])
    assert not torch.equal(images(generator, 2), many[:2])


def test_classes_must_fit_the_data(tmp_path):
    trainer = make_trainer(tmp_path / "run", "model.classes=4")
    with pytest.raises(UsageError, match=r"Use model\.classes=10"):
        trainer.experiment.try_out(trainer.train_set)
    without = dataclasses.replace(trainer.train_set, labels=None)
    with pytest.raises(UsageError, match="has no classes"):
        trainer.experiment.try_out(without)


@pytest.mark.parametrize(
    ("preset", "can"),
    [
        ("digits-blur", False),
        ("mnist-blur-small", False),
        ("digits-blur-generate", True),
        ("digits-mask-generate", True),
        ("digits-noise", True),
        ("digits-pixelate", True),
        ("digits-animorph", True),
        ("digits-mask", False),
        ("digits-snow", False),
    ],
)
def test_whether_a_run_can_generate_is_known_before_it_does(preset, can):
    made = experiment.build(presets.load(preset, ["model.width=4", "model.multipliers=[1]"]), 1, CPU)
    assert generate.can_generate(made) is can


def test_a_run_that_makes_only_noise_refuses_unless_the_noise_is_given(tmp_path):
    trained = open_run.open_run(finish(make_trainer(tmp_path / "run", "train.steps=1")).run, device="cpu")
    for asked in (
        lambda: generate.prepare(trained.run, trained.experiment, None),
        lambda: generate.generate(trained, 1),
    ):
        with pytest.raises(UsageError, match="only noise") as refused:
            asked()
        assert "pretrained:digits-blur-generate" in refused.value.remedy
    with pytest.warns(ColddiffWarning, match="only noise"):
        noisy = generate.prepare(trained.run, trained.experiment, None, noise=0.002)
    made = images(noisy, 4)
    assert (made.abs() > 0.9).float().mean() > 0.5
    with pytest.warns(ColddiffWarning, match="only noise"):
        assert generate.generate(trained, 1, noise=0.002).shape == (1, 1, 12, 12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate.prepare(trained.run, trained.experiment, None, noise=0.0)
        generate.prepare(trained.run, trained.experiment, "degraded")

"""Classes of generated images: named, taken in turn, and leaned towards."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from conftest import finish, make_trainer

from colddiff_core import seeds
from colddiff_core.errors import UsageError
from colddiff_core.inference import condition, generate, open_run
from colddiff_core.inference.condition import Condition
from colddiff_core.runs import classes
from colddiff_core.sampling import Sampling, final

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with ten classes, and weights that let the class through: six steps teach it nothing."""
    path = tmp_path_factory.mktemp("classes") / "run"
    # Of 8 channels, each would be a group of its own, whose norm erases the class.
    run = finish(make_trainer(path, "model.classes=10", "model.width=16", preset="digits-blur-generate")).run
    trained = open_run.open_run(run, device=CPU)
    with torch.no_grad():
        for number, weights in enumerate(trained.experiment.restorer.unet.parameters()):
            weights.normal_(std=0.3, generator=seeds.generator(number))
    return trained


@pytest.fixture(scope="module")
def make(trained):
    def make(count, wanted, **values):
        generator = generate.prepare(trained.run, trained.experiment, None, chosen=wanted)
        batches = generator.generate(count, Sampling(**{"seed": 3} | values))
        return torch.cat([final(batch.steps)[: batch.count] for batch in batches])

    return make


def test_a_conditional_network_hears_the_class(make):
    of_three, of_four, of_any = (make(3, Condition(labels)) for labels in ((3,), (4,), ()))
    assert not torch.equal(of_three, of_four)
    assert not torch.equal(of_three, of_any)


def test_images_take_turns_in_the_classes_and_image_k_does_not_depend_on_n(make):
    alone = {label: make(5, Condition((label,))) for label in (2, 7)}
    mixed = make(5, Condition((2, 7)))
    for number, image in enumerate(mixed):
        torch.testing.assert_close(image, alone[(2, 7)[number % 2]][number], rtol=0, atol=1e-5)
    many = make(20, Condition((2, 7)))
    assert torch.equal(many[:5], mixed)
    assert torch.equal(make(19, Condition((2, 7)))[18], many[18])


def test_guidance_of_one_is_the_class_and_of_zero_is_any(make):
    assert torch.equal(make(3, Condition((3,), 1.0)), make(3, Condition((3,))))
    assert torch.equal(make(3, Condition((3,), 0.0)), make(3, Condition()))


@pytest.mark.parametrize("weight", [0.5, 2.0, 3.0])
def test_guidance_follows_the_formula_at_every_step(trained, weight):
    built, t = trained.experiment, trained.experiment.operator.steps
    x0 = torch.rand(3, 1, 12, 12, generator=seeds.generator(2)) * 2 - 1
    x_t, frozen = built.degrade(x0, t, seeds.image_generators(0, range(3)))
    labels = torch.tensor([1, 5, 9])
    images = generate.DegradedImages(x_t, t, frozen)
    for step in built.restore(images, Sampling(), labels, weight):
        with torch.no_grad():
            severity = t - step.index + 1
            of_class, of_any = (built.restorer(x_t, severity, frozen, given) for given in (labels, None))
        torch.testing.assert_close(step.x0_hat, of_any + weight * (of_class - of_any), rtol=0, atol=1e-4)
        assert (of_class - of_any).abs().max() > 0.05
        x_t = step.x


def test_a_run_keeps_the_names_and_a_user_may_use_names_numbers_or_all(trained):
    run, built = trained.run, trained.experiment
    (run.path / classes.FILE).write_text(json.dumps(["cat", "dog", "2", "owl"]))
    try:
        assert condition.named(run, built, "dog").labels == (1,)
        assert condition.named(run, built, ["owl", 0, "2", "1"], 2.0) == Condition((3, 0, 2, 1), 2.0)
        assert condition.named(run, built, [3, 1]).labels == (3, 1)
        assert condition.named(run, built, "all").labels == (0, 1, 2, 3)
        with pytest.raises(UsageError, match=r"no such class\.\nDid you mean 'cat'"):
            condition.named(run, built, "Cat")
        with pytest.raises(UsageError, match=r"no such class\.\nKnown: 2, cat, dog, owl"):
            condition.named(run, built, "elephant")
    finally:
        (run.path / classes.FILE).unlink()
    assert condition.named(run, built, ["3", "all"]).labels == (3, *range(10))
    for word in ("10", "-1", -1, "cat", "3.5", "9" * 5000):
        with pytest.raises(UsageError, match="Use 0 to 9, or all"):
            condition.named(run, built, word)


def test_a_number_is_no_name_and_classes_of_one_name_are_told_apart():
    assert classes.numbers_of(["2", 2, "1"], ["1", "10", "2"], 3) == (2, 2, 0)
    assert classes.numbers_of([1], ["1", "10", "2"], 3) == (1,)
    assert Condition((0, 1, 2, 5), 1.0, ("cat", "cat", "dog")).titles() == {
        0: "cat 0",
        1: "cat 1",
        2: "dog",
        5: "class 5",
    }


def test_guidance_that_cannot_be_is_refused(trained, tiny_run):
    run, built = trained.run, trained.experiment
    for weight in (float("nan"), float("inf"), -0.5, 21.0):
        with pytest.raises(UsageError, match="out of range"):
            condition.named(run, built, 3, weight)
    with pytest.raises(UsageError, match="Name one with --class"):
        condition.named(run, built, None, 2.0)
    plain = open_run.open_run(tiny_run, device=CPU)
    with pytest.raises(UsageError, match="trained without classes"):
        condition.named(plain.run, plain.experiment, None, 2.0)
    with pytest.raises(UsageError, match="trained without classes"):
        condition.named(plain.run, plain.experiment, "cat")


def test_interpolation_takes_one_class(trained):
    built = trained.experiment
    generator = generate.prepare(trained.run, built, None, chosen=Condition((3, 4)))
    with pytest.raises(UsageError, match="of one class"):
        generator.interpolate(4, Sampling())


def test_the_library_generates_a_class_by_name_with_guidance(trained, make):
    made = generate.generate(trained, 3, seed=3, label=[3, "4"], guidance=2.0)
    assert torch.equal(made, make(3, Condition((3, 4), 2.0), **_own(trained)).clamp(-1, 1))


def test_guided_images_are_half_as_many_at_a_time(trained):
    built = dataclasses.replace(trained.experiment)
    assert Condition((3,), 2.0).batch_size(built) * 2 == Condition((3,)).batch_size(built)


def _own(trained):
    own = Sampling.of(trained.experiment.config)
    return {"sampler": own.sampler, "stride": own.stride}

"""The sample sheet of a training: test images degraded, and restored by the averaged weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from torch import Tensor, nn

from colddiff_core import seeds
from colddiff_core.datasets import ImageSet
from colddiff_core.evaluation.fidelity import Fidelity
from colddiff_core.experiment import Experiment
from colddiff_core.files import whole
from colddiff_core.images import lay_out, sheet, write
from colddiff_core.runs import Run
from colddiff_core.sampling import DegradedImages, Sampling, Step, final

IMAGES, BLOCKS = 16, 2
Sheet = tuple[dict[str, Tensor], dict[str, dict[str, float | None]]]  # columns of images, metrics by column


def restore(experiment: Experiment, network: nn.Module, images: ImageSet, at_step: Callable[[], None]) -> Sheet:
    """Restore the first test images with `network`; return the sheet's columns and their metrics.

    Columns are (B, C, H, W) float32 in [-1, 1]. `at_step` is called after each sampler step and may raise to stop
    early: sampling takes minutes if there are many severities.
    """
    settings, t = experiment.config.sample, experiment.operator.steps
    averaged = experiment.with_network(network)
    x0 = images.images(slice(0, IMAGES)).to(experiment.device)
    seed, numbers = experiment.config.train.seed, range(len(x0))
    x_t, frozen = experiment.degrade(x0, t, seeds.image_generators(seed, numbers))
    degraded = DegradedImages(x_t, t, frozen, numbers)
    columns, figures = {"degraded": x_t}, {}
    for name, sampler in (("direct", "direct"), ("sampled", settings.sampler)):
        steps = averaged.restore(degraded, Sampling.of(experiment.config, sampler=sampler))
        columns[name] = final(_calling(steps, at_step))
    for name, stack in columns.items():
        meter = Fidelity()
        meter.update(stack, x0)
        figures[name] = meter.result()
    return columns | {"original": x0}, figures


def path(run: Run, step: int) -> Path:
    """Return the path of a step's sheet."""
    return run.samples / f"step-{step:06d}.png"


def store(run: Run, step: int, experiment: Experiment, restored: Sheet) -> str:
    """Write samples/step-NNNNNN.png with a JSON beside it, and return the file's name.

    Raises:
        MachineError: The disk refuses.
    """
    columns, figures = restored
    place = path(run, step)
    layout = lay_out(columns, blocks=BLOCKS)
    note = {
        "step": step,
        "t": experiment.operator.steps,
        "n": len(columns["original"]),
        "sampler": experiment.config.sample.sampler,
        "metrics": figures,
        "tile": layout.tile,
        "scale": layout.scale,
        "corners": layout.corners,
    }
    with whole(place.with_suffix(".json")) as draft:
        draft.write_text(json.dumps(note) + "\n", encoding="utf-8")
    write(sheet(columns, blocks=BLOCKS), place)  # last, so that a reader who sees the sheet also finds its layout
    return place.name


def _calling(steps: Iterator[Step], at_step: Callable[[], None]) -> Iterator[Step]:
    for step in steps:
        at_step()
        yield step

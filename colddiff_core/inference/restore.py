"""Degrade images and restore them, batch by batch. Image k does not depend on how many there are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from colddiff_core import seeds
from colddiff_core.degradations import Frozen
from colddiff_core.errors import UsageError
from colddiff_core.experiment import Experiment
from colddiff_core.inference import batches
from colddiff_core.inference.batches import BatchFilter, every_batch
from colddiff_core.inference.open_run import TrainedRun
from colddiff_core.sampling import DegradedImages, Sampling, Step, final, sound
from colddiff_core.seeds import ImageKey


@dataclasses.dataclass(frozen=True)
class DegradedBatch:
    """A batch of images, degraded to severity t and not yet restored.

    Gray images fill the batch where there are no more images, or one could not be loaded.

    Attributes:
        numbers: The images that count.
        keys: Of all B images, of everything random about them.
        x0: (B, C, H, W) float32 in [-1, 1], images first to first + B - 1.
        x_t: The same, degraded.
    """

    experiment: Experiment
    first: int
    numbers: tuple[int, ...]
    keys: tuple[ImageKey, ...]
    x0: Tensor
    x_t: Tensor
    frozen: Frozen
    t: int

    def restore(self, sampling: Sampling) -> Iterator[Step]:
        """Take the whole batch back to x_0 and yield every step, as `Experiment.restore` does.

        Raises:
            UsageError: x_0 has pixels that are not finite.
        """
        return sound(self.experiment.restore(DegradedImages(self.x_t, self.t, self.frozen, self.keys), sampling))

    def direct(self) -> Tensor:
        """Return R(x_t, t) of the whole batch, (B, C, H, W)."""
        sampling = Sampling.of(self.experiment.config, sampler="direct", stride=1)
        return final(self.restore(sampling))

    def of(self, x: Tensor, numbers: range) -> Tensor:
        """Select the images of x (B, C, H, W) that count and whose numbers are in a range; return them on the CPU."""
        indices = [number - self.first for number in self.numbers if number in numbers]
        return x[indices].cpu()


def degraded(
    built: Experiment,
    load: Callable[[int], Tensor | None],
    count: int,
    *,
    t: int,
    seed: int,
    size: int,
    accepts: BatchFilter = every_batch,
    are_pictures: bool = False,
) -> Iterator[DegradedBatch]:
    """Degrade images 0 to count - 1, `size` at a time.

    Batches that are not accepted are skipped, and so are those without a single image.

    Args:
        load: Returns image (C, H, W) by number, None to skip it; may raise.
        are_pictures: What is random about an image depends on its pixels, in place of its number.
    """
    for numbers in batches.batches(count, size, accepts):
        loaded = {number: load(number) for number in numbers if number < count}
        present = tuple(number for number, image in loaded.items() if image is not None)
        if not present:
            continue
        x0 = torch.zeros(size, *built.shape)
        keys: list[ImageKey] = list(numbers)
        for number in present:
            image = loaded[number]
            assert image is not None
            x0[number - numbers.start] = image
            if are_pictures:
                keys[number - numbers.start] = seeds.picture_key(image)
        x0 = x0.to(built.device)
        x_t, frozen = built.degrade(x0, t, seeds.image_generators(seed, keys))
        yield DegradedBatch(built, numbers.start, present, tuple(keys), x0, x_t, frozen, t)


def restore(
    trained: TrainedRun,
    x_t: Tensor,
    *,
    t: int | None = None,
    frozen: Frozen | None = None,
    sampling: Sampling | None = None,
) -> Tensor:
    """Restore degraded images x_t (B, C, H, W), float32 in [-1, 1]; return x_0 of the same shape, on the CPU.

    Args:
        t: Severity of x_t; None for T.
        frozen: What the operator drew for these images; None to draw it from `sampling.seed`.
        sampling: None for the run's own.

    Raises:
        UsageError: x_t has another shape or dtype than the run's images, or t or the sampling does not fit; or
            x_0 has pixels that are not finite.
    """
    built, config = trained.experiment, trained.experiment.config
    if x_t.ndim != 4 or tuple(x_t.shape[1:]) != built.shape or x_t.dtype != torch.float32:
        what = f"x_t is {tuple(x_t.shape)} {str(x_t.dtype).removeprefix('torch.')}."
        raise UsageError(what, f"This run takes (B, {', '.join(map(str, built.shape))}) float32 in [-1, 1].")
    severity = built.operator.steps if t is None else t
    sampling = sampling or Sampling.of(config)
    sampling.check(built.operator, severity)
    if not len(x_t):
        return x_t.cpu()
    x_t, numbers = x_t.to(built.device), range(len(x_t))
    if frozen is None:
        frozen = built.freeze(x_t, seeds.image_generators(sampling.seed, numbers))
    return final(sound(built.restore(DegradedImages(x_t, severity, frozen, numbers), sampling))).cpu()

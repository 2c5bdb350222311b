"""Fit a prior to the training images, once per run, and keep its weights in the run."""

from __future__ import annotations

import contextlib
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from colddiff_core import seeds
from colddiff_core.errors import MachineError, UsageError
from colddiff_core.files import read_ordinary, whole
from colddiff_core.sampling.priors import MixturePrior, Prior, PriorSource, Weights
from colddiff_core.tensor_files import write
from colddiff_core.text import counted

FOLDER = "priors"  # in the run
BATCH_IMAGES = 500  # degraded and summarized at a time


def load_or_fit(
    prior: Prior, source: PriorSource, folder: Path, components: int | None, published: Path | None = None
) -> Weights:
    """Load a prior's weights from `folder`, or fit and store them there; empty for a prior without weights.

    Args:
        components: Gaussians in a mixture; None for one.
        published: Another folder to look in; nothing is stored there.

    Raises:
        UsageError: for components of a prior that has none, more components than images, or a single image.
    """
    if not isinstance(prior, MixturePrior):
        if components is not None:
            raise UsageError(f"The prior '{prior.name}' has no components.", "Leave --components out.")
        return {}
    count = 1 if components is None else components
    name = f"{prior.name}-{count}.safetensors"
    weights = _read(folder / name, count)
    if weights is None and published is not None:
        weights = _read(published / name, count)
    if weights is None:
        weights = _fit(prior, source, count)
        if not folder.is_symlink():  # in someone else's run a link may lead anywhere
            with contextlib.suppress(MachineError), whole(folder / name) as draft:  # a read-only run still works
                write(weights, draft)
    return weights


def _fit(prior: MixturePrior, source: PriorSource, count: int) -> Weights:
    from sklearn.mixture import GaussianMixture  # noqa: PLC0415 - half a second that loading weights need not pay

    images, op = source.images(), source.operator
    if len(images) < 2:
        raise UsageError(f"The prior '{prior.name}' cannot be fitted to one training image.", "Use --prior degraded.")
    if count > len(images):
        what = f"{counted(count, 'component')} for {counted(len(images), 'training image')}."
        raise UsageError(what, "Use fewer --components.")
    summaries = []
    for first in range(0, len(images), BATCH_IMAGES):
        numbers = range(first, min(first + BATCH_IMAGES, len(images)))
        x0 = images.images(slice(numbers.start, numbers.stop))
        frozen = source.freeze(x0, seeds.image_generators(0, numbers))
        summaries.append(prior.summarize(op, op(x0, op.steps, frozen)))
    # A fixed seed: the prior belongs to the run, not to one call.
    mixture = GaussianMixture(count, random_state=0).fit(torch.cat(summaries).double().numpy())
    covariances = torch.from_numpy(mixture.covariances_)
    return {
        "shares": torch.from_numpy(mixture.weights_).float(),
        "means": torch.from_numpy(mixture.means_).float(),
        "factors": torch.linalg.cholesky(covariances).float().contiguous(),
    }


def _read(path: Path, count: int) -> Weights | None:
    """Read weights from a file; None if they are missing, damaged or of another size."""
    try:
        weights = safetensors.torch.load(read_ordinary(path))
        size = weights["means"].shape[1]
        shapes = {"shares": (count,), "means": (count, size), "factors": (count, size, size)}
        is_right = {name: tuple(tensor.shape) for name, tensor in weights.items()} == shapes
    except (OSError, safetensors.SafetensorError, KeyError, IndexError):
        return None
    is_sound = all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in weights.values())
    return weights if is_right and is_sound else None

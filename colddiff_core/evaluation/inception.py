"""Inception-v3 features, which FID is computed on."""

from __future__ import annotations

import importlib.util
import io
from typing import Any

import torch
from torch import Tensor, nn

from colddiff_core.errors import UsageError
from colddiff_core.evaluation.published_weights import INCEPTION, LeftUnfilled, LoadedWeights, mismatch_error
from colddiff_core.images import to_bytes

BATCH_IMAGES = 50  # through the network at a time


class Inception:
    """Features of images from the last pooling layer of FID's Inception-v3.

    FID is defined on 8-bit images: they are clamped and rounded as a saved PNG is, gray is repeated to three channels,
    and the network's own bilinear resizing scales them to 299 pixels.

    Source: Heusel et al. 2017; Szegedy et al. 2016 for the network.
    """

    name = "FID"
    size = 2048

    def __init__(self, weights: LoadedWeights, device: torch.device) -> None:
        """Build the network on a device.

        Raises:
            UsageError: torch-fidelity is missing, or the weights are for another network.
        """
        check_installed()
        from torchmetrics.image.fid import NoTrainInceptionV3  # noqa: PLC0415 - slow import

        class Unfilled(NoTrainInceptionV3):
            def load_state_dict(self, *_: object) -> None:
                """Skip it: the weights come later."""

        # Without a file torch-fidelity downloads its weights; with one it unpickles it, so it gets an empty one.
        file: Any = io.BytesIO()
        torch.save({}, file)
        file.seek(0)
        try:
            with LeftUnfilled():
                # Without antialiasing torchmetrics resizes as TensorFlow 1 did. With it, enlarged images match
                # pytorch-fid, which the paper used.
                self._network = Unfilled("inception-v3-compat", [str(self.size)], file, antialias=True)
            nn.Module.load_state_dict(self._network, dict(weights.tensors))
        except RuntimeError:
            raise mismatch_error(INCEPTION, weights) from None
        self._network.to(device)
        self._device = device
        self._metadata = weights.metadata()

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return features (B, 2048) float32 on the CPU for images (B, C, H, W) float32 in [-1, 1], C = 1 or 3."""
        color = to_bytes(images).expand(-1, 3, -1, -1)
        return torch.cat([self._network(batch.to(self._device)).cpu() for batch in color.split(BATCH_IMAGES)])

    def metadata(self) -> dict[str, str]:
        """Return the name and SHA-256 of the weights file, to record beside a result."""
        return self._metadata


def check_installed() -> None:
    """Check that torch-fidelity is installed, before fetching its weights.

    Raises:
        UsageError: It is not.
    """
    if importlib.util.find_spec("torch_fidelity") is None:
        raise UsageError(
            "FID needs torch-fidelity, which is not installed.",
            "Run: pip install 'colddiff[fid]', or use --features classifier, which needs no download.",
        )

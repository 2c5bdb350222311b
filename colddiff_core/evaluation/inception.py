"""FID's features of images: what the Frechet inception distance is taken between."""

from __future__ import annotations

import importlib.util
import io
from typing import Any

import torch
from torch import Tensor, nn

from colddiff_core.errors import UsageError
from colddiff_core.evaluation.published_weights import INCEPTION, LoadedWeights, misfit
from colddiff_core.images import to_bytes

PART = 50  # images that go through the network at a time


class Inception:
    """Images (B, C, H, W) float32 in [-1, 1], C = 1 or 3, any size -> features (B, 2048) float32 on the CPU.

    FID is defined on pictures of 8 bits: images are clamped and rounded as a saved PNG is, gray is repeated to three
    channels, and the network's own bilinear resizing brings them to 299 pixels.

    Source: Heusel et al. 2017; Szegedy et al. 2016 for the network, its features those of the last pooling.
    """

    name = "FID"
    size = 2048

    def __init__(self, weights: LoadedWeights, device: torch.device) -> None:
        """Build the network; raises UsageError without torch-fidelity, and for the weights of another network."""
        check_installed()
        from torchmetrics.image.fid import NoTrainInceptionV3  # noqa: PLC0415 - seconds that only this needs

        class Unfilled(NoTrainInceptionV3):
            def load_state_dict(self, *_: object) -> None:
                """Leave the layers as they are: the weights come later."""

        # torch-fidelity downloads its weights unless it is named a file, and unpickles that: here an empty one.
        file: Any = io.BytesIO()
        torch.save({}, file)
        file.seek(0)
        try:
            with torch.random.fork_rng(devices=[]):  # the layers draw weights before they get them
                # Without antialiasing torchmetrics resizes as TensorFlow 1 did. With it, enlarged images are those of
                # pytorch-fid, which the paper's figures were taken with.
                self._network = Unfilled("inception-v3-compat", [str(self.size)], file, antialias=True)
            nn.Module.load_state_dict(self._network, dict(weights.tensors))
        except RuntimeError:
            raise misfit(INCEPTION, weights) from None
        self._network.to(device)
        self._device = device
        self._metadata = weights.metadata()

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        color = to_bytes(images).expand(-1, 3, -1, -1)
        return torch.cat([self._network(part.to(self._device)).cpu() for part in color.split(PART)])

    def metadata(self) -> dict[str, str]:
        """Return the name and digest of the file of weights, for the record of a result."""
        return self._metadata


def check_installed() -> None:
    """Raise UsageError where torch-fidelity is missing; to be asked before its weights are fetched."""
    if importlib.util.find_spec("torch_fidelity") is None:
        raise UsageError(
            "FID needs torch-fidelity, which is not installed.",
            "Run: pip install 'colddiff[fid]', or use --features classifier, which needs no download.",
        )

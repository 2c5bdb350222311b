"""LPIPS: how different two images look, measured on the features of AlexNet."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from colddiff_core.errors import UsageError
from colddiff_core.evaluation.published_weights import ALEXNET, LeftUnfilled, LoadedWeights, mismatch_error

MIN_SIDE_PIXELS = 31  # below it, AlexNet's second pooling gets an empty input


class Lpips:
    """LPIPS 0.1 on AlexNet, with the linear heads that come with torchmetrics.

    Images are clamped to [-1, 1], and gray is repeated to three channels.

    Source: Zhang et al. 2018.
    """

    name = "LPIPS"

    def __init__(self, weights: LoadedWeights, device: torch.device) -> None:
        """Build the network on a device.

        Raises:
            UsageError: The weights are for another network.
        """
        # torchmetrics' public metric downloads AlexNet; its inner module also accepts random weights.
        from torchmetrics.functional.image.lpips import _NoTrainLpips  # noqa: PLC0415 - slow import

        with LeftUnfilled():
            self._network = _NoTrainLpips(net="alex", pnet_rand=True)
        # The backbone's slices number their layers as torchvision's AlexNet does.
        layers = nn.ModuleDict(
            {n: layer for block in self._network.net.children() for n, layer in block.named_children()}
        )
        prefix = "features."
        tensors = {key.removeprefix(prefix): t for key, t in weights.tensors.items() if key.startswith(prefix)}
        try:
            layers.load_state_dict(tensors)
        except RuntimeError:
            raise mismatch_error(ALEXNET, weights) from None
        self._network.to(device)
        self._device = device
        self._metadata = weights.metadata()

    @torch.no_grad()
    def __call__(self, images: Tensor, originals: Tensor) -> Tensor:
        """Return LPIPS (B,) on the CPU for images and originals (B, C, H, W) float32 in [-1, 1], C = 1 or 3.

        Raises:
            UsageError: The images are too small.
        """
        if min(images.shape[-2:]) < MIN_SIDE_PIXELS:
            what = (
                f"LPIPS needs images of {MIN_SIDE_PIXELS} pixels a side or more; these have {min(images.shape[-2:])}."
            )
            raise UsageError(what, "Leave it out, or use larger images.")
        pair = (x.to(self._device).clamp(-1, 1).expand(-1, 3, -1, -1) for x in (images, originals))
        return self._network(*pair).flatten().cpu()

    def metadata(self) -> dict[str, str]:
        """Return the name and SHA-256 of the weights file, to record beside a result."""
        return self._metadata

"""LPIPS: how different two images look, by the features of a network that classifies them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from colddiff_core.errors import UsageError
from colddiff_core.evaluation.published_weights import ALEXNET, LoadedWeights, misfit

LEAST_SIDE = 31  # pixels: of anything smaller, AlexNet's second pooling has nothing left to pool


class Lpips:
    """LPIPS of images to their originals: both (B, C, H, W) float32 in [-1, 1], C = 1 or 3 -> (B,) on the CPU.

    Images are clamped, and gray is repeated to three channels. It is LPIPS 0.1 on AlexNet, whose linear heads come
    with torchmetrics.

    Source: Zhang et al. 2018.
    """

    name = "LPIPS"

    def __init__(self, weights: LoadedWeights, device: torch.device) -> None:
        """Build the network; raises UsageError for the weights of another one."""
        # torchmetrics' public metric downloads AlexNet. The module in it can be had with random weights instead.
        from torchmetrics.functional.image.lpips import _NoTrainLpips  # noqa: PLC0415 - seconds that only this needs

        with torch.random.fork_rng(devices=[]):
            self._network = _NoTrainLpips(net="alex", pnet_rand=True)
        # The slices of the backbone number their layers as torchvision's AlexNet does.
        layers = nn.ModuleDict(
            {n: layer for part in self._network.net.children() for n, layer in part.named_children()}
        )
        prefix = "features."
        tensors = {key.removeprefix(prefix): t for key, t in weights.tensors.items() if key.startswith(prefix)}
        try:
            layers.load_state_dict(tensors)
        except RuntimeError:
            raise misfit(ALEXNET, weights) from None
        self._network.to(device)
        self._device = device
        self._metadata = weights.metadata()

    @torch.no_grad()
    def __call__(self, images: Tensor, originals: Tensor) -> Tensor:
        if min(images.shape[-2:]) < LEAST_SIDE:
            what = f"LPIPS needs images of {LEAST_SIDE} pixels a side; these have {min(images.shape[-2:])}."
            raise UsageError(what, "Leave it out, or take larger images.")
        pair = (x.to(self._device).clamp(-1, 1).expand(-1, 3, -1, -1) for x in (images, originals))
        return self._network(*pair).flatten().cpu()

    def metadata(self) -> dict[str, str]:
        """Return the name and digest of the file of AlexNet's weights, for the record of a result."""
        return self._metadata

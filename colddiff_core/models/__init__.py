"""The restorer, its network, and how both fit into memory."""

from colddiff_core.models.restorer import Restorer
from colddiff_core.models.unet import UNet

__all__ = ["Restorer", "UNet"]

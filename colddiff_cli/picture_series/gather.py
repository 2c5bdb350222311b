"""Images of several kinds, held back batch by batch until all that are shown together are there."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from colddiff_core.distributed.group import Group


class ImageCollector:
    """Images (B, C, H, W) by kind, added in any order, in whichever process of a job they were made."""

    def __init__(self) -> None:
        self._parts: dict[str, Tensor] = {}

    def add(self, kind: str, first: int, x: Tensor) -> None:
        """Add images of a kind, numbered from `first` on; they are held on the CPU."""
        self._parts[f"{kind}/{first:012d}"] = x.cpu().clone()  # not a view, which would hold all of a batch

    def add_way(self, first: int, frames: list[Tensor]) -> None:
        """Add the frames of the way that images went."""
        for index, x in enumerate(frames):
            self.add(f"way-{index:06d}", first, x)

    def gather(self, together: Group) -> dict[str, Tensor]:
        """Return to the first process the images of all, a stack for each kind in the order of the numbers."""
        import torch

        parts = {name: x for told in together.gather_tensors(self._parts) for name, x in told.items()}
        found: dict[str, list[Tensor]] = {}
        for name in sorted(parts):
            found.setdefault(name.rpartition("/")[0], []).append(parts[name])
        return {kind: torch.cat(stack) for kind, stack in found.items()}


def way(stacks: dict[str, Tensor]) -> list[Tensor]:
    """Return the frames among gathered stacks."""
    return [stacks[kind] for kind in sorted(stacks) if kind.startswith("way-")]

"""Collect images of several kinds, batch by batch, to show them together."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from colddiff_core.distributed.group import Group


TRAJECTORY = "trajectory-"  # prefix of the kinds that are frames


class ImageCollector:
    """Images (B, C, H, W) by kind, added in any order and by any process of a job."""

    def __init__(self) -> None:
        self._parts: dict[str, Tensor] = {}

    def add(self, kind: str, first: int, x: Tensor) -> None:
        """Add images of a kind, numbered from `first`; they are kept on the CPU."""
        self._parts[f"{kind}/{first:012d}"] = x.cpu().clone()  # a view would keep the whole batch

    def add_trajectory(self, first: int, frames: list[Tensor]) -> None:
        """Add the frames of a batch on its way from x_t to x_0."""
        for index, x in enumerate(frames):
            self.add(f"{TRAJECTORY}{index:06d}", first, x)

    def gather(self, ranks: Group) -> dict[str, Tensor]:
        """Gather the images of all processes on rank 0: a stack per kind, in the order of their numbers."""
        import torch

        parts = {name: x for own in ranks.gather_tensors(self._parts) for name, x in own.items()}
        stacks: dict[str, list[Tensor]] = {}
        for name in sorted(parts):
            stacks.setdefault(name.rpartition("/")[0], []).append(parts[name])
        return {kind: torch.cat(stack) for kind, stack in stacks.items()}


def trajectory(stacks: dict[str, Tensor]) -> list[Tensor]:
    """Return the trajectory's frames among gathered stacks."""
    return [stacks[kind] for kind in sorted(stacks) if kind.startswith(TRAJECTORY)]

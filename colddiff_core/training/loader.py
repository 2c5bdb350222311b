"""Move training images to the device: all at once if they fit, else ahead of the training loop."""

from __future__ import annotations

import collections
import dataclasses
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from colddiff_core import devices
from colddiff_core.config.sizes import Size, sides, simplest, typed
from colddiff_core.datasets import ImageSet, TrainingSet
from colddiff_core.images import to_floats


class BatchLoader:
    """Loads images by index, cropped and mirrored on the device.

    Pixels stay uint8 until `take`. If they fit, they are kept on the device; on the CPU they always are, memory-mapped
    files too. Otherwise, and if the data set decodes images on the fly, a thread gathers them in pinned memory and
    uploads them on a stream of its own, so that the loop does not wait as long as the disk keeps up. The CPU never
    waits for the GPU here.

    Attributes:
        pixel_bytes: Size of all images on a device that keeps them; 0 for a data set that is decoded during training.
        is_resident: Whether the device keeps them.
    """

    def __init__(self, images: TrainingSet, device: torch.device, *, size: Size, flip: bool) -> None:
        """Load from `images`; larger ones are cropped to `size` at random, and `flip` mirrors half of them.

        Raises:
            ValueError: The images are smaller than `size`, or have another margin in height than in width.
        """
        self._sides, self._flip, self._device = sides(size), flip, device
        margins = [have - side for have, side in zip(images.shape[-2:], self._sides, strict=True)]
        if margins[0] < 0 or margins[0] != margins[1]:
            raise ValueError(f"images of {typed(simplest(*images.shape[-2:]))} pixels have no window of {typed(size)}")
        self._margin = margins[0]
        self._images = images
        held = images.pixels if isinstance(images, ImageSet) else None
        self.pixel_bytes = held.nbytes if held is not None else 0
        self.is_resident = held is not None and devices.fits(held, device)
        self._pixels = held.to(device) if held is not None and self.is_resident else held
        self._thread = None if self.is_resident else ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._stream = torch.cuda.Stream(device) if self._thread and device.type == "cuda" else None
        self._begun: collections.deque[tuple[Tensor, Future[_Sent]]] = collections.deque()

    def ahead(self, indices: Tensor) -> None:
        """Start to gather the images (B,) int64 of a later `take`; call this in the order of the takes."""
        if self._thread:
            self._begun.append((indices, self._thread.submit(self._send, indices)))

    def draw(self, count: int, numbers: torch.Generator) -> CropsAndFlips:
        """Draw crops and flips of `count` images from a CPU generator, untouched if there are none to draw."""
        mirrored = torch.rand(count, generator=numbers) < 0.5 if self._flip else None
        corners = torch.randint(self._margin + 1, (count, 2), generator=numbers) if self._margin else None
        return CropsAndFlips(mirrored, corners)

    def take(self, indices: Tensor, views: CropsAndFlips) -> Tensor:
        """Return images (B, C, H, W) float32 in [-1, 1] on the device, by index (B,) int64 on the CPU.

        Errors of the gathering thread are raised here.
        """
        pixels = self._rows(indices)
        if views.corners is not None:
            pixels = _windows(pixels, devices.upload(views.corners, self._device), self._sides)
        if views.mirrored is not None:
            is_mirrored = devices.upload(views.mirrored, self._device).view(-1, 1, 1, 1)
            pixels = torch.where(is_mirrored, pixels.flip(-1), pixels)
        return to_floats(pixels)

    def _rows(self, indices: Tensor) -> Tensor:
        """Return whole images (B, C, H, W) uint8 on the device."""
        if not self._thread:
            assert self._pixels is not None
            return self._pixels[devices.upload(indices, self._device)]
        sent = self._begun_for(indices, self._thread).result()
        if sent.arrival is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(sent.arrival)
            sent.pixels.record_stream(stream)  # else the sender could reuse its memory before it is read
        return sent.pixels

    def _begun_for(self, indices: Tensor, thread: ThreadPoolExecutor) -> Future[_Sent]:
        """Return the pending upload of these images and drop older ones; start one if none is pending."""
        if not any(torch.equal(pending, indices) for pending, _ in self._begun):
            return thread.submit(self._send, indices)
        while True:
            pending, future = self._begun.popleft()
            if torch.equal(pending, indices):
                return future
            future.cancel()

    def _send(self, indices: Tensor) -> _Sent:
        """Gather images and upload them; runs in the thread."""
        if self._stream is None:
            return _Sent(self._images.rows(indices).to(self._device))
        with torch.cuda.stream(self._stream):
            shape = (len(indices), *self._images.shape)
            pinned = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
            if self._pixels is None:
                pinned.copy_(self._images.rows(indices))
            else:
                torch.index_select(self._pixels, 0, indices, out=pinned)
            return _Sent(pinned.to(self._device, non_blocking=True), self._stream.record_event())


@dataclasses.dataclass(frozen=True)
class CropsAndFlips:
    """Which images are mirrored, (B,) bool, and where their crops begin, (B, 2) int64; None for no change.

    Both are on the CPU.
    """

    mirrored: Tensor | None = None
    corners: Tensor | None = None

    def __getitem__(self, some: slice) -> CropsAndFlips:
        """Return the crops and flips of some of the images."""
        return CropsAndFlips(*(None if field is None else field[some] for field in (self.mirrored, self.corners)))


@dataclasses.dataclass(frozen=True)
class _Sent:
    """Pixels (B, C, H, W) uint8 on their way to a device, and the event that marks their arrival."""

    pixels: Tensor
    arrival: torch.cuda.Event | None = None


def _windows(pixels: Tensor, corners: Tensor, window: tuple[int, int]) -> Tensor:
    """Crop each image (B, C, H, W) at its upper left corner (row, column), (B, 2) int64, to a height and width."""
    image = torch.arange(len(pixels), device=pixels.device).view(-1, 1, 1, 1)
    channel = torch.arange(pixels.shape[1], device=pixels.device).view(1, -1, 1, 1)
    row, column = (
        corners[:, axis, None] + torch.arange(side, device=pixels.device) for axis, side in enumerate(window)
    )
    return pixels[image, channel, row[:, None, :, None], column[:, None, None, :]]

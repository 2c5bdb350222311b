"""Training images on their way to the device: there already, or gathered ahead of the loop that asks for them."""

from __future__ import annotations

import collections
import dataclasses
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from colddiff_core import devices
from colddiff_core.datasets import ImageSet, TrainingSet
from colddiff_core.images import to_floats

SHARE = 0.5  # of a GPU's free memory that pixels may take: the activations are yet to come


class BatchLoader:
    """Hands out images by their numbers in a set, cropped and mirrored on the device.

    Pixels stay uint8 until they are handed out. Where they fit, they lie on the device (on the CPU they always do, as a
    map of a file too); else, and where a set has to decode them, a thread gathers rows in pinned memory and sends them
    on a stream of its own, so that the loop does not wait as long as the disk keeps up. Nothing here has the CPU wait
    for a GPU.
    """

    def __init__(self, images: TrainingSet, device: torch.device, *, size: int, flip: bool) -> None:
        """Take square images; where they are larger than `size`, windows at random are handed out.

        flip: mirror half of them. Raises ValueError where the images are smaller than `size`.
        """
        self._size, self._flip, self._device = size, flip, device
        self._margin = images.shape[-1] - size
        if self._margin < 0:
            raise ValueError(f"images of {images.shape[-1]} pixels have no window of {size}")
        self._images = images
        held = images.pixels if isinstance(images, ImageSet) else None
        self.is_resident = held is not None and _fits(held, device)
        self._pixels = held.to(device) if held is not None and self.is_resident else held
        self._thread = None if self.is_resident else ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._stream = torch.cuda.Stream(device) if self._thread and device.type == "cuda" else None
        self._begun: collections.deque[tuple[Tensor, Future[_Sent]]] = collections.deque()

    def ahead(self, indices: Tensor) -> None:
        """Begin to gather the images of a later `take`; to be told in the order of taking."""
        if self._thread:
            self._begun.append((indices, self._thread.submit(self._send, indices)))

    def draw(self, count: int, numbers: torch.Generator) -> CropsAndFlips:
        """Draw how so many images are seen; `numbers`, on the CPU, are asked only for what there is to draw."""
        mirrored = torch.rand(count, generator=numbers) < 0.5 if self._flip else None
        corners = torch.randint(self._margin + 1, (count, 2), generator=numbers) if self._margin else None
        return CropsAndFlips(mirrored, corners)

    def take(self, indices: Tensor, views: CropsAndFlips) -> Tensor:
        """Return images (B, C, size, size) float32 in [-1, 1] on the device, by their numbers (B,) int64 on the CPU.

        Raises whatever kept the images from being gathered.
        """
        pixels = self._rows(indices)
        if views.corners is not None:
            pixels = _windows(pixels, devices.upload(views.corners, self._device), self._size)
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
            sent.pixels.record_stream(stream)  # or its memory would be the sender's again before it is read
        return sent.pixels

    def _begun_for(self, indices: Tensor, thread: ThreadPoolExecutor) -> Future[_Sent]:
        """Return what was begun for these images, and drop what was told before them and not taken; else begin now."""
        if not any(torch.equal(told, indices) for told, _ in self._begun):
            return thread.submit(self._send, indices)
        while True:
            told, future = self._begun.popleft()
            if torch.equal(told, indices):
                return future
            future.cancel()

    def _send(self, indices: Tensor) -> _Sent:
        """Gather images and have them sent to the device; runs in the thread."""
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
    """How images are seen: which are mirrored (B,) bool, and where their windows begin (B, 2); None for nothing drawn.

    On the CPU.
    """

    mirrored: Tensor | None = None
    corners: Tensor | None = None

    def __getitem__(self, some: slice) -> CropsAndFlips:
        """Return how some of the images are seen."""
        return CropsAndFlips(*(None if field is None else field[some] for field in (self.mirrored, self.corners)))


@dataclasses.dataclass(frozen=True)
class _Sent:
    """Pixels (B, C, H, W) uint8 sent to a device, and what tells its streams that they have arrived."""

    pixels: Tensor
    arrival: torch.cuda.Event | None = None


def _fits(pixels: Tensor, device: torch.device) -> bool:
    """Tell whether pixels lie on a device or may be laid there."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return pixels.nbytes <= SHARE * free


def _windows(pixels: Tensor, corners: Tensor, size: int) -> Tensor:
    """Return the window of each image (B, C, H, W) whose upper left corner (row, column) is given, as (B, 2)."""
    span = torch.arange(size, device=pixels.device)
    image = torch.arange(len(pixels), device=pixels.device).view(-1, 1, 1, 1)
    channel = torch.arange(pixels.shape[1], device=pixels.device).view(1, -1, 1, 1)
    row, column = (corners[:, axis, None] + span for axis in (0, 1))
    return pixels[image, channel, row[:, None, :, None], column[:, None, None, :]]

"""The images that `sample` degrades: picture files, or test images of the run's data set."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colddiff_cli.arguments.inputs import Files
from colddiff_cli.console.screen import Screen
from colddiff_cli.picture_series import manifest
from colddiff_cli.picture_series.notes import PictureNotes
from colddiff_core.errors import UsageError
from colddiff_core.text import counted

if TYPE_CHECKING:
    from torch import Tensor

    from colddiff_core.experiment import Experiment


@dataclasses.dataclass(frozen=True)
class SampleSource:
    """Images by number.

    load: returns image (C, H, W) float32 in [-1, 1], or None if it is skipped; settings: what distinguishes these
    images from others, for the series manifest; skipped: the reasons by number, to be printed when all ranks are done;
    notes: what was lost of files, None for test images.
    """

    count: int
    load: Callable[[int], Tensor | None]
    settings: dict[str, Any]
    skipped: dict[int, str] = dataclasses.field(default_factory=dict)
    notes: PictureNotes | None = None

    @property
    def are_files(self) -> bool:
        """Whether these are a user's pictures."""
        return self.notes is not None


def from_files(screen: Screen, built: Experiment, files: Files) -> SampleSource:
    """Load picture files with the run's size and channels; warns if their own channels differ."""
    from colddiff_core import images
    from colddiff_core.distributed import group

    ranks = group.current()

    def count_others() -> int:
        channels = [images.count_channels(file) for file, _ in files]
        return sum(own not in (0, built.channels) for own in channels)

    if others := ranks.on_first(count_others):
        own, theirs = ("color", "gray") if built.channels > 1 else ("gray", "color")
        pictures = f"{counted(others, f'{theirs} picture')} {'is' if others == 1 else 'are'}"
        screen.warn(f"the run was trained in {own}: {pictures} restored in {own}")
    skipped: dict[int, str] = {}
    notes = PictureNotes(screen, len(files))

    def load(number: int) -> Tensor | None:
        file, is_named = files[number]
        try:
            return images.read(
                file,
                size=built.config.data.size,
                channels=built.channels,
                note=lambda text: notes.add(number, file, text),
            )
        except UsageError as error:
            if is_named:
                raise
            skipped[number] = f"{error.what} Skipped."
            if ranks.is_alone:
                screen.warn(skipped[number])
            return None

    settings = manifest.fingerprint([file for file, _ in files]) if ranks.is_first else {}
    return SampleSource(len(files), load, settings, skipped, notes)


def from_test_set(screen: Screen, built: Experiment, n: int) -> SampleSource:
    """Load the first n test images, or all if there are fewer."""
    from colddiff_core.datasets import from_config
    from colddiff_core.distributed import group

    data = built.config.data
    test = group.current().one_process_first(lambda: from_config.load_images(built.config, "test", built.channels))
    count = min(n, len(test))
    if count < n:
        screen.warn(f"{data.dataset} has only {counted(count, 'test image')}")
    settings = {"dataset": data.dataset, "images": count, "of": len(test), "directory": data.directory}
    return SampleSource(count, lambda number: test.images(slice(number, number + 1))[0], settings)


def stems(source: SampleSource, files: Files) -> list[Path]:
    """Return the name of each image's outputs: that of its file, or its number."""
    return [file for file, _ in files] or [Path(f"{number:06d}") for number in range(source.count)]

"""Show progress while a reference loads, and explain the columns of a table."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING

from colddiff_cli.console.screen import Screen

if TYPE_CHECKING:
    from rich.progress import TaskID

    from colddiff_core.evaluation.metrics import Reference


def explain(screen: Screen, reference: Reference, shown: Collection[str], *, has_too_few_images: bool) -> None:
    """Explain the shown columns, and warn about a distance of too few images."""
    from colddiff_core.evaluation.reference import labels

    if reference.target is None:
        return
    features = reference.target.features
    names = [name for key, name in labels(reference).items() if key in shown]
    measured = names + [key for key in ("accuracy", "confidence", "classes") if key in shown]
    by = "Inception-v3"
    if measured and features.name != "FID":
        metadata = features.metadata()
        task = "class" if metadata["of"] == "classes" else "rotation"
        by = f"a small classifier ({metadata['accuracy']:.1%} accurate on the {task} of the test images)"
    if measured:
        screen.explain(f"{', '.join(measured)}: by {by}")
    if names:
        screen.explain(f"{', '.join(names)}: distance to all {reference.target.count:,} test images")
    if has_too_few_images and names:
        screen.warn(f"{names[0]}: too few images for {features.size:,} features; it is unreliable")


@contextlib.contextmanager
def advancing(screen: Screen) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a callback (words, done, total) that shows a progress bar for each kind of work."""
    with screen.progress() as bars:
        tasks: dict[str, TaskID] = {}

        def advance(words: str, done: int, total: int) -> None:
            if words not in tasks:
                tasks[words] = bars.add_task(words)
            bars.update(tasks[words], completed=done, total=total or None)
            if 0 < total <= done:
                bars.remove_task(tasks.pop(words))

        yield advance

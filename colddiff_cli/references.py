"""What generated and compared images are held against, loaded with a word about what takes time."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import Progress

from colddiff_cli.screen import Screen

if TYPE_CHECKING:
    from colddiff_core.comparison import Reference
    from colddiff_core.datasets import ImageSet
    from colddiff_core.experiment import Experiment


def load(screen: Screen, built: Experiment) -> Reference:
    """Return the test images of a run's data set, and a classifier of them where they have labels.

    The classifier is trained once for a data set at a size and kept in the user's cache folder.
    """
    import platformdirs

    from colddiff_core import classifier, comparison, experiment

    config = built.config
    test = experiment.load_images(config, "test", built.channels)

    @functools.cache
    def train() -> ImageSet:
        return experiment.load_images(config, "train", built.channels)

    if test.labels is None or train().labels is None or test.classes != train().classes:
        return comparison.Reference(train, test, None)
    folder = Path(platformdirs.user_cache_dir("colddiff")) / "classifiers"
    with Progress(console=screen.console, transient=True, disable=not screen.is_terminal) as progress:
        task = progress.add_task(f"a classifier of {config.data.dataset}", total=None, visible=False)
        network = classifier.load_or_train(
            train(),
            test,
            folder,
            config.data.dataset,
            built.device,
            lambda step, steps: progress.update(task, completed=step, total=steps, visible=True),
        )
    return comparison.Reference(train, test, network)

"""What images are held against, loaded with a word about what takes time."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import Progress

from colddiff_cli.console.screen import Screen
from colddiff_cli.jobs import launch
from colddiff_core.errors import UsageError
from colddiff_core.text import nearest

if TYPE_CHECKING:
    from colddiff_core.datasets import ImageSet
    from colddiff_core.evaluation.classifier import Classifier
    from colddiff_core.evaluation.distances import Features
    from colddiff_core.evaluation.evaluate import Reference
    from colddiff_core.evaluation.fidelity import PerceptualDistance
    from colddiff_core.evaluation.inception import Inception
    from colddiff_core.experiment import Experiment

FEATURES = ("classifier", "inception", "none")


@dataclasses.dataclass(frozen=True)
class FeatureChoice:
    """What distances are measured with: one of FEATURES, and Inception where that is the one."""

    features: str = "classifier"
    inception: Inception | None = None


def check(features: str) -> None:
    """Raise UsageError for features that there are none of."""
    if features not in FEATURES:
        raise UsageError(f"No features '{features}'.", nearest(features, FEATURES))


def prepare(screen: Screen, features: str, weights: Path | None, device: str) -> FeatureChoice:
    """Return what --features and --weights name, ready, so that what is missing is told before any work.

    Raises UsageError for names and files that are not there, MachineError for weights that cannot be fetched.
    """
    check(features)
    if weights is not None and features != "inception":
        raise UsageError("--weights are Inception's.", "Add --features inception, or leave --weights out.")
    if weights is not None and not weights.is_file():
        raise UsageError(f"--weights '{weights}': no such file.", "Name a file of Inception's weights.")
    return FeatureChoice(features, _inception(screen, weights, device) if features == "inception" else None)


def load(screen: Screen, built: Experiment, means: FeatureChoice) -> Reference:
    """Return the test images of a run's data set, a classifier of them where they have labels, and their distribution.

    The classifier is trained once for a data set at a size and kept in the user's cache folder. Of the processes of a
    job the first alone gets what distances are measured to, the others what features they need. Raises UsageError
    and MachineError as the data set says.
    """
    from colddiff_core.datasets import from_config
    from colddiff_core.distributed import group
    from colddiff_core.evaluation import classifier, distances, evaluate

    config, together = built.config, group.current()
    test = together.one_process_first(lambda: from_config.load_images(config, "test", built.channels))

    @functools.cache
    def train() -> ImageSet:
        return from_config.load_images(config, "train", built.channels)

    if left_out := from_config.left_out(config.data, test, "test"):
        screen.warn(f"{left_out}: other images are measured")
    perceptual = _perceptual(screen, built)
    launch.check_alike({"LPIPS": perceptual and perceptual.metadata()})  # its weights may be on one machine alone
    if means.features == "none":
        return evaluate.Reference(test, train, perceptual=perceptual)
    together.one_process_first(train)
    has_classes = test.labels is not None and train().labels is not None and test.classes == train().classes
    judge = together.one_process_first(lambda: _classifier(screen, built, train(), test)) if has_classes else None
    seen: Features
    if means.inception is not None:
        seen = means.inception
    elif judge is not None:
        seen = classifier.ClassifierFeatures(judge, f"FD-{config.data.dataset}", "classes")
    else:
        turned = together.one_process_first(
            lambda: _classifier(screen, built, classifier.turned(train()), classifier.turned(test))
        )
        seen = classifier.ClassifierFeatures(turned, f"FD-{config.data.dataset}", "quarter turns")
    launch.check_alike({"classifier": seen.metadata()})  # each machine may have trained its own
    if not together.is_first:  # which alone makes figures of what all of them have seen
        return evaluate.Reference(test, train, judge, None, perceptual, seen)
    with _advancing(screen, f"{seen.name}: features of the test images") as advance:
        target = distances.reference_stats(seen, test, lambda done: advance(done, len(test)))
    return evaluate.Reference(test, train, judge, target, perceptual)


def labels(reference: Reference) -> dict[str, str]:
    """Return what the distances are called, by the key of the figure."""
    from colddiff_core.evaluation import distances

    return distances.labels(reference.target.features) if reference.target else {}


def explain(screen: Screen, reference: Reference, shown: Collection[str], *, has_too_few_images: bool) -> None:
    """Say what the columns mean whose keys are shown, and warn of a distance that cannot be relied on."""
    if reference.target is None:
        return
    features = reference.target.features
    names = [name for key, name in labels(reference).items() if key in shown]
    told = names + [key for key in ("accuracy", "confidence", "classes") if key in shown]
    by = "Inception-v3"
    if told and features.name != "FID":
        said = features.metadata()
        of = "which class an image is of" if said["of"] == "classes" else f"by how many {said['of']} an image is turned"
        by = f"a small classifier, right about {of} in {said['accuracy']:.1%} of the test images"
    if told:
        screen.explain(f"{', '.join(told)}: by {by}")
    if names:
        screen.explain(f"{', '.join(names)}: to all {reference.target.count:,} test images")
    if has_too_few_images and names:
        screen.warn(f"{names[0]}: too few images for {features.size:,} features; it says little")


def _classifier(screen: Screen, built: Experiment, train: ImageSet, test: ImageSet) -> Classifier:
    from colddiff_core.evaluation import classifier

    name = built.config.data.dataset
    folder = _cache("classifiers")
    with _advancing(screen, f"a classifier of {name}") as advance:
        return classifier.load_or_train(train, test, folder, name, built.device, lambda step, steps: advance(1, steps))


def _inception(screen: Screen, given: Path | None, device: str) -> Inception:
    """Return Inception with the weights given, else with those published, fetched once."""
    from colddiff_core import devices
    from colddiff_core.distributed import group
    from colddiff_core.evaluation import inception, published_weights

    inception.check_installed()
    path = given
    if path is None:
        with _advancing(screen, "Inception's weights") as advance:
            done = 0

            def tell(so_far: int, total: int) -> None:
                nonlocal done
                advance(so_far - done, total)
                done = so_far

            path = group.current().one_process_first(
                lambda: published_weights.fetch(published_weights.INCEPTION, _cache("weights"), tell)
            )
    return inception.Inception(published_weights.read(published_weights.INCEPTION, path), devices.choose(device))


def _perceptual(screen: Screen, built: Experiment) -> PerceptualDistance | None:
    """Return LPIPS where its weights are on the disk and the images are large enough for it."""
    from colddiff_core.evaluation import lpips, published_weights

    path = published_weights.find(published_weights.ALEXNET, _cache("weights"))
    if path is None or built.config.data.size < lpips.MIN_SIDE_PIXELS:
        return None
    try:
        return lpips.Lpips(published_weights.read(published_weights.ALEXNET, path), built.device)
    except UsageError as error:
        screen.warn(f"no LPIPS: {error.what} {error.remedy}")
        return None


def _cache(name: str) -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("colddiff")) / name


@contextlib.contextmanager
def _advancing(screen: Screen, words: str) -> Iterator[Callable[[int, int], None]]:
    """Yield what advances a progress bar by so much of so much; the bar is shown once there is something to tell."""
    with Progress(console=screen.console, transient=True, disable=not screen.is_terminal) as progress:
        task = progress.add_task(words, total=None, visible=False)
        yield lambda done, total: progress.update(task, advance=done, total=total, visible=True)

"""Names of the features that distances are measured with, and checks of the options that choose them."""

from __future__ import annotations

from pathlib import Path

from colddiff_core.errors import UsageError
from colddiff_core.text import nearest

# Imports no torch, so that a wrong option is refused at once.

FEATURES = ("classifier", "inception", "none")


def check_features(features: str) -> None:
    """Check the name of the features.

    Raises:
        UsageError: The name is unknown.
    """
    if features not in FEATURES:
        raise UsageError(f"No features '{features}'.", nearest(features, FEATURES))


def check_weights(features: str, weights: Path | None) -> None:
    """Check the weights file that goes with the features.

    Raises:
        UsageError: The features have no weights, or the file does not exist.
    """
    if weights is None:
        return
    if features != "inception":
        raise UsageError("--weights are Inception's.", "Add --features inception, or leave --weights out.")
    if not weights.is_file():
        raise UsageError(f"--weights '{weights}': no such file.", "Name a file of Inception's weights.")

"""Where downloaded data sets are kept."""

from __future__ import annotations

from pathlib import Path

import platformdirs


def default_directory() -> Path:
    """Return the user's cache folder for data sets; it is not created by asking."""
    return Path(platformdirs.user_cache_dir("colddiff")) / "data"

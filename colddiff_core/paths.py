"""Every cache folder, in one place."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import platformdirs

CacheName = Literal[
    "classifiers",  # trained to measure how far images stay recognizable
    "compiled",  # what torch.compile made
    "data",  # downloaded data sets
    "decoded",  # images decoded once, memory-mapped later
    "shards",  # how many records each shard holds
    "spool",  # output of commands that shards are read from
    "weights",  # published weights: Inception, AlexNet
]


def cache_folder(name: CacheName) -> Path:
    """Return a folder in the user's cache, without creating it."""
    return Path(platformdirs.user_cache_dir("colddiff")) / name

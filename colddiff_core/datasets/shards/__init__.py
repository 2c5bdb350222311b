"""Tar shards: read while training, or packed."""

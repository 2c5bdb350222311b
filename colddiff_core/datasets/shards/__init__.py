"""Tar shards: how to read them during training, and how to write them."""

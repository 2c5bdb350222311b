"""What to do when memory runs out, for each command: only options that it has."""

from __future__ import annotations

from collections.abc import Sequence

REMEDIES = {
    "train": (
        "Use a smaller train.batch_size, model.width or data.size (--set train.batch_size=N). With another batch size, "
        "--resume also needs --allow-change."
    ),
    "eval": "Use a smaller --batch-size.",
    "compare": "Use a smaller --batch-size or --n.",
    "reproduce": "Use a smaller --batch-size.",
    "sample": "Sample fewer images at a time, with --n, or smaller pictures.",
    "generate": "Generate fewer images at a time, with --n.",
    "restore": "Restore fewer or smaller pictures at a time.",
    "degrade": "Use a smaller --size, or degrade fewer pictures at a time.",
    "data": "Use a smaller --size, or fewer images in a shard: --records.",
}
OTHERWISE = "Close other programs, or use a machine with more memory."


def remedy(words: Sequence[str]) -> str:
    """Return what to do about the command line `words`, which ran out of memory."""
    command = next((word for word in words if not word.startswith("-")), "")
    return REMEDIES.get(command, OTHERWISE)

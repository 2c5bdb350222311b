"""Which process of a job this is, from torchrun's variables, and how many processors there are; needs no torch.

The process group registers itself here once its processes have connected, so that code without torch can query it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

ALWAYS = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
OTHERS = ("LOCAL_RANK", "GROUP_RANK", "LOCAL_WORLD_SIZE", "ROLE_RANK", "ROLE_WORLD_SIZE")
CGROUP = Path("/sys/fs/cgroup")


@dataclasses.dataclass(frozen=True)
class ProcessInfo:
    """Process `rank` of `count`, and process `local` of machine `node`; all start at 0.

    Attributes:
        rank: Which process of the job this is.
        count: How many there are.
        local: Which process of this machine.
        node: Which machine.
        restarts: How often the job was restarted after a failure.
        most_restarts: How often it may be.
        local_count: How many of the processes run on this machine, as far as known.
    """

    rank: int = 0
    count: int = 1
    local: int = 0
    node: int = 0
    restarts: int = 0
    most_restarts: int = 0
    local_count: int = 1

    @property
    def is_on_one_machine(self) -> bool:
        """Whether all processes of the job run on this machine."""
        return self.local_count == self.count

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """Whether there are no other processes."""
        return self.count == 1


class JoinedGroup(Protocol):
    """What code without torch may ask of a group of processes."""

    @property
    def is_alone(self) -> bool:
        """Whether there are no other processes."""

    def is_news(self, message: str) -> bool:
        """Return whether no other process has printed this message yet."""

    def leave(self) -> None:
        """Leave the group."""


_group: JoinedGroup | None = None


def register(group: JoinedGroup) -> None:
    """Remember this process's group, or none if it is the only process."""
    global _group  # noqa: PLW0603 - a process has one group, as in torch
    _group = None if group.is_alone else group


def joined() -> JoinedGroup | None:
    """Return the group that this process has joined, None before that or if it is alone."""
    return _group


def has_met() -> bool:
    """Return whether this process has connected to the others of its job."""
    return _group is not None


def is_news(message: str) -> bool:
    """Return whether this process should report a message.

    It should if no other process has, or, before the processes have connected, if it is rank 0.
    """
    process = process_info()
    if process.is_alone or _group is None:
        return process.is_first
    return _group.is_news(message)


def outside() -> dict[str, str]:
    """Return the environment without torchrun's variables, for programs that are not part of the job."""
    return {
        key: value
        for key, value in os.environ.items()
        if key not in (*ALWAYS, *OTHERS) and not key.startswith("TORCHELASTIC_")
    }


def process_info(environment: Mapping[str, str] = os.environ) -> ProcessInfo:
    """Return which process this is; the only one if the environment describes no job."""
    if not all(environment.get(name) for name in ALWAYS):
        return ProcessInfo()

    def number(name: str, default: int = 0) -> int:
        return int(environment.get(name, default))

    try:
        rank = number("RANK")
        return ProcessInfo(
            rank,
            number("WORLD_SIZE", 1),
            number("LOCAL_RANK", rank),  # some launchers leave it out: then assume a single machine
            number("GROUP_RANK"),
            number("TORCHELASTIC_RESTART_COUNT"),
            number("TORCHELASTIC_MAX_RESTARTS"),
            number("LOCAL_WORLD_SIZE", 1),
        )
    except ValueError:
        return ProcessInfo()


def processors() -> int:
    """Return how many processors this process may use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, _quota(CGROUP))


def _quota(cgroup: Path) -> int:
    """Return the CPU quota of this container, at least 1; a large number if there is none."""
    unlimited = 2**16
    try:
        limit, period = (cgroup / "cpu.max").read_text(encoding="ascii").split()
        return unlimited if limit == "max" else max(1, -(-int(limit) // int(period)))
    except (OSError, ValueError):
        return unlimited

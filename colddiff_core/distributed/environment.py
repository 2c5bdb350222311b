"""Which process of a job this is, by the environment that torchrun gives each of its own."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping

ALWAYS = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclasses.dataclass(frozen=True)
class ProcessInfo:
    """Process `rank` of `count`, the `local`-th of this machine, which is the `node`-th; all from 0.

    restarts: how many times the job was started anew after a failure; most_restarts: how many are allowed; beside: how
    many of the processes are on this machine, as far as is known.
    """

    rank: int = 0
    count: int = 1
    local: int = 0
    node: int = 0
    restarts: int = 0
    most_restarts: int = 0
    beside: int = 1

    @property
    def is_on_one_machine(self) -> bool:
        return self.beside == self.count

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        return self.count == 1


def has_met() -> bool:
    """Tell whether this process has met the others of its job."""
    joined = sys.modules.get("colddiff_core.distributed.group")  # which takes torch: not to be imported for this
    return joined is not None and not joined.current().is_alone


def is_news(message: str) -> bool:
    """Tell whether no other process of the job has told a message already; before they have met the first tells all."""
    here = process_info()
    if here.is_alone or not has_met():
        return here.is_first
    return bool(sys.modules["colddiff_core.distributed.group"].current().is_news(message))


def outside() -> dict[str, str]:
    """Return the environment of a program that is no process of the job, whatever started it."""
    own = {*ALWAYS, "LOCAL_RANK", "GROUP_RANK", "LOCAL_WORLD_SIZE", "ROLE_RANK", "ROLE_WORLD_SIZE"}
    return {key: value for key, value in os.environ.items() if key not in own and not key.startswith("TORCHELASTIC_")}


def process_info(environment: Mapping[str, str] = os.environ) -> ProcessInfo:
    """Return the place of this process; alone where the environment is not that of a job."""
    if not all(environment.get(name) for name in ALWAYS):
        return ProcessInfo()

    def number(name: str, otherwise: int = 0) -> int:
        return int(environment.get(name, otherwise))

    try:
        rank = number("RANK")
        return ProcessInfo(
            rank,
            number("WORLD_SIZE", 1),
            number("LOCAL_RANK", rank),  # not every launcher tells it: as many processes as GPUs on one machine, then
            number("GROUP_RANK"),
            number("TORCHELASTIC_RESTART_COUNT"),
            number("TORCHELASTIC_MAX_RESTARTS"),
            number("LOCAL_WORLD_SIZE", 1),
        )
    except ValueError:
        return ProcessInfo()

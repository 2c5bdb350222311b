"""How the processes of a job meet, and wait for each other without ignoring Ctrl-C."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import math
import os
import signal
import time
import uuid
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from colddiff_core.distributed.environment import process_info
from colddiff_core.errors import LostError, UsageError

PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG in linux/prctl.h
TIMEOUT_VARIABLE = "COLDDIFF_TIMEOUT"
TIMEOUT_SECONDS = 600  # how long a process waits for the others before it gives them up
LONGEST_TIMEOUT_SECONDS = 10**7
POLL_SECONDS = 0.02  # between looks at who has arrived or left
PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.001, 0.1  # between checks while waiting: short at first


def meet(device: torch.device) -> tuple[Any, datetime.timedelta]:
    """Meet the other processes and start torch's process group.

    Returns:
        A store that only these processes share, and how long to wait for one of them.

    Raises:
        LostError: the others do not arrive in time.
        UsageError: COLDDIFF_TIMEOUT is invalid.
    """
    end_with_parent()
    wait = datetime.timedelta(seconds=timeout_seconds())
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    base, rank, count = next(rendezvous("env://", timeout=wait))
    store = PrefixStore(f"colddiff/{_greet(base, rank, count, wait)}", base)
    dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=wait)
    return PrefixStore("own", store), wait


def end_with_parent() -> None:
    """Ask Linux to send this process SIGTERM when the agent that started it dies.

    Otherwise it would train on unnoticed and keep the run locked.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # no agent
        return
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGTERM)


def timeout_seconds() -> int:
    """Return COLDDIFF_TIMEOUT in seconds, or the default; raises UsageError if it is invalid."""
    value = os.environ.get(TIMEOUT_VARIABLE, str(TIMEOUT_SECONDS))
    if not value.isdecimal() or not 0 < int(value) < LONGEST_TIMEOUT_SECONDS:
        what = f"{TIMEOUT_VARIABLE}={value} is not a number of seconds."
        raise UsageError(what, f"Leave it out for {TIMEOUT_SECONDS}.")
    return int(value)


def _greet(store: Any, rank: int, count: int, wait: datetime.timedelta) -> str:
    """Return a name for this meeting that no earlier one had.

    A restarted job finds its old keys in the store, so each process but the first posts a fresh
    name and waits for the answer to exactly that name.
    """
    if rank:
        name = uuid.uuid4().hex
        store.set(f"hello/{rank}", name)
        await_key(store, f"welcome/{name}", wait)
        meeting: str = store.get(f"welcome/{name}").decode()
        store.add(f"came/{meeting}", 1)
        return meeting
    meeting, answered = uuid.uuid4().hex, set()
    deadline = time.monotonic() + wait.total_seconds()
    while store.add(f"came/{meeting}", 0) < count - 1:
        if time.monotonic() > deadline:
            raise _absent(count, wait)
        for other in range(1, count):
            if store.check([f"hello/{other}"]):
                name = store.get(f"hello/{other}").decode()
                if name not in answered:
                    answered.add(name)
                    store.set(f"welcome/{name}", meeting)
        time.sleep(POLL_SECONDS)
    return meeting


def await_key(store: Any, key: str, wait: datetime.timedelta | None = None) -> None:
    """Wait until a process sets a key; without `wait`, forever: decoding a million images takes a while.

    The store's own wait would ignore Ctrl-C. Raises LostError after `wait`.
    """
    deadline = math.inf if wait is None else time.monotonic() + wait.total_seconds()
    for _ in pauses():
        if store.check([key]):
            return
        if time.monotonic() > deadline:
            raise _absent(process_info().count, wait)


def pauses() -> Iterator[None]:
    """Yield before each check of something awaited, with growing pauses in between."""
    pause = PAUSE_SECONDS
    while True:
        yield
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def _absent(count: int, wait: datetime.timedelta | None) -> LostError:
    what = f"The {count} processes of this job did not all arrive within {wait}."
    return LostError(what, "Check that all of them were started.")

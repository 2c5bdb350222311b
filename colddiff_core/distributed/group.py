"""The processes of one job at work together: torch.distributed behind a few words.

Each process has a rank, 0..count - 1; rank 0 is the first, which alone writes. A process by itself is the first of one,
and all of this is then nothing. Tensors on a GPU go by NCCL, all else by Gloo. Nothing is pickled on the way.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import hashlib
import itertools
import json
import math
import os
import re
import signal
import socket
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from colddiff_core.distributed.environment import ProcessInfo, process_info
from colddiff_core.errors import LostError, MachineError, UsageError

T = TypeVar("T")
PARENT_DEATH_SIGNAL = 1  # prctl's name for it (linux/prctl.h)
TIMEOUT_VARIABLE = "COLDDIFF_TIMEOUT"
TIMEOUT = 600  # seconds that a process waits for the others before it takes one of them for lost
GREETING = 0.02  # seconds between looks at who has come, or gone
PARTING = 30  # seconds that the first process waits for the others at the end
ENDLESS = datetime.timedelta(days=30)
PAUSE, LONGEST_PAUSE = 0.001, 0.5  # seconds between two looks at whether the others have come
LOST = ("gloo", "Connection closed", "Connection reset", "Broken pipe")  # what is no error of torch's own kinds says
GONE = ("ncclRemoteError", "remote process", "imeout", "timed out")  # where NCCL fails because of others


class Group:
    """The job that this process is of, and its place there."""

    def __init__(self, here: ProcessInfo, store: Any = None, wait: datetime.timedelta = ENDLESS) -> None:
        """Take the place of this process, and where there are others the store they share, and how long to wait."""
        self.place = here
        self._store = store
        self._orderly = self._heaps = 0  # how many times processes took turns, and had work dealt out
        # Small numbers between CPUs, which no GPU has to be waited for.
        self._aside: Any = None if store is None else dist.new_group(backend="gloo", timeout=wait)

    @property
    def index(self) -> int:
        return self.place.rank

    @property
    def count(self) -> int:
        return self.place.count

    @property
    def is_first(self) -> bool:
        return self.place.is_first

    @property
    def is_alone(self) -> bool:
        return self.place.is_alone

    def slice_of(self, count: int) -> range:
        """Return which of the numbers 0..count - 1 are this process's: a run of them, equally long up to one."""
        return range(count * self.index // self.count, count * (self.index + 1) // self.count)

    def next_tasks(self, count: int) -> Iterator[int]:
        """Yield which of the pieces of work 0..count - 1 this process takes next: one that no other has taken.

        Whoever is quicker takes more. All processes deal out the same heaps one after the other.
        """
        if self._store is None:
            yield from range(count)
            return
        self._heaps += 1
        heap = f"heap/{self._heaps}"
        while True:
            with guarded():
                number = self._store.add(heap, 1) - 1
            if number >= count:
                return
            yield number

    def round_robin(self, pieces: Iterable[T]) -> Iterator[T]:
        """Return which pieces of work are this process's, where they are dealt out in turn."""
        return itertools.islice(pieces, self.index, None, self.count)

    def wrap_ddp(self, network: nn.Module, device: torch.device) -> nn.Module:
        """Return what a network is to be called through in training, so that gradients are the mean over the processes.

        The weights of all processes become the first one's.
        """
        if self.is_alone:
            return network
        devices = [device] if device.type == "cuda" else None
        # Of a 1 x 1 kernel both layouts in memory are one, whatever their strides are called.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        with guarded(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*broadcast_buffers. is deprecated")  # what follows it is not in 2.11
            # The network's tables are the same everywhere: they need not be sent with every step.
            return DistributedDataParallel(
                network, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True
            )

    def sum(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over all processes, in place; returns it."""
        if not self.is_alone:
            with guarded():
                dist.all_reduce(tensor)
        return tensor

    def all_max(self, *values: int | bool) -> tuple[int, ...]:
        """Return the highest of each value over all processes: whether any of them says so."""
        if self.is_alone:
            return tuple(map(int, values))
        told = torch.tensor(list(map(int, values)))
        with guarded():
            dist.all_reduce(told, dist.ReduceOp.MAX, group=self._aside)
        return tuple(told.tolist())

    def barrier(self) -> None:
        """Wait for the others, however long they take; raises LostError where one of them has ended."""
        if self._aside is None:
            return
        options = dist.BarrierOptions()
        options.timeout = ENDLESS
        with guarded():
            meeting = self._aside.barrier(options)
            for _ in _looks():  # not by its own wait, in which Ctrl-C is not heard
                if meeting.is_completed():
                    break
            meeting.wait()  # it says so if one is gone

    def on_first(self, work: Callable[[], T]) -> T:
        """Return what the first process finds by work that it alone does, as JSON holds it; the others wait for it."""
        if self.is_alone:
            return work()
        found = work() if self.is_first else None
        return self.broadcast_json(found)

    def broadcast(self, content: bytes) -> bytes:
        """Return the first process's content; what the others give does not matter."""
        if self.is_alone:
            return content
        self.barrier()  # one may have much more to do before this than another
        length = torch.tensor([len(content)])
        with guarded():
            dist.broadcast(length, 0, group=self._aside)
            told = _tensor(content) if self.is_first else torch.empty(int(length), dtype=torch.uint8)
            dist.broadcast(told, 0, group=self._aside)
        return told.numpy().tobytes()

    def broadcast_json(self, value: Any) -> Any:
        """Return the first process's value, as JSON holds it."""
        return value if self.is_alone else json.loads(self.broadcast(json.dumps(value).encode()))

    def broadcast_tensors(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the first process's tensors by name, on the CPU."""
        if self.is_alone:
            return tensors
        return safetensors.torch.load(self.broadcast(_packed(tensors) if self.is_first else b""))

    def gather(self, content: bytes) -> list[bytes]:
        """Return the content of every process, by rank, to the first; nothing to the others.

        They wait no longer than for a training step: where their work may differ, have them `barrier` first.
        """
        if self.is_alone:
            return [content]
        lengths = torch.zeros(self.count, dtype=torch.int64)
        lengths[self.index] = len(content)
        found = [content]
        with guarded():
            dist.all_reduce(lengths, group=self._aside)
            if not self.is_first:
                dist.send(_tensor(content), 0, group=self._aside)
                return []
            for rank in range(1, self.count):
                received = torch.empty(int(lengths[rank]), dtype=torch.uint8)
                dist.recv(received, rank, group=self._aside)
                found.append(received.numpy().tobytes())
        return found

    def gather_json(self, value: Any) -> list[Any]:
        """Return the value of every process, as JSON holds it, to the first; nothing to the others."""
        return [value] if self.is_alone else [json.loads(told) for told in self.gather(json.dumps(value).encode())]

    def gather_tensors(self, tensors: Mapping[str, Tensor]) -> list[Mapping[str, Tensor]]:
        """Return the tensors of every process by name, on the CPU, to the first; nothing to the others."""
        if self.is_alone:
            return [tensors]
        return [safetensors.torch.load(told) for told in self.gather(_packed(tensors))]

    def one_process_first(self, work: Callable[[], T]) -> T:
        """Do what leaves a cache behind: on every machine one process goes ahead, and the others find what it made.

        Raises LostError in those where it failed.
        """
        if self._store is None:
            return work()
        self._orderly += 1
        key = f"turn/{self.place.node}/{socket.gethostname()}/{self._orderly}"  # not every launcher tells the node
        if self.place.local == 0:
            told = "failed"
            try:
                result = work()
                told = "done"
            finally:
                with guarded():
                    self._store.set(key, told)
            return result
        with guarded():
            _await(self._store, key)
            if self._store.get(key) != b"done":
                raise LostError("Another process of this job could not prepare what all of them need.")
        return work()

    def check_alike(self, settings: Mapping[str, Any]) -> None:
        """Check that all processes have the same settings: another machine may have another torch, or no bfloat16.

        Raises:
            UsageError: This process differs from rank 0.
        """
        settings = json.loads(json.dumps(settings))
        for key, first in self.broadcast_json(settings).items():
            if settings[key] != first:
                what = f"Process {self.index} differs from the first one in {key}: {settings[key]}, not {first}."
                raise UsageError(
                    what, "Have the same program, run and files on all machines, one device and precision."
                )

    def leave(self) -> None:
        """Say that this process is done; the first one then waits for the others to say so, up to PARTING seconds."""
        if self._store is None:
            return
        until = time.monotonic() + PARTING
        with contextlib.suppress(RuntimeError):  # the store is gone: so are they
            gone = self._store.add("parted", 1)
            while self.is_first and gone < self.count and time.monotonic() < until:
                time.sleep(GREETING)
                gone = self._store.add("parted", 0)

    def is_news(self, message: str) -> bool:
        """Tell whether no other process has told this already."""
        if self._store is None:
            return process_info().is_first
        key = f"told/{hashlib.blake2b(message.encode(), digest_size=16).hexdigest()}"
        with contextlib.suppress(RuntimeError):
            return self._store.add(key, 1) == 1
        return self.is_first


ALONE = Group(ProcessInfo())
_joined = ALONE


def join(device: torch.device) -> Group:
    """Return the job that this process is of, and meet its other processes where it has not done so yet.

    Raises LostError where they do not come, UsageError for a timeout that is none.
    """
    global _joined  # noqa: PLW0603 - torch's own process group is one of the process
    here = process_info()
    if here.is_alone or not _joined.is_alone:
        return _joined
    _end_with_parent()
    wait = datetime.timedelta(seconds=_timeout())
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    with guarded():
        every, rank, count = next(rendezvous("env://", timeout=wait))
        store = PrefixStore(f"colddiff/{_greet(every, rank, count, wait)}", every)
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=wait)
        _joined = Group(here, PrefixStore("own", store), wait)
    return _joined


def _end_with_parent() -> None:
    """Have the system send this process SIGTERM when the agent that started it is gone, where the system is Linux.

    Nobody else would end it: it would train on, hold the run, and be hard to find.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # no agent
        return
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGTERM)


def _greet(store: Any, rank: int, count: int, wait: datetime.timedelta) -> str:
    """Return a name for this meeting of the processes, which no earlier one had.

    A job that starts again finds in the store what its earlier processes left there, and would look for them. So each
    process but the first tells a name made up now, and waits for the answer to that very name.
    """
    if rank:
        own = uuid.uuid4().hex
        store.set(f"hello/{rank}", own)
        _await(store, f"welcome/{own}", wait)
        meeting: str = store.get(f"welcome/{own}").decode()
        store.add(f"came/{meeting}", 1)
        return meeting
    meeting, answered = uuid.uuid4().hex, set()
    until = time.monotonic() + wait.total_seconds()
    while store.add(f"came/{meeting}", 0) < count - 1:
        if time.monotonic() > until:
            raise _absent(count, wait)
        for other in range(1, count):
            if store.check([f"hello/{other}"]):
                name = store.get(f"hello/{other}").decode()
                if name not in answered:
                    answered.add(name)
                    store.set(f"welcome/{name}", meeting)
        time.sleep(GREETING)
    return meeting


def _await(store: Any, key: str, wait: datetime.timedelta | None = None) -> None:
    """Wait until a process has set a key: without end, for decoding a million images takes what it takes, or so long.

    Not by the store's own wait, in which Ctrl-C is not heard.
    """
    until = math.inf if wait is None else time.monotonic() + wait.total_seconds()
    for _ in _looks():
        if store.check([key]):
            return
        if time.monotonic() > until:
            raise _absent(process_info().count, wait)


def _looks() -> Iterator[None]:
    """Yield when to look at something that is waited for: often at first, then at longer intervals."""
    pause = PAUSE
    while True:
        yield
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def _absent(count: int, wait: datetime.timedelta | None) -> LostError:
    return LostError(f"The {count} processes of this job have not come together in {wait}.", "Are all of them there?")


def current() -> Group:
    """Return the job that this process has joined, or itself alone."""
    return _joined


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Have what the context does be this process's own affair, as if it were alone: the others have no part in it."""
    global _joined  # noqa: PLW0603
    before, _joined = _joined, ALONE
    try:
        yield
    finally:
        _joined = before


def leave() -> None:
    """Take leave of the others, if there are any; the first process stays until they have all done so, or for long.

    It may keep the store that they still wait at. Connections are left to the system, which closes them with the
    process: torch, tearing them down, was seen to abort it.
    """
    global _joined
    before, _joined = _joined, ALONE
    before.leave()


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Have what torch says of processes that are gone, or cannot be reached, told as that."""
    try:
        yield
    except RuntimeError as error:
        here, told = process_info(), str(error)
        if here.is_alone or not (isinstance(error, dist.DistError) or any(sign in told for sign in LOST)):
            raise
        who = f"Process {here.rank} of {here.count}"
        if isinstance(error, dist.DistBackendError) and not any(sign in told for sign in GONE):
            raise MachineError(f"{who}: {_brief(error)}.", "NCCL_DEBUG=WARN has NCCL say more.") from error
        what = f"{who} has lost the others: {_brief(error)}."
        raise LostError(what, "The last checkpoint and all whole files are kept.") from error


def _brief(error: RuntimeError) -> str:
    """Return the first sentence of what torch says, without the place in its sources; NCCL's own last error."""
    first, *more = str(error).splitlines() or [""]
    if "Last error:" in more[:-1]:
        first = more[more.index("Last error:") + 1]
    return re.sub(r"^\[[^]]*\] ", "", first.strip()).partition(". ")[0].rstrip(". ") or type(error).__name__


def _timeout() -> int:
    told = os.environ.get(TIMEOUT_VARIABLE, str(TIMEOUT))
    if not told.isdecimal() or not 0 < int(told) < 10**7:
        raise UsageError(f"{TIMEOUT_VARIABLE}={told} is no number of seconds.", f"Leave it out for {TIMEOUT}.")
    return int(told)


def _tensor(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)


def _packed(tensors: Mapping[str, Tensor]) -> bytes:
    return safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})

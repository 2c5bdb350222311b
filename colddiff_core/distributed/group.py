"""What the processes of a job say to each other: torch.distributed behind a few words.

Ranks are 0..count - 1; rank 0 is the first, and only it writes. A process that runs alone is the first of
one, and every call here is then a no-op. GPU tensors go by NCCL, everything else by Gloo; nothing is pickled.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import itertools
import json
import re
import socket
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from colddiff_core.distributed import environment
from colddiff_core.distributed.environment import ProcessInfo, process_info
from colddiff_core.distributed.rendezvous import POLL_SECONDS, await_key, meet, pauses
from colddiff_core.errors import LostError, MachineError, UsageError

T = TypeVar("T")
LEAVE_SECONDS = 30  # how long the first process waits for the others at the end
ENDLESS = datetime.timedelta(days=30)
LOST = ("gloo", "Connection closed", "Connection reset", "Broken pipe")  # in errors that are not of torch's own types
GONE = ("ncclRemoteError", "remote process", "imeout", "timed out")  # in NCCL errors that other processes caused


class Group:
    """The processes of a job, seen from this one.

    Methods that exchange something must be called by all processes, in the same order.
    """

    def __init__(self, process: ProcessInfo, store: Any = None, wait: datetime.timedelta = ENDLESS) -> None:
        """Create the group of one process, or of several that share `store` and wait up to `wait` for each other."""
        self.process = process
        self._store = store
        self._turns = self._queues = 0  # how often processes took turns, and shared out tasks
        # For small values on the CPU, so that no GPU has to be synchronized.
        self._cpu_group: Any = None if store is None else dist.new_group(backend="gloo", timeout=wait)

    @property
    def index(self) -> int:
        """The rank of this process, from 0."""
        return self.process.rank

    @property
    def count(self) -> int:
        """The number of processes."""
        return self.process.count

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0."""
        return self.process.is_first

    @property
    def is_alone(self) -> bool:
        """Whether there are no other processes."""
        return self.process.is_alone

    def slice_of(self, count: int) -> range:
        """Return this process's contiguous share of 0..count - 1; shares differ in length by at most one."""
        return range(count * self.index // self.count, count * (self.index + 1) // self.count)

    def next_tasks(self, count: int) -> Iterator[int]:
        """Yield tasks out of 0..count - 1 that no other process has taken; faster processes get more."""
        if self._store is None:
            yield from range(count)
            return
        self._queues += 1
        queue = f"queue/{self._queues}"
        while True:
            with guarded():
                number = self._store.add(queue, 1) - 1
            if number >= count:
                return
            yield number

    def round_robin(self, items: Iterable[T]) -> Iterator[T]:
        """Return every count-th item, starting at this process's rank."""
        return itertools.islice(items, self.index, None, self.count)

    def wrap_ddp(self, network: nn.Module, device: torch.device) -> nn.Module:
        """Wrap a network in DistributedDataParallel and copy rank 0's weights to all; alone, return it unchanged."""
        if self.is_alone:
            return network
        devices = [device] if device.type == "cuda" else None
        # For a 1 x 1 kernel both memory layouts are the same, whatever its strides are called.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        with guarded(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*broadcast_buffers. is deprecated")  # its successor is not in 2.11
            # The network's tables are the same everywhere: no need to send them with every step.
            return DistributedDataParallel(
                network, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True
            )

    def sum(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over all processes, in place, and return it."""
        if not self.is_alone:
            with guarded():
                dist.all_reduce(tensor)
        return tensor

    def all_max(self, *values: int | bool) -> tuple[int, ...]:
        """Return the maximum of each value over all processes; for booleans, whether any is true."""
        if self.is_alone:
            return tuple(map(int, values))
        maxima = torch.tensor(list(map(int, values)))
        with guarded():
            dist.all_reduce(maxima, dist.ReduceOp.MAX, group=self._cpu_group)
        return tuple(maxima.tolist())

    def barrier(self) -> None:
        """Wait for the others, however long they take; raises LostError if one of them has ended."""
        if self._cpu_group is None:
            return
        options = dist.BarrierOptions()
        options.timeout = ENDLESS
        with guarded():
            meeting = self._cpu_group.barrier(options)
            for _ in pauses():  # its own wait ignores Ctrl-C
                if meeting.is_completed():
                    break
            meeting.wait()  # raises if a process is gone

    def on_first(self, work: Callable[[], T]) -> T:
        """Run `work` on rank 0 only and return its result, which must be JSON, to all."""
        if self.is_alone:
            return work()
        result = work() if self.is_first else None
        return self.broadcast_json(result)

    def broadcast(self, content: bytes) -> bytes:
        """Return rank 0's content to all; the others' is ignored."""
        if self.is_alone:
            return content
        self.barrier()  # one process may have much more to do before this than another
        length = torch.tensor([len(content)])
        with guarded():
            dist.broadcast(length, 0, group=self._cpu_group)
            data = _tensor(content) if self.is_first else torch.empty(int(length), dtype=torch.uint8)
            dist.broadcast(data, 0, group=self._cpu_group)
        return data.numpy().tobytes()

    def broadcast_json(self, value: Any) -> Any:
        """Return rank 0's JSON value to all."""
        return value if self.is_alone else json.loads(self.broadcast(json.dumps(value).encode()))

    def broadcast_tensors(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return rank 0's named tensors to all, on the CPU."""
        if self.is_alone:
            return tensors
        return safetensors.torch.load(self.broadcast(_packed(tensors) if self.is_first else b""))

    def gather(self, content: bytes) -> list[bytes]:
        """Return every process's content, by rank, on rank 0; an empty list on the others.

        Waits no longer than for a training step: call `barrier` first if the amount of work differs.
        """
        if self.is_alone:
            return [content]
        lengths = torch.zeros(self.count, dtype=torch.int64)
        lengths[self.index] = len(content)
        contents = [content]
        with guarded():
            dist.all_reduce(lengths, group=self._cpu_group)
            if not self.is_first:
                dist.send(_tensor(content), 0, group=self._cpu_group)
                return []
            for rank in range(1, self.count):
                received = torch.empty(int(lengths[rank]), dtype=torch.uint8)
                dist.recv(received, rank, group=self._cpu_group)
                contents.append(received.numpy().tobytes())
        return contents

    def gather_json(self, value: Any) -> list[Any]:
        """Return every process's JSON value, by rank, on rank 0; an empty list on the others."""
        return [value] if self.is_alone else [json.loads(text) for text in self.gather(json.dumps(value).encode())]

    def gather_tensors(self, tensors: Mapping[str, Tensor]) -> list[Mapping[str, Tensor]]:
        """Return every process's named tensors, on the CPU, on rank 0; an empty list on the others."""
        if self.is_alone:
            return [tensors]
        return [safetensors.torch.load(content) for content in self.gather(_packed(tensors))]

    def one_process_first(self, work: Callable[[], T]) -> T:
        """Run work that fills a cache: one process per machine goes first, and the others find the cache.

        Raises:
            LostError: the work failed in the process that went first.
        """
        if self._store is None:
            return work()
        self._turns += 1
        key = f"turn/{self.process.node}/{socket.gethostname()}/{self._turns}"  # some launchers leave out the node
        if self.process.local == 0:
            outcome = "failed"
            try:
                result = work()
                outcome = "done"
            finally:
                with guarded():
                    self._store.set(key, outcome)
            return result
        with guarded():
            await_key(self._store, key)
            if self._store.get(key) != b"done":
                raise LostError("Another process of this job could not prepare the data that all of them need.")
        return work()

    def check_same_everywhere(self, settings: Mapping[str, Any]) -> None:
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
        """Report that this process is done; rank 0 then waits up to LEAVE_SECONDS for the others."""
        if self._store is None:
            return
        deadline = time.monotonic() + LEAVE_SECONDS
        with contextlib.suppress(RuntimeError):  # the store is gone, and so are the others
            gone = self._store.add("parted", 1)
            while self.is_first and gone < self.count and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
                gone = self._store.add("parted", 0)

    def is_news(self, message: str) -> bool:
        """Return whether no other process has reported this message yet; if so, no other will."""
        if self._store is None:
            return process_info().is_first
        key = f"reported/{hashlib.blake2b(message.encode(), digest_size=16).hexdigest()}"
        with contextlib.suppress(RuntimeError):
            return self._store.add(key, 1) == 1
        return self.is_first


ALONE = Group(ProcessInfo())
_joined = ALONE


def join(device: torch.device) -> Group:
    """Return the group of this process's job; the first call meets the other processes.

    Raises:
        LostError: the others do not arrive in time.
        UsageError: COLDDIFF_TIMEOUT is invalid.
    """
    process = process_info()
    if process.is_alone or not _joined.is_alone:
        return _joined
    with guarded():
        _switch(Group(process, *meet(device)))
    return _joined


def current() -> Group:
    """Return the group that this process has joined, or ALONE."""
    return _joined


def _switch(group: Group) -> Group:
    """Make a group the current one and return the one before."""
    global _joined
    before, _joined = _joined, group
    environment.register(group)
    return before


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Act as a process that runs alone while the context lasts."""
    before = _switch(ALONE)
    try:
        yield
    finally:
        _switch(before)


def leave() -> None:
    """Leave the group; rank 0 waits a while for the others, which may still need its store.

    Connections are left to the system: torch sometimes aborts the process when it closes them.
    """
    _switch(ALONE).leave()


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Turn torch's errors about lost or unreachable processes into ours."""
    try:
        yield
    except RuntimeError as error:
        process, text = process_info(), str(error)
        if process.is_alone or not (isinstance(error, dist.DistError) or any(sign in text for sign in LOST)):
            raise
        who = f"Process {process.rank} of {process.count}"
        if isinstance(error, dist.DistBackendError) and not any(sign in text for sign in GONE):
            raise MachineError(f"{who}: {_brief(error)}.", "For details, set NCCL_DEBUG=WARN.") from error
        what = f"{who} has lost the others: {_brief(error)}."
        raise LostError(what, "The last checkpoint and all complete files are kept.") from error


def _brief(error: RuntimeError) -> str:
    """Return the first sentence of torch's message without the source location, or NCCL's last error."""
    first, *more = str(error).splitlines() or [""]
    if "Last error:" in more[:-1]:
        first = more[more.index("Last error:") + 1]
    return re.sub(r"^\[[^]]*\] ", "", first.strip()).partition(". ")[0].rstrip(". ") or type(error).__name__


def _tensor(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)


def _packed(tensors: Mapping[str, Tensor]) -> bytes:
    return safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})

"""Two hosts on this machine: network namespaces at a switch that can forget one, with cables that can be slow."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ADDRESSES = ("10.77.0.1", "10.77.0.2")
PORT = 29500
NAME = "colddiff-"  # of namespaces; the number of the process that made them follows
PATIENCE = "read_timeout=900"  # seconds that an agent waits for the other's store, 60 if left out
CABLE = "cdcable"  # what each host's network card is called, with the host's number
ROOT = Path(__file__).parents[2]


def missing() -> str:
    """Return why there can be no hosts here; empty where there can."""
    if os.name != "posix" or os.geteuid() != 0:
        return "needs root, for network namespaces"
    if not shutil.which("ip"):
        return "needs `ip`, of iproute2"
    name = f"colddiff-try-{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
    return "needs network namespaces, which are refused" if tried.returncode else ""


class Hosts:
    """Two hosts, 0 and 1, with an address each; both see the same files."""

    def __init__(self, name: str) -> None:
        self.names = [f"{name}-{number}" for number in range(2)]
        self.switch = f"{name}-switch"

    def run(self, host: int, *words: str) -> str:
        """Run a command on a host to its end; returns what it said."""
        command = ["ip", "netns", "exec", self.names[host], *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def start(self, host: int, words: Sequence[str], log: Path, **environment: str) -> subprocess.Popen[bytes]:
        """Start a program on a host, its words in a file."""
        command = ["ip", "netns", "exec", self.names[host], sys.executable, *words]
        told = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
        with log.open("ab") as file:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=told, start_new_session=True
            )

    def torchrun(
        self, host: int, words: Sequence[str], log: Path, conf: str = PATIENCE, **environment: str
    ) -> subprocess.Popen[bytes]:
        """Start torchrun's agent on a host, one process a host, for `colddiff` with these words."""
        agent = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "3"]
        agent += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{ADDRESSES[0]}:{PORT}", "--rdzv-id", "hosts"]
        # These hosts have no names by which the first would know itself.
        agent += ["--local-addr", ADDRESSES[host], "--rdzv-conf", f"is_host={str(host == 0).lower()},{conf}"]
        told = {"GLOO_SOCKET_IFNAME": f"{CABLE}{host}", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"} | environment
        return self.start(host, [*agent, "-m", "colddiff_cli", *words], log, **told)

    def pull(self) -> None:
        """Have the switch forget the second host: packets are lost, and no host is told so."""
        _ip("-n", self.switch, "link", "set", "port1", "nomaster")

    def plug(self) -> None:
        """Have the switch know it again."""
        _ip("-n", self.switch, "link", "set", "port1", "master", "bridge")

    def switch_off(self, host: int) -> None:
        """End all that runs on a host, at once."""
        _kill(self.names[host])

    def slow(self, megabits: int) -> None:
        """Have the cable carry so many Mbit/s each way."""
        for host in range(2):
            rate = ["rate", f"{megabits}mbit", "burst", "256kb", "latency", "200ms"]
            self.run(host, "tc", "qdisc", "replace", "dev", f"{CABLE}{host}", "root", "tbf", *rate)

    def sent(self, host: int) -> int:
        """Return how many bytes a host has sent over the cable."""
        return int(self.run(host, "cat", f"/sys/class/net/{CABLE}{host}/statistics/tx_bytes"))


@contextlib.contextmanager
def two_hosts() -> Iterator[Hosts]:
    """Make two hosts; whatever happens, they are gone afterwards, and what still runs there with them."""
    for name in _namespaces():
        if name.startswith(NAME) and not Path(f"/proc/{name.split('-')[1]}").exists():
            _remove(name)  # whoever made it was killed over it
    made = Hosts(f"{NAME}{os.getpid()}-{time.monotonic_ns() % 10**6}")
    try:
        for name in (made.switch, *made.names):
            _ip("netns", "add", name)
        switch = ["-n", made.switch, "link"]
        _ip(*switch, "add", "bridge", "type", "bridge")
        _ip(*switch, "set", "bridge", "up")
        for host, address in enumerate(ADDRESSES):
            name, card, port = made.names[host], f"{CABLE}{host}", f"port{host}"
            _ip("-n", name, "link", "add", card, "type", "veth", "peer", "name", port, "netns", made.switch)
            _ip(*switch, "set", port, "up", "master", "bridge")
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "address", "add", f"{address}/24", "dev", card)
            _ip("-n", name, "link", "set", card, "up")
        yield made
    finally:
        for name in (*made.names, made.switch):
            _remove(name)


def _namespaces() -> list[str]:
    told = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False).stdout
    return [line.split()[0] for line in told.splitlines()]


def _kill(namespace: str) -> None:
    found = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False)
    for number in found.stdout.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(number), signal.SIGKILL)


def _remove(namespace: str) -> None:
    _kill(namespace)
    subprocess.run(["ip", "netns", "delete", namespace], capture_output=True, check=False)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], capture_output=True, check=True)


def end(*processes: subprocess.Popen[Any], patience: float) -> list[int]:
    """Wait for programs to end; returns their exit codes."""
    deadline = time.monotonic() + patience
    return [process.wait(max(1.0, deadline - time.monotonic())) for process in processes]

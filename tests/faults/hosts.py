"""Two simulated hosts: network namespaces on a switch that can drop one, with cables of any speed."""

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
NAME = "colddiff-"  # prefix of namespaces; the process number of their creator follows
RENDEZVOUS_CONF = "read_timeout=900"  # seconds an agent waits for the other's store; the default is 60
CABLE = "cdcable"  # name of each host's network card, with the host's number
ROOT = Path(__file__).parents[2]


def missing() -> str:
    """Return why hosts cannot be simulated here, empty if they can."""
    if os.name != "posix" or os.geteuid() != 0:
        return "needs root, for network namespaces"
    if not shutil.which("ip"):
        return "needs `ip`, of iproute2"
    name = f"colddiff-try-{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
    return "needs network namespaces, which are refused" if tried.returncode else ""


class Hosts:
    """Two hosts, 0 and 1, each with an address; they share the file system."""

    def __init__(self, name: str) -> None:
        self.names = [f"{name}-{number}" for number in range(2)]
        self.switch = f"{name}-switch"

    def run(self, host: int, *words: str) -> str:
        """Run a command on a host to its end; return its output."""
        command = ["ip", "netns", "exec", self.names[host], *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def start(self, host: int, words: Sequence[str], log: Path, **environment: str) -> subprocess.Popen[bytes]:
        """Start a Python program on a host, its output in a file."""
        command = ["ip", "netns", "exec", self.names[host], sys.executable, *words]
        variables = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
        with log.open("ab") as file:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=variables, start_new_session=True
            )

    def torchrun(
        self, host: int, words: Sequence[str], log: Path, conf: str = RENDEZVOUS_CONF, **environment: str
    ) -> subprocess.Popen[bytes]:
        """Start torchrun's agent on a host, with one process, for `colddiff` with these arguments."""
        agent = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "3"]
        agent += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{ADDRESSES[0]}:{PORT}", "--rdzv-id", "hosts"]
        # These hosts have no names, by which the first would recognize itself.
        agent += ["--local-addr", ADDRESSES[host], "--rdzv-conf", f"is_host={str(host == 0).lower()},{conf}"]
        variables = {"GLOO_SOCKET_IFNAME": f"{CABLE}{host}", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"} | environment
        return self.start(host, [*agent, "-m", "colddiff_cli", *words], log, **variables)

    def pull(self) -> None:
        """Unplug the second host at the switch: packets are lost, and neither host sees an error."""
        _ip("-n", self.switch, "link", "set", "port1", "nomaster")

    def plug(self) -> None:
        """Plug the second host in again."""
        _ip("-n", self.switch, "link", "set", "port1", "master", "bridge")

    def switch_off(self, host: int) -> None:
        """Kill everything that runs on a host."""
        _kill(self.names[host])

    def slow(self, megabits: int) -> None:
        """Limit the cable to a rate in Mbit/s each way."""
        for host in range(2):
            rate = ["rate", f"{megabits}mbit", "burst", "256kb", "latency", "200ms"]
            self.run(host, "tc", "qdisc", "replace", "dev", f"{CABLE}{host}", "root", "tbf", *rate)

    def sent(self, host: int) -> int:
        """Return how many bytes a host has sent over the cable."""
        return int(self.run(host, "cat", f"/sys/class/net/{CABLE}{host}/statistics/tx_bytes"))


@contextlib.contextmanager
def two_hosts() -> Iterator[Hosts]:
    """Yield two hosts; remove them afterwards in any case, with everything that still runs there."""
    for name in _namespaces():
        if name.startswith(NAME) and not Path(f"/proc/{name.split('-')[1]}").exists():
            _remove(name)  # its creator was killed
    pair = Hosts(f"{NAME}{os.getpid()}-{time.monotonic_ns() % 10**6}")
    try:
        for name in (pair.switch, *pair.names):
            _ip("netns", "add", name)
        switch = ["-n", pair.switch, "link"]
        _ip(*switch, "add", "bridge", "type", "bridge")
        _ip(*switch, "set", "bridge", "up")
        for host, address in enumerate(ADDRESSES):
            name, card, port = pair.names[host], f"{CABLE}{host}", f"port{host}"
            _ip("-n", name, "link", "add", card, "type", "veth", "peer", "name", port, "netns", pair.switch)
            _ip(*switch, "set", port, "up", "master", "bridge")
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "address", "add", f"{address}/24", "dev", card)
            _ip("-n", name, "link", "set", card, "up")
        yield pair
    finally:
        for name in (*pair.names, pair.switch):
            _remove(name)


def _namespaces() -> list[str]:
    listing = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False).stdout
    return [line.split()[0] for line in listing.splitlines()]


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


def end(*processes: subprocess.Popen[Any], timeout: float) -> list[int]:
    """Wait for programs to end; return their exit codes."""
    deadline = time.monotonic() + timeout
    return [process.wait(max(1.0, deadline - time.monotonic())) for process in processes]

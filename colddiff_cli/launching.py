"""Commands that several processes of this machine carry out together: `--nproc` starts torchrun's own agent."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import uuid
from collections.abc import Sequence

from colddiff_core.errors import MachineError, counted

INTERRUPTED = 130
LONG = 10**6  # seconds: how long a process may take to save its work


def launch(arguments: Sequence[str], processes: int, restarts: int, remedy: str) -> int:
    """Run `colddiff` with these arguments as so many processes; return the exit code, 130 where a signal ended them.

    Where one fails, all are ended and started again, so many times. What they say goes where this process's words go.
    Raises MachineError, with `remedy`, where the system ended one of them.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    _prepare(processes)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=restarts,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "colddiff_cli", *arguments)
    except SignalException:
        return INTERRUPTED
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:  # it has said why
            return int(failure.exitcode)
        by = signal.Signals(-failure.exitcode).name
        what = f"Process {rank} of {processes} was ended by {by}"
        raise MachineError(
            f"{what}, after {counted(restarts, 'restart')}." if restarts else f"{what}.", remedy
        ) from None
    return 0


def _prepare(processes: int) -> None:
    """Set what the processes find in their environment, unless the user did; torch's own words on failures are ours."""
    from colddiff_core import devices

    for name in ("torch.distributed.elastic", "torch.distributed.launcher"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, devices.processors() // processes)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(LONG))
    # All of them are here: the machine's own name may lead nowhere.
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    if loopback:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)

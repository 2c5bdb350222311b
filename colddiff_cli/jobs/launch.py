"""Run a command in several processes of this machine: `--nproc` starts torchrun's agent."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from colddiff_core.distributed.environment import process_info, processors
from colddiff_core.errors import ColddiffError, MachineError, UsageError
from colddiff_core.text import counted

if TYPE_CHECKING:
    from colddiff_core.distributed.group import Group

OPTION = "--nproc"
MIN_CPU_PROCESSES = 4  # allowed on any machine, to try things out
INTERRUPTED = 130
REMEDY = "If pictures were being written to a folder, run the same command with --resume to continue."
SHUTDOWN_SECONDS = 600  # for a process to save its work


class JobEnded(ColddiffError):  # noqa: N818 - the processes have printed the error
    """The launched processes failed and have printed why."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("")
        self.exit_code = exit_code


def share(context: typer.Context, processes: int | None, device: str, remedy: str = REMEDY) -> Group:
    """Join the group of processes that run this command.

    With --nproc, run the whole command in that many processes instead, and exit when they end.

    Args:
        context: Holds the command line.
        processes: The value of --nproc.
        device: The value of --device.
        remedy: Advice if the system kills a process.

    Raises:
        UsageError: --nproc is used in a process of a job, or it or the device does not suit this machine.
        MachineError: The system killed a process.
        JobEnded: The processes failed.
        typer.Exit: The processes have done the work.
    """
    check(processes)
    if processes is not None and processes > 1:
        check_machine(processes, device)
        if code := launch(remove_options(context.obj, OPTION), processes, 0, remedy):
            raise JobEnded(code)
        raise typer.Exit
    from colddiff_core import devices
    from colddiff_core.distributed import group

    return group.join(devices.choose(device))


def check(processes: int | None) -> None:
    """Check that --nproc is not used in a process of a job.

    Raises:
        UsageError: It is.
    """
    if processes and not process_info().is_alone:
        raise UsageError(
            f"{OPTION} starts torchrun, but this process is part of a job already.", f"Leave out {OPTION}."
        )


def check_machine(processes: int, device: str) -> None:
    """Check that this machine can run so many processes, each on a device.

    Raises:
        UsageError: There are too many processes, or the device is missing or a single one.
    """
    from colddiff_core import devices

    if ":" in device:
        raise UsageError(
            f"--device {device} is a single device, but {OPTION} needs one per process.", "Use --device cuda."
        )
    devices.choose(device)  # raises if it is missing
    count, what = devices.units(device)
    # Each takes some hundred megabytes, so too many would exhaust the machine. A GPU takes one.
    if processes > (count if what == "GPU" else max(MIN_CPU_PROCESSES, count)):
        raise UsageError(f"{OPTION} {processes}: this machine has {counted(count, what)}.", f"Use {OPTION} {count}.")


def check_alone(command: str, processes: int | None = None) -> None:
    """Check that a command for one process runs in one.

    Raises:
        UsageError: It is part of a job, or --nproc asks for several processes.
    """
    if (processes or 1) > 1:
        raise UsageError(f"{command} runs in one process.", f"Leave out {OPTION}.")
    process = process_info()
    if not process.is_alone:
        what = f"{command} runs in one process, and this is one of {process.count}."
        raise UsageError(what, "Run it without torchrun.")


def ignore_interrupts(ranks: Group) -> None:
    """Ignore further Ctrl-C in a process of a job: torchrun sends it again after the terminal did."""
    if not ranks.is_alone:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def remove_options(words: Sequence[str], *options: str) -> list[str]:
    """Return the words of a command line without these options and their values."""
    kept: list[str] = []
    left = iter(words)
    for word in left:
        if word == "--":
            return [*kept, word, *left]
        if word in options:
            next(left, None)
        elif word.partition("=")[0] not in options:
            kept.append(word)
    return kept


def program() -> tuple[str, ...]:
    """Return the words after `python` that run colddiff without importing modules from the current folder.

    They also do so in a checkout that is not installed: it is added to PYTHONPATH.
    """
    root = Path(__file__).parents[2]
    if root not in map(Path, sys.path[1:]):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    return "-P", "-m", "colddiff_cli"


def launch(arguments: Sequence[str], processes: int, restarts: int, remedy: str) -> int:
    """Run `colddiff` with these arguments in several processes; return the exit code, 130 after a signal.

    If one fails, all are stopped and restarted, up to `restarts` times. They print to the output of this process.

    Raises:
        MachineError: The system killed a process; the error suggests `remedy`.
    """
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    _prepare(processes)
    with tempfile.TemporaryDirectory() as log_folder:  # the agent requires one
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=restarts,
            logs_specs=DefaultLogsSpecs(log_dir=log_folder),
        )
        if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # under nohup
            config.signals_to_handle = config.signals_to_handle.replace("SIGHUP,", "")
        try:
            elastic_launch(config, sys.executable)(*program(), *arguments)
        except SignalException:
            return INTERRUPTED
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            if failure.exitcode > 0:  # it has printed why
                return int(failure.exitcode)
            cause = signal.Signals(-failure.exitcode).name
            after = f", after {counted(restarts, 'restart')}" if restarts else ""
            raise MachineError(f"Process {rank} of {processes} was killed by {cause}{after}.", remedy) from None
    return 0


def _prepare(processes: int) -> None:
    """Set the environment of the processes, unless the user did, and silence torch's messages about failures."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith(("torch.distributed.elastic", "torch.distributed.launcher")):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, processors() // processes)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SHUTDOWN_SECONDS))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # hides C++ traces of errors that are reported in one line
    # All processes are on this machine, whose host name may not resolve.
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    if loopback:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)

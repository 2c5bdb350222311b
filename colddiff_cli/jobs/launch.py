"""Commands that several processes of this machine carry out together: `--nproc` starts torchrun's own agent."""

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

from colddiff_core.distributed.environment import process_info
from colddiff_core.errors import ColddiffError, MachineError, UsageError
from colddiff_core.text import counted

if TYPE_CHECKING:
    from colddiff_core.distributed.group import Group

OPTION = "--nproc"
TRIED = 4  # processes that any machine may start on its processors, to try things out
INTERRUPTED = 130
PICTURES_KEPT = "Where whole pictures were written to a folder, the same call with --resume goes on."
LONG = 600  # seconds: how long a process may take to save its work


class JobEnded(ColddiffError):  # noqa: N818 - they have told whatever was in error
    """Processes that were launched have ended otherwise than well, and have said why."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("")
        self.exit_code = exit_code


def share(context: typer.Context, processes: int | None, device: str, remedy: str = PICTURES_KEPT) -> Group:
    """Return the processes that carry out this command together, once this one has met the others.

    With --nproc that many processes do all that the command line asks for, and this one ends with them; `remedy` is
    said where the system ends one of them. Raises
    UsageError for --nproc in a process of a job, and as `devices.choose` does.
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
    """Raise UsageError for --nproc where there is a job already."""
    if processes and not process_info().is_alone:
        raise UsageError(f"{OPTION} starts torchrun, and this is a process of it.", f"Leave {OPTION} out.")


def check_machine(processes: int, device: str) -> None:
    """Raise UsageError for more processes than this machine is for, and for a device that not each can have."""
    from colddiff_core import devices

    if ":" in device:
        raise UsageError(f"--device {device} is one device, and {OPTION} is for several.", "Use --device cuda.")
    devices.choose(device)  # is it there?
    count, what = devices.units(device)
    # Each is a program of some hundred megabytes: a thousand would take the machine. A GPU takes one.
    if processes > (count if what == "GPU" else max(TRIED, count)):
        raise UsageError(f"{OPTION} {processes}: this machine has {counted(count, what)}.", f"Use {OPTION} {count}.")


def check_alone(command: str, processes: int | None = None) -> None:
    """Raise UsageError where a command that is for one process is a process of a job, or is to be of several."""
    if (processes or 1) > 1:
        raise UsageError(f"{command} is for one process.", f"Leave {OPTION} out.")
    here = process_info()
    if not here.is_alone:
        what = f"{command} is for one process, and this is one of {here.count}."
        raise UsageError(what, "Run it by itself, without torchrun.")


def ignore_interrupts(together: Group) -> None:
    """Have a process of a job take no second Ctrl-C: torchrun passes on what the terminal has sent to all."""
    if not together.is_alone:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def remove_options(words: Sequence[str], *options: str) -> list[str]:
    """Return a command line without some options and what follows each."""
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


def launch(arguments: Sequence[str], processes: int, restarts: int, remedy: str) -> int:
    """Run `colddiff` with these arguments as so many processes; return the exit code, 130 where a signal ended them.

    Where one fails, all are ended and started again, so many times. What they say goes where this process's words go.
    Raises MachineError, with `remedy`, where the system ended one of them.
    """
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    _prepare(processes)
    with tempfile.TemporaryDirectory() as place_of_logs:  # which the agent wants, and has nothing to write into
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=restarts,
            logs_specs=DefaultLogsSpecs(log_dir=place_of_logs),
        )
        if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # as nohup has it
            config.signals_to_handle = config.signals_to_handle.replace("SIGHUP,", "")
        try:
            # -P: a file of the user's that is called like a module is none of ours.
            elastic_launch(config, sys.executable)("-P", "-m", "colddiff_cli", *arguments)
        except SignalException:
            return INTERRUPTED
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            if failure.exitcode > 0:  # it has said why
                return int(failure.exitcode)
            by = signal.Signals(-failure.exitcode).name
            after = f", after {counted(restarts, 'restart')}" if restarts else ""
            raise MachineError(f"Process {rank} of {processes} was ended by {by}{after}.", remedy) from None
    return 0


def _prepare(processes: int) -> None:
    """Set what the processes find in their environment, unless the user did; torch's own words on failures are ours."""
    from colddiff_core import devices

    for name in list(logging.root.manager.loggerDict):
        if name.startswith(("torch.distributed.elastic", "torch.distributed.launcher")):
            logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    root = Path(__file__).parents[2]
    if root not in map(Path, sys.path[1:]):  # run from a checkout that is not installed
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, devices.processors() // processes)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(LONG))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else traces of what is told in a line
    # All of them are here: the machine's own name may lead nowhere.
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    if loopback:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)

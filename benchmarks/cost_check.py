"""Check the cost model of cost.py on two hosts: network namespaces with a rate-limited network between them.

The inputs of a prediction are measured separately: a step of one process on its half of the images, the bandwidth, and
the latency of a small message. Nothing is fitted to the predicted steps.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cost_model

sys.path.insert(0, str(cost_model.ROOT / "tests" / "faults"))
import hosts

BATCH, STEPS, WARMUP_STEPS = 16, 16, 4  # images per process; the first steps are not timed
SETTINGS = (
    "train.precision=float32",
    f"train.batch_size={BATCH}",
    f"train.steps={STEPS}",
    "train.checkpoint_every=1000",
    "train.sample_every=0",
    "train.log_every=1",
)
MESSAGE_BYTES, MESSAGES = 2**22, 50  # size of a timed large message, number of timed small ones
PORT = 29600
LINE = "{:>7} {:>8} {:>9} {:>22} {:>22} {:>7} {:>12} {:>12} {:>7}"
TITLES = (
    "Mbit/s",
    "carried",
    "message",
    "step, predicted, s",
    "measured, s",
    "error",
    "sent, MB",
    "measured, MB",
    "error",
)


def place(rank: int, count: int, port: int) -> dict[str, str]:
    """Return the environment variables that torchrun sets for a process."""
    variables = {"RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": "0", "GROUP_RANK": str(rank)}
    return variables | {"MASTER_ADDR": hosts.ADDRESSES[0], "MASTER_PORT": str(port)}


def words(run: Path, accumulate: int) -> list[str]:
    sets = [word for setting in (*SETTINGS, f"train.accumulate={accumulate}") for word in ("--set", setting)]
    return ["-m", "colddiff_cli", "train", "--preset", "digits-mask", "--out", str(run), "--device", "cpu", *sets]


def step_seconds(run: Path) -> float:
    """Return the mean seconds of a step after the warm-up, from the run's log."""
    elapsed = [json.loads(line)["elapsed"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    return (elapsed[-1] - elapsed[WARMUP_STEPS - 1]) / (STEPS - WARMUP_STEPS)


def alone(folder: Path) -> float:
    """Return the seconds of a step of one process on its half of the images, while another does the same.

    Both hosts are this machine, so their processes share its memory bandwidth.
    """
    environment = os.environ | {"PYTHONPATH": str(cost_model.ROOT), "OMP_NUM_THREADS": "1"}
    found = [folder / f"alone-{number}" for number in range(2)]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    running = [subprocess.Popen([sys.executable, *words(run, 1)], env=environment, **quiet) for run in found]
    if any(process.wait() for process in running):
        raise RuntimeError("one process alone could not train")
    return statistics.mean(map(step_seconds, found))


def both(pair: hosts.Hosts, folder: Path, name: str, command: list[str], port: int) -> str:
    """Run a program on both hosts to its end; return their output."""
    logs = [folder / f"{name}-{host}" for host in range(2)]
    for log in logs:
        log.unlink(missing_ok=True)
    running = []
    for host, log in enumerate(logs):
        card = {"GLOO_SOCKET_IFNAME": f"{hosts.CABLE}{host}"}
        running.append(pair.start(host, command, log, **place(host, 2, port), **card))
    codes = hosts.end(*running, timeout=300)
    output = "".join(log.read_text(errors="replace") for log in logs)
    if any(codes):
        raise RuntimeError(f"{name}: {codes}: {output[-2000:]}")
    return output


def try_link() -> None:
    """As one of two processes, measure the network with plain messages; the second prints the result."""
    import torch
    import torch.distributed as dist

    from colddiff_core.distributed import group

    job = group.join(torch.device("cpu"))
    content = torch.zeros(MESSAGE_BYTES, dtype=torch.uint8)
    times = []
    for _ in range(3):
        job.barrier()
        began = time.perf_counter()
        dist.recv(content, 0) if job.index else dist.send(content, 1)
        times.append(time.perf_counter() - began)
    small = []
    for _ in range(MESSAGES):
        began = time.perf_counter()
        job.barrier()
        small.append(time.perf_counter() - began)
    if job.index:
        print(
            json.dumps({"bandwidth": MESSAGE_BYTES / statistics.median(times), "agreement": statistics.median(small)})
        )
    group.leave()


def measure(pair: hosts.Hosts, folder: Path, megabits: int, number: int) -> dict[str, Any]:
    """Measure at one rate: the network, a step of one process, and a step of two."""
    pair.slow(megabits)
    port = PORT + 2 * number
    output = both(pair, folder, "link", [str(Path(__file__).resolve())], port)
    link = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
    single = alone(folder / str(number))
    before = pair.sent(1)
    run = folder / str(number) / "run"
    both(pair, folder, "run", words(run, 2), port + 1)
    newest = max((run / "checkpoints").iterdir())
    saved = {path.name: path.stat().st_size for path in newest.glob("*.safetensors")}
    sent = (pair.sent(1) - before) / STEPS
    return link | {"single": single, "step": step_seconds(run), "sent": sent, "checkpoint": sum(saved.values())}


def predicted(parameters: int, found: dict[str, Any]) -> float:
    """Return the predicted seconds of a step of two processes, which sum the loss in one more small message."""
    gradient = cost_model.FLOAT_BYTES * parameters
    waiting = cost_model.exposed(
        2, gradient, found["bandwidth"], cost_model.BACKWARD * found["single"], found["agreement"] / 2
    )
    return found["single"] + waiting + 2 * found["agreement"]


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f}..{max(values):.3f})"


def report(rates: list[int], rounds: int, path: Path | None) -> int:
    """Measure, print and save; return the exit status."""
    if missing := hosts.missing():
        print(missing, file=sys.stderr)
        return 1
    work = cost_model.count_work("digits-mask")
    print(f"digits-mask: {work.parameters:,} parameters, {BATCH} images a process; medians of {rounds}")
    print(LINE.format(*TITLES))
    rows, number = [], 0
    for megabits in rates:
        found = []
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as place, hosts.two_hosts() as pair:
                (Path(place) / str(number)).mkdir()
                found.append(measure(pair, Path(place), megabits, number))
            number += 1
        predictions = [predicted(work.parameters, one) for one in found]
        steps, sent = [one["step"] for one in found], statistics.median(one["sent"] for one in found)
        row = {
            "megabits": megabits,
            "found": found,
            "predicted": predictions,
            "sent": cost_model.ring_bytes(2, work.gradient),
        }
        rows.append(row)
        carried = statistics.median(8 * one["bandwidth"] / 1e6 for one in found)
        message = 1000 * statistics.median(one["agreement"] for one in found)
        error = statistics.median(predictions) / statistics.median(steps) - 1
        columns = (
            megabits,
            f"{carried:.0f}",
            f"{message:.2f} ms",
            spread(predictions),
            spread(steps),
            f"{100 * error:+.0f} %",
        )
        parts = (f"{row['sent'] / 1e6:.2f}", f"{sent / 1e6:.2f}", f"{100 * (row['sent'] / sent - 1):+.1f} %")
        print(LINE.format(*columns, *parts), flush=True)
    saved = rows[0]["found"][0]["checkpoint"]
    error = 100 * (work.checkpoint / saved - 1)
    print(f"checkpoint: predicted {work.checkpoint:,} bytes, written {saved:,} ({error:+.2f} %)")
    if path:
        results = {
            "parameters": work.parameters,
            "batch": BATCH,
            "steps": STEPS,
            "rows": rows,
            "checkpoint": work.checkpoint,
        }
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    try_link()

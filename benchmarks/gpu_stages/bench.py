"""What the stages of benchmarks/gpu.py share: device, deadline, timing, and where results go."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import statistics
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).parents[2]
COMMAND = ROOT / "benchmarks" / "gpu.py"
RESULTS = "results.jsonl"
SLEEP_CYCLES = 10_000_000  # keeps a GPU busy for some 5 ms while the CPU launches what is timed
Result = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class GpuBench:
    """The options of a stage.

    device: cuda or cpu; data: the folder above MNIST/raw, None for the built-in digits; out: results and pictures;
    work: runs, compiled code and unpacked files; began, deadline: as `time.time()`.
    """

    out: Path
    work: Path
    device: str = "cuda"
    is_quick: bool = False
    data: Path | None = None
    began: float = dataclasses.field(default_factory=time.time)
    deadline: float = math.inf

    @property
    def is_cuda(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def left(self) -> float:
        """Return the seconds until the deadline."""
        return self.deadline - time.time()

    def record(self, stage: str, name: str, **values: Any) -> None:
        """Append a line to the results and flush it to disk, in case the stage is killed."""
        line = json.dumps(
            {"stage": stage, "name": name, "at": round(time.time() - self.began, 1)} | values, default=str
        )
        with (self.out / RESULTS).open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        print(line, flush=True)

    def attempt(self, stage: str, name: str, work: Callable[[], Result | None], needs: float = 2.0) -> bool:
        """Run `work` and record what it returns or why it failed; skip it if fewer than `needs` seconds are left.

        Return whether it completed.
        """
        if self.left < needs:
            self.record(stage, name, skipped=f"{max(self.left, 0):.0f} s are left")
            return False
        try:
            found = work()
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)[-3:]
            where = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames]
            self.record(stage, name, failed=f"{type(error).__name__}: {str(error)[:600]}", where=where)
            return False
        if found is not None:
            self.record(stage, name, **found)
        return True

    def few(self, values: Sequence[Any]) -> Sequence[Any]:
        """Return all of the values, or only the first in a quick run."""
        return values[:1] if self.is_quick else values

    def pictures(self, channels: int) -> list[str]:
        """Return overrides that make a preset use the available data set."""
        if self.data is None:
            return ["data.dataset=digits", f"data.channels={channels}"]
        where = f"data.directory={json.dumps(str(self.data))}"
        return ["data.dataset=mnist", f"data.channels={channels}", where, "data.download=false"]

    def kernel_ms(self, work: Callable[[], object], repeats: int = 20) -> float:
        """Return the milliseconds that a call takes on the device, without the CPU's launch time."""
        import torch

        if not self.is_cuda:
            began = time.perf_counter()
            work()
            return 1e3 * (time.perf_counter() - began)
        for _ in range(3):
            work()
        times = []
        for _ in range(3):
            torch.cuda.synchronize()
            torch.cuda._sleep(SLEEP_CYCLES)
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            for _ in range(repeats):
                work()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end) / repeats)
        return statistics.median(times)

    def product_flops(self, dtype: torch.dtype) -> float:
        """Return the FLOP/s of a large matrix product: the rate that the device reaches, not that of its data sheet."""
        import torch

        side = 8192 if self.is_cuda and not self.is_quick else 64
        a, b = torch.randn(2, side, side, device=self.device).to(dtype)
        return 2 * side**3 / (self.kernel_ms(lambda: a @ b) / 1e3)


def apart(expected: torch.Tensor, found: torch.Tensor) -> Result:
    """Return the largest difference relative to the largest value or 1, and the share of differences above 1e-4."""
    import torch

    a, b = expected.double(), found.detach().cpu().double()
    off = (a - b).abs() / max(1.0, float(a.abs().max()))
    return {
        "most": float(off.max()),
        "share": float((off > 1e-4).double().mean()),
        "finite": bool(torch.isfinite(b).all()),
    }


def read(paths: Iterable[Path]) -> list[Result]:
    """Return the results in `results.jsonl` files and in files written by `--json`, in order."""
    lines: list[Result] = []
    for path in paths:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            lines += [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            lines += json.loads(text)["results"]
    return lines


def is_bad(line: Result) -> bool:
    """Return whether a result is an exception, a failed comparison, or a process with a bad exit code."""
    return "failed" in line or line.get("ok") is False or line.get("code", 0) not in (0, 130)  # 130: stopped on request

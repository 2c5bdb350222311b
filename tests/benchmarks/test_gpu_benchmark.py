"""benchmarks/gpu.py at tiny sizes on the CPU: its stages, deadlines, packing, and the table of its results."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import psutil
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import gpu
from gpu_stages import bench as gpu_bench
from gpu_stages import curves, equality, kernels, packing, report, speeds

from colddiff_core import degradations

IN_ORDER = ["setup", "equal", "curves", "speed", "train", "micro", "generate", "table"]


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", torch.backends.cudnn.deterministic)
    return gpu_bench.GpuBench(tmp_path, tmp_path, "cpu", is_quick=True)


def results(bench):
    return gpu_bench.read([bench.out / gpu_bench.RESULTS])


def test_the_cpu_equals_itself(bench):
    equality.run(bench)
    found = results(bench)
    assert len(found) > 25
    assert all(line["ok"] for line in found if "ok" in line)
    assert not any(map(gpu_bench.is_bad, found))
    kinds = {line["name"].split()[0] for line in found}
    assert {"blur", "prior", "network"} <= kinds


def test_another_value_on_the_device_is_found(bench, monkeypatch):
    blur = degradations.find("blur")
    original, calls = blur._degrade, iter(range(100))
    monkeypatch.setattr(blur, "_degrade", lambda *given: original(*given) + 1e-3 * (next(calls) % 2))
    found = equality.operators(bench, degradations.build("blur", steps=5), (2, 1, 8, 8))
    assert not found["ok"]
    assert "D several" in found["bad"]


def test_every_operator_is_compared(tmp_path):
    names = {name for name, _, _ in equality.cases(gpu_bench.GpuBench(tmp_path, tmp_path))}
    assert set(degradations.names()) <= names


def test_kernels_and_generation_are_timed(bench):
    kernels.run(bench)
    speeds.run_generations(bench)
    bench.attempt("speed", speeds.TRAININGS[0].label, lambda: speeds.training(bench, speeds.TRAININGS[0], 1e12))
    found = results(bench)
    assert not any(map(gpu_bench.is_bad, found)), found
    assert len(found) == 6
    assert found[-1]["images_per_second"] > 0
    assert "| layer norm, 64 channels, 8 px |" in report.section(found)


def test_training_twice_gives_the_same_weights(bench):
    assert curves.repeated(bench, "resnet") == {"ok": True}


def test_a_failure_is_a_result(bench):
    def fail():
        raise ValueError("no room")

    assert not bench.attempt("micro", "norm", fail)
    assert bench.attempt("micro", "stem", lambda: {"ms": 1.0})
    failed, well = results(bench)
    assert failed["failed"] == "ValueError: no room"
    assert failed["where"][-1].startswith("test_gpu_benchmark.py:")
    assert gpu_bench.is_bad(failed)
    assert well["ms"] == 1.0
    assert report.summary([failed, well])[1] == 1


def test_without_time_work_is_skipped(tmp_path):
    late = gpu_bench.GpuBench(tmp_path, tmp_path, "cpu", deadline=time.time() + 5)
    assert not late.attempt("speed", "compiled", lambda: pytest.fail("it ran"), needs=50)
    assert results(late)[0]["skipped"] == "5 s are left"
    gpu.measure(["train"], late, dict(os.environ))
    assert results(late)[1]["name"] == "stage"
    assert "skipped" in results(late)[1]


def test_a_stage_leaves_the_later_ones_what_they_need():
    assert gpu.seconds_for("speed", ["micro", "generate"], 1000) == gpu.STAGES["speed"].most
    assert gpu.seconds_for("speed", ["micro", "generate"], 200) == 200 - 15 - 60
    assert gpu.seconds_for("speed", ["micro", "generate"], 70) == 60
    assert gpu.seconds_for("speed", ["micro", "generate"], 50) == 0


def is_running(number):
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    return False


def test_a_stage_ends_at_its_deadline_with_what_it_started(tmp_path):
    started = tmp_path / "started"
    sleeper = "import time; time.sleep(60)"
    script = (
        f"import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', {sleeper!r}]);"
        f"open({str(started)!r}, 'w').write(str(p.pid)); time.sleep(60)"
    )
    began = time.time()
    assert gpu.supervised([sys.executable, "-c", script], dict(os.environ), time.time() + 2) == "out of time"
    assert time.time() - began < 20
    number = int(started.read_text())
    while is_running(number) and time.time() - began < 20:  # a killed process takes a moment to go
        time.sleep(0.05)
    assert not is_running(number)
    assert gpu.supervised([sys.executable, "-c", "raise SystemExit(3)"], dict(os.environ), time.time() + 60) == 3


def test_an_unknown_stage_is_named(capsys):
    assert gpu.main(["--stages", "equal,nothing"]) == 2
    assert "unknown stage nothing" in capsys.readouterr().err


def test_what_was_packed_is_unpacked(tmp_path, monkeypatch):
    """Pure Python packages are always unpacked, platform wheels only if the package is not installed."""
    packed, work = tmp_path / "packed", tmp_path / "work"
    (packed / packing.WHEELS).mkdir(parents=True)
    for name in ("pure-1-py3-none-any", "torch-1-cp312-abi3-any", "absent-1-cp312-abi3-any"):
        with zipfile.ZipFile(packed / packing.WHEELS / f"{name}.whl", "w") as wheel:
            wheel.writestr(f"{name.split('-')[0]}.py", "")
    (tmp_path / "data/MNIST/raw").mkdir(parents=True)
    (tmp_path / "data/MNIST/raw/train-images-idx3-ubyte").write_bytes(b"images")
    with tarfile.open(packed / packing.PICTURES, "w:gz") as archive:
        archive.add(tmp_path / "data/MNIST/raw", "MNIST/raw")
    data, site = packing.unpack(packed, work)
    assert (data / "MNIST/raw/train-images-idx3-ubyte").read_bytes() == b"images"
    assert sorted(path.name for path in site.iterdir()) == ["absent.py", "pure.py"]
    assert gpu.stage_environment(work, site)["PYTHONPATH"].startswith(f"{site}{os.pathsep}")


def made_up():
    """Return made-up results of a GPU, with one of everything that the table shows."""
    rate = {"step_ms": 4.0, "low_ms": 4.0, "high_ms": 4.0}
    lines = [
        ("setup", "options", {"device": "cuda", "quick": False}),
        ("setup", "versions", {"torch": "2.11.0"}),
        ("setup", "device", {"device": "Made-up GPU", "memory_gib": 140.0, "cuda": "13.0"}),
        ("setup", "at most", {"bf16_tflops": 700.0, "tf32_tflops": 400.0, "float32_tflops": 50.0, "copy_tbs": 4.0}),
        ("equal", "blur", {"ok": True, "most": 1e-6}),
        ("equal", "snow", {"ok": False, "bad": {"D T": {"share": 0.5}}, "most": 1.0}),
        ("curves", "convnext bf16 against the cpu", {"ok": True, "early": 0.0123, "late": -0.004}),
        ("speed", "mnist-blur eager", rate | {"images_per_second": 16000.0, "share_of_peak": 0.3, "ok": True}),
        ("speed", "mnist-blur plain", rate | {"images_per_second": 2000.0, "share_of_peak": 0.04}),
        ("speed", "mnist-blur CUDA graphs", {"failed": "RuntimeError: no room"}),
        ("speed", "celeba-blur-generate compiled", {"skipped": "3 s are left"}),
        (
            "train",
            "evaluation",
            {"n": 2000, "metrics": {"direct": {"rmse": 0.14, "ssim": 0.75}}, "paper": {"direct": {"rmse": 0.142}}},
        ),
        ("micro", "stage", {"code": "out of time", "seconds": 60.0}),
    ]
    return [{"stage": stage, "name": name, "at": 1.0} | values for stage, name, values in lines]


def test_the_table_shows_ratios_and_everything_that_failed():
    text = report.section(made_up())
    assert "Made-up GPU, 140 GiB, torch 2.11.0, CUDA 13.0. A matrix product reaches 700 in bfloat16" in text
    assert "- 1 of 2 comparisons of operators, samplers, priors and networks passed." in text
    assert "convnext bf16 against the cpu: 1.23% apart in the first steps, -0.40% later" in text
    assert "| `mnist-blur` | eager | 16,000 | x8 | 30.0% | 4 |" in text
    assert "| direct | 0.1400 | 0.7500 | 0.142 |  |" in text
    assert '- Failed: equal, snow: {"D T": {"share": 0.5}}' in text
    assert "- Failed: speed, mnist-blur CUDA graphs: RuntimeError: no room" in text
    assert "- Skipped for lack of time: speed, celeba-blur-generate compiled" in text
    assert '- Failed: micro, stage: {"code": "out of time"}' in text


def test_results_are_written_into_the_page(tmp_path, monkeypatch):
    for name in ("PAGE", "TABLE"):
        monkeypatch.setattr(report, name, tmp_path / getattr(report, name).name)
    monkeypatch.setattr(report, "ROOT", tmp_path)
    report.PAGE.write_text(f"before\n{report.BEGIN}old\n{report.END}\nafter\n")
    first, second = tmp_path / "results.jsonl", tmp_path / "more.json"
    first.write_text("".join(json.dumps(line) + "\n" for line in made_up()[:6]))
    second.write_text(json.dumps({"results": made_up()[6:]}))
    assert gpu.main(["--table", str(first), str(second)]) == 0
    assert report.PAGE.read_text() == f"before\n{report.BEGIN}{report.section(made_up())}{report.END}\nafter\n"
    assert report.current() == made_up()
    first.write_text(json.dumps(made_up()[0] | {"quick": True}) + "\n")
    with pytest.raises(SystemExit, match="not from --quick"):
        gpu.main(["--table", str(first)])


def test_the_page_shows_the_results_beside_it():
    assert f"{report.BEGIN}{report.section(report.current())}{report.END}" in report.PAGE.read_text(encoding="utf-8")


@pytest.mark.slow
def test_every_stage_runs(tmp_path):
    """Runs the command as on a GPU, at tiny sizes on the CPU."""
    out, answer = tmp_path / "out", tmp_path / "results.json"
    words = ["--device", "cpu", "--quick", "--out", str(out), "--work", str(tmp_path / "work"), "--json", str(answer)]
    command = [sys.executable, str(gpu_bench.COMMAND), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = json.loads(answer.read_text())["results"]
    assert [line for line in found if gpu_bench.is_bad(line)] == []
    assert done.returncode == 0, done.stderr
    assert found == gpu_bench.read([out / gpu_bench.RESULTS])
    assert [line["stage"] for line in found if line["name"] == "stage"] == IN_ORDER
    assert (out / "restored.png").exists()

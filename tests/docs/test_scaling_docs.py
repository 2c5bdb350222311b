"""docs/scaling.md: its recipes are valid and its tables are what the command prints."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from colddiff_cli.__main__ import run

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import cost
import cost_model

PAGE = (cost_model.ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
RATES = cost_model.Rates()
WORK = cost_model.WorkCost(
    "made-up", 128, parameters=10**7, flops=1e11, launches=1000, passed=32, severities=200,
    checkpoint_every=1000, sample_every=1000,
)  # fmt: skip


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """Return the words of every `colddiff` command line on the page, variables unexpanded."""
    command_lines = []
    for text in (*blocks("sh"), *blocks("bash")):
        for line in text.replace("\\\n", " ").splitlines():
            if match := re.search(r"(?:colddiff|-m colddiff_cli) (train .*?)(?:&|#|$)", line):
                command_lines.append(shlex.split(match[1]))
    return command_lines


def check_accepted(words: list[str], folder: Path) -> None:
    """Run a command line with --dry-run."""
    names = {"$DATA": "data", "DIR": "data", "/data": "data", "$RUN": "run", "/runs/faces": "run", "runs/faces": "run"}
    (folder / "data").mkdir(exist_ok=True)
    arguments = [str(folder / names[word]) if word in names else word for word in words]
    assert run([*arguments, "--dry-run"]) == 0, arguments


def test_every_command_line_is_valid(tmp_path, capsys):
    assert len(commands()) == 3
    for words in commands():
        check_accepted(words, tmp_path)
        assert "celeba-blur" in capsys.readouterr().out


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_the_script_is_valid_bash():
    (script,) = blocks("bash")
    finished = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
    assert finished.returncode == 0, finished.stderr


def test_the_manifest_is_valid_yaml(tmp_path, capsys):
    yaml = pytest.importorskip("yaml")
    (text,) = blocks("yaml")
    job = yaml.safe_load(text)
    assert job["kind"] == "PyTorchJob"
    pod = job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
    (container,) = pod["containers"]
    words = [*container["command"], *container["args"]]
    assert all(isinstance(word, str) for word in words)
    assert words[:3] == ["torchrun", "-m", "colddiff_cli"]
    check_accepted(words[3:], tmp_path)
    assert "celeba-blur" in capsys.readouterr().out
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_every_recipe_can_be_restarted():
    for text in (*blocks("bash"), *blocks("yaml")):
        assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE" in text
        assert "--continue" in text
        assert "read_timeout" in text


def test_the_tables_are_what_the_command_prints(capsys):
    assert cost.main([]) == 0
    printed = capsys.readouterr().out.strip()
    assert printed in PAGE, "run: python benchmarks/cost.py, and put what it prints into docs/scaling.md"
    assert max(map(len, printed.splitlines())) <= 125


def test_a_ring_sends_all_but_one_chunk_twice():
    assert cost_model.ring_bytes(1, 100) == 0
    assert cost_model.ring_bytes(2, 100) == 100
    assert cost_model.ring_bytes(4, 100) == 150
    assert cost_model.ring_bytes(512, 100) == pytest.approx(200, rel=0.01)


@pytest.mark.parametrize("size", [1, 2**20, 2**20 + 1, 26 * 2**20, 226_479_472])
def test_buckets_hold_all_gradients(size):
    assert sum(cost_model.buckets(size)) == size
    assert all(0 < part <= cost_model.BUCKET_BYTES for part in cost_model.buckets(size))


def test_only_the_last_bucket_is_not_hidden_by_the_backward_pass():
    gradient = 226e6
    whole = cost_model.ring_bytes(8, gradient) / 50e9
    assert cost_model.exposed(1, gradient, 50e9, 1.0) == 0
    assert cost_model.exposed(8, gradient, 50e9, 0.0) == pytest.approx(whole)
    last = cost_model.ring_bytes(8, cost_model.buckets(gradient)[-1]) / 50e9
    assert cost_model.exposed(8, gradient, 50e9, 10.0) == pytest.approx(last)
    between = [cost_model.exposed(8, gradient, 50e9, whole * part) for part in (0, 0.5, 1, 2, 4)]
    assert between == sorted(between, reverse=True)


def test_a_step_on_one_gpu_has_no_waiting():
    alone = cost_model.step(WORK, RATES, 1, 64)
    assert alone.waiting == alone.agreeing == alone.sent == 0
    assert alone.compute == pytest.approx(64 * 1e11 / (989e12 * 0.35), rel=0.01)
    assert cost_model.step(WORK, RATES, 1, 128).total == pytest.approx(2 * alone.total, rel=0.05)


def test_speedup_is_at_most_linear():
    alone = cost_model.step(WORK, RATES, 1, 2048)
    for count in cost_model.GPU_COUNTS[1:]:
        assert cost_model.step(WORK, RATES, count, 2048).rate < count * alone.rate


def test_large_steps_gain_less():
    assert cost_model.useful(4096, 4096) == 0.5
    assert cost_model.useful(1, 4096) == pytest.approx(1, abs=1e-3)


def test_the_work_matches_the_performance_page():
    """4.21 GFLOP per forward image at 32 pixels, 56.6 M parameters, 16 checkpoint bytes per parameter."""
    work = cost_model.count_work("mnist-blur")
    assert work.parameters == pytest.approx(56.6e6, rel=1e-3)
    assert work.flops / 3 == pytest.approx(4.21e9, rel=0.03)
    assert work.checkpoint == 16 * work.parameters


def test_a_run_does_not_differ_from_itself(tiny_run):
    import ranks

    differences = ranks.difference(tiny_run, tiny_run)
    assert differences["bit for bit"]
    assert differences["loss"] == differences["grad_norm"] == differences["weights, largest"] == 0
    assert ranks.rate(tiny_run) > 0


def test_two_hosts_are_predicted_from_one_process_and_the_network():
    import cost_check

    quick = {"bandwidth": 1e9, "agreement": 1e-4, "single": 0.1}
    assert 0.1 < cost_check.predicted(10**6, quick) < 0.11
    slow = quick | {"bandwidth": 1e6}
    assert cost_check.predicted(10**6, slow) == pytest.approx(0.1 + 4, rel=0.02)

"""The precision that commands run in and report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from small_memory import COMMANDS

from colddiff_cli.__main__ import run
from colddiff_core import devices, runs
from colddiff_core.config import toml
from colddiff_core.models import UNet


@pytest.fixture
def run_folder(tiny_run, in_folder):
    return shutil.copytree(tiny_run, in_folder / "runs" / "own")


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_use_and_report_the_requested_precision(command, run_folder, monkeypatch, capsys):
    dtypes = set()
    original = UNet.forward

    def forward(self, *arguments):
        dtypes.add(self.body_dtype)
        return original(self, *arguments)

    monkeypatch.setattr(UNet, "forward", forward)
    for word, dtype in (("bf16", torch.bfloat16), ("float32", torch.float32)):
        for option, in_run in (([], word), (["--precision", word], "float32" if word == "bf16" else "bf16")):
            table = runs.Run(run_folder).table()
            table["train"]["precision"] = in_run
            table["degradation"]["steps"] = 1  # a fifth of the work
            Path(run_folder, "run.toml").write_text(toml.dump(table))
            dtypes.clear()
            assert run([command, *COMMANDS[command], *option, "--json"]) == 0
            assert json.loads(capsys.readouterr().out)["precision"] == word
            assert dtypes == {dtype}
    assert run([command, *COMMANDS[command], "--precision", "auto", "--json"]) == 0
    assert dtypes >= {torch.bfloat16 if json.loads(capsys.readouterr().out)["precision"] == "bf16" else torch.float32}
    assert runs.Run(run_folder).config().train.precision == "bf16"


@pytest.mark.parametrize(
    ("flags", "limit", "expected"),
    [
        ("avx2 fma", "", torch.float32),
        ("avx512f avx512_bf16", "", torch.bfloat16),
        ("avx512f avx512_bf16", "avx2", torch.float32),
        ("avx512f amx_bf16", "AVX512_CORE", torch.float32),
        ("avx512f amx_bf16", "AVX512_CORE_AMX", torch.bfloat16),
        (None, "", torch.float32),
    ],
)
def test_auto_is_bfloat16_only_where_the_processor_computes_with_it(tmp_path, monkeypatch, flags, limit, expected):
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
    monkeypatch.setattr(devices, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert devices.body_dtype("auto", torch.device("cpu")) == expected
    assert devices.body_dtype("bf16", torch.device("cpu")) == torch.bfloat16

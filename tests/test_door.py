"""The library's public functions are enough to train, open and use a run."""

import subprocess
import sys
from pathlib import Path

import torch

README = Path(__file__).parents[1] / "README.md"


def test_the_lines_in_the_readme_train_restore_generate_and_evaluate(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = README.read_text(encoding="utf-8").partition("<!-- library -->\n```python\n")[2].partition("```")[0]
    assert 0 < len(code.strip().splitlines()) <= 12
    assert "._" not in code
    whole, small = (
        '"train.steps=20"',
        '"train.steps=20", "train.batch_size=4", "model.width=8", "model.multipliers=[1]", "degradation.steps=10"',
    )
    assert code.count(whole) == 1
    names: dict = {}
    exec(code.replace(whole, small), names)  # the same lines with less to compute
    assert names["run"].is_finished(20)
    assert names["trained"].step == 20
    for name in ("generated", "restored"):
        assert names[name].shape == (4, 1, 16, 16)
        assert names[name].dtype == torch.float32
        assert names[name].isfinite().all()
    assert list(names["figures"]) == ["degraded", "direct", "sampled", "naive"]
    assert names["figures"]["sampled"]["rmse"] > 0


def test_importing_the_library_loads_no_torch():
    code = "import sys, colddiff_core; assert colddiff_core.__version__; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

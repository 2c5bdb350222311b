"""Where weights come from: resuming with other settings, images or another operator needs permission."""

from __future__ import annotations

import itertools
import json
import shutil

import pytest
import torch
from conftest import make_trainer, seal
from safetensors.torch import load, save_file

from colddiff_cli.__main__ import run as command
from colddiff_core import degradations, experiment, runs
from colddiff_core.config import presets
from colddiff_core.datasets import ImageSet
from colddiff_core.degradations.blur import Blur
from colddiff_core.errors import ColddiffWarning, UsageError
from colddiff_core.inference import open_run
from colddiff_core.runs import checkpoint
from colddiff_core.training import provenance


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run of 6 steps that was stopped after the third; copy it."""
    path = tmp_path_factory.mktemp("stopped") / "run"
    trainer = make_trainer(path)
    for tick in trainer.steps():
        if tick.step == 3:
            trainer.stop()
    trainer.run.close()
    return path


@pytest.fixture
def own(stopped, tmp_path):
    return shutil.copytree(stopped, tmp_path / "run")


def rewrite(path, old, new):
    text = (path / "run.toml").read_text()
    assert old in text
    (path / "run.toml").write_text(text.replace(old, new))


SMALL = (
    "degradation.steps=4",
    "data.size=32",
    "model.inputs=plain",
    "model.consistent=false",
    "model.width=8",
    "sample.sampler=direct",
)
EDITS = [
    ("batch_size = 8", "batch_size = 4", "train.batch_size was 8 and is 4"),
    ("std = ", "std = 1.5 #", "degradation.std was"),
    ("seed = 0", "seed = 7", "train.seed was 0 and is 7"),
    ("flip = false", "flip = true", "data.flip was False and is True"),
    ('name = "blur"', 'name = "pixelate" #', "degradation.name was blur and is pixelate"),
    ("width = 8", "width = 12", "model.width was 8 and is 12"),
    ('stem = "float32"', 'stem = "tf32"', "model.stem was float32 and is tf32"),
]


@pytest.mark.parametrize(("old", "new", "words"), EDITS, ids=[words for *_, words in EDITS])
def test_a_changed_configuration_needs_permission(own, capsys, old, new, words):
    if new.startswith("name"):
        text = (own / "run.toml").read_text()
        for key in ("schedule", "std", "growth", "kernel_size", "padding", "final_mean"):
            text = "\n".join(line for line in text.split("\n") if not line.startswith(f"{key} ") or "constant" in line)
        head, tail = text.split("[degradation]")
        own_part, rest = tail.split("[model]")
        own_part = "\n".join(line for line in own_part.split("\n") if not line.startswith("schedule"))
        (own / "run.toml").write_text(f"{head}[degradation]{own_part}[model]{rest}".replace("steps = 5", "steps = 2"))
    rewrite(own, old, new)
    before = trace(own)
    assert command(["train", "--resume", str(own)]) == 2
    message = capsys.readouterr().err
    assert words in message
    assert "--allow-change" in message
    assert len(message.splitlines()) == 2
    assert trace(own) == before


@pytest.mark.parametrize("stem", ["float32", "split"])
def test_a_checkpoint_without_a_setting_was_trained_with_its_default(own, stem):
    config = runs.Run(own).config()
    built = experiment.build(config, 1, torch.device("cpu"))
    now = provenance.of(built, ImageSet(torch.zeros((4, 1, 32, 32), dtype=torch.uint8)))
    saved = json.loads(json.dumps(now))
    del saved["settings"]["model"]["stem"]
    now["settings"]["model"]["stem"] = stem
    expected = [] if stem == "float32" else ["model.stem was unset and is split"]
    assert provenance.changes(saved, now) == expected


def trace(path):
    """Everything but the lock, whose holder a try leaves behind."""
    return {file: file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file() and file.name != "lock"}


def test_a_free_change_is_kept_in_run_toml(own):
    assert command(["train", "--resume", str(own), "--set", "data.download=false", "--set", "train.keep=3"]) == 0
    config = runs.Run(own).config()
    assert (config.data.download, config.train.keep) == (False, 3)


def test_an_allowed_change_is_applied_recorded_and_kept(own, capsys):
    assert command(["train", "--resume", str(own), "--set", "train.batch_size=4"]) == 2
    assert "--allow-change" in capsys.readouterr().err
    assert command(["train", "--resume", str(own), "--set", "train.batch_size=4", "--allow-change"]) == 0
    run = runs.Run(own)
    resumed = next(event for event in run.events() if event["event"] == "resumed")
    assert resumed["changed"] == ["train.batch_size was 8 and is 4"]
    assert run.config().train.batch_size == 4
    state = json.loads((run.newest_checkpoint() / "state.json").read_text())
    assert state["provenance"]["settings"]["train"]["batch_size"] == 4


def test_a_network_of_another_shape_is_refused_even_so(own, capsys):
    assert command(["train", "--resume", str(own), "--set", "model.width=12", "--allow-change"]) == 2
    assert "another network" in capsys.readouterr().err
    assert runs.Run(own).config().model.width == 8


def test_allow_change_is_no_word_for_a_new_run(in_folder, capsys):
    assert command(["train", "--preset", "digits-blur", "--allow-change"]) == 2
    assert "--allow-change needs --resume" in capsys.readouterr().err


def test_settings_without_effect_on_weights_need_no_permission(own):
    rewrite(own, "lr = ", "lr = 0.5 #")
    rewrite(own, "checkpoint_every = 3", "checkpoint_every = 1")
    rewrite(own, "[degradation]\n", "[degradation]\nfinal_mean = false\n")  # the default, written out
    assert command(["train", "--resume", str(own)]) == 0


def test_an_operator_that_computes_something_else_is_reported(own, monkeypatch, capsys):
    degrade = Blur._degrade
    monkeypatch.setattr(Blur, "_degrade", lambda self, *rest: degrade(self, *rest) * 0.9)
    assert command(["train", "--resume", str(own)]) == 2
    assert "the operator computes different values" in capsys.readouterr().err


def test_an_older_checkpoint_without_provenance_is_resumed(own):
    state = runs.Run(own).newest_checkpoint() / "state.json"
    table = json.loads(state.read_text())
    for key in ("provenance", "sha256", "digest", "falls", "skipped_in_a_row"):
        del table[key]
    state.write_text(json.dumps(table))
    assert command(["train", "--resume", str(own)]) == 0


@pytest.mark.parametrize("odd", [7, [], {"settings": 3, "images": "x", "operator": [None], "second": []}])
def test_an_odd_provenance_is_no_reason_to_fail(odd):
    now = {"settings": {}, "images": {"count": 1, "digest": "a"}, "second": None, "operator": [0.5]}
    assert provenance.changes(odd, now) == []


def test_traces_distinguish_operators_and_their_settings():
    built, found = {}, {}
    for name in sorted({*degradations.names()} - {"animorph"}):
        config = presets.load("celeba-blur-small", [f"degradation.name={name}", *SMALL])
        built[name] = experiment.build(config, 3, torch.device("cpu"))
        found[name] = provenance._traces(built[name])
        assert found[name] == provenance._traces(built[name])
    for one, other in itertools.product(found, repeat=2):
        assert provenance._agreement(found[one], found[other]) is (one == other), (one, other)


def test_a_digest_of_a_large_set_covers_its_whole_range():
    pixels = torch.arange(100, dtype=torch.uint8).view(100, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()
    whole = ImageSet(pixels).digest()
    assert ImageSet(pixels).digest(100) == ImageSet(pixels).digest(1000) == whole
    assert ImageSet(pixels).digest(10) != whole
    last = pixels.clone()
    last[90] += 1
    assert ImageSet(last).digest(10) != ImageSet(pixels).digest(10)


def test_weights_under_a_changed_run_toml_are_used_with_a_warning(tiny_run, tmp_path):
    copy = shutil.copytree(tiny_run, tmp_path / "run")
    rewrite(copy, "std = ", "std = 1.5 #")
    with pytest.warns(ColddiffWarning, match=r"run.toml was changed: the weights were trained with degradation.std"):
        open_run.open_run(runs.Run(copy), device="cpu")


def test_numbers_that_are_not_finite_are_not_used(tiny_run, tmp_path):
    copy = shutil.copytree(tiny_run, tmp_path / "run")
    newest = runs.Run(copy).newest_checkpoint() / "ema.safetensors"
    tensors = load(newest.read_bytes())
    next(iter(tensors.values())).view(-1)[0] = torch.nan
    save_file(tensors, newest)
    seal(newest)
    with pytest.warns(ColddiffWarning, match="step-000006 is damaged; using the weights of step 3"):
        step = open_run.open_run(runs.Run(copy), device="cpu").step
    assert step == 3


def test_where_no_checkpoint_is_whole_that_is_said(tiny_run, tmp_path):
    copy = shutil.copytree(tiny_run, tmp_path / "run")
    for path in runs.Run(copy).checkpoints():
        (path / "ema.safetensors").write_bytes(b"x")
    with pytest.raises(UsageError, match="no other checkpoint is intact"):
        open_run.open_run(runs.Run(copy), device="cpu")


def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged(tiny_run, tmp_path, monkeypatch):
    copy = shutil.copytree(tiny_run, tmp_path / "run")
    read = checkpoint.read_ordinary

    def closed(path):
        if path.name == "ema.safetensors":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(checkpoint, "read_ordinary", closed)
    with pytest.raises(UsageError, match=r"Cannot read .*step-000006.*Permission denied"):
        open_run.open_run(runs.Run(copy), device="cpu")


def test_it_fits_a_checkpoint(own):
    state = json.loads((runs.Run(own).newest_checkpoint() / "state.json").read_text())
    recorded = state["provenance"]
    assert set(recorded) == {"settings", "images", "second", "operator"}
    assert recorded["images"]["count"] > 1000
    assert len(json.dumps(recorded)) < 4000


def test_resuming_a_finished_run_writes_its_missing_last_line(own_run):
    path = own_run
    sheet = (path / "samples" / "step-000006.png").read_bytes()
    (path / "samples" / "step-000006.png").unlink()
    lines = (path / "events.jsonl").read_text().splitlines()
    (path / "events.jsonl").write_text("\n".join(lines[:-2]) + "\n")
    assert command(["train", "--resume", str(path)]) == 0
    assert (path / "samples" / "step-000006.png").read_bytes() == sheet
    assert runs.Run(path).events()[-1]["event"] == "finished"
    assert command(["train", "--resume", str(path)]) == 2

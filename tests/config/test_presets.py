"""Presets: what they resolve to, and the errors of wrong ones."""

from __future__ import annotations

import shutil
import tomllib

import pytest

from colddiff_core import datasets, degradations, experiment, runs
from colddiff_core.config import presets, toml
from colddiff_core.errors import UsageError
from colddiff_core.inference import open_run
from colddiff_core.sampling import SAMPLERS


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_can_be_built(name):
    config = presets.load(name)
    op = degradations.build(config.degradation.name, **config.degradation.parameters)
    assert op.has_inverse or config.model.inputs == "plain"
    assert config.description
    assert config.data.dataset in datasets.names()
    assert config.sample.sampler in SAMPLERS
    assert config.data.size % 2 ** (len(config.model.multipliers) - 1) == 0


@pytest.mark.parametrize("name", presets.names())
def test_the_written_form_reads_back_the_same(name):
    config = presets.load(name)
    table = tomllib.loads(toml.dump(config.to_table()))
    assert presets.from_table(table, "run.toml") == config


def test_the_papers_mnist_blur():
    config = presets.load("mnist-blur")
    assert config.degradation.parameters["steps"] == 40
    assert (config.degradation.parameters["std"], config.degradation.parameters["kernel_size"]) == (7.0, 11)
    assert (config.train.lr, config.train.batch_size, config.train.accumulate) == (2e-5, 32, 2)
    assert (config.train.ema_decay, config.train.ema_every, config.train.steps) == (0.995, 10, 700_000)
    assert config.model.inputs == "plain"
    assert config.paper["direct"] == {"rmse": 0.142, "ssim": 0.757, "fid": 5.10}


def test_overrides_are_typed():
    config = presets.load(
        "digits-blur", ["train.lr=1", "model.multipliers=[1, 3]", "data.directory=/some/where", "degradation.std=2"]
    )
    assert config.train.lr == 1.0
    assert isinstance(config.train.lr, float)
    assert config.model.multipliers == (1, 3)
    assert config.data.directory == "/some/where"
    assert config.degradation.parameters["std"] == 2


def test_another_operator_starts_from_its_own_defaults():
    by_file = presets.load("digits-noise").degradation
    assert by_file.parameters == {"steps": 50, "schedule": "cosine"}
    by_override = presets.load("digits-blur", ["degradation.name=noise", "degradation.steps=9"]).degradation
    assert (by_override.name, by_override.parameters) == ("noise", {"steps": 9})
    turned_about = presets.load("digits-blur", ["degradation.steps=9", "degradation.name=noise"]).degradation
    assert turned_about == by_override


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.stps=3", "Did you mean 'steps'"),
        ("tran.steps=3", "Did you mean 'train'"),
        ("train.steps=many", "not a whole number"),
        ("train.steps=0", "at least 1"),
        ("train.lr=nan", "not finite"),
        ("train.lr=true", "not a number"),
        ("model.inputs=both", "plain, inverse"),
        ("model.multipliers=3", "list of whole numbers"),
        ("model.multipliers=[]", "list of whole numbers"),
        ("data.flip=1", "true or false"),
        ("steps=3", "section.key=value"),
        ("train.steps", "section.key=value"),
    ],
)
def test_a_bad_override_is_named(override, words):
    with pytest.raises(UsageError) as refusal:
        presets.load("digits-blur", [override])
    assert f"--set {override}" in str(refusal.value)
    assert words in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[trian]\nsteps = 3", "Did you mean 'train'"),
        ("[train]\nstep = 3", "Did you mean 'steps'"),
        ("train = 3", "not a table"),
        ("[train", "not valid TOML"),
        ('extends = "mnist-blur-small"', "itself extends"),
        ("extends = 3", "not a preset's name"),
        ("name = 3", "name = 3 is not text"),
        ("description = [1]", "description = [1] is not text"),
        ('name = "../../evil"', "plain name"),
        ("paper = 3", "[paper]"),
        ("[paper]\ndirect = { rmse = 1 }", "[paper]"),
        ('[paper]\nsource = "x"\ndirect = 3', "[paper]"),
        ('extends = "nothing"', "Unknown preset 'nothing'"),
    ],
)
def test_a_bad_file_is_named(tmp_path, text, words):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as refusal:
        presets.load(str(path))
    assert words in str(refusal.value)
    if words != "Unknown preset 'nothing'":
        assert str(path) in str(refusal.value)


def test_a_file_that_is_not_text_names_no_line(tmp_path):
    path = tmp_path / "run.toml"
    path.write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(UsageError, match="not a text file") as refusal:
        runs.Run(tmp_path).config()
    assert str(path) in refusal.value.what
    assert "line" not in refusal.value.remedy


@pytest.mark.parametrize("damage", ['steps = "five"', "steps = 5\nwide = 3", 'steps = 5\nname = "blurr"'])
def test_a_runs_parameter_that_the_operator_refuses_names_the_file(tiny_run, tmp_path, damage):
    copy = shutil.copytree(tiny_run, tmp_path / "copy")
    text = (copy / "run.toml").read_text()
    lines = [line for line in text.splitlines() if "name" not in damage or line != 'name = "blur"']
    (copy / "run.toml").write_text("\n".join(damage if line == "steps = 5" else line for line in lines))
    with pytest.raises(UsageError) as refusal:
        open_run.open_run(runs.Run(copy), device="cpu")
    assert str(copy / "run.toml") in refusal.value.what


def test_a_file_may_extend_a_preset(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('extends = "digits-blur"\n[train]\nsteps = 7\n')
    config = presets.load(str(path))
    assert (config.name, config.train.steps, config.train.batch_size) == ("mine", 7, 32)


@pytest.mark.parametrize("name", presets.names())
def test_a_bundled_preset_may_download(name):
    config = presets.load(name)
    assert (config.data.directory, config.data.second_directory) == ("", "")
    assert config.may_download


@pytest.mark.parametrize(
    ("text", "override", "may_download"),
    [
        ("", "train.steps=7", True),
        ('directory = "/some/where"', "train.steps=7", False),
        ('second_directory = "/some/where"', "train.steps=7", False),
        ('directory = "/some/where"', "data.directory=/some/where", True),
        ('directory = "/some/where"', "data.download=true", True),
        ("", "data.directory=/some/where", True),
    ],
)
def test_a_file_that_names_a_folder_may_not_download_unless_an_override_allows_it(
    tmp_path, text, override, may_download
):
    path = tmp_path / "mine.toml"
    path.write_text(f'extends = "mnist-blur"\n[data]\n{text}\n')
    config = presets.load(str(path), [override])
    assert config.may_download is may_download
    assert config.data.download  # the setting itself stays


def test_the_ground_floor_reads_what_a_run_wrote(tiny_run):
    config = runs.Run(tiny_run).config()
    assert config.train.steps == 6
    assert config.degradation.parameters["steps"] == 5


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.lr=.001", 0.001),
        ("train.lr=1.", 1.0),
        ("train.lr= +.5e-3 ", 0.0005),
        ("train.lr=1.E-3", 0.001),
        ("train.lr=1_0.0", 10.0),
        ("train.steps=1e3", 1000),
        ("train.steps=1E+03", 1000),
        ("train.steps=1_000", 1000),
        ("train.steps=300.0", 300),
        ("train.steps=300.", 300),
        ("data.flip=True", True),
        ("data.flip=FALSE", False),
        ("data.flip=true", True),
        ("data.channels=1.0", 1),
        ("data.dataset=mnist", "mnist"),
        ("data.dataset='mnist'", "mnist"),
        ("data.directory=2024", "2024"),
        ("data.directory=1e3", "1e3"),
        ("data.directory=true", "true"),
        ("data.directory=a b/c", "a b/c"),
        ("train.compile=off", "off"),
        ("degradation.std=.5", 0.5),
        ("degradation.steps=2e1", 20),
        ("degradation.steps=20.", 20),
        ("degradation.std=2.0", 2.0),
    ],
)
def test_an_obvious_spelling_is_understood(override, value):
    section, _, key = override.partition("=")[0].partition(".")
    config = presets.load("digits-blur", [override])
    owner = getattr(config, section)
    found = owner.parameters[key] if section == "degradation" else getattr(owner, key)
    assert (found, type(found)) == (value, type(value))
    operator = experiment.build_operator(config)
    if section == "degradation":
        assert getattr(operator, key) == value


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.steps=1e3.5", "not a whole number"),
        ("train.steps=2.5", "not a whole number"),
        ("train.steps=1e300", "too large|not a whole number"),
        ("train.steps=007", "not a whole number"),
        ("train.steps=1,000", "not a whole number"),
        ("train.steps=_1", "not a whole number"),
        ("train.steps=inf", "not a whole number"),
        ("train.steps=", "not a whole number"),
        ("train.lr=.", "not a number"),
        ("train.lr=e3", "not a number"),
        ("train.lr=0x1p3", "not a number"),
        ("train.lr=Infinity", "not a number"),
        ("data.flip=yes", "true or false"),
        ("data.flip=1", "true or false"),
        ("data.flip=T", "true or false"),
        ("train.seed=True", "not a whole number"),
    ],
)
def test_what_is_not_obvious_is_refused(override, words):
    with pytest.raises(UsageError, match=words) as refusal:
        presets.load("digits-blur", [override])
    assert f"--set {override}" in str(refusal.value)


@pytest.mark.parametrize("text", ["lr = .001", "steps = 1e3", "steps = 300.0", "lr = 1."])
def test_a_file_is_strict_toml(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(f"[train]\n{text}\n")
    with pytest.raises(UsageError, match=r"mine.toml"):
        presets.load(str(path))

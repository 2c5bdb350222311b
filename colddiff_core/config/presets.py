"""Typed configuration: presets in TOML, one level of `extends`, `--set key=value`.

Needs no torch, so that listing presets and reading a run's configuration are instant.
"""

from __future__ import annotations

import contextlib
import dataclasses
import stat
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import tomli_w

from colddiff_core.config.fields import LARGEST, setting, settings_of, take
from colddiff_core.errors import UsageError
from colddiff_core.text import CONTROLS, beginning, nearest, shown

LARGEST_SEED = 2**63 - 1
LARGEST_SIDE = 16_384  # pixels
LARGEST_FILE = 1 << 18  # bytes of TOML: a preset has a thousand or two
LONGEST_LINE = 4096  # the reader takes the square of the length of a dotted key
DEEPEST = 16  # tables within tables


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which images, and at what size."""

    dataset: str = setting("digits", "name of the data set")
    size: int = setting(32, "side of the images, in pixels", minimum=1, maximum=LARGEST_SIDE)
    margin: int = setting(
        0, "pixels that images are loaded larger, for a random crop in training", minimum=0, maximum=LARGEST_SIDE
    )
    crop: int = setting(
        0,
        "windows taken from each image at its own resolution, at most so many; 0 scales the whole image",
        minimum=0,
        maximum=100_000,
    )
    lanes: int = setting(
        32, "shards that are read side by side, at most so many; more of them mix better", minimum=1, maximum=4096
    )
    channels: Literal[0, 1, 3] = setting(0, "1 for gray, 3 for colour, 0 for what the data set has")
    flip: bool = setting(False, "mirror half of the training images; wrong for digits and letters")
    directory: str = setting("", "where the files lie; the user's cache folder if empty")
    second: str = setting("", "data set whose images an operator such as animorph mixes in")
    second_directory: str = setting("", "where the second data set's files lie; as the first's if empty")
    download: bool = setting(True, "fetch the files where they are absent")


@dataclasses.dataclass(frozen=True)
class DegradationConfig:
    """The operator D; every other key of the table is a parameter of that operator."""

    name: str = setting("blur", "name of the operator")
    quantize: int = setting(0, "round what the network sees to this many bits; 0 for not at all", minimum=0, maximum=16)
    dither: float = setting(
        0.0, "width of the white noise on what the network sees; pictures span 2", minimum=0, maximum=1000
    )
    jitter: float = setting(
        0.0, "share by which kernels in training are wider or narrower than the operator's", minimum=0, maximum=0.9
    )
    jpeg: int = setting(
        0,
        "compress what the network sees as JPEG of a quality from this one to 100; 0 for not at all",
        minimum=0,
        maximum=100,
    )
    parameters: Mapping[str, Any] = dataclasses.field(init=False, default_factory=dict)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The restorer R."""

    inputs: Literal["plain", "inverse"] = setting("plain", "show the network x_t, or x_t and its linear inverse")
    floor: float = setting(1e-5, "noise of x_t over the spread of the picture, for the inverse", above=0, maximum=1000)
    consistent: bool = setting(False, "take what x_t tells beyond doubt from x_t itself, the rest from the network")
    block: Literal["convnext", "resnet", "local"] = setting(
        "convnext", "the paper's block, a faster one, or that without a look at the whole picture, for photographs"
    )
    width: int = setting(64, "channels at the finest level", minimum=4, maximum=4096)
    multipliers: tuple[int, ...] = setting(
        (1, 2, 4, 8), "channels of each level over width", minimum=1, maximum=64, longest=LARGEST_SIDE.bit_length()
    )
    attention: Literal["all", "middle", "none"] = setting("all", "levels with attention")
    classes: int = setting(
        0, "tell the network which of so many classes an image is of; 0 for not at all", minimum=0, maximum=100_000
    )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The training loop. Defaults are the paper's (appendix A.1)."""

    steps: int = setting(700_000, "optimizer steps", minimum=1)
    batch_size: int = setting(32, "images per forward pass", minimum=1, maximum=1_000_000)
    accumulate: int = setting(2, "forward passes per optimizer step", minimum=1, maximum=1_000_000)
    loss: Literal["l1", "l2"] = setting("l1", "absolute error, as the paper, or squared: x0_hat is a median or a mean")
    lr: float = setting(2e-5, "learning rate", above=0)
    warmup: int = setting(0, "steps over which the rate rises linearly from 0", minimum=0)
    schedule: Literal["constant", "cosine"] = setting("constant", "the rate after the warm-up; cosine ends at 0")
    weight_decay: float = setting(0.0, "AdamW's weight decay; 0 is Adam", minimum=0)
    clip: float = setting(0.0, "largest norm of the gradient; 0 for no limit", minimum=0)
    ema_decay: float = setting(0.995, "decay of the exponential moving average of the weights", minimum=0, maximum=1)
    ema_every: int = setting(10, "steps between updates of the average", minimum=1)
    precision: Literal["auto", "bf16", "float32"] = setting(
        "auto", "of the network's body; auto is bf16 where it is fast"
    )
    compile: Literal["auto", "off", "default", "reduce-overhead", "max-autotune"] = setting(
        "auto", "torch.compile's mode for the network; auto compiles on a GPU, for runs long enough to win that back"
    )
    seed: int = setting(0, "everything random follows from it", minimum=0, maximum=LARGEST_SEED)
    log_every: int = setting(50, "steps between lines of metrics", minimum=1)
    sample_every: int = setting(1000, "steps between sample sheets; 0 for the last one alone", minimum=0)
    checkpoint_every: int = setting(1000, "steps between checkpoints", minimum=1)
    keep: int = setting(2, "how many of the newest checkpoints stay", minimum=1)


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """How the run's images are sampled unless a command says otherwise."""

    sampler: str = setting("tacos", "name of the sampler")
    stride: int = setting(1, "severities per sampler step", minimum=1)
    compile: Literal["off", "default", "reduce-overhead", "max-autotune"] = setting(
        "off", "torch.compile's mode for the network: a minute or two, for thousands of evaluations on a GPU"
    )


# What a run may change as it goes on: how long and how often, the rate, whether it compiles, where the images lie. The
# rest would make another run of it.
CHANGEABLE = frozenset(
    f"train.{key}" for key in ("steps", "lr", "compile", "log_every", "sample_every", "checkpoint_every", "keep")
) | {"data.directory", "data.second_directory", "data.download"}

OWN = tuple(field.name for field in settings_of(DegradationConfig))  # keys of the table that are not the operator's

SECTIONS: dict[str, type] = {
    "data": DataConfig,
    "degradation": DegradationConfig,
    "model": ModelConfig,
    "train": TrainConfig,
    "sample": SampleConfig,
}


@dataclasses.dataclass(frozen=True)
class Config:
    """A resolved configuration: everything a run needs to be repeated.

    paper: the published figures, `{"source": ..., "note": ..., "degraded": {"rmse": ...}, ...}`, empty where there are
    none; the note, where there is one, says what readers must know of them.
    """

    name: str
    description: str
    data: DataConfig
    degradation: DegradationConfig
    model: ModelConfig
    train: TrainConfig
    sample: SampleConfig
    paper: Mapping[str, Any]

    def to_table(self) -> dict[str, Any]:
        """Return the configuration as plain tables, ready for TOML."""
        table: dict[str, Any] = {"name": self.name, "description": self.description}
        for section in SECTIONS:
            table[section] = dataclasses.asdict(getattr(self, section))
        table["degradation"].update(table["degradation"].pop("parameters"))
        table["model"]["multipliers"] = list(self.model.multipliers)
        return table | ({"paper": dict(self.paper)} if self.paper else {})


def withheld(config: Config, overrides: Iterable[str]) -> Config:
    """Return a configuration that a file gave without its leave to download into folders, and to run commands in them,
    that the file names and the user, by the overrides, does not: it may be anyone's.
    """
    named = {text.partition("=")[0].strip() for text in overrides}
    places = {"data.directory": config.data.directory, "data.second_directory": config.data.second_directory}
    if "data.download" in named or all(key in named for key, place in places.items() if place):
        return config
    return dataclasses.replace(config, data=dataclasses.replace(config.data, download=False))


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return in what two configurations' tables differ: {"train.lr": (0.5, 0.001)}; None is a key that is not there."""
    found: dict[str, tuple[Any, Any]] = {}
    for section in SECTIONS:
        one, other = (table.get(section) for table in (before, after))
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            keys = {f"{section}.{key}": (one.get(key), other.get(key)) for key in [*one, *other]}
            found |= {key: pair for key, pair in keys.items() if pair[0] != pair[1]}
    return found


def directory() -> Path:
    """Return the folder of the presets: beside the package's code, or the source tree's."""
    installed = Path(__file__).parents[1] / "_presets"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "presets"


def names() -> list[str]:
    """Return every preset's name, sorted."""
    return sorted(path.stem for path in directory().glob("*.toml"))


def load(name: str, overrides: Iterable[str] = ()) -> Config:
    """Return the preset `name` (or a path ending in .toml) with `key=value` overrides.

    Raises UsageError that names the file, the key and the nearest known one.
    """
    path, table = _read_preset(name)
    base = table.pop("extends", None)
    if base is not None:
        if not isinstance(base, str):
            raise UsageError(f"{path}: extends = {shown(base)} is not a preset's name.", nearest(str(base), names()))
        base_path, base_table = _read_preset(base, beside=path)
        if "extends" in base_table:
            raise UsageError(f"{path}: extends '{base}', which itself extends another.", f"Write {base_path} out.")
        table = _merged(_without_foreign_parameters(base_table, table.get("degradation", {})), table)
    return from_table({"name": path.stem} | table, str(path), overrides)


def from_table(table: Mapping[str, Any], where: str, overrides: Iterable[str] = ()) -> Config:
    """Return a Config from plain tables; errors begin with `where` or with the override at fault."""
    sections = {key: value for key, value in table.items() if key in SECTIONS}
    parts = {section: _take_section(section, sections.get(section, {}), where) for section in SECTIONS}
    for key in table:
        if key not in SECTIONS and key not in ("name", "description", "paper"):
            raise UsageError(
                f"{where}: unknown key {shown(key)}.", nearest(key, [*SECTIONS, "description", "paper", "extends"])
            )
    # The operator's name first: it takes away the parameters of the one before.
    for override in sorted(overrides, key=lambda text: not text.strip().startswith("degradation.name")):
        section, key, value = _parse(override)
        checked = _take_section(section, {key: value}, f"--set {beginning(override)}")
        parts = _without_foreign_parameters(parts, checked) if section == "degradation" else parts
        parts[section] = _merged(parts[section], checked)
    made = {section: _make(section, parts[section]) for section in SECTIONS}
    name, description = (_text(key, table.get(key, ""), where) for key in ("name", "description"))
    if name != Path(name).name:
        raise UsageError(
            f"{where}: name = '{name}' is not a plain name.", "Leave slashes out: runs are named after it."
        )
    return Config(name=name, description=description, paper=_published(table.get("paper", {}), where), **made)


def _text(key: str, value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{where}: {key} = {shown(value)} is not a text.", "Put it in quotation marks.")
    if len(value) > LONGEST_LINE or CONTROLS.search(value.replace("\n", "") if key == "description" else value):
        raise UsageError(f"{where}: {key} is too long or holds control characters.", "Write a plain text.")
    return value


def _published(paper: Any, where: str) -> Mapping[str, Any]:
    """Return the published figures, checked: a source, perhaps a note on them, and tables of numbers."""
    fits = isinstance(paper, Mapping) and all(
        isinstance(value, str)
        if key in ("source", "note")
        else isinstance(value, Mapping)
        and all(type(number) in (int, float) and abs(number) <= LARGEST for number in value.values())
        for key, value in paper.items()
    )
    if not fits or (paper and "source" not in paper):
        raise UsageError(
            f"{where}: [paper] is not a source and tables of numbers.", "For example: direct = { rmse = 0.1 }"
        )
    found: Mapping[str, Any] = paper
    return found


def dump(table: Mapping[str, Any]) -> str:
    """Return plain tables as TOML."""
    return tomli_w.dumps(dict(table))


def read_toml(path: Path) -> dict[str, Any]:
    """Return a TOML file's tables; raises UsageError where it cannot be read, is not text or is not TOML."""
    try:
        found = path.stat()
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):  # reading a pipe would wait for ever
            raise UsageError(f"{path} is not an ordinary file.", "Check the path.")
        if found.st_size > LARGEST_FILE:
            raise UsageError(
                f"{path} is larger than any preset or run.toml ({LARGEST_FILE:,} bytes).", "Check the path."
            )
        return parse_toml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror or error}.", "Check the path.") from None
    except UnicodeDecodeError:
        raise UsageError(
            f"{path} is not a text file.", "TOML is text in UTF-8; name another file, or write it anew."
        ) from None
    except ValueError as error:
        raise UsageError(f"{path} is not valid TOML: {error}.", "Mend it there.") from None


def parse_toml(text: str) -> dict[str, Any]:
    """Return the tables of a TOML text; raises ValueError where it is none, and for lines and depths beyond all use."""
    if max(map(len, text.split("\n"))) > LONGEST_LINE:
        raise ValueError(f"a line has more than {LONGEST_LINE:,} characters")
    try:
        table = tomllib.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None
    level: list[Any] = [table]
    for _ in range(DEEPEST):
        if any(type(value) is int and abs(value) >= 2**63 for value in level):
            raise ValueError("a whole number has more than 64 bits")
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    if level:
        raise ValueError("nested too deep")
    return table


def _read_preset(name: str, beside: Path | None = None) -> tuple[Path, dict[str, Any]]:
    if name.endswith(".toml"):
        path = Path(name)
        return path, read_toml(path)
    near = beside.parent / f"{name}.toml" if beside else None
    path = near if near and near.is_file() else directory() / f"{name}.toml"
    if "/" in name or not path.is_file():
        raise UsageError(f"Unknown preset '{name}'.", nearest(name, names()) + " List them with: colddiff presets")
    return path, read_toml(path)


def _parse(override: str) -> tuple[str, str, Any]:
    """Return (section, key, value) of `section.key=value`; a value that is not TOML is a text."""
    dotted, equals, text = override.partition("=")
    section, dot, key = dotted.strip().partition(".")
    if not (equals and dot and key):
        raise UsageError(
            f"--set {beginning(override)}: not of the form section.key=value.", "For example: --set train.lr=2e-4"
        )
    if section not in SECTIONS:
        raise UsageError(f"--set {beginning(override)}: unknown section {shown(section)}.", nearest(section, SECTIONS))
    with contextlib.suppress(ValueError):
        table = parse_toml(f"value = {text}")
        if list(table) == ["value"]:  # and nothing smuggled in on a second line
            return section, key, table["value"]
    return section, key, text


def _take_section(section: str, values: Any, where: str) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise UsageError(f"{where}: '{section}' is not a table.", f"Write [{section}] above its keys.")
    if section == "degradation":
        # The operators are above this floor: their parameters are checked when one is built.
        own = {key: value for key, value in values.items() if key in OWN}
        return dict(values) | take(DegradationConfig, own, f"{where}: [degradation]")
    return take(SECTIONS[section], dict(values), f"{where}: [{section}]")


def _make(section: str, values: dict[str, Any]) -> Any:
    if section != "degradation":
        return SECTIONS[section](**values)
    own = {key: values.pop(key) for key in OWN if key in values}
    made = DegradationConfig(**own)
    object.__setattr__(made, "parameters", values)
    return made


def _without_foreign_parameters(below: Mapping[str, Any], degradation: Mapping[str, Any]) -> dict[str, Any]:
    """Return `below` with its operator's parameters left out where `degradation` names another operator."""
    old = below.get("degradation", {})
    if "name" not in degradation or degradation["name"] == old.get("name"):
        return dict(below)
    return {**below, "degradation": {key: value for key, value in old.items() if key in OWN and key != "name"}}


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return `below` with the keys of `above`, tables merged key by key."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged

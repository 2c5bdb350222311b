"""The sections of a configuration: every key, its default, its range and its help text."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from colddiff_core.config.fields import setting, settings_of
from colddiff_core.config.sizes import plain

LARGEST_SEED = 2**63 - 1
MOST_SIDE_PIXELS = 16_384
ALL_CLASSES = -1  # until a training has counted them


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which images, and their size."""

    dataset: str = setting("digits", "name of the data set")
    size: int | tuple[int, int] = setting(
        32, "side of the images in pixels, or height and width: 48,64", minimum=1, maximum=MOST_SIDE_PIXELS
    )
    margin: int = setting(
        0, "extra pixels of width and height, for a random crop in training", minimum=0, maximum=MOST_SIDE_PIXELS
    )
    crop: int = setting(
        0,
        "maximum number of windows cut from each image at full resolution; 0 scales the whole image instead",
        minimum=0,
        maximum=100_000,
    )
    lanes: int = setting(
        32, "maximum number of shards read at the same time; more mix the images better", minimum=1, maximum=4096
    )
    channels: Literal[0, 1, 3] = setting(0, "1 for gray, 3 for color, 0 for the data set's own")
    flip: bool = setting(False, "mirror half of the training images; wrong for digits and letters")
    directory: str = setting("", "folder of the files; the user's cache folder if empty")
    second: str = setting("", "data set whose images operators such as animorph mix in")
    second_directory: str = setting("", "folder of the second data set; the first's if empty")
    download: bool = setting(True, "download missing files")


@dataclasses.dataclass(frozen=True)
class DegradationConfig:
    """The operator D; every other key of the table is a parameter of that operator."""

    name: str = setting("blur", "name of the operator")
    quantize: int = setting(0, "round the network's input to this many bits; 0 for off", minimum=0, maximum=16)
    dither: float = setting(
        0.0, "width of white noise added to the network's input; pixels span 2", minimum=0, maximum=1000
    )
    jitter: float = setting(
        0.0,
        "largest relative change of the kernel width in training: 0.1 is up to 10 % either way; for pixelate, any mode",
        minimum=0,
        maximum=0.9,
    )
    jpeg: int = setting(
        0,
        "compress the network's input as JPEG, quality from this to 100; 0 for off",
        minimum=0,
        maximum=100,
    )
    parameters: Mapping[str, Any] = dataclasses.field(init=False, default_factory=dict)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The restorer R."""

    inputs: Literal["plain", "inverse"] = setting(
        "plain", "the network's input: x_t alone, or x_t and the operator's first guess at x0"
    )
    floor: float = setting(
        1e-5, "noise in x_t relative to the spread of the image, assumed by the linear inverse", above=0, maximum=1000
    )
    consistent: bool = setting(False, "keep whatever x_t determines exactly; use the network only for the rest")
    block: Literal["convnext", "resnet", "local"] = setting(
        "convnext", "the paper's block, a faster one, or one without global statistics, for photographs"
    )
    width: int = setting(64, "channels at the finest level", minimum=4, maximum=4096)
    multipliers: tuple[int, ...] = setting(
        (1, 2, 4, 8),
        "channels at each level, as multiples of width",
        minimum=1,
        maximum=64,
        longest=MOST_SIDE_PIXELS.bit_length(),
    )
    attention: Literal["all", "middle", "none"] = setting("all", "levels with attention")
    stem: Literal["float32", "tf32", "split"] = setting(
        "float32",
        "precision of the first layers on a GPU: float32, or faster: tf32, or split (bf16 in two parts)",
    )
    classes: int = setting(
        0,
        "number of classes the network is conditioned on; all for those of the data set, 0 for none",
        minimum=0,
        maximum=100_000,
        words={"all": ALL_CLASSES},
    )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The training loop. Defaults are the paper's (appendix A.1)."""

    steps: int = setting(700_000, "optimizer steps", minimum=1)
    batch_size: int = setting(
        32,
        "images per step, before multiplying by accumulate; on a CPU also the images per forward pass",
        minimum=1,
        maximum=1_000_000,
    )
    accumulate: int = setting(
        2,
        "batches per optimizer step; a GPU computes as many together as fit in memory",
        minimum=1,
        maximum=1_000_000,
    )
    loss: Literal["l1", "l2"] = setting(
        "l1", "l1: absolute error, as in the paper (predicts the median); l2: squared error (predicts the mean)"
    )
    lr: float = setting(2e-5, "learning rate", above=0)
    warmup: int = setting(0, "steps over which the rate rises linearly from 0", minimum=0)
    schedule: Literal["constant", "cosine"] = setting("constant", "the rate after the warm-up; cosine ends at 0")
    weight_decay: float = setting(0.0, "AdamW's weight decay; 0 is Adam", minimum=0)
    clip: float = setting(0.0, "largest norm of the gradient; 0 for no limit", minimum=0)
    ema_decay: float = setting(
        0.995,
        "decay of the exponential moving average of the weights; lower in its first updates",
        minimum=0,
        maximum=1,
    )
    ema_every: int = setting(10, "steps between updates of the average", minimum=1)
    precision: Literal["auto", "bf16", "float32"] = setting(
        "auto", "dtype of the network's body; auto is bf16 if that is fast"
    )
    unlabeled: float = setting(
        0.1,
        "share of images that a network with classes sees without theirs, to learn both; guidance needs it",
        above=0,
        maximum=0.9,
    )
    compile: Literal["auto", "off", "default", "reduce-overhead", "max-autotune"] = setting(
        "auto", "torch.compile's mode for the network; auto compiles on a GPU if the run is long enough"
    )
    initial: str = setting("", "run whose weights training starts from, as --from names it; empty for random weights")
    seed: int = setting(0, "seed of everything random", minimum=0, maximum=LARGEST_SEED)
    log_every: int = setting(50, "steps between lines of metrics", minimum=1)
    sample_every: int = setting(1000, "steps between sample sheets; 0 for only the last", minimum=0)
    checkpoint_every: int = setting(1000, "steps between checkpoints", minimum=1)
    keep: int = setting(2, "how many of the newest checkpoints to keep", minimum=1)
    validate_every: int = setting(
        0, "steps between measurements on a twentieth of the training images, held out for it; 0 for off", minimum=0
    )
    patience: int = setting(0, "measurements without a better RMSE until training stops early; 0 for never", minimum=0)
    keep_best: bool = setting(True, "keep the checkpoint with the best validation RMSE, and use that one")


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """How the run's images are sampled by default."""

    sampler: str = setting("tacos", "name of the sampler")
    stride: int = setting(1, "severities per sampler step", minimum=1)
    compile: Literal["off", "auto", "default", "reduce-overhead", "max-autotune"] = setting(
        "off",
        "torch.compile's mode for the network: takes a minute or two, pays off over thousands of evaluations on a GPU; "
        "auto compiles only for a command with that many",
    )


# Settings that may change on resume: length, intervals, checkpoints kept, learning rate, patience, compilation, data
# location. Any other change would make it another run.
CHANGEABLE = frozenset(
    f"train.{key}"
    for key in (
        "steps",
        "lr",
        "compile",
        "log_every",
        "sample_every",
        "checkpoint_every",
        "keep",
        "patience",
        "keep_best",
    )
) | {"data.directory", "data.second_directory", "data.download"}


OWN = tuple(field.name for field in settings_of(DegradationConfig))  # the table's other keys are the operator's


SECTIONS: dict[str, type] = {
    "data": DataConfig,
    "degradation": DegradationConfig,
    "model": ModelConfig,
    "train": TrainConfig,
    "sample": SampleConfig,
}


def default(key: str) -> Any:
    """Return the default of a setting named like "train.lr"; None for an operator's parameter."""
    section, _, name = key.partition(".")
    return next((field.default for field in settings_of(SECTIONS[section]) if field.name == name), None)


@dataclasses.dataclass(frozen=True)
class Config:
    """A resolved configuration: everything a run needs to be repeated.

    paper: the published figures, `{"source": ..., "note": ..., "degraded": {"rmse": ...}, ...}`, or empty. The
    optional note says what readers must know about them.
    """

    name: str
    description: str
    data: DataConfig
    degradation: DegradationConfig
    model: ModelConfig
    train: TrainConfig
    sample: SampleConfig
    paper: Mapping[str, Any]
    may_download: bool = dataclasses.field(default=True, compare=False)  # is the file trusted? never saved

    def without_downloads(self) -> Config:
        """Return the configuration without permission to download files or run commands."""
        return dataclasses.replace(self, may_download=False)

    def to_table(self) -> dict[str, Any]:
        """Return the configuration as plain tables, ready for TOML."""
        table: dict[str, Any] = {"name": self.name, "description": self.description}
        for section in SECTIONS:
            table[section] = dataclasses.asdict(getattr(self, section))
        table["degradation"].update(table["degradation"].pop("parameters"))
        table["data"]["size"] = plain(self.data.size)
        table["model"]["multipliers"] = list(self.model.multipliers)
        if self.model.classes == ALL_CLASSES:
            table["model"]["classes"] = "all"
        return table | ({"paper": dict(self.paper)} if self.paper else {})


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the differences of two tables: {"train.lr": (0.5, 0.001)}; None stands for a missing key."""
    different: dict[str, tuple[Any, Any]] = {}
    for section in SECTIONS:
        one, other = (table.get(section) for table in (before, after))
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            keys = {f"{section}.{key}": (one.get(key), other.get(key)) for key in [*one, *other]}
            different |= {key: pair for key, pair in keys.items() if pair[0] != pair[1]}
    return different

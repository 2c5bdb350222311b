"""A user's code on the library's public functions. `mypy` checks it and fails if a wrong line is not found wrong.

Nothing runs this file. `assert_type` refuses Any, and an ignored error that does not occur is an error itself.
"""

from typing import assert_type

from torch import Tensor

import colddiff_core as colddiff
from colddiff_core.config.schema import Config
from colddiff_core.degradations import Degradation
from colddiff_core.evaluation.metrics import Figures
from colddiff_core.inference.open_run import TrainedRun
from colddiff_core.runs import Run


def right() -> None:
    config = assert_type(colddiff.load_preset("digits-blur", ["train.steps=20"]), Config)
    run = assert_type(colddiff.train(config, "runs/first", device="cpu"), Run)
    trained = assert_type(colddiff.open_run(run), TrainedRun)
    blur = assert_type(colddiff.build_degradation("blur", steps=20), Degradation)
    generated = assert_type(colddiff.generate(trained, 4, seed=0), Tensor)
    restored = assert_type(colddiff.restore(trained, blur(generated, 10), t=10), Tensor)
    figures = assert_type(colddiff.evaluate(trained, count=len(restored)), dict[str, Figures])
    assert figures["sampled"]["rmse"] > 0
    assert_type(colddiff.__version__, str)


def wrong(config: Config, trained: TrainedRun, picture: Tensor) -> None:
    colddiff.load_preset(7)  # type: ignore[arg-type]
    colddiff.train("digits-blur")  # type: ignore[arg-type]
    colddiff.train(config, gpu=True)  # type: ignore[call-arg]
    colddiff.open_run(7)  # type: ignore[arg-type]
    colddiff.build_degradation()  # type: ignore[call-arg]
    colddiff.generate(trained, "four")  # type: ignore[arg-type]
    colddiff.restore(picture, trained)  # type: ignore[arg-type]
    colddiff.evaluate(trained).values(2)  # type: ignore[call-arg]
    colddiff.trian(config)  # type: ignore[attr-defined]

"""Generalized ("cold") diffusion: degrade images, train restorers, and use them.

Importing this loads no torch: each function is imported when it is first used.
"""

from typing import TYPE_CHECKING, Any

from colddiff_core.config.version import __version__

__all__ = [
    "__version__",
    "build_degradation",
    "evaluate",
    "generate",
    "load_preset",
    "open_run",
    "restore",
    "train",
]

if TYPE_CHECKING:
    from colddiff_core.config.presets import load as load_preset
    from colddiff_core.degradations.registry import build as build_degradation
    from colddiff_core.evaluation.measure import evaluate
    from colddiff_core.inference.generate import generate
    from colddiff_core.inference.open_run import open_run
    from colddiff_core.inference.restore import restore
    from colddiff_core.training.start import train
else:  # hidden from type checkers, which would take any name for one of ours

    def __getattr__(name: str) -> Any:
        if name == "load_preset":
            from colddiff_core.config.presets import load as load_preset

            return load_preset
        if name == "build_degradation":
            from colddiff_core.degradations.registry import build as build_degradation

            return build_degradation
        if name == "train":
            from colddiff_core.training.start import train

            return train
        if name == "open_run":
            from colddiff_core.inference.open_run import open_run

            return open_run
        if name == "restore":
            from colddiff_core.inference.restore import restore

            return restore
        if name == "generate":
            from colddiff_core.inference.generate import generate

            return generate
        if name == "evaluate":
            from colddiff_core.evaluation.measure import evaluate

            return evaluate
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

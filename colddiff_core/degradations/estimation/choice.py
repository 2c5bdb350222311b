"""Choose the operator that degraded a picture, by the evidence of each operator's own trace.

Every estimate says how much more probable the picture is with the operator's trace than without it. The most probable
operator is the one with the most evidence, if there is enough to prefer it to a picture that nothing has degraded.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping

from torch import Tensor

from colddiff_core.degradations.base import Degradation, Estimate
from colddiff_core.errors import UsageError

# Log evidence below which a picture counts as undegraded. Undegraded photographs stay below 2 (scikit-image's, CelebA's
# training images, AFHQ's cats), but for a few that are as soft as if blurred; mild severities start at about 4.
LEAST_EVIDENCE = 3.0


@dataclasses.dataclass(frozen=True)
class Choice:
    """The operator that most probably degraded a picture.

    Attributes:
        name: its key among the operators asked; None if the picture shows no trace of any.
        estimates: the estimates of all operators that could be asked, by key.
    """

    name: str | None
    estimates: dict[str, Estimate]


def choose(x: Tensor, operators: Mapping[str, Degradation]) -> Choice:
    """Return the operator that most probably degraded a picture, and what every operator found in it.

    An operator that cannot say anything, because it has no `estimate` or the picture is too small or too flat, is left
    out. A picture without any color counts as desaturated, unless it shows another trace more clearly.

    Shapes: x (1, C, H, W) float32 in [-1, 1], C = 1 or 3, rounded to 8 bits; any size.
    """
    estimates: dict[str, Estimate] = {}
    for name, operator in operators.items():
        with contextlib.suppress(UsageError):
            estimates[name] = operator.estimate(x)
    found = {name: estimate.evidence for name, estimate in estimates.items() if estimate.t}
    best = max(found, key=found.__getitem__, default=None)
    return Choice(best if best is not None and found[best] >= LEAST_EVIDENCE else None, estimates)

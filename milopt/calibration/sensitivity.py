"""What an error in one weight costs the outputs: measured, one weight after another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias, cast

import numpy as np

from milopt.calibration.running import Runs
from milopt.calibration.statistics import Statistics
from milopt.estimating import relative_error
from milopt.mil import digest, shape_of
from milopt.package import Model
from milopt.passes.compressing import CompressionReport
from milopt.passes.compression import Palettize
from milopt.passes.decompression import weights_again
from milopt.passes.palettes import PalettePlan
from milopt.passes.uses import Weight
from milopt.progress import counted
from milopt.reports import NoMatch

__all__ = ["FORM", "measure"]

Array: TypeAlias = Any  # numpy.ndarray; its generic form is more than pyright strict can follow

# With one table of 16 entries normal weights lose 1% of their power: little enough that what the outputs lose grows
# with the square of the error, and so much that the rounding of fp16 is far below it.
FORM = Palettize(bits=4, granularity="tensor", min_elements=1)


def measure(model: Model, runs: Runs, statistics: Statistics, *, min_elements: int = 2048) -> None:
    """Add to ``statistics`` the sensitivity of every weight of ``min_elements`` numbers and more.

    That is what the outputs of ``runs`` lose with the weight in one table of 16 entries, over the relative error that
    this makes in it; the error counts with the moments in ``statistics`` where there are some. ``runs`` are run once,
    and once more for each weight; their outputs are kept.
    """
    still = _Changed()
    before = list(runs.outputs(still.of))
    weights = [weight for weight in weights_again(model) if weight.array.size >= min_elements]
    for weight in counted("measure sensitivities", weights, [1.0] * len(weights)):
        plan = _planned(weight, statistics)
        if plan is None:
            continue
        decoded, error = _coded(plan)
        if not error:
            continue
        changed = _Changed(weight, decoded)
        lost = [runs.loss(one, other) for one, other in zip(before, runs.outputs(changed.of), strict=True)]
        found = float(np.mean(lost)) / error
        if np.isfinite(found):
            statistics.sensitivities[digest(weight.array).hex()] = found


def _planned(weight: Weight, statistics: Statistics) -> PalettePlan | None:
    try:
        plan = FORM.plan(weight, None, CompressionReport(""))
    except NoMatch:
        return None
    return FORM.weighted(plan, statistics, CompressionReport(""))


def _coded(plan: PalettePlan) -> tuple[Array, float]:
    """The numbers that a plan makes of its weight, in its shape, and their relative error; 0 where it says nothing."""
    from milopt.clustering import palettize

    rows = plan.rows()
    found = palettize(rows, plan.bits, plan.importance)
    numbers = found.decoded()
    error = 0.0 if found.wrong else relative_error(rows, numbers, plan.importance)
    return numbers.transpose(1, 0, 2, 3).reshape(plan.weight.array.shape), error


class _Changed:
    """Listeners that hand ops another weight than the program's."""

    def __init__(self, weight: Weight | None = None, numbers: Array = None) -> None:
        self._numbers = numbers
        self._places: dict[tuple[str, str], list[tuple[str, tuple[int, ...]]]] = {}
        for place, name, op in weight.users() if weight is not None else ():
            self._places.setdefault((place.function, op.name), []).append((name, shape_of(place.var)))

    def of(self, function: str) -> _InFunction:
        return _InFunction(self, function)

    def exchange(self, function: str, op: str, values: dict[str, Any]) -> None:
        for name, shape in self._places.get((function, op), ()):
            held = values[name]
            values[name] = held.new_tensor(self._numbers.reshape(shape))


class _InFunction:
    """What the interpreter calls."""

    def __init__(self, changed: _Changed, function: str) -> None:
        self._changed = changed
        self._function = function

    def before(self, step: Any, values: Mapping[str, Any]) -> None:
        self._changed.exchange(self._function, step.name, cast("dict[str, Any]", values))

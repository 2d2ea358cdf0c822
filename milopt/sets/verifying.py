"""Does a set compute what the program did that it was made of? Its parts are run in sequence, and compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from milopt.interpreter import Precision
from milopt.metrics import Exact, Metric
from milopt.package import Model
from milopt.sets.deployment import DeploymentSet
from milopt.sets.running import compile_set
from milopt.verify import Frozen, Verdict, compare, freeze
from milopt.verify.comparing import Inputs
from milopt.verify.lending import LentWeights

__all__ = ["BIT_EQUAL", "verify"]

BIT_EQUAL = Exact(rtol=0.0)
"""The parts do the very ops of the whole, in order: nothing may differ, not in the last bit of a float64."""


def verify(
    whole: Model,
    made: DeploymentSet,
    *,
    trials: int = 3,
    metric: Metric = BIT_EQUAL,
    inputs: Sequence[Inputs] | None = None,
    seed: int = 0,
) -> Verdict:
    """Run all functions of both on the same inputs, the set's parts one after another on one state.

    See :func:`milopt.compare`; by default both run in float64 and every output, and the cache, must be bit-equal.
    """
    precision: Precision = "float64" if isinstance(metric, Exact) else "declared"
    before = freeze(whole, precision="float64")
    weights = LentWeights(precision)
    plans = compile_set(made, precision=precision, weights=weights)
    after: Frozen = replace(before, plans=plans, metadata=dict(made.metadata), weights=weights)
    return compare(before, after, trials=trials, metric=metric, inputs=inputs, seed=seed)

"""From a PyMIL program to plans."""

from __future__ import annotations

from collections.abc import Iterable

from milopt import mil
from milopt.errors import EvaluationError, UnsupportedOps
from milopt.interpreter.impls import Impls
from milopt.interpreter.ops import core
from milopt.interpreter.plan import Plan
from milopt.interpreter.planning import Planner
from milopt.interpreter.source import Source, function_name, program_of
from milopt.interpreter.weights import Weights
from milopt.precisions import PRECISIONS, Precision

__all__ = ["compile", "compile_all"]


def compile(
    source: Source,
    function: str | None = None,
    *,
    precision: Precision = "declared",
    keep_weights: bool = True,
    weights: Weights | None = None,
    impls: Impls = core,
    device: str = "cpu",
) -> Plan:
    """A plan of one function (the default one if None), which later changes of the program don't affect.

    ``precision``: ``declared`` rounds every op's result to its declared dtype, composites computing inside in fp32;
    ``declared-strict`` rounds what composites compute inside as well, except in implementations that ``impls`` puts
    in the place of milopt's own; ``float64`` computes every float in float64 and rounds nothing.

    ``weights``: working copies to share with other plans of the model and precision; see :func:`compile_all`.
    ``keep_weights=False`` prepares each weight anew at every use. ``device``: ``cpu``, ``cuda`` or ``mps``; inputs are
    moved there, outputs stay there. UnsupportedOps lists all ops that ``impls`` lacks.
    """
    if precision not in PRECISIONS:
        raise EvaluationError(f"there is no precision {precision!r}; choose {', '.join(PRECISIONS)}")
    name = function_name(source, function)
    if weights is None:
        weights = Weights(precision, keep=keep_weights, device=device)
    chosen = program_of(source).functions[name]
    _refuse_unsupported([chosen], impls)
    return Planner(impls, weights).plan(name, chosen)


def compile_all(
    source: Source,
    *,
    precision: Precision = "declared",
    keep_weights: bool = True,
    impls: Impls = core,
    device: str = "cpu",
) -> dict[str, Plan]:
    """Plans of all functions by name, which share one working copy of each weight.

    UnsupportedOps lists the ops of all functions that ``impls`` lacks.
    """
    _refuse_unsupported(program_of(source).functions.values(), impls)
    weights = Weights(precision, keep=keep_weights, device=device)
    return {
        name: compile(source, name, precision=precision, weights=weights, impls=impls)
        for name in program_of(source).functions
    }


def _refuse_unsupported(functions: Iterable[mil.Function], impls: Impls) -> None:
    missing: dict[str, list[str]] = {}
    for function in functions:
        for op in mil.operations(function):
            if op.op_type != "const" and op.op_type not in impls:
                missing.setdefault(op.op_type, []).append(op.name)
    if missing:
        raise UnsupportedOps(missing)

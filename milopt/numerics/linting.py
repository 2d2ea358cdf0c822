"""Looks for places where fp16 is too small: in the program as it is written, and in a run of it in float64."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from milopt.matching import Matcher
from milopt.mil import Function, Operation, Var, arguments, constant, dtype_name, operations
from milopt.numerics.findings import Finding, LintReport
from milopt.numerics.ranges import Range, value_ranges
from milopt.package import Model
from milopt.passes.angles import tabulate
from milopt.passes.masks import is_low, leads_to_softmax
from milopt.passes.norms import Fp16SafeNorm, PrescaleNorm
from milopt.passes.residual import plans
from milopt.passes.rope import positions_of
from milopt.pattern import build
from milopt.reports import NoMatch
from milopt.verify.comparing import Inputs

__all__ = ["lint"]

_END = 65504.0
# a sum of two such values is infinite
_NEAR = 32768.0
# fp16's normal numbers begin here
_NORMAL = 2.0**-14
# fp16 has all whole numbers up to here
_WHOLE = 2048
_ROOTS = frozenset({"rsqrt", "inverse", "log", "sqrt"})


def lint(
    model: Model, *, inputs: Sequence[Inputs] = (), run: bool = True, trials: int = 1, seed: int = 0
) -> LintReport:
    """Every place of ``model`` where fp16 is too small, with the pass that repairs it.

    Static findings: squares of fp16 values under a mean, cosines and sines of fp16 angles, inverse frequencies that
    fp16 has rounded (with the angle error at the last position), mask fills that are or become infinite, epsilons that
    are 0 or below fp16's normal numbers. With ``run``, the values beyond fp16, or beyond half of it, in float64 runs on
    ``inputs`` and on ``trials`` random ones (:func:`~milopt.numerics.value_ranges`).
    """
    found: list[Finding] = []
    ranges = value_ranges(model, inputs=inputs, trials=trials, seed=seed) if run else {}
    safe = model.clone() if any(map(_is_large, ranges.values())) else model
    if safe is not model:
        Fp16SafeNorm().run(safe)  # which comes before scale-residual
    for name, function in model.functions.items():
        squares = _norm_ops(function)
        own = [each for (owner, _), each in ranges.items() if owner == name]
        found += _sizes(safe.functions[name], own, {op.outputs[0].name for op in squares})
        found += _squares(name, squares)
        found += _angles(name, function, positions_of(model))
        found += _masks(name, function)
        found += _epsilons(name, function)
    return LintReport(tuple(found), run)


def _is_large(one: Range) -> bool:
    return one.dtype == "fp16" and one.largest > _NEAR


def _sizes(function: Function, ranges: Sequence[Range], squares: set[str]) -> Iterator[Finding]:
    """Values that are large, in ``function`` after ``fp16-safe-norm``: ``squares`` are those that it replaces."""
    large = {each.name: each for each in ranges if _is_large(each)}
    streams = list(plans(function, {each.name: each.largest for each in ranges}, _NEAR))
    scaled = {var.name for each in streams for var in each.repaired()}
    refused = {var.name: str(each.why) for each in streams if each.why is not None for var in each.stream.values}
    made = {var.name: op for op in operations(function) for var in op.outputs}
    for each in large.values():
        repair = "fp16-safe-norm" if each.name in squares else "scale-residual" if each.name in scaled else ""
        times = f"reaches {each.largest:.4g}, {each.largest / _END:.3g} times what fp16 holds"
        if each.largest > _END:
            text = f"{times}: it is infinite in fp16"
            why = "" if repair else _why_not(each, large, refused, made.get(each.name))
            yield Finding("overflow", each.function, each.name, each.op_type, text, repair, each.largest, why)
        else:
            yield Finding("near", each.function, each.name, each.op_type, times, repair, each.largest)


def _why_not(one: Range, large: Mapping[str, Range], refused: Mapping[str, str], op: Operation | None) -> str:
    if one.name in refused:
        return f"scale-residual stays away, {refused[one.name]}"
    taken = [var.name for _, var in arguments(op)] if op is not None else []
    before = next((name for name in taken if name in large and large[name].largest > _END), None)
    if before is not None:
        return f"it is computed from {before!r}"
    return (
        f"this {one.op_type} makes it of values that fp16 holds, and scale-residual scales only sums that end in norms"
    )


def _norm_ops(function: Function) -> list[Operation]:
    """The fp16 ops of norms between the value that is normed and the root: squares, their mean, its sum with eps."""
    matcher = Matcher(*build(PrescaleNorm().pattern))
    found: dict[Operation, None] = {}
    for op in operations(function):
        match = next(matcher.matches(op), None)
        if match is not None:
            inner = (each for each in match.ops if each.op_type in ("pow", "mul", "square", "reduce_mean", "add"))
            found.update(
                (each, None) for each in inner if each is not match.root and dtype_name(each.outputs[0]) == "fp16"
            )
    return list(found)


def _squares(name: str, ops: Sequence[Operation]) -> Iterator[Finding]:
    for op in ops:
        if op.op_type in ("pow", "mul", "square"):
            yield Finding(
                "square", name, op.outputs[0].name, op.op_type, "is infinite from |x| = 256 on", "fp16-safe-norm"
            )


def _angles(name: str, function: Function, rows: int | None) -> Iterator[Finding]:
    said: set[str] = set()
    for op in operations(function):
        if op.op_type not in ("cos", "sin"):
            continue
        angles: Var = op.inputs["x"]
        place = op.outputs[0].name
        if dtype_name(angles) == "fp16":
            text = f"its angles are fp16: positions beyond {_WHOLE} and their products are rounded"
            yield Finding("angles", name, place, op.op_type, text, "rope-table")
        for text, repair in _rounded(angles, rows or _WHOLE):
            if text not in said:
                said.add(text)
                yield Finding("frequencies", name, place, op.op_type, text, repair)


def _rounded(angles: Var, rows: int) -> Iterator[tuple[str, str]]:
    """What is wrong with the constants of the angles: with which pass, and how far off the last angle is for it."""
    try:
        found, stored = tabulate(angles, rows), tabulate(angles, rows, as_stored=True)
    except NoMatch as why:
        if "fp16 has rounded" in why.text:
            yield str(why), "rope-table{approximate=true}"
        return
    off = float(np.abs(found.table[-1] - stored.table[-1]).max())
    for note in found.notes:
        known = note.replace("were restored", "are known")
        yield f"{known}; at position {rows - 1} an angle is {off:.2g} rad off", "rope-table"


def _masks(name: str, function: Function) -> Iterator[Finding]:
    for op in operations(function):
        array: Any = constant(op.outputs[0]) if op.op_type == "const" else None
        if hasattr(array, "dtype") and leads_to_softmax(op.outputs[0]) and is_low(np.asarray(array)):
            yield Finding("mask", name, op.outputs[0].name, "const", f"holds {float(np.min(array)):.4g}", "finite-mask")


def _epsilons(name: str, function: Function) -> Iterator[Finding]:
    for op in operations(function):
        for var in _epsilon_inputs(op):
            array = constant(var)
            if array is None or np.size(array) != 1:
                continue
            value = float(np.ravel(array)[0])
            kind = dtype_name(var)
            if kind != "fp16" or not 0 <= value < _NORMAL or (value == 0 and op.op_type != "layer_norm"):
                continue
            off = (
                "0: a row of zeros has no norm"
                if value == 0
                else f"{value:.4g}, up to {2.0**-25 / value:.2g} of it lost"
            )
            repair = "fp16-safe-norm" if op.op_type != "layer_norm" else ""
            yield Finding("epsilon", name, op.outputs[0].name, op.op_type, f"its epsilon is {off}", repair)


def _epsilon_inputs(op: Operation) -> Iterator[Var]:
    """Numbers under a root or a logarithm: the op's own, or added to what it is taken of."""
    if op.op_type in ("layer_norm", *_ROOTS) and op.inputs.get("epsilon") is not None:
        yield op.inputs["epsilon"]
    if op.op_type == "add" and any(user.op_type in _ROOTS for user in op.outputs[0].child_ops):
        yield from (op.inputs[each] for each in ("x", "y"))

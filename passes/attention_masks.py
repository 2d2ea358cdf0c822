"""What happens to scores between their product and the softmax, as a scale and a mask.

Whatever is added, selected or multiplied on the way from ``q @ kᵀ`` to the softmax is ``score * scale + mask``, and the
mask is what the same ops make of a score of 0. Where a ``select`` puts a number in the place of a score, that number
must stand for minus infinity; a row that has no other is then the mean of all values, which a guard on q keeps so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from milopt.building import Builder
from milopt.literals import one_number
from milopt.mil import Operation, Var, arguments, constant, dtype_name, flat, is_symbolic, shape_of
from milopt.reports import require

__all__ = ["FLOATS", "Mask", "Scores", "alike", "alive", "chosen", "fits", "once", "read_scores", "write_mask"]

# What is put in the place of a score is taken for minus infinity from here on: the range of fills that models mask with
# (constraint L10). exp(-1e4) is 0 in every format, and is as long as no score of the row is below -9e3 or so; of a
# number nearer to the scores, -1e3, that is not known.
_LOWEST = -1e4
# To a number so low fp32, and float64, add any score without change: even a row that is masked altogether stays equal.
_ABSORBING = float(np.float32(-1e30))

FLOATS = {"fp16": np.float16, "fp32": np.float32}


@dataclass(frozen=True)
class Mask:
    """A step of the scores that the mask repeats: an op, and which of its inputs are the scores."""

    op: Operation
    scores: str
    kind: str  # add, sub, scale or select
    number: float = 0.0  # the factor, or the number in the place of scores


@dataclass(frozen=True)
class Scores:
    """``product * scale + mask``. ``alone`` is a select that is the whole mask and may be one of booleans.

    ``guarded`` are the conditions of selects that may leave a row without any score.
    """

    scale: float
    steps: tuple[Mask, ...]
    alone: bool = False
    guarded: tuple[Mask, ...] = ()

    @property
    def masks(self) -> tuple[Var, ...]:
        """What has rows and columns among what makes the mask."""
        return tuple(_operand(each) for each in self.steps if each.kind != "scale")


def _operand(step: Mask) -> Var:
    if step.kind == "select":
        cond: Var = step.op.inputs["cond"]
        return cond
    other: Var = step.op.inputs["y" if step.scores == "x" else "x"]
    return other


def read_scores(product: Var, ops: Sequence[Operation], keys: int) -> Scores:
    """Read the ops behind ``product``, in order, whose axis ``keys`` (negative) has a column for each key.

    NoMatch says what attention can't express.
    """
    scale, steps, before = 1.0, list[Mask](), product
    for op in ops:
        side = next(name for name, var in arguments(op) if var is before)
        before = op.outputs[0]
        kind = op.op_type
        require(kind != "tanh", "the scores are capped by tanh, which scaled_dot_product_attention can't say", at=op)
        require(kind != "concat", "a column that is no key joins the softmax (an attention sink)", at=op)
        if kind in ("cast", "reshape"):
            continue
        if kind == "select":
            steps.append(_selection(op, side))
            continue
        if kind in ("add", "sub"):
            steps.append(Mask(op, side, kind))
            continue
        number = _factor(op, side)
        scale *= number
        if steps:
            steps.append(Mask(op, side, "scale", number))
    steps_ = tuple(_scaled(steps))
    guarded = tuple(each for each in steps_ if each.kind == "select" and _may_empty_a_row(each, keys))
    selects = [each for each in steps_ if each.kind == "select"]
    alone = len(steps_) == len(selects) == 1 and (selects[0].number == -np.inf or _fills_rows(selects[0], keys))
    return Scores(scale, steps_, alone, () if alone else guarded)


def _scaled(steps: list[Mask]) -> list[Mask]:
    """The steps with what is selected as it is in the end: later factors multiply it."""
    made: list[Mask] = []
    for at, step in enumerate(steps):
        if step.kind != "select":
            made.append(step)
            continue
        number = step.number * float(np.prod([each.number for each in steps[at + 1 :] if each.kind == "scale"]))
        require(number <= _LOWEST, "{:g} in the place of scores is not minus infinity", number, at=step.op)
        made.append(step)
    return made


def _factor(op: Operation, side: str) -> float:
    other = "y" if side == "x" else "x"
    number = one_number(op, other, op.inputs[other]) if constant(op.inputs[other]) is not None else None
    require(number is not None, "the scores are multiplied by values, not by one number", at=op)
    assert number is not None
    if op.op_type == "mul":
        return float(number)
    require(number != 0, "the scores are divided by zero")
    return 1 / float(number)


def _selection(op: Operation, side: str) -> Mask:
    other = "b" if side == "a" else "a"
    number = one_number(op, other, op.inputs[other]) if constant(op.inputs[other]) is not None else None
    require(number is not None, "what is selected in the place of scores is not one number", at=op)
    assert number is not None
    return Mask(op, side, "select", float(number))


def _kept(step: Mask) -> Any:
    """Which scores a constant condition keeps; ``None`` where it is computed."""
    cond = constant(step.op.inputs["cond"])
    if cond is None:
        return None
    return cond if step.scores == "a" else np.logical_not(cond)


def _fills_rows(step: Mask, keys: int) -> bool:
    kept = _kept(step)
    if kept is None:
        return False
    return bool(np.all(np.any(kept, axis=keys) if kept.ndim >= -keys else kept))


def _may_empty_a_row(step: Mask, keys: int) -> bool:
    return step.number > _ABSORBING and not _fills_rows(step, keys)


def alike(kind: str, block_of: Operation, **inputs: Any) -> Var | None:
    """What an op before ``block_of``, in its block, makes of the same inputs; ``None`` where there is none.

    Masks serve all layers: what is computed for the first is not computed again. The first input is no number.
    """
    first: Var = flat(next(iter(inputs.values())))[0]
    there = (op for op in first.child_ops if op.op_type == kind and _has(op, inputs) and _before(op, block_of))
    return next((op.outputs[0] for op in there), None)


def _has(op: Operation, inputs: dict[str, Any]) -> bool:
    """Whether an op has these inputs, and defaults for all others."""
    wanted = {**dict(op.default_inputs().items()), **inputs}
    return all(_same(op.inputs.get(name), wanted.get(name)) for name in {*op.inputs, *inputs})


def _same(have: Any, want: Any) -> bool:
    if have is want:
        return True
    if not isinstance(have, Var):
        ours, theirs = flat(have), flat(want)
        return have is not None and len(ours) == len(theirs) and all(map(_same, ours, theirs))
    known = constant(have)
    if known is None or isinstance(known, str):
        return known is not None and bool(known == want)
    return bool(np.array_equal(known, want))


def _before(op: Operation, other: Operation) -> bool:
    """Whether ``op`` comes before ``other``, in its block."""
    return next(each for each in other.enclosing_block.operations if each is op or each is other) is not other


def once(op: Builder, kind: str, **inputs: Any) -> Var:
    """``op.kind(**inputs)``, or the value of an op that is there already."""
    found = alike(kind, op.before, **inputs)
    made: Var = found if found is not None else getattr(op, kind)(**inputs)
    return made


def write_mask(op: Builder, scores: Scores, dtype: str, *, boolean: bool = True) -> Var | None:
    """The mask of ``scores``: one of booleans where that says it all, else what is added."""
    number = FLOATS[dtype]
    if scores.alone and boolean:
        (step,) = scores.steps
        cond: Var = step.op.inputs["cond"]
        return cond if step.scores == "a" else once(op, "logical_not", x=cond)
    mask: Var | None = None
    for step in scores.steps:
        if step.kind == "select":
            mask = chosen(op, step.op.inputs["cond"], mask, step.number, dtype, keep=step.scores == "a")
        elif step.kind == "scale":
            mask = mask if mask is None else once(op, "mul", x=mask, y=number(step.number))
        elif step.kind == "sub":
            less = mask is None
            mask = (
                once(op, "mul", x=_added(step, dtype), y=number(-1))
                if less
                else once(op, "sub", x=mask, y=_added(step, dtype))
            )
        else:
            other = _added(step, dtype)
            mask = other if mask is None else once(op, "add", x=mask, y=other)
    return mask


def chosen(op: Builder, cond: Var, mask: Var | None, low: float, dtype: str, *, keep: bool = True) -> Var:
    """``mask``, or 0, where ``cond`` is ``keep``, and ``low`` elsewhere."""
    # MIL's select has the shape of what it chooses from, whatever that of its condition
    zeros = once(op, "mul", x=once(op, "cast", x=cond, dtype=dtype), y=FLOATS[dtype](0))
    rest = zeros if mask is None else mask if shape_of(mask) == shape_of(cond) else once(op, "add", x=zeros, y=mask)
    number = FLOATS[dtype](low)
    return once(op, "select", cond=cond, **({"a": rest, "b": number} if keep else {"a": number, "b": rest}))


def _added(step: Mask, dtype: str) -> Var:
    other = _operand(step)
    require(dtype_name(other) == dtype, "a {} mask on {} scores", dtype_name(other), dtype, at=other)
    return other


def alive(op: Builder, scores: Scores, dtype: str, keys: int) -> list[Var]:
    """For every guarded select: 1 for rows that keep a score, 0 for rows that keep none; its axis ``keys`` is 1."""
    made: list[Var] = []
    for step in scores.guarded:
        cond: Var = step.op.inputs["cond"]
        kept = cond if step.scores == "a" else once(op, "logical_not", x=cond)
        number = once(op, "cast", x=kept, dtype=dtype)
        if number.rank >= -keys:
            number = once(op, "reduce_max", x=number, axes=[keys], keep_dims=True)
        made.append(number)
    return made


def fits(var: Var, shape: tuple[Any, ...]) -> bool:
    """Whether ``var`` broadcasts to ``shape`` without making it larger; symbols may be equal."""
    mine = shape_of(var)
    pairs = zip(reversed(mine), reversed(shape), strict=False)
    return len(mine) <= len(shape) and all(
        dim == 1 or dim == want or is_symbolic(want) or (is_symbolic(dim) and want != 1) for dim, want in pairs
    )

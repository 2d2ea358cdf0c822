"""Products of two values, ``matmul`` or ``einsum``, by what their axes are for."""

from __future__ import annotations

from typing import Any, NamedTuple

from milopt.building import Builder
from milopt.mil import Operation, Var, constant, is_symbolic, refine_shape, shape_of
from milopt.reports import require

__all__ = ["Axes", "Result", "operand", "permuted", "read_operand", "read_result", "reshaped", "with_symbols"]


class Axes(NamedTuple):
    """The axes of an operand, counted from the end: ``inner`` is summed over, ``outer`` is its own."""

    batch: tuple[int, ...]
    outer: int
    inner: int

    @property
    def order(self) -> tuple[int, ...]:
        return (*self.batch, self.outer, self.inner)


class Result(NamedTuple):
    """The axes of a product, counted from the end: those of x, and of y, that are not summed over."""

    batch: tuple[int, ...]
    x: int
    y: int


def operand(op: Operation, side: str) -> Var:
    """``x`` or ``y`` of a matmul, or the first or second value of an einsum."""
    found: Var = op.inputs[side] if op.op_type == "matmul" else op.inputs["values"]["xy".index(side)]
    return found


def read_operand(op: Operation, side: str) -> Axes:
    """What the axes of an operand are; NoMatch where the operands differ in rank."""
    ranks = {operand(op, each).rank for each in "xy"}
    require(len(ranks) == 1, "its operands are of ranks {}", sorted(ranks), at=op)
    (rank,) = ranks
    if op.op_type == "einsum":  # nchw,nwhu->nchu is all that MIL has, and chw,whu->chu
        outer, inner = (-3, -1) if side == "x" else (-1, -3)
        return Axes(_einsum_batch(rank), outer, inner)
    flipped = bool(constant(op.inputs[f"transpose_{side}"]))
    outer, inner = (-2, -1) if (side == "x") != flipped else (-1, -2)
    return Axes(tuple(range(-rank, -2)), outer, inner)


def _einsum_batch(rank: int) -> tuple[int, ...]:
    return (-4, -2) if rank == 4 else (-2,)


def read_result(op: Operation) -> Result:
    rank = op.outputs[0].rank
    if op.op_type == "einsum":
        return Result(_einsum_batch(rank), -3, -1)
    return Result(tuple(range(-rank, -2)), -2, -1)


def permuted(op: Builder, var: Var, perm: tuple[int, ...]) -> Var:
    """``transpose(var, perm)``, merged with one that makes ``var``; nothing where it moves no axis."""
    axes = [each % var.rank for each in perm]
    if axes == sorted(axes):
        return var
    made = var.op
    if made is not None and made.op_type == "transpose":
        inner = [int(each) % var.rank for each in constant(made.inputs["perm"])]
        var, axes = made.inputs["x"], [inner[each] for each in axes]
    if axes == sorted(axes):
        return var
    moved: Var = op.transpose(x=var, perm=axes)
    return moved


def reshaped(op: Builder, var: Var, shape: tuple[Any, ...]) -> Var:
    """``reshape(var, shape)``, whose symbols it gets, merged with reshapes that make ``var``.

    NoMatch where more than one dimension is symbolic: coremltools takes the 0 that MIL has for these for a size.
    """
    if shape_of(var) == shape:
        return var
    source: Var = var
    while source.op is not None and source.op.op_type in ("reshape", "expand_dims", "squeeze"):
        source = source.op.inputs["x"]
        if shape_of(source) == shape:
            return source
    wanted = [-1 if is_symbolic(dim) else dim for dim in shape]
    require(wanted.count(-1) < 2, "its shape {} can't be written: two dimensions are symbolic", shape, at=var)
    made: Var = op.reshape(x=var, shape=wanted)
    return with_symbols(made, shape)


def with_symbols(var: Var, shape: tuple[Any, ...]) -> Var:
    """``var`` with the symbols of ``shape``, which type inference names anew; NoMatch where a number differs."""
    mine = shape_of(var)
    fits = len(mine) == len(shape) and all(
        is_symbolic(one) or is_symbolic(other) or one == other for one, other in zip(mine, shape, strict=True)
    )
    require(fits, "the replacement is of shape {}, not {}", mine, shape, at=var)
    known = tuple(old if not is_symbolic(old) else new for old, new in zip(mine, shape, strict=True))
    return var if known == mine else refine_shape(var, known)

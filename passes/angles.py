"""What a program computes from integer positions through constants alone, as a table over all positions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from milopt.mil import Operation, Var, constant, dtype_name, flat
from milopt.passes.frequencies import exact_frequencies
from milopt.reports import require

__all__ = ["Tabulated", "tabulate"]

Array = np.ndarray[Any, Any]
Axes = tuple[int | None, ...]


@dataclass(frozen=True)
class Tabulated:
    """A value as a function of positions.

    ``axes`` says of each axis of the value which axis of ``positions`` it runs along, or ``None``. ``table`` is float64
    (rows, *dims): row p is the value where the position is p; dims are 1 along the axes of positions. A constant has no
    ``positions`` and one row. ``notes`` tell of constants that were not taken as they are.
    """

    positions: Var | None
    axes: Axes
    table: Array
    notes: tuple[str, ...] = ()


Read = Callable[[Var], Tabulated]


def tabulate(var: Var, rows: int, *, as_stored: bool = False) -> Tabulated:
    """``var`` for the positions 0 to ``rows`` - 1, computed in float64.

    Roundings to fp16 on the way are not imitated: a table is there to be without them. That of the frequencies is taken
    back where it can be, unless ``as_stored``. Raises NoMatch where ``var`` is not a function of one integer value
    alone, element by element.
    """

    def read(var: Var) -> Tabulated:
        if (array := constant(var)) is not None:
            values, note = np.asarray(array, np.float64), ""
            if not as_stored:
                values, note = exact_frequencies(np.asarray(array))
            return Tabulated(None, (None,) * values.ndim, values[None], (note,) if note else ())
        if _is_integer(var):
            return _positions(var, rows)
        require(var.op is not None, "it depends on a {} input, not on integer positions alone", dtype_name(var), at=var)
        assert var.op is not None
        require(var.op.op_type in _STEPS, "its angles pass through {}", var.op.op_type, at=var)
        return _STEPS[var.op.op_type](var.op, read)

    return read(var)


def _is_integer(var: Var) -> bool:
    return dtype_name(var).startswith(("int", "uint"))


def _positions(var: Var, rows: int) -> Tabulated:
    """The integers at the bottom; unit axes and casts between integers on top of them are looked through."""
    axes: Axes = tuple(range(var.rank))
    op = var.op
    if op is not None and op.op_type == "expand_dims":
        inner = _positions(op.inputs["x"], rows)
        return _expanded_to(inner, _axes_of(op, var.rank), var.rank)
    if op is not None and op.op_type == "cast" and _is_integer(op.inputs["x"]):
        return _positions(op.inputs["x"], rows)
    table = np.expand_dims(np.arange(rows, dtype=np.float64), tuple(range(1, var.rank + 1)))
    return Tabulated(var, axes, table)


def _axes_of(op: Operation, rank: int) -> set[int]:
    return {int(axis) % rank for axis in constant(op.inputs["axes"])}


def _expanded_to(inner: Tabulated, added: set[int], rank: int) -> Tabulated:
    rest = iter(inner.axes)
    axes = tuple(None if at in added else next(rest) for at in range(rank))
    return replace(inner, axes=axes, table=np.expand_dims(inner.table, tuple(at + 1 for at in added)))


def _same(op: Operation, read: Read) -> Tabulated:
    return read(op.inputs["x"])


def _wave(op: Operation, read: Read) -> Tabulated:
    angles = _same(op, read)
    return replace(angles, table=np.cos(angles.table) if op.op_type == "cos" else np.sin(angles.table))


def _expanded(op: Operation, read: Read) -> Tabulated:
    rank = op.outputs[0].rank
    return _expanded_to(_same(op, read), _axes_of(op, rank), rank)


def _transposed(op: Operation, read: Read) -> Tabulated:
    return _permuted(_same(op, read), [int(axis) for axis in constant(op.inputs["perm"])])


def _permuted(inner: Tabulated, perm: list[int]) -> Tabulated:
    rank = len(inner.axes)
    perm = [axis % rank for axis in perm]
    table: Array = np.transpose(inner.table, [0, *[axis + 1 for axis in perm]])
    return replace(inner, axes=tuple(inner.axes[axis] for axis in perm), table=table)


def _joined(op: Operation, read: Read) -> Tabulated:
    parts = [read(var) for var in flat(op.inputs["values"])]
    axis = int(constant(op.inputs["axis"])) % op.outputs[0].rank
    first = parts[0]
    require(not constant(op.inputs["interleave"]), "its angles are interleaved", at=op)
    require(all(part.axes == first.axes for part in parts), "it joins angles of different shapes", at=op)
    require(first.axes[axis] is None, "it joins angles along the positions", at=op)
    table = np.concatenate([part.table for part in parts], axis + 1)
    return replace(first, positions=_one_of(parts, op), table=table, notes=_notes(parts))


def _one_of(parts: list[Tabulated], op: Operation) -> Var | None:
    found = dict.fromkeys(part.positions for part in parts if part.positions is not None)
    require(len(found) < 2, "it depends on two integer values", at=op)
    return next(iter(found), None)


def _notes(parts: list[Tabulated]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(note for part in parts for note in part.notes))


def _combined(op: Operation, apply: Callable[[Array, Array], Array], parts: list[Tabulated]) -> Tabulated:
    """``apply`` element by element to two values, with broadcasting."""
    rank = max(len(part.axes) for part in parts)
    x, y = (_expanded_to(part, set(range(rank - len(part.axes))), rank) for part in parts)
    axes: list[int | None] = []
    for at, (a, b) in enumerate(zip(x.axes, y.axes, strict=True)):
        require(None in (a, b) or a == b, "it mixes positions", at=op)
        axes.append(b if a is None else a)
        still = axes[-1] is None or (x.table.shape[at + 1] == 1 and y.table.shape[at + 1] == 1)
        require(still, "a constant varies along the positions", at=op)
    along = [axis for axis in axes if axis is not None]
    require(len(along) == len(set(along)), "it mixes positions", at=op)
    return Tabulated(_one_of(parts, op), tuple(axes), apply(x.table, y.table), _notes(parts))


def _elementwise(op: Operation, read: Read) -> Tabulated:
    parts = [read(op.inputs[name]) for name in ("x", "y")]
    return _combined(op, _ELEMENTWISE[op.op_type], parts)


def _outer(op: Operation, read: Read) -> Tabulated:
    """A matrix product over an axis of one element: every position times every frequency."""
    parts: list[Tabulated] = []
    for name, summed in (("x", -1), ("y", -2)):
        part = read(op.inputs[name])
        require(len(part.axes) > 1, "it sums over angles", at=op)
        if constant(op.inputs[f"transpose_{name}"]):
            rank = len(part.axes)
            part = _permuted(part, [*range(rank - 2), rank - 1, rank - 2])
        unit = part.axes[summed] is None and part.table.shape[summed] == 1
        require(unit, "it sums over angles", at=op)
        parts.append(part)
    return _combined(op, np.multiply, parts)


_ELEMENTWISE: dict[str, Callable[[Array, Array], Array]] = {
    "mul": np.multiply,
    "real_div": np.divide,
    "add": np.add,
    "sub": np.subtract,
}
_STEPS: dict[str, Callable[[Operation, Read], Tabulated]] = {
    "cast": _same,
    "identity": _same,
    "cos": _wave,
    "sin": _wave,
    "expand_dims": _expanded,
    "transpose": _transposed,
    "concat": _joined,
    "matmul": _outer,
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
}

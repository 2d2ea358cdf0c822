"""What a program computes from integer positions through constants alone, as a table over all positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, TypeAlias

import numpy as np

from milopt.mil import Operation, Var, constant, dtype_name, flat, is_symbolic, shape_of
from milopt.passes.frequencies import angle_error, exact_frequencies
from milopt.passes.rotary_forms import Form
from milopt.reports import require

__all__ = ["Tabulated", "tabulate"]

Array: TypeAlias = np.ndarray[Any, Any]
Axes: TypeAlias = tuple[int | None, ...]


@dataclass(frozen=True)
class Tabulated:
    """A value as a function of positions.

    ``axes`` says of each axis of the value which axis of ``positions`` it runs along, or ``None``. ``table`` is float64
    (rows, *dims): row p is the value where the position is p; dims are 1 along the axes of positions. A constant has no
    ``positions`` and one row. ``notes`` tell of constants that were not taken as they are, ``forms`` which closed forms
    they have.
    """

    positions: Var | None
    axes: Axes
    table: Array
    notes: tuple[str, ...] = ()
    forms: tuple[Form, ...] = ()


def tabulate(var: Var, rows: int, *, as_stored: bool = False, approximate: bool = False) -> Tabulated:
    """``var`` for the positions 0 to ``rows`` - 1, computed in float64.

    Roundings to fp16 on the way are not imitated: a table is there to be without them. That of the frequencies is taken
    back, unless ``as_stored``. Raises NoMatch where it can't be, unless ``approximate``, and where ``var`` is not a
    function of one integer value alone, element by element.
    """
    return _Reader(rows, as_stored, approximate)(var)


@dataclass(frozen=True)
class _Reader:
    rows: int
    as_stored: bool
    approximate: bool

    def __call__(self, var: Var) -> Tabulated:
        if constant(var) is not None:
            return self.constant(var, restored=True)
        if _is_integer(var):
            return _positions(var, self.rows)
        require(var.op is not None, "it depends on a {} input, not on integer positions alone", dtype_name(var), at=var)
        assert var.op is not None
        require(var.op.op_type in _STEPS, "its angles pass through {}", var.op.op_type, at=var)
        return _STEPS[var.op.op_type](var.op, self)

    def constant(self, var: Var, *, restored: bool, wavelengths: bool = False) -> Tabulated:
        """A constant, with the rounding of frequencies taken back if it is to be ``restored``."""
        array: Array = np.asarray(constant(var))
        stored = Tabulated(None, (None,) * array.ndim, array.astype(np.float64)[None])
        if self.as_stored or not restored:
            return stored
        last = self.rows - 1
        found = exact_frequencies(array, last, wavelengths=wavelengths)
        if found.form is not None:
            note = f"inverse frequencies that fp16 had rounded were restored: {found.form}"
            return replace(stored, table=found.values[None], notes=(note,), forms=(found.form,))
        if not found.why:
            return stored
        error = angle_error(1 / array if wavelengths else array, last)
        require(
            self.approximate,
            "fp16 has rounded its inverse frequencies, and {}: at position {} an angle may be {:.2g} rad off; "
            "approximate=true makes the table nevertheless",
            found.why,
            last,
            error,
            at=var,
        )
        note = (
            f"the angles keep the fp16 rounding of the inverse frequencies, and may be {error:.2g} rad off at position "
            f"{last}: {found.why}"
        )
        return replace(stored, notes=(note,))


Read: TypeAlias = _Reader


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


def _tiled(op: Operation, read: Read) -> Tabulated:
    require(constant(op.inputs["reps"]) is not None, "how often it repeats angles is computed", at=op)
    inner, counts = _same(op, read), [int(count) for count in constant(op.inputs["reps"])]
    still = all(count == 1 for count, axis in zip(counts, inner.axes, strict=True) if axis is not None)
    require(still, "it repeats angles along the positions", at=op)
    return replace(inner, table=np.tile(inner.table, [1, *counts]))


def _reshaped(op: Operation, read: Read) -> Tabulated:
    """Between the positions' axes the others may be split and joined; ``repeat_interleave`` is made of such."""
    inner, shape = _same(op, read), shape_of(op.outputs[0])
    axes = _regrouped(inner, _named_alike(shape_of(op.inputs["x"]), shape), shape)
    require(axes is not None, "it reshapes angles across the positions", at=op)
    assert axes is not None
    sizes = [1 if axis is not None else int(size) for axis, size in zip(axes, shape, strict=True)]
    return replace(inner, axes=axes, table=np.reshape(inner.table, (len(inner.table), *sizes)))


def _named_alike(given: Sequence[Any], shape: Sequence[Any]) -> list[Any]:
    """The sizes ``given``, with a single symbol named as the single one of ``shape``, to which they're reshaped.

    Both shapes hold as many elements, so the two are equal where all other sizes are.
    """
    mine, theirs = ([size for size in sizes if is_symbolic(size)] for sizes in (given, shape))
    alike = len(mine) == len(theirs) == 1
    return [theirs[0] if alike and is_symbolic(size) else size for size in given]


def _regrouped(inner: Tabulated, given: Sequence[Any], shape: Sequence[Any]) -> Axes | None:
    """Which axis of the positions each axis of ``shape`` runs along, where the reshape leaves those whole."""
    axes: list[int | None] = []
    rest = list(shape)
    left = 1  # elements, between two axes of positions, that no axis of the result has yet
    for axis, size in zip(inner.axes, given, strict=True):
        if axis is None:
            left *= size
            continue
        while rest and (left != 1 or (rest[0] == 1 and size != 1)):
            if left % rest[0]:  # as by a symbol
                return None
            left //= rest.pop(0)
            axes.append(None)
        if not rest or rest.pop(0) != size:
            return None
        axes.append(axis)
    if any(map(is_symbolic, rest)) or prod(rest) != left:
        return None
    return (*axes, *[None] * len(rest))


def _joined(op: Operation, read: Read) -> Tabulated:
    parts = [read(var) for var in flat(op.inputs["values"])]
    axis = int(constant(op.inputs["axis"])) % op.outputs[0].rank
    first = parts[0]
    require(not constant(op.inputs["interleave"]), "its angles are interleaved", at=op)
    require(all(part.axes == first.axes for part in parts), "it joins angles of different shapes", at=op)
    require(first.axes[axis] is None, "it joins angles along the positions", at=op)
    table = np.concatenate([part.table for part in parts], axis + 1)
    return replace(first, positions=_one_of(parts, op), table=table, notes=_notes(parts), forms=_forms(parts))


def _one_of(parts: list[Tabulated], op: Operation) -> Var | None:
    found = dict.fromkeys(part.positions for part in parts if part.positions is not None)
    require(len(found) < 2, "it depends on two integer values", at=op)
    return next(iter(found), None)


def _notes(parts: list[Tabulated]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(note for part in parts for note in part.notes))


def _forms(parts: list[Tabulated]) -> tuple[Form, ...]:
    return tuple(dict.fromkeys(form for part in parts for form in part.forms))


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
    return Tabulated(_one_of(parts, op), tuple(axes), apply(x.table, y.table), _notes(parts), _forms(parts))


def _elementwise(op: Operation, read: Read) -> Tabulated:
    kind, parts = op.op_type, list[Tabulated]()
    for name in ("x", "y"):
        var = op.inputs[name]
        if constant(var) is None:
            parts.append(read(var))
        else:  # what is added is a phase, what is divided by a wavelength
            wavelengths = (kind, name) == ("real_div", "y")
            multiplies = kind == "mul" or wavelengths
            parts.append(read.constant(var, restored=multiplies, wavelengths=wavelengths))
    if kind == "mul":
        parts = [_unrounded(parts[0], parts[1].forms), _unrounded(parts[1], parts[0].forms)]
    return _combined(op, _ELEMENTWISE[kind], parts)


def _unrounded(part: Tabulated, forms: tuple[Form, ...]) -> Tabulated:
    """Yarn's attention factor, where ``part`` is that as an fp16 number."""
    if part.positions is None and part.table.size == 1:
        for form in forms:
            factor = form.attention_factor
            if float(part.table.item()) == float(np.float16(factor)):
                return replace(part, table=np.full_like(part.table, factor))
    return part


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
    "tile": _tiled,
    "reshape": _reshaped,
    "concat": _joined,
    "matmul": _outer,
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
}

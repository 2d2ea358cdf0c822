"""Programs that miss a rule's pattern by one detail: a literal, an axis, a type or a use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from hypothesis import note, reject
from hypothesis import strategies as st

from milopt.matching import COMMUTATIVE, Match
from milopt.mil import Operation, Program, Var, constant, dtype_name, flat, mb, shape_of, target
from milopt.rules import Rule
from milopt.testing.notes import noted
from milopt.testing.patterns import Asked, drawn, first_match
from milopt.testing.rebuilding import Edit, rebuilt
from milopt.testing.scope import REFUSALS, Draw, Maker

__all__ = ["changes", "near_misses"]

Replacement: TypeAlias = Callable[[dict[str, Any]], Any]

# op types that are taken for each other when a rule is written carelessly
_SIBLINGS = (
    ("add", "sub", "mul", "real_div", "maximum", "minimum"),
    ("cos", "sin"),
    ("sqrt", "rsqrt", "square", "abs", "tanh"),
    ("reduce_mean", "reduce_sum", "reduce_max", "reduce_min"),
    ("greater", "greater_equal", "less", "less_equal", "equal", "not_equal"),
    ("relu", "relu6", "sigmoid", "silu", "tanh"),
    ("softmax",),
)
_WORDS = (
    ("fp16", "fp32", "int32"),
    ("valid", "same"),
    ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION"),
    ("constant", "reflect", "replicate"),
)


def near_misses(
    rule: Rule[Any] | Sequence[Rule[Any]],
    *,
    dtypes: Sequence[str] = ("fp32", "fp16", "int32"),
    opset: target = target.iOS18,
    values: Mapping[str, Maker] | None = None,
    attempts: int = 12,
) -> st.SearchStrategy[Program]:
    """Programs of :func:`matching` on which the rule fires, with one thing changed at one of the ops it matched.

    That is a number, an axis, a flag or a word, written in the program or left at its default; the two inputs of an
    op, or one of them for another value;
    the type of a value or of an op; the shape of an input; or one more use of a value.
    All of them come up. On such a program the rule must refuse, or its result must still be right:
    ``check_rule(..., must_fire=False)``. A failure says what was changed.
    """
    asked = [Asked(each, tuple(dtypes), opset, dict(values or {}), attempts, surroundings=False) for each in flat(rule)]
    return st.sampled_from(asked).flatmap(_near_misses)


@st.composite
def _near_misses(draw: Draw, asked: Asked) -> Program:
    program, _ = drawn(draw, asked, must_fire=True)
    match = first_match(asked.rule, program)
    edits: list[Edit] = [] if match is None else list(changes(program, match))
    if not edits:
        reject()
    # hypothesis likes small numbers, and the first changes would be nearly all there are: scattered, all come up
    scattered: list[int] = np.random.default_rng(draw(st.integers(0, 2**16))).permutation(len(edits)).tolist()
    for edit in (edits[at] for at in scattered[:8]):
        try:
            changed = rebuilt(program, edit)
        except (*REFUSALS, ZeroDivisionError):  # a stride of 0
            continue
        note(f"changed: {edit.label}")
        return noted(changed, f"changed: {edit.label}")
    reject()
    return None


def changes(program: Program, match: Match) -> Iterator[Edit]:
    """Every single change at the ops of a match, in order."""
    ops = list(match.ops)
    for op in ops:
        where = op.outputs[0].name
        for name, value in op.inputs.items():
            if name.startswith("_") or op.blocks:
                continue
            if isinstance(value, Var) and constant(value) is not None:
                for said, number in _others(constant(value)):
                    yield Edit(f"{name} of {op.op_type} {where}: {said}", {(op, name): number})
            elif isinstance(value, Var):
                yield from _operands(op, name, where)
            elif value is not None and len(value) > 1:
                yield Edit(f"{name} of {op.op_type} {where}: in reverse", {(op, name): _reversed(name)})
        for name, default in op.default_inputs().items():
            if op.inputs.get(name) is None and isinstance(default, (bool, int, float, str)):
                for said, number in _others(np.asarray(default)[()]):
                    yield Edit(f"{name} of {op.op_type} {where}, a default: {said}", {(op, name): number})
        if {"x", "y"} <= op.inputs.keys() and op.op_type not in COMMUTATIVE:
            yield Edit(f"x and y of {op.op_type} {where}: swapped", _swapped(op))
        for sibling in next((each for each in _SIBLINGS if op.op_type in each), ()):
            if sibling != op.op_type:
                yield Edit(f"{op.op_type} {where}: {sibling} instead", op_types={op: sibling})
        if op not in match.roots and op.enclosing_block is program.functions["main"]:
            yield Edit(f"{where} is an output too", outputs=tuple(op.outputs[:1]))
    yield from _shapes(program)


def _swapped(op: Operation) -> dict[tuple[Operation, str], Any]:
    held: dict[str, Any] = {}

    def first(given: dict[str, Any]) -> Any:
        held["x"] = given["x"]
        return given["y"]

    def second(given: dict[str, Any]) -> Any:
        return held["x"]

    return {(op, "x"): first, (op, "y"): second}


def _reversed(name: str) -> Replacement:
    def reverse(given: dict[str, Any]) -> Any:
        return given[name][::-1]

    return reverse


def _tanh_of(name: str) -> Replacement:
    def tanh(given: dict[str, Any]) -> Any:
        return mb.tanh(x=given[name])

    return tanh


def _cast_of(name: str, dtype: str) -> Replacement:
    def cast(given: dict[str, Any]) -> Any:
        return mb.cast(x=given[name], dtype=dtype)

    return cast


def _operands(op: Operation, name: str, where: str) -> Iterator[Edit]:
    """The value for another one, and in another type on the way."""
    kind = dtype_name(op.inputs[name])
    if not kind.startswith("fp"):
        return
    yield Edit(f"{name} of {op.op_type} {where}: its tanh instead", {(op, name): _tanh_of(name)})
    other = "fp16" if kind == "fp32" else "fp32"

    def through(given: dict[str, Any]) -> Any:
        return mb.cast(x=mb.cast(x=given[name], dtype=other), dtype=kind)

    yield Edit(f"{name} of {op.op_type} {where}: through {other}", {(op, name): through})
    yield Edit(f"{name} of {op.op_type} {where}: as {other}", {(op, name): _cast_of(name, other)})


def _others(value: Any) -> Iterator[tuple[str, Any]]:
    """Values of the same kind, and how they differ."""
    if isinstance(value, (str, np.str_)):
        for word in next((each for each in _WORDS if str(value) in each), ()):
            if word != str(value):
                yield f"{value} -> {word}", word
        return
    array: Any = np.asarray(value)
    if array.dtype.kind == "b":
        if array.ndim == 0:
            yield f"{bool(array)} -> {not bool(array)}", not bool(array)
        return
    if array.dtype.kind not in "iuf" or array.size == 0:
        return
    if array.ndim == 0:
        for number in _numbers(array[()]):
            yield f"{array[()]} -> {number}", number
        return
    for at, number in ((0, array.flat[0]), (array.size - 1, array.flat[array.size - 1])):
        for other in _numbers(number)[:2]:
            changed = array.copy()
            changed.flat[at] = other
            yield f"element {at}, {number} -> {other}", changed
    if array.ndim == 1 and array.size > 1:
        yield "in reverse", array[::-1].copy()
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            yield "all of it twice", array * array.dtype.type(2)


def _numbers(value: Any) -> list[Any]:
    kind = value.dtype.type
    if value.dtype.kind in "iu":
        return [kind(value + 1), kind(value - 1) if value or value.dtype.kind == "i" else kind(2), kind(0)]
    with np.errstate(over="ignore"):
        # a tenth of a per cent is what coremltools takes for equal; of fp16 it is two steps
        return [kind(value * 1.001 + (0.001 if not value else 0)), kind(value * 2 + 1), kind(-value), kind(0)]


def _shapes(program: Program) -> Iterator[Edit]:
    """Inputs with an axis of another size, of size 1, one more or one less."""
    for name, var in program.functions["main"].inputs.items():
        shape = shape_of(var)
        if var.op is None and var.child_ops and not name.startswith("s"):
            for axis, dim in enumerate(shape):
                for size in (1, 5):
                    if dim != size:
                        changed = (*shape[:axis], size, *shape[axis + 1 :])
                        yield Edit(f"input {name}: axis {axis} of size {size}", shapes={name: changed})
            yield Edit(f"input {name}: one axis more", shapes={name: (1, *shape)})
            if len(shape) > 1:
                yield Edit(f"input {name}: one axis less", shapes={name: shape[1:]})

"""What the inputs of a function are for, read off the ops they flow into.

Random numbers only exercise a program if they mean something to it: token ids must exist, positions must lie in the
context, a mask must let something through.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np

from milopt.mil import Function, Operation, Var, arguments, constant, dtype_name, is_state, is_symbolic, shape_of

__all__ = ["Kind", "Role", "roles_of"]

Kind: TypeAlias = Literal["index", "position", "mask", "keep", "image", "flag", "integer", "number"]


@dataclass(frozen=True)
class Role:
    """How values for an input are to be drawn.

    ``index`` counts along an axis, ``position`` is turned into angles, ``mask`` is added to attention scores (or is
    their boolean mask), ``keep`` holds 1 where a token is looked at and 0 elsewhere; the rest is what its type says.
    ``high`` is the smallest value too large for it, where the program has such a limit.
    """

    kind: Kind
    high: int | None = None


def roles_of(function: Function, images: frozenset[str] = frozenset()) -> dict[str, Role]:
    """The role of every input that is not a state; ``images`` are those that the model's description calls so."""
    return {name: _role(name, var, name in images) for name, var in function.inputs.items() if not is_state(var)}


@dataclass(frozen=True)
class _Path:
    """What happened to the input on the way: a shift by whole numbers, a scaling, ``1 - x``, a product with other
    values, an addition to attention scores.
    """

    shift: int = 0
    scaled: bool = False
    reversed: bool = False
    mixed: bool = False
    added: bool = False


@dataclass
class _Uses:
    """What the input was seen to be."""

    high: int | None = None
    angle: bool = False
    mask: bool = False
    keep: bool = False

    def limit(self, size: Any, path: _Path) -> None:
        """It counts up to ``size``, after the shift. A shift by the whole size is a guard against negative indices."""
        if is_symbolic(size) or path.scaled or int(size) - path.shift <= 0:
            return
        high = int(size) - path.shift
        self.high = high if self.high is None else min(self.high, high)


def _role(name: str, var: Var, image: bool) -> Role:
    uses = _Uses()
    _follow(var, uses)
    kind, lower = dtype_name(var), name.lower()
    if image:
        return Role("image", 256)
    if kind == "bool":
        return Role("mask" if uses.mask or "mask" in lower else "flag")
    if uses.keep or ("mask" in lower and not kind.startswith("fp")):
        return Role("keep", 2)
    if uses.mask or "mask" in lower:
        return Role("mask")
    if uses.angle or "position" in lower:
        return Role("position", uses.high)
    if uses.high is not None:
        return Role("index", uses.high)
    return Role("number" if kind.startswith("fp") else "integer")


# one input in, the same numbers out, perhaps in another arrangement
# fmt: off
_MOVES = frozenset(
    {
        "concat", "expand_dims", "gather", "identity", "reshape", "slice_by_index", "slice_by_size", "split",
        "squeeze", "stack", "tile", "transpose",
    }
)
# fmt: on
# which input of an op counts along an axis of its ``x``; the axis is the op's own
_INDICES = {"gather": "indices", "gather_along_axis": "indices", "scatter": "indices", "scatter_along_axis": "indices"}
_COUNTS = {"slice_update": "begin", "slice_by_index": "begin", "slice_by_size": "begin"}


def _follow(var: Var, uses: _Uses) -> None:
    todo: list[tuple[Var, _Path]] = [(var, _Path())]
    seen: set[tuple[int, _Path]] = set()
    while todo:
        value, path = todo.pop()
        if (id(value), path) in seen:
            continue
        seen.add((id(value), path))
        for user in dict.fromkeys(value.child_ops):
            _note(value, user, path, uses)
            todo += [(out, onward) for onward in _onward(value, user, path) for out in user.outputs]


def _note(value: Var, op: Operation, path: _Path, uses: _Uses) -> None:
    """Let ``uses`` know if this op tells what the input is."""
    kind = op.op_type
    if kind in _INDICES and op.inputs[_INDICES[kind]] is value:
        data = op.inputs["data"] if kind.startswith("scatter") else op.inputs["x"]
        uses.limit(shape_of(data)[int(constant(op.inputs["axis"]))], path)
    elif kind == "gather_nd" and op.inputs["indices"] is value:
        depth = shape_of(value)[-1]
        for size in shape_of(op.inputs["x"])[: None if is_symbolic(depth) else depth]:
            uses.limit(size, path)
    elif kind == "one_hot" and op.inputs["indices"] is value:
        uses.limit(constant(op.inputs["one_hot_vector_size"]), path)
    elif kind in _COUNTS and op.inputs[_COUNTS[kind]] is value:
        for room in _room(op, value):
            uses.limit(room + 1, path)
    elif kind in ("cos", "sin"):
        uses.angle = True
    elif (kind == "softmax" and path.added) or (
        kind == "scaled_dot_product_attention" and op.inputs.get("attn_mask") is value
    ):
        uses.mask = True
        uses.keep |= path.reversed


def _room(op: Operation, begin: Var) -> Iterator[int]:
    """How far a slice of fixed size can be moved along the axes whose start is computed."""
    whole = shape_of(op.inputs["x"])
    part = shape_of(op.inputs["update"] if op.op_type == "slice_update" else op.outputs[0])
    computed = [True] * len(whole)
    if begin.op is not None and begin.op.op_type == "concat":
        starts: list[Var] = list(begin.op.inputs["values"])
        computed = [constant(each) is None for each in starts for _ in range(int(np.prod(shape_of(each))))]
    for all_of_it, taken, moves in zip(whole, part, computed, strict=False):
        if moves and not is_symbolic(all_of_it) and not is_symbolic(taken) and taken < all_of_it:
            yield int(all_of_it) - int(taken)


def _onward(value: Var, op: Operation, path: _Path) -> Iterator[_Path]:
    """The path behind ``op``, where the input's numbers come through it."""
    kind, inputs = op.op_type, op.inputs
    if kind in _MOVES and inputs.get("indices") is not value and inputs.get("begin") is not value:
        yield path
    elif kind == "cast":
        # a mask may be made by comparing; a number that was cast to bool is no number any more
        if constant(inputs["dtype"]) != "bool":
            yield path
    elif kind == "select" and inputs["cond"] is not value:
        yield path
    elif kind in ("add", "sub"):
        yield from _behind_sum(value, op, path)
    elif kind in ("mul", "real_div", "matmul", "linear") and not path.added:
        constants = sum(constant(var) is not None for _, var in arguments(op))
        yield replace(path, scaled=True, mixed=path.mixed or kind in ("matmul", "linear") or not constants)


def _is_scores(var: Var) -> bool:
    """Whether the value is a product of two computed values, perhaps scaled or squashed."""
    for _ in range(8):
        op = var.op
        if op is None:
            return False
        if op.op_type in ("matmul", "einsum"):
            return True
        if op.op_type not in ("mul", "real_div", "cast", "tanh", "reshape", "expand_dims", "squeeze", "transpose"):
            return False
        computed = [each for _, each in arguments(op) if constant(each) is None]
        if not computed:
            return False  # a constant that nobody folded
        var = computed[0]
    return False


def _behind_sum(value: Var, op: Operation, path: _Path) -> Iterator[_Path]:
    first = op.inputs["x"] is value
    number = constant(op.inputs["y" if first else "x"])
    if number is None:
        yield replace(path, mixed=True, added=not path.mixed and _is_scores(op.inputs["y" if first else "x"]))
    elif np.size(number) != 1:
        yield replace(path, scaled=True)
    elif op.op_type == "sub" and not first:
        yield replace(path, scaled=True, reversed=True)
    else:
        whole = float(np.ravel(number)[0])
        step = -whole if op.op_type == "sub" else whole
        yield replace(path, shift=path.shift + int(step)) if step.is_integer() else replace(path, scaled=True)

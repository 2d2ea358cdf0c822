"""The weights of a model: which arrays they are, where they stand and what uses them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple, TypeAlias

from milopt.mil import (
    Operation,
    Var,
    arguments,
    constant,
    dtype_name,
    is_output,
    operations,
    shape_of,
    types,
    weight_key,
)
from milopt.package import Model
from milopt.reports import require

__all__ = [
    "CHANNEL_AXES",
    "INPUT_AXES",
    "Axes",
    "Layout",
    "Place",
    "Weight",
    "axes_at",
    "consumers",
    "find_weights",
    "is_weight",
    "layout_at",
    "layouts_of",
    "require_axis",
]

Array: TypeAlias = Any  # numpy.ndarray; its generic form is more than pyright strict can follow


class Layout(NamedTuple):
    """Which bytes belong to one output channel: an array read as (``outer``, ``channels``, ``inner``).

    The same for (O, I) and (O, I, 1, 1), whatever op they feed.
    """

    outer: int
    channels: int
    inner: int


@dataclass(frozen=True)
class Place:
    """A ``const`` op in a function, or the ``constexpr_*`` op that makes the weight."""

    function: str
    op: Operation

    @property
    def var(self) -> Var:
        return self.op.outputs[0]


@dataclass
class Weight:
    """One array of numbers and the places that hold it, in all functions and whatever their shapes."""

    array: Array
    places: list[Place] = field(default_factory=list[Place])

    @property
    def name(self) -> str:
        return self.places[0].var.name

    def users(self) -> Iterator[tuple[Place, str, Operation]]:
        """``(place, input name, op)`` for each op input that the array feeds."""
        for place in self.places:
            for name, user in consumers(place.var):
                yield place, name, user


def find_weights(model: Model) -> list[Weight]:
    """Every constant array of fp16 or fp32 that some op input named in ``CHANNEL_AXES`` holds, in program order.

    Constants with the same bytes in memory are one weight.
    """
    found: dict[Any, Weight] = {}
    for name, function in model.functions.items():
        for op in filter(_is_float_tensor, operations(function)):
            array: Array = constant(op.outputs[0])
            found.setdefault(weight_key(array), Weight(array)).places.append(Place(name, op))
    return list(filter(is_weight, found.values()))


def is_weight(weight: Weight) -> bool:
    """Whether some op input named in ``CHANNEL_AXES`` holds it."""
    return any((op.op_type, name) in CHANNEL_AXES for _, name, op in weight.users())


def _is_float_tensor(op: Operation) -> bool:
    """Asked before the constant is: elements of less than a byte would be unpacked for nothing."""
    kind = op.outputs[0].sym_type if op.op_type == "const" else None
    return bool(types.is_tensor(kind)) and dtype_name(op.outputs[0]) in ("fp16", "fp32")


def consumers(var: Var) -> Iterator[tuple[str, Operation]]:
    """``(input name, op)`` for each use of ``var``."""
    for op in dict.fromkeys(var.child_ops):
        for name, value in arguments(op):
            if value is var:
                yield name, op


def _transposed(op: Operation, name: str) -> bool:
    return bool(constant(op.inputs.get(name)))


Axes: TypeAlias = Mapping[tuple[str, str], Callable[[Operation], int]]

# (op type, input) -> the axis of the weight that holds its output channels, for a gather the one it takes rows from;
# coremltools' choice (optimize/_utils.py, select_input_output_channel_axis), constraints W4
CHANNEL_AXES: Axes = {
    ("linear", "weight"): lambda op: 0,
    ("conv", "weight"): lambda op: 0,
    ("conv_transpose", "weight"): lambda op: 1,
    ("matmul", "x"): lambda op: -1 if _transposed(op, "transpose_x") and len(shape_of(op.x)) > 1 else -2,
    ("matmul", "y"): lambda op: -2 if _transposed(op, "transpose_y") or len(shape_of(op.y)) == 1 else -1,
    ("gather", "x"): lambda op: int(constant(op.axis)),
}


def _beside_rows(op: Operation) -> int:
    """A gather's rows lie along its axis; their blocks along the last other one."""
    axis, rank = int(constant(op.axis)), len(shape_of(op.x))
    return -2 if axis % rank == rank - 1 else -1


# (op type, input) -> the axis of the weight that holds its input channels; coremltools' choice, as for CHANNEL_AXES
INPUT_AXES: Axes = {
    ("linear", "weight"): lambda op: 1,
    ("conv", "weight"): lambda op: 1,
    ("conv_transpose", "weight"): lambda op: 0,
    ("matmul", "x"): lambda op: -3 - CHANNEL_AXES["matmul", "x"](op),
    ("matmul", "y"): lambda op: -3 - CHANNEL_AXES["matmul", "y"](op),
    ("gather", "x"): _beside_rows,
}


def axes_at(axis: int) -> Axes:
    """``axis`` for every use of a weight."""
    return dict.fromkeys(CHANNEL_AXES, lambda op: axis)


def require_axis(weight: Weight, axis: int | None) -> None:
    """Raise NoMatch where the weight has no such axis; ``None`` stands for those that its uses have."""
    for place in weight.places:
        rank = len(shape_of(place.var))
        require(axis is None or -rank <= axis < rank, "has no axis {}", axis, at=place.op)


def layouts_of(weight: Weight, axes: Axes = CHANNEL_AXES) -> dict[Layout, str]:
    """The layouts that the uses of ``weight`` have, each with one such use. Raises NoMatch where a use has none.

    ``axes`` says for each use which axis counts: that of the output channels, or another.
    """
    found: dict[Layout, str] = {}
    for place, name, op in weight.users():
        use = f"{op.op_type}.{name} of {op.outputs[0].name}"
        axis = axes.get((op.op_type, name))
        require(axis is not None, "{} holds it too, which is no weight of a layer", use, at=place.op)
        require(not (op.op_type == "gather" and _only_scales(op)), "{} looks up factors, not weights", use, at=place.op)
        assert axis is not None
        found[layout_at(shape_of(place.var), axis(op))] = use
    for place in weight.places:
        require(not is_output(place.var), "it is an output", at=place.op)
    return found


def layout_at(shape: tuple[int, ...], axis: int) -> Layout:
    """How ``axis`` of an array of ``shape`` lies in memory."""
    if not -len(shape) <= axis < len(shape):  # a matmul by a vector: one channel
        return Layout(1, 1, prod(shape))
    axis %= len(shape)
    return Layout(prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :]))


_MOVES = frozenset(
    {"cast", "concat", "expand_dims", "reshape", "slice_by_index", "split", "squeeze", "tile", "transpose"}
)


def _only_scales(op: Operation) -> bool:
    """Whether all that becomes of the result, past movements and constant factors, are products with computed values.

    So it is with tables of cosines and sines, where an error of a row is one of every token at that position.
    """
    uses = [user for var in op.outputs for user in var.child_ops]
    if not uses or any(is_output(var) for var in op.outputs):
        return False
    return all(_is_product(use) or (_is_move(use) and _only_scales(use)) for use in uses)


def _is_move(op: Operation) -> bool:
    return op.op_type in _MOVES or (op.op_type == "mul" and _constants(op) == 1)


def _is_product(op: Operation) -> bool:
    return op.op_type == "mul" and op.x is not op.y and _constants(op) == 0


def _constants(op: Operation) -> int:
    return sum(constant(var) is not None for _, var in arguments(op))

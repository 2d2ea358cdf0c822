"""Compressed weights -> the numbers they stand for, bit for bit as coremltools decodes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np

from milopt.building import Builder
from milopt.mil import (
    Operation,
    Var,
    arguments,
    constant,
    dtype_name,
    flat,
    is_constexpr,
    is_output,
    operations,
    shape_of,
    target,
    value_names,
)
from milopt.opaque import Opaque
from milopt.package import Model
from milopt.package.tensors import box_of, bytes_of, stored_key
from milopt.package.weights import Packed
from milopt.passes.compressing import CompressionReport, put_in_place
from milopt.passes.uses import CHANNEL_AXES, Place, Weight, consumers, find_weights, is_weight
from milopt.pipeline import Pass
from milopt.reports import Report
from milopt.spool import Slot, Spool

__all__ = [
    "Decompress",
    "compressed_bytes",
    "compressed_places",
    "compressed_weights",
    "decoded",
    "stored_bytes",
    "weights_again",
]

Array: TypeAlias = Any  # numpy.ndarray; its generic form is more than pyright strict can follow


@dataclass(frozen=True)
class Decompress(Pass):
    """``constexpr_*``  ->  ``const`` of the numbers that it decodes to, chains of them as a whole.

    A weight that several functions make of the same tensors is decoded, and stored, once. Nothing is lost: the values
    are those that coremltools' ``decompress_weights`` gives.
    """

    name: ClassVar[str] = "decompress"
    opset: ClassVar[int] = int(target.iOS15)

    def run(self, model: Model) -> Report:
        report = CompressionReport(self.name)
        weights = compressed_weights(model)
        taken = {name: value_names(function) for name, function in model.functions.items()}
        for weight in weights:
            report.restore(weight, stored_bytes(weight.places[0].op))
            for place in weight.places:
                made = Builder(place.op, taken[place.function]).const(val=weight.array.reshape(shape_of(place.var)))
                put_in_place(place, made)
            report.tried += len(weight.places)
            report.applied += len(weight.places)
        if weights:
            held = sum(weight.array.nbytes for weight in weights)
            report.notes.append(f"{len(weights)} weights are {held:,} bytes as numbers")
        return report


def stored_bytes(op: Operation) -> int:
    """The bytes of the constants that a weight is made of."""
    parts = {var for _, var in arguments(op)}
    made = sum(bytes_of(shape_of(var), dtype_name(var)) for var in parts if _is_const(var))
    return made + sum(stored_bytes(maker) for maker in {var.op for var in parts if not _is_const(var)} if maker)


def _is_const(var: Var) -> bool:
    return var.op is not None and var.op.op_type == "const"


def weights_again(model: Model) -> list[Weight]:
    """What :func:`find_weights` gives, and the compressed weights among them as they are decoded; in program order."""
    found = [*find_weights(model), *filter(is_weight, compressed_weights(model))]
    order = {op: at for at, op in enumerate(op for function in model.functions.values() for op in operations(function))}
    return sorted(found, key=lambda weight: order[weight.places[0].op])


def compressed_bytes(model: Model) -> tuple[int, int]:
    """The bytes of all compressed weights of ops, as stored and as numbers; one that several hold counts once."""
    firsts = [places[0].op for places in compressed_places(model)]
    numbers = (bytes_of(shape_of(op.outputs[0]), dtype_name(op.outputs[0])) for op in firsts)
    return sum(map(stored_bytes, firsts)), sum(numbers)


def compressed_places(model: Model) -> list[list[Place]]:
    """The places of every weight of an op that ``constexpr_*`` ops make, in program order."""
    return [
        places
        for places in _compressed(model)
        if any((op.op_type, name) in CHANNEL_AXES for place in places for name, op in consumers(place.var))
    ]


def compressed_weights(model: Model) -> list[Weight]:
    """Every weight that ``constexpr_*`` ops make, decoded into a file without a name, in program order."""
    spool = Spool()
    slots: list[tuple[list[Place], Slot]] = []
    for each in _compressed(model):
        array = decoded(each[0].op.outputs[0])
        slots.append((each, spool.add(array, dtype_name(each[0].var), array.size)))
    spool.finish()
    arrays: list[Array] = [spool.flat(slot) for _, slot in slots]
    return [Weight(array.reshape(shape_of(each[0].var)), each) for array, (each, _) in zip(arrays, slots, strict=True)]


def _compressed(model: Model) -> list[list[Place]]:
    """The places of every weight that ``constexpr_*`` ops make, in program order."""
    places: dict[object, list[Place]] = {}
    for name, function in model.functions.items():
        for op in filter(_ends, operations(function)):
            places.setdefault(_key(op.outputs[0]), []).append(Place(name, op))
    return list(places.values())


def _ends(op: Operation) -> bool:
    """Whether the op's result is a weight, and not what another ``constexpr_*`` is made of."""
    if not is_constexpr(op.op_type) or isinstance(op, Opaque) or len(op.outputs) != 1:
        return False
    users = op.outputs[0].child_ops
    return is_output(op.outputs[0]) or not users or not all(is_constexpr(user.op_type) for user in users)


def _key(var: Var, whole: tuple[int, ...] = ()) -> object:
    """The same for values that are decoded alike from the same tensors, whatever axes of length one they have.

    ``whole``: the shape of the weight, whose axes of length one tell nothing of its parts either.
    """
    own = shape_of(var)
    whole = whole or own
    shape = tuple(
        size for axis, size in enumerate(own) if len(own) < len(whole) or axis >= len(whole) or whole[axis] != 1
    )
    op = var.op
    assert op is not None
    if op.op_type == "const":
        box = box_of(var)
        stored = stored_key(box) if isinstance(box, Packed) or np.ndim(box) else np.asarray(box).tobytes()
        return dtype_name(var), shape, stored
    return op.op_type, shape, op.outputs.index(var), tuple((name, _key(each, whole)) for name, each in arguments(op))


def decoded(var: Var) -> Array:
    """The numbers of a constant, or of what ``constexpr_*`` ops make of constants; what is packed stays so."""
    op = var.op
    assert op is not None
    if op.op_type == "const":
        box = box_of(var)
        return box.opened() if isinstance(box, Packed) else constant(var)
    # here: the interpreter's rules come with torch
    from milopt.interpreter.ops.constexpr import constexpr

    given = {name: _argument(name, decoded(each)) for name, each in arguments(op)}
    found: Any = constexpr[op.op_type].function(**given)
    return flat(found)[op.outputs.index(var)] if isinstance(found, tuple) else found


def _argument(name: str, value: Any) -> Any:
    """Shapes and axes are plain numbers."""
    if name == "shape":
        return tuple(int(size) for size in value)
    return int(value) if name in ("axis", "vector_axis") else value

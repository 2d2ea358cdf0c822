"""The constants of a model as a package stores them: what is known of them without looking at their elements."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from milopt.mil import Function, Operation, Var, arguments, dtype_name, operations, shape_of, types, weight_key
from milopt.package.blobs import element_named
from milopt.package.model import Model
from milopt.package.weights import Packed, packed_of, piece_of
from milopt.package.writing import weight_file

__all__ = ["Stored", "box_of", "bytes_of", "stored_key", "stored_tensors"]

# Smaller constants in the specification are axes, scales and the like.
_FEWEST_ELEMENTS = 10


@dataclass(eq=False)
class Stored:
    """A tensor that a package holds in one place, however many functions and constants are made of it.

    ``bytes`` are those of its elements as stored, packed where they have less than 8 bits, without the entry of 64
    bytes that each has in a weight file. ``file`` is the weight file it lies in, or will be saved to, ``None`` for the
    specification. ``places`` are the ``const`` ops that hold it, with the names of their functions; their shapes may
    differ, and ``shape`` is that of the first.
    """

    key: object
    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    file: str | None
    box: Any = field(repr=False)
    places: list[tuple[str, Operation]] = field(default_factory=list[tuple[str, Operation]])

    @property
    def functions(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(function for function, _ in self.places))

    @property
    def users(self) -> tuple[str, ...]:
        """What takes it, as ``op type.input``; each once."""
        uses = (
            f"{user.op_type}.{name}"
            for _, op in self.places
            for user in dict.fromkeys(op.outputs[0].child_ops)
            for name, var in arguments(user)
            if var is op.outputs[0]
        )
        return tuple(dict.fromkeys(uses))


def stored_tensors(model: Model) -> list[Stored]:
    """Every distinct tensor of numbers in the model's constants, in program order; nothing of it is read.

    Constants in the specification count from 10 elements on. Tensors with the same bytes in one place are one; equal
    ones in different places are not (saving finds them).
    """
    found: dict[object, Stored] = {}
    for name, function in model.functions.items():
        for op in _constants(function):
            var, box = op.outputs[0], box_of(op.outputs[0])
            shape, dtype = shape_of(var), dtype_name(var)
            file = weight_file(op, model.spec_version)
            if box is None or (file is None and prod(shape) < _FEWEST_ELEMENTS):
                continue
            key = file, stored_key(box)
            if key not in found:
                found[key] = Stored(key, op.name, dtype, shape, bytes_of(shape, dtype), file, box)
            found[key].places.append((name, op))
    return list(found.values())


def _constants(function: Function) -> Iterator[Operation]:
    for op in operations(function):
        if op.op_type == "const" and _is_numeric(op.outputs[0]):
            yield op


def _is_numeric(var: Var) -> bool:
    kind = var.sym_type
    return bool(types.is_tensor(kind) and not types.is_str(kind.get_primitive())) or bool(types.is_scalar(kind))


def box_of(var: Var) -> Any:
    """What holds a constant's elements: an array, or a box of packed ones, which stays closed."""
    if (box := packed_of(var)) is not None:
        return box
    value = var.val
    return None if value is None else np.asarray(value)


def stored_key(box: Any) -> object:
    """The same for two constants whose elements are the same bytes in one place, whatever their shapes."""
    piece = box.piece if box.__class__ is Packed else piece_of(box)
    return weight_key(box) if piece is None else piece.key


def bytes_of(shape: tuple[int, ...], dtype: str) -> int:
    """The room that elements of MIL's ``dtype`` take: ``uint4`` half a byte each, a ``bool`` a whole one."""
    element = element_named(dtype)
    digits = "".join(each for each in dtype if each.isdigit())
    bits = element.bits if element is not None else int(digits or 8)
    return -(-prod(shape) * bits // 8)

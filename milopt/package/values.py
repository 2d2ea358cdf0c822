"""Values that are written in a program: ``MIL.Value`` in a package, numpy arrays, numbers and strings in memory."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from coremltools.proto import MIL_pb2

from milopt.errors import PackageError
from milopt.mil import types
from milopt.package.blobs import Element, element_named
from milopt.package.packing import pack, unpack
from milopt.package.proto_types import TypeReader, TypeWriter
from milopt.package.symbols import Symbols
from milopt.package.weights import Packed, Weights

__all__ = ["Held", "ValueReader", "file_value", "immediate_value"]

# Which field of a TensorValue holds a type: coremltools 9.0, backend/mil/helper.py
_FIELDS = {
    "fp32": "floats",
    "fp64": "doubles",
    "bool": "bools",
    "string": "strings",
    "int16": "ints",
    "uint16": "ints",
    "int32": "ints",
    "int64": "longInts",
    "uint64": "longInts",
}
_NUMBERS = ("floats", "doubles", "bools", "ints", "longInts")
_MOST_TEXT = 1 << 26  # bytes of an array of strings, where each takes the room of the longest


@dataclass(frozen=True)
class Held:
    """A value as it was read: its type, itself, the path of its weight file (``None`` in the specification).

    ``exact`` tells that writing it gives the same proto again.
    """

    kind: Any
    value: Any
    path: str | None
    exact: bool


class ValueReader:
    """Reads the values of one package."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._types = TypeReader()
        self._writer = TypeWriter()

    def read(self, proto: Any, symbols: Symbols, where: str) -> Held:
        """What the ``MIL.Value`` holds. An array may be a box that unpacks it later."""
        kind, exact = self._types.read(proto.type, symbols, where)
        exact = exact and not proto.docString
        form = proto.WhichOneof("value")
        if form == "blobFileValue":
            value, path = self._weights.value(proto)
            return Held(kind, value if types.is_tensor(kind) else _scalar(value, kind, where), path, exact)
        if form != "immediateValue":
            raise PackageError(f"{where} holds no value")
        value = self._immediate(proto.immediateValue, kind, symbols, where)
        if exact and not _is_plain(proto.immediateValue, kind):
            again = immediate_value(kind, value, self._writer)
            exact = again.SerializeToString() == proto.SerializeToString()
        return Held(kind, value, None, exact)

    def type(self, proto: Any, symbols: Symbols, where: str) -> tuple[Any, bool]:
        """See :meth:`TypeReader.read`."""
        return self._types.read(proto, symbols, where)

    def _immediate(self, proto: Any, kind: Any, symbols: Symbols, where: str) -> Any:
        form = proto.WhichOneof("value")
        if form == "tensor" and not (types.is_list(kind) or types.is_dict(kind)):
            return _tensor(proto.tensor, kind, where)
        if form == "list" and types.is_list(kind):
            return [self._inner(each, symbols, where) for each in proto.list.values]
        if form == "dictionary" and types.is_dict(kind):
            pairs = [(each.key, each.value) for each in proto.dictionary.values]
            return {self._inner(k, symbols, where): self._inner(v, symbols, where) for k, v in pairs}
        raise PackageError(f"{where} holds a {form or 'value of no kind'}, which is not what its type says")

    def _inner(self, proto: Any, symbols: Symbols, where: str) -> Any:
        held = self.read(proto, symbols, where)
        if held.path is not None:
            raise PackageError(f"{where} is a list or dictionary whose elements lie in a weight file")
        return held.value


def _is_plain(proto: Any, kind: Any) -> bool:
    """Whether the value is numbers in the field where they would be written again."""
    if proto.WhichOneof("value") != "tensor" or types.is_list(kind) or types.is_dict(kind) or types.is_tuple(kind):
        return False
    name = str(types.builtin_to_string(kind.get_primitive() if types.is_tensor(kind) else kind))
    element = element_named(name)
    if name == "string" or (element is not None and element.bits < 8):
        return False
    return bool(proto.tensor.WhichOneof("value") == _FIELDS.get(name, "bytes"))


def _tensor(proto: Any, kind: Any, where: str) -> Any:
    shape: tuple[Any, ...] = kind.get_shape() if types.is_tensor(kind) else ()
    if any(not isinstance(dim, int) for dim in shape):
        raise PackageError(f"{where} is a constant without a fixed shape")
    name = str(types.builtin_to_string(kind.get_primitive() if types.is_tensor(kind) else kind))
    field = proto.WhichOneof("value")
    if field is None:
        raise PackageError(f"{where} holds no value")
    held: Any = getattr(proto, field).values
    array: Any = _array(held, field, name, prod(shape), where)
    if array.size != prod(shape):
        raise PackageError(f"{where} holds {array.size} elements, its shape needs {prod(shape)}")
    return array.reshape(shape) if types.is_tensor(kind) else _scalar(array, kind, where)


def _array(held: Any, field: str, name: str, count: int, where: str) -> Any:
    """The elements of a ``TensorValue`` in a row, of the numpy type that PyMIL has for ``name``."""
    wanted = np.dtype(types.nptype_from_builtin(types.string_to_builtin(name)))
    if field == "strings" and name == "string":
        longest = max((len(each) for each in held), default=0)
        if longest * len(held) * 4 > _MOST_TEXT:
            raise PackageError(f"{where}: {len(held)} strings of up to {longest} characters are more than can be read")
        return np.array(list(held), dtype=np.str_)
    element = element_named(name)
    if field == "bytes" and (element is not None or name != "string"):
        return _from_bytes(held, element, wanted, count, where)
    if field not in _NUMBERS or name == "string":
        raise PackageError(f"{where} is declared {name} and holds {field}")
    with np.errstate(over="ignore", invalid="ignore"):
        return np.array(held, dtype=np.float64 if field in ("floats", "doubles") else np.int64).astype(wanted)


def _from_bytes(held: bytes, element: Element | None, wanted: Any, count: int, where: str) -> Any:
    if element is not None and element.bits < 8:
        if len(held) != element.nbytes(count):
            raise PackageError(f"{where} holds {len(held)} bytes, its shape needs {element.nbytes(count)}")
        packed: Any = np.frombuffer(held, np.uint8)
        return unpack(packed, element.bits, count, signed=element.name.startswith("int")).view(wanted)
    if len(held) % wanted.itemsize:
        raise PackageError(f"{where} holds {len(held)} bytes, which is no whole number of elements")
    result: Any = np.frombuffer(held, wanted)
    return result


def _scalar(array: Any, kind: Any, where: str) -> Any:
    """The one element as PyMIL has it: a numpy number, but Python's own ``str`` and ``bool``."""
    if isinstance(array, Packed) or array.size != 1:
        raise PackageError(f"{where} is no single value")
    value: Any = array.reshape(-1)[0]
    if types.is_str(kind):
        return str(value)
    return bool(value) if kind == types.bool else value


def immediate_value(kind: Any, value: Any, writer: TypeWriter) -> Any:
    """The ``MIL.Value`` that holds ``value``, of PyMIL's type ``kind``, in the specification."""
    proto = MIL_pb2.Value()
    proto.type.CopyFrom(writer.write(kind))
    if types.is_list(kind):
        proto.immediateValue.list.SetInParent()
        proto.immediateValue.list.values.extend(immediate_value(kind.T[0], each, writer) for each in value)
    elif types.is_dict(kind):
        proto.immediateValue.dictionary.SetInParent()
        for key, each in value.items():
            pair = proto.immediateValue.dictionary.values.add()
            pair.key.CopyFrom(immediate_value(kind.T[0], key, writer))
            pair.value.CopyFrom(immediate_value(kind.T[1], each, writer))
    else:
        name = str(types.builtin_to_string(kind.get_primitive() if types.is_tensor(kind) else kind))
        _set_tensor(proto.immediateValue.tensor, name, np.asarray(value))
    return proto


def _set_tensor(proto: Any, name: str, array: Any) -> None:
    field = _FIELDS.get(name, "bytes")
    values = getattr(proto, field)
    values.SetInParent()
    if field == "bytes":
        element = element_named(name)
        wanted = np.dtype(types.nptype_from_builtin(types.string_to_builtin(name)))
        row: Any = np.ascontiguousarray(array)
        flat: Any = row.reshape(-1).astype(wanted, copy=False)
        if element is not None and element.bits < 8:
            flat = pack(flat, element.bits)
        values.values = flat.tobytes()
    elif field == "strings":
        values.values.extend(map(str, array.reshape(-1).tolist()))
    else:
        values.values.extend(array.reshape(-1).tolist())


def file_value(kind: Any, path: str, writer: TypeWriter) -> Any:
    """The ``MIL.Value`` whose elements lie in the weight file ``path``, at an offset that is still to be set."""
    proto = MIL_pb2.Value()
    proto.type.CopyFrom(writer.write(kind))
    proto.blobFileValue.fileName = path
    return proto

"""Types: ``MIL.ValueType`` in a package, a type of PyMIL's in a program."""

from __future__ import annotations

from typing import Any

from coremltools.proto import MIL_pb2

from milopt.errors import PackageError
from milopt.mil import is_symbolic, types
from milopt.package.symbols import Symbols

__all__ = ["TypeReader", "TypeWriter"]

_BUILTIN: dict[int, Any] = types.PROTO_TO_BUILTIN_TYPE
_PROTO: dict[Any, int] = types.BUILTIN_TO_PROTO_TYPES
_LARGEST = 2**63 - 1


class TypeReader:
    """Reads types; those without symbols once."""

    def __init__(self) -> None:
        self._known: dict[bytes, Any] = {}
        self._exact: dict[bytes, bool] = {}

    def read(self, proto: Any, symbols: Symbols, where: str) -> tuple[Any, bool]:
        """``(type, exact)``: ``exact`` tells that :class:`TypeWriter` would write the same proto."""
        key: bytes = proto.SerializeToString()
        if key in self._known:
            return self._known[key], self._exact[key]
        found: list[Any] = []
        kind = _read(proto, symbols, found, where)
        if key not in self._exact:
            self._exact[key] = TypeWriter().write(kind).SerializeToString() == key
        if not found:
            self._known[key] = kind
        return kind, self._exact[key]


def _read(proto: Any, symbols: Symbols, found: list[Any], where: str) -> Any:
    kind = proto.WhichOneof("type")
    if kind == "tensorType":
        return _tensor(proto.tensorType, symbols, found, where)
    if kind == "listType":
        length = proto.listType.length
        size = int(length.constant.size) if length.WhichOneof("dimension") == "constant" else None
        return types.list(_read(proto.listType.type, symbols, found, where), size, True)
    if kind == "dictionaryType":
        pair = proto.dictionaryType
        return types.dict(*(_read(each, symbols, found, where) for each in (pair.keyType, pair.valueType)))
    if kind == "stateType":
        wrapped = _read(proto.stateType.wrappedType, symbols, found, where)
        if not types.is_tensor(wrapped):
            raise PackageError(f"{where} is a state of something that is no tensor")
        return types.state(wrapped)
    if kind == "tupleType":
        return types.tuple(tuple(_read(each, symbols, found, where) for each in proto.tupleType.types))
    raise PackageError(f"{where} has no type")


def _tensor(proto: Any, symbols: Symbols, found: list[Any], where: str) -> Any:
    element = _BUILTIN.get(proto.dataType)
    if element is None:
        names = MIL_pb2.DataType.DESCRIPTOR.values_by_number
        name = names[proto.dataType].name if proto.dataType in names else proto.dataType
        raise PackageError(f"{where} has element type {name}, which coremltools has no counterpart of")
    shape: list[Any] = []
    for dim in proto.dimensions:
        if dim.WhichOneof("dimension") == "constant":
            if dim.constant.size > _LARGEST:
                raise PackageError(f"{where} has a dimension of {dim.constant.size}")
            shape.append(int(dim.constant.size))
        else:
            shape.append(symbols.fresh(variadic=dim.unknown.variadic))
            found.append(shape[-1])
    if proto.rank >= 0 and proto.rank != len(shape):
        raise PackageError(f"{where} has rank {proto.rank} and {len(shape)} dimensions")
    if proto.rank < 0 and not shape:
        shape.append(symbols.fresh(variadic=True))
        found.append(shape[-1])
    return types.tensor(element, tuple(shape)) if shape else element


class TypeWriter:
    """Writes types, as coremltools does."""

    def __init__(self) -> None:
        self._known: dict[Any, Any] = {}

    def write(self, kind: Any) -> Any:
        """The ``MIL.ValueType`` proto. It is to be copied, not changed."""
        if kind not in self._known:
            self._known[kind] = self._write(kind)
        return self._known[kind]

    def _write(self, kind: Any) -> Any:
        proto = MIL_pb2.ValueType()
        if types.is_tensor(kind):
            _fill(proto.tensorType, kind.get_primitive(), kind.get_shape())
        elif types.is_list(kind):
            proto.listType.type.CopyFrom(self.write(kind.T[0]))
            _set_dim(proto.listType.length, kind.T[1])
        elif types.is_dict(kind):
            proto.dictionaryType.keyType.CopyFrom(self.write(kind.T[0]))
            proto.dictionaryType.valueType.CopyFrom(self.write(kind.T[1]))
        elif types.is_state(kind):
            proto.stateType.wrappedType.CopyFrom(self.write(kind.wrapped_type()))
        elif types.is_tuple(kind):
            proto.tupleType.SetInParent()
            proto.tupleType.types.extend(self.write(each) for each in kind.T)
        else:
            _fill(proto.tensorType, kind, ())
        return proto


def _fill(tensor: Any, element: Any, shape: tuple[Any, ...]) -> None:
    if element not in _PROTO:
        name = getattr(element, "__name__", element)
        raise PackageError(f"a value is of type {name}, which Core ML does not have")
    tensor.dataType = _PROTO[element]
    tensor.rank = len(shape)
    for dim in shape:
        _set_dim(tensor.dimensions.add(), dim)


def _set_dim(proto: Any, dim: Any) -> None:
    if dim is not None and not is_symbolic(dim):
        proto.constant.size = int(dim)
    else:
        proto.unknown.variadic = str(dim).startswith(("*", "..."))

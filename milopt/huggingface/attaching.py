"""coremltools converts stand-ins as if they were weights; the weights are attached to what it makes of them.

coremltools turns, reshapes and casts constants, and joins equal ones. Of a stand-in that makes another view of it, or
of its twin in fp16; the converted program then says which elements of which parameter each of its weights is. Those
are written, in the order and type that is wanted, to one weight file in MIL's own form, of which the program's weights
are views. Any constant that was computed from a stand-in is infinite or no number, and stops the conversion with
:class:`Unattached`: it has to be done with the weights themselves.

Importing this module imports torch; milopt does so only while it converts.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, BinaryIO

import numpy as np

from milopt.huggingface.errors import ConversionError
from milopt.huggingface.standins import View, any_stand_ins, view_of
from milopt.mil import Program, flat, operations, types
from milopt.package.blobs import ALIGNMENT, ELEMENTS, ENTRY, HEADER, SENTINEL, VERSION, Element, aligned
from milopt.package.weights import WeightFile

__all__ = ["Attached", "Unattached", "require_attributable", "standing_in"]

_ELEMENT = {"float32": "fp32", "float16": "fp16"}
_CHUNK = 1 << 22  # elements that are converted at a time
# Beyond this, coremltools keeps an op in fp32: FP16ComputePrecision.fp16_overflow
_LARGEST = 65504.0


class Unattached(Exception):
    """A program has a constant that can't be told to be elements of a parameter."""


@dataclass
class Attached:
    """The weights of one model: arrays of mapped files by what they are elements of."""

    arrays: dict[tuple[Any, ...], Any] = field(default_factory=dict[tuple[Any, ...], Any])

    def attach(self, views: dict[int, View]) -> dict[int, Any]:
        """``views`` are a program's weights by their place; the arrays of their elements by the same places.

        Equal views, also of another function, share one array. :class:`Unattached` where elements don't fit the type.
        """
        wanted = {_key(view): view for view in views.values()}
        missing = [view for key, view in wanted.items() if key not in self.arrays]
        if missing:
            try:
                self.arrays |= zip(map(_key, missing), _written(missing), strict=True)
            except OSError as problem:
                raise ConversionError(f"the weights can't be written to a temporary file: {problem}") from problem
        return {place: self.arrays[_key(view)] for place, view in views.items()}


def _key(view: View) -> tuple[Any, ...]:
    return view.parameter, view.dtype, view.offset, view.shape, view.strides


def _written(views: list[View]) -> Iterator[Any]:
    """Each view's elements, from a weight file that has no name any more."""
    with TemporaryDirectory(prefix="milopt-") as folder:
        path = Path(folder) / "weight.bin"
        offsets: list[int] = []
        with path.open("wb") as file:
            file.write(HEADER.pack(len(views), VERSION).ljust(ALIGNMENT, b"\0"))
            offsets.extend(_write(file, view) for view in views)
        weights = WeightFile(path, "the converted weights")
        for view, offset in zip(views, offsets, strict=True):
            kind, _ = _element(view)
            yield weights.value(offset, kind, view.shape)


def _element(view: View) -> tuple[int, Element]:
    name = _ELEMENT[view.dtype]
    return next((kind, element) for kind, element in ELEMENTS.items() if element.name == name)


def _write(file: BinaryIO, view: View) -> int:
    """Append an entry with its elements; its offset."""
    offset = aligned(file.tell())
    _, element = _element(view)
    size = element.nbytes(prod(view.shape))
    file.write(bytes(offset - file.tell()))
    file.write(ENTRY.pack(SENTINEL, element.code, size, offset + ALIGNMENT, 0).ljust(ALIGNMENT, b"\0"))
    file.writelines(memoryview(part.reshape(-1)).cast("B") for part in _parts(view))
    return offset


def _parts(view: View) -> Iterator[Any]:
    """The elements in order, some rows at a time."""
    real = view.real()
    real = real if view.shape else real.reshape(1)
    rows = max(1, _CHUNK // max(1, prod(real.shape[1:])))
    for first in range(0, len(real), rows):
        exact: Any = real[first : first + rows].float().contiguous().numpy()
        if view.dtype == "float16":
            size = np.abs(exact)
            if float(np.max(size, where=np.isfinite(size), initial=0.0)) > _LARGEST:
                raise Unattached("a weight is larger than fp16's largest number")
        with np.errstate(over="ignore"):
            yield np.ascontiguousarray(exact.astype(view.dtype, copy=False))


@contextmanager
def standing_in() -> Generator[dict[int, View]]:
    """While this lasts, coremltools converts stand-ins; the views that it writes, by the offset it gives them."""
    views: dict[int, View] = {}
    backend: Any = importlib.import_module("coremltools.converters.mil.backend.mil.helper")
    loading: Any = importlib.import_module("coremltools.converters.mil.backend.mil.load")
    unary: Any = importlib.import_module("coremltools.converters.mil.mil.ops.defs.iOS15.elementwise_unary")
    passes = "coremltools.converters.mil.mil.passes.defs"
    rounding: Any = importlib.import_module(f"{passes}.quantization").FP16ComputePrecision
    joining: Any = importlib.import_module(f"{passes}.cleanup.const_deduplication").const_deduplication
    with ExitStack() as patches:
        for owner, name, make, kind in (
            (backend, "_get_offset_by_writing_data", partial(_writing, views=views), None),
            (loading, "create_immediate_value", _refusing, None),
            (unary.cast, "get_cast_value", _casting, classmethod),
            (rounding, "fp16_overflow", _overflowing, staticmethod),
            (joining, "find_constants", partial(_joining, joining), staticmethod),
        ):
            patches.enter_context(_patched(owner, name, make, kind))
        yield views


@contextmanager
def _patched(owner: Any, name: str, make: Callable[[Any], Any], kind: Any) -> Generator[None]:
    """``owner.name`` is what ``make`` makes of it, in this thread and while this lasts, and a ``kind`` of method."""
    written = owner.__dict__[name]
    stock = written if kind is None else written.__func__
    ours, thread = make(stock), threading.get_ident()

    def choose(*args: Any, **options: Any) -> Any:
        return (ours if threading.get_ident() == thread else stock)(*args, **options)

    setattr(owner, name, choose if kind is None else kind(choose))
    try:
        yield
    finally:
        setattr(owner, name, written)


def _array(var: Any) -> Any:
    value = None if types.is_list(var.sym_type) else var.val
    return value if _is_array(value) else None


def _is_array(value: object) -> bool:
    return isinstance(value, np.ndarray)


def _view(var: Any) -> View | None:
    array = _array(var)
    return None if array is None else view_of(array)


def _writing(stock: Callable[..., int], views: dict[int, View]) -> Callable[..., int]:
    """One byte is written for a stand-in, whose offset is then its own."""

    def write(var: Any, writer: Any) -> int:
        view = _view(var)
        if view is None:
            _require_real(var)
            return stock(var, writer)
        offset = int(writer.write_uint8_data(np.zeros(1, np.uint8)))
        views[offset] = view
        return offset

    return write


def _refusing(stock: Callable[..., Any]) -> Callable[..., Any]:
    def create(var: Any) -> Any:
        _require_real(var)
        return stock(var)

    return create


def require_attributable(program: Program) -> None:
    """Unattached where a constant of ``program`` was computed from a stand-in, and is no view of it."""
    if not any_stand_ins():
        return
    for function in program.functions.values():
        for op in operations(function):
            if op.op_type == "const" and _view(op.outputs[0]) is None:
                _require_real(op.outputs[0])


def _require_real(var: Any) -> None:
    """Unattached for what was computed from stand-ins."""
    if not any_stand_ins():
        return
    array = np.asarray(var.val) if not types.is_list(var.sym_type) else None
    if array is not None and array.dtype.kind == "f" and not np.isfinite(array).all():
        raise Unattached(f"{var.name} is not finite")


def _casting(stock: Callable[..., Any]) -> Callable[..., Any]:
    """A stand-in cast to fp16 is its twin, a cast back the stand-in."""
    kinds = {"fp16": "float16", "fp32": "float32"}

    def cast(cls: Any, var: Any, dtype: Any) -> Any:
        view = _view(var) if dtype in kinds else None
        return stock(cls, var, dtype) if view is None else view.cast(kinds[dtype])

    return cast


def _overflowing(stock: Callable[..., bool]) -> Callable[..., bool]:
    """A stand-in's elements are small enough for fp16, which is looked at when they are attached."""

    def overflows(op: Any) -> bool:
        inputs = {name: [var for var in flat(value) if _view(var) is None] for name, value in op.inputs.items()}
        return stock(SimpleNamespace(inputs=inputs))

    return overflows


def _joining(owner: Any, stock: Callable[..., Any]) -> Callable[..., Any]:
    """Stand-ins are equal when they are the same elements, and not when they look alike."""

    def real_ones(stock: Callable[[Any], bool]) -> Callable[[Any], bool]:
        def may_join(value: Any) -> bool:
            return bool(stock(value)) and not (_is_array(value) and view_of(value) is not None)

        return may_join

    def find(blocks: Any) -> Any:
        with _patched(owner, "should_be_deduplicated", real_ones, staticmethod):
            found = stock(blocks)
        first: dict[tuple[Any, ...], Any] = {}
        for block in blocks:
            for op in block.operations:
                view = _view(op.outputs[0]) if op.op_type == "const" else None
                if view is not None:
                    var = first.setdefault(_key(view), op.outputs[0])
                    if var is op.outputs[0]:
                        found[var] = []
                    else:
                        found[var].append(op.outputs[0])
        return found

    return find

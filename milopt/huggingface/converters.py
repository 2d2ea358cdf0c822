"""Converters of torch ops to MIL for coremltools' torch frontend, where it has none or a wrong one.

``ops`` is coremltools' module of converters, whose helpers they use: it is looked up when a conversion begins.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from milopt.huggingface.errors import ConversionError
from milopt.mil import Var, dtype_name, flat, is_symbolic, mb, shape_of

__all__ = ["Converter", "expand_converter", "gelu_converter", "missing_converters", "scalar_cast", "typed_scatter"]

Converter: TypeAlias = Callable[[Any, Any], None]
"""Adds a torch node to coremltools' context: ``(context, node)``."""


def missing_converters(ops: Any) -> dict[str, Converter]:
    """Converters for ops that coremltools 9 has none for, of those that transformers' models come to."""
    return {
        "alias": ops.noop,
        "where.scalarother": ops.where,
        # the registry finds bitwise_and for `__and__` but, asked whether it has one, says no
        "__and__": ops.bitwise_and,
        "diff": _diff(ops),
        "new_ones": _new_ones(ops),
    }


def _diff(ops: Any) -> Converter:
    """``diff(x, n=1, dim=-1, prepend=None, append=None)``: ``n`` times, every element less the one before it."""

    def convert(context: Any, node: Any) -> None:
        x, n, dim, before, after = _given(ops, context, node, "self", "n", "dim", "prepend", "append")
        axis = int(dim.val) % x.rank if dim is not None else x.rank - 1
        if before is not None or after is not None:
            x = mb.concat(values=[each for each in (before, x, after) if each is not None], axis=axis)
        for _ in range(1 if n is None else int(n.val)):
            x = _difference(x, axis)
        context.add(x, node.name)

    return convert


def _difference(x: Any, axis: int) -> Any:
    others = [each != axis for each in range(x.rank)]
    start, one = [0] * x.rank, [0 if other else 1 for other in others]
    later = mb.slice_by_index(x=x, begin=one, end=start, end_mask=[True] * x.rank)
    earlier = mb.slice_by_index(x=x, begin=start, end=[-each for each in one], end_mask=others)
    if dtype_name(x) == "bool":
        return mb.logical_xor(x=later, y=earlier)
    return mb.sub(x=later, y=earlier)


def _new_ones(ops: Any) -> Converter:
    """``x.new_ones(size, dtype=None, ...)``: ones of ``x``'s type unless another is asked for."""

    def convert(context: Any, node: Any) -> None:
        x, size, dtype = _given(ops, context, node, "self", "size", "dtype")
        utils = importlib.import_module("coremltools.converters.mil.frontend.torch.utils")
        kind = utils.NUM_TO_DTYPE_STRING[int(dtype.val)] if dtype is not None else dtype_name(x)
        one = {"bool": np.bool_, "int32": np.int32}.get(kind, np.float32)(1)
        if isinstance(size, list) and size:
            size = mb.concat(values=size, axis=0)
        scalar = isinstance(size, list) or shape_of(size) == (0,)
        ones = mb.const(val=one) if scalar else mb.fill(shape=size, value=one)
        if dtype_name(ones) != kind:
            ones = mb.cast(x=ones, dtype=kind)
        context.add(ones, node.name)

    return convert


def _given(ops: Any, context: Any, node: Any, *names: str) -> list[Any]:
    """The node's arguments in the order of ``names``, given by position or keyword; ``None`` where left out."""
    values = ops._get_inputs(context, node)[: len(names)]
    for name in names[len(values) :]:
        values.extend(ops._get_kwinputs(context, node, name, default=[None]))
    return list(values)


def gelu_converter(ops: Any, stock: Converter) -> Converter:
    """coremltools' own reads ``approximate`` by position only; torch.export gives it by keyword."""
    modes = {"none": "EXACT", "tanh": "TANH_APPROXIMATION"}

    def convert(context: Any, node: Any) -> None:
        if "approximate" not in (node.kwinputs or {}):
            stock(context, node)
            return
        # read as it is: coremltools takes a string for the name of a node, and there may be one called "tanh"
        (approximate,) = node.kwinputs["approximate"]
        if approximate not in modes:
            raise ConversionError(f"MIL has no gelu with approximate={approximate!r}")
        (x,) = ops._get_inputs(context, node, expected=1)
        context.add(mb.gelu(x=x, mode=modes[approximate], name=node.name))

    return convert


def expand_converter(ops: Any, stock: Converter) -> Converter:
    """coremltools' own computes by how much to repeat when any size is open, also along axes that stay as they are."""

    def convert(context: Any, node: Any) -> None:
        x, shape = ops._get_inputs(context, node)[:2]
        times = _repetitions(shape_of(x), _sizes(shape))
        if times is None or not any(map(is_symbolic, x.shape)):
            stock(context, node)
            return
        context.add(mb.tile(x=x, reps=times, name=node.name))

    return convert


def _sizes(shape: Any) -> list[Any]:
    """Numbers and symbols, and ``None`` for what is neither, of a value or a list of values and numbers."""
    if isinstance(shape, list):
        known = [each.sym_val if isinstance(each, Var) else each for each in flat(shape)]
        return [None if each is None else np.asarray(each).item() for each in known]
    sizes: Any = shape.sym_val
    return [] if sizes is None else list(sizes)


def _repetitions(old: Sequence[Any], new: Sequence[Any]) -> list[int] | None:
    """How often to repeat along each axis to make the sizes ``old`` those of ``new``, if that is known."""
    if len(old) != len(new):
        return None
    times: list[int] = []
    for one, other in zip(old, new, strict=True):
        if other is None or not (one == 1 or one == other or other == -1):
            return None
        if one == 1 and is_symbolic(other):
            return None
        times.append(int(other) if one == 1 and other != -1 else 1)
    return times


def scalar_cast(ops: Any, stock: Any) -> Callable[..., None]:
    """``ops._cast``, which calls ``int`` on arrays of one element: numpy >= 2.4 only converts those of rank 0."""

    def cast(context: Any, node: Any, dtype: Any, dtype_name: str) -> None:
        (x,) = ops._get_inputs(context, node, expected=1)
        if x.can_be_folded_to_const() and getattr(x.val, "size", 0) == 1:
            context.add(mb.const(val=dtype(x.val.item()), name=node.name), node.name)
            return
        stock(context, node, dtype, dtype_name)

    return cast


def typed_scatter(stock: Any) -> Callable[..., None]:
    """``ops._scatter``, which hands on an integer that is written among floats as it is: MIL wants one type."""

    def scatter(context: Any, inputs: Any, mode: str, name: str) -> None:
        data, axis, indices, updates = inputs[:4]
        if dtype_name(updates) != dtype_name(data):
            updates = mb.cast(x=updates, dtype=dtype_name(data))
        stock(context, [data, axis, indices, updates], mode, name)

    return scatter

"""Repetitions whose number is computed, and of which nothing is known -> repetitions by a number, with known sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from milopt.building import Builder
from milopt.mil import (
    Function,
    ListVar,
    Operation,
    constant,
    is_symbolic,
    operations,
    refine_shape,
    remove_if_dead,
    shape_of,
    value_names,
)
from milopt.package import Model
from milopt.passes.repeats import sizes_of

__all__ = ["fold_tiles"]


def fold_tiles(model: Model) -> int:
    """Give every ``tile`` whose repetitions can be told constant ones, and known sizes; how many there were.

    Of a tile with computed repetitions coremltools knows no size, nor of anything that is made of it: the symbols that
    it has for them are replaced by what they are, in all types of the function, also where some depend on the length
    of an input. :class:`~milopt.passes.repeats.FoldTile` does without where a ``reshape`` follows, which tells the
    sizes; this is for keys of one head, which nothing needs to reshape, and for masks.
    """
    return sum(_folded(function) for function in model.functions.values())


def _folded(function: Function) -> int:
    found = [op for op in operations(function) if op.op_type == "tile" and _is_open(op)]
    folded, taken = 0, value_names(function)
    for op in found:
        reps = sizes_of(op.inputs["reps"])
        if reps is None:
            continue
        sizes = zip(shape_of(op.outputs[0]), shape_of(op.inputs["x"]), reps, strict=True)
        symbols = {old: dim * times for old, dim, times in sizes if _is_told(dim, times)}
        if all(isinstance(each, int) for each in reps):
            maker = op.inputs["reps"].op
            op.set_inputs(reps=Builder(op, taken).const(val=np.array(reps, np.int32), name=f"{op.name}_reps"))
            remove_if_dead([] if maker is None else [maker])
        elif not symbols:
            continue
        _tell(function, symbols)
        folded += 1
    return folded


def _is_told(dim: Any, times: Any) -> bool:
    """Whether ``dim * times`` is a number, or one symbol."""
    return times is not None and (1 in (dim, times) or not (is_symbolic(dim) or is_symbolic(times)))


def _is_open(op: Operation) -> bool:
    """Whether its repetitions are computed, and it is more than what a reshape needs."""
    reshaped = op.outputs[0].child_ops and all(user.op_type == "reshape" for user in op.outputs[0].child_ops)
    return constant(op.inputs["reps"]) is None and not reshaped and all(map(is_symbolic, shape_of(op.outputs[0])))


def _tell(function: Function, symbols: Mapping[Any, Any]) -> None:
    """Put what is known in the place of symbols, wherever a type has them."""
    for op in operations(function):
        for var in (each for each in op.outputs if not isinstance(each, ListVar)):
            shape = shape_of(var)
            known = tuple(_known(dim, symbols) for dim in shape)
            if known != shape:
                refine_shape(var, known)


def _known(dim: Any, symbols: Mapping[Any, Any]) -> Any:
    if not is_symbolic(dim):
        return dim
    found = dim.subs(symbols)
    return int(found) if found.is_Integer else found

"""What a package does not say of a value, taken from PyMIL where it can tell.

A package gives every value its type, but a dimension that is not fixed has no name there, and results that are known
before the program runs (the shapes that ``reshape`` and its like are given) are not written. Both are asked of PyMIL
here, op by op, and only used where they agree with the package: an op that PyMIL refuses keeps what the package says.
"""

from __future__ import annotations

import importlib
import re
import threading
from collections.abc import Callable, Iterable
from math import prod
from typing import Any, cast

import numpy as np
from coremltools.converters.mil.mil import program as pymil_program

from milopt.mil import ListVar, Operation, Var, building_in, is_symbolic, types
from milopt.opaque import Opaque
from milopt.package.symbols import Symbols
from milopt.package.weights import Packed

__all__ = ["infer_types", "infer_values"]

_sympy: Any = importlib.import_module("sympy")
# PyMIL counts its symbols, and knows the block it builds in, through module globals.
_PYMIL = threading.RLock()
_COUNTED = re.compile(r"\*?is(\d{1,18})")
# Whose classes ask which opset is being built for.
_ASK_FOR_OPSET = frozenset({"conv", "avg_pool", "l2_pool", "max_pool"})

_MOST_ELEMENTS = 1024  # of a value that is worth knowing before the program runs: shapes, indices, masks of them
_FOLDED = frozenset(
    {
        *("shape", "gather", "slice_by_index", "slice_by_size", "concat", "stack", "split", "squeeze", "expand_dims"),
        *("reshape", "transpose", "cast", "identity", "select", "list_length", "fill", "range_1d", "tile"),
        *("add", "sub", "mul", "floor_div", "real_div", "mod", "maximum", "minimum", "abs", "sign", "floor", "ceil"),
        *("equal", "not_equal", "greater", "greater_equal", "less", "less_equal", "round"),
        *("logical_and", "logical_or", "logical_not", "logical_xor"),
        *("reduce_prod", "reduce_sum", "reduce_max", "reduce_min"),
    }
)


def infer_types(op: Operation, declared: list[Any], symbols: Symbols) -> list[Any]:
    """The declared types of the op's results, their open dimensions named as PyMIL's type inference names them."""
    if op.op_type == "make_list":
        return [_list_type(op, kind) for kind in declared]
    if not any(map(_is_open, declared)):
        return declared
    if isinstance(op, Opaque):
        return declared
    found = _asked(op, lambda: cast("Any", op).type_inference())
    several = list(cast("Any", found)) if isinstance(found, tuple) else [found]
    if len(several) != len(declared):
        return declared
    return [_merged(kind, other, symbols) for kind, other in zip(declared, several, strict=True)]


def _is_open(kind: Any) -> bool:
    if types.is_list(kind):
        return True
    return bool(types.is_tensor(kind)) and any(map(is_symbolic, kind.get_shape()))


def _asked(op: Operation, question: Callable[[], Any]) -> Any:
    """PyMIL's answer about the op, or ``None`` where it has none."""
    with _PYMIL:
        answer, poisoned = _answer(op, question)
        if poisoned:
            _move_counter()
            answer, _ = _answer(op, question)
    return answer


def _answer(op: Operation, question: Callable[[], Any]) -> tuple[Any, bool]:
    """The answer, and whether there is none because PyMIL's counter of symbols is where it can't be."""
    try:
        if op.op_type not in _ASK_FOR_OPSET:
            return question(), False
        with building_in(op.enclosing_block):
            return question(), False
    except Exception as error:  # whatever PyMIL dislikes about the op; the package has the last word
        return None, "is used already" in str(error)


def _move_counter() -> None:
    """Past every symbol in PyMIL's register: one that it meets again makes it fail for ever after."""
    used = [int(match[1]) for name in list(pymil_program.k_used_symbols) if (match := _COUNTED.fullmatch(str(name)))]
    pymil_program.k_num_internal_syms = max([pymil_program.k_num_internal_syms, *(number + 1 for number in used)])


def _merged(kind: Any, other: Any, symbols: Symbols) -> Any:
    """``kind`` with the names of ``other`` for its open dimensions; ``kind`` itself where the two differ."""
    if types.is_list(kind) and other is not None and types.is_list(other):
        element, _, dynamic = other.T
        if not types.is_tensor(element) or not types.is_tensor(kind.T[0]):
            return kind
        return types.list(_merged(kind.T[0], element, symbols), kind.T[1], dynamic)
    if not types.is_tensor(kind) or other is None or not types.is_tensor(other):
        return kind
    mine, theirs = kind.get_shape(), other.get_shape()
    if kind.get_primitive() != other.get_primitive() or len(mine) != len(theirs):
        return kind
    shape: list[Any] = []
    for dim, name in zip(mine, theirs, strict=True):
        if not is_symbolic(dim):
            if not is_symbolic(name) and name != dim:
                return kind
            shape.append(dim)
        else:
            adopted = symbols.adopt(name)
            shape.append(adopted if is_symbolic(adopted) else dim)
    return types.tensor(kind.get_primitive(), tuple(shape))


def _list_type(op: Any, declared: Any) -> Any:
    """The type of a new list: PyMIL would enter the names of its open dimensions in its register, for ever."""
    if isinstance(op, Opaque) or not types.is_list(declared) or not types.is_tensor(declared.T[0]):
        return declared
    dynamic = None if op.dynamic_length is None else op.dynamic_length.val
    return types.list(declared.T[0], declared.T[1], True if dynamic is None else bool(dynamic))


def infer_values(op: Operation, kinds: list[Any], symbols: Symbols) -> list[Any]:
    """PyMIL's values for the op's results, ``None`` for those it can't tell or that are not worth knowing."""
    nothing = [None] * len(kinds)
    if (
        isinstance(op, Opaque)
        or op.op_type not in _FOLDED
        or not all(map(_is_small, _inputs(op)))
        or not _is_bounded(op)
    ):
        return nothing
    with np.errstate(all="ignore"):
        found = _asked(op, lambda: cast("Any", op).value_inference())
    values = list(cast("Any", found)) if isinstance(found, (list, tuple)) else [found]
    if len(values) != len(kinds) or any(value is None for value in values):
        return nothing
    return [_fitting(value, kind, symbols) for value, kind in zip(values, kinds, strict=True)]


def _inputs(op: Operation) -> Iterable[Var]:
    # ``shape`` and ``list_length`` look at the type of what they are given, not at its value
    return () if op.op_type in ("shape", "list_length") else op.get_flattened_inputs()


def _is_small(var: Var) -> bool:
    if isinstance(var, ListVar) or isinstance(cast("Any", var)._sym_val, Packed):
        return False
    held = var.sym_val
    return held is not None and np.size(held) <= _MOST_ELEMENTS


def _is_bounded(op: Any) -> bool:
    """Whether a result whose size is given by an input's value, not by its size, is small."""
    if op.op_type == "fill":
        sizes = op.shape.val
    elif op.op_type == "tile":
        sizes = None if op.reps.val is None else [*op.x.shape, *np.ravel(op.reps.val).tolist()]
    elif op.op_type == "range_1d":
        start, end, step = (each.val for each in (op.start, op.end, op.step))
        if start is None or end is None or not step:
            return False
        sizes = [abs((float(end) - float(start)) / float(step))]
    else:
        return True
    if sizes is None or (any(map(is_symbolic, sizes)) and op.op_type != "range_1d"):
        return False
    return prod(float(size) for size in sizes) <= _MOST_ELEMENTS


def _fitting(value: Any, kind: Any, symbols: Symbols) -> Any:
    """The value with this function's symbols, if it is of type ``kind``; else ``None``."""
    if types.is_str(kind) or types.is_list(kind) or types.is_dict(kind) or types.is_state(kind):
        return None
    array: Any = np.asarray(value)
    shape = kind.get_shape() if types.is_tensor(kind) else ()
    if array.size > _MOST_ELEMENTS or array.ndim != len(shape):
        return None
    if any(not is_symbolic(dim) and dim != size for dim, size in zip(shape, array.shape, strict=True)):
        return None
    wanted: Any = np.dtype(types.nptype_from_builtin(kind.get_primitive() if types.is_tensor(kind) else kind))
    if array.dtype == object:
        if wanted.kind != "i":
            return None
        adopted = [symbols.adopt(each) for each in array.reshape(-1).tolist()]
        if not any(map(is_symbolic, adopted)):
            numbers: Any = np.array(adopted)
            array = numbers.astype(wanted).reshape(array.shape)
        elif types.is_tensor(kind):
            result: Any = np.empty(len(adopted), dtype=object)
            result[:] = adopted
            return result.reshape(array.shape)
        else:
            return adopted[0]
    if array.dtype.kind != wanted.kind:
        return None
    array = array.astype(wanted, copy=False)
    if types.is_tensor(kind):
        return array
    return bool(array[()]) if kind == types.bool else array[()]

"""Which inputs of ops count axes, and of what: an axis counted from the end is the one counted from the front."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from milopt.mil import Operation, Var, flat

__all__ = ["axes_of", "normalized"]


def _rank_of(name: str) -> Callable[[Operation], int]:
    def rank(op: Operation) -> int:
        value: Var = flat(op.inputs[name])[0]
        return int(value.rank)

    return rank


def _out(op: Operation) -> int:
    return int(op.outputs[0].rank)


_X = _rank_of("x")
_SETS = frozenset({"expand_dims", "reverse", "squeeze"})  # and the reductions: their axes have no order

# (op type, input) -> the rank that negative axes count from; the ops whose first input it is are not listed
_RANKS: dict[tuple[str, str], Callable[[Operation], int]] = {
    ("concat", "axis"): _rank_of("values"),
    ("stack", "axis"): _out,
    ("expand_dims", "axes"): _out,
    ("one_hot", "axis"): _out,
    ("scatter", "axis"): _rank_of("data"),
    ("scatter_along_axis", "axis"): _rank_of("data"),
    ("quantize", "axis"): _rank_of("input"),
    ("dequantize", "axis"): _rank_of("input"),
    ("constexpr_affine_dequantize", "axis"): _rank_of("quantized_data"),
    ("constexpr_lut_to_dense", "vector_axis"): _rank_of("indices"),
    ("constexpr_lut_to_sparse", "vector_axis"): _rank_of("indices_mask"),
    ("transpose", "perm"): _X,
    **dict.fromkeys([("layer_norm", "axes"), ("squeeze", "axes"), ("reverse", "axes")], _X),
    **dict.fromkeys([("reverse_sequence", "seq_axis"), ("reverse_sequence", "batch_axis")], _X),
    **{
        (op_type, "axis"): _X
        for op_type in (
            "argsort",
            "cumsum",
            "flatten2d",
            "gather",
            "gather_along_axis",
            "reduce_argmax",
            "reduce_argmin",
            "sliding_windows",
            "softmax",
            "split",
            "topk",
        )
    },
}


def _rank(op: Operation, name: str) -> int | None:
    """How many axes ``name`` counts among; ``None`` where it counts none."""
    if op.op_type.startswith("reduce_") and name == "axes":
        return _X(op)
    known = _RANKS.get((op.op_type, name))
    return None if known is None else known(op)


def normalized(op: Operation, name: str, value: Any) -> Any:
    """``value``, the input ``name`` of ``op``, in the one form that all its spellings have.

    Axes are counted from the front; where their order means nothing (reductions, squeeze, expand_dims, reverse) they
    are sorted. What counts no axes stays as it is.
    """
    if value is None or name not in ("axis", "axes", "perm", "seq_axis", "batch_axis", "vector_axis"):
        return value
    rank, axes = _rank(op, name), np.asarray(value)
    if rank is None or axes.dtype.kind not in "iu":
        return value
    # not the remainder: flatten2d may have an axis behind the last
    counted = np.where(axes < 0, axes + rank, axes)
    unordered = axes.ndim == 1 and (op.op_type in _SETS or op.op_type.startswith("reduce_"))
    return np.sort(counted) if unordered else counted


def axes_of(op: Operation, name: str) -> tuple[int, ...] | None:
    """The constant axes of an input, counted from the front; ``None`` where it is absent or computed."""
    value = op.inputs.get(name)
    if not isinstance(value, Var) or value.op is None or value.op.op_type != "const":
        return None
    return tuple(int(axis) for axis in np.ravel(normalized(op, name, value.val)))

"""Floats that come from integers, as ``constexpr_*`` ops that give the same bits.

Three forms are tried, each where it takes at most :data:`SAVING` of the bytes of the one before it: integers with a
scale, perhaps an offset, for each block (``constexpr_blockwise_shift_scale``); indices into one table, times those
scales (``constexpr_lut_to_dense`` before it); and indices into a table for each block. What a form stands for is
decoded with the interpreter's rules, which are coremltools', and compared bit by bit: a form that differs in one bit
of one element is none.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from milopt.huggingface.bands import bands
from milopt.huggingface.block_tables import table_bytes, tables_of
from milopt.huggingface.forms import Form, bits_of, index_bits
from milopt.huggingface.multiples import NOT_FINITE, Multiples, multiples

__all__ = ["SAVING", "best_form"]

Array: TypeAlias = Any  # numpy.ndarray; its generic form is more than pyright strict can follow

SAVING = 0.75
"""A form that is less simple, or any beside floats, is chosen where it takes at most this share of the bytes."""


def best_form(
    array: Array, scales: Array = None, levels: Array = None, tables: tuple[int, ...] | None = None
) -> tuple[Form | None, str]:
    """The form of ``array``, fp16 or fp32, and why there is no other; ``None`` where it has to stay floats.

    ``scales`` has one fp32 number for each block, as many along each axis as there are blocks; ``levels`` are what
    elements are as multiples of it, where these are no integers; ``tables`` are the numbers of blocks along each axis
    for tables of their own.
    """
    if scales is not None and not np.isfinite(scales).all():
        return None, "its scales are not finite"
    best, limit, reasons = None, float(array.nbytes), list[str]()
    found = "it has no scales" if scales is None else multiples(array, scales, levels)
    if isinstance(found, str):
        reasons.append(found)
    else:
        for each in found.forms():
            if each.nbytes <= SAVING * limit and _is_exact(each, array):
                best, limit = each, float(each.nbytes)
    if tables is not None and (best is None or _few(found, tables, array) <= SAVING * limit):
        made = tables_of(array, tables, SAVING * limit) if found != NOT_FINITE else ""
        if isinstance(made, str):
            reasons += [made] if made else []
        elif _is_exact(made, array):
            best = made
    if best is None and not reasons:
        reasons.append("it would save too little")
    return best, "; ".join(reasons)


def _is_exact(form: Form, array: Array) -> bool:
    shape = next(form.tensors[name].array.shape for name in ("scale", "lut") if name in form.tensors)
    return all(
        np.array_equal(bits_of(form.decoded(band)), bits_of(array[band.rows]))
        for band in bands(array.shape, shape[: array.ndim])
    )


def _few(found: Multiples | str, tables: tuple[int, ...], array: Array) -> float:
    """The bytes that tables would take if a block had as many values as its integers allow."""
    bits = None if isinstance(found, str) else index_bits(found.spread)
    return float("inf") if bits is None else table_bytes(array, tables, bits)

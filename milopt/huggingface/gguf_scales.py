"""The scales in the blocks of GGUF's types, and in which runs of elements they let few values occur.

What the types are is written down in llama.cpp's ggml-common.h and in gguf's ``quants``; their elements are decoded by
the latter alone.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

__all__ = ["BEYOND", "FLOATS", "run_of", "scales_of"]

Array: TypeAlias = Any  # numpy.ndarray; its generic form is more than pyright strict can follow

FLOATS = frozenset({"F64", "F32", "F16", "BF16"})

_MINIMUM = "every block has a minimum beside its scale"
_PRODUCT = "its scales are products of two numbers"
_VECTORS = "its elements are vectors of a list"
BEYOND = {
    **dict.fromkeys(("Q4_1", "Q5_1"), _MINIMUM),
    **dict.fromkeys(("Q2_K", "Q4_K", "Q5_K"), f"{_MINIMUM}, and {_PRODUCT}"),
    **dict.fromkeys(("Q6_K", "IQ4_XS"), _PRODUCT),
    "Q3_K": "its zeros have signs",
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"), _VECTORS),
}
"""What a type has that integers with one scale for a block lack."""

# Where a block has its scale of fp16, in bytes from its begin or end; elements are integers, or nearly, times that.
_FP16 = {
    **dict.fromkeys(("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL"), 0),
    # elements of Q3_K are integers of 3 bits times integers of 6 bits times it
    **dict.fromkeys(("Q3_K", "TQ1_0", "TQ2_0"), -2),
}
# Elements that are decoded with the same numbers, where these are not whole blocks.
_RUNS = {
    **dict.fromkeys(("Q2_K", "Q3_K", "Q6_K", "IQ1_M", "IQ2_XS", "IQ2_S", "NVFP4"), 16),
    **dict.fromkeys(("Q4_K", "Q5_K", "IQ4_XS", "IQ1_S", "IQ2_XXS", "IQ3_XXS", "IQ3_S"), 32),
}


def run_of(kind: str, length: int) -> int:
    """As many elements, of a block's ``length``, are decoded with the same numbers."""
    return _RUNS.get(kind, length)


def scales_of(kind: str, blocks: Array, library: Any) -> Array | None:
    """float32 (N, k): by what integers of the N ``blocks`` (N, bytes) of that type are multiplied, in k equal runs.

    ``None`` for a type whose elements are no integers times scales. ``library`` is gguf.
    """
    if kind in _FP16:
        return _fp16(blocks, _FP16[kind])
    if kind == "Q2_K":
        return _fp16(blocks, 80) * (blocks[:, :16] & 15).astype(np.float32)
    if kind in ("Q4_K", "Q5_K"):
        scales: Array = library.quants.Q4_K.get_scale_min(np.ascontiguousarray(blocks[:, 4:16]))[0]
        return _fp16(blocks, 0) * scales.astype(np.float32)
    if kind == "Q6_K":
        small: Array = np.ascontiguousarray(blocks[:, 192:208])
        return _fp16(blocks, -2) * small.view(np.int8).astype(np.float32)
    if kind == "MXFP4":
        halves: Array = library.quants.MXFP4.e8m0_to_fp32_half(blocks[:, :1])
        return halves
    if kind == "NVFP4":
        eighths: Array = library.quants.NVFP4.ue4m3_to_fp32(blocks[:, :4])
        return eighths.astype(np.float32)
    return None


def _fp16(blocks: Array, at: int) -> Array:
    first = at % blocks.shape[1]
    found: Array = np.ascontiguousarray(blocks[:, first : first + 2])
    return found.view(np.float16).astype(np.float32)

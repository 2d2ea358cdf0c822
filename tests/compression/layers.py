"""Small programs of ops that hold given arrays, each in a constant of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from milopt.mil import Program, mb, target, types

__all__ = ["layers", "numbers"]


def numbers(*shape: int, dtype: Any = np.float16) -> Any:
    """Sixty-one different ones by turns, none of them zero."""
    made: Any = (np.arange(np.prod(shape)) * 7 % 61 - 30.5).astype(dtype)
    return made.reshape(shape)


_USES: dict[str, Callable[[Any, Any], Any]] = {
    "linear": lambda x, w: mb.linear(x=x, weight=w, name="linear"),
    "matmul": lambda x, w: mb.matmul(x=x, y=w, name="matmul"),
    "transposed": lambda x, w: mb.matmul(x=x, y=w, transpose_y=True, name="transposed"),
    "vector": lambda x, w: mb.matmul(x=w, y=mb.transpose(x=x, perm=[1, 0]), name="vector"),
    "conv": lambda x, w: mb.conv(x=mb.expand_dims(x=x, axes=[2]), weight=w, pad_type="same", name="conv"),
    "image": lambda x, w: mb.conv(x=mb.expand_dims(x=x, axes=[2, 3]), weight=w, pad_type="same", name="image"),
    "rows": lambda x, w: mb.gather(x=w, indices=np.array([0, 1], np.int32), axis=0, name="rows"),
}


def layers(*uses: tuple[str, Any], opset: Any = target.iOS18) -> Program:
    """Ops of an input (1, I) that hold these arrays, in constants ``w``, ``w1``, ``w2`` and so on."""
    sizes = {"linear": -1, "matmul": 0, "transposed": -1, "vector": 0, "conv": 1, "image": 1}
    widths = [array.shape[sizes[use]] for use, array in uses if use in sizes]

    @mb.program(input_specs=[mb.TensorSpec((1, (widths or [1])[0]), types.fp16)], opset_version=opset)
    def program(x: Any) -> Any:
        return tuple(
            _USES[use](x, mb.const(val=array, name=f"w{at}" if at else "w")) for at, (use, array) in enumerate(uses)
        )

    return program

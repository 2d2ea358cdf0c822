"""What ``constexpr_*`` ops are made of, one array for each of their inputs, and what they decode to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from milopt.huggingface.bands import Band
from milopt.package.blobs import element_named

__all__ = ["Form", "Tensor", "bits_of", "block_size", "index_bits", "kind_of"]

Array: TypeAlias = Any  # numpy.ndarray; its generic form is more than pyright strict can follow

_INDEX_BITS = (1, 2, 3, 4, 6, 8)  # coremltools 9.0, iOS18 constexpr_lut_to_dense


@dataclass(frozen=True)
class Tensor:
    """One input of an op: ``array``, a byte or more for each element, of MIL's ``dtype``."""

    array: Array
    dtype: str

    @property
    def nbytes(self) -> int:
        element = element_named(self.dtype)
        assert element is not None
        return element.nbytes(int(self.array.size))


@dataclass(frozen=True)
class Form:
    """``tensors`` by the names of the inputs they are for: data, scale, offset, or indices, lut, perhaps scale."""

    text: str
    tensors: dict[str, Tensor]

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for each in self.tensors.values())

    def decoded(self, band: Band) -> Array:
        """What the ops give for a band of rows."""
        from milopt.interpreter.ops.constexpr import blockwise_shift_scale, lut_to_dense

        given = {name: each.array for name, each in self.tensors.items()}
        whole: Array = given["indices" if "indices" in given else "data"][band.rows]
        if "indices" in given:
            whole = lut_to_dense(whole, given["lut"] if len(given["lut"]) == 1 else given["lut"][band.blocks])
        if "scale" not in given:
            return whole
        offset = given.get("offset")
        return blockwise_shift_scale(
            whole, given["scale"][band.blocks], None if offset is None else offset[band.blocks]
        )


def bits_of(array: Array) -> Array:
    """Floats as unsigned integers of the same bits."""
    return array.view(np.uint16 if array.dtype == np.float16 else np.uint32)


def kind_of(array: Array) -> str:
    """MIL's name of a float type."""
    return "fp16" if array.dtype == np.float16 else "fp32"


def index_bits(count: int) -> int | None:
    """The bits of an index into ``count`` entries, of those that MIL has; ``None`` where none are enough."""
    return next((bits for bits in _INDEX_BITS if count <= 1 << bits), None)


def block_size(shape: tuple[int, ...], counts: tuple[int, ...]) -> str:
    """How large a block is: ``1 x 32``."""
    return " x ".join(str(size // count) for size, count in zip(shape, counts, strict=True))

"""Constants of a program, and their working copies as torch tensors.

A plan refers to the program's numpy arrays, which may be memory-mapped, and copies nothing when it is made. A weight
is turned into a tensor of the run's float dtype when it is first used; :class:`Weights` keeps that copy, one for all
functions and reshapes that look at the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from math import prod
from typing import Any, cast

import numpy as np
import torch

from milopt import mil
from milopt.interpreter.devices import device_named
from milopt.interpreter.values import Array, Precision, from_array, held_dtype, is_float
from milopt.package.weights import Packed

__all__ = ["Constant", "Decoded", "Weight", "Weights"]

# Below this many bytes a working copy is always kept: making it costs more than holding it.
_SMALL = 1 << 14


class Constant:
    """A value written in the program: a numpy array or scalar, a string, or a list of labels.

    Elements of less than a byte stay packed until someone asks for them.
    """

    def __init__(self, value: Any, dtype: str, shape: tuple[int, ...]) -> None:
        self._held = value
        self.dtype = dtype
        self.shape = shape

    @property
    def value(self) -> Any:
        return self._held.val if isinstance(self._held, Packed) else self._held

    def array(self) -> Array:
        return self._held.opened() if isinstance(self._held, Packed) else np.asarray(self._held)

    def key(self) -> Hashable:
        """Equal for constants with equal bytes in one place, whatever their shapes, or for equal scalars."""
        if isinstance(self._held, Packed) and self._held.piece is not None:
            return *self._held.piece.key, self.dtype
        array = self.array()
        if array.ndim == 0:
            return self.dtype, repr(self.value)
        if array.flags.c_contiguous:
            return *mil.weight_key(array), self.dtype
        return *mil.weight_key(array), self.dtype, array.shape, array.strides

    def nbytes(self) -> int:
        if isinstance(self._held, Packed):
            return prod(self.shape)  # numpy has a byte for each
        return int(self.array().nbytes)


class Decoded(Constant):
    """One result of a ``constexpr_`` op: what ``function`` makes of other constants, computed when asked for."""

    def __init__(
        self,
        op_type: str,
        function: Callable[..., Any],
        arguments: Mapping[str, Any],
        output: int,
        dtype: str,
        shape: tuple[int, ...],
    ) -> None:
        super().__init__(None, dtype, shape)
        self.op_type = op_type
        self.function = function
        self.arguments = arguments
        self.output = output

    def array(self) -> Array:
        values = {name: each.array() if isinstance(each, Constant) else each for name, each in self.arguments.items()}
        result: Any = self.function(**values)
        return cast("Array", result[self.output] if isinstance(result, tuple) else result)

    def key(self) -> Hashable:
        parts = [
            (name, (each.key(), each.shape) if isinstance(each, Constant) else each)
            for name, each in sorted(self.arguments.items())
        ]
        return self.op_type, self.output, tuple(parts)

    def nbytes(self) -> int:
        return sum(each.nbytes() for each in self.arguments.values() if isinstance(each, Constant))


class Weights:
    """Working copies of constants in one precision on one device; to be shared by the plans of one model.

    With ``keep=False`` large weights are prepared at each use and dropped after it: slow, but the memory needed is
    that of the largest weight.
    """

    def __init__(
        self, precision: Precision = "declared", *, keep: bool = True, device: str | torch.device = "cpu"
    ) -> None:
        self.precision: Precision = precision
        self.device = device_named(device, precision)
        self.keep = keep
        self._kept: dict[Hashable, tuple[Constant, torch.Tensor]] = {}

    def prepare(self, constant: Constant) -> torch.Tensor:
        """The constant as a tensor of the dtype it is held in. It must not be written to."""
        if not self.keeps(constant):
            return self._made(constant)
        key = constant.key()
        if key not in self._kept:
            # the constant is kept too: a key holds addresses, which are only unique while the arrays live
            self._kept[key] = constant, self._made(constant)
        return self._kept[key][1].view(constant.shape)

    def _made(self, constant: Constant) -> torch.Tensor:
        return _tensor(constant, self.precision).to(self.device)

    def keeps(self, constant: Constant) -> bool:
        """Whether the constant's working copy outlives its use."""
        return self.keep or constant.nbytes() <= _SMALL


class Weight:
    """A constant where an op uses it; calling it gives the tensor."""

    __slots__ = ("_constant", "_tensor", "_weights", "shape")

    def __init__(self, constant: Constant, weights: Weights, shape: tuple[int, ...] | None = None) -> None:
        self._constant = constant
        self._weights = weights
        self._tensor: torch.Tensor | None = None
        self.shape = constant.shape if shape is None else shape

    def viewed(self, shape: tuple[int, ...]) -> Weight:
        """The same constant in another shape."""
        return Weight(self._constant, self._weights, shape)

    def __call__(self, frame: object = None) -> torch.Tensor:
        if self._tensor is not None:
            return self._tensor
        tensor = self._weights.prepare(self._constant).view(self.shape)
        if self._weights.keeps(self._constant):
            self._tensor = tensor
        return tensor


def _tensor(constant: Constant, precision: Precision) -> torch.Tensor:
    array = constant.array()
    if array.shape != constant.shape:
        raise ValueError(f"a constant decodes to shape {array.shape}, but {constant.shape} is declared")
    if is_float(constant.dtype) != (array.dtype.kind == "f"):
        raise TypeError(f"a constant of {array.dtype} is declared as {constant.dtype}")
    held = held_dtype(constant.dtype, precision)
    if array.dtype == np.float16 and held is torch.float64:
        array = array.astype(np.float64)  # numpy widens them in a third of torch's time
    return from_array(array).to(held)

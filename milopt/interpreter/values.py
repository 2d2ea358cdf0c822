"""What flows through a run: the declared type of a value, and how it is held as a torch tensor.

In the two ``declared`` precisions fp16 values are held as float32 tensors whose numbers are fp16 numbers: torch's fp16
kernels on a CPU are slower than its fp32 ones (a 1x1 convolution 9 times), and composites accumulate in fp32 anyway.
In ``float64`` every float is a float64 and nothing is rounded.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from milopt import mil
from milopt.errors import EvaluationError
from milopt.precisions import Precision

__all__ = [
    "Array",
    "Precision",
    "ValueInfo",
    "from_array",
    "held_dtype",
    "info_of",
    "is_float",
    "rounded",
    "to_numpy",
    "to_tensor",
]

Array: TypeAlias = np.ndarray[Any, Any]

FLOATS = ("fp16", "fp32", "fp64")

# torch has no arithmetic on unsigned 16- and 32-bit integers: they are held in the next wider signed type.
_INTEGERS = {
    "int4": torch.int8,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint1": torch.uint8,
    "uint2": torch.uint8,
    "uint3": torch.uint8,
    "uint4": torch.uint8,
    "uint6": torch.uint8,
    "uint8": torch.uint8,
    "uint16": torch.int32,
    "uint32": torch.int64,
}

_NUMPY = {"fp16": np.float16, "fp32": np.float32, "fp64": np.float64, "bool": np.bool_, "uint16": np.uint16}


@dataclass(frozen=True)
class ValueInfo:
    """Declared type of an input, an output or a state.

    ``shape`` holds ints, and the symbol's name where a dimension is only known at run time; None when not even the
    rank is declared. ``dtype`` is MIL's name.
    """

    name: str
    shape: tuple[int | str, ...] | None
    dtype: str

    def __str__(self) -> str:
        dims = "..." if self.shape is None else ", ".join(map(str, self.shape))
        return f"{self.dtype}[{dims}]"


def info_of(var: mil.Var) -> ValueInfo:
    """The declared type of a PyMIL value."""
    if mil.types.is_list(var.sym_type) or mil.types.is_dict(var.sym_type):
        return ValueInfo(var.name, None, "list" if mil.types.is_list(var.sym_type) else "dict")
    dims = [_dimension(dim) for dim in var.shape]
    return ValueInfo(var.name, None if "*" in dims else tuple(dims), mil.dtype_name(var))


def _dimension(dim: Any) -> int | str:
    """An int, a symbol's name, ``*`` for an unknown number of dimensions, ``?`` for a computed dimension.

    Computed ones (``is0 - 3``) are accepted at any size.
    """
    if not mil.is_symbolic(dim) or isinstance(dim, float) or getattr(dim, "is_Integer", False):
        return int(dim)
    if not dim.is_Symbol:
        return "?"
    return "*" if dim.name.startswith("*") else str(dim.name)  # coremltools names variadic symbols so


def is_float(dtype: str) -> bool:
    return dtype in FLOATS


def held_dtype(dtype: str, precision: Precision) -> torch.dtype | None:
    """The torch dtype a value of MIL type ``dtype`` is held in; None for strings, lists and dictionaries."""
    if dtype in FLOATS:
        return torch.float64 if precision == "float64" or dtype == "fp64" else torch.float32
    if dtype == "bool":
        return torch.bool
    return _INTEGERS.get(dtype)


def rounded(value: torch.Tensor, dtype: str, precision: Precision) -> torch.Tensor:
    """A float tensor in the dtype it is held in, its numbers rounded to MIL type ``dtype`` if the precision asks so."""
    if precision != "float64" and dtype == "fp16":
        return value.half().float()
    return value.to(held_dtype(dtype, precision))


def from_array(array: Array) -> torch.Tensor:
    """A tensor of the array's numbers that shares its memory where torch can; it is only to be read."""
    if array.dtype.kind == "u" and array.dtype.itemsize in (2, 4):
        array = array.astype(np.int64)
    with warnings.catch_warnings():
        # memory-mapped weights are read-only, and the interpreter writes to nothing but states
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.as_tensor(np.ascontiguousarray(array)).view(array.shape)


def to_tensor(value: object, info: ValueInfo, precision: Precision, what: str) -> torch.Tensor:
    """What a caller passed for ``info``, as it is held. Kinds must agree: floats for floats, ints for ints.

    Any float width is taken for a float and rounded to the declared one; any integer width is taken for an integer if
    its values fit. The tensor may share memory with ``value``.
    """
    if isinstance(value, torch.Tensor):
        tensor = value.detach()
    else:
        array: Array = np.asarray(value)
        if array.dtype.kind not in "fiub":
            raise EvaluationError(f"{what} {info.name!r} must be {info}, got an array of {array.dtype}")
        tensor = from_array(array)
    held = held_dtype(info.dtype, precision)
    if held is None or _family(tensor.dtype) != _family(held):
        raise EvaluationError(f"{what} {info.name!r} must be {info}, got {_described(tensor)}")
    if info.shape is not None and not _fits(tensor.shape, info.shape):
        raise EvaluationError(f"{what} {info.name!r} must be {info}, got {_described(tensor)}")
    if is_float(info.dtype):
        return rounded(tensor, info.dtype, precision)
    if tensor.dtype != held:
        tensor = _narrowed(tensor, held, info, what)
    return tensor


def _narrowed(tensor: torch.Tensor, held: torch.dtype, info: ValueInfo, what: str) -> torch.Tensor:
    narrow = tensor.to(held)
    if not torch.equal(narrow.to(tensor.dtype), tensor):
        raise EvaluationError(f"{what} {info.name!r} must be {info}, but holds values beyond {info.dtype}")
    return narrow


def to_numpy(value: torch.Tensor | str, info: ValueInfo, precision: Precision) -> Array:
    """A copy as numpy array: of the declared dtype, or of float64 for floats in that precision."""
    if isinstance(value, str):
        return np.asarray(value)
    array: Array = value.detach().cpu().numpy()
    if is_float(info.dtype) and precision == "float64":
        return array.astype(np.float64)
    with np.errstate(over="ignore"):  # fp16 overflow was already turned into inf
        return array.astype(_NUMPY.get(info.dtype, array.dtype))


def _family(dtype: torch.dtype) -> str:
    if dtype.is_floating_point:
        return "float"
    if dtype.is_complex:
        return "complex"
    return "bool" if dtype == torch.bool else "int"


def _fits(actual: torch.Size, declared: tuple[int | str, ...]) -> bool:
    return len(actual) == len(declared) and all(
        isinstance(want, str) or have == want for have, want in zip(actual, declared, strict=True)
    )


def _described(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}[{', '.join(map(str, tensor.shape))}]"

"""Stand-ins: parameters without memory, in the place of a checkpoint's large matrices while a model is converted.

A stand-in has a parameter's shape and infinite elements, see :mod:`milopt.huggingface.ranges`. Within
:func:`real_weights`, torch computes with the parameter's own elements, which are read as they are needed. Any view of
a stand-in, in torch or in numpy, tells by its address and strides exactly which elements it has: :func:`view_of`.

Importing this module imports torch; milopt does so only while it converts.
"""

from __future__ import annotations

import bisect
import importlib
import threading
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import numpy as np
import torch

from milopt.huggingface.ranges import reserved

__all__ = [
    "FEWEST",
    "Elements",
    "StandIn",
    "View",
    "any_stand_ins",
    "is_stand_in",
    "real_weights",
    "realize",
    "stand_in",
    "view_of",
]

_DispatchMode: Any = importlib.import_module("torch.utils._python_dispatch").TorchDispatchMode

FEWEST = 1 << 16
"""Parameters of fewer elements, and those of less than two axes, are real."""

Elements: TypeAlias = Callable[[], torch.Tensor]
"""Gives a parameter's elements as a contiguous tensor of any float type, which may be mapped from a file."""


class StandIn:
    """One parameter: its shape, where its elements come from, and its arrays by numpy's name of their type."""

    def __init__(self, elements: Elements, shape: tuple[int, ...]) -> None:
        self.elements = elements
        self.shape = shape
        self._arrays = weakref.WeakValueDictionary[str, Any]()

    def array(self, dtype: str) -> Any:
        """The stand-in as ``float32`` or ``float16``; OSError where there are no addresses for it."""
        array = self._arrays.get(dtype)
        if array is None:
            array = self._arrays[dtype] = _table.reserve(self, dtype)
        return array

    def real(self) -> torch.Tensor:
        """The elements, in the type that the checkpoint has."""
        whole = self.elements()
        assert (tuple(whole.shape), whole.is_contiguous()) == (self.shape, True), "a checkpoint changed under way"
        return whole


@dataclass(frozen=True)
class View:
    """Elements of a parameter: those that ``offset`` and ``strides``, counted in elements, lead to.

    ``dtype`` is numpy's name of the type in which they are wanted.
    """

    parameter: StandIn
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def real(self) -> torch.Tensor:
        """The elements, in the type that the checkpoint has."""
        return self.parameter.real().as_strided(self.shape, self.strides, self.offset)

    def cast(self, dtype: str) -> Any:
        """The same elements of the parameter's stand-in of another type."""
        array = self.parameter.array(dtype)
        steps = tuple(stride * array.itemsize for stride in self.strides)
        flat = array.reshape(-1)[self.offset :]
        return np.lib.stride_tricks.as_strided(flat, self.shape, steps, writeable=False)


class _Table:
    """Which addresses are whose."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._starts: list[int] = []
        self._owners: dict[int, tuple[int, StandIn, str]] = {}

    def __len__(self) -> int:
        return len(self._starts)

    def reserve(self, parameter: StandIn, dtype: str) -> Any:
        start = 0
        array = reserved(parameter.shape, dtype, lambda: self._remove(start))
        start = int(array.__array_interface__["data"][0])
        with self._lock:
            bisect.insort(self._starts, start)
            self._owners[start] = start + int(array.nbytes), parameter, dtype
        return array

    def _remove(self, start: int) -> None:
        with self._lock:
            self._starts.remove(start)
            del self._owners[start]

    def find(self, address: int) -> tuple[int, StandIn, str] | None:
        """Where the array with this address begins, whose it is, and its type."""
        with self._lock:
            at = bisect.bisect_right(self._starts, address) - 1
            if at < 0:
                return None
            end, parameter, dtype = self._owners[self._starts[at]]
            return (self._starts[at], parameter, dtype) if address < end else None


_table = _Table()


def stand_in(elements: Elements, shape: tuple[int, ...], fewest: int | None = None) -> torch.Tensor:
    """A float32 tensor that stands in for a parameter; a small one, or one for which there is no room, is real.

    Small is what has less than ``fewest`` elements, or than :data:`FEWEST`.
    """
    if len(shape) < 2 or prod(shape) < (FEWEST if fewest is None else fewest):
        return elements().to(torch.float32, copy=True)
    try:
        array = StandIn(elements, shape).array("float32")
    except OSError:
        return elements().to(torch.float32, copy=True)
    untyped: Any = torch
    tensor: torch.Tensor = untyped.from_numpy(array)
    return tensor


def view_of(array: Any) -> View | None:
    """Which elements of which parameter a numpy array has; ``None`` for one that is no view of a stand-in.

    Nor is one whose strides are negative.
    """
    found = _table.find(int(array.__array_interface__["data"][0])) if len(_table) and array.size else None
    if found is None:
        return None
    start, parameter, dtype = found
    size = np.dtype(dtype).itemsize
    # torch has no negative strides
    if any(stride < 0 for stride in array.strides):
        return None
    offset = int(array.__array_interface__["data"][0]) - start
    if str(array.dtype) != dtype or offset % size or any(stride % size for stride in array.strides):
        return None
    return View(parameter, dtype, offset // size, tuple(array.shape), tuple(each // size for each in array.strides))


def any_stand_ins() -> bool:
    """Whether there are any in this process."""
    return len(_table) > 0


def is_stand_in(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a stand-in, or a view of one."""
    return _found(tensor) is not None


def _found(tensor: torch.Tensor) -> tuple[int, StandIn, str] | None:
    # tensors of other kinds than torch's own have no addresses
    if not len(_table) or type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.device.type != "cpu":
        return None
    return _table.find(tensor.data_ptr())


def _real(tensor: torch.Tensor) -> torch.Tensor:
    found = _found(tensor)
    if found is None:
        return tensor
    start, parameter, _ = found
    offset = (tensor.data_ptr() - start) // tensor.element_size()
    return parameter.real().to(tensor.dtype).as_strided(tensor.shape, tensor.stride(), offset)


def _replaced(value: Any) -> Any:
    """An argument of an op with real elements: a tensor, or a list of them, or something else as it is."""
    if isinstance(value, torch.Tensor):
        return _real(value)
    return [_replaced(each) for each in value] if _is_list(value) else value


def _is_list(value: object) -> bool:
    return isinstance(value, (list, tuple))


class _RealWeights(_DispatchMode):  # type: ignore[misc]
    """Every op takes the real elements where it is given a stand-in."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if func is torch.ops.aten.embedding.default and _is_whole(args[0]):
            # rows are looked up in the type that the checkpoint has: making all of them float32 is to no purpose
            found = _found(args[0])
            assert found is not None
            table = found[1].real()
            table = table if table.dtype.itemsize > 1 else table.float()
            return func(table, *args[1:], **(kwargs or {})).float()
        given = [
            _number(each) if isinstance(each, (bool, int, float)) and str(kind.type) == "Tensor" else _replaced(each)
            for each, kind in zip(args, func._schema.arguments, strict=False)
        ]
        named: dict[str, Any] = kwargs or {}
        return func(*given, **{name: _replaced(each) for name, each in named.items()})


def _number(value: float) -> torch.Tensor:
    """The tensor of a TorchScript constant: torch gives a mode the number that it came from."""
    return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)


def _is_whole(tensor: torch.Tensor) -> bool:
    found = _found(tensor)
    return (
        found is not None
        and tensor.dtype == torch.float32
        and found[0] == tensor.data_ptr()
        and found[1].shape == tuple(tensor.shape)
        and tensor.is_contiguous()
    )


@contextmanager
def real_weights() -> Generator[None]:
    """While this lasts, torch computes with the elements of the parameters and not with those of their stand-ins."""
    if not len(_table):
        yield
        return
    with _RealWeights():
        yield


def realize(model: torch.nn.Module) -> None:
    """Give every parameter its real elements, in memory. Whatever shares a parameter shares them."""
    for parameter in model.parameters():
        parameter.data = _real(parameter.data)

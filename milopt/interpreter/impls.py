"""The registry of op implementations: MIL op type -> a small function whose keyword parameters are the op's inputs.

The annotation of a parameter says how its value is delivered:

=====================  =======================================================================================
``Tensor``             a torch tensor; floats in the dtype of the run
``Tensors``            a tuple of tensors, for MIL's variadic inputs (``values``)
``Ints``               a tuple of Python ints (axes, shapes, masks); a scalar becomes a tuple of one
``int`` ``float``      a Python number; ``bool`` and ``str`` alike. A constant is converted once, when the plan
                       is made; a value computed by the program is converted at each run
``Array``              a numpy array, never converted: only for ops that decode constants
``Labels``             a tuple of class labels, strings or ints
``Elements``           the elements of a MIL list
``Cell``               a state, to be read and written
``Blocks``             the op's nested blocks as callables from block inputs to block outputs
``Rounding``           no input: rounds an intermediate value as the precision asks, to the dtype declared for the
                       op's result
=====================  =======================================================================================

``X | None`` with a default of ``None`` stands for an optional input. Defaults are those of coremltools'
``default_inputs``.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, TypeAlias, TypeVar

import torch

from milopt.interpreter.lists import Elements
from milopt.interpreter.rounding import Rounding
from milopt.interpreter.state import Cell
from milopt.interpreter.values import Array

__all__ = [
    "Array",
    "Blocks",
    "Elements",
    "Impl",
    "Impls",
    "Ints",
    "Kind",
    "Labels",
    "Parameter",
    "Rounding",
    "Tensor",
    "Tensors",
]

Tensor: TypeAlias = torch.Tensor
Tensors: TypeAlias = tuple[torch.Tensor, ...]
Ints: TypeAlias = tuple[int, ...]
Labels: TypeAlias = tuple[str | int, ...]
Blocks: TypeAlias = tuple[Callable[..., list[Any]], ...]

F = TypeVar("F", bound=Callable[..., Any])


class Kind(Enum):
    """How a value is delivered to an implementation."""

    TENSOR = auto()
    TENSORS = auto()
    INTS = auto()
    NUMBER = auto()
    TEXT = auto()
    ARRAY = auto()
    LABELS = auto()
    ELEMENTS = auto()
    CELL = auto()
    BLOCKS = auto()
    ROUNDING = auto()

    @property
    def is_input(self) -> bool:
        """Whether the value is one of the op's inputs; else the compiler provides it."""
        return self not in (Kind.BLOCKS, Kind.ROUNDING)


_KINDS: dict[Any, Kind] = {
    Tensor: Kind.TENSOR,
    Tensors: Kind.TENSORS,
    Ints: Kind.INTS,
    int: Kind.NUMBER,
    float: Kind.NUMBER,
    bool: Kind.NUMBER,
    str: Kind.TEXT,
    Array: Kind.ARRAY,
    Labels: Kind.LABELS,
    Elements: Kind.ELEMENTS,
    Cell: Kind.CELL,
    Blocks: Kind.BLOCKS,
    Rounding: Kind.ROUNDING,
}


@dataclass(frozen=True)
class Parameter:
    """An input of an op: its MIL name, how it is delivered, and whether it may be left out."""

    name: str
    kind: Kind
    optional: bool


@dataclass(frozen=True)
class Impl:
    """How one op type is evaluated.

    ``moves``: every element of the results is an element of the inputs, so nothing has to be rounded.
    ``exact``: nothing has to be rounded either, for a float type that holds the inputs holds the results.
    ``shares``: the inputs whose memory a result may share (views). An implementation that may return an input, or a
    view of it, must name it here: states are written in place where nothing else shares their memory.
    ``decodes``: works on numpy arrays and only on constants (the ``constexpr_`` ops).
    ``overrides``: replaces an implementation of the same op type when registries are merged.
    """

    op_type: str
    function: Callable[..., Any]
    parameters: tuple[Parameter, ...]
    moves: bool
    exact: bool
    shares: frozenset[str]
    decodes: bool
    overrides: bool


class Impls(Mapping[str, Impl]):
    """A family of implementations. Families are merged with ``|``; two implementations of one op type are an error.

    ::

        mine = Impls("mine")

        @mine("relu", override=True)
        def _(x: Tensor) -> Tensor:
            return x.clamp(min=0)

        milopt.interpreter.compile(model, impls=core | mine)
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._impls: dict[str, Impl] = {}

    def __call__(
        self,
        *op_types: str,
        moves: bool = False,
        exact: bool = False,
        shares: str = "",
        decodes: bool = False,
        override: bool = False,
    ) -> Callable[[F], F]:
        """Register the decorated function for ``op_types``; see :class:`Impl`. ``shares`` is a list of names."""

        def register(function: F) -> F:
            parameters = _parameters(function)
            for op_type in op_types:
                self._add(
                    Impl(op_type, function, parameters, moves, exact, frozenset(shares.split()), decodes, override)
                )
            return function

        return register

    def __or__(self, other: Impls) -> Impls:
        merged = Impls(f"{self.name} | {other.name}")
        for impl in (*self.values(), *other.values()):
            merged._add(impl)
        return merged

    def _add(self, impl: Impl) -> None:
        if impl.op_type in self._impls and not impl.overrides:
            raise ValueError(
                f"{self.name} already has an implementation of {impl.op_type}; say override=True to replace"
            )
        self._impls[impl.op_type] = impl

    def __getitem__(self, op_type: str) -> Impl:
        return self._impls[op_type]

    def __iter__(self) -> Iterator[str]:
        return iter(self._impls)

    def __len__(self) -> int:
        return len(self._impls)


def _parameters(function: Callable[..., Any]) -> tuple[Parameter, ...]:
    hints = typing.get_type_hints(function)
    return tuple(
        Parameter(name, _kind(function, name, hints.get(name, Tensor)), each.default is not inspect.Parameter.empty)
        for name, each in inspect.signature(function).parameters.items()
    )


def _kind(function: Callable[..., Any], name: str, hint: Any) -> Kind:
    if isinstance(hint, types.UnionType):
        (hint,) = (each for each in typing.get_args(hint) if each is not types.NoneType)
    if hint not in _KINDS:
        raise TypeError(f"{function.__module__}: parameter {name!r} has the annotation {hint}, which is no delivery")
    return _KINDS[hint]

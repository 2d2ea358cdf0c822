"""What a maker sees of the program that is being drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast, overload

import numpy as np
from hypothesis import strategies as st

from milopt.mil import Function, Var, add_input, dtype_name, is_symbolic, mb, shape_of, target

__all__ = ["REFUSALS", "Draw", "Maker", "Scope", "fitted", "is_fixed", "mil_type", "numpy_type", "tensors_of"]

Draw: TypeAlias = Callable[[st.SearchStrategy[Any]], Any]
Maker: TypeAlias = Callable[[Draw, Sequence[Var]], "Var | Sequence[Var] | None"]

REFUSALS = (ValueError, TypeError, AssertionError, NotImplementedError, IndexError, KeyError, AttributeError)
"""What coremltools raises for an op that it does not take: such a draw is no program."""

_NUMPY: dict[str, Any] = {"fp16": np.float16, "fp32": np.float32, "bool": np.bool_}


def numpy_type(dtype: str) -> np.dtype[Any]:
    """numpy's type for MIL's name of one."""
    kind: np.dtype[Any] = np.dtype(_NUMPY.get(dtype, dtype))
    return kind


def mil_type(dtype: np.dtype[Any]) -> str:
    """MIL's name for numpy's type."""
    name = str(cast("Any", dtype).name)
    return {"float16": "fp16", "float32": "fp32"}.get(name, name)


@dataclass(eq=False)
class Scope(Sequence[Var]):
    """The values so far, as a sequence; and what else there is to build with.

    ``states`` are the function's states, ``held`` the constants that are shared, ``inner`` the makers that nested
    blocks are made with, ``depth`` how deep the block is nested that is being built.
    """

    function: Function
    values: list[Var]
    states: list[Var] = field(default_factory=list[Var])
    held: list[Var] = field(default_factory=list[Var])
    inner: Sequence[Maker] = ()
    depth: int = 0

    @overload
    def __getitem__(self, index: int) -> Var: ...
    @overload
    def __getitem__(self, index: slice) -> list[Var]: ...
    def __getitem__(self, index: int | slice) -> Var | list[Var]:
        return self.values[index]

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[Var]:
        return iter(self.values)

    @property
    def opset(self) -> target:
        return self.function.opset_version

    def nested(self) -> Scope:
        """The same one block deeper: what is built there is not seen outside."""
        return Scope(self.function, list(self.values), [], self.held, self.inner, self.depth + 1)

    def input(self, shape: tuple[int, ...], dtype: str) -> Var:
        """A new input of the program."""
        numbers = (int(name[1:]) for name in self.function.inputs if name[:1] == "x" and name[1:].isdigit())
        var = add_input(self.function, f"x{max(numbers, default=-1) + 1}", shape, dtype)
        self.values.insert(len(self.function.inputs) - 1, var)
        return var

    def constant(self, draw: Draw, array: Any) -> Any:
        """The array itself, or now and then a constant that several ops share."""
        array = np.asarray(array)
        alike = [var for var in self.held if var.val.dtype == array.dtype and var.val.shape == array.shape]
        how = draw(st.sampled_from(["own", "own", "held"]))
        if how == "own" or self.depth:
            return array[()]
        if alike and draw(st.booleans()):
            return draw(st.sampled_from(alike))
        var: Var = mb.const(val=array[()])
        self.held.append(var)
        return var


def fitted(draw: Draw, scope: Scope, var: Var, shape: tuple[int, ...], dtype: str) -> Var | None:
    """``var`` brought to ``shape`` and ``dtype`` by movements and casts; ``None`` where that takes more."""
    if is_fixed(var) and dtype_name(var) == dtype and shape_of(var) == shape:
        return var
    floats = {"fp16", "fp32"}
    if not is_fixed(var) or not {dtype_name(var), dtype} <= floats:
        return None
    size, wanted = int(np.prod(shape_of(var))), int(np.prod(shape))
    if dtype_name(var) != dtype:
        var = mb.cast(x=var, dtype=dtype)
    if size < wanted:
        return None
    if size > wanted:
        var = mb.slice_by_index(x=mb.reshape(x=var, shape=[-1]), begin=[0], end=[wanted])
    return var if shape_of(var) == shape else mb.reshape(x=var, shape=shape)


def is_fixed(var: Var) -> bool:
    """Whether every dimension is a number."""
    return not any(map(is_symbolic, shape_of(var)))


def tensors_of(made: Iterable[Any]) -> list[Var]:
    """Those of ``made`` that other ops can take: no lists, no states, and something in them."""
    return [var for var in made if isinstance(var, Var) and not hasattr(var, "elem_type") and 0 not in shape_of(var)]

"""Reading and writing states."""

from __future__ import annotations

from milopt.interpreter.impls import Impls, Tensor
from milopt.interpreter.state import Cell

__all__ = ["states"]

states = Impls("states")


@states("read_state", moves=True, shares="input")
def _(input: Cell) -> Tensor:
    """The state's own memory: MIL's copy is left out, because nothing writes to a value that is still in use."""
    return input.read()


@states("coreml_update_state", moves=True, shares="value")
def _(state: Cell, value: Tensor, own: bool = False) -> Tensor:
    """``own``: nobody else holds the value's memory, so that the state may take it."""
    state.write(value, own)
    return value

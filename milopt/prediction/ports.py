"""What a feature of the model's description takes or gives, whatever kind of feature it is."""

from __future__ import annotations

from typing import Any, Protocol

from milopt.interpreter.values import Array

__all__ = ["Input", "Output"]


class Input(Protocol):
    """An input as a caller sees it."""

    @property
    def name(self) -> str: ...
    @property
    def optional(self) -> bool:
        """Whether it may be left out."""
        ...

    def read(self, value: Any) -> Array:
        """What the plan gets for ``value``; EvaluationError if it isn't what is described."""
        ...

    def default(self) -> Array:
        """What the plan gets for an optional input that is left out."""
        ...


class Output(Protocol):
    """An output as a caller sees it."""

    @property
    def name(self) -> str: ...

    def write(self, value: Array) -> Any:
        """What the caller gets for the plan's ``value``, an array of its declared dtype."""
        ...

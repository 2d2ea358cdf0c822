"""What can be evaluated: a model, or a bare PyMIL program."""

from __future__ import annotations

from typing import Protocol, TypeAlias

from milopt import mil
from milopt.errors import EvaluationError

__all__ = ["HasProgram", "Source", "function_name", "program_of"]


class HasProgram(Protocol):
    """What a :class:`milopt.Model` is to the interpreter."""

    @property
    def program(self) -> mil.Program: ...
    @property
    def default_function(self) -> str: ...


Source: TypeAlias = HasProgram | mil.Program


def program_of(source: Source) -> mil.Program:
    return source if isinstance(source, mil.Program) else source.program


def function_name(source: Source, function: str | None) -> str:
    """The function meant: the given one, else the model's default; EvaluationError if there is none of that name."""
    functions = program_of(source).functions
    if function is None:
        named = "main" if isinstance(source, mil.Program) else source.default_function
        # coremltools' loader forgets the default function's name; with one function there is no doubt
        function = next(iter(functions)) if named not in functions and len(functions) == 1 else named
    if function not in functions:
        raise EvaluationError(f"there is no function {function!r}; the program has {', '.join(functions)}")
    return function

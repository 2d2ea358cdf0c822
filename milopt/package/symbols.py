"""Symbols for dimensions that are known when the program runs.

PyMIL numbers its symbols through the whole process (``is0``, ``is1``, ...) and refuses a name it has seen. A package's
own symbols are numbered function by function and bypass that register; their names (``dim0``, ``dim1``) are none that
PyMIL invents, so that symbols it makes later are others.

A package doesn't say which dimensions are the same: a ``MIL.Dimension`` is a number or unknown, without a name, and a
description gives each input sizes of its own. So every unknown dimension that is read gets a symbol of its own; ops
pass symbols on to their results, and saving leaves the symbols of the program in memory as they are.
"""

from __future__ import annotations

import importlib
from typing import Any

from coremltools.converters.mil.mil import program as pymil_program

__all__ = ["Symbols"]

_sympy: Any = importlib.import_module("sympy")
_MOST_NODES = 64  # of the expression of a dimension; what is longer becomes a symbol of its own


class Symbols:
    """The symbols of one function."""

    def __init__(self) -> None:
        self._own: set[Any] = set()
        self._foreign: dict[Any, Any] = {}

    def fresh(self, *, variadic: bool = False) -> Any:
        """A new symbol: for one dimension, or for any number of them."""
        name = f"{'*' if variadic else ''}dim{len(self._own)}"
        symbol = _sympy.Symbol.__new__(pymil_program.Symbol, name)
        self._own.add(symbol)
        return symbol

    def adopt(self, dim: Any) -> Any:
        """``dim``, a number or an expression, with symbols of this function in place of others."""
        if not isinstance(dim, _sympy.Basic):
            return dim
        if dim.is_Integer:
            return int(dim)
        expression: Any = dim
        if _nodes(expression) > _MOST_NODES:
            return self.fresh()
        foreign = [symbol for symbol in expression.free_symbols if symbol not in self._own]
        for symbol in sorted(foreign, key=lambda each: (len(each.name), each.name)):
            if symbol not in self._foreign:
                self._foreign[symbol] = self.fresh()
        return expression.xreplace({symbol: self._foreign[symbol] for symbol in foreign}) if foreign else expression


def _nodes(expression: Any) -> int:
    """How many nodes the expression's tree has, counted no further than needed."""
    count, todo = 0, [expression]
    while todo and count <= _MOST_NODES:
        count += 1
        todo += todo.pop().args
    return count

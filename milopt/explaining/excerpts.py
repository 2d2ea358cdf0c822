"""The canonical text around an op, with the op marked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property

from milopt.mil import Operation, Program, Var, arguments, is_constant, operations
from milopt.reports import place_of
from milopt.text import Lines, lines

__all__ = ["Excerpts"]

_USERS = 4  # of a value are shown; a weight or a residual may have hundreds
_MOST = 14  # ops of an excerpt


class Excerpts:
    """The ops of a program by name, and pieces of its text. The program must not change meanwhile."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._known: dict[str, dict[str, Var | Operation]] = {}
        for name, function in program.functions.items():
            known = self._known[name] = dict[str, Var | Operation](function.inputs)
            for op in operations(function):
                known[op.name] = op
                known.update(dict.fromkeys([var.name for var in op.outputs], op))

    @cached_property
    def _lines(self) -> Lines:
        return lines(self._program)

    @cached_property
    def _order(self) -> dict[Operation, int]:
        return {op: at for at, op in enumerate(self._lines.ops)}

    def names(self, function: str | None = None) -> Iterator[str]:
        """The names of all values and ops, in one function or in all."""
        for name, known in self._known.items():
            if function in (None, name):
                yield from known

    def ops(self) -> Iterator[tuple[str, str, str]]:
        """``(function, name as reasons give it, op type)`` of every op, constants included, in program order."""
        for name, function in self._program.functions.items():
            for op in operations(function):
                yield name, place_of(op), op.op_type

    def find(self, name: str, function: str | None = None) -> list[tuple[str, str, str]]:
        """``(function, name as reasons give it, op type)`` of what is called so; an input is of type ``input``."""
        found = [(each, known[name]) for each, known in self._known.items() if name in known]
        return [
            (each, place_of(thing), thing.op_type if isinstance(thing, Operation) else "input")
            for each, thing in found
            if function in (None, each)
        ]

    def around(self, function: str, place: str, matched: Iterable[str] = ()) -> list[str] | None:
        """The text of the op ``place`` (marked ``>``), its neighbours, and the matched ops (``*``), in program order.

        Ops left out in between show as ``...``. A constant or an input has no line: what uses it is marked. ``None``
        where the program has nothing of that name.
        """
        known = self._known.get(function, {})
        if (thing := known.get(place)) is None:
            return None
        marked = self._shown(thing)
        near = [other for op in marked for other in _neighbours(op)]
        stars = [op for name in matched if isinstance(op := known.get(name), Operation)]
        chosen = [op for op in dict.fromkeys([*marked, *near, *stars]) if op in self._order][:_MOST]
        text = list(self._written(sorted(chosen, key=self._order.__getitem__), set(marked), set(stars)))
        return [*text, *self._weights(text)]

    def _shown(self, thing: Var | Operation) -> list[Operation]:
        if isinstance(thing, Var):
            return list(thing.child_ops)[:_USERS]
        if thing in self._order:
            return [thing]
        return [user for var in thing.outputs for user in var.child_ops][:_USERS]

    def _written(self, ops: list[Operation], marked: set[Operation], stars: set[Operation]) -> Iterator[str]:
        last: int | None = None
        for op in ops:
            if last is not None and self._order[op] > last + 1:
                yield "    ..."
            last = self._order[op]
            mark = ">" if op in marked else "*" if op in stars else " "
            yield f"  {mark} {self._lines.ops[op]}  # {place_of(op)}"

    def _weights(self, text: list[str]) -> Iterator[str]:
        """The lines of the weights that an excerpt names."""
        for name, line in self._lines.weights.items():
            if any(f"={name}{end}" in each for each in text for end in (",", ")", " as ")):
                yield f"    {line}"


def _neighbours(op: Operation) -> Iterator[Operation]:
    """What makes the inputs of ``op``, and what uses its outputs."""
    for _, var in arguments(op):
        if var.op is not None and not is_constant(var):
            yield var.op
    for var in op.outputs:
        yield from list(var.child_ops)[:_USERS]

"""What a state holds at each place of a function, so that a part can read it anew instead of being handed its value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from milopt.mil import Function, Operation, Var, is_state
from milopt.sets.errors import SetError
from milopt.sets.stream import READERS, WRITERS, reads

__all__ = ["Contents", "contents_of"]


@dataclass(frozen=True)
class Contents:
    """``version`` numbers what a reader's value is: how often the state had been written by then.

    ``written`` has, for each state, the numbers of the parts that write it, in program order.
    """

    version: Mapping[Operation, int]
    state: Mapping[Operation, Var]
    written: Mapping[Var, tuple[int, ...]]

    def check(self, reader: Operation, part: int) -> None:
        """Refuse to give ``part`` the reader's value by reading the state, where it holds another by then.

        The value is wanted of the parts before; within the part the ops stay in order.
        """
        state = self.state[reader]
        before = sum(each < part for each in self.written.get(state, ()))
        if self.version[reader] < before:
            raise SetError(
                f"part {part + 1} uses what state {state.name!r} held before part {part} changed it "
                f"({reader.outputs[0].name}): cut elsewhere"
            )


def contents_of(function: Function, made: Mapping[Operation, int]) -> Contents:
    """``made`` tells the part of each op. SetError for a state whose parts are not in order."""
    version: dict[Operation, int] = {}
    state: dict[Operation, Var] = {}
    written: dict[Var, list[int]] = {}
    for op in function.operations:
        if op.op_type not in READERS | WRITERS:
            continue
        var = next(each for each in reads(op) if is_state(each))
        parts = written.setdefault(var, [])
        if op.op_type in WRITERS:
            if op not in made or (parts and parts[-1] > made[op]):
                raise SetError(f"state {var.name!r} is not written along the stream: the program can't be cut")
            parts.append(made[op])
        if op.op_type in READERS:
            version[op], state[op] = len(parts), var
    return Contents(version, state, {var: tuple(parts) for var, parts in written.items()})

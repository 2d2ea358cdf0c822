"""Which of two ops of a block comes first, without counting through the block each time."""

from __future__ import annotations

from typing import Any, cast

from milopt.mil import Block, Operation

__all__ = ["Order"]

# positions nearer to each other than this are dealt out anew
_LEAST = 1e-6


class Order:
    """Positions of a block's ops. New ops get one between their neighbours', so that a look-up costs what is new."""

    def __init__(self, block: Block) -> None:
        self._block = block
        self._positions: dict[Operation, float] = {}

    def __getitem__(self, op: Operation) -> float:
        """The op's position; it grows along the block, and may change when ops are added."""
        if op not in self._positions:
            self._number(op)
        return self._positions[op]

    def before(self, one: Operation, other: Operation) -> bool:
        """Whether ``one`` comes before ``other``, both in this block."""
        places = self[one], self[other]
        # to look up the second may have moved the first
        return self[one] < places[1]

    def forget(self, op: Operation) -> None:
        """The op was moved, or removed."""
        self._positions.pop(op, None)

    def _number(self, op: Operation) -> None:
        if not self._positions:
            self._renumber()
            return
        node: Any = cast("Any", self._block.operations)._get_node_from_op(op)
        first = last = node
        while first.prev is not None and first.prev.op not in self._positions:
            first = first.prev
        while last.next is not None and last.next.op not in self._positions:
            last = last.next
        ops: list[Operation] = [first.op]
        while ops[-1] is not last.op:
            first = first.next
            ops.append(first.op)
        low, high = self._around(ops)
        step = (high - low) / (len(ops) + 1)
        if step < _LEAST:
            self._renumber()
            return
        for count, each in enumerate(ops, 1):
            self._positions[each] = low + count * step

    def _around(self, ops: list[Operation]) -> tuple[float, float]:
        """The positions between which ``ops``, in a row, have to lie."""
        nodes: Any = self._block.operations
        before, behind = nodes._get_node_from_op(ops[0]).prev, nodes._get_node_from_op(ops[-1]).next
        room = float(len(ops) + 1)
        if before is not None:
            low = self._positions[before.op]
            return low, low + room if behind is None else self._positions[behind.op]
        high = room if behind is None else self._positions[behind.op]
        return high - room, high

    def _renumber(self) -> None:
        self._positions = {op: float(count) for count, op in enumerate(self._block.operations)}

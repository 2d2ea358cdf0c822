"""Where a replacement goes, and whether everything it uses is there by then."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from milopt.engine.order import Order
from milopt.engine.sameness import is_weight
from milopt.engine.uses import staying
from milopt.matching import Match
from milopt.mil import Block, Operation, Var, arguments
from milopt.nesting import holder, needs
from milopt.reports import NoMatch, require

__all__ = ["Placement"]


class Placement:
    """The order of a function's ops, as far as rewrites ask for it."""

    def __init__(self) -> None:
        self._orders: dict[Block, Order] = {}

    def order(self, block: Block) -> Order:
        if block not in self._orders:
            self._orders[block] = Order(block)
        return self._orders[block]

    def anchor(self, match: Match) -> Operation:
        """The op before which the replacement is built: the root.

        Of several roots it is the last one, or what uses one of them before that and stays.
        """
        if len(match.roots) == 1:
            return match.root
        block = match.root.enclosing_block
        order, going = self.order(block), set(match.ops) - staying(match.roots, match.ops)
        users = (holder(user, block) for var in match.replaced for user in var.child_ops if user not in going)
        last = max(match.roots, key=order.__getitem__)
        return min([last, *users], key=order.__getitem__)

    def late_weights(self, match: Match, anchor: Operation, built: list[Operation], new: Iterable[Var]) -> list[Var]:
        """The constants behind ``anchor`` that the replacement needs. Raises NoMatch for other late values."""
        made = set(built)
        # what the root uses is there before the root
        there = {var for op in match.ops for _, var in arguments(op)} if len(match.roots) == 1 else set[Var]()
        late: dict[Var, None] = {}
        for var in (*(var for op in built for var in needs(op)), *new):
            if var.op is None or var.op in made or var in there:
                continue
            there.add(var)
            if self._visible(var.op, anchor):
                continue
            kept = is_weight(var) and var.op.enclosing_block is anchor.enclosing_block
            require(kept, "its replacement needs a value that comes after it", at=var)
            late[var] = None
        return list(late)

    def _visible(self, op: Operation, anchor: Operation) -> bool:
        """Whether ``op`` comes before ``anchor``, in its block or in one around it."""
        block = op.enclosing_block
        if cast("Any", block) is None:
            raise NoMatch("its replacement needs an op that was removed", at=op)
        place: Operation | None = anchor
        while place is not None and place.enclosing_block is not block:
            place = place.enclosing_block.outer_op
        if place is None:
            raise NoMatch("its replacement needs a value of another block", at=op)
        return place is not op and self.order(block).before(op, place)

    def move(self, var: Var, anchor: Operation) -> None:
        """Put a late weight, and what it is made of, before ``anchor``."""
        op = var.op
        if op is None or op.enclosing_block is not anchor.enclosing_block or self._visible(op, anchor):
            return
        for _, each in arguments(op):
            self.move(each, anchor)
        ops: Any = op.enclosing_block.operations
        ops.remove(op)
        ops.insert_op_before(op, anchor)
        self.order(op.enclosing_block).forget(op)

"""Whether what a match would remove is needed elsewhere, and what of it stays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from milopt.engine.forms import OpPattern
from milopt.engine.found import Found
from milopt.mil import Operation, Var, arguments, is_output

__all__ = ["staying", "used_outside"]


def used_outside(roots: Sequence[Operation], replaced: Sequence[Var], found: Found) -> tuple[object, str] | None:
    """A reason why the ops can't go, and where: a value that something else needs, or an op in another block.

    ``replaced`` are the outputs of ``roots`` that get a replacement.
    """
    matched, block = set(found.ops.values()), roots[0].enclosing_block
    for root in roots:
        if root.enclosing_block is not block:
            return root, "the roots lie in different blocks"
    for op, values in _interior(roots, replaced, found.ops):
        if op.enclosing_block is not block:
            return op, "a matched op lies in an outer block"
        for var in values:
            if is_output(var):
                return var, "a matched value is also an output"
            if any(user not in matched for user in var.child_ops):
                return var, "a matched value is also used outside the match"
    stays = staying(roots, matched)
    for var in (var for root in roots for var in root.outputs if var not in replaced):
        if any(user in stays for user in var.child_ops):
            return var, "a matched op that stays uses an output that goes"
    return None


def staying(roots: Sequence[Operation], matched: Iterable[Operation]) -> set[Operation]:
    """The matched ops that something outside the match needs, and those that these need: no root, once replaced."""
    inner = set(matched).difference(roots)
    known = {*inner, *roots}
    todo = [
        op
        for op in inner
        if any(is_output(var) or any(user not in known for user in var.child_ops) for var in op.outputs)
    ]
    found = set(todo)
    while todo:
        for _, var in arguments(todo.pop()):
            if var.op in inner and var.op not in found:
                found.add(var.op)
                todo.append(var.op)
    return found


def _interior(
    roots: Sequence[Operation], replaced: Sequence[Var], ops: dict[OpPattern, Operation]
) -> Iterator[tuple[Operation, list[Var]]]:
    """Ops and those of their outputs that no replacement takes the place of."""
    for pattern, op in ops.items():
        if op in roots:
            yield op, [var for var in op.outputs if var not in replaced]
        elif not pattern.shared:
            yield op, op.outputs

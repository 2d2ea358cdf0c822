"""What may become of slots that are more, or fewer, than the columns that a program was written for."""

from __future__ import annotations

from collections.abc import Mapping

from milopt.mil import Operation, Var, arguments
from milopt.passes.resizing import require_resizable
from milopt.reports import require

__all__ = ["require_other_size"]

# of scores to which a mask was added these are what they were, whatever columns are hidden besides
_WEIGHTS = frozenset({"exp", "softmax"})


def require_other_size(axes: Mapping[Var, int]) -> None:
    """Raise NoMatch unless a program computes the same with another number of slots, of which a mask hides the others.

    ``axes`` are all values that hold the slots. Slots that are more than the columns hold zeros, or tokens that are too
    old: what is computed over all slots must have met a mask, as scores do, and must not count what it hides.
    """
    require_resizable(axes)
    for var in axes:
        for user in dict.fromkeys(var.child_ops):
            if user.op_type == "matmul" and user.outputs[0] not in axes:
                sides = [_before(user.inputs[side], axes) for side in ("x", "y")]
                require(any(masked for masked, _ in sides), "no mask hides slots from this product", at=user)
            elif user.op_type.startswith("reduce_") and user.outputs[0] not in axes:
                text = "{} of other slots, which a mask should hide, is something else"
                require(_is_indifferent(user, *_before(var, axes)), text, user.op_type, at=user)


def _is_indifferent(op: Operation, masked: bool, kinds: set[str]) -> bool:
    """Whether a reduction over the slots gives the same with more of them that are hidden."""
    return masked and (op.op_type == "reduce_max" or (op.op_type == "reduce_sum" and not kinds.isdisjoint(_WEIGHTS)))


def _before(var: Var, axes: Mapping[Var, int]) -> tuple[bool, set[str]]:
    """Whether a value was made of a mask, an input that holds the slots, and by which kinds of ops."""
    todo, seen = [var], set[Var]()
    while todo:
        each = todo.pop()
        if each in seen or each not in axes:
            continue
        seen.add(each)
        todo += [] if each.op is None else [other for _, other in arguments(each.op)]
    return any(each.op is None for each in seen), {each.op.op_type for each in seen if each.op is not None}

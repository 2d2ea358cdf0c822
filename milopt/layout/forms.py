"""Layouts of a tensor, and the moves between them.

A tensor's numbers are indexed by *pieces*: its axes that are longer than 1, cut wherever some reshape of the program
cuts them. A layout is a tuple of axes, each a tuple of pieces; an axis of no piece has length 1. With the pieces 0 (S),
1 (H) and 2 (D), ``((), (0,), (1, 2))`` is (1, S, H·D), ``((), (1, 2), (), (0,))`` is (B, C, 1, S), and ``((), (1,),
(0,), (2,))`` is (1, H, S, D).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal, TypeAlias

__all__ = ["OP", "Layout", "Step", "axes_of", "cost", "flat", "plan", "size_of"]

Layout: TypeAlias = "tuple[tuple[int, ...], ...]"
Kind: TypeAlias = Literal["transpose", "reshape", "expand_dims", "squeeze"]

# Costs are in elements moved; an op more is what decides between two ways that move equally many, and of equally many
# ops those of smaller tensors are better. Of 10,000 ops neither comes near one element.
OP = 2.0**-16
_SIZE = 2.0**-36


@dataclass(frozen=True)
class Step:
    """One movement op and the layout it leads to; ``axes`` is its ``perm``, or the axes it adds or removes.

    ``regroups`` says of a reshape that it cuts or joins axes longer than 1.
    """

    kind: Kind
    to: Layout
    axes: tuple[int, ...] = ()
    regroups: bool = False

    @property
    def moves(self) -> bool:
        """Whether it moves elements. Only unit axes change otherwise."""
        return self.kind == "transpose" or self.regroups


def axes_of(layout: Layout) -> Layout:
    """The axes longer than 1."""
    return tuple(axis for axis in layout if axis)


def flat(layout: Layout) -> tuple[int, ...]:
    """The pieces in the order in which a row-major walk counts them."""
    return tuple(piece for axis in layout for piece in axis)


def size_of(axis: tuple[int, ...], sizes: tuple[int, ...]) -> int:
    size = 1
    for piece in axis:
        size *= sizes[piece]
    return size


def cost(start: Layout, end: Layout, elements: float) -> float:
    """What it costs to bring a tensor from one layout to another: elements moved, and a little for every op."""
    steps = plan(start, end)
    return sum(elements if step.moves else 0.0 for step in steps) + OP * len(steps) * (1.0 + _SIZE * elements)


@lru_cache(maxsize=65536)
def plan(start: Layout, end: Layout) -> tuple[Step, ...]:
    """The steps from one layout to another that move the fewest elements: at most a reshape, a transpose, a reshape."""
    if start == end:
        return ()
    if flat(start) == flat(end):
        return (_reshape(start, end),)
    first, last = _chunks(start, end)
    steps: list[Step] = []
    here = start
    if axes_of(here) != first:
        here = first if len(first) == len(end) else _padded(first, len(end))
        steps.append(_reshape(start, here))
    # the order of the end, with the unit axes that are here already
    target = _with_units(last, here, end)
    perm = _perm(here, target)
    if perm != tuple(range(len(perm))):
        steps.append(Step("transpose", target, perm))
    if target != end:
        steps.append(_reshape(target, end))
    return tuple(steps)


def _reshape(start: Layout, end: Layout) -> Step:
    """The one op between two layouts with the same order of pieces."""
    if axes_of(start) != axes_of(end):
        return Step("reshape", end, regroups=True)
    if (added := _added(start, end)) is not None:
        return Step("expand_dims", end, added)
    if (removed := _added(end, start)) is not None:
        return Step("squeeze", end, removed)
    return Step("reshape", end)


def _added(short: Layout, long: Layout) -> tuple[int, ...] | None:
    """The unit axes of ``long`` that are not in ``short``; ``None`` where it is not ``short`` with unit axes added."""
    added: list[int] = []
    at = 0
    for index, axis in enumerate(long):
        if at < len(short) and short[at] == axis:
            at += 1
        elif axis:
            return None
        else:
            added.append(index)
    return tuple(added) if at == len(short) else None


def _chunks(start: Layout, end: Layout) -> tuple[Layout, Layout]:
    """The axes to transpose, in the order of the start and in that of the end.

    They are the start's own where none has to be cut, else the end's where none comes of joining, else the longest runs
    of pieces that both have.
    """
    for axes in (axes_of(start), axes_of(end)):
        ordered = [_ordered(axes, flat(start)), _ordered(axes, flat(end))]
        if ordered[0] is not None and ordered[1] is not None:
            return ordered[0], ordered[1]
    one, other = flat(start), flat(end)
    following = dict(pairwise(other))
    runs: list[list[int]] = []
    for piece in one:
        if runs and following.get(runs[-1][-1]) == piece:
            runs[-1].append(piece)
        else:
            runs.append([piece])
    axes = tuple(map(tuple, runs))
    last = _ordered(axes, other)
    assert last is not None
    return axes, last


def _ordered(axes: Layout, order: tuple[int, ...]) -> Layout | None:
    """The axes as they stand in ``order``; ``None`` where their pieces don't stand together there."""
    by_first = {axis[0]: axis for axis in axes}
    found: list[tuple[int, ...]] = []
    at = 0
    while at < len(order):
        axis = by_first.get(order[at])
        if axis is None or order[at : at + len(axis)] != axis:
            return None
        found.append(axis)
        at += len(axis)
    return tuple(found)


def _padded(axes: Layout, rank: int) -> Layout:
    return ((),) * (rank - len(axes)) + axes


def _with_units(ordered: Layout, here: Layout, end: Layout) -> Layout:
    """``ordered`` with as many unit axes as ``here`` has, as near to ``end`` as these reach."""
    units = len(here) - len(ordered)
    if axes_of(end) != ordered:
        return ((),) * units + ordered
    spare = units - sum(not axis for axis in end)
    target: list[tuple[int, ...]] = [()] * max(spare, 0)
    left = units - max(spare, 0)
    for axis in end:
        if axis:
            target.append(axis)
        elif left:
            target.append(axis)
            left -= 1
    return tuple(target)


def _perm(here: Layout, target: Layout) -> tuple[int, ...]:
    """The perm of a transpose; unit axes keep their order."""
    units = iter([at for at, axis in enumerate(here) if not axis])
    where = {axis: at for at, axis in enumerate(here) if axis}
    return tuple(where[axis] if axis else next(units) for axis in target)

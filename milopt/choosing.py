"""One option for each item, with the least loss that a limit on what they cost together allows.

This is the multiple-choice knapsack problem. Its relaxation, where options may be mixed, is solved by taking the steps
along the items' convex hulls in the order of what they gain for their cost (Sinha and Zoltners, "The multiple-choice
knapsack problem", 1979); the price of the step that no longer fits bounds the loss of every choice from below, and
rules out every option that this price makes too dear. Among those left, states that cost more and lose more than
another are dropped (Nemhauser and Ullmann, 1969), which ends in the best choice of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from milopt.errors import MiloptError

__all__ = ["Choice", "Infeasible", "choose"]

Array: TypeAlias = Any  # numpy.ndarray; its generic form is more than pyright strict can follow

_MOST_STATES = 1 << 20  # some 30 MB for each item; a few hundred items seldom have more than a few thousand
_SLACK = 1e-12  # of sums of floats, which depend on their order in the last digits


class Infeasible(MiloptError):
    """Even the cheapest options cost more than the limit: ``least``."""

    def __init__(self, least: float, limit: float) -> None:
        super().__init__(f"the cheapest choice costs {least:g}, the limit is {limit:g}")
        self.least = least


@dataclass(frozen=True)
class Choice:
    """The option of each item by number, what they cost and lose together, and what any choice loses at least."""

    options: tuple[int, ...]
    cost: float
    loss: float
    least: float


class _Step(NamedTuple):
    """An item goes on to the next option of its hull: loss per cost, both as they change."""

    slope: float
    item: int
    cost: float
    loss: float


def choose(
    costs: Sequence[Sequence[float]], losses: Sequence[Sequence[float]], limit: float, *, states: int = _MOST_STATES
) -> Choice:
    """The options with the least sum of ``losses`` among those with a sum of ``costs`` of at most ``limit``.

    Both have a sequence for each item, with a number for each of its options. The choice is the best one, ``least`` its
    loss; only where more than ``states`` sums would have to be remembered it is the best one found, and ``least`` the
    relaxation's bound. Raises Infeasible.
    """
    items = [
        (np.asarray(cost, np.float64), np.asarray(loss, np.float64)) for cost, loss in zip(costs, losses, strict=True)
    ]
    limit += abs(limit) * _SLACK
    cheapest = float(sum(cost.min() for cost, _ in items))
    if cheapest > limit:
        raise Infeasible(cheapest, limit)
    found, price = _relaxed(items, limit)
    dual = sum(float((loss + price * cost).min()) for cost, loss in items) - price * limit
    chosen = _choice(items, found, dual)
    best = _searched(items, limit, price, chosen, states)
    return chosen if best is None else best


def _choice(items: Sequence[tuple[Array, Array]], options: Sequence[int], least: float) -> Choice:
    cost = float(sum(each[at] for (each, _), at in zip(items, options, strict=True)))
    loss = float(sum(each[at] for (_, each), at in zip(items, options, strict=True)))
    return Choice(tuple(options), cost, loss, min(least, loss))


def _relaxed(items: Sequence[tuple[Array, Array]], limit: float) -> tuple[list[int], float]:
    """A choice that the relaxation leads to, and its price: what one more unit of cost would gain."""
    hulls = [_hull(cost, loss) for cost, loss in items]
    options = [hull[0] for hull in hulls]
    spent = float(sum(cost[at] for (cost, _), at in zip(items, options, strict=True)))
    steps = sorted(step for item, hull in enumerate(hulls) for step in _steps(item, *items[item], hull))
    price, stuck = 0.0, set[int]()
    at = [0] * len(items)
    for step in steps:
        if step.item in stuck:
            continue
        if spent + step.cost > limit:
            price = price or -step.slope
            stuck.add(step.item)  # what comes later on its hull lies beyond
            continue
        spent += step.cost
        at[step.item] += 1
        options[step.item] = hulls[step.item][at[step.item]]
    return options, price


def _steps(item: int, cost: Array, loss: Array, hull: Sequence[int]) -> list[_Step]:
    found = list[_Step]()
    for one, other in pairwise(hull):
        dearer, worse = float(cost[other] - cost[one]), float(loss[other] - loss[one])
        found.append(_Step(worse / dearer, item, dearer, worse))
    return found


def _hull(cost: Array, loss: Array) -> list[int]:
    """The options on the lower convex hull, from the cheapest one to that with the least loss."""
    hull = list[int]()
    for at in np.lexsort((loss, cost)).tolist():
        if hull and loss[at] >= loss[hull[-1]]:
            continue
        while len(hull) > 1 and not _bends(cost, loss, hull[-2], hull[-1], at):
            hull.pop()
        hull.append(at)
    return hull


def _bends(cost: Array, loss: Array, one: int, middle: int, other: int) -> bool:
    """Whether the middle option lies below the line from one to the other."""
    left = (loss[middle] - loss[one]) * (cost[other] - cost[one])
    return bool(left < (loss[other] - loss[one]) * (cost[middle] - cost[one]))


def _searched(
    items: Sequence[tuple[Array, Array]], limit: float, price: float, known: Choice, states: int
) -> Choice | None:
    """The best choice; ``known``, where there is none better; None where it would take more than ``states``.

    What an option loses beyond the least at ``price`` is lost to the bound, by whichever items it is.
    """
    spare = known.loss - known.least + abs(known.loss) * _SLACK
    dears = [loss + price * cost for cost, loss in items]
    kept = [np.flatnonzero(dear - dear.min() <= spare) for dear in dears]
    least: Array = np.array([cost[each].min() for (cost, _), each in zip(items, kept, strict=True)])
    later = np.concatenate((np.cumsum(least[::-1])[::-1][1:], [0.0]))  # what the items after it cost at least
    cost, loss, dear = np.zeros(1), np.zeros(1), np.zeros(1)
    trail = list[tuple[Array, Array]]()
    for item, (some, each) in enumerate(zip(items, kept, strict=True)):
        costs, losses = _sums(cost, some[0][each]), _sums(loss, some[1][each])
        above = _sums(dear, dears[item][each] - dears[item].min())
        fits = np.flatnonzero((costs + later[item] <= limit) & (above <= spare))
        if len(fits) > states:
            return None
        order = fits[np.lexsort((losses[fits], costs[fits]))]
        if not len(order):
            return _choice(items, known.options, known.loss)
        lowest = np.minimum.accumulate(losses[order])
        best = order[np.concatenate(([True], losses[order][1:] < lowest[:-1]))]
        cost, loss, dear = costs[best], losses[best], above[best]
        trail.append((best // len(each), each[best % len(each)]))
    at = int(np.argmin(loss))
    if loss[at] >= known.loss:
        return _choice(items, known.options, known.loss)
    options = list[int]()
    for before, option in reversed(trail):
        options.append(int(option[at]))
        at = int(before[at])
    found = _choice(items, options[::-1], 0.0)
    return Choice(found.options, found.cost, found.loss, found.loss)


def _sums(states: Array, options: Array) -> Array:
    """Those of every state with every option, all options of the first state first."""
    found: Array = states[:, None] + options
    return found.reshape(-1)

"""Sizes for dimensions that are only known when a program runs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from milopt.interpreter import Plan
from milopt.verify.freezing import Flexible

__all__ = ["ATTEMPTS", "choose", "is_flexible"]

ATTEMPTS = 8
"""How often other sizes are tried where the original program itself refuses those drawn."""

# Larger sizes cost time and show nothing new.
_SPREAD = 8


def is_flexible(plan: Plan) -> bool:
    return any(isinstance(dim, str) for info in plan.inputs.values() for dim in info.shape or ())


def choose(
    plan: Plan, flexible: Mapping[str, Flexible], rng: np.random.Generator, attempt: int
) -> dict[str, tuple[int, ...]]:
    """A shape for every input; equal symbols get equal sizes.

    The last attempt takes the default shapes. The others draw two sizes for each range, of which every dimension takes
    one; every second attempt draws only one, since packages do not say which of their dimensions must agree.
    """
    sizes: dict[str, int] = {}
    if attempt == ATTEMPTS - 1:
        _fix(sizes, plan, {name: each.default for name, each in flexible.items()})
    elif any(each.shapes for each in flexible.values()):
        listed = {name: each.shapes for name, each in flexible.items() if each.shapes}
        pick = int(rng.integers(0, min(map(len, listed.values()))))
        _fix(sizes, plan, {name: shapes[pick] for name, shapes in listed.items()})
    drawn: dict[tuple[int, int], list[int]] = {}
    for name, info in plan.inputs.items():
        ranges = flexible[name].ranges if name in flexible else ()
        for axis, dim in enumerate(info.shape or ()):
            if not isinstance(dim, str) or dim in sizes:
                continue
            bounds = ranges[axis] if axis < len(ranges) else (1, _SPREAD)
            low, high = bounds[0], bounds[1] if bounds[1] > 0 else bounds[0] + _SPREAD
            if bounds not in drawn:
                drawn[bounds] = rng.integers(low, min(high, low + _SPREAD) + 1, 1 + (attempt + 1) % 2).tolist()
            sizes[dim] = int(rng.choice(drawn[bounds]))
    return {
        name: tuple(sizes[dim] if isinstance(dim, str) else dim for dim in info.shape or ())
        for name, info in plan.inputs.items()
    }


def _fix(sizes: dict[str, int], plan: Plan, shapes: Mapping[str, tuple[int, ...]]) -> None:
    for name, shape in shapes.items():
        for dim, size in zip(plan.inputs[name].shape or (), shape, strict=False) if name in plan.inputs else ():
            if isinstance(dim, str):
                sizes.setdefault(dim, size)

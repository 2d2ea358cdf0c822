"""Moves between layouts do what they say, at the fewest elements."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milopt.layout.forms import Layout, Step, axes_of, cost, flat, plan, size_of

SIZES = (2, 3, 5, 7)

BSC: Layout = ((), (0,), (1, 2))
BC1S: Layout = ((), (1, 2), (), (0,))
BSHD: Layout = ((), (0,), (1,), (2,))
BHSD: Layout = ((), (1,), (0,), (2,))
BHDS: Layout = ((), (1,), (2,), (0,))


@st.composite
def layouts(draw: Any, pieces: int = len(SIZES)) -> Layout:
    order = draw(st.permutations(range(pieces)))
    axes: list[tuple[int, ...]] = []
    for piece in order:
        if axes and draw(st.booleans()):
            axes[-1] = (*axes[-1], piece)
        else:
            axes.append((piece,))
    for _ in range(draw(st.integers(0, 2))):
        axes.insert(draw(st.integers(0, len(axes))), ())
    return tuple(axes)


def laid(layout: Layout) -> Any:
    """Every number once, in a layout."""
    numbered: Any = np.arange(np.prod(SIZES))
    return numbered.reshape(SIZES).transpose(flat(layout)).reshape([size_of(axis, SIZES) for axis in layout])


def walked(x: Any, step: Step) -> Any:
    if step.kind == "transpose":
        return x.transpose(step.axes)
    if step.kind == "expand_dims":
        return np.expand_dims(x, step.axes)
    if step.kind == "squeeze":
        return np.squeeze(x, step.axes)
    return x.reshape([size_of(axis, SIZES) for axis in step.to])


@given(layouts(), layouts())
def test_a_plan_leads_there(start: Layout, end: Layout) -> None:
    x = laid(start)
    for step in plan(start, end):
        assert step.moves == (step.kind == "transpose" or axes_of(step.to) != axes_of(start))
        x = walked(x, step)
        np.testing.assert_array_equal(x, laid(step.to))
        start = step.to
    np.testing.assert_array_equal(x, laid(end))


@given(layouts(), layouts())
def test_nothing_is_done_twice(start: Layout, end: Layout) -> None:
    steps = plan(start, end)
    kinds = [step.kind for step in steps]
    assert kinds.count("transpose") == (flat(start) != flat(end))
    assert len(steps) <= 3
    assert [step.moves for step in steps].count(True) <= 3
    if flat(start) == flat(end):
        assert len(steps) == (start != end)


@given(layouts(), layouts(), layouts())
def test_a_detour_is_never_cheaper(start: Layout, way: Layout, end: Layout) -> None:
    assert cost(start, end, 210) <= cost(start, way, 210) + cost(way, end, 210) + 1e-9


MOVED: dict[tuple[Layout, Layout], tuple[int, list[str]]] = {
    (BSC, BC1S): (210, ["transpose", "expand_dims"]),
    (BC1S, BSC): (210, ["transpose", "squeeze"]),
    (BSC, BSHD): (210, ["reshape"]),
    (BC1S, BHDS): (210, ["reshape"]),
    (BC1S, BHSD): (420, ["reshape", "transpose"]),
    (BHSD, BC1S): (420, ["transpose", "reshape"]),
    (BSHD, BHSD): (210, ["transpose"]),
    (BSC, BHSD): (420, ["reshape", "transpose"]),
    (BSC, BSC): (0, []),
    (BSC, ((0,), (1, 2))): (0, ["squeeze"]),
    (((), (0, 1, 2)), ((0, 1, 2), ())): (0, ["reshape"]),
}


@pytest.mark.parametrize(("start", "end"), MOVED)
def test_what_a_move_costs(start: Layout, end: Layout) -> None:
    elements, kinds = MOVED[start, end]
    assert [step.kind for step in plan(start, end)] == kinds
    assert round(cost(start, end, 210)) == elements


def test_no_way_is_shorter_than_the_plan() -> None:
    """Against a search over all layouts of three pieces that have up to three axes longer than 1."""
    pieces = range(3)
    whole: list[Layout] = []
    for order in permutations(pieces):
        a, b, c = order
        whole += [((a,), (b,), (c,)), ((a, b), (c,)), ((a,), (b, c)), ((a, b, c),)]
    reached = {layout: {layout: 0} for layout in whole}
    for start in whole:
        frontier = [start]
        for distance in (1, 2, 3, 4):
            found: list[Layout] = []
            for here in frontier:
                for there in whole:
                    one = flat(here) == flat(there) or sorted(here) == sorted(there)
                    if one and there not in reached[start]:
                        reached[start][there] = distance
                        found.append(there)
            frontier = found
    for start in whole:
        for end in whole:
            assert reached[start][end] == sum(step.moves for step in plan(start, end)), (start, end)

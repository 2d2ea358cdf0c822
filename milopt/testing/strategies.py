"""Hypothesis strategies for MIL: shapes, tensors and whole programs."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from milopt.errors import MiloptError
from milopt.mil import Function, Program, Var, flat, get_new_symbol, is_removed, mb, target, types
from milopt.testing.makers import (
    ELEMENTWISE,
    LINEAR,
    MAKERS,
    MOVEMENT,
    REDUCTION,
    Draw,
    Maker,
    numbers,
    shapes,
    tensors,
)
from milopt.testing.misses import near_misses
from milopt.testing.naming import rename_all
from milopt.testing.patterns import matching
from milopt.testing.scope import REFUSALS, Scope, tensors_of
from milopt.testing.tidying import forget_lost, last_of, take_back

__all__ = [
    "ALL",
    "ELEMENTWISE",
    "LINEAR",
    "MOVEMENT",
    "REDUCTION",
    "matching",
    "near_misses",
    "numbers",
    "programs",
    "shapes",
    "tensors",
]

ALL = frozenset(MAKERS) - {"cond", "while_loop", "coreml_update_state", "read_state"}
"""Every op type that can be drawn, but for those that ``nested`` and ``states`` add."""


def programs(
    *,
    ops: Collection[str] = ELEMENTWISE,
    min_ops: int = 1,
    max_ops: int = 8,
    max_inputs: int = 2,
    max_rank: int = 4,
    max_side: int = 4,
    dtypes: Sequence[str] = ("fp32",),
    opset: target = target.iOS18,
    symbolic: bool = False,
    states: int = 0,
    nested: bool = False,
    makers: Mapping[str, Maker] | None = None,
) -> st.SearchStrategy[Program]:
    """Programs of one function, ``main``, made of ``ops``; every value that nothing uses is an output.

    Inputs have one of ``dtypes`` each. With ``symbolic`` some of their dimensions are symbols, one symbol often more
    than once. ``states`` is how many fp16 states there are; they are read and updated (``read_state``,
    ``coreml_update_state``, ``slice_update``). With ``nested`` there are ``cond`` and ``while_loop`` over blocks of the
    same ops. Constants are shared now and then. An op whose inputs none of the values fits becomes an ``identity``, or
    brings an input of its own.

    ``makers`` adds ops, or other ways to draw one: op type -> a function of ``draw`` and the values so far that builds
    the op and returns its value, its values, or ``None``. Examples shrink to few ops, inputs and small shapes.
    """
    known = {**MAKERS, **(makers or {})}
    if unknown := sorted(set(ops) - set(known)):
        near = sorted({name for each in unknown for name in difflib.get_close_matches(each, known, n=2)})
        hint = f"did you mean {' or '.join(near)}?" if near else "give one in makers"
        raise MiloptError(f"there is no maker for {', '.join(unknown)}; {hint}")
    if not ops or not 1 <= min_ops <= max_ops:
        raise MiloptError("programs need at least one op")
    if states and opset < target.iOS18:
        raise MiloptError(f"states need iOS18, not {opset.name}")
    chosen = [known[name] for name in sorted(ops)]
    extra = [MAKERS["cond"], MAKERS["while_loop"]] * nested + [MAKERS["coreml_update_state"], MAKERS["read_state"]] * (
        states > 0
    )
    return _programs(_Settings(
        chosen, extra, min_ops, max_ops, max_inputs, max_rank, max_side, tuple(dtypes), opset, symbolic, states
    ))  # fmt: skip


@dataclass(frozen=True)
class _Settings:
    """What :func:`programs` was asked for."""

    makers: Sequence[Maker]
    extra: Sequence[Maker]
    min_ops: int
    max_ops: int
    max_inputs: int
    max_rank: int
    max_side: int
    dtypes: tuple[str, ...]
    opset: target
    symbolic: bool
    states: int

    def step(self) -> st.SearchStrategy[Maker]:
        ordinary = st.sampled_from(self.makers)
        # of several hundred op types, few steps would be a loop or an update: every fourth is
        return st.integers(0, 3).flatmap(lambda n: st.sampled_from(self.extra) if n == 3 else ordinary) if (
            self.extra
        ) else ordinary  # fmt: skip

    def inputs(self, draw: Draw) -> dict[str, Any]:
        """Placeholders by name: ``x0``, ``x1``... and the states ``s0``, ``s1``..."""
        drawn = draw(st.lists(shapes(max_rank=self.max_rank, max_side=self.max_side), min_size=1,
                              max_size=self.max_inputs))  # fmt: skip
        symbols = [get_new_symbol(), get_new_symbol()] if self.symbolic else []
        specs: dict[str, Any] = {}
        for index, shape in enumerate(drawn):
            kind = types.string_to_builtin(draw(st.sampled_from(self.dtypes)))
            if symbols:
                shape = tuple(draw(st.sampled_from([dim, dim, *symbols])) for dim in shape)
            specs[f"x{index}"] = mb.placeholder(shape=shape, dtype=kind)
        for index in range(self.states):
            shape = draw(shapes(min_rank=1, max_rank=3, max_side=self.max_side))
            specs[f"s{index}"] = mb.state_tensor_placeholder(shape=shape, dtype=types.fp16)
        return specs


@st.composite
def _programs(draw: Draw, asked: _Settings) -> Program:
    program = Program()
    with Function(asked.inputs(draw), opset_version=asked.opset) as function:
        states = [var for name, var in function.inputs.items() if name.startswith("s")]
        values = [var for name, var in function.inputs.items() if not name.startswith("s")]
        values += [mb.read_state(input=state) for state in states]
        scope = Scope(function, values, states, inner=asked.makers)
        makers, count = asked.step(), 0
        while count < asked.max_ops and (made := draw(_step(scope, makers, count < asked.min_ops))):
            scope.values += made
            count += 1
        forget_lost(function)
        function.set_outputs([var for var in dict.fromkeys(scope.values) if var.op is not None and not var.child_ops])
    rename_all(function)
    program.add_function("main", function)
    return program


# One in so many steps is the last, unless a program is full: half the programs have four ops and more.
_STOP = 6
# What MIL raises where inputs do not fit each other: another op is taken then.


@st.composite
def _step(draw: Draw, scope: Scope, makers: st.SearchStrategy[Maker], needed: bool) -> list[Var]:
    """The values of one more op; none to stop. A strategy of its own: the shrinker can take a step out as a whole."""
    goes_on = draw(st.integers(0, _STOP - 1)) > 0
    if not goes_on and not needed:
        return []
    last = last_of(scope.function)
    try:
        made = draw(makers)(draw, scope)
    except REFUSALS:
        take_back(scope.function, last)
        scope.held[:] = [var for var in scope.held if var.op is not None and not is_removed(var.op)]
        made = None
    found = [] if made is None else tensors_of(flat(made))
    # coremltools fails on values that it knows to be NaN: take one that it does not know
    return found or [mb.identity(x=next(var for var in reversed(scope.values) if var.val is None))]

"""Hypothesis strategies for MIL: shapes, tensors and whole programs."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from hypothesis import strategies as st

from milopt.errors import MiloptError
from milopt.mil import Function, Program, Var, mb, target, types
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
from milopt.testing.naming import rename
from milopt.testing.patterns import matching, near_misses

__all__ = [
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


def programs(
    *,
    ops: Collection[str] = ELEMENTWISE,
    min_ops: int = 1,
    max_ops: int = 8,
    max_inputs: int = 2,
    max_rank: int = 4,
    max_side: int = 4,
    dtype: str = "fp32",
    opset: target = target.iOS18,
    makers: Mapping[str, Maker] | None = None,
) -> st.SearchStrategy[Program]:
    """Programs of one function, ``main``, made of ``ops``; every value that nothing uses is an output.

    ``makers`` adds ops, or other ways to draw one: op type -> a function of ``draw`` and the values so far that builds
    the op and returns its value, or ``None``. Examples shrink to few ops, inputs and small shapes.
    """
    known = {**MAKERS, **(makers or {})}
    if unknown := sorted(set(ops) - set(known)):
        raise MiloptError(f"there is no maker for {', '.join(unknown)}; there is one for {', '.join(sorted(known))}")
    if not ops or not 1 <= min_ops <= max_ops:
        raise MiloptError("programs need at least one op")
    chosen = st.sampled_from([known[name] for name in sorted(ops)])
    inputs = st.lists(shapes(max_rank=max_rank, max_side=max_side), min_size=1, max_size=max_inputs)
    return _programs(inputs, chosen, min_ops, max_ops, dtype, opset)


@st.composite
def _programs(
    draw: Draw,
    inputs: st.SearchStrategy[list[tuple[int, ...]]],
    makers: st.SearchStrategy[Maker],
    min_ops: int,
    max_ops: int,
    dtype: str,
    opset: target,
) -> Program:
    kind = types.string_to_builtin(dtype)
    specs = {f"x{index}": mb.placeholder(shape=shape, dtype=kind) for index, shape in enumerate(draw(inputs))}
    program = Program()
    with Function(specs, opset_version=opset) as function:
        values = list(function.inputs.values())
        count = 0
        while count < max_ops and (made := draw(_step(values, makers, count < min_ops))) is not None:
            assert made.op is not None
            rename(made.op, f"v{count}")
            values.append(made)
            count += 1
        function.set_outputs([var for var in values if var.op is not None and not var.child_ops])
    program.add_function("main", function)
    return program


# One in so many steps is the last, unless a program is full: half the programs have four ops and more.
_STOP = 6


@st.composite
def _step(draw: Draw, values: list[Var], makers: st.SearchStrategy[Maker], needed: bool) -> Var | None:
    """One more op, or ``None`` to stop. A strategy of its own, so that the shrinker can take a step out as a whole."""
    goes_on = draw(st.integers(0, _STOP - 1)) > 0
    if not goes_on and not needed:
        return None
    made: Var | None = draw(makers)(draw, values)
    if made is None:  # none of the values fits this op
        made = mb.identity(x=values[-1])
    return made

"""What a run executes when nobody listens: the steps, their calls prepared, and fewer of them.

A tenth of a decoder's ops for a token compute something that takes time; the others are transposes, reshapes and
arithmetic on a few numbers, and what they cost is being called.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from milopt.interpreter.calls import call
from milopt.interpreter.grouping import grouped
from milopt.interpreter.numbers import with_numbers
from milopt.interpreter.products import with_products
from milopt.interpreter.steps import Instruction, Step
from milopt.interpreter.views import Chains, view

__all__ = ["lowered"]


def lowered(
    steps: Sequence[Step], mine: Collection[int], kept: Collection[int], *, numbers: bool
) -> tuple[Instruction, ...]:
    """Instructions that leave the same values in the slots ``kept`` as the steps do.

    ``mine`` are the slots of this block, which are freed after their last use. ``numbers``: numbers are at hand, as
    they aren't on an accelerator. Views that only other views look at are left out: these start from where the first
    one does. So are repetitions that :func:`grouped` does without.
    """
    steps = with_products(grouped(steps, kept), kept)
    chains = Chains(steps)
    needed = {slot for step in steps if not step.is_view for slot in step.reads}.union(kept)
    needed |= chains.roots_of(needed)
    chosen = [step for step in steps if not step.is_view or step.results[0].slot in needed]
    followed = [chains.of(step) if step.is_view else () for step in chosen]
    frees = _frees(chosen, followed, set(mine), set(kept))
    if numbers:
        chosen = with_numbers(chosen, {chain[0].slots[0][1] for chain in followed if chain}.union(kept))
    return tuple(
        Instruction(view(chain, free) if chain else call(step, free), step)
        for step, chain, free in zip(chosen, followed, frees, strict=True)
    )


def _frees(
    chosen: Sequence[Step], followed: Sequence[tuple[Step, ...]], mine: set[int], kept: set[int]
) -> list[tuple[int, ...]]:
    """For each instruction, the slots of this block that nobody reads after it."""
    live = set(kept)
    frees: list[tuple[int, ...]] = []
    for step, chain in zip(reversed(chosen), reversed(followed), strict=True):
        reads = chain[0].reads if chain else step.reads
        touched = reads.union(result.slot for result in step.results) & mine
        frees.append(tuple(sorted(touched - live)))
        live |= reads
    return frees[::-1]

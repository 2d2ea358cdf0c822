"""What is said of conversations with a set in ANEMLL's form: is it the right answer, and the same either way?"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from milopt.contracts.clients import Logits
from milopt.contracts.comparing import CLOSE, SAME, difference, not_finite, same_tokens, ties
from milopt.contracts.findings import Finding

__all__ = ["LOOP", "alike", "declared", "held"]

LOOP, _BLOCKS = "the client's loop", "the prompt in blocks"


def held(
    got: Logits, wanted: Logits | None, whose: str, agreement: float, *, compressed: bool, slices: Sequence[int] = ()
) -> Finding:
    """Whether the set's logits (rows, V) are those wanted; with ``slices``, the largest of each that it gives alone."""
    own, right = _given(got, wanted, slices)
    if (what := not_finite(own)) is not None:
        return Finding(LOOP, False, what)
    if wanted is None or right is None:
        return Finding(LOOP, True, f"{len(got)} tokens of an answer: what the others are held against")
    off, first = difference(own, right)
    same = same_tokens(got, wanted, 1)
    text = f"{int(same.sum())} of {len(same)} tokens as {whose}, off by {off:.2g} of the largest logit"
    if whose == "transformers":
        tied = same | ties(got, wanted, 1)
        passed = float(tied.mean()) >= agreement and (off <= CLOSE or compressed)
    else:
        passed = off <= SAME
    return Finding(LOOP, passed, text if passed else f"{text}, first at token {first}")


def alike(got: Logits, single: Logits, *, slices: Sequence[int] = ()) -> Finding:
    """Whether a prompt in blocks gives what its tokens give one by one."""
    own, right = _given(single, got, slices)
    if (what := not_finite(own)) is not None:
        return Finding(_BLOCKS, False, what)
    assert right is not None
    off, first = difference(own, right)
    if off <= SAME:
        return Finding(_BLOCKS, True, f"as token by token, off by {off:.1g} of the largest logit")
    text = f"off by {off:.2g} of the largest logit from token by token, first at token {first}"
    return Finding(_BLOCKS, False, f"{text}: prefill and infer compute different things, or keep other keys")


def declared(got: Logits, plain: Logits, *, slices: Sequence[int] = ()) -> Finding:
    """Whether rounding leaves numbers, and how many tokens it changes."""
    check = "declared precision"
    if (what := not_finite(_given(got, None, slices)[0])) is not None:
        return Finding(check, False, f"{what} (milopt lint-numerics says where)")
    same = same_tokens(got, plain, 1)
    return Finding(check, True, f"finite; {int(same.sum())} of {len(same)} tokens as without rounding")


def _given(got: Logits, wanted: Logits | None, slices: Sequence[int]) -> tuple[Logits, Logits | None]:
    """What there is to compare. Of a head that gives the largest of each slice alone, each twice: with what is wanted
    at its place, and with the largest that is wanted in its slice. Else it were another word's, or not the largest.
    """
    if not slices:
        return got, wanted
    rows: Any = np.arange(len(got))
    own: list[Any] = []
    right: list[Any] = []
    for begin, end in pairwise((0, *accumulate(slices))):
        part = got[:, begin:end]
        place = part.argmax(-1)
        own += 2 * [part[rows, place]]
        if wanted is not None:
            right += [wanted[:, begin:end][rows, place], wanted[:, begin:end].max(-1)]
    if wanted is None:
        return np.stack(own, -1), None
    known: Any = np.stack(right, -1)
    return np.stack(own, -1), np.where(np.isfinite(known), known, np.nan)  # no number is near to what is not given

"""What clients do, call by call: how many columns their mask has, what it says, how they divide a prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from milopt.contracts.styles import Contract
from milopt.errors import EvaluationError
from milopt.interpreter import Plan, State

__all__ = ["HABITS", "Habit", "Logits", "feed"]

Logits: TypeAlias = "npt.NDArray[np.float64]"


@dataclass(frozen=True)
class Habit:
    """One way of calling: ``spare`` columns more than tokens, a mask of zeros in one row or a causal one.

    ``at_once`` feeds the prompt in one call, else token by token; what follows is fed token by token anyhow. ``broken``
    is what its user sees where the answers are others than they should be.
    """

    name: str
    spare: int
    mask: Literal["zeros", "causal"]
    at_once: bool
    broken: str


_LATER = "the mask given is believed: tokens of a prompt see what comes after them"
_SLOT = "slot 0, which this client never writes, is attended to, or positions are counted from it"
_DIVIDED = "the answer depends on how the prompt is divided"

HABITS = (
    Habit("end = n, causal mask, prompt at once", 0, "causal", True, "the answer is another than the model's"),
    Habit("end = n, zeros, prompt at once", 0, "zeros", True, _LATER),
    Habit("end = n, zeros, token by token", 0, "zeros", False, _DIVIDED),
    Habit("end = n + 1, zeros, prompt at once", 1, "zeros", True, f"{_SLOT}; or {_LATER}"),
    Habit("end = n + 1, zeros, token by token", 1, "zeros", False, _SLOT),
)
"""Apple's article sends a causal mask; swift-transformers zeros (1, 1, 1, n + 1)."""


def feed(plan: Plan, contract: Contract, tokens: Sequence[int], prompt: int, habit: Habit) -> Logits:
    """The logits of all tokens, (tokens, V), of a conversation on fresh states: the ``prompt`` first ones, then others.

    EvaluationError where the program refuses a call.
    """
    state = State(plan.states)
    rows: list[Any] = []
    for start, stop in _calls(len(tokens), prompt if habit.at_once else 1):
        end = stop + habit.spare
        inputs: dict[str, npt.NDArray[Any]] = {
            contract.tokens.name: np.array([tokens[start:stop]], np.int32),
            contract.mask.name: _mask(habit, stop - start, end),
        }
        logits = plan.run(inputs, state)[contract.logits.name]
        if logits.shape[:-1] != (1, stop - start):
            raise EvaluationError(f"logits are {tuple(logits.shape)} for {stop - start} tokens: row q - 1 is not there")
        rows.append(np.asarray(logits.cpu().numpy(), np.float64)[0])
    return np.concatenate(rows)


def _calls(count: int, first: int) -> Iterator[tuple[int, int]]:
    yield 0, first
    yield from ((at, at + 1) for at in range(first, count))


def _mask(habit: Habit, query: int, end: int) -> npt.NDArray[np.float16]:
    if habit.mask == "zeros":
        return np.zeros((1, 1, 1, end), np.float16)
    own = end - query + np.arange(query)[:, None]
    return np.where(np.arange(end) <= own, 0, -np.inf).astype(np.float16)[None, None]

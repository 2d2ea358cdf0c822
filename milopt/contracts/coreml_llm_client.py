"""What CoreML-LLM's client does, call by call: token by token, each written where a mask says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from milopt.contracts.anemll_client import DecoderCalls, causal_rows, check_sizes, package_of
from milopt.contracts.clients import Logits
from milopt.contracts.coreml_llm_interface import words_of
from milopt.errors import MiloptError
from milopt.interpreter import Plan, Precision, State
from milopt.package import Model
from milopt.sets.coreml_llm_running import CHOSEN, monolith_plan
from milopt.sets.roles import decoder_of

__all__ = ["Asked", "Choice", "asked", "said", "vocabulary"]

_PROMPT = 6


@dataclass(frozen=True)
class Choice:
    """What one call gives: the likeliest next token, and its logit."""

    token: int
    logit: float


@dataclass(frozen=True)
class Asked:
    """The ``tokens`` of a conversation, of which ``prompt`` are the prompt, and the ``logits`` (rows, V) behind it.

    ``whose`` says who knows the logits; they are None where nobody does.
    """

    tokens: list[int]
    prompt: int
    logits: Logits | None = None
    whose: str = ""


def said(model: Model, tokens: Sequence[int], prompt: int, precision: Precision, count: int = 0) -> list[Choice]:
    """What the package chooses after each of ``tokens`` from the last of the ``prompt`` on, all on one state, one by
    one; ``count`` more of its own follow.

    EvaluationError where a call fails.
    """
    plan = monolith_plan(model, precision=precision)
    context, state, found = _context(plan), State(plan.states), list[Choice]()
    fed, place = list(tokens), 0
    while place < len(fed):
        inputs: dict[str, Any] = {
            "input_ids": np.array([[fed[place]]], np.int32),
            "position_ids": np.array([place], np.int32),
            "causal_mask": causal_rows(place, 1, context),
            "current_pos": np.array([place], np.int32),
        }
        token, logit = (plan.run(inputs, state)[name] for name in CHOSEN)
        if place >= prompt - 1:
            choice = Choice(int(token), float(logit))
            found.append(choice)
            if len(found) <= count:
                fed.append(choice.token)
        place += 1
    return found


def asked(model: Model, reference: Any | None, pickles: bool, tokens: int, seed: int) -> Asked:
    """A random prompt, and ``tokens`` behind it: the reference's answer, or without one the package's own."""
    plan = monolith_plan(model, precision="float64")
    context, words = _context(plan), vocabulary(model)
    prompt = max(1, min(_PROMPT, context // 2))
    count = min(tokens, context - prompt)
    start = [int(each) for each in np.random.default_rng(seed).integers(words, size=prompt)]
    if reference is None:
        own = said(model, start, prompt, "float64", count)
        return Asked([*start, *(each.token for each in own[:count])], prompt)
    if (whole := package_of(reference)) is not None:
        decoder = decoder_of(whole, several=False)
        calls = DecoderCalls(whole, decoder, "float64")
        check_sizes(calls, decoder, context, words)
        fed, rows = list(start), list[Logits]()
        for place in range(prompt + count):
            row = calls.infer(fed[place], place, causal_rows(place, 1, context))
            if place >= prompt - 1:
                rows.append(row)
                fed.append(int(row.argmax()))
        return Asked(fed[:-1], prompt, np.stack(rows), "the package")
    from milopt.contracts.reference import answer

    told = answer(reference, prompt, count, context=context, vocabulary=words, seed=seed, pickles=pickles)
    return Asked(list(told.tokens), prompt, told.logits[prompt - 1 :], "transformers")


def vocabulary(model: Model) -> int:
    """How many words there are; MiloptError where the program does not tell."""
    if (words := words_of(model)) is None:
        raise MiloptError("no table is looked up with input_ids: the size of the vocabulary is not known")
    return words


def _context(plan: Plan) -> int:
    return int((plan.inputs["causal_mask"].shape or [0])[-1])

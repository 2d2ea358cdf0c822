"""What ANEMLL's client does, call by call (Anemll 0.3.4, tests/chat.py): prompts in blocks, then token by token.

That of 0.3.5 is another where a prompt is no whole blocks, and beyond a sliding window.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from milopt.contracts.anemll_reading import AnemllFolder
from milopt.contracts.anemll_windows import given_masks
from milopt.contracts.clients import Logits
from milopt.errors import EvaluationError, MiloptError
from milopt.interpreter import Plan, Precision, State, compile_all
from milopt.package import Model, load
from milopt.sets.anemll_running import anemll_plans
from milopt.sets.roles import Decoder, FunctionRoles

__all__ = ["AnemllCalls", "Calls", "DecoderCalls", "answered", "causal_rows", "check_sizes", "followed", "package_of"]

Array = npt.NDArray[Any]


class Calls(Protocol):
    """One conversation: a program with a state, told of tokens."""

    def prefill(self, tokens: Array, start: int, mask: Array) -> None:
        """Take a block of tokens (1, batch), padded, whose first is at ``start``."""
        ...

    def infer(self, token: int, place: int, mask: Array) -> Logits:
        """Take one token, and give the logits (V,) of the next."""
        ...

    def reset(self) -> None:
        """Begin another conversation."""
        ...


def causal_rows(start: int, count: int, length: int) -> Array:
    """(1, 1, count, length), fewer rows at the end: rows ``start`` on of ``make_causal_mask`` there, 0 where a row may
    look and minus infinity elsewhere.
    """
    rows, columns = np.arange(start, min(start + count, length))[:, None], np.arange(length)[None, :]
    return np.where(columns <= rows, 0, -np.inf).astype(np.float16)[None, None]


def followed(
    calls: Calls, tokens: Sequence[int], prompt: int, context: int, batch: int, *, blocks: bool, padded: bool = True
) -> Logits:
    """The logits (tokens behind the prompt + 1, V) on the way through ``tokens``, of which ``prompt`` are the prompt.

    With ``blocks`` the prompt is fed in blocks first; its last token is fed again alone, which is how the client gets
    the first logits. What is left of the prompt behind whole blocks is one more, ``padded``, or else fed token by
    token, as by Anemll 0.3.5. Without ``blocks``, every token is fed alone.
    """
    if blocks:
        whole = prompt if padded else prompt - prompt % batch
        for start in range(0, whole, batch):
            block = np.zeros((1, batch), np.int32)
            given = list(tokens[start : min(start + batch, prompt)])
            block[0, : len(given)] = given
            calls.prefill(block, start, causal_rows(start, batch, context))
        for place in range(whole, prompt):
            calls.infer(tokens[place], place, causal_rows(place, 1, context))
    rows: list[Logits] = []
    for place in range(prompt - 1 if blocks else 0, len(tokens)):
        row = calls.infer(tokens[place], place, causal_rows(place, 1, context))
        if place >= prompt - 1:
            rows.append(row)
    return np.stack(rows)


def answered(
    calls: Calls, prompt: Sequence[int], count: int, context: int, batch: int, *, padded: bool = True
) -> list[int]:
    """The prompt and ``count`` greedy tokens behind it, as the client says them."""
    tokens = list(prompt)
    logits = followed(calls, tokens, len(tokens), context, batch, blocks=True, padded=padded)[-1]
    for _ in range(count):
        tokens.append(int(logits.argmax()))
        place = len(tokens) - 1
        logits = calls.infer(tokens[-1], place, causal_rows(place, 1, context))
    return tokens


class AnemllCalls:
    """Conversations with a set in ANEMLL's form; each has one state, of the first chunk's ``prefill``."""

    def __init__(self, folder: AnemllFolder, precision: Precision) -> None:
        self._plans = anemll_plans(folder, precision=precision, rotating=bool(folder.parameters.window))
        self._window = folder.parameters.window
        self.reset()

    def reset(self) -> None:
        """Begin another conversation."""
        self._state = State(self._plans["prefill"].states)

    def prefill(self, tokens: Array, start: int, mask: Array) -> None:
        self._plan("prefill", start).run(self._inputs(tokens, start, mask), self._state)

    def infer(self, token: int, place: int, mask: Array) -> Logits:
        inputs = self._inputs(np.array([[token]], np.int32), place, mask)
        given = self._plan("infer", place).run(inputs, self._state)
        row: Logits = np.asarray(given["logits"].cpu().numpy(), np.float64)[0, -1]
        return row

    def _plan(self, name: str, start: int) -> Plan:
        """From the window on, the client calls another function where there is one."""
        beyond = self._window and start >= self._window
        return self._plans.get(f"{name}_rotate", self._plans[name]) if beyond else self._plans[name]

    @staticmethod
    def _inputs(tokens: Array, start: int, mask: Array) -> dict[str, Any]:
        return {
            "input_ids": tokens,
            "position_ids": np.arange(start, start + tokens.shape[1], dtype=np.int32),
            "causal_mask": mask,
            "current_pos": np.array([start], np.int32),
        }


def package_of(reference: Any) -> Model | None:
    """The model that a reference is, where it is a package and no model of transformers."""
    if isinstance(reference, Model):
        return reference
    path = Path(str(reference)) if isinstance(reference, (str, Path)) else None
    return load(path) if path is not None and path.suffix == ".mlpackage" else None


def check_sizes(calls: DecoderCalls, decoder: Decoder, context: int, words: int) -> None:
    """MiloptError where the package that is to give the right answer has another context or vocabulary."""
    if decoder.slots != context:
        raise MiloptError(f"the reference has a context of {decoder.slots}, and what it is held against {context}")
    calls.reset()
    known = len(calls.infer(0, 0, causal_rows(0, 1, context)))
    calls.reset()
    if known != words:
        raise MiloptError(f"the reference has {known} words, and what it is held against {words}")


class DecoderCalls:
    """The same conversations with the program that the set was made of."""

    def __init__(self, model: Model, decoder: Decoder, precision: Precision) -> None:
        from milopt.head_logits import logits_plans
        from milopt.signature_head import HeadSignature

        plans = compile_all(model, precision=precision)
        self._plans = logits_plans(plans, HeadSignature.from_metadata(model.metadata))
        self.decoder = decoder
        self.reset()

    def reset(self) -> None:
        """Begin another conversation."""
        self._state = State(self._plans[self.decoder.one.name].states)

    def prefill(self, tokens: Array, start: int, mask: Array) -> None:
        assert self.decoder.many is not None
        self._run(self.decoder.many, tokens, start, mask)

    def infer(self, token: int, place: int, mask: Array) -> Logits:
        return self._run(self.decoder.one, np.array([[token]], np.int32), place, mask)

    def _run(self, roles: FunctionRoles, tokens: Array, start: int, mask: Array) -> Logits:
        plan = self._plans[roles.name]
        positions: Any = np.arange(start, start + tokens.shape[1], dtype=np.int32)
        inputs: dict[str, Any] = {roles.tokens: tokens, roles.place: np.array([start], np.int32)}
        inputs |= given_masks(self.decoder, roles, mask, start)
        if roles.positions:
            inputs[roles.positions] = positions.reshape([int(dim) for dim in plan.inputs[roles.positions].shape or ()])
        given = plan.run(inputs, self._state)
        if "logits" not in given:
            raise EvaluationError(f"function {roles.name!r} gives {', '.join(given)}, and no logits")
        logits: Logits = np.asarray(given["logits"].cpu().numpy(), np.float64)
        row: Logits = logits[0, -1]
        return row

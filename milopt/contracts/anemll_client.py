"""What ANEMLL's client does, call by call (Anemll 0.3.4, tests/chat.py): prompts in blocks, then token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from milopt.contracts.anemll_reading import AnemllFolder
from milopt.contracts.clients import Logits
from milopt.errors import EvaluationError, MiloptError
from milopt.interpreter import Plan, Precision, State, compile_all
from milopt.package import Model, load
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


def causal_rows(start: int, count: int, length: int) -> Array:
    """(1, 1, count, length), fewer rows at the end: rows ``start`` on of ``make_causal_mask`` there, 0 where a row may
    look and minus infinity elsewhere.
    """
    rows, columns = np.arange(start, min(start + count, length))[:, None], np.arange(length)[None, :]
    return np.where(columns <= rows, 0, -np.inf).astype(np.float16)[None, None]


def followed(calls: Calls, tokens: Sequence[int], prompt: int, context: int, batch: int, *, blocks: bool) -> Logits:
    """The logits (tokens behind the prompt + 1, V) on the way through ``tokens``, of which ``prompt`` are the prompt.

    With ``blocks`` the prompt is fed in blocks first; its last token is fed again alone, which is how the client gets
    the first logits. Without, every token is fed alone.
    """
    if blocks:
        for start in range(0, prompt, batch):
            padded = np.zeros((1, batch), np.int32)
            given = list(tokens[start : min(start + batch, prompt)])
            padded[0, : len(given)] = given
            calls.prefill(padded, start, causal_rows(start, batch, context))
    rows: list[Logits] = []
    for place in range(prompt - 1 if blocks else 0, len(tokens)):
        row = calls.infer(tokens[place], place, causal_rows(place, 1, context))
        if place >= prompt - 1:
            rows.append(row)
    return np.stack(rows)


def answered(calls: Calls, prompt: Sequence[int], count: int, context: int, batch: int) -> list[int]:
    """The prompt and ``count`` greedy tokens behind it, as the client says them."""
    tokens = list(prompt)
    logits = followed(calls, tokens, len(tokens), context, batch, blocks=True)[-1]
    for _ in range(count):
        tokens.append(int(logits.argmax()))
        place = len(tokens) - 1
        logits = calls.infer(tokens[-1], place, causal_rows(place, 1, context))
    return tokens


@dataclass(frozen=True)
class _Plans:
    embeddings: Plan
    infer: tuple[Plan, ...]
    prefill: tuple[Plan, ...]
    head: Plan


class AnemllCalls:
    """Conversations with a set in ANEMLL's form; each has one state, of the first chunk's ``prefill``."""

    def __init__(self, folder: AnemllFolder, precision: Precision) -> None:
        chunks = [compile_all(each, precision=precision) for each in folder.chunks]
        self._plans = _Plans(
            compile_all(folder.embeddings, precision=precision)[folder.embeddings.default_function],
            tuple(each["infer"] for each in chunks),
            tuple(each["prefill"] for each in chunks),
            compile_all(folder.head, precision=precision)[folder.head.default_function],
        )
        given = self._plans.head.outputs
        numbered = [f"logits{at}" for at in range(1, folder.parameters.slices + 1)]
        self._outputs = [name for name in numbered if name in given] or ["output_logits"]
        self.reset()

    def reset(self) -> None:
        """Begin another conversation."""
        self._state = State(self._plans.prefill[0].states)

    def prefill(self, tokens: Array, start: int, mask: Array) -> None:
        positions = np.arange(start, start + tokens.shape[1], dtype=np.int32)
        self._through(self._plans.prefill, tokens, positions, mask, start)

    def infer(self, token: int, place: int, mask: Array) -> Logits:
        at = np.array([place], np.int32)
        hidden = self._through(self._plans.infer, np.array([[token]], np.int32), at, mask, place)
        given = self._plans.head.run({"hidden_states": hidden})
        parts = [np.asarray(given[name].cpu().numpy(), np.float64)[0, -1] for name in self._outputs]
        return np.concatenate(parts)

    def _through(self, chunks: Sequence[Plan], tokens: Array, positions: Array, mask: Array, start: int) -> Any:
        hidden: Any = self._plans.embeddings.run({"input_ids": tokens})["hidden_states"]
        for plan in chunks:
            inputs: dict[str, Any] = {
                "hidden_states": hidden,
                "position_ids": positions,
                "causal_mask": mask,
                "current_pos": np.array([start], np.int32),
            }
            hidden = plan.run(inputs, self._state)["output_hidden_states"]
        return hidden


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
        self._decoder = decoder
        self.reset()

    def reset(self) -> None:
        """Begin another conversation."""
        self._state = State(self._plans[self._decoder.one.name].states)

    def prefill(self, tokens: Array, start: int, mask: Array) -> None:
        assert self._decoder.many is not None
        self._run(self._decoder.many, tokens, start, mask)

    def infer(self, token: int, place: int, mask: Array) -> Logits:
        return self._run(self._decoder.one, np.array([[token]], np.int32), place, mask)

    def _run(self, roles: FunctionRoles, tokens: Array, start: int, mask: Array) -> Logits:
        plan = self._plans[roles.name]
        positions: Any = np.arange(start, start + tokens.shape[1], dtype=np.int32)
        inputs: dict[str, Any] = {roles.tokens: tokens, roles.mask: mask, roles.place: np.array([start], np.int32)}
        if roles.positions:
            inputs[roles.positions] = positions.reshape([int(dim) for dim in plan.inputs[roles.positions].shape or ()])
        given = plan.run(inputs, self._state)
        if "logits" not in given:
            raise EvaluationError(f"function {roles.name!r} gives {', '.join(given)}, and no logits")
        logits: Logits = np.asarray(given["logits"].cpu().numpy(), np.float64)
        row: Logits = logits[0, -1]
        return row

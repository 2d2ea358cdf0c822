"""A set in ANEMLL's form as plans: what its clients do in one call, embedding -> chunks on one state -> head."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch

from milopt.errors import EvaluationError
from milopt.interpreter import Plan, Precision, State, ValueInfo, Weights, compile
from milopt.interpreter.steps import Body
from milopt.sets.anemll_windows import ROTATING

if TYPE_CHECKING:
    from milopt.contracts.anemll_reading import AnemllFolder, Parameters
    from milopt.package import Model

__all__ = ["ARGMAX", "anemll_plans", "logits_names"]

ARGMAX = ("argmax_idx", "argmax_val")
"""What a head gives that chooses by itself: the place within each slice of its largest logit, and that logit."""

_NO_BODY = Body((), (), (), (), frozenset())
_INPUTS = ("position_ids", "causal_mask", "current_pos")


def anemll_plans(
    folder: AnemllFolder,
    *,
    precision: Precision = "declared",
    keep_weights: bool = True,
    device: str = "cpu",
    rotating: bool = False,
) -> dict[str, Plan]:
    """``infer``, which gives ``logits`` (1, 1, V) of one token, and ``prefill``, which takes a block and gives nothing.

    Both take ``input_ids``, ``position_ids``, ``causal_mask`` and ``current_pos``, and share the state of the first
    chunk's ``prefill``. What a head with argmax does not give is minus infinity. With ``rotating`` there are also
    ``infer_rotate`` and ``prefill_rotate``, where all chunks have them.
    """
    weights = Weights(precision, keep=keep_weights, device=device)

    def made(model: Model, function: str) -> Plan:
        return compile(model, function, precision=precision, weights=weights, device=device)

    embeddings = made(folder.embeddings, folder.embeddings.default_function)
    head = made(folder.head, folder.head.default_function)
    known = folder.parameters
    calls = [("infer", 1, head), ("prefill", known.batch, None)]
    if rotating:
        more = [(ROTATING[name], length, said) for name, length, said in calls]
        calls += [each for each in more if all(each[0] in chunk.functions for chunk in folder.chunks)]
    return {
        name: _plan(name, length, embeddings, [made(each, name) for each in folder.chunks], said, known)
        for name, length, said in calls
    }


def logits_names(outputs: Iterable[str], slices: int) -> list[str]:
    """The outputs of a head that clients join: those that are numbered, or the one that is whole."""
    given = set(outputs)
    return [name for at in range(1, slices + 1) if (name := f"logits{at}") in given] or ["output_logits"]


def _plan(
    name: str, length: int, embeddings: Plan, chunks: Sequence[Plan], head: Plan | None, known: Parameters
) -> Plan:
    first = chunks[0]
    inputs = {"input_ids": ValueInfo("input_ids", (1, length), "int32")}
    inputs |= {each: first.inputs[each] for each in _INPUTS if each in first.inputs}
    reader = None if head is None else _reader(head, known)
    outputs = {} if reader is None else {"logits": ValueInfo("logits", (1, 1, sum(reader.sizes)), "fp16")}
    return _Client(
        function=name,
        precision=first.precision,
        inputs=inputs,
        outputs=outputs,
        states=dict(first.states),
        body=_NO_BODY,
        slots=0,
        input_slots={},
        state_slots={},
        copied_outputs=frozenset(),
        device=first.device,
        embeddings=embeddings,
        chunks=tuple(chunks),
        head=reader,
    )


@dataclass(frozen=True)
class _Reader:
    """The head, and how its outputs are joined to logits: ``sizes`` are those of the vocabulary's slices."""

    plan: Plan
    names: tuple[str, ...]
    sizes: tuple[int, ...]

    def read(self, hidden: torch.Tensor, heard: tuple[object, ...]) -> torch.Tensor:
        given = self.plan.run({"hidden_states": hidden}, None, heard)
        parts = [given[name] for name in self.names]
        return self._put(*parts) if self.names == ARGMAX else torch.cat([each[:, -1:] for each in parts], -1)

    def _put(self, places: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        begins = [0, *accumulate(self.sizes)][:-1]
        logits = torch.full((1, 1, sum(self.sizes)), -torch.inf, dtype=values.dtype, device=values.device)
        chosen = [int(each) for each in places.flatten()]
        for begin, size, place, value in zip(begins, self.sizes, chosen, values.flatten(), strict=True):
            if not 0 <= place < size:
                raise EvaluationError(f"the head chose place {place} of a slice of {size} words")
            logits[0, 0, begin + place] = value
        return logits


def _reader(head: Plan, known: Parameters) -> _Reader:
    if known.argmax:
        return _Reader(head, ARGMAX, known.layout)
    names = logits_names(head.outputs, known.slices)
    return _Reader(head, tuple(names), tuple(int((head.outputs[name].shape or (0,))[-1]) for name in names))


@dataclass(frozen=True, kw_only=True)
class _Client(Plan):
    """One call of a client."""

    embeddings: Plan
    chunks: tuple[Plan, ...]
    head: _Reader | None

    def run(
        self, inputs: Mapping[str, Any], state: State | None = None, listeners: Iterable[object] = ()
    ) -> dict[str, torch.Tensor]:
        heard = tuple(listeners)
        hidden = self.embeddings.run({"input_ids": inputs["input_ids"]}, None, heard)["hidden_states"]
        rest = {name: inputs[name] for name in _INPUTS}
        for chunk in self.chunks:
            hidden = chunk.run({"hidden_states": hidden, **rest}, state, heard)["output_hidden_states"]
        return {} if self.head is None else {"logits": self.head.read(hidden, heard)}

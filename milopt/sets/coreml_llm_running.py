"""CoreML-LLM's monolith as a plan: what its client does in one call, which says by a mask where it writes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from milopt.errors import EvaluationError
from milopt.interpreter import Plan, Precision, State, ValueInfo, compile
from milopt.package import Model

__all__ = ["CHOSEN", "monolith_plan"]

CHOSEN = ("argmax_idx", "argmax_val")
"""The likeliest id and its logit, both (1, 1), as ``split-head{output=argmax}`` calls them."""


def monolith_plan(
    model: Model,
    *,
    words: int | None = None,
    precision: Precision = "declared",
    keep_weights: bool = True,
    device: str = "cpu",
) -> Plan:
    """A plan of ``input_ids``, ``position_ids``, ``causal_mask`` and ``current_pos`` that gives :data:`CHOSEN`.

    With ``words`` a choice that is none of so many raises EvaluationError.
    """
    inner = compile(model, precision=precision, keep_weights=keep_weights, device=device)
    inputs = {name: info for name, info in inner.inputs.items() if name != _UPDATE}
    inputs[_PLACE] = ValueInfo(_PLACE, (1,), "int32")
    return _Client(
        function=inner.function,
        precision=inner.precision,
        inputs=inputs,
        outputs={name: ValueInfo(name, (1, 1), kind) for name, kind in zip(CHOSEN, ("int32", "fp16"), strict=True)},
        states=dict(inner.states),
        body=inner.body,
        slots=inner.slots,
        input_slots={},
        state_slots={},
        copied_outputs=frozenset(),
        device=inner.device,
        inner=inner,
        words=words,
    )


_UPDATE, _PLACE = "update_mask", "current_pos"


@dataclass(frozen=True, kw_only=True)
class _Client(Plan):
    """One call of the client."""

    inner: Plan
    words: int | None

    def run(
        self, inputs: Mapping[str, Any], state: State | None = None, listeners: Iterable[object] = ()
    ) -> dict[str, torch.Tensor]:
        given = {name: value for name, value in inputs.items() if name != _PLACE}
        given[_UPDATE] = self._update(int(np.asarray(inputs[_PLACE]).flatten()[0]))
        made = self.inner.run(given, state, listeners)
        token = int(made["token_id"].flatten()[0])
        if self.words is not None and not 0 <= token < self.words:
            raise EvaluationError(f"the program chose token {token}, which is none of its {self.words}")
        return {name: made[each].reshape(1, 1) for name, each in zip(CHOSEN, ("token_id", "token_logit"), strict=True)}

    def _update(self, place: int) -> Any:
        shape = [int(dim) for dim in self.inner.inputs[_UPDATE].shape or ()]
        update = np.zeros(shape, np.float16)
        update[0, 0, min(place, shape[2] - 1), 0] = 1
        return update

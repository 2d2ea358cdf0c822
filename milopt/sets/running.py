"""A set as a plan: the parts run one after another, as a client would run them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from milopt.errors import EvaluationError
from milopt.interpreter import Plan, Precision, State, ValueInfo, Weights, compile
from milopt.interpreter.steps import Body
from milopt.sets.deployment import DeploymentSet, Step, Table
from milopt.sets.wiring import Kind, wired

__all__ = ["Chain", "Link", "compile_set"]

_NO_BODY = Body((), (), (), (), frozenset())


@dataclass(frozen=True)
class Link:
    """One part in one function: a plan, or an array of rows of MIL type ``dtype``."""

    part: str
    step: Step
    plan: Plan | None
    rows: np.ndarray[Any, Any] | None = None


@dataclass(frozen=True)
class Chain(Plan):
    """A function of a set as a plan of its own: ``links`` run in order, all on one state."""

    links: tuple[Link, ...] = ()

    def run(
        self,
        inputs: Mapping[str, np.ndarray[Any, Any] | torch.Tensor],
        state: State | None = None,
        listeners: Iterable[object] = (),
    ) -> dict[str, torch.Tensor]:
        """As :meth:`milopt.interpreter.Plan.run`; the parts' own messages name what does not fit."""
        self._check_names(inputs)
        known: dict[str, Any] = dict(inputs)
        heard = tuple(listeners)
        for link in self.links:
            given = {name: known[source] for name, source in link.step.takes.items()}
            if link.plan is None:
                known.update(self._looked_up(link, given["indices"]))
                continue
            made = link.plan.run(given, state, heard)
            known.update({link.step.gives[name]: value for name, value in made.items()})
        return {name: known[name] for name in self.outputs}

    def _check_names(self, inputs: Mapping[str, object]) -> None:
        if missing := [name for name in self.inputs if name not in inputs]:
            raise EvaluationError(f"the call lacks {missing[0]!r}; {self.function!r} takes {', '.join(self.inputs)}")
        if strange := [name for name in inputs if name not in self.inputs]:
            raise EvaluationError(
                f"function {self.function!r} has no {strange[0]!r}; it takes {', '.join(self.inputs)}"
            )

    def _looked_up(self, link: Link, indices: Any) -> dict[str, torch.Tensor]:
        assert link.rows is not None
        at: Any = np.asarray(indices.cpu() if isinstance(indices, torch.Tensor) else indices)
        entries = link.rows.shape[0]
        if at.size and (int(at.max()) >= entries or int(at.min()) < 0):
            raise EvaluationError(f"a token of the call is not one of the {entries} that {link.part} has rows for")
        rows: torch.Tensor = torch.as_tensor(np.array(link.rows[at]))
        kind = torch.float64 if self.precision == "float64" else torch.float32
        return {link.step.gives["rows"]: rows.to(kind).to(self.device)}


def compile_set(
    made: DeploymentSet,
    *,
    precision: Precision = "declared",
    keep_weights: bool = True,
    weights: Weights | None = None,
    device: str = "cpu",
) -> dict[str, Plan]:
    """A plan for each function of the set, which runs its parts in order.

    ``weights`` are working copies to share with other plans, as in :func:`milopt.interpreter.compile`. SetError where
    parts don't fit each other: a state or a value that one declares otherwise than another.
    """
    kept = weights or Weights(precision, keep=keep_weights, device=device)
    return {name: _chain(made, name, precision, kept, device) for name in made.functions}


def _chain(made: DeploymentSet, function: str, precision: Precision, weights: Weights, device: str) -> Chain:
    found = wired(made, function)
    links: list[Link] = []
    for part in made.parts:
        step, file = part.steps[function], made.files[part.file]
        if isinstance(file, Table):
            links.append(Link(part.name, step, None, file.array))
        else:
            plan = compile(file, step.function, precision=precision, weights=weights, device=device)
            links.append(Link(part.name, step, plan))
    return Chain(
        function=function,
        precision=precision,
        inputs=_infos(found.inputs),
        outputs=_infos(found.outputs),
        states=_infos(found.states),
        body=_NO_BODY,
        slots=0,
        input_slots={},
        state_slots={},
        copied_outputs=frozenset(),
        device=torch.device(device),
        links=tuple(links),
    )


def _infos(kinds: Mapping[str, Kind]) -> dict[str, ValueInfo]:
    return {name: ValueInfo(name, tuple(kind[1:]), str(kind[0])) for name, kind in kinds.items()}

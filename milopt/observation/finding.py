"""Which ops make a NaN or Inf that float64 does not make?

The program runs in the precision in question, and a listener notes which values hold NaN or Inf, and where. If any do,
it runs in float64, and only these values are looked at: what is finite there has either come with an input of its op,
or begins in this op. A third run looks at the inputs of the ops where it begins. No run keeps more values than it needs
itself; the places of NaN and Inf are kept as bits, and compressed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch

from milopt import mil
from milopt.errors import EvaluationError
from milopt.interpreter import Impls, Precision, State, Weights, compile, core
from milopt.interpreter.source import Source, program_of
from milopt.interpreter.values import is_float, to_tensor
from milopt.observation.hearing import Details, Reference, Suspects
from milopt.observation.inside import Inside, watched
from milopt.observation.occurrences import Key
from milopt.observation.overflow import Overflow, OverflowReport
from milopt.observation.places import Places, first, has_odd
from milopt.observation.tainting import Taint
from milopt.verify.lending import LentWeights

__all__ = ["find_overflows"]


def find_overflows(
    model: Source,
    inputs: Mapping[str, np.ndarray[Any, Any] | torch.Tensor],
    *,
    precision: Precision = "declared",
    function: str | None = None,
    state: State | None = None,
    seed: int = 0,
    device: str = "cpu",
    impls: Impls = core,
) -> OverflowReport:
    """The ops in which a NaN or Inf first appears in ``precision`` where the float64 run has a finite number.

    In ``declared-strict`` intermediate values of composite ops count too, where rounding makes one infinite. One
    function (the default one if None) runs once, or three times if there is NaN or Inf at all, every time from a copy
    of ``state``; random ops without a seed of their own draw from ``seed`` each time. What is infinite in both runs, as
    masks are, is none. EvaluationError when the inputs don't fit, or when the run fails for another reason than an
    overflow.

    On ``device`` the float64 run takes place too, except where the device has no float64.
    """
    if precision == "float64":
        raise EvaluationError("float64 is what overflows are judged by: choose declared or declared-strict")
    inside = Inside()
    chosen = watched(impls, inside) if precision == "declared-strict" else impls
    judged = _Side(model, function, precision, chosen, device, inputs, state, seed)
    suspects = Suspects(inside)
    outputs, stopped = judged.run(suspects)
    name = judged.plan.function
    odd = {each: Places.of(value) for each, value in outputs.items() if _is_odd(value)}
    del outputs
    large = _large_inputs(judged)
    if not suspects.steps and not large:
        if stopped is not None:
            raise stopped
        return OverflowReport(name, precision, (), {})
    wide = "cpu" if judged.plan.device.type == "mps" else device
    exact = _Side(model, function, "float64", impls, wide, inputs, state, seed)
    heard = Reference(suspects.places, Taint(frozenset(exact.plan.input_slots[each.output] for each in large)))
    references, failed = exact.run(heard) if suspects.places else ({}, None)
    if failed is not None and stopped is None:
        raise failed
    spoilt = {each: _count(places, references[each]) for each, places in odd.items() if each in references}
    found = _found(suspects, heard)
    if stopped is not None and not found and not large:
        raise stopped
    return OverflowReport(
        name,
        precision,
        (*large, *_described(found, judged, inside)),
        {each: count for each, count in spoilt.items() if count},
        str(stopped or ""),
        len(suspects.places.keys() - heard.compared),
    )


class _Side:
    """One of the two programs that are compared: a plan, and what it is run on."""

    def __init__(
        self,
        model: Source,
        function: str | None,
        precision: Precision,
        impls: Impls,
        device: str,
        inputs: Mapping[str, np.ndarray[Any, Any] | torch.Tensor],
        state: State | None,
        seed: int,
    ) -> None:
        # an accelerator's own memory holds the weights; the CPU's is shared with everything else
        self._weights = LentWeights(precision) if device == "cpu" else Weights(precision, device=device)
        self.plan = compile(model, function, precision=precision, weights=self._weights, impls=impls)
        self.inputs = inputs
        self._state = state
        self._seed = seed
        self._function = program_of(model).functions[self.plan.function]

    def run(self, listener: object) -> tuple[dict[str, Any], EvaluationError | None]:
        """The outputs; none if an op fails, and then why."""
        state = None if self._state is None else self._state.copy()
        lent = self._weights.lent() if isinstance(self._weights, LentWeights) else nullcontext()
        with lent, _seeded(self._seed):
            try:
                return self.plan.run(self.inputs, state, (listener,)), None
            except EvaluationError as error:
                return {}, error

    def producers(self) -> dict[str, mil.Operation]:
        """The program's ops by the names of their values."""
        return {var.name: op for op in mil.operations(self._function) for var in op.outputs}


@contextmanager
def _seeded(seed: int) -> Generator[None]:
    """Random ops without a seed of their own draw the same numbers in here each time."""
    random: Any = torch.random
    with random.fork_rng(devices=[]):
        random.manual_seed(seed)
        yield


def _is_odd(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point() and has_odd(value)


def _count(places: Places, reference: Any) -> int:
    mask = places.spurious(reference)
    return 0 if mask is None else int(mask.sum())


def _large_inputs(side: _Side) -> list[Overflow]:
    """Inputs that are finite as they were given, and infinite in their declared type."""
    found: list[Overflow] = []
    for name, info in side.plan.inputs.items():
        if name not in side.inputs or not is_float(info.dtype):
            continue
        given = to_tensor(side.inputs[name], info, "float64", "input")  # where the caller has it
        held = to_tensor(side.inputs[name], info, side.plan.precision, "input")
        places = given.isfinite() & ~held.isfinite()
        if places.any():
            index = first(places)
            count = int(places.sum())
            numbers = float(held[index]), float(given[index])
            found.append(Overflow("input", name, "input", name, info.dtype, index, *numbers, count))
    return found


def _found(suspects: Suspects, heard: Reference) -> dict[Key, Overflow]:
    """Where it begins, in program order; of the turns of a loop the first."""
    found: dict[tuple[str, str], tuple[Key, Overflow]] = {}
    times: Counter[tuple[str, str]] = Counter()
    for key, step in suspects.steps.items():
        kind: Literal["result", "inside"]
        if (spurious := heard.begins.get(key)) is not None:
            kind, index, count = "result", spurious.index, spurious.count
            value, reference = suspects.places[key].at(index), spurious.reference
        elif (rounded := suspects.rounded.get(key)) is not None:
            kind, index, count = "inside", rounded.index, rounded.count
            value, reference = rounded.value, rounded.before
        else:
            continue
        times[kind, key[0]] += 1
        dtype = next(each.info.dtype for each in step.results if each.info.name == key[0])
        made = Overflow(
            kind, step.name, step.op_type, key[0], dtype, index, value, reference, count, turn=key[1]
        )  # fmt: skip
        found.setdefault((kind, key[0]), (key, made))
    return {key: replace(each, times=times[each.kind, each.output]) for key, each in found.values()}


def _described(found: Mapping[Key, Overflow], side: _Side, inside: Inside) -> list[Overflow]:
    """The overflows, with the inputs and the scopes of their ops."""
    if not found:
        return []
    producers = side.producers()
    dtypes = {
        name: {each: mil.dtype_name(var) for each, var in mil.arguments(producers[name])}
        for name in {key[0] for key in found}
    }
    details = Details({key: each.index if each.kind == "result" else None for key, each in found.items()}, dtypes)
    side.run(details)
    inside.take()
    return [
        replace(each, operands=details.operands.get(key, ()), scope=_scope(producers[key[0]]))
        for key, each in found.items()
    ]


def _scope(op: mil.Operation) -> str:
    """The torch module that coremltools converted the op from: ``layers.0.mlp``; empty in a package's program."""
    for source, names in op.scopes.items():
        if source.name == "TORCHSCRIPT_MODULE_NAME":
            return ".".join(each for each in names if each)
    return ""

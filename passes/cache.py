"""Key/value caches as inputs and outputs -> states updated in place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from milopt.building import Builder
from milopt.metrics import Exact, Metric
from milopt.mil import (
    Function,
    Operation,
    Var,
    add_input,
    constant,
    dtype_name,
    is_output,
    is_symbolic,
    operations,
    remove_if_dead,
    remove_input,
    replace_uses,
    shape_of,
    target,
)
from milopt.package import Model
from milopt.passes.slots import Slots, follow
from milopt.pipeline import Pass
from milopt.reports import NoMatch, Report, require
from milopt.signature import METADATA_KEY, CacheSignature, CacheSlot

__all__ = ["KvToState", "Pair", "find_pairs"]


@dataclass(frozen=True)
class Pair:
    """One cached tensor, ``present = concat(past, new)`` along ``axis``: an input goes in, an output comes out."""

    past: str
    present: str
    concat: Operation
    new: Var
    axis: int

    @property
    def var(self) -> Var:
        return self.concat.outputs[0]


def find_pairs(function: Function) -> Iterator[Pair]:
    """The cached tensors of a function, in program order; casts around the concat are seen through."""
    inputs = {id(var): name for name, var in function.inputs.items()}
    for op in function.operations:
        if op.op_type != "concat" or len(op.values) != 2 or constant(op.interleave):
            continue
        past = inputs.get(id(_behind_casts(op.values[0])))
        present = next((var.name for var in _with_casts(op.outputs[0]) if function in var.consuming_blocks), None)
        if past is not None and present is not None:
            yield Pair(past, present, op, op.values[1], int(constant(op.axis)) % op.outputs[0].rank)


def _behind_casts(var: Var) -> Var:
    while var.op is not None and var.op.op_type == "cast":
        var = var.op.x
    return var


def _with_casts(var: Var) -> list[Var]:
    """``var`` and what is only a cast of it."""
    return [var, *(each for user in var.child_ops if user.op_type == "cast" for each in _with_casts(user.outputs[0]))]


@dataclass(frozen=True)
class KvToState(Pass):
    """``present = concat(past, new)`` with past an input and present an output  ->  a state and ``slice_update``.

    The states are ``key_cache`` and ``value_cache``, or ``kv_cache`` with the keys first (``states="unified"``), of
    shape (layers·B, H, context, D). A new input, ``current_pos`` (int32, (1,)), is the first slot the new tokens go to.
    The meaning of mask columns changes from [past | new] to slots; the report's signature, the input's description and
    the package's metadata say so. All functions are rewritten, or none:

    1. the opset must be iOS18 or later, shapes static, the cache fp16 (constraints S1, S2: Core ML's states are);
    2. every cached tensor must have one shape, and all functions the same tensors and context;
    3. nothing else may use a past input, nor depend on the order of the cache's columns (see :mod:`.slots`);
    4. a mask must hide the slots not written yet.
    """

    name: ClassVar[str] = "kv-to-state"
    after: ClassVar[tuple[str, ...]] = ("canonicalize", "fuse-sdpa")
    metric: ClassVar[Metric] = Exact()
    opset: ClassVar[int] = 9

    states: Literal["pair", "unified"] = "pair"
    position: str = "current_pos"

    def run(self, model: Model) -> Report:
        report = Report(self.name)
        plans: dict[str, _Plan] = {}
        for name, function in model.functions.items():
            pairs = list(find_pairs(function))
            report.tried += len(pairs)
            if not pairs:
                report.notes.append(f"{name}: no output is a concat of an input and something new")
                continue
            try:
                plans[name] = self._plan(function, pairs)
            except NoMatch as why:
                report.decline(name, why.at or pairs[0].concat, why.text, *why.arguments)
        signatures = {plan.signature for plan in plans.values()}
        if not plans or len(plans) < len(model.functions) or len(signatures) > 1:
            if plans:
                report.decline(next(iter(plans)), "", "not every function of the program has the same cache")
            return report
        report.signature = signatures.pop()
        for name, plan in plans.items():
            plan.rewrite()
            report.applied += len(plan.pairs)
            self._describe(model, name, report.signature)
        model.metadata[METADATA_KEY] = report.signature.to_json()
        return report

    def _plan(self, function: Function, pairs: list[Pair]) -> _Plan:
        opset = function.opset_version
        require(opset >= target.iOS18, "states need iOS18, the function is {}", opset.name)  # 1
        require(self.position not in function.inputs, "there is an input named {} already", self.position)
        shape = shape_of(pairs[0].var)
        for pair in pairs:
            require(not any(map(is_symbolic, shape_of(pair.var))), "its shape is not static", at=pair.var)
            kind = dtype_name(pair.var)
            require(kind == "fp16", "the cache is {}, and states are fp16", kind, at=pair.var)
            require(
                (shape_of(pair.var), pair.axis) == (shape, pairs[0].axis),  # 2
                "is {}, but another cached tensor is {}",
                shape_of(pair.var),
                shape,
                at=pair.var,
            )
            require(pair.axis > 0, "the slots are the first axis", at=pair.var)
            past = function.inputs[pair.past]
            alone = _uses(past) == [pair.concat] and not any(map(is_output, _with_casts(past)))
            require(alone, "the past is also used elsewhere", at=past)  # 3
        sources = {pair.var: pair.axis for pair in pairs}
        allowed = {var for pair in pairs for var in _with_casts(pair.var)}
        slots = follow(sources, function.inputs, allowed)
        require(slots.hidden and slots.masks, "no mask hides the slots that are not written yet", at=pairs[0].var)  # 4
        return _Plan(function, pairs, self._signature(pairs, slots, shape), self.position)

    def _signature(self, pairs: list[Pair], slots: Slots, shape: tuple[int, ...]) -> CacheSignature:
        batch, entries, rows = shape[0], list[CacheSlot](), {"key": 0, "value": 0}
        keys = sum(pair.var in slots.keys for pair in pairs)
        for pair in pairs:
            require((pair.var in slots.keys) != (pair.var in slots.values), "is it a key or a value?", at=pair.var)
            kind = "key" if pair.var in slots.keys else "value"
            state, row = f"{kind}_cache", rows[kind]
            rows[kind] += batch
            if self.states == "unified":
                state, row = "kv_cache", row + (keys * batch if kind == "value" else 0)
            entries.append(CacheSlot(pair.past, pair.present, state, row, batch))
        axis = pairs[0].axis
        return CacheSignature(tuple(entries), self.position, tuple(slots.masks), shape[axis], axis)

    def _describe(self, model: Model, function: str, signature: CacheSignature) -> None:
        for mask in signature.masks:
            text = f"Mask over the {signature.context} slots of the states: column j is slot j, and the new tokens are "
            model.describe(function, mask, f"{text}slots {self.position} and following.")
        text = f"The first slot the new tokens are written to; {self.position} + Q must not exceed {signature.context}."
        model.describe(function, self.position, text)


def _uses(var: Var) -> list[Operation]:
    """The ops that use an input, casts seen through."""
    users: list[Operation] = []
    for user in dict.fromkeys(var.child_ops):
        users += _uses(user.outputs[0]) if user.op_type == "cast" else [user]
    return users


@dataclass(frozen=True)
class _Plan:
    """What to do to one function; everything was checked when it was made."""

    function: Function
    pairs: list[Pair]
    signature: CacheSignature
    position: str

    def rewrite(self) -> None:
        function, signature = self.function, self.signature
        shape, axis = shape_of(self.pairs[0].var), self.pairs[0].axis
        taken = {*function.inputs, *(op.name for op in operations(function))}
        presents = {pair.present for pair in self.pairs}
        function.set_outputs([var for var in function.outputs if var.name not in presents])
        position = add_input(function, self.position, (1,), "int32")
        totals: dict[str, int] = {}
        for slot in signature.slots:
            totals[slot.state] = max(totals.get(slot.state, 0), slot.row + slot.rows)
        states = {
            name: add_input(function, name, (rows, *shape[1:]), "fp16", state=True) for name, rows in totals.items()
        }

        op = Builder(self.pairs[0].concat, taken)
        current: dict[str, Var] = {
            name: op.read_state(input=state, name=f"{name}_read") for name, state in states.items()
        }
        length = shape_of(self.pairs[0].new)[axis]
        end = op.add(x=position, y=np.array([length], np.int32), name=f"{self.position}_end")
        bounds: dict[int, tuple[Var, Var]] = {}
        for pair, slot in zip(self.pairs, signature.slots, strict=True):
            op = Builder(pair.concat, taken)
            if slot.row not in bounds:
                low = _around(op, axis, position, [slot.row, *[0] * (len(shape) - 1)])
                bounds[slot.row] = low, _around(op, axis, end, [slot.row + slot.rows, *shape[1:]])
            first, last = bounds[slot.row]
            updated = op.slice_update(x=current[slot.state], update=pair.new, begin=first, end=last)
            current[slot.state] = op.coreml_update_state(state=states[slot.state], value=updated)
            rows = op.slice_by_index(
                x=current[slot.state],
                begin=np.array([slot.row, *[0] * (len(shape) - 1)], np.int32),
                end=np.array([slot.row + slot.rows, *shape[1:]], np.int32),
                name=f"{pair.present}_slots",
            )
            replace_uses(pair.var, rows)
            remove_if_dead([pair.concat])
            remove_input(function, pair.past)


def _around(op: Builder, axis: int, runtime: Var, numbers: list[int]) -> Any:
    """The int32 vector ``numbers`` with the entry at ``axis`` known only when the program runs."""
    before, after = np.array(numbers[:axis], np.int32), np.array(numbers[axis + 1 :], np.int32)
    parts = [before, runtime, *([after] if after.size else [])]
    return op.concat(values=parts, axis=0)

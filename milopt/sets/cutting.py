"""A part of a program becomes a program of its own: a copy in which what belongs to other parts is left out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from milopt.mil import (
    Function,
    Operation,
    Var,
    add_input,
    building_in,
    dtype_name,
    is_state,
    mb,
    remove_input,
    remove_ops,
    replace_uses,
    shape_of,
)
from milopt.package import Model
from milopt.sets.crossing import Slice
from milopt.signature import METADATA_KEY
from milopt.signature_head import HEAD_KEY

__all__ = ["STREAM_IN", "STREAM_OUT", "Cut", "cut_out"]

STREAM_IN = "hidden_states"
STREAM_OUT = "output_hidden_states"
_ODD = re.compile(r"\W", re.ASCII)


@dataclass(frozen=True)
class Cut:
    """A part as a model of its own. For each function, ``takes`` has the values of the whole that are new inputs here,
    and ``gives`` those that are outputs, by the names they have in the part.
    """

    model: Model
    takes: dict[str, dict[str, Var]] = field(default_factory=dict[str, dict[str, Var]])
    gives: dict[str, dict[str, Var]] = field(default_factory=dict[str, dict[str, Var]])


def cut_out(
    whole: Model, slices: Mapping[str, Slice], stream_in: Mapping[str, Var], stream_out: Mapping[str, tuple[Var, str]]
) -> Cut:
    """The part that ``slices`` describe, with the weights' arrays of ``whole``.

    ``stream_in`` is the stream's value that each function begins with, and ``stream_out`` the one that it ends with and
    its name.
    """
    model = whole.clone()
    model.attachments = {}
    for key in (METADATA_KEY, HEAD_KEY):
        model.metadata.pop(key, None)
    cut = Cut(model)
    for name, each in slices.items():
        cutter = _Cutter(whole.function(name), model.function(name), each)
        cut.takes[name] = cutter.take(stream_in.get(name))
        cut.gives[name] = cutter.give(whole.function(name), stream_out.get(name))
        cutter.prune()
        _forget_classes(model, name, [*cut.gives[name]])
    return cut


class _Cutter:
    """Cuts one function, ``function``, which is a copy of ``whole`` op by op."""

    def __init__(self, whole: Function, function: Function, part: Slice) -> None:
        self.function, self.part = function, part
        pairs = zip(whole.operations, function.operations, strict=True)
        self.twin: dict[Operation, Operation] = dict(pairs)
        self.taken = {var.name for var in whole.outputs} | set(whole.inputs)
        self.taken |= {var.name for op in part.ops for var in op.outputs}

    def value(self, var: Var) -> Var:
        """The copy of a value."""
        if var.op is None:
            return self.function.inputs[var.name]
        return self.twin[var.op].outputs[var.op.outputs.index(var)]

    def take(self, stream: Var | None) -> dict[str, Var]:
        """Make inputs of what earlier parts hand over, and read anew what they wrote to states."""
        made: dict[str, Var] = {}
        for var in self.part.taken:
            name = self.unique(STREAM_IN if var is stream else var.name)
            own = add_input(self.function, name, shape_of(var), dtype_name(var))
            replace_uses(self.value(var), own)
            made[name] = var
        first = next(iter(self.function.operations))
        again: dict[str, Var] = {}
        for var in self.part.reread:
            assert var.op is not None
            state = next(each for each in var.op.inputs.values() if isinstance(each, Var) and is_state(each))
            if state.name not in again:
                with building_in(self.function):
                    own_state = self.function.inputs[state.name]
                    title = self.unique(f"{state.name}_read")
                    again[state.name] = mb.read_state(input=own_state, before_op=first, name=title)
            replace_uses(self.value(var), again[state.name])
        return made

    def give(self, whole: Function, stream: tuple[Var, str] | None) -> dict[str, Var]:
        """Set the outputs: the function's own keep their names."""
        outputs: list[Var] = []
        made: dict[str, Var] = {}
        for var in self.part.given:
            own = self.value(var)
            if not any(var is each for each in whole.outputs):
                self._rename(own, self.unique(stream[1] if stream is not None and var is stream[0] else var.name, own))
            made[own.name] = var
            outputs.append(own)
        self.function.output_types = _kept_types(self.function, outputs)
        self.function.set_outputs(outputs)
        return made

    def prune(self) -> None:
        """Take out all other ops, and the inputs that only they used."""
        kept = {self.twin[op] for op in self.part.ops}
        others = [own for own in self.twin.values() if own not in kept]
        remove_ops(others)
        wanted = {var.name for var in self.part.inputs} | {var.name for var in self._new_inputs()}
        for name in [name for name in self.function.inputs if name not in wanted]:
            remove_input(self.function, name)

    def _new_inputs(self) -> list[Var]:
        return [var for var in self.function.inputs.values() if var.child_ops]

    def unique(self, name: str, own: Var | None = None) -> str:
        """``name``, spelt so that it may be an input or output, or with a number if something else is called so."""
        stem = _ODD.sub("_", name)
        names = self.taken - ({own.name} if own is not None else set())
        found, count = stem, 1
        while found in names:
            count += 1
            found = f"{stem}_{count}"
        self.taken.add(found)
        return found

    @staticmethod
    def _rename(var: Var, name: str) -> None:
        var.name = name
        assert var.op is not None
        if len(var.op.outputs) == 1:
            var.op.name = name


def _kept_types(function: Function, outputs: list[Var]) -> Any:
    """The types declared for outputs, where all that remain have one."""
    declared: dict[Var, Any] = dict(zip(function.outputs, function.output_types or (), strict=False))
    kept = [declared[var] for var in outputs if var in declared]
    return kept if kept and len(kept) == len(outputs) else None


def _forget_classes(model: Model, function: str, outputs: list[str]) -> None:
    """A part that does not return a class says nothing of one."""
    if model.description is None:
        return
    for section in (model.description, *model.description.functions):
        whose = getattr(section, "name", model.default_function) or model.default_function
        for key in ("predictedFeatureName", "predictedProbabilitiesName"):
            if whose == function and getattr(section, key) not in outputs:
                section.ClearField(key)

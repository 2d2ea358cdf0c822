"""Writes chosen layouts back into a function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from milopt.building import Builder
from milopt.errors import PassError
from milopt.layout.forms import Layout, Step, flat, plan
from milopt.layout.relations import Mode, Product, Template
from milopt.mil import (
    Operation,
    Var,
    arguments,
    constant,
    is_output,
    is_symbolic,
    operations,
    refine_shape,
    remove_if_dead,
    replace_uses,
    shape_of,
    value_names,
)
from milopt.mil import flat as flattened
from milopt.passes.layout_ops import ENTRIES, Keys, Place
from milopt.passes.layout_reading import Node, Reading

__all__ = ["Writing"]


class Writing:
    """Rebuilds the ops of a function whose mode is not their original one, and the moves of the ``touched`` tensors."""

    def __init__(self, reading: Reading, modes: Sequence[Mode], touched: set[int]) -> None:
        self.reading = reading
        self.modes = modes
        self.touched = touched
        self._made: dict[tuple[int, Layout], Var] = {}
        self._starts: dict[int, Layout] = {}
        self._taken: set[str] = set()
        self._constants: dict[tuple[Any, ...], Var] = {}
        self._builders: list[Builder] = []
        self._uses: dict[Var, Var] = {}
        self._outputs: dict[Var, Var] = {}

    def write(self) -> None:
        """Rewrite the function. NoMatch where MIL refuses an op; the function is then as it was."""
        try:
            old = self._build()
        except BaseException:
            for builder in reversed(self._builders):
                builder.undo()
            raise
        for var, new in self._uses.items():
            replace_uses(var, new)
        for var, new in self._outputs.items():
            name, own = var.name, new.name
            replace_uses(var, new)
            new.name, var.name = name, own
            if new.op is not None and len(new.op.outputs) == 1:
                new.op.name = name
        remove_if_dead(old)

    def _build(self) -> list[Operation]:
        """Build what is new beside what is there; the ops that it takes the place of."""
        function = self.reading.function
        self._taken = value_names(function)
        numbers = {node.op: at for at, node in enumerate(self.reading.nodes) if node.op is not None}
        for var in function.inputs.values():
            if var in self.reading.places:
                self._make(var, *self.reading.places[var])
        old: list[Operation] = []
        for op in list(function.operations):
            if op.op_type == "const":
                continue
            if op in numbers:
                number = numbers[op]
                if self._changes(number):
                    self._rebuild(op, number)
                    old.append(op)
                else:
                    self._keep(op)
            else:
                old.append(op)
            self._give(op)
        return old

    def _builder(self, op: Operation) -> Builder:
        self._builders.append(Builder(op, self._taken))
        return self._builders[-1]

    def _changes(self, number: int) -> bool:
        return self.modes[number] != self.reading.graph.relations[number].original

    def _make(self, var: Var, tensor: int, layout: Layout) -> None:
        self._made[tensor, layout] = var
        self._starts[tensor] = layout

    def _keep(self, op: Operation) -> None:
        """Let an op that stays use the new values, in the layouts it has now."""
        places = self.reading.places
        inner = (each for block in op.blocks for each in operations(block))
        used = [var for each in (op, *inner) for _, var in arguments(each)]
        used += [var for block in op.blocks for var in block.outputs]
        for var in dict.fromkeys(used):
            known = var in self._uses or var in self._outputs
            if var in places and places[var][0] in self.touched and var.op is not None and not known:
                new = self._have(*places[var], self._builder(op))
                if new is not var:
                    self._uses[var] = new
        for var in op.outputs:
            if var in places:
                self._make(var, *places[var])

    def _have(self, tensor: int, layout: Layout, op: Builder) -> Var:
        """The tensor in a layout: each is made once."""
        made = self._made.get((tensor, layout))
        if made is not None:
            return made
        start = self._starts[tensor]
        value = self._made[tensor, start]
        for step in plan(start, layout):
            known = self._made.get((tensor, step.to))
            value = self._step(value, tensor, step, op) if known is None else known
            self._made[tensor, step.to] = value
        return value

    def _step(self, x: Var, tensor: int, step: Step, op: Builder) -> Var:
        shape = self._shape(tensor, step.to)
        made: Var
        if step.kind == "transpose":
            made = op.transpose(x=x, perm=list(step.axes))
        elif step.kind == "reshape":
            made = op.reshape(x=x, shape=[-1 if is_symbolic(dim) else dim for dim in shape])
        else:
            made = getattr(op, step.kind)(x=x, axes=list(step.axes))
        return refine_shape(made, shape)

    def _shape(self, tensor: int, layout: Layout) -> tuple[Any, ...]:
        dims = self.reading.dims[tensor]
        shape: list[Any] = []
        for axis in layout:
            size: Any = 1
            for piece in axis:
                size = size * dims[piece]
            shape.append(size)
        return tuple(shape)

    def _give(self, op: Operation) -> None:
        """Give the function's outputs among ``op``'s results their new values."""
        places = self.reading.places
        for var in op.outputs:
            if not is_output(var) or var not in places or places[var][0] not in self.touched:
                continue
            builder = self._builder(op)
            new = self._have(*places[var], builder)
            if new is not var:
                alone = new.op is not None and not is_output(new) and new not in self._outputs.values()
                self._outputs[var] = new if alone else builder.identity(x=new)

    def _rebuild(self, op: Operation, number: int) -> None:
        node, mode = self.reading.nodes[number], self.modes[number]
        relation = self.reading.graph.relations[number]
        assert node.spec is not None
        assert mode.template is not None
        builder = self._builder(op)
        given: dict[Var, Var] = {}
        for (var, _), port, layout in zip(node.spec.operands, relation.ports, mode.layouts, strict=False):
            given[var] = self._have(port.tensor, layout, builder)
        constants = {var: self._constant(var, keys, node, mode.template, builder) for var, keys in node.spec.constants}
        inputs: dict[str, Any] = {}
        for name, value in node.inputs.items():
            if isinstance(value, Var):
                inputs[name] = given.get(value, constants.get(value, value))
            elif value is not None:
                inputs[name] = tuple(given.get(each, each) for each in value)
        if isinstance(relation, Product):
            turned_x, turned_y, swapped = mode.flags
            inputs["transpose_x"], inputs["transpose_y"] = turned_x, turned_y
            if swapped:
                inputs = {**inputs, "x": inputs["y"], "y": inputs["x"]}
                inputs["transpose_x"], inputs["transpose_y"] = turned_y, turned_x
        else:
            first = relation.ports[0]
            shape = self._shape(first.tensor, mode.layouts[0])
            inputs.update(ENTRIES[op.op_type].attributes(op, node.spec, _place(node, mode.template, shape)))
        inputs = {name: value for name, value in inputs.items() if value is not None}
        results = flattened(getattr(builder, op.op_type)(**inputs))
        ports = relation.ports[len(node.spec.operands) :]
        layouts = mode.layouts[len(node.spec.operands) :]
        for old, new, port, layout in zip(op.outputs, results, ports, layouts, strict=True):
            shape = self._shape(port.tensor, layout)
            if new.dtype != old.dtype or len(shape) != len(shape_of(new)):
                raise PassError(f"layout-bc1s: {op.op_type} {op.name} would be {shape_of(new)}, not {shape}")
            refine_shape(new, shape)
            self._make(new, port.tensor, layout)

    def _constant(self, var: Var, keys: Keys, node: Node, template: Template, op: Builder) -> Var:
        """A constant operand, laid out as the template says."""
        array = constant(var)
        if all(key is None for key in keys):
            small = array.ndim <= len(template)
            return var if small else self._held(op, var, array.reshape((1,) * len(template)), template)
        own: list[int] = []
        for key in keys:
            own += [] if key is None else node.labels[key]
        pieces = array.reshape([node.sizes[label] for label in own])
        order = [own.index(label) for label in flat(template) if label in own]
        pieces = pieces.transpose(order)
        wide: list[int] = []
        whole: list[int] = []
        shape: list[int] = []
        for axis in template:
            partly = any(label in own for label in axis)
            wide += [node.sizes[label] if label in own else 1 for label in axis]
            whole += [node.sizes[label] if partly else 1 for label in axis]
            shape.append(int(np.prod([node.sizes[label] for label in axis], dtype=np.int64)) if partly else 1)
        wider: Any = np.broadcast_to(pieces.reshape(wide), whole)
        return self._held(op, var, wider.reshape(shape), template)

    def _held(self, op: Builder, var: Var, array: Any, template: Template) -> Var:
        key = (var, array.shape, array.tobytes() if array.size <= 64 else template)
        held = self._constants.get(key)
        if held is None:
            held = op.const(val=np.array(array, order="C"), name=f"{var.name}_laid")
            self._constants[key] = held
        return held


def _place(node: Node, template: Template, shape: tuple[Any, ...]) -> Place:
    spec = node.spec
    assert spec is not None
    where = {label: at for at, axis in enumerate(template) for label in axis}
    at = {key: where[node.labels[key][0]] for key in spec.whole if key in node.labels}
    drops = {label for key in spec.drops for label in node.labels[key]}
    dropped = tuple(index for index, axis in enumerate(template) if drops.intersection(axis))
    return Place(len(template), at, dropped, shape)

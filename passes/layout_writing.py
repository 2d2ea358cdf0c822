"""Writes chosen layouts back into a function."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from math import prod
from typing import Any

import numpy as np

from milopt.building import Builder
from milopt.layout.forms import Layout, Step, flat, plan
from milopt.layout.relations import Mode, Product, Template
from milopt.mil import (
    Operation,
    Var,
    add_input,
    arguments,
    constant,
    dtype_name,
    is_output,
    is_symbolic,
    operations,
    remove_if_dead,
    remove_input,
    replace_input,
    replace_uses,
    shape_of,
    value_names,
)
from milopt.mil import flat as flattened
from milopt.passes.layout_ops import ENTRIES, Indices, Keys, Place
from milopt.passes.layout_reading import Edge, Node, Reading
from milopt.passes.refining import refined
from milopt.reports import NoMatch, require
from milopt.signature_layout import Relaid

__all__ = ["Writing"]


class Writing:
    """Rebuilds the ops of a function whose mode is not their original one, and the moves of the ``touched`` tensors.

    ``relaid`` are the inputs, outputs and states that have another layout then.
    """

    def __init__(self, reading: Reading, modes: Sequence[Mode], touched: AbstractSet[int]) -> None:
        self.reading = reading
        self.modes = modes
        self.touched = touched
        self._made: dict[tuple[int, Layout], Var] = {}
        self._starts: dict[int, Layout] = {}
        self._taken = value_names(reading.function)
        self._constants: dict[tuple[Any, ...], Var] = {}
        self._builders: list[Builder] = []
        self._vectors: dict[tuple[Any, ...], Var] = {}
        self._uses: dict[Var, Var] = {}
        self._outputs: dict[Var, Var] = {}
        # outputs in another layout, and new inputs and states by the old ones
        self._others: dict[Var, Var] = {}
        self._inputs: dict[Var, Var] = {}
        self._old: list[Operation] = []
        self.relaid: list[Relaid] = []

    def write(self) -> None:
        """Rewrite the function: :meth:`build`, and :meth:`put`."""
        self.build()
        self.put()

    def build(self) -> None:
        """Build what is new beside what is there. NoMatch where MIL refuses an op; the function is then as it was."""
        try:
            self._build()
        except BaseException as why:
            if isinstance(why, NoMatch):
                why.at = self._builders[-1].anchor
            self.undo()
            raise

    def undo(self) -> None:
        """Take away what was built."""
        for builder in reversed(self._builders):
            builder.undo()
        for new in self._inputs.values():
            remove_input(self.reading.function, new.name)

    def put(self) -> None:
        """Let what was built take the place of the rest."""
        function = self.reading.function
        function.set_outputs([self._others.get(var, var) for var in function.outputs])
        for var, new in self._others.items():
            _rename(new, var)
        for var, new in self._uses.items():
            replace_uses(var, new, after=new.op)
        for var, new in self._outputs.items():
            replace_uses(var, new)
            _rename(new, var)
        remove_if_dead(self._old)
        for op in reversed(self._old):  # a state is written again with what was written before
            if op.op_type == "coreml_update_state":
                given = op.inputs["value"].op
                op.enclosing_block.remove_ops([op])
                remove_if_dead([given] if given is not None else [])
        remove_if_dead(self._old)
        for var, new in self._inputs.items():
            replace_input(function, var.name, new.name)

    def _build(self) -> None:
        """Build what is new beside what is there, and note the ops that it takes the place of."""
        function = self.reading.function
        numbers = {node.op: at for at, node in enumerate(self.reading.nodes)}
        for var in list(function.inputs.values()):
            if var in self.reading.places:
                self._enter(var)
        for op in list(function.operations):
            if op in self.reading.accesses:
                edge = self.reading.accesses[op]
                if self._changes(edge.relation):
                    self._access(op, edge)
                    self._old.append(op)
                else:
                    self._keep(op)
            elif op in numbers:
                number = numbers[op]
                if self._changes(number):
                    self._rebuild(op, number)
                    self._old.append(op)
                else:
                    self._keep(op)
            elif op in self.reading.moves:
                self._old.append(op)
            self._give(op)

    def _enter(self, var: Var) -> None:
        """Take an input as it is, or as it will be."""
        tensor, layout = self.reading.places[var]
        edge = self.reading.inputs.get(var)
        if edge is None or not self._changes(edge.relation):
            self._make(var, tensor, layout)
            return
        chosen = self.modes[edge.relation].layouts[edge.port]
        self._make(self._input(var, self._shape(tensor, chosen)), tensor, chosen)
        self.relaid.append(self._relaid(var, tensor, layout, chosen))

    def _input(self, var: Var, shape: tuple[Any, ...], *, state: bool = False) -> Var:
        """A new input that will have the name of ``var``."""
        name = f"{var.name}_laid"
        while name in self._taken:
            name += "_"
        self._inputs[var] = add_input(self.reading.function, name, shape, dtype_name(var), state=state)
        return self._inputs[var]

    def _relaid(self, var: Var, tensor: int, before: Layout, after: Layout) -> Relaid:
        dims, pieces = self.reading.dims[tensor], flat(before)
        split = tuple(int(dims[piece]) for piece in pieces)
        perm = tuple(pieces.index(piece) for piece in flat(after))
        public, stored = (tuple(map(int, self._shape(tensor, each))) for each in (before, after))
        return Relaid(var.name, public, split, perm, stored)

    def _access(self, op: Operation, edge: Edge) -> None:
        """Read or write a state in its new layout."""
        mode, builder, places = self.modes[edge.relation], self._builder(op), self.reading.places
        old = op.inputs["input" if op.op_type == "read_state" else "state"]
        (tensor, _), layout = places[op.outputs[0]], mode.layouts[edge.port]
        if old not in self._inputs:
            public = tuple(map(int, shape_of(old)))
            order: tuple[int, ...] = mode.flags
            stored = tuple(public[at] for at in order)
            self._input(old, stored, state=True)
            self.relaid.append(Relaid(old.name, public, public, order, stored))
        state = self._inputs[old]
        if op.op_type == "read_state":
            made = builder.read_state(input=state)
        else:
            assert edge.other is not None
            value = self._have(places[op.inputs["value"]][0], mode.layouts[edge.other], builder)
            made = builder.coreml_update_state(state=state, value=value)
        self._make(made, tensor, layout)

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
        for var in dict.fromkeys(used):
            if var in places and places[var][0] in self.touched and var not in self._outputs:
                new = self._have(*places[var], self._builder(op))
                if new is not var:
                    self._uses[var] = new
        for var in op.outputs:
            if var in places:
                self._make(var, *places[var])

    def _have(self, tensor: int, layout: Layout, op: Builder) -> Var:
        """The tensor in a layout: each is made once."""
        here = self._starts[tensor]
        value = self._made[tensor, here]
        for step in plan(here, layout):
            known = self._made.get((tensor, step.to))
            value = self._step(value, tensor, here, step, op) if known is None else known
            self._made[tensor, step.to] = value
            here = step.to
        return value

    def _step(self, x: Var, tensor: int, here: Layout, step: Step, op: Builder) -> Var:
        shape = self._shape(tensor, step.to)
        made: Var
        if step.kind == "transpose":
            made = op.transpose(x=x, perm=list(step.axes))
        elif step.kind == "reshape":
            made = self._reshaped(x, here, step, shape, op)
        else:
            made = getattr(op, step.kind)(x=x, axes=list(step.axes))
        return refined(made, shape, op.anchor)

    def _reshaped(self, x: Var, here: Layout, step: Step, shape: tuple[Any, ...], op: Builder) -> Var:
        """MIL works out one length by itself; of several, the others are read off ``x``."""
        unknown = [at for at, dim in enumerate(shape) if is_symbolic(dim)]
        made: Var
        if len(unknown) < 2:
            made = op.reshape(x=x, shape=[-1 if is_symbolic(dim) else dim for dim in shape])
            return made
        if not step.regroups:
            made = op.squeeze(x=x, axes=[at for at, axis in enumerate(here) if not axis])
            made = op.expand_dims(x=made, axes=[at for at, axis in enumerate(step.to) if not axis])
            return made
        kept = [at for at in unknown if step.to[at] in here]
        require(len(kept) >= len(unknown) - 1, "several lengths that are not known are cut or joined")
        lengths = op.shape(x=x)
        entries: list[int | Var] = [-1 if is_symbolic(dim) else int(dim) for dim in shape]
        for at in kept[: len(unknown) - 1]:
            axis = np.array([here.index(step.to[at])], np.int32)
            entries[at] = op.gather(x=lengths, indices=axis)
        made = op.reshape(x=x, shape=self._vector(Indices(tuple(entries)), op))
        return made

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
        """Give what the function, or a nested block, returns of ``op``'s results its new values."""
        places = self.reading.places
        for var in op.outputs:
            if not is_output(var) or var not in places or places[var][0] not in self.touched:
                continue
            builder, (tensor, layout) = self._builder(op), places[var]
            edge = self.reading.outputs.get(var)
            chosen = layout if edge is None else self.modes[edge.relation].layouts[edge.port]
            new = self._have(tensor, chosen, builder)
            if new is var:
                continue
            taken = {*self._outputs.values(), *self._others.values()}
            alone = new.op is not None and not is_output(new) and new not in taken
            made = new if alone else builder.identity(x=new)
            if chosen == layout:
                self._outputs[var] = made
            else:
                self._others[var] = made
                self.relaid.append(self._relaid(var, tensor, layout, chosen))

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
        inputs = {
            name: self._vector(value, builder) if isinstance(value, Indices) else value
            for name, value in inputs.items()
        }
        results = flattened(getattr(builder, op.op_type)(**inputs))
        ports = relation.ports[len(node.spec.operands) :]
        layouts = mode.layouts[len(node.spec.operands) :]
        for old, new, port, layout in zip(op.outputs, results, ports, layouts, strict=True):
            require(new.dtype == old.dtype, "it would be of {}, not {}", dtype_name(new), dtype_name(old))
            refined(new, self._shape(port.tensor, layout), op)
            self._make(new, port.tensor, layout)

    def _constant(self, var: Var, keys: Keys, node: Node, template: Template, op: Builder) -> Var:
        """A constant operand, laid out as the template says."""
        array = constant(var)
        if all(key is None for key in keys):
            small = array.ndim <= len(template)
            return var if small else self._held(op, var, array.reshape((1,) * len(template)), ())
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
            shape.append(prod(node.sizes[label] for label in axis) if partly else 1)
        wider: Any = np.broadcast_to(pieces.reshape(wide), whole)
        return self._held(op, var, wider.reshape(shape), (tuple(order), tuple(wide)))

    def _vector(self, indices: Indices, op: Builder) -> Any:
        """An index vector: a constant, or a concat of numbers and of what is known when the program runs."""
        if all(isinstance(each, int) for each in indices.entries):
            return np.array(indices.entries, np.int32)
        if indices.entries not in self._vectors:
            values: list[Any] = []
            for each in indices.entries:
                if isinstance(each, Var):
                    values.append(each)
                elif values and not isinstance(values[-1], Var):
                    values[-1] = np.append(values[-1], np.int32(each))
                else:
                    values.append(np.array([each], np.int32))
            self._vectors[indices.entries] = op.concat(values=values, axis=0)
        return self._vectors[indices.entries]

    def _held(self, op: Builder, var: Var, array: Any, arranged: tuple[Any, ...]) -> Var:
        """``array``, which is ``var`` as ``arranged`` tells, as a constant that is made once."""
        key = (var, array.shape, arranged)
        held = self._constants.get(key)
        if held is None:
            held = op.const(val=np.array(array, order="C"), name=f"{var.name}_laid")
            self._constants[key] = held
        return held


def _place(node: Node, template: Template, shape: tuple[Any, ...]) -> Place:
    spec = node.spec
    assert spec is not None
    where = {label: at for at, axis in enumerate(template) for label in axis}
    at = {key: where[node.labels[key][0]] for key in spec.whole}
    drops = {label for key in spec.drops for label in node.labels[key]}
    dropped = tuple(index for index, axis in enumerate(template) if drops.intersection(axis))
    return Place(len(template), at, dropped, shape)


def _rename(new: Var, old: Var) -> None:
    """Give ``new`` the name of ``old``, and the other way round."""
    new.name, old.name = old.name, new.name
    assert new.op is not None
    if len(new.op.outputs) == 1:
        new.op.name = new.name

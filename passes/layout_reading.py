"""Reads a function into the model of :mod:`milopt.layout`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from milopt.layout.forms import OP, Layout, axes_of
from milopt.layout.graphs import Graph
from milopt.layout.relations import Along, Fixed, Free, OneByOne, OnRows, Port, Product, Relation, Tied
from milopt.mil import (
    Function,
    Operation,
    Var,
    arguments,
    constant,
    is_compressed,
    is_constant,
    is_output,
    is_state,
    is_symbolic,
    operations,
    shape_of,
    types,
)
from milopt.passes.layout_axes import MOVES, Axes, moved
from milopt.passes.layout_ops import ENTRIES, Keys, Spec

__all__ = ["Edge", "Node", "Reading", "read", "read_free"]


@dataclass(frozen=True)
class Node:
    """An op of the model: the program's op, what it demands, and the labels of its keys."""

    op: Operation | None
    spec: Spec | None
    labels: dict[int, tuple[int, ...]] = field(default_factory=dict[int, "tuple[int, ...]"])
    sizes: dict[int, int] = field(default_factory=dict[int, int])
    inputs: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Edge:
    """Where a value goes into the program or leaves it: a relation, and its ports at which the value is."""

    relation: int
    port: int
    other: int | None = None


@dataclass(frozen=True)
class Reading:
    """A function as a graph. ``places`` says of each value which tensor it is, in which layout.

    ``dims`` are the pieces of each tensor as the program has them: numbers, or symbols; ``moves`` the movement ops
    that the graph leaves out, with the elements that each moves. ``inputs`` and ``outputs`` are those that may take
    other layouts, and ``accesses`` the ops that read and write such states: ``port`` is their result, ``other`` the
    value written. ``disputed`` are ops whose types give one axis two sizes, and how: they keep the layouts they have.
    """

    function: Function
    graph: Graph
    nodes: list[Node]
    places: dict[Var, tuple[int, Layout]]
    dims: list[tuple[Any, ...]]
    moves: dict[Operation, float]
    inputs: dict[Var, Edge]
    outputs: dict[Var, Edge]
    accesses: dict[Operation, Edge]
    disputed: dict[Operation, str]


def read(function: Function, sequence: int) -> Reading:
    """The function as a graph, a symbolic dimension counted as ``sequence``."""
    return _Reader(function, sequence).read()


def read_free(
    functions: Mapping[str, Function], sequence: int, kept: Mapping[str, frozenset[str]]
) -> dict[str, Reading]:
    """Functions as one graph in which inputs, outputs and states may take other layouts, but those ``kept``, by name.

    A state has one layout in all functions. So have ``past_x`` and ``present_x``, and an input with the output that is
    a concat of it, since what comes out as one goes in as the other.
    """
    own = {name: kept.get(name, frozenset()) for name in functions}
    shared = _Shared(functions, own)
    readers: list[_Reader] = []
    readings: dict[str, Reading] = {}
    for name, function in functions.items():
        readers.append(_Reader(function, sequence, shared, own[name] | shared.pinned, readers[0] if readers else None))
        readings[name] = readers[-1].read()
    for tie in shared.ties.values():
        tie.close(readers[0])
    return readings


def _is_loose(var: Var) -> bool:
    """Whether it could be in another layout: of fixed shape, with several axes longer than 1."""
    shape = shape_of(var)
    return not any(map(is_symbolic, shape)) and sum(dim > 1 for dim in shape) > 1


def _may_enter(var: Var, kept: frozenset[str]) -> bool:
    """Whether the outside may be asked to give an input in another layout."""
    return var.name not in kept and not is_output(var) and _is_loose(var)


def _may_leave(var: Var, kept: frozenset[str]) -> bool:
    """Whether the outside may be asked to take an output in another layout."""
    return var.name not in kept and var.op is not None and _is_loose(var)


_ACCESSES = ("read_state", "coreml_update_state")


@dataclass
class _Tie:
    """What becomes one :class:`Tied` relation: ports of values that come from outside and of values that go there."""

    given: list[Port] = field(default_factory=list[Port])
    made: list[Port] = field(default_factory=list[Port])
    entries: list[tuple[dict[Any, Edge], Any, int | None, int | None]] = field(
        default_factory=list["tuple[dict[Any, Edge], Any, int | None, int | None]"]
    )

    def add(self, held: dict[Any, Edge], key: Any, given: Port | None = None, made: Port | None = None) -> None:
        """``given`` is an operand (what is written, or an output), ``made`` a result (what is read, or an input)."""
        self.entries.append((held, key, _appended(self.given, given), _appended(self.made, made)))

    def close(self, reader: _Reader) -> None:
        number = reader.graph.relate(Tied((*self.given, *self.made)), len(self.given))
        reader.nodes.append(Node(None, None))
        for held, key, given, made in self.entries:
            if made is not None:
                held[key] = Edge(number, len(self.given) + made, given)
            elif given is not None:
                held[key] = Edge(number, given)


def _appended(ports: list[Port], port: Port | None) -> int | None:
    """The place at which ``port``, if there is one, now is in the list."""
    if port is None:
        return None
    ports.append(port)
    return len(ports) - 1


class _Shared:
    """What functions have in common: states, and caches that go in and come out."""

    def __init__(self, functions: Mapping[str, Function], kept: Mapping[str, frozenset[str]]) -> None:
        self.ties: dict[str, _Tie] = {}
        states = [(var, each) for each in functions.values() for var in each.inputs.values() if is_state(var)]
        refused = {var.name for var, function in states if not (_is_accessed(var, function) and _is_loose(var))}
        self.states = {var.name for var, _ in states} - refused
        pairs = [(past.name, present.name) for function in functions.values() for past, present in _pasts(function)]
        fixed: set[str] = set()
        for name, function in functions.items():
            fixed.update(each for each, var in function.inputs.items() if not _may_enter(var, kept[name]))
            fixed.update(var.name for var in function.outputs if not _may_leave(var, kept[name]))
        tight = {past for past, present in pairs if not fixed.isdisjoint((past, present))}
        self.partners = dict(pairs)
        self.pinned = frozenset(each for pair in pairs if pair[0] in tight for each in pair)

    def tie(self, name: str) -> _Tie:
        return self.ties.setdefault(name, _Tie())


def _is_accessed(state: Var, function: Function) -> bool:
    """Whether the state is only read, and written with values that the program computes, and not in a nested block.

    All of them must have its shape.
    """
    shape = shape_of(state)
    return all(
        user.op_type in _ACCESSES
        and user.enclosing_block is function
        and shape_of(user.outputs[0]) == shape
        and (user.op_type == "read_state" or not is_constant(user.inputs["value"]))
        and (user.op_type == "read_state" or shape_of(user.inputs["value"]) == shape)
        for user in state.child_ops
    )


def _pasts(function: Function) -> Iterator[tuple[Var, Var]]:
    """Inputs with the outputs that hold them and more."""
    outputs = {var.name: var for var in function.outputs}
    for name, var in function.inputs.items():
        joined = (op.outputs[0] for op in var.child_ops if op.op_type == "concat" and is_output(op.outputs[0]))
        present = next(joined, None)
        if name.startswith("past_"):
            present = outputs.get(name.replace("past_", "present_", 1), present)
        if present is not None and present.rank == var.rank:
            yield var, present


class _Reader:
    def __init__(
        self,
        function: Function,
        sequence: int,
        shared: _Shared | None = None,
        kept: frozenset[str] = frozenset(),
        first: _Reader | None = None,
    ) -> None:
        self.function = function
        self.sequence = sequence
        self.shared = shared
        self.kept = kept
        self.axes = Axes()
        self.specs: dict[Operation, Spec] = {}
        self.graph: Graph = Graph() if first is None else first.graph
        self.nodes: list[Node] = [] if first is None else first.nodes
        self.dims: list[tuple[Any, ...]] = [] if first is None else first.dims
        self.sizes: dict[int, list[int]] = {} if first is None else first.sizes
        self.places: dict[Var, tuple[int, Layout]] = {}
        self.moves: dict[Operation, float] = {}
        self.inputs: dict[Var, Edge] = {}
        self.outputs: dict[Var, Edge] = {}
        self.accesses: dict[Operation, Edge] = {}
        self.disputed: dict[Operation, str] = {}

    def read(self) -> Reading:
        self._unite_accesses()
        for op in self.function.operations:
            if _is_move(op):
                self.axes.add_move(op)
            elif (spec := self._spec(op)) is not None:
                self._unite(op, spec)
        self.axes.settle()
        for var in self.function.inputs.values():
            if _is_tensor(var):
                self._add_input(var)
        for op in self.function.operations:
            if op.op_type != "const":
                self._add(op)
        for var, (tensor, layout) in self.places.items():
            if is_output(var) and not self._frees(var):
                self.graph.tensors[tensor].wanted.add(layout)
        return Reading(
            self.function,
            self.graph,
            self.nodes,
            self.places,
            self.dims,
            self.moves,
            self.inputs,
            self.outputs,
            self.accesses,
            self.disputed,
        )

    def _unite_accesses(self) -> None:
        """What is read of a state and what is written to it are cut alike."""
        for var in self.function.inputs.values():
            if self.shared is None or not is_state(var) or var.name not in self.shared.states:
                continue
            values = [user.outputs[0] for user in var.child_ops]
            values += [user.inputs["value"] for user in var.child_ops if user.op_type == "coreml_update_state"]
            for axes in zip(*([(value, at) for at in range(value.rank)] for value in values), strict=True):
                self.axes.unite(axes)

    def _add_input(self, var: Var) -> None:
        port = self._new(var)
        if self.shared is None or not _may_enter(var, self.kept):
            self._relate_alone(Fixed((port,)), given=False)
        elif var.name in self.shared.partners:
            self.shared.tie(var.name).add(self.inputs, var, made=port)
        else:
            self.inputs[var] = Edge(self._relate_alone(Free((port,)), given=False), 0)

    def _frees(self, var: Var) -> bool:
        """Let an output take any layout, if it may."""
        if self.shared is None or var not in self.function.outputs:
            return False
        if not _may_leave(var, self.kept):
            return False
        past = next((past for past, present in self.shared.partners.items() if present == var.name), None)
        if past is None:
            self.outputs[var] = Edge(self._relate_alone(Free((self._port(var),)), given=True), 0)
        else:
            self.shared.tie(past).add(self.outputs, var, given=self._port(var))
        return True

    def _relate_alone(self, relation: Relation, *, given: bool) -> int:
        """Add what is no op, and is given its values or makes them."""
        self.nodes.append(Node(None, None))
        return self.graph.relate(relation, len(relation.ports) if given else 0)

    def _add_access(self, op: Operation) -> bool:
        """Let what is read of a state or written to it be one of its tied values."""
        if self.shared is None or op.op_type not in _ACCESSES:
            return False
        state: Var = op.inputs["input" if op.op_type == "read_state" else "state"]
        if state.name not in self.shared.states:
            held = op.inputs.get("value", op.outputs[0])
            if shape_of(held) != shape_of(state):
                self.disputed[op] = f"{held.name} is {shape_of(held)}, the state {shape_of(state)}"
            return False
        given = self._port(op.inputs["value"]) if op.op_type == "coreml_update_state" else None
        self.shared.tie(state.name).add(self.accesses, op, given=given, made=self._new(op.outputs[0]))
        return True

    def _spec(self, op: Operation) -> Spec | None:
        entry = ENTRIES.get(op.op_type)
        if entry is None or not _is_tensor(op.outputs[0]):
            return None
        spec = entry.read(op)
        if spec is None:
            return None
        known = {var for var, _ in spec.operands}
        if any(map(is_constant, known)):
            return None
        others = {var for _, var in arguments(op)} - known - {*spec.vectors}
        # a compressed weight is as constant as any other
        return spec if all(is_constant(var) or is_compressed(var) for var in others) else None

    def _unite(self, op: Operation, spec: Spec) -> None:
        """Take an op at its word about which axes are one, unless the sizes in its types say that they are not."""
        by_key: dict[int | None, list[tuple[Var, int]]] = {}
        wrong: list[str | None] = []
        given = {key for _, keys in (*spec.operands, *spec.constants) for key in keys if key is not None}
        for var, keys in (*spec.operands, *spec.results):
            for at, (key, dim) in enumerate(zip(keys, shape_of(var), strict=True)):
                lost = spec.kind == "product" and key not in (None, spec.product[2], *spec.results[0][1])
                if lost or (dim != 1 and key not in given):
                    wrong.append(f"{var.name} has {dim} on axis {at}, where the others have 1")
                elif key not in spec.whole:
                    by_key.setdefault(key, []).append((var, at))
        why = next(filter(None, chain(wrong, map(self.axes.disagreement, by_key.values()))), None)
        if why is not None:
            self.disputed[op] = why
            return
        self.specs[op] = spec
        for axes in by_key.values():
            self.axes.unite(axes)

    def _new(self, var: Var) -> Port:
        """The port that makes a new tensor of ``var``."""
        pieces = self.axes.pieces(var)
        sizes = [size for axis in pieces for size in axis]
        tensor = self.graph.tensor(map(self._nominal, sizes))
        self.dims.append(tuple(map(self._dim, sizes)))
        layout: list[tuple[int, ...]] = []
        count = 0
        for axis in pieces:
            layout.append(tuple(range(count, count + len(axis))))
            count += len(axis)
        self.places[var] = (tensor, tuple(layout))
        self.sizes[tensor] = sizes
        return Port(tensor, tuple(layout))

    def _dim(self, size: int) -> Any:
        for prime, symbol in self.axes.numbering.symbols.items():
            if size % prime == 0:
                return symbol * (size // prime)
        return size

    def _nominal(self, size: int) -> int:
        for prime in self.axes.numbering.symbols:
            if size % prime == 0:
                return size // prime * self.sequence
        return size

    def _port(self, var: Var) -> Port:
        return Port(*self.places[var])

    def _add(self, op: Operation) -> None:
        if _is_move(op) and op not in self.axes.opaque:
            tensor, layout = self.places[op.inputs["x"]]
            after = moved(op, layout, self.sizes[tensor], self.axes.numbering.shape(op.outputs[0]))
            if after is not None:
                self.places[op.outputs[0]] = (tensor, after)
                # what the count of M takes a movement op for: every transpose, and reshapes that regroup
                moves = op.op_type == "transpose" or axes_of(layout) != axes_of(after)
                self.moves[op] = (self.graph.tensors[tensor].elements if moves else 0.0) + OP
                return
        if self._add_access(op):
            return
        spec = self.specs.get(op)
        inputs = [var for _, var in arguments(op) if var in self.places]
        for inner in (each for block in op.blocks for each in operations(block)):
            inputs += [var for _, var in arguments(inner) if var in self.places]
        inner_outputs = [var for block in op.blocks for var in block.outputs if var in self.places]
        ports = [self._port(var) for var in dict.fromkeys([*inputs, *inner_outputs])] if spec is None else []
        if spec is not None:
            self._relate(op, spec)
            vectors = tuple(self._port(var) for var in spec.vectors if var in self.places)
            if vectors:
                self._relate_alone(Fixed(vectors), given=True)
            return
        results = [self._new(var) for var in op.outputs if _is_tensor(var)]
        self.graph.relate(Fixed((*ports, *results)), len(ports))
        self.nodes.append(Node(op, None))

    def _relate(self, op: Operation, spec: Spec) -> None:
        made = [(self._new(var), keys) for var, keys in spec.results]
        given = [(self._port(var), keys) for var, keys in spec.operands]
        labels: dict[int, tuple[int, ...]] = {}
        sizes: dict[int, int] = {}

        def labelled(port: Port, keys: Keys) -> Port:
            groups: dict[int, tuple[int, ...]] = {}
            for axis, key in zip(port.home, keys, strict=True):
                if key is None:
                    continue
                if key in spec.whole:
                    labels.setdefault(key, (len(sizes),))
                    sizes.setdefault(labels[key][0], 0)
                    groups[labels[key][0]] = axis
                    continue
                if key not in labels:
                    first = len(sizes)
                    labels[key] = tuple(range(first, first + len(axis)))
                    for label, piece in zip(labels[key], axis, strict=True):
                        sizes[label] = self.sizes[port.tensor][piece]
                for label, piece in zip(labels[key], axis, strict=True):
                    groups[label] = (piece,)
            return Port(port.tensor, port.home, groups)

        ports = tuple(labelled(port, keys) for port, keys in (*given, *made))
        symbols = self.axes.numbering.symbols
        unknown = frozenset(label for label, size in sizes.items() if any(size % prime == 0 for prime in symbols))
        self.graph.relate(_relation(spec, ports, labels, unknown), len(given))
        self.nodes.append(Node(op, spec, labels, sizes, dict(op.inputs)))


def _relation(
    spec: Spec, ports: tuple[Port, ...], labels: dict[int, tuple[int, ...]], unknown: frozenset[int]
) -> Relation:
    everything = frozenset(label for each in labels.values() for label in each)

    def of(keys: frozenset[int]) -> frozenset[int]:
        return frozenset(label for key in keys for label in labels[key])

    if spec.kind == "product":
        rows, columns, inner = (labels.get(key, ()) for key in spec.product)
        return Product(ports, inner, rows, columns)
    settings: dict[str, Any] = {
        "operands": len(spec.operands),
        "broadcasts": spec.broadcasts,
        "constants": tuple(of(frozenset(key for key in keys if key is not None)) for _, keys in spec.constants),
        "unknown": unknown,
        "whole": of(spec.whole),
        "drops": of(spec.drops),
        "labels": everything,
    }
    if spec.channel is not None:
        x, _ = ports
        channel, rank = labels[spec.channel][0], len(x.home)
        if spec.kind == "linear":  # constraint L20: of rank 3 at most, but for those that are there
            return OnRows(ports, **settings, channel=channel, rank=max(3, rank))
        return OneByOne(ports, **settings, channel=channel, batch=_batch(x), rank=rank)
    return Along(ports, **settings)


def _batch(port: Port) -> tuple[int, ...]:
    """The labels of axis 0."""
    return tuple(label for label, group in port.groups.items() if group and group[0] in port.home[0])


def _is_tensor(var: Var) -> bool:
    return bool(types.is_tensor(var.sym_type) or types.is_scalar(var.sym_type))


def _is_move(op: Operation) -> bool:
    if op.op_type not in MOVES or is_constant(op.inputs["x"]):
        return False
    return op.op_type != "transpose" or constant(op.inputs["perm"]) is not None

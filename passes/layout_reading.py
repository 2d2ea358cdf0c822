"""Reads a function into the model of :mod:`milopt.layout`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from milopt.layout.forms import OP, Layout
from milopt.layout.graphs import Graph
from milopt.layout.relations import Along, Fixed, OneByOne, Port, Product, Relation
from milopt.mil import (
    Function,
    Operation,
    Var,
    arguments,
    constant,
    is_constant,
    is_output,
    is_state,
    operations,
    types,
)
from milopt.passes.layout_axes import MOVES, Axes, moved, segments
from milopt.passes.layout_ops import ENTRIES, Keys, Spec

__all__ = ["Node", "Reading", "read"]


@dataclass(frozen=True)
class Node:
    """An op of the model: the program's op, what it demands, and the labels of its keys."""

    op: Operation | None
    spec: Spec | None
    labels: dict[int, tuple[int, ...]] = field(default_factory=dict[int, "tuple[int, ...]"])
    sizes: dict[int, int] = field(default_factory=dict[int, int])
    inputs: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Reading:
    """A function as a graph. ``places`` says of each value which tensor it is, in which layout.

    ``dims`` are the pieces of each tensor as the program has them: numbers, or symbols; ``moves`` the movement ops
    that the graph leaves out, with the elements that each moves.
    """

    function: Function
    graph: Graph
    nodes: list[Node]
    places: dict[Var, tuple[int, Layout]]
    dims: list[tuple[Any, ...]]
    moves: dict[Operation, float]


def read(function: Function, sequence: int) -> Reading:
    """The function as a graph, a symbolic dimension counted as ``sequence``."""
    return _Reader(function, sequence).read()


class _Reader:
    def __init__(self, function: Function, sequence: int) -> None:
        self.function = function
        self.sequence = sequence
        self.axes = Axes()
        self.sizes: dict[int, list[int]] = {}
        self.specs: dict[Operation, Spec] = {}
        self.graph = Graph()
        self.nodes: list[Node] = []
        self.places: dict[Var, tuple[int, Layout]] = {}
        self.dims: list[tuple[Any, ...]] = []
        self.moves: dict[Operation, float] = {}

    def read(self) -> Reading:
        for op in self.function.operations:
            if op.op_type == "const":
                continue
            if _is_move(op):
                self.axes.add_move(op)
            elif (spec := self._spec(op)) is not None:
                self.specs[op] = spec
                self._unite(spec)
        self.axes.settle()
        for var in self.function.inputs.values():
            if _is_tensor(var):
                self.graph.relate(Fixed((self._new(var),)), 0)
                self.nodes.append(Node(None, None))
        for op in self.function.operations:
            if op.op_type != "const":
                self._add(op)
        for var, (tensor, layout) in self.places.items():
            if is_output(var):
                self.graph.tensors[tensor].wanted.add(layout)
        return Reading(self.function, self.graph, self.nodes, self.places, self.dims, self.moves)

    def _spec(self, op: Operation) -> Spec | None:
        entry = ENTRIES.get(op.op_type)
        if entry is None or op.blocks or not all(map(_is_tensor, op.outputs)):
            return None
        inputs = [var for _, var in arguments(op) if not is_constant(var)]
        if not all(map(_is_tensor, inputs)):
            return None
        spec = entry.read(op)
        if spec is None:
            return None
        known = {var for var, _ in spec.operands}
        if any(map(is_constant, known)):
            return None
        others = [var for var in inputs if var not in known]
        # a compressed weight is as constant as any other
        if any(var.op is None or not var.op.op_type.startswith("constexpr_") for var in others):
            return None
        return spec

    def _unite(self, spec: Spec) -> None:
        by_key: dict[int, list[tuple[Var, int]]] = {}
        for var, keys in (*spec.operands, *spec.results):
            for at, key in enumerate(keys):
                if key is not None and key not in spec.whole:
                    by_key.setdefault(key, []).append((var, at))
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
        if _is_move(op) and op not in self.axes.opaque and op.inputs["x"] in self.places:
            tensor, layout = self.places[op.inputs["x"]]
            after = moved(op, layout, self.sizes[tensor], self.axes.numbering.shape(op.outputs[0]))
            if after is not None:
                self.places[op.outputs[0]] = (tensor, after)
                self.moves[op] = self._moved(op, tensor) + OP
                return
        spec = self.specs.get(op)
        inputs = [var for _, var in arguments(op) if var in self.places]
        for inner in (each for block in op.blocks for each in operations(block)):
            inputs += [var for _, var in arguments(inner) if var in self.places]
        inner_outputs = [var for block in op.blocks for var in block.outputs if var in self.places]
        ports = [self._port(var) for var in dict.fromkeys([*inputs, *inner_outputs])] if spec is None else []
        if spec is not None:
            self._relate(op, spec)
            return
        results = [self._new(var) for var in op.outputs if _is_tensor(var)]
        self.graph.relate(Fixed((*ports, *results)), len(ports))
        self.nodes.append(Node(op, None))

    def _moved(self, op: Operation, tensor: int) -> float:
        """The elements that the count of ``M`` takes a movement op for: every transpose, and reshapes that regroup."""
        x, y = op.inputs["x"], op.outputs[0]
        if op.op_type == "reshape":
            pairs = segments(self.axes.numbering.shape(x), self.axes.numbering.shape(y))
            if pairs is not None and all(len(a) == len(b) == 1 for a, b in pairs):
                return 0.0
        elif op.op_type != "transpose":
            return 0.0
        return self.graph.tensors[tensor].elements

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
        self.graph.relate(_relation(spec, ports, labels), len(given))
        self.nodes.append(Node(op, spec, labels, sizes, dict(op.inputs)))


def _relation(spec: Spec, ports: tuple[Port, ...], labels: dict[int, tuple[int, ...]]) -> Relation:
    everything = frozenset(label for each in labels.values() for label in each)

    def of(keys: frozenset[int]) -> frozenset[int]:
        return frozenset(label for key in keys for label in labels[key])

    if spec.kind == "product":
        rows, columns, inner = (labels.get(key, ()) for key in spec.product)
        return Product(ports, inner, rows, columns)
    settings: dict[str, Any] = {
        "operands": len(spec.operands),
        "whole": of(spec.whole),
        "drops": of(spec.drops),
        "labels": everything,
    }
    if spec.channel is not None:
        channel = labels[spec.channel][0]
        return OneByOne(ports, **settings, channel=channel, batch=_batch(ports[0]), rank=len(ports[0].home))
    return Along(ports, **settings)


def _batch(port: Port) -> tuple[int, ...]:
    """The labels of axis 0."""
    return tuple(label for label, group in port.groups.items() if group and group[0] in port.home[0])


def _is_tensor(var: Var) -> bool:
    return not is_state(var) and bool(types.is_tensor(var.sym_type) or types.is_scalar(var.sym_type)) and var.rank >= 0


def _is_move(op: Operation) -> bool:
    if op.op_type not in MOVES or is_constant(op.inputs["x"]):
        return False
    if not _is_tensor(op.inputs["x"]) or not _is_tensor(op.outputs[0]):
        return False
    return op.op_type != "transpose" or constant(op.inputs["perm"]) is not None

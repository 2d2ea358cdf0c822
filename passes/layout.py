"""The layout of every value of a program, such that the fewest elements are moved."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from milopt.errors import MiloptError, PassError
from milopt.layout.forms import Layout, plan
from milopt.layout.graphs import Choice
from milopt.layout.regions import regions
from milopt.layout.relations import OneByOne
from milopt.mil import Function, Operation, is_symbolic
from milopt.package import Model
from milopt.passes.layout_reading import Reading, read
from milopt.passes.layout_writing import Writing
from milopt.pipeline import Pass
from milopt.reports import NoMatch, Report

__all__ = ["LayoutBc1s"]


@dataclass(frozen=True)
class LayoutBc1s(Pass):
    """Transposes and reshapes around 1x1 convolutions  ->  values in (B, C, 1, S), and the fewest moves.

    Each op works in the layouts that :data:`milopt.passes.layout_ops.ENTRIES` allows it; constants are laid out anew,
    and a value is moved once for every layout that it is needed in. Of all choices the pass takes one that moves the
    fewest elements; it is a minimum of this model, which :mod:`milopt.layout` describes, and the report says by which
    method it was found. Each move that remains is among the report's misses, with its elements and its reason.

    Inputs, outputs and states keep their layouts. A part of the program stays to the letter

    1. where it has no 1x1 convolution;
    2. where no choice moves fewer elements than the transposes and reshapes that are there (but their spelling changes
       where coremltools' ``common::compose_conv1d`` would make a convolution of rank 3 of them).

    A dimension that is only known when the program runs is counted as ``sequence``.
    """

    name: ClassVar[str] = "layout-bc1s"
    after: ClassVar[tuple[str, ...]] = (
        "canonicalize",
        "fuse-sdpa",
        "kv-to-state",
        "pack-gqa",
        "decompose-sdpa",
        "linear-to-conv",
    )

    sequence: int = 64

    def __post_init__(self) -> None:
        if self.sequence < 1:
            raise PassError(f"{self.name}: sequence is a length of at least 1, not {self.sequence}")

    def run(self, model: Model) -> Report:
        report = Report(self.name)
        for name, function in model.functions.items():
            self._lay_out(name, function, report)
        return report

    def _lay_out(self, name: str, function: Function, report: Report) -> None:
        reading = read(function, self.sequence)
        report.tried += len(reading.moves)
        try:
            choice = reading.graph.choose()
        except MiloptError as error:
            report.decline(name, "", "{}", str(error))
            return
        old = [0.0] * len(reading.graph.tensors)
        for op, elements in reading.moves.items():
            old[reading.places[op.outputs[0]][0]] += elements
        found = regions(reading.graph, choice.modes, old)
        exposed = {tensor for node, tensor in _convolutions(reading) if _is_exposed(node)}
        better = [
            each
            for each in found
            if each.convolves and (each.after < each.before or exposed.intersection(each.tensors))
        ]  # 1, 2
        if not better:
            return
        touched = {tensor for each in better for tensor in each.tensors}
        kept = [
            mode if all(port.tensor in touched for port in relation.ports) else relation.original
            for mode, relation in zip(choice.modes, reading.graph.relations, strict=True)
        ]
        try:
            Writing(reading, kept, touched).write()
        except NoMatch as why:
            report.decline(name, why.at or "", why.text, *why.arguments)
            return
        self._tell(name, reading, Choice(kept, choice.cost, choice.methods), touched, report)
        before, after = sum(each.before for each in better), sum(each.after for each in better)
        how = ", ".join(choice.methods)
        report.notes.append(f"{name}: {before:,.0f} elements moved are {after:,.0f} now, a minimum by {how}")
        changed = sum(mode != each.original for mode, each in zip(kept, reading.graph.relations, strict=True))
        report.applied += max(changed, 1)

    def _tell(self, name: str, reading: Reading, choice: Choice, touched: set[int], report: Report) -> None:
        """Note each move that remains, what it costs, and which ops it stands between."""
        graph = reading.graph
        for tensor, start, end, users in graph.moves(choice.modes):
            elements = graph.move(tensor, start, end)
            if tensor not in touched or elements < 1:
                continue
            producer = graph.tensors[tensor].producer
            assert producer is not None
            maker = reading.nodes[producer[0]].op
            kinds = dict.fromkeys(_kind(reading, user) for user in users)
            report.decline(
                name,
                maker or _input_of(reading, tensor),
                "{:,.0f} elements move by {}: {} makes {}, {} needs {}",
                elements,
                " and ".join(step.kind for step in plan(start, end)),
                maker.op_type if maker is not None else "an input",
                _shape(reading, tensor, start),
                " and ".join(kinds),
                _shape(reading, tensor, end),
                rule="move",
            )


def _convolutions(reading: Reading) -> Iterator[tuple[Operation, int]]:
    """The 1x1 convolutions, with the tensors they read."""
    for node, relation in zip(reading.nodes, reading.graph.relations, strict=True):
        if isinstance(relation, OneByOne) and node.op is not None:
            yield node.op, relation.ports[0].tensor


def _is_exposed(conv: Operation) -> bool:
    """Whether it is fed as ``common::compose_conv1d`` looks for: by expand_dims of rank 3, perhaps transposed."""
    maker = conv.inputs["x"].op
    turned = maker is not None and maker.op_type == "transpose"
    if maker is not None and turned:
        maker = maker.inputs["x"].op
    if maker is None or maker.op_type != "expand_dims" or maker.inputs["x"].rank != 3:
        return False
    following = "transpose" if turned else "squeeze"
    return any(user.op_type == following for user in conv.outputs[0].child_ops)


def _kind(reading: Reading, number: int | None) -> str:
    op = None if number is None else reading.nodes[number].op
    return "an output" if op is None else op.op_type


def _input_of(reading: Reading, tensor: int) -> Any:
    return next(var for var, (number, _) in reading.places.items() if number == tensor)


def _shape(reading: Reading, tensor: int, layout: Layout) -> str:
    """A layout as a reader knows it: (1, 256, 1, 64)."""
    shape: list[str] = []
    for axis in layout:
        size: Any = 1
        for piece in axis:
            size = size * reading.dims[tensor][piece]
        shape.append("s" if is_symbolic(size) else str(size))
    return f"({', '.join(shape)})"

"""Which parts of a program are laid out anew, and how."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from milopt.layout.graphs import Graph
from milopt.layout.regions import regions
from milopt.layout.relations import Mode, OneByOne, Relation
from milopt.mil import Operation
from milopt.passes.layout_reading import Reading

__all__ = ["Settled", "settle"]


@dataclass(frozen=True)
class Settled:
    """A mode for each relation, and the tensors of the parts that change: none where it is best to leave all as it is.

    ``before`` and ``after`` are the elements that the moves of these parts move, ``methods`` how the minimum was found.
    ``excess`` is how many fewer there may be all the same, where the search for the minimum ended at its limit of work.
    """

    modes: list[Mode]
    touched: frozenset[int]
    before: float
    after: float
    methods: tuple[str, ...]
    excess: int = 0

    @property
    def proof(self) -> str:
        """What is known of ``after``, as a report says it."""
        how = ", ".join(self.methods)
        if not self.excess:
            return f"a minimum by {how}" if how else "the only choice"
        return f"at most {self.excess:,} above the minimum, which {how} did not reach within its limit of work"

    def moved(self, graph: Graph) -> int:
        """The elements that are moved in the end, in parts that stay as well."""
        return graph.moved(self.modes)


def settle(readings: Sequence[Reading], wanted: type[Relation] = OneByOne) -> Settled:
    """The choice for functions that are one graph. MiloptError where the minimum can't be found.

    A part stays where it has no 1x1 convolution (or nothing else that is ``wanted``), or where nothing moves less than
    what is there (and coremltools' ``common::compose_conv1d`` finds nothing in it).
    """
    graph = readings[0].graph
    choice = graph.choose()
    old = [0.0] * len(graph.tensors)
    for reading in readings:
        for op, elements in reading.moves.items():
            old[reading.places[op.outputs[0]][0]] += elements
    exposed = {tensor for op, tensor in _convolutions(readings) if _is_exposed(op)}
    better = [
        each
        for each in regions(graph, choice.modes, old, wanted)
        if each.convolves and (each.after < each.before or exposed.intersection(each.tensors))
    ]
    touched = frozenset(tensor for each in better for tensor in each.tensors)
    kept = [
        mode if all(port.tensor in touched for port in relation.ports) else relation.original
        for mode, relation in zip(choice.modes, graph.relations, strict=True)
    ]
    before, after = sum(each.before for each in better), sum(each.after for each in better)
    return Settled(kept, touched, before, after, choice.methods, choice.excess)


def _convolutions(readings: Iterable[Reading]) -> Iterator[tuple[Operation, int]]:
    """The 1x1 convolutions, with the tensors they read."""
    for reading in readings:
        for node, relation in zip(reading.nodes, reading.graph.relations, strict=True):
            if isinstance(relation, OneByOne):
                assert node.op is not None
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

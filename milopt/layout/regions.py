"""Parts of a graph whose layouts depend on each other, and what laying them out anew is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import floor

from milopt.layout.graphs import Graph
from milopt.layout.relations import Fixed, Mode, OneByOne, Relation

__all__ = ["Region", "regions"]


@dataclass
class Region:
    """Tensors, the elements that moves of them move before and after, and whether a 1x1 convolution uses them."""

    tensors: list[int] = field(default_factory=list[int])
    before: float = 0.0
    after: float = 0.0
    convolves: bool = False


def regions(
    graph: Graph, modes: Sequence[Mode], before: Sequence[float], wanted: type[Relation] = OneByOne
) -> list[Region]:
    """The tensors by region. ``before`` are the elements that the program as it is moves of each.

    One ``convolves`` where it has a relation that is ``wanted``.
    """
    parent = list(range(len(graph.tensors)))

    def root(of: int) -> int:
        while parent[of] != of:
            parent[of] = parent[parent[of]]
            of = parent[of]
        return of

    for relation in graph.relations:
        if not isinstance(relation, Fixed):
            for port in relation.ports[1:]:
                parent[root(port.tensor)] = root(relation.ports[0].tensor)
    found: dict[int, Region] = {}
    for tensor in range(len(graph.tensors)):
        region = found.setdefault(root(tensor), Region())
        region.tensors.append(tensor)
        region.before += floor(before[tensor])
    for relation in graph.relations:
        if isinstance(relation, wanted):
            for port in relation.ports:
                found[root(port.tensor)].convolves = True
    for tensor, start, end, _ in graph.moves(modes):
        found[root(tensor)].after += floor(graph.move(tensor, start, end))
    return list(found.values())

"""Which op of one block is which of another: the longest runs of equal keys, then what lies between them.

Names play no part. Ops between two runs are paired by type, in order; where as many are left on both sides, with
results of the same types, they are taken for each other too. The rest came or went, or moved.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher

from milopt.difference.graph import Node

__all__ = ["Alignment", "align"]


@dataclass
class Alignment:
    """Pairs of equal keys (``same``), in another place (``moved``), of other keys (``changed``), and the rest."""

    same: list[tuple[Node, Node]] = field(default_factory=list[tuple[Node, Node]])
    moved: list[tuple[Node, Node]] = field(default_factory=list[tuple[Node, Node]])
    changed: list[tuple[Node, Node]] = field(default_factory=list[tuple[Node, Node]])
    removed: list[Node] = field(default_factory=list[Node])
    added: list[Node] = field(default_factory=list[Node])


def align(before: Sequence[Node], after: Sequence[Node]) -> Alignment:
    found = Alignment()
    for equal, old, new in _runs(before, after, [each.key for each in before], [each.key for each in after]):
        if equal:
            found.same += zip(old, new, strict=True)
        else:
            _between(found, old, new)
    _moves(found)
    return found


def _runs(
    before: Sequence[Node], after: Sequence[Node], old: list[str], new: list[str]
) -> Iterator[tuple[bool, Sequence[Node], Sequence[Node]]]:
    """``(equal, ops before, ops after)`` in order. Equal ends are cut off first: the matcher is slow on repetitions."""
    shorter = min(len(old), len(new))
    start = next((index for index in range(shorter) if old[index] != new[index]), shorter)
    rest = shorter - start
    end = next((index for index in range(rest) if old[-1 - index] != new[-1 - index]), rest)
    yield True, before[:start], after[:start]
    last, other = len(old) - end, len(new) - end
    matcher = SequenceMatcher(None, old[start:last], new[start:other], autojunk=False)
    for tag, a, b, c, d in matcher.get_opcodes():
        yield tag == "equal", before[start + a : start + b], after[start + c : start + d]
    yield True, before[last:], after[other:]


def _between(found: Alignment, before: Sequence[Node], after: Sequence[Node]) -> None:
    for equal, old, new in _runs(before, after, [each.type for each in before], [each.type for each in after]):
        alike = [[[value.type for value in node.outputs] for node in nodes] for nodes in (old, new)]
        if equal or alike[0] == alike[1]:
            found.changed += zip(old, new, strict=True)
        else:
            found.removed += old
            found.added += new


def _moves(found: Alignment) -> None:
    """What was removed in one place and added in another; the first of several equal ones to the first."""
    places: dict[str, list[Node]] = {}
    for node in found.removed:
        places.setdefault(node.key, []).append(node)
    for node in [each for each in found.added if each.key in places]:
        if nodes := places[node.key]:
            old = nodes.pop(0)
            found.moved.append((old, node))
            found.removed.remove(old)
            found.added.remove(node)

"""Which rules to try at an op, and where to try them again when something has changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from milopt.engine.forms import OpPattern, parts_of, walk
from milopt.matching import Matcher
from milopt.mil import Operation
from milopt.pattern import build, root_types

if TYPE_CHECKING:
    from milopt.rules import Rule

__all__ = ["Index", "Tried"]


@dataclass(frozen=True)
class Tried:
    """A rule and what finds its pattern. ``order`` is the rule's place among those applied together."""

    rule: Rule[Any]
    matcher: Matcher
    order: int


class Index:
    """Rules by the types of the ops that their patterns end in."""

    def __init__(self, rules: Sequence[Rule[Any]]) -> None:
        self._by_type: dict[str, list[Tried]] = {}
        self._edges: dict[str, set[str]] = {}
        self._depth = 0
        self._size = 0
        for order, rule in enumerate(rules):
            root, names = build(rule.pattern)
            tried = Tried(rule, Matcher(root, names), order)
            for op_type in dict.fromkeys(root_types(root)):
                self._by_type.setdefault(op_type, []).append(tried)
            self._add(root)

    def _add(self, root: Any) -> None:
        ops = [form for form in walk(root) if isinstance(form, OpPattern)]
        self._size = max(self._size, len(ops))
        depths: dict[OpPattern, int] = {}
        self._depth = max(self._depth, *(_depth(op, depths) for op in ops))
        for op in ops:
            for below in _below(op):
                self._edges.setdefault(below.op_type, set()).add(op.op_type)

    def __contains__(self, op: Operation) -> bool:
        return op.op_type in self._by_type

    def at(self, op: Operation) -> Sequence[Tried]:
        """The rules to try at ``op``, in their order."""
        return self._by_type.get(op.op_type, ())

    def within(self, op: Operation) -> bool:
        """Whether ``op`` may be inside a match, now that something no longer uses it: few enough others do."""
        if op.op_type not in self._edges:
            return False
        users: set[Operation] = set()
        for user in (user for var in op.outputs for user in var.child_ops):
            users.add(user)
            if len(users) > self._size:
                return False
        return True

    def affected(self, changed: Iterable[Operation]) -> Iterator[Operation]:
        """The ops at which a pattern may be found that has one of ``changed`` in it: those, and what lies above them.

        It goes from an op to its users where a pattern does, and as far as the deepest pattern reaches.
        """
        seen: dict[Operation, None] = {}
        frontier = list(dict.fromkeys(changed))
        for _ in range(self._depth):
            fresh = [op for op in frontier if op not in seen]
            seen.update(dict.fromkeys(fresh))
            frontier = list(dict.fromkeys(user for op in fresh for user in self._users(op)))
        yield from (op for op in seen if op in self)

    def _users(self, op: Operation) -> Iterator[Operation]:
        above = self._edges.get(op.op_type)
        if above:
            yield from (user for var in op.outputs for user in var.child_ops if user.op_type in above)


def _below(op: OpPattern) -> Iterator[OpPattern]:
    """The ops whose outputs a pattern has as inputs of ``op``, directly."""
    todo = list(parts_of(op))
    while todo:
        form = todo.pop()
        if isinstance(form, OpPattern):
            yield form
        else:
            todo.extend(parts_of(form))


def _depth(op: OpPattern, known: dict[OpPattern, int]) -> int:
    """How many ops lie on the longest way through the pattern that ends in ``op``."""
    if op not in known:
        known[op] = 1 + max((_depth(each, known) for each in _below(op)), default=0)
    return known[op]

"""What has been found of a pattern so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from milopt.engine.forms import Chain, OneOf, OpPattern, walk
from milopt.mil import Operation

__all__ = ["Found", "Tags"]


@dataclass(frozen=True)
class Found:
    """A partial match. Extending makes a new one, so that backtracking needs no undo.

    ``links`` says of each chain that was met which of its links was taken; the number behind the last is its value.
    """

    values: dict[str, Any] = field(default_factory=dict[str, Any])
    tags: dict[str, str] = field(default_factory=dict[str, str])
    links: dict[Chain, int] = field(default_factory=dict[Chain, int])
    ops: dict[OpPattern, Operation] = field(default_factory=dict[OpPattern, Operation])

    def bind(self, name: str, value: Any) -> Found:
        return Found({**self.values, name: value}, self.tags, self.links, self.ops)

    def choose(self, tag: str, name: str) -> Found:
        if self.tags.get(tag) == name:
            return self
        return Found(self.values, {**self.tags, tag: name}, self.links, self.ops)

    def follow(self, chain: Chain, link: int) -> Found:
        return Found(self.values, self.tags, {**self.links, chain: link}, self.ops)

    def take(self, pattern: OpPattern, op: Operation) -> Found:
        return Found(self.values, self.tags, self.links, {**self.ops, pattern: op})


class Tags:
    """What the alternatives and chains of a pattern are called on a match."""

    def __init__(self, root: Any) -> None:
        forms = list(walk(root))
        self._choices = tuple(dict.fromkeys(form.tag for form in forms if isinstance(form, OneOf)))
        chains = [form for form in forms if isinstance(form, Chain)]
        self._shorter = {chain: _shorter(chain) for chain in chains}
        inner = set(self._shorter.values())
        self._chains = {chain.tag: chain for chain in chains if chain not in inner}

    def of(self, found: Found) -> dict[str, Any]:
        """By tag: the alternative chosen, the ops of the chain; ``None`` for what the match did not come by."""
        chosen: dict[str, Any] = {tag: found.tags.get(tag) for tag in self._choices}
        for tag, chain in self._chains.items():
            chosen[tag] = self._ops(chain, found) if chain in found.links else None
        return chosen

    def _ops(self, chain: Chain | None, found: Found) -> tuple[Operation, ...]:
        """The ops of a chain, from its value on."""
        if chain is None or (link := found.links[chain]) == len(chain.links):
            return ()
        last = chain.links[link]
        op = found.ops[last if isinstance(last, OpPattern) else last.op]
        return (*self._ops(self._shorter[chain], found), op)


def _shorter(chain: Chain) -> Chain | None:
    """The chain with one op less; ``None`` where that is the value."""
    inner = (each for each in walk(chain.links) if isinstance(each, Chain) and each.tag == chain.tag)
    return next(inner, None)

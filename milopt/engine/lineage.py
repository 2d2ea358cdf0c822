"""Rules that fire without end are stopped, and named."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from milopt.errors import PassError
from milopt.mil import Operation
from milopt.reports import place_of

__all__ = ["Lineage"]

# Rewrites of one place that are allowed beside one for every op of the function: whoever moves an op along all others
# needs that many. And how many rewrites in all, for each op: rules may also multiply what they work on.
_AT_ONE_PLACE = 100
_FOR_EACH_OP = 100
_REMEMBERED = 8  # rules that are named
_LONGEST = 60  # characters of a name: new names are made of old ones, so that a chain of them is long


@dataclass(frozen=True)
class _Age:
    """How many rewrites that left no fewer ops an op has come through, and which rules made the last of them."""

    rewrites: int = 0
    rules: tuple[str, ...] = ()


class Lineage:
    """What became of what. ``size`` is the number of ops that the function ``function`` had at first.

    Only rewrites that leave as many ops as before count: the others come to an end by themselves.
    """

    def __init__(self, function: str, size: int) -> None:
        self._function = function
        self._size = size
        self._count = 0
        self._ages: dict[Operation, _Age] = {}

    def rewritten(self, rule: str, matched: Iterable[Operation], gone: int, made: list[Operation]) -> None:
        """``rule`` made ops of ``matched``, of which ``gone`` no longer exist. Raises PassError beyond all bounds."""
        ages = [age for op in matched if (age := self._ages.pop(op, None)) is not None]
        oldest = max(ages, key=lambda age: age.rewrites, default=_Age())
        if len(made) < gone:
            age = oldest
        else:
            self._count += 1
            age = _Age(oldest.rewrites + 1, (*oldest.rules, rule)[-_REMEMBERED:])
        if age.rewrites:
            self._ages.update(dict.fromkeys(made, age))
        if age.rewrites > _AT_ONE_PLACE + self._size:
            self._stop(age, f"{age.rewrites} rewrites of one place", made)
        if self._count > _FOR_EACH_OP * (1 + self._size):
            self._stop(age, f"{self._count} rewrites", made)

    def _stop(self, age: _Age, bound: str, made: list[Operation]) -> None:
        rules = ", ".join(dict.fromkeys(age.rules))
        name = place_of(made[-1]) if made else ""
        short = name if len(name) <= _LONGEST else f"{name[:_LONGEST]}..."
        place = f", the last at {short!r}" if made else ""
        raise PassError(f"{rules}: still changing function {self._function!r} after {bound}{place}")

"""What a pass did, what it declined to do, and why."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from milopt.metrics import Metric
from milopt.mil import Operation, Target, Var
from milopt.signature import CacheSignature

if TYPE_CHECKING:
    from milopt.verify.verdict import Verdict

__all__ = [
    "Miss",
    "NoMatch",
    "Report",
    "RuleStats",
    "how_to_upgrade",
    "place_of",
    "raised_at",
    "require",
    "require_opset",
]


class NoMatch(Exception):
    """A rule does not apply here. The reason is a format string and its arguments, formatted only when read."""

    def __init__(self, text: str, *args: object, at: object = None) -> None:
        super().__init__(text, *args)
        self.text = text
        self.arguments = args
        self.at = at

    def __str__(self) -> str:
        return self.text.format(*self.arguments)


def require(condition: object, text: str, *args: object, at: object = None) -> None:
    """Raise :class:`NoMatch` with a reason (a lowercase sentence) and a place, unless ``condition`` holds."""
    if not condition:
        raise NoMatch(text, *args, at=at)


_NEEDS_OPSET = "needs {}, the function is {}"


def require_opset(opset: Target, needed: Target) -> None:
    """Raise :class:`NoMatch` unless a function of ``opset`` may hold ops of ``needed``; see :meth:`Report.too_old`."""
    require(opset >= needed, _NEEDS_OPSET, needed.name, opset.name)


def how_to_upgrade(needed: str) -> str:
    """What to give, on the command line or in Python, to raise a model to the opset ``needed`` ("iOS18")."""
    return f'--minimum-deployment-target {needed} (milopt.upgrade(model, "{needed}"))'


def raised_at(why: BaseException, file: str | None = None) -> str:
    """The file and line where a reason was raised, or of the last call in ``file`` that led to it; else empty."""
    at, step = "", why.__traceback__
    while step is not None:
        code = step.tb_frame.f_code
        if code not in (require.__code__, require_opset.__code__) and file in (None, code.co_filename):
            at = f"{code.co_filename}:{step.tb_lineno}"
        step = step.tb_next
    return at


def place_of(at: object) -> str:
    """The name of the op or value that a reason points to."""
    if isinstance(at, Operation):
        return at.outputs[0].name if at.outputs else at.name
    return at.name if isinstance(at, Var) else str(at or "")


@dataclass(frozen=True)
class Miss:
    """One place where a rule or pass stayed away.

    ``depth`` counts the ops that had matched before the reason came up: the deepest misses are the nearest ones.
    ``declined`` says that the pattern matched as a whole, and the rule then had a reason to stay away. ``root`` is the
    op that the rule was tried at, ``matched`` the ops that its pattern had found, and ``source`` the file and line of
    the part of the pattern that wanted something else; a pass that is no set of rules leaves them out.
    """

    rule: str
    function: str
    place: str
    depth: int
    text: str
    arguments: tuple[object, ...] = ()
    declined: bool = False
    root: str = ""
    matched: tuple[str, ...] = ()
    source: str = ""

    @property
    def near(self) -> bool:
        """Whether more than the last op of the pattern was there."""
        return self.declined or self.depth > 1

    @property
    def reason(self) -> str:
        return self.text.format(*self.arguments)

    def __str__(self) -> str:
        met = f"matched {self.depth} ops, then " if self.depth and not self.declined else ""
        return f"{self.place}: {met}{self.reason}"


@dataclass
class RuleStats:
    """What one rule did: places tried, places where its pattern was found, rewrites made, and the time all took."""

    tried: int = 0
    matched: int = 0
    applied: int = 0
    seconds: float = 0.0

    def add(self, other: RuleStats) -> None:
        self.tried += other.tried
        self.matched += other.matched
        self.applied += other.applied
        self.seconds += other.seconds


@dataclass
class Report:
    """The result of a pass; true when it changed the program.

    ``tried`` counts the places looked at, ``applied`` the rewrites made. A pipeline's report holds one report per pass
    in ``parts``. ``signature`` is set by a pass that changes the program's inputs, outputs or states on purpose,
    ``metric`` by one whose rewrites are to be compared otherwise than the pass itself declares. ``verdicts`` is what
    comparing gave: the pipeline's holds all, a pass's own those of the comparisons that ended with it. ``rules`` counts
    by rule, where the pass is a set of them.
    """

    name: str
    applied: int = 0
    tried: int = 0
    seconds: float = 0.0
    misses: list[Miss] = field(default_factory=list[Miss])
    notes: list[str] = field(default_factory=list[str])
    parts: list[Report] = field(default_factory=list["Report"])
    signature: CacheSignature | None = None
    metric: Metric | None = None
    verdicts: list[Verdict] = field(default_factory=list["Verdict"])
    rules: dict[str, RuleStats] = field(default_factory=dict[str, RuleStats])

    def __bool__(self) -> bool:
        return self.applied > 0 or any(self.parts)

    def decline(self, function: str, at: object, text: str, *args: object, rule: str = "") -> None:
        """Note a place that a pass found and left alone, and why. A NoMatch that is being handled gives the source."""
        why = sys.exc_info()[1]
        source = raised_at(why) if isinstance(why, NoMatch) else ""
        self.misses.append(Miss(rule or self.name, function, place_of(at), 0, text, args, declined=True, source=source))

    def all_misses(self) -> Iterator[Miss]:
        yield from self.misses
        for part in self.parts:
            yield from part.all_misses()

    def too_old(self) -> list[str]:
        """One line for each function whose opset lacks the ops that the pass writes: which, and how to upgrade it."""
        found = dict.fromkeys((miss.function, miss.arguments) for miss in self.misses if miss.text == _NEEDS_OPSET)
        return [
            f"{self.name} writes ops of {needed}, function {function!r} is {opset}: upgrade with "
            f"{how_to_upgrade(str(needed))}"
            for function, (needed, opset) in found
        ]

    def nearest(self, count: int = 5) -> list[Miss]:
        """The misses that got furthest, at most ``count``: refusals of whole matches first, then by depth.

        Those for a function's opset are not among them: :meth:`too_old` has one line for all.
        """
        near = [miss for miss in self.all_misses() if miss.near and miss.text != _NEEDS_OPSET]
        return sorted(near, key=lambda miss: (not miss.declined, -miss.depth))[:count]

    @property
    def missed(self) -> int:
        """How many places matched more than their root, and still were left alone."""
        return sum(miss.near for miss in self.all_misses())

    def extend(self, other: Report) -> None:
        """Add another report's counts and reasons to this one's."""
        self.applied += other.applied
        self.tried += other.tried
        self.misses += other.misses
        for name, stats in other.rules.items():
            self.rules.setdefault(name, RuleStats()).add(stats)
        self.notes += [note for note in other.notes if note not in self.notes]
        self.signature = other.signature or self.signature
        self.metric = other.metric or self.metric

    def __str__(self) -> str:
        lines = [f"{self.name}: applied {self.applied}, missed {self.missed}"]
        lines += [f"  - {miss}" for miss in self.nearest()]
        lines += [f"  - {line}" for line in (*self.too_old(), *self.notes)]
        lines += [line for part in self.parts for line in str(part).splitlines()]
        return "\n".join(lines)

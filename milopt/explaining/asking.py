"""``explain``: run a pass on a copy, and collect what it says."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

from milopt.errors import MiloptError
from milopt.explaining.excerpts import Excerpts
from milopt.explaining.explanation import Explanation, Spot
from milopt.mil import Program
from milopt.package import Model, load
from milopt.pipeline import Pass, Pipeline
from milopt.reports import Miss, Report
from milopt.rewrites import Rewrites
from milopt.rules import Rule, apply, rules_of

__all__ = ["explain"]


def explain(
    what: str | Pass | Pipeline | Rule[Any] | Sequence[Rule[Any]],
    model: str | os.PathLike[str] | Model | Program,
    op: str | None = None,
    *,
    function: str | None = None,
    most: int = 5,
) -> Explanation:
    """What a pass would do to ``model``, which stays as it is, and why it leaves the rest alone.

    ``what`` is a pass or its text; of several (``"canonicalize,fuse-sdpa"``) the last is explained, on what the others
    leave. A rule, or several that are applied together, will do too. ``op`` asks about one op or value by name: then
    every rule that was tried at it, or whose match it was part of, tells. ``function`` limits the pass to one function,
    ``most`` the number of places told of. :class:`~milopt.errors.MiloptError`, with near names, for a name that the
    model does not have.
    """
    *earlier, last = _passes(what)
    work = load(model).clone()
    if function is not None:
        work.function(function)
    only = nullcontext(work) if function is None else work.only([function])
    with only:
        for each in earlier:
            each.run(work)
        before = Excerpts(work.clone().program)
        work.rewrites = rewrites = Rewrites()
        try:
            report = last.run(work)
        finally:
            work.rewrites = None
        after = Excerpts(work.program)
        return _Answer(last, report, rewrites, before, after, most).about(op, function)


@dataclass(frozen=True)
class _Rules(Pass):
    """Rules that are part of no pass yet."""

    name: ClassVar[str] = "the rules"

    given: tuple[Rule[Any], ...]

    def run(self, model: Model) -> Report:
        return apply(self.given, model)

    def __str__(self) -> str:
        return " + ".join(each.name for each in self.given)


def _passes(what: str | Pass | Pipeline | Rule[Any] | Sequence[Rule[Any]]) -> tuple[Pass, ...]:
    pipeline = Pipeline.parse(what) if isinstance(what, str) else what
    if not isinstance(pipeline, (Pass, Pipeline)):
        return (_Rules(rules_of(pipeline)),)
    passes = pipeline.passes if isinstance(pipeline, Pipeline) else (pipeline,)
    if not passes:
        raise MiloptError("there is no pass to explain: the pipeline is empty")
    return passes


@dataclass(frozen=True)
class _Change:
    """A rewrite, or an op that a pass without rules takes away or replaces."""

    rule: str
    function: str
    place: str
    ops: tuple[str, ...]
    what: str


class _Answer:
    def __init__(
        self, last: Pass, report: Report, rewrites: Rewrites, before: Excerpts, after: Excerpts, most: int
    ) -> None:
        self.last, self.report, self.rewrites = last, report, rewrites
        self.before, self.after, self.most = before, after, most

    def about(self, op: str | None, function: str | None) -> Explanation:
        made, misses, remark = self._made(), self._nearest(), ""
        if op is not None:
            found = self._find(op, function)
            named = {(each, name) for each, name, _ in found}
            made = [each for each in made if any((each.function, name) in named for name in each.ops)]
            misses = [miss for miss in self._every() if _concerns(miss, named)]
            if not made and not misses:
                remark = self._untouched(op, found[0][2])
        elif not self.report and not self.report.missed:
            remark = "nothing comes near; what got furthest:" if misses else "it finds nothing to begin with"
        most = self.most if op is None else None
        spots = [*self._spots(made)[:most], *self._spots(misses)[:most]]
        count, done = (self.report.missed, self.report.applied) if op is None else (len(misses), len(made))
        return Explanation(
            str(self.last), done, count, tuple(spots), (*self.report.too_old(), *self.report.notes), op, remark
        )

    def _every(self) -> list[Miss]:
        """All reasons, also those that the pass keeps out of its report."""
        known = [*self.report.all_misses(), *self.rewrites.misses.values()]
        every = list({(miss.rule, miss.function, miss.root, miss.place, miss.reason): miss for miss in known}.values())
        return sorted(every, key=lambda miss: (not miss.declined, -miss.depth))

    def _nearest(self) -> list[Miss]:
        """What the report calls near; where nothing is, the best of the rest."""
        near = self.report.nearest(self.report.missed)
        return near or ([] if self.report else self._every())

    def _made(self) -> list[_Change]:
        """The rewrites of rules; of a pass that has none, the ops that are gone or others afterwards."""
        if self.rewrites.made or not self.report:
            return [_Change(each.rule.name, each.function, each.place, each.ops, "") for each in self.rewrites.made]
        changes: list[_Change] = []
        for function, place, kind in self.before.ops():
            after = {other for _, _, other in self.after.find(place, function)}
            if kind not in after and (after or kind != "const"):
                what = f"{kind} becomes {', '.join(sorted(after))}" if after else f"{kind} goes"
                changes.append(_Change(self.last.name, function, place, (place,), what))
        return changes

    def _find(self, op: str, function: str | None) -> list[tuple[str, str, str]]:
        found = [*self.before.find(op, function), *self.after.find(op, function)]
        if not found:
            names = sorted({*self.before.names(function)})
            near = difflib.get_close_matches(op, names, n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise MiloptError(f"there is no op or value named {op!r}{hint}")
        return found

    def _untouched(self, op: str, kind: str) -> str:
        roots = {(miss.function, miss.root) for miss in self._every() if miss.root}
        kinds = sorted({kind for function, name in roots for _, _, kind in self.after.find(name, function)})
        tried = f"; its rules were tried at: {', '.join(kinds)}" if kinds else ""
        return f"{op} ({kind}) is part of nothing that {self.last.name} looked at{tried}"

    def _spots(self, found: Sequence[_Change] | Sequence[Miss]) -> list[Spot]:
        """Places where the same is true of are told of once."""
        groups: dict[tuple[object, ...], list[_Change | Miss]] = {}
        for each in found:
            groups.setdefault(_what(each), []).append(each)
        return [self._spot(first, tuple(_named(each, first) for each in others)) for first, *others in groups.values()]

    def _spot(self, each: _Change | Miss, also: tuple[str, ...]) -> Spot:
        """A rewrite shows what was there; a reason holds for what the pass leaves."""
        if isinstance(each, _Change):
            excerpt = self._excerpt(each, each.ops, self.before, self.after)
            place, depth = each.place, len(each.ops)
            return Spot(True, each.rule, each.function, place, place, depth, each.what, also=also, excerpt=excerpt)
        return Spot(
            False,
            each.rule,
            each.function,
            each.place,
            each.root,
            each.depth,
            each.reason,
            each.declined,
            each.source,
            also,
            self._excerpt(each, each.matched, self.after, self.before),
        )

    def _excerpt(self, each: _Change | Miss, matched: tuple[str, ...], *sides: Excerpts) -> tuple[str, ...]:
        texts = (side.around(each.function, each.place, matched) for side in sides)
        return tuple(next((text for text in texts if text is not None), ()))


def _what(each: _Change | Miss) -> tuple[object, ...]:
    """The same for places where the same is to be said."""
    if isinstance(each, _Change):
        return each.rule, len(each.ops), each.what
    return each.rule, each.depth, each.reason, each.source


def _named(each: _Change | Miss, first: _Change | Miss) -> str:
    return each.place if each.function == first.function else f"{each.function}: {each.place}"


def _concerns(miss: Miss, named: set[tuple[str, str]]) -> bool:
    return any((miss.function, name) in named for name in (miss.place, miss.root, *miss.matched))

"""Applies rules to a function until none of them matches, looking again only where something changed."""

from __future__ import annotations

import inspect
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from milopt.building import Builder
from milopt.engine.index import Index
from milopt.engine.lineage import Lineage
from milopt.engine.placement import Placement
from milopt.engine.replacing import Replacement, checked
from milopt.matching import Match, Matcher
from milopt.mil import Function, Operation, is_removed, operations, value_names
from milopt.reports import Miss, NoMatch, Report, RuleStats, place_of, raised_at

if TYPE_CHECKING:
    from milopt.rewrites import Rewrites
    from milopt.rules import Rule

__all__ = ["Driver"]


@dataclass
class _Missed:
    """Why the rules stayed away from an op, by their order, when ``rewrites`` had been made."""

    reasons: dict[int, Miss]
    rewrites: int


class Driver:
    """Rules on one function, the blocks in it included.

    Ops are looked at in program order, then those that a rewrite may have brought nearer to a match, first come first
    served. A rule may look beyond its pattern: what it declined is tried again at the end, if anything has changed.
    """

    def __init__(
        self, index: Index, name: str, function: Function, report: Report, rewrites: Rewrites | None = None
    ) -> None:
        self._index = index
        self._name = name
        self._report = report
        self._rewrites = rewrites
        self._taken = value_names(function)
        self._placement = Placement()
        ops = list(operations(function))
        self._lineage = Lineage(name, sum(op.op_type != "const" for op in ops))
        self._todo = deque(op for op in ops if op in index)
        self._waiting = set(self._todo)
        self._missed: dict[Operation, _Missed] = {}
        self._applied = 0

    def run(self) -> None:
        while True:
            while self._todo:
                op = self._todo.popleft()
                self._waiting.discard(op)
                if self._rewrites is not None and self._rewrites.full:
                    continue
                if not is_removed(op):
                    self._visit(op)
            self._enqueue(op for op, missed in self._missed.items() if self._declined(missed))
            if not self._todo:
                break
        misses = [miss for op, each in self._missed.items() if not is_removed(op) for miss in each.reasons.values()]
        self._report.misses += misses
        if self._rewrites is not None:
            self._rewrites.missed(misses)

    def _declined(self, missed: _Missed) -> bool:
        """Whether a rule whose pattern was there may think better of it now."""
        full = self._rewrites is not None and self._rewrites.full
        return not full and missed.rewrites < self._applied and any(miss.declined for miss in missed.reasons.values())

    def _enqueue(self, ops: Iterable[Operation]) -> None:
        for op in ops:
            if op not in self._waiting and not is_removed(op):
                self._waiting.add(op)
                self._todo.append(op)

    def _visit(self, op: Operation) -> None:
        missed = self._missed[op] = _Missed({}, self._applied)
        for tried in self._index.at(op):
            stats = self._report.rules.setdefault(tried.rule.name, RuleStats())
            stats.tried += 1
            self._report.tried += 1
            begun = time.perf_counter()
            try:
                miss = self._try(tried.rule, tried.matcher, op, stats)
            finally:
                stats.seconds += time.perf_counter() - begun
            if miss is None:
                return
            missed.reasons[tried.order] = miss

    def _try(self, rule: Rule[Any], matcher: Matcher, op: Operation, stats: RuleStats) -> Miss | None:
        """Rewrite at ``op`` if the rule allows; else why not."""
        declined: Miss | None = None
        for count, match in enumerate(matcher.matches(op)):
            stats.matched += count == 0
            builder = Builder(match.root, self._taken, self._placement.anchor(match))
            try:
                facts = rule.check(match)
                result = rule.rewrite(builder, match, facts)
                replacement = checked(rule.name, builder, match, result, self._placement)
            except NoMatch as why:
                builder.undo()
                declined = declined or self._refusal(rule, match, op, why)
                continue
            except BaseException:
                builder.undo()
                raise
            stats.applied += 1
            self._apply(rule, match, replacement)
            return None
        return declined or self._nearest(rule, matcher, op)

    def _apply(self, rule: Rule[Any], match: Match, replacement: Replacement) -> None:
        report, builder = self._report, replacement.builder
        report.notes += [note for note in builder.notes if note not in report.notes]
        if self._rewrites is not None:
            self._rewrites.note(rule, self._name, match.ops)
        report.applied += 1
        self._applied += 1
        changed, lost = replacement.make(self._placement)
        gone = sum(is_removed(op) for op in match.ops)
        made = [op for op in builder.built if op.op_type != "const" and not is_removed(op)]
        self._enqueue(self._index.affected([*changed, *filter(self._index.within, lost)]))
        self._enqueue(op for op in lost if op in self._index)  # of a root with several outputs one may be free now
        self._lineage.rewritten(rule.name, match.ops, gone, made)

    def _refusal(self, rule: Rule[Any], match: Match, op: Operation, why: NoMatch) -> Miss:
        return Miss(
            rule.name,
            self._name,
            place_of(why.at if why.at is not None else match.root),
            len(match.ops),
            why.text,
            why.arguments,
            declined=True,
            root=place_of(op),
            matched=tuple(map(place_of, match.ops)),
            source=raised_at(why, inspect.unwrap(type(rule).check).__code__.co_filename),
        )

    def _nearest(self, rule: Rule[Any], matcher: Matcher, op: Operation) -> Miss:
        text, args = matcher.why
        return Miss(
            rule.name,
            self._name,
            place_of(matcher.where),
            max(matcher.depth, 0),
            text,
            args,
            root=place_of(op),
            matched=tuple(map(place_of, matcher.matched)),
            source=matcher.source,
        )

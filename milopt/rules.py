"""Rules: a pattern, a condition, a replacement; and how they are applied."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from milopt.building import Builder
from milopt.engine.driver import Driver
from milopt.engine.index import Index
from milopt.errors import PassError
from milopt.matching import Match
from milopt.mil import Program, flat
from milopt.pattern import Ops
from milopt.reports import Report

__all__ = ["Rule", "apply", "rules_of"]

Facts = TypeVar("Facts")


class Rule(ABC, Generic[Facts]):
    """A rewrite of a few ops: ``pattern`` says what, ``check`` says when, ``rewrite`` says into what.

    A rule holds no state between calls. See :mod:`milopt.pattern` for how patterns are written.
    """

    @property
    def name(self) -> str:
        return type(self).__name__

    @abstractmethod
    def pattern(self, op: Ops, /, *args: Any, **kwargs: Any) -> Any:
        """The ops to look for; the parameters after ``op`` are the pattern's variables."""

    @abstractmethod
    def check(self, m: Match, /) -> Facts:
        """Facts that ``rewrite`` needs; raises NoMatch, through :func:`require`, where the rule must stay away."""

    @abstractmethod
    def rewrite(self, op: Builder, m: Match, facts: Facts, /) -> Any:
        """Build the replacement with ``op`` and return what takes the place of ``m.replaced``, the roots' outputs.

        A value, or a tuple of as many as are replaced. It is built before the root; of several roots, before the last
        one or what uses one of them earlier.
        """


def rules_of(given: Rule[Any] | Sequence[Rule[Any]]) -> tuple[Rule[Any], ...]:
    """One rule or several as a tuple. Raises PassError for anything else, a class that was not called among it."""
    several: tuple[Any, ...] = flat(given)
    for each in several:
        if isinstance(each, type) and issubclass(each, Rule):
            raise PassError(f"{each.__name__} is a class of rules: write {each.__name__}()")
        if not isinstance(each, Rule):
            raise PassError(f"{each!r} is no milopt.Rule")
    return several


def apply(rules: Rule[Any] | Sequence[Rule[Any]], model: Any, *, function: str | None = None) -> Report:
    """Apply rules wherever they match, in every function and nested block, until none does.

    ``model`` is a :class:`milopt.Model` or a PyMIL program, and is changed in place. A rewrite that is refused at any
    moment leaves the program as it was, to the names that coremltools would give next. Raises PatternError where a
    rule's pattern is wrong, PassError when rules keep firing without end: it names them; or where there is no such
    function.
    """
    several = rules_of(rules)
    program: Program = getattr(model, "program", model)
    if function is not None and function not in program.functions:
        raise PassError(f"no function {function!r}; this model has: {', '.join(program.functions)}")
    report = Report(" + ".join(rule.name for rule in several))
    start = time.perf_counter()
    index = Index(several)
    for name, each in list(program.functions.items()):
        if function in (None, name):
            Driver(index, name, each, report, getattr(model, "rewrites", None)).run()
    report.seconds = time.perf_counter() - start
    return report

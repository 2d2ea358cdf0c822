"""Passes, and sequences of them."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from milopt.errors import PassError, VerificationError
from milopt.metrics import Exact, Metric
from milopt.reports import Report
from milopt.rules import Rule, apply
from milopt.spec import format_spec, split_spec

if TYPE_CHECKING:
    from milopt.package import Model

__all__ = ["Pass", "Pipeline", "RulePass"]


@dataclass(frozen=True)
class Pass(ABC):
    """A rewrite of a whole model. Options are the fields of the frozen dataclass; it prints as text that parses back.

    ``after`` names passes that come earlier, ``before`` passes that come later, where both are in one pipeline.
    ``metric`` says how the result is compared with the original; ``opset`` is the lowest MIL opset (a spec version, 9
    is iOS18) that it writes. One with ``all_functions`` runs on the whole model even where a pipeline is told to run on
    some functions.
    """

    name: ClassVar[str]
    after: ClassVar[tuple[str, ...]] = ()
    before: ClassVar[tuple[str, ...]] = ()
    metric: ClassVar[Metric] = Exact()
    opset: ClassVar[int] = 6
    all_functions: ClassVar[bool] = False

    @abstractmethod
    def run(self, model: Model) -> Report:
        """Rewrite ``model`` in place. The report is true exactly when something changed."""

    def __str__(self) -> str:
        return format_spec(self.name, self)


@dataclass(frozen=True)
class RulePass(Pass):
    """A pass that applies rules until none matches."""

    @abstractmethod
    def rules(self) -> tuple[Rule[Any], ...]:
        """The rules, tried in this order at each place."""

    def run(self, model: Model) -> Report:
        report = apply(self.rules(), model)
        report.name = self.name
        return report


Callback = Callable[[Pass, Report, "Model"], None]


@dataclass(frozen=True)
class Pipeline:
    """Passes that run one after another. Ordering constraints are checked when it is built."""

    passes: tuple[Pass, ...]

    def __post_init__(self) -> None:
        given: tuple[Any, ...] = self.passes
        for each in given:
            if isinstance(each, Rule):
                raise PassError(f"{each.name} is a rule: milopt.apply applies it, a milopt.RulePass makes it a pass")
            if not isinstance(each, Pass):
                raise PassError(f"{each!r} is no milopt.Pass; Pipeline.parse reads the text of passes")
        names = [each.name for each in self.passes]
        for earlier, later, says in self.constraints():
            if names.index(earlier) > names.index(later):
                raise PassError(
                    f"{later} must come after {earlier}" if says == later else f"{earlier} must come before {later}"
                )

    def constraints(self) -> tuple[tuple[str, str, str], ...]:
        """What the order must keep to: ``(earlier, later, the one of them that says so)``, of the passes that are here.

        It is their first occurrences that count: a pass may be repeated later on.
        """
        names = {each.name for each in self.passes}
        found: dict[tuple[str, str, str], None] = {}
        for each in self.passes:
            found.update({(other, each.name, each.name): None for other in each.after if other in names})
            found.update({(each.name, other, each.name): None for other in each.before if other in names})
        return tuple(constraint for constraint in found if constraint[0] != constraint[1])

    @classmethod
    def parse(cls, text: str) -> Pipeline:
        """``"fuse-sdpa,palettize{bits=6}"`` -> the pipeline. Raises PassError, with near names for an unknown one."""
        from milopt.registry import create

        return cls(tuple(create(name, options) for name, options in split_spec(text)))

    @classmethod
    def default(cls) -> Pipeline:
        """What milopt does when nothing else is said."""
        return cls.parse(DEFAULT)

    @property
    def name(self) -> str:
        return str(self)

    def __str__(self) -> str:
        return ",".join(map(str, self.passes))

    def run(
        self,
        model: Model,
        *,
        verify: str | None = None,
        functions: Sequence[str] | None = None,
        before: Callable[[Pass], None] | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> Report:
        """Run every pass on ``model``, in place.

        ``verify`` compares the program before and after: ``"each"`` pass; ``"stage"``, a run of passes with the same
        metric; or ``"end"``, all of them at once, by the most permissive metric. A verdict that fails raises
        :class:`milopt.errors.VerificationError`, whose ``report`` is that of the passes until then. With ``functions``,
        passes see and change these alone; what is compared is the whole model. ``before`` is called ahead of each pass,
        and ``callbacks`` after it with its report.
        """
        from milopt.restriction import run_on
        from milopt.verify import Verifier

        report = Report(self.name)
        start = time.perf_counter()
        verifier = Verifier.of(verify, model, self.passes)
        for index, each in enumerate(self.passes):
            if before is not None:
                before(each)
            begun = time.perf_counter()
            part = run_on(each, model, functions)
            part.seconds = time.perf_counter() - begun
            report.parts.append(part)
            for callback in callbacks:
                callback(each, part, model)
            try:
                verifier.passed(index, part)
            except VerificationError as error:
                error.report = report
                raise
            finally:
                report.verdicts = [verdict for _, verdict in verifier.verdicts]
                report.seconds = time.perf_counter() - start
        return report


DEFAULT = "canonicalize,fp16-safe-norm,rope-table,fuse-sdpa,kv-to-state,pack-gqa,linear-to-conv,layout-bc1s,palettize"

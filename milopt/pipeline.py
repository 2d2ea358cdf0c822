"""Passes, and sequences of them."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from milopt.errors import PassError
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

    ``after`` names passes that come earlier where both are in one pipeline. ``metric`` says how the result is
    compared with the original; ``opset`` is the lowest MIL opset (a spec version, 9 is iOS18) that it writes.
    """

    name: ClassVar[str]
    after: ClassVar[tuple[str, ...]] = ()
    metric: ClassVar[Metric] = Exact()
    opset: ClassVar[int] = 6

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
        seen: list[str] = []
        later = [each.name for each in self.passes]
        for each in self.passes:
            later.pop(0)
            for needed in each.after:
                if needed in later and needed not in seen:
                    raise PassError(f"{each.name} must come after {needed}")
            seen.append(each.name)

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
        before: Callable[[Pass], None] | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> Report:
        """Run every pass on ``model``, in place.

        ``verify`` compares the program before and after: ``"each"`` pass, or ``"stage"``, a run of passes with the same
        metric; a verdict that fails raises :class:`milopt.errors.VerificationError`. ``before`` is called ahead of each
        pass, and ``callbacks`` after it with its report.
        """
        from milopt.verify import Verifier

        report = Report(self.name)
        start = time.perf_counter()
        verifier = Verifier.of(verify, model, self.passes)
        for index, each in enumerate(self.passes):
            if before is not None:
                before(each)
            begun = time.perf_counter()
            part = each.run(model)
            part.seconds = time.perf_counter() - begun
            report.parts.append(part)
            for callback in callbacks:
                callback(each, part, model)
            verifier.passed(index, part)
        report.verdicts = [verdict for _, verdict in verifier.verdicts]
        report.seconds = time.perf_counter() - start
        return report


DEFAULT = "canonicalize,fp16-safe-norm,rope-table,fuse-sdpa,kv-to-state,linear-to-conv,palettize"

"""What a comparison says: what was tried, what was measured, and where the two programs part."""

from __future__ import annotations

from dataclasses import dataclass, field

from milopt.metrics import Exact, Metric
from milopt.precisions import Precision
from milopt.verify.choices import Choice
from milopt.verify.measuring import Measured, Where
from milopt.verify.scripts import Recipe, reproduction

__all__ = ["Difference", "FirstValue", "Safety", "Verdict"]


@dataclass(frozen=True)
class FirstValue:
    """The first value, in the order of the program before, that both programs have and that differs."""

    name: str
    op_type: str
    index: tuple[int, ...] | None = None
    before: object = None
    after: object = None

    def __str__(self) -> str:
        if self.index is None:
            return f"{self.name} (by {self.op_type})"
        numbers = f"{_number(self.before)} before, {_number(self.after)} after"
        return f"{self.name} (by {self.op_type}) at {self.index}: {numbers}"


@dataclass(frozen=True)
class Difference:
    """Why the programs are not the same. ``where`` is ``None`` when already their signatures differ.

    ``before`` and ``after`` are short texts of the functions, around the first value that differs; ``choice`` is the
    first of a router's, or of a maximum's, that does.
    """

    reason: str
    where: Where | None = None
    label: str = ""
    first: FirstValue | None = None
    before: str = ""
    after: str = ""
    choice: Choice | None = None


@dataclass(frozen=True)
class Safety:
    """How near an output, in a precision that rounds, comes to the original's float64 run, in dB: of both programs.

    ``label`` says on what. -inf dB: an entry is NaN or infinite.
    """

    precision: Precision
    label: str
    output: str
    before_db: float
    after_db: float

    def __str__(self) -> str:
        return f"{self.before_db:.1f} dB before, {self.after_db:.1f} dB after, on {self.label}"


@dataclass(frozen=True)
class Verdict:
    """The result of :func:`milopt.compare`; true when no difference was found.

    ``trials`` is how many were run, ``tried`` says on what, ``seconds`` how long it took. ``measured`` holds numbers
    for every output, also when nothing is wrong; ``safety`` those of precisions that the metric calls safe; ``subject``
    says whose work was judged.
    """

    metric: Metric
    trials: int
    tried: tuple[str, ...] = ()
    seconds: float = 0.0
    measured: tuple[Measured, ...] = ()
    difference: Difference | None = None
    subject: str = ""
    recipe: Recipe = field(default_factory=Recipe, repr=False)
    safety: tuple[Safety, ...] = ()

    def __bool__(self) -> bool:
        return self.difference is None

    @property
    def max_relative(self) -> float:
        """The largest relative difference of any output; 0 when nothing was measured."""
        return max((each.max_relative for each in self.measured), default=0.0)

    @property
    def snr_db(self) -> float | None:
        """The lowest signal-to-noise ratio of a floating output, in dB."""
        return min((each.snr_db for each in self.measured if each.snr_db is not None), default=None)

    @property
    def top1(self) -> float | None:
        """The lowest share of rows whose largest entry stayed in place, of outputs called ``logits``."""
        return min((each.top1 for each in self.measured if each.top1 is not None), default=None)

    @property
    def nan(self) -> float:
        """The largest share of entries of an output that are NaN in both programs."""
        return max((each.nan for each in self.measured), default=0.0)

    def script(self) -> str:
        """A stand-alone Python script that repeats the comparison on two saved packages, given as its arguments."""
        return reproduction(self.metric, self.recipe, str(self))

    def __str__(self) -> str:
        count = f"{self.trials} trial{'' if self.trials == 1 else 's'}"
        subject = f"{self.subject}: " if self.subject else ""
        if self.difference is None:
            return "\n".join([f"{subject}{self._agreement(count)}{self._nans()}", *self._safe()])
        lines = [f"{subject}{self._headline(count)}"]
        if self.difference.first is not None:
            lines.append(f"  first value that differs: {self.difference.first}")
        if self.difference.choice is not None:
            lines.append(f"  choice that differs: {self.difference.choice}")
        if self.difference.before:
            lines += [f"before:  {self.difference.before}", f"after:   {self.difference.after}"]
        return "\n".join(lines)

    def _agreement(self, count: str) -> str:
        if isinstance(self.metric, Exact):
            return f"no difference in {count} ({self.metric})"
        lowest = min(
            (each for each in self.measured if each.snr_db is not None), key=lambda m: m.snr_db or 0.0, default=None
        )
        numbers = [f"{lowest.snr_db:.1f} dB in {lowest.name}"] if lowest is not None else []
        if self.top1 is not None:
            numbers.append(f"top-1 kept in {self.top1:.1%}")
        return f"within bounds in {count} ({self.metric}): {', '.join(numbers) or 'no output is a number'}"

    def _safe(self) -> list[str]:
        """One line for each precision and kind of inputs: the output that came least near."""
        worst: dict[tuple[str, str], Safety] = {}
        for each in self.safety:
            key = each.precision, each.label
            if key not in worst or each.after_db < worst[key].after_db:
                worst[key] = each
        return [f"  {precision}: {each.output} {each}" for (precision, _), each in worst.items()]

    def _nans(self) -> str:
        return f"; up to {self.nan:.1%} of an output is NaN in both" if self.nan else ""

    def _headline(self, count: str) -> str:
        difference = self.difference
        assert difference is not None
        if (where := difference.where) is None:
            return f"differs: {difference.reason}"
        place = f"trial {where.trial + 1} of {count.split()[0]}"
        call = f", call {where.call + 1}" if where.call else ""
        numbers = f"at {where.index}: {_number(where.before)} before, {_number(where.after)} after"
        return (
            f"differs: output {where.output} in {place}{call} (seed {self.recipe.seed}; {difference.label}): "
            f"{difference.reason}\n  {where.output} {numbers}"
        )


def _number(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)

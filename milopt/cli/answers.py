"""What ``milopt run`` prints."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from milopt.cli.writing import plain
from milopt.observation import OverflowReport, Profile, Summary, Trace
from milopt.observation.summary import number
from milopt.tables import table

__all__ = ["Answer", "print_answer"]

# Ops have long names, and a file or pipe has room for them.
_WIDE = 400
# Labels of a classifier that are printed.
_LIKELIEST = 5


@dataclass
class Answer:
    """The outputs of a run by name, summaries of them, and what else was asked for.

    ``labels`` are those outputs that are not arrays: a classifier's label, and its probabilities by label. ``seconds``
    are those of each run that nobody observed.
    """

    function: str
    precision: str
    outputs: dict[str, Summary] = field(default_factory=dict[str, Summary])
    labels: dict[str, Any] = field(default_factory=dict[str, Any])
    states: dict[str, Summary] = field(default_factory=dict[str, Summary])
    seconds: list[float] = field(default_factory=list[float])
    files: dict[str, Path] = field(default_factory=dict[str, Path])
    trace: Trace | None = None
    profile: Profile | None = None
    overflow: OverflowReport | None = None

    @property
    def is_odd(self) -> bool:
        """Whether an output or a state has NaN or Inf."""
        return any(each.nan or each.inf for each in (*self.outputs.values(), *self.states.values()))

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values, JSON's types."""
        asked = {"trace": self.trace, "profile": self.profile, "overflow": self.overflow}
        return {
            "function": self.function,
            "precision": self.precision,
            "seconds": self.seconds,
            "outputs": {name: {**each.to_json(), **self._more(name)} for name, each in self.outputs.items()},
            "states": {name: each.to_json() for name, each in self.states.items()},
            **{name: each.to_json() for name, each in asked.items() if each is not None},
        }

    def _more(self, name: str) -> dict[str, Any]:
        value = {"value": plain(self.labels[name])} if name in self.labels else {}
        return {**value, **({"file": str(self.files[name])} if name in self.files else {})}


def print_answer(console: Console, answer: Answer) -> None:
    """Tables of the outputs and states, then those that were asked for."""
    rows = [
        (name, each.dtype, each.shape_text, *_range(each), answer.files.get(name, ""))
        for name, each in answer.outputs.items()
    ]
    columns = ("type", "shape", ">min", ">max", ">NaN", ">Inf")
    title = f"Function {answer.function}, {answer.precision}"
    if rows:
        file = ["file"] if answer.files else []
        console.print(
            table(title, "output", *columns, *file, rows=(row[: len(columns) + len(file) + 1] for row in rows))
        )
    if answer.states:
        states = [(name, each.dtype, each.shape_text, *_range(each)) for name, each in answer.states.items()]
        console.print(table("States after the run", "state", *columns, rows=states))
    for name, value in answer.labels.items():
        if isinstance(value, dict):
            console.print(f"{name}: {_likeliest(cast('dict[Any, float]', value))}", markup=False)
    if answer.seconds:
        console.print(_time(answer.seconds), markup=False)
    if not console.is_terminal:
        console.width = _WIDE
    for each in (answer.trace, answer.profile):
        if each is not None:
            console.print(each)
    if answer.overflow is not None:
        console.print(str(answer.overflow), markup=False)


def _range(value: Summary) -> tuple[object, ...]:
    return number(value.minimum), number(value.maximum), value.nan or "", value.inf or ""


def _likeliest(probabilities: dict[Any, float]) -> str:
    ordered = sorted(probabilities.items(), key=lambda each: -each[1])
    listed = ", ".join(f"{label} {chance:.4g}" for label, chance in ordered[:_LIKELIEST])
    more = len(ordered) - _LIKELIEST
    return f"{listed}, {more} more" if more > 0 else listed


def _time(seconds: list[float]) -> str:
    if len(seconds) == 1:
        return f"{seconds[0] * 1e3:.1f} ms"
    rest = seconds[1:]
    middle, fastest = statistics.median(rest), min(rest)
    return (
        f"{len(seconds)} runs: the first {seconds[0] * 1e3:.1f} ms, the others {middle * 1e3:.1f} ms (median), "
        f"{fastest * 1e3:.1f} ms at best"
    )

"""Where the time of a run goes, op by op and by type of op."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Group
from rich.table import Table

from milopt.interpreter import Plan, State, Step
from milopt.observation.walking import Walk, Walker, wait
from milopt.tables import milliseconds, table

__all__ = ["OpTime", "Profile", "profile"]

# Ops that a printed profile names one by one.
_SHOWN = 20


@dataclass
class OpTime:
    """Time of an op, or of all ops of a type: ``calls`` and ``seconds`` over all runs, without ops nested in it."""

    name: str
    op_type: str
    calls: int = 0
    seconds: float = 0.0
    ops: int = 1


class Profile(Walker):
    """A listener that adds up the time of each op over runs of a plan, after ``warmup`` runs that don't count.

    The times are those of an observed run, whose ops are executed one by one: a run that nobody observes takes chains
    of views at once, and is quicker. What the profile itself costs is left out of the ops' times and told apart
    (``own_seconds``). ``unobserved`` and ``observed`` are the seconds of whole runs without and with a listener, where
    :func:`profile` measured them. A profile is of one plan.
    """

    def __init__(self, warmup: int = 1) -> None:
        super().__init__()
        self.runs = 0
        self.unobserved: list[float] = []
        self.observed: list[float] = []
        self._warmup = warmup
        self._own_before = 0.0
        self._times: dict[int, tuple[Step, OpTime]] = {}

    @property
    def ops(self) -> list[OpTime]:
        """The ops, those that took most time first."""
        return sorted((each for _, each in self._times.values()), key=lambda each: -each.seconds)

    @property
    def types(self) -> list[OpTime]:
        """The types of op, those that took most time first; ``ops`` is how many ops there are of it."""
        found: dict[str, OpTime] = {}
        for op in self.ops:
            kind = found.setdefault(op.op_type, OpTime(op.op_type, op.op_type, ops=0))
            kind.calls += op.calls
            kind.seconds += op.seconds
            kind.ops += 1
        return sorted(found.values(), key=lambda each: -each.seconds)

    @property
    def seconds(self) -> float:
        """The time of all ops in all runs that count."""
        return sum(each.seconds for _, each in self._times.values())

    @property
    def own_seconds(self) -> float:
        """What the profile's own work took in the runs that count."""
        return self._own - self._own_before

    def began(self) -> None:
        if self._warmup > 0:
            self._warmup -= 1
            return
        if not self.runs:
            self._own_before = self._own
        self.runs += 1

    def left(self, walk: Walk, outputs: Mapping[str, Any], seconds: float) -> None:
        if not self.runs:
            return
        _, op = self._times.setdefault(id(walk.step), (walk.step, OpTime(walk.step.name, walk.step.op_type)))
        op.calls += 1
        op.seconds += seconds - walk.nested

    def to_json(self) -> dict[str, Any]:
        """Plain values; seconds are totals over ``runs``, shares are of the ops' time."""

        def facts(each: OpTime) -> dict[str, Any]:
            return {"calls": each.calls, "seconds": each.seconds, "share": self._share(each)}

        return {
            "runs": self.runs,
            "seconds": self.seconds,
            "own_seconds": self.own_seconds,
            "unobserved_seconds": self.unobserved,
            "observed_seconds": self.observed,
            "types": [{"type": each.op_type, "ops": each.ops, **facts(each)} for each in self.types],
            "ops": [{"name": each.name, "type": each.op_type, **facts(each)} for each in self.ops],
        }

    def __rich__(self) -> Group:
        columns = (">calls", ">ms a run", ">share")
        types = [(each.op_type, each.ops, *self._cells(each)) for each in self.types]
        ops = [(each.name, each.op_type, *self._cells(each)) for each in self.ops[:_SHOWN]]
        slowest = f"Slowest {len(ops)} of {len(self.ops)} ops" if len(self.ops) > len(ops) else "Ops"
        tables: list[Table | str] = [
            table("Time by type", "op", ">ops", *columns, rows=types),
            table(slowest, "name", "op", *columns, rows=ops),
        ]
        return Group(*tables, self.summary())

    def summary(self) -> str:
        """One paragraph: how many runs, how long, and what observing them cost."""
        if not self.runs:
            return "no run counted: warm-up runs don't"
        each = f"{self.runs} runs, {milliseconds(self.seconds / self.runs)} ms of ops a run"
        own = f"; the profile itself took {milliseconds(self.own_seconds / self.runs)} ms a run, not counted"
        if not self.unobserved:
            return f"{each}{own}"
        alone, watched = statistics.median(self.unobserved), statistics.median(self.observed)
        return f"{each}{own}\na whole run: {milliseconds(alone)} ms unobserved, {milliseconds(watched)} ms observed"

    def _cells(self, each: OpTime) -> tuple[object, ...]:
        return each.calls, milliseconds(each.seconds / max(self.runs, 1)), f"{self._share(each):.1%}"

    def _share(self, each: OpTime) -> float:
        return each.seconds / self.seconds if self.seconds else 0.0


def profile(
    plan: Plan,
    inputs: Mapping[str, Any],
    *,
    runs: int = 5,
    warmup: int = 1,
    state: State | None = None,
) -> Profile:
    """A profile of ``runs`` runs, each also timed as a whole without and with the listener.

    ``warmup`` runs of either kind come first and don't count: they prepare weights. Every run starts from a copy of
    ``state``, which stays as it is.
    """
    listener = Profile(warmup)
    for index in range(warmup + runs):
        seconds = _timed(plan, inputs, state, ())
        listener.unobserved += [seconds] if index >= warmup else []
    for index in range(warmup + runs):
        seconds = _timed(plan, inputs, state, (listener,))
        listener.observed += [seconds] if index >= warmup else []
    return listener


def _timed(plan: Plan, inputs: Mapping[str, Any], state: State | None, listeners: tuple[object, ...]) -> float:
    copy = None if state is None else state.copy()
    begun = time.perf_counter()
    outputs = plan.run(inputs, copy, listeners)
    wait(outputs)
    return time.perf_counter() - begun

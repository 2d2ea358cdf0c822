"""Every op of a run, with what it made and how long it took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from milopt.interpreter import Step
from milopt.observation.summary import Summary, number, summarize
from milopt.observation.walking import Walk, Walker
from milopt.tables import milliseconds, table

__all__ = ["Trace", "TracedOp"]


@dataclass
class TracedOp:
    """One op of the trace; in a loop, of all its turns together.

    ``outputs`` are summaries by value name. ``depth`` and ``block`` say where it is nested. ``calls`` is how often it
    ran, ``turns`` how often the body of a ``while_loop`` did. ``seconds`` include what is nested in it.
    """

    step: Step
    depth: int
    block: str
    outputs: dict[str, Summary] = field(default_factory=dict[str, Summary])
    calls: int = 0
    turns: int = 0
    seconds: float = 0.0

    @property
    def name(self) -> str:
        return self.step.name

    @property
    def op_type(self) -> str:
        return self.step.op_type

    def to_json(self) -> dict[str, Any]:
        """Plain values, JSON's types."""
        nesting = {"depth": self.depth, "block": self.block} if self.depth else {}
        turns = {"turns": self.turns} if self.op_type == "while_loop" else {}
        outputs = {name: summary.to_json() for name, summary in self.outputs.items()}
        head = {"name": self.name, "type": self.op_type, **nesting, "calls": self.calls, **turns}
        return {**head, "seconds": self.seconds, "outputs": outputs}


class Trace(Walker):
    """A listener that keeps a line per op of the latest run: shape, dtype, range, NaN and Inf counts, time.

    ``ops`` are in the order in which they first ran, those of nested blocks after the op that holds them. Printed with
    rich it is a table; :meth:`to_json` gives plain values. Nothing of the values themselves is kept.
    """

    def __init__(self) -> None:
        super().__init__()
        self._ops: dict[int, TracedOp] = {}

    @property
    def ops(self) -> list[TracedOp]:
        return list(self._ops.values())

    def began(self) -> None:
        self._ops.clear()

    def entered(self, walk: Walk, values: Mapping[str, Any]) -> None:
        self._ops.setdefault(id(walk.step), TracedOp(walk.step, walk.depth, walk.block))
        if walk.first and walk.block == "body" and walk.parent is not None:
            self._ops[id(walk.parent.step)].turns += 1

    def left(self, walk: Walk, outputs: Mapping[str, Any], seconds: float) -> None:
        op = self._ops[id(walk.step)]
        op.calls += 1
        op.seconds += seconds
        for result in walk.step.results:
            name = result.info.name
            summary = summarize(outputs[name], result.info.dtype)
            op.outputs[name] = op.outputs[name].merged(summary) if name in op.outputs else summary

    def to_json(self) -> list[dict[str, Any]]:
        """Plain values for every op, JSON's types."""
        return [op.to_json() for op in self.ops]

    def __rich__(self) -> Table:
        nested = any(op.depth for op in self.ops)
        columns = ["name", "op", "dtype", "shape", ">min", ">max", ">NaN", ">Inf", ">ms"]
        rows = (row if nested else row[: len(columns)] for op in self.ops for row in _rows(op))
        return table("Trace", *columns, *([">turns", "block"] if nested else []), rows=rows)


def _rows(op: TracedOp) -> list[list[object]]:
    """A row per value; what is the op's own, in the first one."""
    turns = op.turns if op.op_type == "while_loop" else op.calls if op.depth else ""
    own = [milliseconds(op.seconds), turns, op.block]
    indent = "  " * op.depth
    if not op.outputs:
        return [[f"{indent}{op.name}", op.op_type, *[""] * 6, *own]]
    return [
        [
            f"{indent}{name}",
            "" if index else op.op_type,
            value.dtype,
            value.shape_text,
            number(value.minimum),
            number(value.maximum),
            value.nan or "",
            value.inf or "",
            *([""] * 3 if index else own),
        ]
        for index, (name, value) in enumerate(op.outputs.items())
    ]

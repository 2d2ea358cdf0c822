"""What :func:`milopt.observation.find_overflows` reports."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from milopt.interpreter import Precision
from milopt.observation.summary import Summary, number

__all__ = ["Operand", "Overflow", "OverflowReport"]

# Overflows that a printed report names.
_LISTED = 20


@dataclass(frozen=True)
class Operand:
    """An input of the op at the time: its summary, and its number ``at`` the place, where the op is elementwise."""

    name: str
    summary: Summary
    at: float | None = None

    def __str__(self) -> str:
        facts = self.summary
        if facts.shape == () and facts.minimum is not None:
            return f"{self.name} {number(facts.minimum)}"
        here = "" if self.at is None else f" {self.at:.6g} in"
        kind = f"{facts.dtype}[{facts.shape_text}]" if facts.shape else facts.dtype
        spread = "" if facts.minimum is None else f" {number(facts.minimum)} to {number(facts.maximum)}"
        odd = [f", {count} {what}" for count, what in ((facts.nan, "NaN"), (facts.inf, "Inf")) if count]
        return f"{self.name}{here} {kind}{spread}{''.join(odd)}"

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, **self.summary.to_json(), "at": None if self.at is None else _json(self.at)}


@dataclass(frozen=True)
class Overflow:
    """A place where NaN or Inf appears that float64 does not have, from inputs that are as good as float64's.

    ``kind``: ``result`` of the op; ``input`` of the function, too large for its declared type; ``inside``, an
    intermediate value of a composite op in ``declared-strict``, whose result may look harmless.

    ``op``, ``op_type`` and ``output`` name the op and its value, of type ``dtype``. ``value`` is the number at
    ``index``, the first of ``count`` such places; ``reference`` is float64's number there (of an intermediate value:
    the number before it was rounded). In loops ``turn`` counts how often the op ran before, and ``times`` how often it
    overflowed. ``scope`` is the module that the op was converted from, where the program still knows.
    """

    kind: Literal["result", "input", "inside"]
    op: str
    op_type: str
    output: str
    dtype: str
    index: tuple[int, ...]
    value: float
    reference: float
    count: int
    operands: tuple[Operand, ...] = ()
    scope: str = ""
    turn: int = 0
    times: int = 1

    def __str__(self) -> str:
        return "".join([self.line, *(f"\n    {each}" for each in self.operands)])

    @property
    def line(self) -> str:
        """What happened where, without the inputs."""
        where = f" at {self.index}" if self.index else ""
        where += f", and {self.count - 1} more" if self.count > 1 else ""
        if self.kind == "input":
            return f"input {self.output!r}: {self.reference:.6g} is {self.value:g} as {self.dtype}{where}"
        scope = f" (in {self.scope})" if self.scope else ""
        turn = f", in turn {self.turn}" if self.turn else ""
        turn += f", {self.times} times in all" if self.times > 1 else ""
        if self.kind == "inside":
            what = f"{self.reference:.6g} is {self.value:g} as {self.dtype} in an intermediate value{where}"
        else:
            what = f"{self.output} is {self.value:g} as {self.dtype}{where}, {self.reference:.6g} in float64"
        return f"{self.op_type} {self.op!r}{scope}: {what}{turn}"

    def to_json(self) -> dict[str, Any]:
        """Plain values; NaN and Inf as strings, which JSON has no numbers for."""
        return {
            "kind": self.kind,
            "op": self.op,
            "type": self.op_type,
            "output": self.output,
            "dtype": self.dtype,
            "index": list(self.index),
            "value": _json(self.value),
            "float64": _json(self.reference),
            "count": self.count,
            "turn": self.turn,
            "times": self.times,
            "scope": self.scope,
            "inputs": [each.to_json() for each in self.operands],
        }


@dataclass(frozen=True)
class OverflowReport:
    """The overflows of one run in program order, the first one first; falsy if there is none.

    ``outputs`` counts, by name, the places of the function's outputs that are NaN or Inf where float64 is not: an
    overflow may be gone before it gets there, and still have spoilt them. ``stopped`` is the error that ended the run
    in ``precision``, if one did; nothing is known of what comes after it. ``incomparable`` counts the values with NaN
    or Inf that float64 computed in another shape or not at all, its loops and branches having gone another way.
    """

    function: str
    precision: Precision
    overflows: tuple[Overflow, ...]
    outputs: dict[str, int]
    stopped: str = ""
    incomparable: int = 0

    def __bool__(self) -> bool:
        return bool(self.overflows)

    @property
    def first(self) -> Overflow | None:
        return self.overflows[0] if self.overflows else None

    def __str__(self) -> str:
        against = f"function {self.function!r} in {self.precision}"
        notes = [f"the run stopped: {self.stopped}"] if self.stopped else []
        if self.incomparable:
            notes.append(f"{self.incomparable} values with NaN or Inf have no counterpart in float64")
        if not self.overflows:
            return "\n".join([f"{against}: no NaN or Inf that float64 does not have", *notes])
        spoilt = ", ".join(f"{name} ({count} places)" for name, count in self.outputs.items())
        lines = [f"{against}: NaN or Inf that float64 does not have, first in", f"  {self.overflows[0]}"]
        lines += ["and from good inputs again in"] * (len(self.overflows) > 1)
        lines += [f"  {each.line}" for each in self.overflows[1:_LISTED]]
        lines += [f"  ... {len(self.overflows) - _LISTED} more"] * (len(self.overflows) > _LISTED)
        lines.append(
            f"it reaches {spoilt}" if spoilt else "no output is NaN or Inf for it, which does not make them right"
        )
        return "\n".join([*lines, *notes])

    def to_json(self) -> dict[str, Any]:
        """Plain values, JSON's types."""
        return {
            "function": self.function,
            "precision": self.precision,
            "overflows": [each.to_json() for each in self.overflows],
            "outputs": self.outputs,
            "stopped": self.stopped,
            "incomparable": self.incomparable,
        }


def _json(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)

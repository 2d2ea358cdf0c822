"""What a run can tell: every op's values, where the time goes, and where numbers overflow.

    trace = milopt.observation.Trace()
    plan.run(inputs, listeners=[trace])
    rich.print(trace)

:class:`Trace` and :class:`Profile` are listeners of the interpreter; both print as tables and give plain values for
JSON. :func:`find_overflows` names the ops that make a NaN or Inf which float64 does not make.
"""

from __future__ import annotations

from milopt.observation.finding import find_overflows
from milopt.observation.overflow import Operand, Overflow, OverflowReport
from milopt.observation.profiling import OpTime, Profile, profile
from milopt.observation.summary import Summary
from milopt.observation.trace import Trace, TracedOp

__all__ = [
    "OpTime",
    "Operand",
    "Overflow",
    "OverflowReport",
    "Profile",
    "Summary",
    "Trace",
    "TracedOp",
    "find_overflows",
    "profile",
]

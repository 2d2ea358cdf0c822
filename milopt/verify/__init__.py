"""Did a rewrite change anything? Both programs are run, and the verdict says what was tried and what was found."""

from __future__ import annotations

from milopt.verify.comparing import compare
from milopt.verify.freezing import Frozen, freeze
from milopt.verify.measuring import Measured, Where
from milopt.verify.verdict import Difference, FirstValue, Safety, Verdict
from milopt.verify.verifier import Verifier

__all__ = [
    "Difference",
    "FirstValue",
    "Frozen",
    "Measured",
    "Safety",
    "Verdict",
    "Verifier",
    "Where",
    "compare",
    "freeze",
]

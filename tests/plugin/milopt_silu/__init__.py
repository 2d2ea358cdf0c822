"""``x * sigmoid(x)`` as one op: a pass that milopt finds by the entry point of this package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from milopt import Builder, Match, Ops, Rule, RulePass, Value, require


class SigmoidToSilu(Rule[None]):
    """``x * sigmoid(x)``  ->  ``silu(x)``."""

    def pattern(self, op: Ops, /, x: Value) -> Any:
        return op.mul(x=x, y=op.sigmoid(x=x))

    def check(self, m: Match, /) -> None:
        require(m.x.rank > 0, "a single number is left alone", at=m.x)

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Any:
        return op.silu(x=m.x)


@dataclass(frozen=True)
class FuseSilu(RulePass):
    """``x * sigmoid(x)``  ->  ``silu(x)``, wherever it stands."""

    name: ClassVar[str] = "fuse-silu"
    after: ClassVar[tuple[str, ...]] = ("canonicalize",)

    label: str = ""

    def rules(self) -> tuple[Rule[Any], ...]:
        return (SigmoidToSilu(),)

"""A rule of one's own: its pattern, its replacement, and its test."""

from __future__ import annotations

from typing import Any

import numpy as np

import milopt
from milopt.mil import mb
from milopt.testing import check_rule, strategies


class SigmoidToSilu(milopt.Rule[None]):
    """``x * sigmoid(x)``  ->  ``silu(x)``."""

    def pattern(self, op: milopt.Ops, /, x: milopt.Value) -> Any:
        return op.mul(x=x, y=op.sigmoid(x=x))

    def check(self, m: milopt.Match, /) -> None: ...

    def rewrite(self, op: milopt.Builder, m: milopt.Match, facts: None, /) -> Any:
        return op.silu(x=m.x)


@mb.program(input_specs=[mb.TensorSpec((2, 3)), mb.TensorSpec((2, 3))])
def program(x: Any, other: Any) -> Any:
    fits = mb.mul(x=mb.sigmoid(x=x), y=x, name="fits")
    return fits, mb.mul(x=x, y=mb.sigmoid(x=other), name="does_not")


def test_silu() -> None:
    check_rule(SigmoidToSilu(), strategies.matching(SigmoidToSilu()))


def main() -> milopt.Report:
    before = milopt.evaluate(program, {"x": np.ones((2, 3)), "other": np.ones((2, 3))}, precision="float64")
    report = milopt.apply(SigmoidToSilu(), program)
    after = milopt.evaluate(program, {"x": np.ones((2, 3)), "other": np.ones((2, 3))}, precision="float64")
    print(report)
    assert np.allclose(before["fits"], after["fits"], rtol=1e-12)  # the same formula in float64
    return report


if __name__ == "__main__":
    main()
    test_silu()

"""Sizes that MIL lost are given back, and never against what it knows."""

from __future__ import annotations

from typing import Any

import pytest

from milopt.mil import Var, get_new_symbol, mb, types
from milopt.package import load
from milopt.passes.refining import refined
from milopt.reports import NoMatch


def value(*shape: Any) -> Var:
    @mb.program(input_specs=[mb.TensorSpec(shape, types.fp32)])
    def program(x: Any) -> Any:
        return mb.relu(x=x)

    return load(program).function("main").outputs[0]


def test_symbols_become_what_they_are() -> None:
    batch, length = get_new_symbol(), get_new_symbol()
    assert refined(value(batch, 4, length), (2, 4, length), None).shape == (2, 4, length)
    assert refined(value(2, 4), (2, 4), None).shape == (2, 4)


@pytest.mark.parametrize("shape", [(2, 5), (2, 4, 1), (2,), (2, get_new_symbol())])
def test_what_mil_knows_stays(shape: tuple[Any, ...]) -> None:
    var = value(2, 4)
    with pytest.raises(NoMatch) as refused:
        refined(var, shape, var)
    assert str(refused.value) == f"its types disagree: MIL makes (2, 4) of it, not {shape}"
    assert refused.value.at is var
    assert var.shape == (2, 4)

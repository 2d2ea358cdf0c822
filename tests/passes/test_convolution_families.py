"""Layers of every family that milopt converts: all of them convolutions, palettized ones too, and all of them back."""

from __future__ import annotations

from typing import Any

import pytest

from milopt.huggingface import convert
from milopt.metrics import Exact
from milopt.mil import operations
from milopt.package import Model
from milopt.pipeline import Pipeline
from milopt.verify import compare
from tests.huggingface.families import CONTEXT, FAMILIES

pytestmark = pytest.mark.slow


def count(model: Model, *op_types: str) -> int:
    return sum(op.op_type in op_types for function in model.functions.values() for op in operations(function))


@pytest.mark.parametrize("name", FAMILIES)
def test_no_linear_is_left(name: str) -> None:
    family = FAMILIES[name]
    given: dict[str, Any] = {"query_lengths": (1, 4)} if family.kind == "decoder" else {}
    model = convert(family.make(), context=CONTEXT, dtype="float16", **given)
    for earlier in ("canonicalize", "palettize{bits=4,min_elements=512}"):
        Pipeline.parse(earlier).run(model)
        plain, layers, products = model.clone(), count(model, "linear"), count(model, "matmul")
        made = model.clone()
        report = Pipeline.parse("linear-to-conv").run(made)
        assert (count(made, "linear"), count(made, "matmul")) == (0, products)
        assert not [miss for miss in report.all_misses() if miss.declined]
        verdict = compare(plain, made, trials=2, metric=Exact(safe_in=("declared",)))
        assert verdict, str(verdict)
        assert Pipeline.parse("conv1x1-to-linear").run(made)
        assert count(made, "linear") == layers
        # GPT-J has some that go with those of its layers
        assert count(made, "transpose") <= count(plain, "transpose")
        assert compare(plain, made, trials=1)

"""Attention of every family of decoders that milopt converts: all sites fused, no key or value repeated."""

from __future__ import annotations

from typing import Any

import pytest

from milopt.huggingface import convert
from milopt.mil import operations
from milopt.package import Model
from milopt.pipeline import Pipeline
from milopt.verify import compare
from tests.huggingface.families import CONTEXT, FAMILIES

DECODERS = [name for name, family in FAMILIES.items() if family.kind == "decoder"]
# the scores of these are capped by tanh
CAPPED = [name for name in DECODERS if name.startswith("gemma-2")]
FAST = [("llama", "flexible"), *((name, "static") for name in CAPPED)]

every_family = pytest.mark.parametrize(
    ("name", "shapes"),
    [
        pytest.param(name, shapes, marks=() if (name, shapes) in FAST else pytest.mark.slow)
        for name in DECODERS
        for shapes in ("static", "flexible")
    ],
)


def count(model: Model, op_type: str) -> int:
    return sum(op.op_type == op_type for function in model.functions.values() for op in operations(function))


@every_family
def test_every_site_is_fused_and_packed(name: str, shapes: str) -> None:
    lengths: Any = "flexible" if shapes == "flexible" else (1, 4)
    model = convert(FAMILIES[name].make(), context=CONTEXT, query_lengths=lengths, dtype="float32")
    before, sites = model.clone(), count(model, "softmax")
    assert sites == FAMILIES[name].layers * (1 if shapes == "flexible" else 2)
    report = Pipeline.parse("canonicalize,fuse-sdpa,pack-gqa").run(model)
    assert compare(before, model, trials=1)
    if name in CAPPED:
        assert count(model, "softmax") == sites
        if shapes == "static":  # of two flexible dimensions none can be left open in a reshape
            assert count(model, "tile") == 0
        reasons = {miss.reason for miss in report.parts[1].misses if miss.declined}
        assert reasons == {"the scores are capped by tanh, which scaled_dot_product_attention can't say"}
        return
    assert count(model, "scaled_dot_product_attention") == sites
    assert count(model, "softmax") == count(model, "tile") == count(model, "real_div") == 0

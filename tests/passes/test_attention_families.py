"""Attention of every family of decoders that milopt converts: all sites fused, no key or value repeated."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.cache_counts import copies, fused, sizes, written
from milopt.huggingface import convert
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


@every_family
def test_every_site_is_fused_and_packed(name: str, shapes: str) -> None:
    lengths: Any = "flexible" if shapes == "flexible" else (1, 4)
    model = convert(FAMILIES[name].make(), context=CONTEXT, query_lengths=lengths, dtype="float32")
    before, sites = model.clone(), written(model) + fused(model)
    assert sites == FAMILIES[name].layers * (1 if shapes == "flexible" else 2)
    report = Pipeline.parse("canonicalize,fuse-sdpa,pack-gqa").run(model)
    assert compare(before, model, trials=1)
    if name in CAPPED:
        assert (written(model), fused(model)) == (sites, 0)
        if shapes == "static":  # of two flexible dimensions none can be left open in a reshape
            assert copies(model) == 0
        reasons = {miss.reason for miss in report.parts[1].misses if miss.declined}
        assert reasons == {"the scores are capped by tanh, which scaled_dot_product_attention can't say"}
        return
    assert (written(model), fused(model)) == (0, sites)
    assert copies(model) == sizes(model) == 0

"""Every family, laid out: no linear left, the same numbers, compressed or not, in public layouts and free ones."""

from __future__ import annotations

from typing import Any

import pytest

from milopt.coremltools_steps import step_class
from milopt.huggingface import convert
from milopt.metrics import Exact
from milopt.mil import operations
from milopt.package import Model
from milopt.pipeline import Pipeline
from milopt.text import text
from milopt.verify import compare
from tests.huggingface.families import CONTEXT, FAMILIES

pytestmark = pytest.mark.slow

FUSED = "canonicalize,fp16-safe-norm,rope-table,fuse-sdpa,kv-to-state,pack-gqa"
WRITTEN = "canonicalize,rope-table,fuse-sdpa,kv-to-state,decompose-sdpa"
COMPRESSED = {"palettized": "palettize{bits=4,min_elements=512}", "quantized": "quantize{dtype=int8,min_elements=512}"}


def count(model: Model, *op_types: str) -> int:
    return sum(op.op_type in op_types for function in model.functions.values() for op in operations(function))


def laid_out(before: Model, layout: str) -> Model:
    """The model in convolutions and their layouts, compared in float64 and as declared."""
    after = before.clone()
    report = Pipeline.parse(f"linear-to-conv,{layout}").run(after)
    assert count(after, "linear") == 0
    assert not [miss for miss in report.all_misses() if miss.declined and miss.rule != "move"]
    verdict = compare(before, after, trials=1, metric=Exact(safe_in=("declared",)))
    assert verdict, str(verdict)
    written = text(after)
    step_class("ct:common::compose_conv1d")().run(after)
    assert text(after) == written
    return after


@pytest.mark.parametrize("name", FAMILIES)
def test_laid_out(name: str) -> None:
    family = FAMILIES[name]
    given: dict[str, Any] = {"query_lengths": (1, 4)} if family.kind == "decoder" else {}
    model = convert(family.make(), context=CONTEXT, dtype="float16", **given)
    for passes, layout in ((FUSED, "layout-bc1s"), (WRITTEN, "layout-bc1s{io=free}")):
        plain = model.clone()
        Pipeline.parse(passes).run(plain)
        after = laid_out(plain, layout)
        for compress in COMPRESSED.values():
            # the weights of convolutions are compressed as those of linear layers are, and the other way round
            behind = Pipeline.parse(compress).run(after.clone(), verify="each")
            assert behind
            first = plain.clone()
            assert Pipeline.parse(compress).run(first)
            laid_out(first, layout)

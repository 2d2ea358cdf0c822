"""Attention in packages that others have published: sites found, fused, refused with a reason; caches left alone."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from milopt.metrics import Exact
from milopt.mil import operations
from milopt.package import Model, load
from milopt.passes.attention import FuseSdpa
from milopt.passes.masks import FiniteMask
from milopt.pipeline import Pipeline
from milopt.upgrading import Upgrade
from milopt.verify import compare
from tests.models.masking import fill_masks
from tests.models.packages import SHARED, refill


class Found(NamedTuple):
    """``written`` attentions and ``fused`` ones before, those fused after, ``other`` softmaxes, and tiled masks."""

    written: int
    fused: int
    after: int
    other: int = 0
    tiles: int = 0


PACKAGES = {
    "stories260K/stories260K_ios15_fixed64": Found(5, 0, 5),
    "stories260K/stories260K_ios16_sparse50": Found(5, 0, 5),
    "stories260K/stories260K_ios18_prefill64": Found(5, 0, 5),
    "stories260K/stories260K_ios18_stateful": Found(0, 5, 5),
    "stories260K/stories260K_ios18_stateful_int4blk": Found(0, 5, 5),
    "stories260K/stories260K_ios18_stateful_pal4g16": Found(0, 5, 5),
    "stories260K/stories260K_ios18_multifunction": Found(5, 5, 10),
    "graphs/whispertiny_Encoder": Found(4, 0, 4),
    "graphs/whispertiny_Decoder": Found(8, 0, 8),
    "graphs/clipfinder_clip_text": Found(4, 0, 4, tiles=1),
    "graphs/distilbert_float16": Found(6, 0, 6, tiles=1),
    "graphs/bert_base_text-classification": Found(12, 0, 12, other=1, tiles=1),
    "graphs/gpt2_fp16": Found(12, 0, 12),
    "graphs/kokoro_duration": Found(12, 0, 12, tiles=2),
}
_SLOW = ("distilbert_float16", "bert_base_text-classification", "gpt2_fp16", "whispertiny_Encoder", "kokoro_duration")

every_package = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name.endswith(_SLOW) else ()) for name in PACKAGES],
)


def counts(model: Model) -> dict[str, int]:
    found = [op.op_type for function in model.functions.values() for op in operations(function)]
    return {kind: found.count(kind) for kind in ("softmax", "scaled_dot_product_attention", "tile")}


@every_package
def test_sites_are_fused_and_packed(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = SHARED / "models" / f"{name}.mlpackage"
    if not path.is_dir():
        pytest.skip(f"../shared/models/{name}.mlpackage is absent")
    if name.startswith("graphs"):
        path = refill(path, Path(tmp_path_factory.getbasetemp()))
    model = load(path)
    Upgrade("iOS18").run(model)
    assert (fill_masks(model) > 0) == (name == "graphs/gpt2_fp16")
    FiniteMask().run(model)  # 0 * -inf, which gpt2 computes, leaves nothing to compare
    before, found = model.clone(), PACKAGES[name]
    start = counts(model)
    assert start["softmax"] == found.written + found.other
    assert start["scaled_dot_product_attention"] == found.fused

    report = Pipeline.parse("canonicalize,fuse-sdpa,kv-to-state,pack-gqa").run(model)
    left = counts(model)
    refused = found.written + found.fused - found.after
    assert left["scaled_dot_product_attention"] == found.after, str(report)
    assert left["softmax"] == refused + found.other
    assert left["tile"] == found.tiles, str(report)
    misses = [miss.reason for miss in report.parts[1].misses if miss.declined]
    assert not misses
    # none of them hands a cache in and out: it is in states, or there is none
    states, none = report.parts[2], "no output is a concat of an input and something new"
    assert (states.applied, states.notes) == (0, [f"{function}: {none}" for function in model.functions])
    metric = report.parts[1].metric or Exact()
    assert (verdict := compare(before, model, trials=1, metric=metric)), str(verdict)
    assert "NaN" not in str(verdict)
    assert not FuseSdpa().run(model)

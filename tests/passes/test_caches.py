"""The numbers of docs/caches.md: sites, repeated keys, states, and greedy tokens beyond the sliding window."""

from __future__ import annotations

import pytest

from benchmarks.cache_rows import STEPS, TOLERANCE, Row, measure
from tests.huggingface.families import FAMILIES

CAPPED = "the scores are capped by tanh, which scaled_dot_product_attention can't say"


def require_whole(row: Row, steps: int) -> None:
    """All sites fused, or refused for the one reason there is; nothing repeated, all in states, all tokens right."""
    layers = FAMILIES[row.family].layers
    capped = row.family == "gemma-2"
    assert row.sites == layers
    assert (row.fused, row.refused) == ((0, layers) if capped else (layers, 0))
    assert row.reason == (CAPPED if capped else "")
    assert (row.tiles, row.sizes, row.states) == (0, 0, 2 * layers)
    assert row.exact == steps
    assert row.error < TOLERANCE * row.theirs
    assert row.margin is None or row.margin < 2 * row.error
    assert (row.declared == steps) == (row.margin is None)


@pytest.mark.parametrize("shapes", ["flexible", pytest.param("static", marks=pytest.mark.slow)])
def test_one_family(shapes: str) -> None:
    """With rings: 16 tokens turn those of 15 slots once."""
    rows = measure("mistral", shapes, routes=["trace"], steps=16)
    assert [row.shapes for row in rows] == (["static", "static, rings"] if shapes == "static" else ["flexible"])
    for row in rows:
        require_whole(row, 16)


@pytest.mark.slow
@pytest.mark.parametrize("shapes", ["static", "flexible"])
@pytest.mark.parametrize("name", ["gemma-2", "qwen2-sliding", "phi-3-long"])
def test_families(name: str, shapes: str) -> None:
    for row in measure(name, shapes):
        require_whole(row, STEPS)

"""The same tokens in any blocks: after kv-to-state, prefill and decoding agree, also after a ring has wrapped round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milopt.cachedrive import CacheLayout, Caches, recognise
from milopt.interpreter import Plan, compile_all
from milopt.package import Model
from milopt.passes.cache import KvToState
from milopt.passes.cache_inverse import StateToKv
from milopt.signature import CacheSignature, windows_of

from .cache_programs import WIDTH, Layer, model
from .test_cache_forms import ROLLING, SLIDING

QUERIES, LENGTH = (1, 2, 4), 24

# what is tried: the layers, the window of the sliding mask, the options
CASES: dict[str, tuple[Sequence[Layer], int, dict[str, Any]]] = {
    "slices": ([Layer(), Layer(transposed=True)], 0, {"layout": "per-layer"}),
    "masks": ([Layer()], 0, {"update": "mask", "layout": "unified"}),
    "rings": (SLIDING, 4, {"update": "ring"}),
    "rings by masks": (ROLLING, 6, {"update": "mask", "layout": "unified"}),
    "rings of a block": ([Layer(kept=4, returned="kept")], 5, {}),
}


@dataclass(frozen=True)
class Driven:
    """A model with its cache, fed with vectors."""

    plans: Mapping[int, Plan]
    layout: CacheLayout

    @classmethod
    def of(cls, made: Model, signature: CacheSignature) -> Driven:
        plans = compile_all(made, precision="float64")
        layout = recognise(plans, signature, made.metadata)
        assert layout is not None
        return cls({layout.query_length(plan): plan for plan in plans.values()}, layout)

    def empty(self) -> Caches:
        return self.layout.empty({plan.function: plan for plan in self.plans.values()})

    def feed(self, caches: Caches, vectors: Any, position: int, splits: Sequence[tuple[int, int]]) -> Any:
        """What comes out for each vector; a block of ``(length, count)`` is filled up with noise."""
        rng, rows = np.random.default_rng(9), list[Any]()
        for length, count in splits:
            x = rng.standard_normal((1, length, WIDTH))
            x[0, :count] = vectors[position : position + count]
            places = np.arange(position, position + length)
            inputs: dict[str, Any] = {"x": x, "position_ids": places[None].astype(np.int32)}
            for name in self.layout.signature.masks:
                columns = np.arange(self.layout.context)
                seen = columns <= places[:, None]
                if (window := self.layout.windows.get(name)) is not None:
                    seen &= columns > places[:, None] - window
                inputs[name] = np.where(seen, 0.0, -1e4)[None, None]
            rows.append(caches.run(self.plans[length], position, inputs)["hidden"][0, :count].numpy())
            position += count
        return np.concatenate(rows)


@cache
def both(case: str) -> tuple[Driven, Any, Any]:
    """The stateful model, vectors, and what the model before gives for them one by one."""
    layers, window, options = CASES[case]
    made = model(QUERIES, layers, window=window, context=LENGTH)
    before = made.clone()
    report = KvToState(**options).run(made)
    assert report.signature is not None
    vectors = np.random.default_rng(5).standard_normal((LENGTH, WIDTH))
    old = Driven.of(before, report.signature)
    wanted = old.feed(old.empty(), vectors, 0, [(1, 1)] * LENGTH)
    return Driven.of(made, report.signature), vectors, wanted


@st.composite
def splits(draw: st.DrawFn, start: int = 0, stop: int = LENGTH) -> list[tuple[int, int]]:
    """Blocks that cover the tokens, some of them padded, none beyond the context."""
    found: list[tuple[int, int]] = []
    while start < stop:
        length = draw(st.sampled_from([each for each in QUERIES if start + each <= LENGTH]))
        count = draw(st.integers(1, min(length, stop - start)))
        found.append((length, count))
        start += count
    return found


# 1e-9: float64, in which a sum over other columns, hidden ones among them, rounds otherwise
TOLERANCE = 1e-9


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=6, deadline=None)
@given(blocks=splits())
def test_every_split_of_the_tokens_gives_the_same(case: str, blocks: list[tuple[int, int]]) -> None:
    driven, vectors, wanted = both(case)
    np.testing.assert_allclose(driven.feed(driven.empty(), vectors, 0, blocks), wanted, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("case", CASES)
def test_two_conversations_do_not_mix_and_a_reset_forgets(case: str) -> None:
    driven, vectors, wanted = both(case)
    other = vectors[::-1]
    one, two = driven.empty(), driven.empty()
    first = driven.feed(one, vectors, 0, [(4, 4)] * 3)
    driven.feed(two, other, 0, [(2, 2)] * 5)
    second = driven.feed(one, vectors, 12, [(1, 1)] * 12)
    np.testing.assert_allclose(np.concatenate((first, second)), wanted, rtol=TOLERANCE, atol=TOLERANCE)
    two.reset()
    np.testing.assert_allclose(driven.feed(two, vectors, 0, [(2, 2)] * 12), wanted, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("case", CASES)
def test_there_and_back_gives_the_same(case: str) -> None:
    layers, window, options = CASES[case]
    made = model(QUERIES, layers, window=window, context=LENGTH)
    assert KvToState(**options).run(made)
    report = StateToKv().run(made)
    assert report.signature is not None
    _, vectors, wanted = both(case)
    back = Driven.of(made, report.signature)
    np.testing.assert_allclose(
        back.feed(back.empty(), vectors, 0, [(2, 2)] * 12), wanted, rtol=TOLERANCE, atol=TOLERANCE
    )


def test_the_window_matters() -> None:
    """Or these tests would pass whatever a ring holds."""
    driven, vectors, wanted = both("rings")
    assert windows_of(("sliding_mask",), {"milopt.sliding_window": "4"}) == driven.layout.windows
    wide = Driven(driven.plans, CacheLayout(driven.layout.signature, True, {"sliding_mask": 3}))
    narrow = wide.feed(wide.empty(), vectors, 0, [(4, 4)] * 6)
    assert np.abs(narrow - wanted).max() > 1e-3

"""What docs/caches.md counts: attentions, repeated keys and values, arithmetic on sizes, and none that look alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from benchmarks.cache_counts import copies, fused, sizes, written
from milopt.mil import get_new_symbol, mb, target
from milopt.package import Model, load

ROWS = get_new_symbol()
I32: Any = np.int32


def model_of(build: Callable[[Any], Any], shape: tuple[Any, ...] = (1, 4, 3, 8)) -> Model:
    @mb.program(input_specs=[mb.TensorSpec(shape)], opset_version=target.iOS18)
    def program(x: Any) -> Any:
        return build(x)

    return load(program)


def weight(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def attention(query: Any, key: Any, value: Any) -> Any:
    scores = mb.mul(x=mb.matmul(x=query, y=key, transpose_y=True), y=np.float32(0.25))
    weights = mb.softmax(x=mb.add(x=scores, y=weight(1, 1, 3, 3)), axis=-1)
    return mb.matmul(x=mb.cast(x=weights, dtype="fp32"), y=value)


def repeated(x: Any, *, by_concat: bool = False) -> Any:
    apart = mb.expand_dims(x=x, axes=[2])
    wide = mb.concat(values=[apart, apart], axis=2) if by_concat else mb.tile(x=apart, reps=[1, 1, 2, 1, 1])
    return mb.reshape(x=wide, shape=[1, 8, 3, 8])


def rotated(x: Any) -> Any:
    """Keys times a table whose columns are repeated."""
    table = mb.tile(x=mb.cos(x=mb.reduce_sum(x=x, axes=[-1], keep_dims=True)), reps=[1, 1, 1, 8])
    return mb.mul(x=x, y=table)


def router(x: Any) -> Any:
    """Shares of experts, of which the greatest count: between two linear layers."""
    shares = mb.softmax(x=mb.linear(x=x, weight=weight(5, 8)), axis=-1)
    _, chosen = mb.topk(x=shares, k=2, axis=-1)
    one_hot = mb.equal(x=mb.expand_dims(x=chosen, axes=[-1]), y=np.arange(5, dtype=np.int32))
    return mb.matmul(x=mb.mul(x=shares, y=mb.reduce_max(x=mb.cast(x=one_hot, dtype="fp32"), axes=[-2])), y=weight(5, 8))


COUNTS: dict[str, tuple[Callable[[Any], Any], tuple[int, int, int]]] = {
    "attention": (lambda x: attention(x, x, mb.relu(x=x)), (1, 0, 0)),
    "attention as an op": (lambda x: mb.scaled_dot_product_attention(query=x, key=x, value=x), (0, 1, 0)),
    "attention on repeated keys": (lambda x: attention(repeated(x), repeated(x), repeated(x)), (1, 0, 3)),
    "keys that are joined to themselves": (
        lambda x: mb.scaled_dot_product_attention(
            query=mb.concat(values=[x, x], axis=1),
            key=repeated(x, by_concat=True),
            value=mb.concat(values=[x, mb.relu(x=x)], axis=1),
        ),
        (0, 1, 1),
    ),
    "a rotary table": (lambda x: attention(rotated(x), rotated(x), x), (1, 0, 0)),
    "a router": (router, (0, 0, 0)),
    "a head's softmax behind attention": (
        lambda x: mb.softmax(x=mb.linear(x=attention(x, x, x), weight=weight(5, 8)), axis=-1),
        (1, 0, 0),
    ),
    "a product of weights before": (
        lambda x: mb.matmul(x=mb.softmax(x=mb.matmul(x=x, y=weight(8, 3))), y=x),
        (0, 0, 0),
    ),
}


@pytest.mark.parametrize("case", COUNTS)
def test_sites_and_copies(case: str) -> None:
    build, wanted = COUNTS[case]
    model = model_of(build)
    assert (written(model), fused(model), copies(model)) == wanted


def test_arithmetic_on_sizes() -> None:
    def build(x: Any) -> Any:
        mine = mb.shape(x=x)
        wanted = mb.concat(values=[I32([1, 4]), mb.slice_by_index(x=mine, begin=[2], end=[4])], axis=0)
        chosen = mb.select(cond=mb.equal(x=wanted, y=np.int32(-1)), a=mine, b=wanted)
        return mb.tile(x=x, reps=mb.real_div(x=chosen, y=mine))

    assert sizes(model_of(build, (1, 1, ROWS, 8))) == 3


def test_arithmetic_on_other_integers() -> None:
    """Of tokens, and of experts; and on sizes that become no size again."""

    def build(x: Any) -> Any:
        known = mb.cast(x=x, dtype="int32")
        picked = mb.select(cond=mb.equal(x=known, y=np.int32(3)), a=known, b=mb.floor_div(x=known, y=np.int32(2)))
        return mb.add(x=router(x), y=mb.cast(x=mb.reduce_sum(x=picked), dtype="fp32"))

    assert sizes(model_of(build, (1, 4, ROWS, 8))) == 0

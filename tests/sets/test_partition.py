"""Layers in chunks of which the largest is as small as can be."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milopt.sets import SetError
from milopt.sets.partition import balanced, fewest, size_of

# tensors 0 to 5 of fixed sizes: layers often have one in common
_SIZES = (1, 2, 3, 5, 8, 13)
_LAYERS = st.lists(st.sets(st.integers(0, 5), max_size=3), min_size=1, max_size=7)


def _weights(layers: list[set[int]]) -> list[dict[object, int]]:
    return [{key: _SIZES[key] for key in layer} for layer in layers]


def _largest(layers: list[dict[object, int]], cuts: tuple[int, ...]) -> int:
    return max(size_of(layers[start:end]) for start, end in pairwise((0, *cuts, len(layers))))


@given(_LAYERS, st.data())
def test_no_other_cuts_are_better(keys: list[set[int]], data: st.DataObject) -> None:
    layers = _weights(keys)
    count = data.draw(st.integers(1, len(layers)))
    cuts, largest = balanced(layers, count)
    assert len(cuts) == count - 1
    assert sorted(set(cuts)) == cuts
    assert all(0 < cut < len(layers) for cut in cuts)
    assert largest == _largest(layers, tuple(cuts))
    assert largest == min(_largest(layers, each) for each in combinations(range(1, len(layers)), count - 1))


@given(_LAYERS, st.integers(0, 40))
def test_the_fewest_chunks_within_a_limit(keys: list[set[int]], limit: int) -> None:
    layers = _weights(keys)
    if any(size_of([layer]) > limit for layer in layers):
        with pytest.raises(SetError, match=f"within {limit} bytes: layer"):
            fewest(layers, limit)
        return
    count = fewest(layers, limit)
    assert balanced(layers, count)[1] <= limit
    assert count == 1 or balanced(layers, count - 1)[1] > limit


def test_a_tensor_of_several_layers_counts_once() -> None:
    layers: list[dict[object, int]] = [{"a": 10, "b": 1}, {"a": 10, "c": 1}, {"d": 11}]
    assert size_of(layers) == 23
    assert balanced(layers, 2) == ([2], 12)


def test_the_layer_that_is_too_large_is_named() -> None:
    with pytest.raises(SetError, match=r"within 9 bytes: layer 1 and what goes with it has 12$"):
        fewest([{"a": 4}, {"b": 12}, {"c": 11}], 9)

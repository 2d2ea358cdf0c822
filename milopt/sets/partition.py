"""Layers in a row become chunks of which the largest is as small as can be: exactly, by dynamic programming."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from milopt.sets.errors import SetError

__all__ = ["Weights", "balanced", "fewest", "size_of"]

Weights: TypeAlias = "Mapping[object, int]"
"""What a layer stores: tensors by key, with their bytes. Layers of one chunk store a tensor of theirs once."""


def size_of(layers: Sequence[Weights]) -> int:
    """The bytes that layers store together."""
    return sum({key: size for layer in layers for key, size in layer.items()}.values())


def balanced(layers: Sequence[Weights], count: int) -> tuple[list[int], int]:
    """Where to cut the row into ``count`` chunks, as numbers of layers before each cut, and the largest chunk's bytes.

    Each chunk has one layer at least: ``1 <= count <= len(layers)``.
    """
    sizes = _sizes(layers)
    total = len(layers)
    best = [*sizes[0]]  # best[j]: the largest of the chunks that hold the first j layers
    cuts: list[list[int]] = [[] for _ in best]
    for chunks in range(2, count + 1):
        found, at = [0] * len(best), [list[int]() for _ in best]
        for end in range(chunks, total + 1):
            choices = [(max(best[start], sizes[start][end]), start) for start in range(chunks - 1, end)]
            found[end], start = min(choices)
            at[end] = [*cuts[start], start]
        best, cuts = found, at
    return cuts[total], best[total]


def fewest(layers: Sequence[Weights], limit: int) -> int:
    """The smallest number of chunks none of which stores more than ``limit`` bytes."""
    largest = max(range(len(layers)), key=lambda at: size_of(layers[at : at + 1]))
    if (size := size_of(layers[largest : largest + 1])) > limit:
        raise SetError(
            f"no cut between layers keeps every chunk within {limit:,} bytes: "
            f"layer {largest} and what goes with it has {size:,}"
        )
    return next(count for count in range(1, len(layers) + 1) if balanced(layers, count)[1] <= limit)


def _sizes(layers: Sequence[Weights]) -> list[list[int]]:
    """``[start][end]``: what layers from ``start`` up to ``end`` store together."""
    table = [[0] * (len(layers) + 1) for _ in range(len(layers) + 1)]
    for start in range(len(layers)):
        seen: dict[object, int] = {}
        held = 0
        for end in range(start, len(layers)):
            for key, size in layers[end].items():
                held += size if key not in seen else 0
                seen[key] = size
            table[start][end + 1] = held
    return table

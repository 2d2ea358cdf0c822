"""All cases."""

from __future__ import annotations

from milopt.testing.ops import (
    activations,
    constants,
    convolutions,
    elementwise,
    images,
    movements,
    normalizations,
    products,
    rearrangements,
    reductions,
    selections,
    slices,
)

__all__ = ["CASES"]

CASES = [
    *activations.cases,
    *constants.cases,
    *convolutions.cases,
    *elementwise.cases,
    *images.cases,
    *movements.cases,
    *normalizations.cases,
    *products.cases,
    *rearrangements.cases,
    *reductions.cases,
    *selections.cases,
    *slices.cases,
]

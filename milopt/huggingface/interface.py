"""The signature of a converted decoder: tokens, positions, a mask and the past go in, logits and the present come out.

One function serves one query length ``Q``; its past holds ``P = context - Q`` slots, so that ``[past | new]`` always
has ``context`` columns. A caller keeps its tokens at the right end: the past of the next step, whatever its query
length, is the last ``P`` columns of the present of this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from milopt.huggingface.errors import ConversionError

__all__ = ["MASK_VALUE", "Interface", "causal_mask", "function_names"]

MASK_VALUE = -1e4
"""What the mask adds where a query may not look.

Finite, because fp16 turns float32's lowest number into -inf and a row of those into NaN. exp(-1e4) is 0 in every
format, scores of a trained model stay far below 1e4, and twice this value is still within fp16's 65504.
"""


@dataclass(frozen=True)
class Interface:
    """Shapes of one function: ``context`` columns of which ``query_length`` are new, for each of ``layers`` layers."""

    context: int
    query_length: int
    vocabulary: int
    layers: int
    kv_heads: int
    head_dim: int

    @property
    def past_length(self) -> int:
        return self.context - self.query_length

    @property
    def past_names(self) -> list[str]:
        return [f"past_{kind}_{layer}" for layer in range(self.layers) for kind in ("key", "value")]

    @property
    def inputs(self) -> dict[str, tuple[int, ...]]:
        """Input name -> shape, in the order of the function's inputs; ids and positions are int32, the rest floats."""
        past = (1, self.kv_heads, self.past_length, self.head_dim)
        return {
            "input_ids": (1, self.query_length),
            "position_ids": (1, self.query_length),
            "causal_mask": (1, 1, self.query_length, self.context),
            **dict.fromkeys(self.past_names, past),
        }

    @property
    def outputs(self) -> dict[str, tuple[int, ...]]:
        """Output name -> shape, in the order of the function's outputs."""
        present = (1, self.kv_heads, self.context, self.head_dim)
        return {
            "logits": (1, self.query_length, self.vocabulary),
            **{name.replace("past", "present", 1): present for name in self.past_names},
        }


def causal_mask(context: int, query_length: int, *, past: int) -> npt.NDArray[np.float32]:
    """The mask (1, 1, Q, context) when the last ``past`` slots of the past hold tokens and all ``Q`` queries are new.

    Columns are [past | new]: 0 where the query of that row may look, ``MASK_VALUE`` elsewhere.
    """
    slots = context - query_length
    if not 0 <= past <= slots:
        raise ConversionError(f"{past} past tokens do not fit the {slots} past slots of this function")
    mask = np.full((1, 1, query_length, context), MASK_VALUE, np.float32)
    mask[..., slots - past : slots] = 0
    mask[..., slots:][..., np.tri(query_length, dtype=bool)] = 0
    return mask


def function_names(query_lengths: Sequence[int]) -> dict[int, str]:
    """Query length -> name of its function.

    One length makes ``main``; the usual two, 1 and a block, make ``decode`` and ``prefill``; others are ``q<length>``.
    """
    if len(query_lengths) == 1:
        return {query_lengths[0]: "main"}
    if len(query_lengths) == 2 and query_lengths[0] == 1:
        return {1: "decode", query_lengths[1]: "prefill"}
    return {length: f"q{length}" for length in query_lengths}

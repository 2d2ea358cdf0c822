"""The signature of a converted decoder: tokens, positions, masks and the past go in, logits and the present come out.

One function serves one query length ``Q``; its past holds ``P = context - Q`` slots, so that ``[past | new]`` always
has ``context`` columns. A caller keeps its tokens at the right end: the past of the next step, whatever its query
length, is the last ``P`` columns of the present of this one. A function of flexible shapes takes any ``Q`` and any
``P`` of at least one slot, and its masks have ``P + Q`` columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from milopt.huggingface.errors import ConversionError
from milopt.huggingface.features import Feature, Shape, Sizes

__all__ = ["MASK_VALUE", "Interface", "LayerCache", "Logits", "Masks", "causal_mask", "function_names"]

MASK_VALUE = -1e4
"""What the mask adds where a query may not look.

Finite, because fp16 turns float32's lowest number into -inf and a row of those into NaN. exp(-1e4) is 0 in every
format, scores of a trained model stay far below 1e4, and twice this value is still within fp16's 65504.
"""

Logits: TypeAlias = Literal["all", "last"]

_ADDED = "added to the attention scores: 0 where a query may look, -1e4 elsewhere; columns are [past | new]"
_DESCRIPTIONS = {
    "past_key": "keys of the past, newest last",
    "past_value": "values of the past, newest last",
    "present_key": "past_key with the new tokens' keys behind it",
    "present_value": "past_value with the new tokens' values behind it",
}


@dataclass(frozen=True)
class LayerCache:
    """What one layer keeps of a token: ``heads`` keys of ``key_dim`` numbers and values of ``value_dim``."""

    heads: int
    key_dim: int
    value_dim: int


@dataclass(frozen=True)
class Masks:
    """Which layers look how far back: ``full`` ones at everything, ``sliding`` ones at the last ``window`` tokens."""

    full: bool = True
    window: int | None = None

    @property
    def windows(self) -> dict[str, int | None]:
        """Name of each mask input -> how many tokens a query sees, itself included; ``None`` for all.

        Layers of both kinds take two masks. Where all layers slide, ``causal_mask`` is the sliding one.
        """
        if self.full and self.window is not None:
            return {"causal_mask": None, "sliding_mask": self.window}
        return {"causal_mask": self.window}


@dataclass(frozen=True)
class Interface:
    """Inputs and outputs of one function: ``context`` columns of which ``query_length`` are new, for each layer.

    ``query_length=None`` makes the shapes flexible: any number of new tokens behind any past. ``logits="last"`` leaves
    out all rows of the logits but that of the last token.
    """

    context: int
    query_length: int | None
    vocabulary: int
    layers: tuple[LayerCache, ...]
    masks: Masks = Masks()
    batch: int = 1
    logits: Logits = "all"

    @property
    def is_flexible(self) -> bool:
        return self.query_length is None

    @property
    def past_names(self) -> list[str]:
        return [f"past_{kind}_{layer}" for layer in range(len(self.layers)) for kind in ("key", "value")]

    @property
    def inputs(self) -> dict[str, Feature]:
        """Input name -> what it is, in the order of the function's inputs."""
        query, past, columns = self._sizes
        tokens: Shape = (self.batch, query)
        return {
            "input_ids": Feature(tokens, "token ids of the new tokens", integer=True),
            "position_ids": Feature(tokens, "position of every new token, counted from 0", integer=True),
            **{
                name: Feature((self.batch, 1, query, columns), _mask_text(window))
                for name, window in self.masks.windows.items()
            },
            **self._cached("past", past),
        }

    @property
    def outputs(self) -> dict[str, Feature]:
        """Output name -> what it is, in the order of the function's outputs."""
        query, _, columns = self._sizes
        rows, text = query, "scores of the next token after every new token"
        if self.logits == "last":
            rows, text = 1, "scores of the next token after the last of the new tokens"
        return {
            "logits": Feature((self.batch, rows, self.vocabulary), text),
            **self._cached("present", columns),
        }

    @property
    def _sizes(self) -> tuple[int | Sizes, int | Sizes, int | Sizes]:
        """New tokens, slots of the past, and both together."""
        if self.query_length is not None:
            return self.query_length, self.context - self.query_length, self.context
        usual = min(64, self.context - 1)
        return (
            Sizes("query", 1, self.context - 1, usual),
            Sizes("past", 1, self.context - 1, self.context - usual),
            Sizes("columns", 2, self.context, self.context),
        )

    def _cached(self, what: str, columns: int | Sizes) -> dict[str, Feature]:
        found: dict[str, Feature] = {}
        for index, layer in enumerate(self.layers):
            for kind, size in (("key", layer.key_dim), ("value", layer.value_dim)):
                shape = (self.batch, layer.heads, columns, size)
                found[f"{what}_{kind}_{index}"] = Feature(shape, _DESCRIPTIONS[f"{what}_{kind}"])
        return found


def _mask_text(window: int | None) -> str:
    return _ADDED if window is None else f"{_ADDED}; a query looks at the last {window} tokens, itself included"


def causal_mask(context: int, query_length: int, *, past: int, window: int | None = None) -> npt.NDArray[np.float32]:
    """The mask (1, 1, Q, context) when the last ``past`` slots of the past hold tokens and all ``Q`` queries are new.

    Columns are [past | new]: 0 where the query of that row may look, ``MASK_VALUE`` elsewhere. With a ``window``, a
    query looks at the last ``window`` tokens, itself included.
    """
    slots = context - query_length
    if not 0 <= past <= slots:
        raise ConversionError(f"{past} past tokens do not fit the {slots} past slots of this function")
    if window is not None and window < 1:
        raise ConversionError(f"a sliding window holds at least one token, not {window}")
    columns = np.arange(context)
    queries = slots + np.arange(query_length)[:, None]
    seen = (columns >= slots - past) & (columns <= queries)
    if window is not None:
        seen &= columns > queries - window
    return np.where(seen, 0, MASK_VALUE).astype(np.float32)[None, None]


def function_names(query_lengths: Sequence[int]) -> dict[int, str]:
    """Query length -> name of its function.

    One length makes ``main``; the usual two, 1 and a block, make ``decode`` and ``prefill``; others are ``q<length>``.
    """
    if len(query_lengths) == 1:
        return {query_lengths[0]: "main"}
    if len(query_lengths) == 2 and query_lengths[0] == 1:
        return {1: "decode", query_lengths[1]: "prefill"}
    return {length: f"q{length}" for length in query_lengths}

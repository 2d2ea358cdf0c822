"""The unmodified model behind explicit inputs and outputs, as torch's tracer needs it.

Importing this module imports torch; milopt does so only while it converts.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from milopt.huggingface.extras import extra
from milopt.huggingface.interface import MASK_VALUE, Logits, Masks

__all__ = ["Encoding", "ImageEncoding", "PastPresent", "plain_cache"]


class PastPresent(torch.nn.Module):
    """``model`` with every layer's past as an input and its present as an output.

    A four-dimensional float mask is handed to attention as it is, so transformers' own mask construction is not traced.
    The cache is filled through its layers' fields: appending then is one concatenation per tensor, ``[past | new]``.
    Models with layers of two kinds take a mask for each; the sliding one comes first in ``rest``.
    """

    def __init__(self, model: Any, masks: Masks | None = None, logits: Logits = "all") -> None:
        super().__init__()
        self.model = model
        self._two_masks = masks is not None and len(masks.windows) == 2
        self._only_last = logits == "last"
        # the model then computes no other rows
        keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._options: dict[str, Any] = {"logits_to_keep": 1} if self._only_last and keeps else {}

    def forward(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, causal_mask: torch.Tensor, *rest: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        mask: Any = causal_mask
        if self._two_masks:
            mask, rest = {"full_attention": causal_mask, "sliding_attention": rest[0]}, rest[1:]
        cache = _filled_cache(rest)
        result = self.model(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            return_dict=True,
            **self._options,
        )
        logits = result.logits[:, -1:] if self._only_last else result.logits
        present = (tensor for layer in cache.layers for tensor in (layer.keys, layer.values))
        return (logits, *present)


class Encoding(torch.nn.Module):
    """An encoder of text with a mask (B, S) of ones and zeros, which becomes one that is added to attention scores."""

    def __init__(self, model: Any, outputs: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self._outputs = tuple(outputs)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, *token_types: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        hidden = (1.0 - attention_mask.to(torch.float32)) * MASK_VALUE
        types = {"token_type_ids": token_types[0]} if token_types else {}
        result = self.model(input_ids=input_ids, attention_mask=hidden[:, None, None, :], return_dict=True, **types)
        return tuple(result[name] for name in self._outputs)


class ImageEncoding(torch.nn.Module):
    """An encoder of images."""

    def __init__(self, model: Any, outputs: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self._outputs = tuple(outputs)

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        result = self.model(pixel_values=pixel_values, return_dict=True)
        return tuple(result[name] for name in self._outputs)


def plain_cache() -> Any:
    """A cache all of whose layers keep everything: without a config every layer is a plain DynamicLayer."""
    return extra("transformers.cache_utils").DynamicCache()


def _filled_cache(past: tuple[torch.Tensor, ...]) -> Any:
    caches = extra("transformers.cache_utils")
    cache = plain_cache()
    for keys, values in zip(past[0::2], past[1::2], strict=True):
        layer = caches.DynamicLayer()
        layer.keys, layer.values = keys, values
        layer.dtype, layer.device = keys.dtype, keys.device
        layer.is_initialized = True
        cache.layers.append(layer)
    return cache

"""The unmodified model behind an explicit past and present, as torch's tracer needs it.

Importing this module imports torch; milopt does so only while it converts.
"""

from __future__ import annotations

from typing import Any

import torch

from milopt.huggingface.extras import extra

__all__ = ["PastPresent"]


class PastPresent(torch.nn.Module):
    """``model`` with every layer's past as an input and its present as an output.

    A four-dimensional float mask is handed to attention as it is, so transformers' own mask construction is not traced.
    The cache is filled through its layers' fields: appending then is one concatenation per tensor, ``[past | new]``.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, causal_mask: torch.Tensor, *past: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        cache = _filled_cache(past)
        result = self.model(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=causal_mask,
            past_key_values=cache,
            use_cache=True,
            return_dict=True,
        )
        present = (tensor for layer in cache.layers for tensor in (layer.keys, layer.values))
        return (result.logits, *present)


def _filled_cache(past: tuple[torch.Tensor, ...]) -> Any:
    caches = extra("transformers.cache_utils")
    # Without a config every layer is a plain DynamicLayer, which only concatenates.
    cache = caches.DynamicCache()
    for keys, values in zip(past[0::2], past[1::2], strict=True):
        layer = caches.DynamicLayer()
        layer.keys, layer.values = keys, values
        layer.dtype, layer.device = keys.dtype, keys.device
        layer.is_initialized = True
        cache.layers.append(layer)
    return cache

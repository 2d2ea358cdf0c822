"""Random inputs for a wrapper, and what the unmodified model says to them.

Importing this module imports torch; milopt does so only while it converts.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from milopt.huggingface.encoders import OUTPUTS
from milopt.huggingface.errors import ConversionError
from milopt.huggingface.interface import LayerCache, Logits, Masks, causal_mask
from milopt.huggingface.wrapper import plain_cache

__all__ = ["Sample", "image_sample", "prompt_sample", "short_window", "text_sample"]

# Enough tokens for every head to see a real past; more would only cost time on large models.
_PAST_TOKENS = 32
# A longer window is shortened while its model is checked: a prompt longer than thousands of tokens would take minutes.
_LONGEST_WINDOW = 512


@dataclass(frozen=True)
class Sample:
    """``feeds`` of a wrapper by name, in its order, and the ``wanted`` outputs by name.

    ``others`` are feeds of the same shapes and other values, to trace with: what a trace freezes then shows in the
    check. ``repeat`` runs the unmodified model on the same inputs once more. ``reordered`` are a decoder's feeds with
    the columns of the past, and those of the masks with them, in the opposite order.
    """

    feeds: dict[str, torch.Tensor]
    others: dict[str, torch.Tensor]
    wanted: dict[str, torch.Tensor]
    repeat: Callable[[], object]
    reordered: dict[str, torch.Tensor] | None = None


def prompt_sample(
    model: Any,
    *,
    context: int,
    query_length: int,
    masks: Masks,
    batch: int = 1,
    logits: Logits = "all",
    seed: int = 0,
) -> tuple[Sample, tuple[LayerCache, ...]]:
    """A decoder's answer to whole random prompts, of which all but the last ``query_length`` tokens become the past.

    The past's slots that hold no token are filled with noise, which only the masks keep out. Where the model has a
    sliding window, the prompt is longer than it, if the context is.
    """
    generator = torch.Generator().manual_seed(seed)
    window = short_window(masks.window)
    seen = min(context - query_length, max(_PAST_TOKENS, 0 if window is None else window + 8))
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    tokens = torch.randint(vocabulary, (batch, seen + query_length), generator=generator)

    def run(**options: Any) -> Any:
        with _window_of(model, window):
            return model(input_ids=tokens, return_dict=True, **options)

    whole, cache = run(use_cache=False), plain_cache()
    run(use_cache=True, past_key_values=cache)
    queries = torch.arange(seen, seen + query_length, dtype=torch.int32).expand(batch, -1).contiguous()
    feeds = {"input_ids": tokens[:, seen:].to(torch.int32), "position_ids": queries}
    others = {"input_ids": feeds["input_ids"].flip(1).contiguous(), "position_ids": queries - 1}
    for name, each in masks.windows.items():
        mask = causal_mask(context, query_length, past=seen, window=each if each is None else window)
        feeds[name] = torch.as_tensor(mask).expand(batch, -1, -1, -1).contiguous()
        others[name] = torch.zeros_like(feeds[name])
    wanted = {"logits": whole.logits[:, -1:] if logits == "last" else whole.logits[:, seen:]}
    layers: list[LayerCache] = []
    for index, layer in enumerate(cache.layers):
        _, heads, _, key_dim = layer.keys.shape
        layers.append(LayerCache(heads, key_dim, layer.values.shape[-1]))
        for kind, whole_cache in (("key", layer.keys), ("value", layer.values)):
            past = _padded(whole_cache[:, :, :seen], context - query_length, generator)
            noise = past[:, :, : context - seen - query_length]
            feeds[f"past_{kind}_{index}"], others[f"past_{kind}_{index}"] = past, -past
            wanted[f"present_{kind}_{index}"] = torch.cat((noise, whole_cache), dim=2)
    slots = context - query_length
    reordered = {name: _reordered(name, value, slots) for name, value in feeds.items()}
    return Sample(feeds, others, wanted, lambda: run(use_cache=False), reordered), tuple(layers)


def _reordered(name: str, value: torch.Tensor, slots: int) -> torch.Tensor:
    if name.startswith("past_"):
        return value.flip(2)
    if not name.endswith("_mask"):
        return value
    return torch.cat((value[..., :slots].flip(-1), value[..., slots:]), dim=-1)


def short_window(window: int | None) -> int | None:
    """The sliding window under which a model is checked."""
    return window if window is None else min(window, _LONGEST_WINDOW)


@contextmanager
def _window_of(model: Any, window: int | None) -> Generator[None]:
    """``model`` with this sliding window; transformers makes its masks from the config of the moment."""
    config = model.config
    before = getattr(config, "sliding_window", None)
    if window is None or before == window:
        yield
        return
    config.sliding_window = window
    try:
        yield
    finally:
        config.sliding_window = before


def _padded(tensor: torch.Tensor, slots: int, generator: torch.Generator) -> torch.Tensor:
    """``tensor`` at the right end of so many slots, behind noise."""
    batch, heads, length, size = tensor.shape
    noise = torch.randn((batch, heads, slots - length, size), generator=generator)
    return torch.cat((noise, tensor), dim=2)


def text_sample(model: Any, *, length: int, token_types: bool, batch: int = 1, seed: int = 0) -> Sample:
    """An encoder's answer to random texts, of which the last third is padding."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    tokens = torch.randint(vocabulary, (batch, length), generator=generator).to(torch.int32)
    kept = torch.ones_like(tokens)
    kept[:, length - length // 3 :] = 0
    feeds = {"input_ids": tokens, "attention_mask": kept}
    if token_types:
        feeds["token_type_ids"] = (torch.arange(length) >= length // 2).to(torch.int32).expand(batch, -1).contiguous()
    others = {name: value.flip(1).contiguous() for name, value in feeds.items()}

    def run() -> Any:
        return model(**{name: value.long() for name, value in feeds.items()}, return_dict=True)

    return Sample(feeds, others, _returned(model, run()), run)


def image_sample(model: Any, *, channels: int, height: int, width: int, batch: int = 1, seed: int = 0) -> Sample:
    """An encoder's answer to images of noise."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn((batch, channels, height, width), generator=generator)

    def run() -> Any:
        return model(pixel_values=pixels, return_dict=True)

    return Sample({"pixel_values": pixels}, {"pixel_values": -pixels}, _returned(model, run()), run)


def _returned(model: Any, result: Any) -> dict[str, torch.Tensor]:
    """Those of an encoder's outputs that milopt knows."""
    found = {name: result[name] for name in OUTPUTS if isinstance(result.get(name), torch.Tensor)}
    if not found:
        raise ConversionError(f"{type(model).__name__} returns none of {', '.join(OUTPUTS)}, but {', '.join(result)}")
    return found

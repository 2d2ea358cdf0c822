"""Does what will be converted compute what the unmodified model computes? Asked of every trace, on random tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from milopt.huggingface.errors import SelfCheckError
from milopt.huggingface.interface import Interface, causal_mask

__all__ = ["Sample", "require_same"]

# Enough tokens for every head to see a real past; more would only cost time on large models.
_PAST_TOKENS = 32
# Both sides are float32 and differ in the order of sums: by 8e-7 of the largest logit on small random models, 2.4e-6 on
# SmolLM2-135M. One past slot too many or too few, a position off by one, or one look ahead moved logits by 0.07 to 0.7
# of the largest on SmolLM2-135M, and by 0.008 to 1 on the small models.
_RELATIVE = 1e-4


@dataclass(frozen=True)
class Sample:
    """One prompt: what the wrapper is fed with, and what the unmodified model says to the whole prompt.

    ``feeds`` follow ``Interface.inputs``; ``expected`` are the logits (1, Q, V) of the last Q tokens and, per layer,
    the keys and values (1, Hkv, past + Q, D) of the whole prompt.
    """

    feeds: tuple[torch.Tensor, ...]
    expected: tuple[torch.Tensor, ...]

    @staticmethod
    def measure(model: Any, context: int, query_length: int, *, seed: int = 0) -> tuple[Interface, Sample]:
        """Run ``model`` on random tokens, once whole and once without the last ``query_length`` for the past."""
        generator = torch.Generator().manual_seed(seed)
        seen = min(context - query_length, _PAST_TOKENS)
        vocabulary = int(model.get_input_embeddings().weight.shape[0])
        tokens = torch.randint(vocabulary, (1, seen + query_length), generator=generator)
        whole = model(input_ids=tokens, use_cache=True, return_dict=True)
        prefix = model(input_ids=tokens[:, :seen], use_cache=True, return_dict=True)
        keys = whole.past_key_values.layers[0].keys
        interface = Interface(
            context=context,
            query_length=query_length,
            vocabulary=int(whole.logits.shape[-1]),
            layers=len(whole.past_key_values.layers),
            kv_heads=int(keys.shape[1]),
            head_dim=int(keys.shape[3]),
        )
        return interface, Sample(
            feeds=(
                tokens[:, seen:].to(torch.int32),
                torch.arange(seen, seen + query_length, dtype=torch.int32)[None],
                torch.as_tensor(causal_mask(context, query_length, past=seen)),
                *(_padded(tensor, interface, generator) for tensor in _cached(prefix)),
            ),
            expected=(whole.logits[:, seen:], *_cached(whole)),
        )

    def other_feeds(self) -> tuple[torch.Tensor, ...]:
        """Feeds of the same shapes and other values, to trace with: what a trace freezes then shows in the check."""
        tokens, positions, mask, *past = self.feeds
        return tokens.flip(1).contiguous(), positions + 1, torch.zeros_like(mask), *(-tensor for tensor in past)


def _cached(result: Any) -> list[torch.Tensor]:
    return [tensor for layer in result.past_key_values.layers for tensor in (layer.keys, layer.values)]


def _padded(tensor: torch.Tensor, interface: Interface, generator: torch.Generator) -> torch.Tensor:
    """``tensor`` at the right end of the past, behind noise that only the mask keeps out."""
    _, heads, length, size = tensor.shape
    noise = torch.randn((1, heads, interface.past_length - length, size), generator=generator)
    return torch.cat((noise, tensor), dim=2)


def require_same(what: str, sample: Sample, got: Sequence[torch.Tensor]) -> float:
    """The largest difference relative to the largest expected value; :class:`SelfCheckError` when it is too large.

    ``got`` are logits and presents; of a present the tokens' columns must be the model's own, and the columns before
    them the past that was given.
    """
    _, _, _, *pasts = sample.feeds
    (logits, *caches), (got_logits, *presents) = sample.expected, got
    differences = {"logits": _difference(logits, got_logits)}
    for index, (past, cache, present) in enumerate(zip(pasts, caches, presents, strict=True)):
        name = f"present_{('key', 'value')[index % 2]}_{index // 2}"
        whole = torch.cat((past[:, :, : present.shape[2] - cache.shape[2]], cache), dim=2)
        differences[name] = _difference(whole, present)
    worst = max(differences, key=lambda name: differences[name])
    if not differences[worst] <= _RELATIVE:
        raise SelfCheckError(
            f"{what} does not compute what the unmodified model computes: {worst} differs by {differences[worst]:.3g} "
            f"of its largest value (at most {_RELATIVE:g} is rounding); "
            "torch or transformers may be too new for milopt",
            differences[worst],
        )
    return differences[worst]


def _difference(expected: torch.Tensor, got: torch.Tensor) -> float:
    if expected.shape != got.shape:
        return math.inf
    scale = expected.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    difference = float((expected - got).abs().max() / scale)
    return math.inf if math.isnan(difference) else difference

"""What transformers says: the tokens that a model answers with, and the logits on the way."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from milopt.contracts.clients import Logits
from milopt.errors import MiloptError
from milopt.huggingface.programcheck import rounded_weights
from milopt.huggingface.sources import ModelSource, open_source
from milopt.huggingface.standins import real_weights
from milopt.huggingface.tracing import evaluating, in_float32

__all__ = ["Reference", "answer"]


@dataclass(frozen=True)
class Reference:
    """A prompt and greedy tokens behind it, with the logits (tokens, V) of each."""

    tokens: tuple[int, ...]
    logits: Logits


def answer(
    source: ModelSource, prompt: int, count: int, *, context: int, vocabulary: int, seed: int, pickles: bool = False
) -> Reference:
    """``prompt`` random tokens, and ``count`` that the model finds likeliest, one after another, without a cache.

    Its weights are rounded to fp16, as the package's are, and all else is float32. ``pickles`` allows PyTorch's
    ``.bin`` files that hold nothing but tensors. ConversionError where ``source`` can't be read; MiloptError where it
    is no language model of that many words.
    """
    opened = open_source(source, context=context, pickles=pickles, stand_ins=True)
    where = Path(source).name if isinstance(source, (str, Path)) else opened.name
    if opened.kind != "decoder":
        raise MiloptError(f"{where} is no causal language model, which the reference has to be")
    model = in_float32(opened.model)
    generator = torch.Generator().manual_seed(seed)
    words = int(model.get_input_embeddings().weight.shape[0])
    tokens = torch.randint(min(words, vocabulary), (1, prompt), generator=generator)
    with torch.no_grad(), evaluating(model), real_weights(), rounded_weights(model, True):
        while True:
            logits = model(input_ids=tokens, use_cache=False).logits[0]
            if logits.shape[-1] != vocabulary:
                raise MiloptError(f"{where} has {logits.shape[-1]} words, and the package {vocabulary}")
            if not logits.isfinite().all():
                raise MiloptError(f"{where} itself does not answer with finite numbers")
            if tokens.shape[1] == prompt + count:
                break
            tokens = torch.cat((tokens, logits[-1].argmax().reshape(1, 1)), dim=1)
    return Reference(tuple(map(int, tokens[0])), np.asarray(logits.double().numpy()))

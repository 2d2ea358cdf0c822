"""The front door: a Hugging Face transformers model in, a milopt model out.

    model = milopt.huggingface.convert("SmolLM2-135M-Instruct/", context=512, query_lengths=(1, 64))

Needs ``pip install 'milopt[huggingface]'``; reads models from disk only.
"""

from __future__ import annotations

from milopt.huggingface.conversion import baseline, convert
from milopt.huggingface.errors import ConversionError, SelfCheckError, TokenizerError
from milopt.huggingface.interface import MASK_VALUE, Interface, Masks, causal_mask
from milopt.huggingface.kept import Fate, Kept
from milopt.huggingface.lowering import lower
from milopt.huggingface.streaming import TextStream
from milopt.huggingface.tokenizer import Tokenizer
from milopt.huggingface.tracing import Traced, trace

__all__ = [
    "MASK_VALUE",
    "ConversionError",
    "Fate",
    "Interface",
    "Kept",
    "Masks",
    "SelfCheckError",
    "TextStream",
    "Tokenizer",
    "TokenizerError",
    "Traced",
    "baseline",
    "causal_mask",
    "convert",
    "lower",
    "trace",
]

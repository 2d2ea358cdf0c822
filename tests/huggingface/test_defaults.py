"""Packages made with coremltools' own fp16 conversion, repaired by passes: without the model they came from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from milopt.huggingface import baseline
from milopt.package import Model
from milopt.pipeline import Pipeline
from milopt.session import Session

from .families import FAMILIES, VOCABULARY

CONTEXT, LENGTH = 128, 32
REPAIR = "fp16-safe-norm,rope-table"


def outlier(name: str) -> Any:
    """A model of the family whose residual stream goes beyond 256 in one dimension, as trained ones do."""
    model = FAMILIES[name].make()
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        head = model.get_output_embeddings()
        if head.weight is table:
            head.weight = torch.nn.Parameter(table.clone())
        table[:, 3] = 1500 / float(getattr(model.get_input_embeddings(), "embed_scale", 1.0))
        head.weight /= 4
    return model


def logits(model: Model, tokens: list[int]) -> Any:
    return Session(model).feed(tokens).astype(np.float64)


def snr(exact: Any, found: Any) -> float:
    return float(10 * np.log10((exact**2).sum() / ((found - exact) ** 2).sum()))


@pytest.mark.parametrize(
    "name",
    [
        "llama",
        *(
            pytest.param(each, marks=pytest.mark.slow)
            for each in ("llama-3", "qwq-yarn", "qwen3", "gemma-2", "gemma-3")
        ),
    ],
)
def test_repaired(name: str) -> None:
    source = outlier(name)
    model = baseline(source, context=CONTEXT, query_lengths=(LENGTH,))
    tokens = [int(each) for each in np.random.default_rng(0).integers(3, VOCABULARY, CONTEXT - 1)]
    with torch.no_grad():
        exact = source(torch.tensor([tokens])).logits[0].double().numpy()
    assert not snr(exact, logits(model, tokens)) >= 15  # nearly nothing of it is left, or NaN
    report = Pipeline.parse(REPAIR).run(model)
    assert all(each.applied for each in report.parts)
    # fp16 throughout leaves 45 to 60 dB; the angles' rounding alone would leave less than 30 at the last positions
    assert snr(exact, logits(model, tokens)) > 40

"""stories260K in transformers, with the weights it was published with or those that a package holds."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from milopt import mil
from milopt.interpreter.values import Array
from milopt.package import Model
from tests.models.twins import EPSILON_16, tensors

__all__ = ["STORY", "causal", "greedy", "published", "rebuilt", "text"]

STORY = "Once upon a time, there was a little girl named Lily"


def published(folder: Path) -> Any:
    """The trained model in float64."""
    transformers: Any = pytest.importorskip("transformers")
    return transformers.LlamaForCausalLM.from_pretrained(
        folder / "hf", dtype=torch.float64, attn_implementation="eager"
    ).eval()


def rebuilt(folder: Path, model: Model, function: str | None = None) -> Any:
    """The same architecture with every number the package holds: weights, angles, epsilon and scale.

    coremltools adds the epsilon of ``rsqrt``, 1e-12 at most in what the packages hold, and that of the norm.
    """
    net, held = published(folder), tensors(model, function)
    with torch.no_grad():
        for key, weight in net.named_parameters():
            weight.copy_(held[f"m_{key.replace('.', '_')}"])
    net.model.rotary_emb = Angles(*(held[name if name in held else f"{name}_1"] for name in ("cos", "sin")))
    fused = any(op.op_type == "scaled_dot_product_attention" for op in mil.operations(model.function(function)))
    for layer in net.model.layers:
        # where attention is spelt out, its scale is an fp16 number, 1e-4 too small
        layer.self_attn.scaling = 1 / np.sqrt(8) if fused else float(np.float16(1 / np.sqrt(8)))
        layer.input_layernorm.variance_epsilon = layer.post_attention_layernorm.variance_epsilon = EPSILON_16
    net.model.norm.variance_epsilon = EPSILON_16
    return net


class Angles(torch.nn.Module):
    """Rotary angles from a table, as the packages have them."""

    def __init__(self, *tables: torch.Tensor) -> None:
        super().__init__()
        self.cos, self.sin = (each.reshape(-1, 8) for each in tables)

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.cos[position_ids], self.sin[position_ids]


def greedy(net: Any, tokens: list[int], count: int) -> list[int]:
    """What ``generate`` of transformers says after ``tokens``, ``count`` tokens in all."""
    length = count - len(tokens)
    found = net.generate(
        torch.tensor([tokens]), max_new_tokens=length, min_new_tokens=length, do_sample=False, pad_token_id=0
    )
    return [int(each) for each in found[0]]


def causal(rows: int, columns: int) -> Array:
    """An additive mask: the last row sees every column."""
    return np.triu(np.full((rows, columns), -1e4), 1 + columns - rows)[None, None]


def text(tokens: list[int], folder: Path) -> str:
    """The tokens in words, after llama2.c's vocabulary: a header, then a score, a length and bytes for each piece."""
    data, at, pieces = (folder / "tok512.bin").read_bytes(), 4, list[bytes]()
    for _ in range(512):
        (length,) = struct.unpack_from("<i", data, at + 4)
        pieces.append(data[at + 8 : at + 8 + length])
        at += 8 + length
    return b"".join(pieces[token] for token in tokens).decode().removeprefix("\n<s>\n").strip()

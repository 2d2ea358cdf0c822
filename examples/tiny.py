"""A small attention layer in torch, and how coremltools converts it: what the other examples start from."""

from __future__ import annotations

from typing import Any

import coremltools as ct
import torch


class Attention(torch.nn.Module):
    """One attention layer as people write it: four linears, a scaled softmax, a residual."""

    def __init__(self, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.query, self.key, self.value, self.out = (torch.nn.Linear(width, width) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def split(y: torch.Tensor) -> torch.Tensor:
            return y.reshape(1, 16, self.heads, self.size).transpose(1, 2)

        q, k, v = split(self.query(x)), split(self.key(x)), split(self.value(x))
        weights = torch.softmax(q @ k.transpose(-1, -2) * 0.2, dim=-1)
        mixed: torch.Tensor = self.out((weights @ v).transpose(1, 2).reshape(1, 16, 64))
        return x + mixed


def converted(**options: Any) -> Any:
    """The layer as a coremltools MLModel for iOS 18, in fp32."""
    untyped: Any = torch
    untyped.manual_seed(0)
    traced = untyped.jit.trace(Attention().eval(), torch.zeros(1, 16, 64))
    return ct.convert(
        traced,
        inputs=[ct.TensorType("x", shape=(1, 16, 64))],
        outputs=[ct.TensorType("y")],
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
        **options,
    )

"""Mixtures of experts, written so that every expert sees every token: what a program of fixed ops can say.

transformers sends each token to the experts that its router chose, in loops and kernels whose shapes depend on the
choice. Core ML has no such op; the same sum over all experts, weighted with 0 where an expert was not chosen, is equal
and has static shapes. It costs the work of all experts for every token.

Importing this module imports torch; milopt does so only while it converts.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.nn.functional import linear

__all__ = ["every_expert"]


@contextmanager
def every_expert(model: torch.nn.Module) -> Generator[None]:
    """While this lasts, the experts of ``model`` compute densely.

    These are the modules that transformers' ``use_experts_implementation`` has decorated. One with norms behind its
    experts is left as it is.
    """
    changed = [module for module in model.modules() if _is_experts(module)]
    for module in changed:
        module.forward = partial(_dense, module)
    try:
        yield
    finally:
        for module in changed:
            del module.forward  # the instance's own; the class's is behind it


def _is_experts(module: Any) -> bool:
    decorated = all(hasattr(module, name) for name in ("is_transposed", "has_gate", "has_bias", "down_proj"))
    return decorated and not getattr(module, "has_post_expert_norm", False)


def _dense(
    experts: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """The experts' outputs (T, H) for T tokens (T, H), of which ``top_k_index`` (T, k) says who counts, and how much.

    After the docstring of ``transformers.integrations.moe``, whose loop skips what has no share.
    """
    count = int(experts.down_proj.shape[0])
    chosen = top_k_index[..., None] == torch.arange(count)
    shares = (chosen.to(top_k_weights.dtype) * top_k_weights[..., None]).sum(-2)
    total = torch.zeros_like(hidden_states)
    for index in range(count):
        if experts.has_gate:
            inner = experts._apply_gate(_layer(experts, "gate_up_proj", index, hidden_states))
        else:
            inner = experts.act_fn(_layer(experts, "up_proj", index, hidden_states))
        total = total + shares[:, index : index + 1] * _layer(experts, "down_proj", index, inner)
    return total


def _layer(experts: Any, name: str, index: int, x: torch.Tensor) -> torch.Tensor:
    weight = getattr(experts, name)[index]
    bias = getattr(experts, f"{name}_bias")[index] if experts.has_bias else None
    return linear(x, weight.T if experts.is_transposed else weight, bias)

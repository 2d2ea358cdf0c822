"""A transformers model into a checked TorchScript trace of one query length."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from milopt.huggingface.errors import ConversionError
from milopt.huggingface.interface import Interface
from milopt.huggingface.quiet import tracing_quietly

__all__ = ["Traced", "in_float32", "trace"]


@dataclass(frozen=True)
class Traced:
    """A trace with its signature. ``difference`` is the largest one the self-check saw, relative to the largest value.

    ``module`` shares its weights with the model it was traced from, when that one is float32 and on the CPU.
    """

    module: Any
    interface: Interface
    difference: float


def trace(model: Any, *, context: int, query_length: int) -> Traced:
    """Trace ``model`` (a transformers causal language model) with ``query_length`` new tokens of ``context`` columns.

    The trace's logits and presents are compared in float32 with those of the unmodified model on a whole prompt;
    :class:`SelfCheckError` when they differ. The model's weights, attention and training flags are as before
    afterwards, but other threads must not use it meanwhile.
    """
    require_lengths(context, (query_length,))
    import torch

    from milopt.huggingface.selfcheck import Sample, require_same
    from milopt.huggingface.wrapper import PastPresent

    jit: Any = torch.jit
    model = in_float32(model)
    with torch.no_grad(), tracing_quietly(), _evaluating(model):
        interface, sample = Sample.measure(model, context, query_length)
        with _eager_attention(model):
            wrapper = PastPresent(model).eval()
            require_same("milopt's wrapper of the model", sample, wrapper(*sample.feeds))
            # milopt compares the trace itself, on other inputs than it was made with
            module: Any = jit.trace(wrapper, sample.other_feeds(), check_trace=False)
        difference = require_same("torch's trace of the model", sample, module(*sample.feeds))
    return Traced(module, interface, difference)


def require_lengths(context: int, query_lengths: tuple[int, ...]) -> None:
    """:class:`ConversionError` unless the query lengths are ascending and each leaves room for a past."""
    if not query_lengths or any(length < 1 for length in query_lengths):
        raise ConversionError(
            f"query lengths {list(query_lengths)}: at least one is needed, and each must be 1 or more"
        )
    if any(b <= a for a, b in itertools.pairwise(query_lengths)):
        raise ConversionError(f"query lengths {list(query_lengths)} must be ascending, without repetition")
    if query_lengths[-1] >= context:
        raise ConversionError(f"query length {query_lengths[-1]} leaves no past in a context of {context}")


def in_float32(model: Any) -> Any:
    """``model`` itself when its weights are float32 on the CPU, else such a copy of it."""
    import torch

    fits = all(p.dtype == torch.float32 and p.device.type == "cpu" for p in model.parameters())
    return model if fits else copy.deepcopy(model).to(device="cpu", dtype=torch.float32)


@contextmanager
def _evaluating(model: Any) -> Generator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _eager_attention(model: Any) -> Generator[None]:
    """Attention as matmul, softmax, matmul: one op sequence for every query length (sdpa makes another one at 1)."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)

"""A check that fails says in which module it begins to differ; a model that can't be converted, what is in the way."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from milopt.huggingface import ConversionError, SelfCheckError, convert, lower, samples, trace, wrapper
from milopt.huggingface.interface import causal_mask
from milopt.mil import mb
from tests.huggingface.families import FAMILIES, WINDOW
from tests.huggingface.support import CONTEXT, library, llama

Patch = pytest.MonkeyPatch


def _trace(model: Any, query_length: int = 4) -> Any:
    return trace(model, context=CONTEXT, query_length=query_length)


def _failed(call: Callable[[], object], words: str, module: str | None) -> None:
    with pytest.raises(SelfCheckError, match=words) as caught:
        call()
    assert caught.value.module == module
    assert "\n" not in str(caught.value)


def test_a_mask_of_another_meaning(monkeypatch: Patch) -> None:
    """As if a newer transformers wanted the columns in another order."""

    def mirrored(*args: Any, **options: Any) -> Any:
        return np.ascontiguousarray(causal_mask(*args, **options)[..., ::-1])

    monkeypatch.setattr(samples, "causal_mask", mirrored)
    _failed(lambda: _trace(llama()), "milopt's wrapper of the model", "model.layers.0.self_attn (LlamaAttention)")


def test_a_mask_of_another_shape(monkeypatch: Patch) -> None:
    """As if a newer transformers wanted masks without the axis of heads."""
    forward: Any = wrapper.PastPresent.forward

    def reshaped(self: Any, input_ids: Any, position_ids: Any, mask: Any, *rest: Any) -> Any:
        return forward(self, input_ids, position_ids, mask[..., :-1], *rest)

    monkeypatch.setattr(wrapper.PastPresent, "forward", reshaped)
    with pytest.raises(ConversionError, match=r"can't be run on milopt's interface in model\.layers\.0\.self_attn: "):
        _trace(llama())


def test_one_mask_for_two_kinds_of_layers(monkeypatch: Patch) -> None:
    """As if a newer transformers did not take a mask for each kind."""
    forward: Any = wrapper.PastPresent.forward

    def single(self: Any, input_ids: Any, position_ids: Any, causal: Any, sliding: Any, *rest: Any) -> Any:
        return forward(self, input_ids, position_ids, causal, causal, *rest)

    monkeypatch.setattr(wrapper.PastPresent, "forward", single)
    family = FAMILIES["gemma-3"]
    _failed(lambda: _trace(family.make()), "milopt's wrapper", "model.layers.0.self_attn (Gemma3Attention)")


def test_a_trace_that_froze_something(monkeypatch: Patch) -> None:
    models: Any = importlib.import_module("transformers.models.llama.modeling_llama")
    forward: Any = models.LlamaMLP.forward
    untyped: Any = torch

    def frozen(self: Any, x: Any) -> Any:
        last = x[:, -1:, :1]
        scale = float(last) if untyped.jit.is_tracing() else last
        return forward(self, x) * scale

    monkeypatch.setattr(models.LlamaMLP, "forward", frozen)
    _failed(lambda: _trace(llama()), "torch's trace of the model", "model.layers.0.mlp (LlamaMLP)")


def _sine(x: Any) -> Any:
    return mb.sin(x=x)


def _gelu(x: Any) -> Any:
    return mb.gelu(x=x, mode="EXACT")


def _softmax_of_heads(x: Any) -> Any:
    return mb.softmax(x=x, axis=1)


@pytest.mark.parametrize(
    ("op", "wrong", "module"),
    [
        ("cos", _sine, "model.rotary_emb (LlamaRotaryEmbedding)"),
        ("silu", _gelu, "model.layers.0.mlp.act_fn (SiLUActivation)"),
        ("softmax", _softmax_of_heads, "model.layers.0.self_attn (LlamaAttention)"),
    ],
)
def test_a_converter_that_is_wrong(op: str, wrong: Any, module: str, monkeypatch: Patch) -> None:
    registry: Any = importlib.import_module("coremltools.converters.mil.frontend.torch.ops")._TORCH_OPS_REGISTRY

    def convert_wrongly(context: Any, node: Any) -> None:
        context.add(wrong(context[node.inputs[0]]), node.name)

    monkeypatch.setitem(registry.name_to_func_mapping, op, convert_wrongly)
    _failed(lambda: lower(_trace(llama())), "the converted program does not compute", module)


def test_the_registry_of_passes_is_as_before() -> None:
    registry: Any = importlib.import_module("coremltools.converters.mil.mil.passes.pass_registry").PASS_REGISTRY
    before = set(registry.passes)
    lower(_trace(llama(num_hidden_layers=1)))
    assert set(registry.passes) == before


def test_a_session_that_sees_other_slots_is_found_out(monkeypatch: Patch) -> None:
    """The finished program is fed as users feed it: a session without the window computes something else."""
    monkeypatch.setattr("milopt.plans.recognise", _without_window)
    with pytest.raises(
        SelfCheckError, match="the program on random tokens does not compute the unmodified model: the "
    ):
        convert(FAMILIES["mistral"].make(), context=CONTEXT, query_lengths=(1, 12))


def _without_window(plans: Any, signature: Any = None, metadata: Any = None) -> Any:
    from milopt.cachedrive import recognise

    del metadata
    return recognise(plans, signature)


@pytest.mark.parametrize(
    ("kind", "settings", "module"),
    [
        (
            "Mpt",
            {"d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 64},
            "transformer.blocks.0.attn (MptAttention)",
        ),
        (
            "GPTNeo",
            {
                "hidden_size": 16,
                "num_heads": 2,
                "num_layers": 2,
                "attention_types": [[["global", "local"], 1]],
                "window_size": 4,
            },
            "transformer.h.0.attn.attention (GPTNeoSelfAttention)",
        ),
    ],
)
def test_attention_that_looks_at_the_order_of_columns(kind: str, settings: Any, module: str) -> None:
    transformers: Any = importlib.import_module("transformers")
    untyped: Any = torch
    untyped.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**settings, vocab_size=32, bos_token_id=1, eos_token_id=2)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)
    with pytest.raises(ConversionError, match="looks at the order of the cache's columns") as caught:
        _trace(model)
    assert f"(in {module})" in str(caught.value)


def test_a_window_longer_than_a_prompt_should_be_is_shortened(monkeypatch: Patch) -> None:
    model = FAMILIES["mistral"].make()
    kind: Any = library("transformers").MistralForCausalLM
    monkeypatch.setattr(samples, "_LONGEST_WINDOW", 4)
    seen: list[int] = []
    forward: Any = kind.forward

    def watched(self: Any, *args: Any, **options: Any) -> Any:
        seen.append(self.config.sliding_window)
        return forward(self, *args, **options)

    monkeypatch.setattr(kind, "forward", watched)
    assert _trace(model).interface.masks.window == WINDOW
    assert seen[:2] == [4, 4]
    assert model.config.sliding_window == WINDOW


def test_an_op_that_coremltools_lacks_is_named_with_its_module(monkeypatch: Patch) -> None:
    models: Any = importlib.import_module("transformers.models.llama.modeling_llama")
    forward: Any = models.LlamaMLP.forward
    untyped: Any = torch

    def lacking(self: Any, x: Any) -> Any:
        return forward(self, untyped.lgamma(x.abs() + 1))

    monkeypatch.setattr(models.LlamaMLP, "forward", lacking)
    with pytest.raises(ConversionError, match=r"lgamma.*0\.mlp") as caught:
        lower(_trace(llama()))
    assert "\n" not in str(caught.value)

"""Mixtures of experts, computed densely; and causal language models that are refused, with the reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from milopt.huggingface import ConversionError, trace
from milopt.huggingface.experts import every_expert
from tests.huggingface.families import CONTEXT, FAMILIES, Family
from tests.huggingface.support import HEADS, VOCABULARY, library

_SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "vocab_size": VOCABULARY,
    "initializer_range": 0.2,
}


def experts_of(model: Any) -> list[Any]:
    return [module for name, module in model.named_modules() if name.endswith(".experts")]


@pytest.mark.parametrize("name", ["mixtral", "qwen2-moe"])
def test_experts_that_see_every_token(name: str) -> None:
    model = FAMILIES[name].make().double()
    model.config._experts_implementation_internal = "eager"
    tokens = torch.randint(300, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = model(input_ids=tokens).logits
        with every_expert(model):
            assert all("forward" in vars(module) for module in experts_of(model))
            got = model(input_ids=tokens).logits
    # float64 sums in another order
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)
    assert not any("forward" in vars(module) for module in experts_of(model))


def test_who_is_not_chosen_has_no_share() -> None:
    """One expert's output is wrong: tokens change that chose it, and no others."""
    model = FAMILIES["mixtral"].make()
    (experts, _) = experts_of(model)
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(2))
    chosen = torch.tensor([[0, 1], [1, 2], [2, 3], [3, 1], [0, 2]])
    weights = torch.tensor([[0.75, 0.25]]).expand(5, 2)
    with torch.no_grad(), every_expert(model):
        before = experts(x, chosen, weights)
        experts.down_proj[1] += 1
        after = experts(x, chosen, weights)
    assert (before != after).any(-1).tolist() == [True, True, False, True, False]


@pytest.mark.parametrize("bias", [False, True])
def test_transposed_experts_with_biases_and_without_a_gate(bias: bool) -> None:
    """As transformers' own for one token at a time, in the layouts that its decorator knows."""

    class Experts(torch.nn.Module):
        has_bias, has_gate, is_transposed, has_post_expert_norm = bias, False, True, False
        act_fn = torch.nn.ReLU()

        def __init__(self) -> None:
            super().__init__()
            draw = torch.Generator().manual_seed(3)
            self.up_proj = torch.nn.Parameter(torch.randn(3, 4, 6, generator=draw))
            self.down_proj = torch.nn.Parameter(torch.randn(3, 6, 4, generator=draw))
            self.up_proj_bias = torch.nn.Parameter(torch.randn(3, 6, generator=draw))
            self.down_proj_bias = torch.nn.Parameter(torch.randn(3, 4, generator=draw))

        def forward(self, x: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
            rows: list[torch.Tensor] = []
            for token, which, shares in zip(x, index, weights, strict=True):
                row = torch.zeros(4)
                for each, share in zip(which, shares, strict=True):
                    inner = torch.relu(token @ self.up_proj[each] + bias * self.up_proj_bias[each])
                    row = row + share * (inner @ self.down_proj[each] + bias * self.down_proj_bias[each])
                rows.append(row)
            return torch.stack(rows)

    module = Experts()
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(4))
    index, weights = torch.tensor([[0, 2], [1, 0], [2, 1]]), torch.tensor([[0.5, 0.25], [1.0, 0.5], [0.1, 0.2]])
    with torch.no_grad():
        wanted = module(x, index, weights)
        with every_expert(module):
            got = module(x, index, weights)
    torch.testing.assert_close(got, wanted)


def test_experts_behind_a_norm_are_left_as_they_are() -> None:
    model = FAMILIES["mixtral"].make()
    for module in experts_of(model):
        module.has_post_expert_norm = True
    with every_expert(model):
        assert not any("forward" in vars(module) for module in experts_of(model))


@pytest.mark.parametrize("route", ["trace", "export"])
def test_a_mixture_is_captured(route: str) -> None:
    traced = trace(FAMILIES["mixtral"].make(), context=CONTEXT, query_length=4, route=route)
    assert traced.difference < 1e-5  # float32 sums in another order: 6e-7 was seen


_REFUSED = {
    "bloom": (
        Family(
            "bloom",
            "BloomConfig",
            "BloomForCausalLM",
            {"n_layer": 2, "n_head": HEADS, "hidden_size": 64, "vocab_size": 320},
        ),
        "models of type 'bloom' add ALiBi to the scores, by the order of the cache's columns",
    ),
    "falcon with ALiBi": (
        Family("falcon", "FalconConfig", "FalconForCausalLM", {**_SMALL, "alibi": True}),
        "models of type 'falcon' add ALiBi to the scores",
    ),
    "mpt": (
        Family(
            "mpt", "MptConfig", "MptForCausalLM", {"d_model": 64, "n_layers": 2, "n_heads": HEADS, "vocab_size": 320}
        ),
        r"MptForCausalLM looks at the order of the cache's columns \(in transformer.blocks.0.attn \(MptAttention\)\)",
    ),
    "qwen3-next": (
        Family("qwen3-next", "Qwen3NextConfig", "Qwen3NextForCausalLM", {**_SMALL, "head_dim": 16}),
        "Qwen3NextForCausalLM has layers of type 'linear_attention'; full_attention and sliding_attention are supp",
    ),
    "mamba": (
        Family(
            "mamba", "MambaConfig", "MambaForCausalLM", {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 320}
        ),
        "MambaForCausalLM has layers of type 'linear_attention'",
    ),
}


def test_a_language_model_that_is_set_up_as_an_encoder() -> None:
    family = Family("bert", "BertConfig", "BertLMHeadModel", {**_SMALL, "intermediate_size": 96})
    words = "BertLMHeadModel is no causal language model here: its config's is_decoder is false"
    with pytest.raises(ConversionError, match=words):
        trace(family.make(), context=CONTEXT, query_length=4)
    decoder = Family("bert", family.config, family.model, {**family.settings, "is_decoder": True})
    assert trace(decoder.make(), context=CONTEXT, query_length=4).difference < 1e-5  # rounding: 5e-7 was seen


@pytest.mark.parametrize("name", _REFUSED)
def test_a_refusal_names_what_stands_in_the_way(name: str) -> None:
    family, reason = _REFUSED[name]
    library("transformers")
    with pytest.raises(ConversionError, match=reason) as caught:
        trace(family.make(), context=CONTEXT, query_length=4)
    assert "\n" not in str(caught.value)

"""Every family that milopt converts, as a model of two small layers with random weights.

One table, for the tests and for ``make families``. The models are such that mistakes show: norms are not 1, attention
is far from uniform, heads and key/value heads differ in number, and sliding windows are smaller than the context.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice, permutations
from typing import Any

import torch

from tests.huggingface.support import library

CONTEXT = 32
WINDOW = 8
VOCABULARY = 320
_WIDTH, _LAYERS, _HEADS, _KV_HEADS, _HEAD_DIM = 64, 2, 4, 2, 16

_COMMON: dict[str, Any] = {
    "hidden_size": _WIDTH,
    "intermediate_size": 96,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": _HEADS,
    "num_key_value_heads": _KV_HEADS,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 128,
    # ten times the usual, so that attention is far from uniform and a wrong mask shows
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_ENCODER = {
    key: value for key, value in _COMMON.items() if key not in ("num_key_value_heads", "bos_token_id", "eos_token_id")
}
_IMAGE_ENCODER = {
    key: value
    for key, value in _ENCODER.items()
    if key not in ("vocab_size", "pad_token_id", "max_position_embeddings")
}
_HYBRID = ["sliding_attention", "full_attention"]
_ROPE: dict[str, Any] = {"rope_theta": 10000.0}


@dataclass(frozen=True)
class Family:
    """``make()`` is a float32 model in evaluation mode; ``kind`` is decoder, text-encoder or image-encoder.

    ``layers`` are its number of layers, and ``window`` its sliding window.
    """

    name: str
    config: str
    model: str
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    kind: str = "decoder"
    layers: int = _LAYERS
    window: int | None = None

    def make(self, seed: int = 0) -> Any:
        transformers = library("transformers")
        untyped: Any = torch
        untyped.manual_seed(seed)
        config = getattr(transformers, self.config)(**self.settings)
        model = getattr(transformers, self.model)(config).eval()
        _perturb(model)
        _decide(model)
        return model


def _perturb(model: Any) -> None:
    """Norms and biases as training leaves them: coremltools drops a weight of 1 and a bias of 0."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            lower = name.lower()
            if name.endswith("bias"):
                parameter.normal_(0, 0.1)
            elif "norm" in lower or "ln_" in lower or parameter.dim() == 1:
                # Gemma's norms multiply with 1 + w
                parameter.uniform_(-0.5, 0.5) if float(parameter.mean()) == 0 else parameter.uniform_(0.5, 1.5)


def _decide(model: Any) -> None:
    """Routers that choose experts by the token, as training leaves them, and not by a hair.

    Of random weights, the second and the third expert are within fp16's error of each other for about one token in a
    hundred; a program may then take the other one, and what it computes is another function. Here the first features
    of the residual stream say which experts a token goes to, all in turn: the embeddings put 4, 3, -3 and -4 there,
    nobody else writes there, and each expert's row of the router looks at its own. (More experts than features, of a
    family that is refused before any is chosen, stay as they are.)
    """
    routers = [module for module in model.modules() if type(module).__name__.endswith("Router")]
    if not routers:
        return
    embeddings = model.get_input_embeddings().weight
    count = len(routers[0].weight)
    if count > embeddings.shape[1]:
        return
    levels = torch.tensor([4.0, 3.0, *[-3.0 - each for each in range(count - 2)]])
    orders = torch.tensor(list(islice(permutations(range(count)), len(embeddings))))
    with torch.no_grad():
        turns = orders[torch.arange(len(embeddings)) % len(orders)]
        embeddings[:, :count] = levels[turns]
        for name, weight in model.named_parameters():
            if name.rpartition(".weight")[0].endswith("o_proj") or "down_proj" in name:
                weight[..., :count, :] = 0
        for router in routers:
            router.weight.normal_(0, 0.02)
            router.weight[:, :count] += 2 * torch.eye(count)


def _family(name: str, config: str, model: str, *, base: Any = _COMMON, **options: Any) -> tuple[str, Family]:
    own = {key: options.pop(key) for key in ("kind", "layers", "window") if key in options}
    return name, Family(name, config, model, {**base, **options}, **own)


_YARN = {**_ROPE, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
_LLAMA3 = {
    **_ROPE,
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_LONG = {
    **_ROPE,
    "rope_type": "longrope",
    "original_max_position_embeddings": 96,
    "short_factor": [1.0 + 0.1 * each for each in range(_HEAD_DIM // 2)],
    "long_factor": [2.0 + 0.2 * each for each in range(_HEAD_DIM // 2)],
}
_GPT2 = {
    "n_embd": _WIDTH,
    "n_layer": _LAYERS,
    "n_head": _HEADS,
    "n_positions": 128,
    "vocab_size": VOCABULARY,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GEMMA: dict[str, Any] = {
    "head_dim": 24,
    "hidden_activation": "gelu_pytorch_tanh",
    # a tied head would only repeat the token: embeddings are multiplied with the root of the width
    "tie_word_embeddings": False,
}

FAMILIES: dict[str, Family] = dict(
    (
        _family("llama", "LlamaConfig", "LlamaForCausalLM"),
        _family("llama-3", "LlamaConfig", "LlamaForCausalLM", rope_parameters=_LLAMA3, tie_word_embeddings=True),
        _family(
            "smollm",
            "LlamaConfig",
            "LlamaForCausalLM",
            num_attention_heads=6,
            hidden_size=96,
            num_key_value_heads=3,
            tie_word_embeddings=True,
        ),
        _family("smollm3", "SmolLM3Config", "SmolLM3ForCausalLM", no_rope_layers=[1, 0]),
        _family("qwen2", "Qwen2Config", "Qwen2ForCausalLM"),
        _family("qwq-yarn", "Qwen2Config", "Qwen2ForCausalLM", rope_parameters=_YARN),
        _family(
            "qwen2-sliding",
            "Qwen2Config",
            "Qwen2ForCausalLM",
            use_sliding_window=True,
            sliding_window=WINDOW,
            layer_types=_HYBRID,
            window=WINDOW,
        ),
        _family("qwen3", "Qwen3Config", "Qwen3ForCausalLM", head_dim=24),
        _family("mistral", "MistralConfig", "MistralForCausalLM", sliding_window=WINDOW, window=WINDOW),
        _family("gemma", "GemmaConfig", "GemmaForCausalLM", **{**_GEMMA, "num_key_value_heads": 1}),
        _family(
            "gemma-2",
            "Gemma2Config",
            "Gemma2ForCausalLM",
            **_GEMMA,
            sliding_window=WINDOW,
            query_pre_attn_scalar=20,
            window=WINDOW,
            layer_types=_HYBRID,
        ),
        _family(
            "gemma-3",
            "Gemma3TextConfig",
            "Gemma3ForCausalLM",
            **_GEMMA,
            sliding_window=WINDOW,
            query_pre_attn_scalar=20,
            window=WINDOW,
            layer_types=_HYBRID,
        ),
        _family(
            "exaone-4", "Exaone4Config", "Exaone4ForCausalLM", sliding_window=WINDOW, layer_types=_HYBRID, window=WINDOW
        ),
        _family("gpt-2", "GPT2Config", "GPT2LMHeadModel", base=_GPT2),
        _family("phi-3", "Phi3Config", "Phi3ForCausalLM", sliding_window=WINDOW, window=WINDOW),
        _family(
            "phi-3-long", "Phi3Config", "Phi3ForCausalLM", rope_parameters=_LONG, original_max_position_embeddings=96
        ),
        _family(
            "opt",
            "OPTConfig",
            "OPTForCausalLM",
            base={key: value for key, value in _COMMON.items() if key != "num_key_value_heads"},
            ffn_dim=96,
            word_embed_proj_dim=_WIDTH,
        ),
        _family(
            "gpt-neox",
            "GPTNeoXConfig",
            "GPTNeoXForCausalLM",
            base={key: value for key, value in _COMMON.items() if key != "num_key_value_heads"},
            rope_parameters={**_ROPE, "partial_rotary_factor": 0.25},
        ),
        _family(
            "granite",
            "GraniteConfig",
            "GraniteForCausalLM",
            embedding_multiplier=3.0,
            residual_multiplier=0.5,
            attention_multiplier=0.2,
            logits_scaling=2.0,
        ),
        _family("olmo-2", "Olmo2Config", "Olmo2ForCausalLM"),
        _family(
            "stablelm",
            "StableLmConfig",
            "StableLmForCausalLM",
            rope_parameters={**_ROPE, "partial_rotary_factor": 0.25},
            use_qkv_bias=True,
        ),
        _family("cohere", "CohereConfig", "CohereForCausalLM", use_qk_norm=True, logit_scale=0.5),
        _family(
            "falcon",
            "FalconConfig",
            "FalconForCausalLM",
            base={key: value for key, value in _COMMON.items() if key != "num_key_value_heads"},
            multi_query=True,
        ),
        _family(
            "starcoder-2", "Starcoder2Config", "Starcoder2ForCausalLM", sliding_window=None, tie_word_embeddings=False
        ),
        _family("gpt-j", "GPTJConfig", "GPTJForCausalLM", base=_GPT2, rotary_dim=8),
        _family(
            "mixtral",
            "MixtralConfig",
            "MixtralForCausalLM",
            sliding_window=None,
            num_local_experts=4,
            num_experts_per_tok=2,
        ),
        _family(
            "qwen2-moe",
            "Qwen2MoeConfig",
            "Qwen2MoeForCausalLM",
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=48,
            shared_expert_intermediate_size=64,
        ),
        _family("bert", "BertConfig", "BertModel", base=_ENCODER, kind="text-encoder"),
        _family(
            "bert-pairs",
            "BertConfig",
            "BertForSequenceClassification",
            base=_ENCODER,
            kind="text-encoder",
            num_labels=3,
        ),
        _family(
            "distilbert",
            "DistilBertConfig",
            "DistilBertModel",
            base={},
            dim=_WIDTH,
            hidden_dim=96,
            n_layers=_LAYERS,
            n_heads=_HEADS,
            vocab_size=VOCABULARY,
            max_position_embeddings=128,
            initializer_range=0.2,
            kind="text-encoder",
        ),
        _family("roberta", "RobertaConfig", "RobertaModel", base=_ENCODER, kind="text-encoder"),
        _family(
            "vit",
            "ViTConfig",
            "ViTModel",
            base=_IMAGE_ENCODER,
            image_size=32,
            patch_size=8,
            kind="image-encoder",
        ),
        _family(
            "vit-classes",
            "ViTConfig",
            "ViTForImageClassification",
            base=_IMAGE_ENCODER,
            image_size=32,
            patch_size=8,
            num_labels=5,
            kind="image-encoder",
        ),
    )
)

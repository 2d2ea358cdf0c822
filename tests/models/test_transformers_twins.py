"""Published graphs with made-up weights against transformers' own modules, which hold the same weights in float64.

The weights are random, which exercises every op as much as trained ones do: no head and no channel is idle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from milopt import mil
from milopt.interpreter import compile
from milopt.interpreter.values import Array
from milopt.mil import mb
from milopt.package import Model
from milopt.precisions import PRECISIONS
from tests.models.twins import EPSILON_16, constants, fill, log_ratio, set_epsilon

transformers: Any = pytest.importorskip("transformers")

Refilled = Callable[[str], Model]


def check(model: Model, inputs: Mapping[str, Array], output: str, expected: torch.Tensor) -> None:
    """All precisions give ``expected``: to the last digits in float64, with what fp16 leaves else (60 to 67 dB)."""
    for precision in PRECISIONS:
        value = compile(model, precision=precision).run(inputs)[output]
        assert value.shape == expected.shape
        assert log_ratio(value, expected) > (250 if precision == "float64" else 57), precision


def tokens(size: int, *shape: int) -> Array:
    return np.random.default_rng(1).integers(0, size, shape)


class Whisper:
    """Whisper-tiny's two modules; the key projections, which have no bias there, get the one that the programs add."""

    def __init__(self) -> None:
        self.modeling: Any = transformers.models.whisper.modeling_whisper
        self.config: Any = transformers.WhisperConfig(
            vocab_size=51865, d_model=384, encoder_layers=4, decoder_layers=4, encoder_attention_heads=6,
            decoder_attention_heads=6, encoder_ffn_dim=1536, decoder_ffn_dim=1536, attn_implementation="eager",
        )  # fmt: skip

    def filled(self, kind: str, arrays: Mapping[str, Array]) -> Any:
        net = getattr(self.modeling, f"Whisper{kind.capitalize()}")(self.config)
        for module in [*net.modules()]:
            if hasattr(module, "k_proj"):
                module.k_proj = torch.nn.Linear(384, 384)
        set_epsilon(net, EPSILON_16)

        def name_of(key: str) -> str:
            return "linear_1_bias_0_to_fp16" if "k_proj.bias" in key else f"{kind}_{key.replace('.', '_')}_to_fp16"

        return fill(net, arrays, name_of)


@pytest.mark.slow
def test_whisper_encoder(refilled: Refilled) -> None:
    model = refilled("whispertiny_Encoder")
    net = Whisper().filled("encoder", constants(model))
    # numbers of fp16, so that the cast to it changes nothing
    features = np.random.default_rng(0).standard_normal((1, 80, 3000)).astype(np.float16).astype(np.float64)
    with torch.no_grad():
        expected = net(torch.as_tensor(features)).last_hidden_state
    check(model, {"input_features": features}, "var_284", expected)


def test_whisper_decoder_with_cross_attention(refilled: Refilled) -> None:
    model = refilled("whispertiny_Decoder")
    arrays = constants(model)
    # the program decodes one token at the first position and holds no other
    positions = np.zeros((448, 384))
    positions[0] = arrays["const_3_to_fp16"][0, 0]
    arrays["decoder_embed_positions_weight_to_fp16"] = positions
    net = Whisper().filled("decoder", arrays)
    heard = np.random.default_rng(0).standard_normal((1, 1500, 384)).astype(np.float16).astype(np.float64)
    ids = tokens(51865, 1, 1)
    with torch.no_grad():
        hidden = net(input_ids=torch.as_tensor(ids), encoder_hidden_states=torch.as_tensor(heard)).last_hidden_state
        logits = hidden @ net.embed_tokens.weight.T + torch.as_tensor(arrays["linear_40_bias_0_to_fp16"])
    check(model, {"input_ids": ids, "encoder_hidden_states": heard}, "var_499", logits)


@pytest.mark.slow
def test_distilbert(refilled: Refilled) -> None:
    model = refilled("distilbert_float16")
    arrays = constants(model)
    positions = np.zeros((512, 768))
    positions[:128] = arrays["position_embeddings_1_to_fp16"][0]
    arrays["model_embeddings_position_embeddings_weight_to_fp16"] = positions
    net: Any = transformers.DistilBertModel(transformers.DistilBertConfig(attn_implementation="eager"))
    set_epsilon(net, float(np.float16(6e-8)))  # the smallest number of fp16 stands for 1e-12
    net = fill(net, arrays, lambda key: f"model_{key.replace('.', '_')}_to_fp16")
    ids, mask = tokens(30522, 1, 128), (np.arange(128) < 100).astype(np.int32)[None]
    with torch.no_grad():
        expected = net(torch.as_tensor(ids), torch.as_tensor(mask)).last_hidden_state
    check(model, {"input_ids": ids, "attention_mask": mask}, "last_hidden_state", expected)


@pytest.mark.slow
@pytest.mark.parametrize("length", [1, 7, 128])
def test_bert_classifies(refilled: Refilled, length: int) -> None:
    model = refilled("bert_base_text-classification")
    arrays = constants(model)
    config: Any = transformers.BertConfig(attn_implementation="eager")
    net: Any = transformers.BertForSequenceClassification(config)
    set_epsilon(net, float(np.float32(1e-12)))
    arrays["model_classifier_bias"] = np.zeros(2)  # no constant of its own: the program holds two zeros
    net = fill(net, arrays, lambda key: f"model_{key.replace('.', '_')}")
    ids, mask = tokens(30522, 1, length), (np.arange(length) < max(1, length - 2)).astype(np.int32)[None]
    with torch.no_grad():
        expected = net(torch.as_tensor(ids), torch.as_tensor(mask)).logits.softmax(-1)
    for precision in PRECISIONS:
        outputs: Any = compile(model, precision=precision).run({"input_ids": ids, "attention_mask": mask})
        assert outputs["classLabel"] == f"LABEL_{int(expected.argmax())}"
        # the program is fp32 throughout
        assert log_ratio(outputs["probabilities"].reshape(-1), expected[0]) > (250 if precision == "float64" else 110)


def repaired(model: Model) -> Model:
    """GPT-2 with its masks as they were meant: what the causal mask hides is -3e4, not what the synthetic weights say.

    The published factor of ``1 - attention_mask`` is -inf, the fp16 of float32's smallest number, and 0 * -inf is NaN.
    """
    model = model.clone()
    function = model.function()
    for op in [*mil.operations(function)]:
        if op.op_type == "const" and op.name == "mask_value_1_after_broadcast_to_fp16":
            replace(op, np.full(op.outputs[0].shape, -3e4, np.float16))
        elif op.name == "attention_mask_cast":
            replace(op.inputs["y"].op, np.float16(-3e4))
    return model


def replace(op: Any, value: Any) -> None:
    with mil.building_in(op.enclosing_block):
        new: Any = mb.const(val=value, before_op=op)
    mil.replace_uses(op.outputs[0], new)


@pytest.mark.slow
def test_gpt2(refilled: Refilled) -> None:
    model = repaired(refilled("gpt2_fp16"))
    arrays = constants(model)
    positions = np.zeros((1024, 768))
    positions[:128] = arrays["position_embeds_to_fp16"][0]
    arrays["model_transformer_wpe_weight_to_fp16"] = positions
    config: Any = transformers.GPT2Config(attn_implementation="eager", layer_norm_epsilon=EPSILON_16)
    # Conv1D holds its weight as (in, out), MIL's linear as (out, in)
    flipped = {
        key.replace("_transposed", ""): np.transpose(each) for key, each in arrays.items() if "_transposed" in key
    }
    net: Any = transformers.GPT2LMHeadModel(config)
    net = fill(net.transformer, arrays | flipped, lambda key: f"model_transformer_{key.replace('.', '_')}_to_fp16")
    ids, mask = tokens(50257, 1, 128), (np.arange(128) < 100).astype(np.int32)[None]
    with torch.no_grad():
        hidden = net(torch.as_tensor(ids), attention_mask=torch.as_tensor(mask)).last_hidden_state
        logits = hidden @ net.wte.weight.T + torch.as_tensor(arrays["var_1666_bias_0_to_fp16"])
    check(model, {"input_ids": ids, "attention_mask": mask}, "logits", logits)

"""GGUF files: every architecture, every type of block, and what transformers' reader leaves out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from milopt.huggingface import ConversionError, convert
from milopt.huggingface.sources import open_source
from milopt.huggingface.standins import real_weights
from tests.huggingface.families import FAMILIES
from tests.huggingface.gguf_files import in_gguf, write
from tests.huggingface.support import library

gguf: Any = pytest.importorskip("gguf", reason="milopt[huggingface] is not installed")

_FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma-2", "gemma-3", "phi-3", "gpt-2")
# What GGUF files have no key for, and transformers' classes have as defaults.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma-2": {"query_pre_attn_scalar": 256, "tie_word_embeddings": True},
    "gemma-3": {"query_pre_attn_scalar": 256, "tie_word_embeddings": True, "layer_types": None},
    "mistral": {"sliding_window": None},
}


def family_model(family: str, **settings: Any) -> Any:
    each = FAMILIES[family]
    transformers = library("transformers")
    untyped: Any = torch
    untyped.manual_seed(0)
    config = getattr(transformers, each.config)(**{**each.settings, **_DEFAULTS.get(family, {}), **settings})
    return getattr(transformers, each.model)(config).eval()


@pytest.mark.parametrize("family", _FAMILIES)
def test_a_file_is_the_model_that_it_was_made_of(family: str, tmp_path: Path) -> None:
    wanted = family_model(family)
    source = open_source(write(tmp_path / "a.gguf", wanted), context=16)
    tokens = torch.arange(3, 15)[None]
    with torch.no_grad(), real_weights():
        logits, others = wanted(tokens).logits, source.model(tokens).logits
    # float32 stores 1 + w of Gemma's norms, which rounds, and the epsilon of a config
    assert (logits - others).abs().max() <= 1e-5 * logits.abs().max()
    assert source.kind == "decoder"


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q5_1", "Q4_K", "Q6_K"])
def test_blocks_are_what_gguf_makes_of_them(kind: str, tmp_path: Path) -> None:
    # blocks of the K types have 256 elements
    model = family_model("qwen2", hidden_size=256, intermediate_size=256)
    file = write(tmp_path / "a.gguf", model, kind=kind)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(str(file)).tensors}
    source = open_source(file, context=16)
    with real_weights():
        state = {name: value.clone() for name, value in source.model.state_dict().items()}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, 2)
    quantized = 0
    for name, value in state.items():
        stem, suffix = name.rsplit(".", 1)
        tensor = stored[f"{names.get_name(stem)}.{suffix}"]
        quantized += tensor.tensor_type.name == kind
        wanted = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(value.shape)
        assert np.array_equal(value.numpy(), wanted), name
    assert quantized == 16  # seven matrices in each of two layers, and two of words


def test_a_quantized_file_converts(tmp_path: Path) -> None:
    model = convert(write(tmp_path / "a.gguf", family_model("qwen3"), kind="Q8_0"), context=16, query_lengths=(2,))
    assert model.metadata["milopt.architecture"] == "Qwen3ForCausalLM"


def test_tied_and_untied_heads(tmp_path: Path) -> None:
    for tied in (True, False):
        file = write(tmp_path / f"{tied}.gguf", family_model("qwen2", tie_word_embeddings=tied))
        model = open_source(file, context=16).model
        assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied


def test_factors_of_llama_3(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    wanted = family_model("llama", rope_parameters={"rope_theta": 500000.0, **scaling})
    rotary = wanted.model.rotary_emb
    plain = 500000.0 ** -(torch.arange(0, 16, 2) / 16)
    factors = (plain / rotary.inv_freq).numpy()
    assert 7.9 < factors.max() < 8.1
    source = open_source(write(tmp_path / "a.gguf", wanted, also={"rope_freqs.weight": factors}), context=16)
    assert source.model.config.rope_parameters["rope_type"] == "llama3"
    assert torch.allclose(source.model.model.rotary_emb.inv_freq, rotary.inv_freq, rtol=1e-6)


def test_scaling_of_rope(tmp_path: Path) -> None:
    more = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 32,
    }
    parameters = {"rope_theta": 10000.0, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    wanted = family_model("qwen2", rope_parameters=parameters).model.rotary_emb
    got = open_source(write(tmp_path / "a.gguf", family_model("qwen2"), more=more), context=16).model.model.rotary_emb
    assert torch.equal(got.inv_freq, wanted.inv_freq)
    assert got.attention_scaling == wanted.attention_scaling != 1


@pytest.mark.parametrize(
    ("family", "more", "words"),
    [
        ("llama", {"rope.scaling.type": "longrope"}, "scales RoPE by 'longrope'"),
        ("llama", {"rope.scaling.type": "linear"}, "says no factor"),
        ("llama", {"logit_scale": 0.5}, "says 'logit_scale', which milopt does not know for 'llama'"),
        ("qwen2", {"attn_logit_softcapping": 30.0}, "Qwen2Config has no place for"),
        ("qwen2", {"attention.key_length": 24}, "attention.key_length = 24, but heads have 16 elements"),
        ("qwen2", {"attention.sliding_window": 8}, "has a sliding window of 8"),
        ("gemma-3", {"attention.sliding_window_pattern": 2}, "other sliding layers"),
    ],
)
def test_what_is_not_read_is_refused(family: str, more: Mapping[str, Any], words: str, tmp_path: Path) -> None:
    _refused(write(tmp_path / "a.gguf", family_model(family), more=more), words)


def test_a_tensor_without_a_place(tmp_path: Path) -> None:
    bias = {"blk.0.attn_q.bias": np.ones(64, np.float32)}
    _refused(write(tmp_path / "a.gguf", family_model("llama"), also=bias), r"holds 'blk\.0\.attn_q\.bias'")


def test_factors_of_no_kind(tmp_path: Path) -> None:
    factors = {"rope_freqs.weight": np.linspace(1, 8, 8, dtype=np.float32)}
    _refused(write(tmp_path / "a.gguf", family_model("llama"), also=factors), "are no factors of Llama 3.1's kind")


def test_an_architecture_without_a_languagefamily_model(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "t5")
    writer.add_block_count(1)
    for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, step)()
    _refused(tmp_path / "a.gguf", r"a\.gguf|t5")


def test_one_part_of_several(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_uint16("split.count", 3)
    for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, step)()
    _refused(tmp_path / "a.gguf", "one of 3 parts")


@pytest.mark.parametrize("share", [0.02, 0.5, 0.9, 0.999])
def test_a_truncated_file(share: float, tmp_path: Path) -> None:
    content = write(tmp_path / "a.gguf", family_model("llama")).read_bytes()
    (tmp_path / "a.gguf").write_bytes(content[: int(len(content) * share)])
    _refused(tmp_path / "a.gguf", "not a readable GGUF file")


def test_the_window_of_phi_3(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "a.gguf", family_model("phi-3")), context=16)
    assert source.model.config.sliding_window == FAMILIES["phi-3"].window


def test_softcaps(tmp_path: Path) -> None:
    model = family_model("gemma-2", attn_logit_softcapping=20.0, final_logit_softcapping=10.0)
    config = open_source(write(tmp_path / "a.gguf", model), context=16).model.config
    assert (config.attn_logit_softcapping, config.final_logit_softcapping) == (20.0, 10.0)


def test_names_are_those_of_llama_cpp() -> None:
    names = set(in_gguf(family_model("phi-3")))
    assert {"token_embd.weight", "blk.1.attn_qkv.weight", "blk.0.ffn_up.weight", "output_norm.weight"} <= names


def _refused(file: Path, words: str) -> None:
    with pytest.raises(ConversionError, match=words) as caught:
        open_source(file, context=16)
    assert "\n" not in str(caught.value)

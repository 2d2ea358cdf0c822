"""GGUF files of small models, written as llama.cpp's converter writes them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

Array = Any
# transformers' model type -> llama.cpp's architecture
ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "phi3": "phi3",
    "gpt2": "gpt2",
}
# Where blocks have their scales, of fp16 but in NVFP4, in types that gguf does not write.
_SCALES: dict[str, tuple[int, int | None]] = {
    **dict.fromkeys(("Q2_K",), (-4, None)),
    **dict.fromkeys(("Q3_K", "Q6_K"), (-2, None)),
    **dict.fromkeys(("Q4_K", "Q5_K", "NVFP4"), (0, 4)),
    **dict.fromkeys(("IQ4_NL", "IQ4_XS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S"), (0, 2)),
}
_PLUS_ONE = ("gemma2", "gemma3")
_TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


def write(
    path: Path,
    model: Any,
    *,
    kind: str = "F32",
    more: Mapping[str, Any] = MappingProxyType({}),
    also: Mapping[str, Any] = MappingProxyType({}),
) -> Path:
    """``model`` as a GGUF file whose matrices are of the type ``kind``. ``more`` are fields, ``also`` tensors."""
    gguf: Any = importlib.import_module("gguf")
    architecture = ARCHITECTURES[model.config.model_type]
    writer = gguf.GGUFWriter(path, architecture)
    _add_config(writer, model.config, architecture)
    for key, value in more.items():
        _add(writer, f"{architecture}.{key}", value)
    wanted = gguf.GGMLQuantizationType[kind]
    for name, array in {**in_gguf(model), **also}.items():
        # norms and biases stay floats in every file
        stored = wanted if array.ndim == 2 and array.shape[-1] % 32 == 0 else gguf.GGMLQuantizationType.F32
        if stored is gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, np.ascontiguousarray(array, np.float32))
        else:
            writer.add_tensor(name, quantized(array, kind), raw_dtype=stored)
    for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, step)()
    return path


def in_gguf(model: Any) -> dict[str, Array]:
    """The tensors as llama.cpp names and arranges them."""
    gguf: Any = importlib.import_module("gguf")
    config = model.config
    architecture = ARCHITECTURES[config.model_type]
    number = next(each for each, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    result: dict[str, Array] = {}
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stem, suffix = name.rsplit(".", 1)
        array = value.float().numpy()
        if architecture in _PLUS_ONE and "norm" in name:
            array = array + 1
        if architecture == "llama":
            array = _interleaved(array, name, config)
        if architecture == "gpt2" and name.endswith(_TRANSPOSED):
            array = array.T
        result[f"{names.get_name(stem)}.{suffix}"] = np.ascontiguousarray(array)
    return result


def quantized(array: Array, kind: str) -> Array:
    """Bytes of blocks of that type. gguf writes some types; others it only reads, so their bits are random."""
    gguf: Any = importlib.import_module("gguf")
    number = gguf.GGMLQuantizationType[kind]
    if kind not in _SCALES:
        return gguf.quantize(np.ascontiguousarray(array), number)
    length, size = gguf.GGML_QUANT_SIZES[number]
    generator = np.random.default_rng(int(abs(array).sum() * 1e4))  # other bits for every matrix
    blocks: Any = generator.integers(0, 256, (*array.shape[:-1], array.shape[-1] // length, size), np.uint8)
    at = slice(*_SCALES[kind])
    if kind == "NVFP4":
        blocks[..., at] = generator.integers(1, 40, blocks[..., at].shape, np.uint8)
        return blocks.reshape(*array.shape[:-1], -1)
    scales: Any = np.full((*blocks.shape[:-1], blocks[..., at].shape[-1] // 2), 1e-4, np.float16)
    blocks[..., at] = scales.view(np.uint8)
    return blocks.reshape(*array.shape[:-1], -1)


def _interleaved(array: Array, name: str, config: Any) -> Array:
    """llama.cpp rotates neighbours where transformers rotates halves."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None:
        return array
    halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape)


def _add_config(writer: Any, config: Any, architecture: str) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    if architecture == "gpt2":
        writer.add_feed_forward_length(4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    writer.add_rope_freq_base(rope["rope_theta"])
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(head)
    if architecture in ("qwen3", "gemma2", "gemma3"):
        writer.add_key_length(head)
        writer.add_value_length(head)
    if architecture in ("gemma2", "gemma3", "phi3") and config.sliding_window is not None:
        writer.add_sliding_window(config.sliding_window)
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    else:
        writer.add_float32(key, value)

"""GGUF files: what transformers' reader makes of them, and what it leaves out put right or refused.

That reader takes the keys it knows and skips the rest in silence: RoPE scaling, softcaps, a sliding window. Here every
key of the architecture has to be accounted for.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from milopt.huggingface.errors import ConversionError
from milopt.huggingface.extras import extra

__all__ = ["FACTORS", "GGUF", "amend", "read_gguf"]

# Keys behind the architecture's name that transformers reads, that say what its config classes have as defaults, or
# that `amend` looks at.
_KNOWN = frozenset(
    {
        *("context_length", "embedding_length", "block_count", "feed_forward_length", "vocab_size"),
        *("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length"),
        *("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon", "attention.sliding_window"),
        *("attention.sliding_window_pattern", "attention.causal", "tensor_data_layout", "attention.scale"),
        *("attn_logit_softcapping", "final_logit_softcapping"),
        *("rope.dimension_count", "rope.freq_base", "rope.scaling.type", "rope.scaling.factor"),
        *("rope.scaling.original_context_length", "rope.scaling.finetuned", "rope.freq_base_swa"),
    }
)
FACTORS = "rope_freqs.weight"
"""By what RoPE's frequencies are divided in Llama 3.1 and later: a tensor that is no parameter."""
# Llama 3.1 and later
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
# llama.cpp and the released configs: heads of the 27B models are scaled by the width per head, others by the default
_SCALED_BY_WIDTH = {"gemma2": 46, "gemma3": 62}


class GGUF:
    """A file's metadata: ``fields`` without the architecture's name, and the tensors' names."""

    def __init__(self, file: Path, reader: Any) -> None:
        self.file = file
        self.metadata: dict[str, Any] = {key: field.contents() for key, field in reader.fields.items()}
        self.architecture = str(self.metadata["general.architecture"])
        start = f"{self.architecture}."
        self.fields = {key.removeprefix(start): each for key, each in self.metadata.items() if key.startswith(start)}
        self.tensors: dict[str, Any] = {tensor.name: tensor for tensor in reader.tensors}

    @property
    def has_tokenizer(self) -> bool:
        return "tokenizer.ggml.tokens" in self.metadata

    def refused(self, reason: str) -> ConversionError:
        return ConversionError(f"{self.file}: {reason}")


def read_gguf(file: Path) -> GGUF:
    """The metadata; ConversionError for a damaged file, one part of several, and what transformers can't read."""
    library = extra("gguf", error=ConversionError)
    try:
        # named as transformers names it, so that both share one reader
        result = GGUF(file, library.GGUFReader(str(file)))
    except Exception as problem:  # GGUFReader meets a damaged file with whatever numpy or struct raise
        reason = next(iter(str(problem).strip().splitlines()), type(problem).__name__)
        raise ConversionError(f"{file}: not a readable GGUF file: {reason}") from problem
    if int(result.metadata.get("split.count", 0)) > 1:
        raise result.refused(f"one of {result.metadata['split.count']} parts; join them with llama-gguf-split --merge")
    if unknown := sorted(set(result.fields) - _KNOWN):
        raise result.refused(f"says {unknown[0]!r}, which milopt does not know for {result.architecture!r}")
    _require_ends(result, file.stat().st_size)
    return result


def _require_ends(gguf: GGUF, size: int) -> None:
    for tensor in gguf.tensors.values():
        if int(tensor.data_offset) + int(tensor.n_bytes) > size:
            raise gguf.refused(f"not a readable GGUF file: tensor {tensor.name!r} ends behind its end at {size}")


def amend(config: Any, gguf: GGUF) -> None:
    """Tell ``config``, as transformers read it, what the file says and it did not read."""
    fields = gguf.fields
    if "attention.key_length" in fields and hasattr(config, "head_dim"):
        config.head_dim = int(fields["attention.key_length"])
    if config.model_type == "gpt2":
        config.n_positions = int(fields.get("context_length", config.n_positions))
        config.n_inner = int(fields.get("feed_forward_length", 4 * config.hidden_size))
    if (words := gguf.tensors.get("token_embd.weight")) is not None:
        # a file without a tokenizer need not say it
        config.vocab_size = int(words.shape[-1])
    padding = getattr(config, "pad_token_id", None)
    if padding is not None and padding >= config.vocab_size:
        # a default of the class, for another vocabulary
        config.pad_token_id = None
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    for key in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
        if key in fields and int(fields[key]) != head:
            raise gguf.refused(f"says {key} = {fields[key]}, but heads have {head} elements")
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if key in fields:
            if not hasattr(config, key):
                raise gguf.refused(f"says {key}, which {type(config).__name__} has no place for")
            setattr(config, key, float(fields[key]))
    _set_window(config, gguf)
    _set_rope(config, gguf)
    if _SCALED_BY_WIDTH.get(gguf.architecture) == config.num_hidden_layers:
        config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads
    if "attention.scale" in fields and config.model_type not in ("gemma2", "gemma3_text"):
        raise gguf.refused("scales attention by a number of its own, which transformers does not read")


def _set_window(config: Any, gguf: GGUF) -> None:
    window = gguf.fields.get("attention.sliding_window")
    if config.model_type in ("phi3", "mistral"):
        # these classes have a window by default, or none; the file says which
        config.sliding_window = None if window is None else int(window)
    elif window is not None and getattr(config, "sliding_window", None) != int(window):
        raise gguf.refused(f"has a sliding window of {window}, which transformers does not read for it")
    pattern: Any = gguf.fields.get("attention.sliding_window_pattern")
    if pattern is None:
        return
    kinds = list(getattr(config, "layer_types", None) or [])
    if [kind == "sliding_attention" for kind in kinds] != _slides(pattern, config.num_hidden_layers):
        raise gguf.refused("has other sliding layers than transformers takes it to have")


def _slides(pattern: Any, count: int) -> list[bool]:
    """Which layers have a window: a list of them, or all but every so many."""
    if hasattr(pattern, "__iter__"):
        return [bool(each) for each in pattern][:count]
    return [bool((each + 1) % int(pattern)) for each in range(count)]


def _set_rope(config: Any, gguf: GGUF) -> None:
    """RoPE's scaling, which a key names, or a tensor of factors as Llama 3.1's."""
    kind = str(gguf.fields.get("rope.scaling.type", "none"))
    factors = gguf.tensors.get(FACTORS)
    if kind != "none" and factors is not None:
        raise gguf.refused(f"has both RoPE scaling of type {kind!r} and {FACTORS}")
    if "rope.freq_base_swa" in gguf.fields and float(gguf.fields["rope.freq_base_swa"]) != _local_base(config):
        raise gguf.refused("has another RoPE base for sliding layers than transformers takes it to have")
    if factors is not None:
        _scale(config, gguf, _llama3(config, _flat(factors.data), gguf))
    elif kind in ("linear", "yarn"):
        if "rope.scaling.factor" not in gguf.fields:
            raise gguf.refused(f"scales RoPE by {kind!r}, but says no factor")
        scaling: dict[str, Any] = {"rope_type": kind, "factor": float(gguf.fields["rope.scaling.factor"])}
        original = gguf.fields.get("rope.scaling.original_context_length")
        if kind == "yarn" and original is not None:
            scaling["original_max_position_embeddings"] = int(original)
        _scale(config, gguf, scaling)
    elif kind != "none":
        raise gguf.refused(f"scales RoPE by {kind!r}, which milopt does not read from GGUF files")


def _flat(data: Any) -> Any:
    array: Any = np.asarray(data, np.float64)
    return array.reshape(-1)


def _rope(config: Any) -> dict[str, Any]:
    """RoPE's parameters of the layers that see everything."""
    parameters: dict[str, Any] = config.rope_parameters
    everything: dict[str, Any] = parameters.get("full_attention", parameters)
    return everything


def _local_base(config: Any) -> float | None:
    parameters: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    base: float | None = parameters.get("sliding_attention", {}).get("rope_theta")
    return base


def _scale(config: Any, gguf: GGUF, scaling: Mapping[str, Any]) -> None:
    if not getattr(config, "rope_parameters", None):
        raise gguf.refused(f"scales RoPE, which {type(config).__name__} has none of")
    _rope(config).update(scaling)


def _llama3(config: Any, factors: Any, gguf: GGUF) -> dict[str, Any]:
    """The parameters of Llama 3.1's scaling that make the factors; ConversionError where none do."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if factors.shape == (head // 2,) and np.isfinite(factors).all():
        scaling = {"rope_type": "llama3", "factor": float(factors.max()), **_LLAMA3}
        base = float(_rope(config)["rope_theta"])
        lengths = np.asarray([2 * np.pi * base ** (each / head) for each in range(0, head, 2)])
        # float32 numbers that were computed in float32
        if np.allclose(_llama3_factors(lengths, scaling), factors, rtol=1e-4):
            return scaling
    raise gguf.refused(f"{FACTORS} are no factors of Llama 3.1's kind")


def _llama3_factors(lengths: Any, scaling: Mapping[str, Any]) -> Any:
    """By how much frequencies of these wave lengths are divided: llama.cpp's convert_hf_to_gguf, LlamaModel."""
    turns = scaling["original_max_position_embeddings"] / lengths
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    smooth: Any = np.minimum(np.maximum((turns - low) / (high - low), 0), 1)
    return 1 / ((1 - smooth) / scaling["factor"] + smooth)

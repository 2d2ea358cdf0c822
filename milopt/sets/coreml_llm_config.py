"""``model_config.json``: what CoreML-LLM's client is told of the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from milopt.package import Model
from milopt.sets.anemll_files import first_of, settings_of
from milopt.sets.anemll_parts import lut_bits
from milopt.sets.roles import Decoder
from milopt.sets.source_checking import head_width
from milopt.signature_head import HeadSignature

__all__ = ["model_config"]

# What config.json of a model's folder says of these is what the client's own converter writes.
_CONFIG_KEYS = ("num_attention_heads", "rms_norm_eps", "bos_token_id", "eos_token_id", "layer_types", "sliding_window")


def model_config(
    model: Model, decoder: Decoder, head: HeadSignature, name: str, source: bytes | None, package: str
) -> dict[str, Any]:
    """Sizes of the program, and what ``source``, the model's own ``config.json``, says of the rest."""
    said = settings_of(source, "config.json")
    own = settings_of(model.attachments.get("milopt/tokenizer_config.json"), "the package's tokenizer_config.json")
    architecture = model.metadata.get("milopt.architecture", "")
    known = {key: said[key] for key in _CONFIG_KEYS if said.get(key) is not None}
    for key in ("bos_token_id", "eos_token_id"):
        value = first_of(own.get(key) if own.get(key) is not None else known.pop(key, None))
        if value is not None:
            known[key] = value
    bits = lut_bits(model)
    return {
        "model_name": Path(name).name or "model",
        "architecture": architecture.split("For")[0].lower() or "llama",
        "hidden_size": said.get("hidden_size") or head_width(model, head),
        "num_hidden_layers": decoder.layers,
        "num_layers": decoder.layers,
        "num_key_value_heads": decoder.shape[1],
        "head_dim": decoder.shape[3],
        "vocab_size": sum(head.sizes),
        "context_length": decoder.slots,
        **known,
        "quantization": f"lut{bits}" if bits else "fp16",
        "compute_units": "ALL",
        "parts": {"model": package},
        "tokenizer_repo": said.get("_name_or_path") or "",
    }

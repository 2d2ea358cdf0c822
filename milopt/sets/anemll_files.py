"""``meta.yaml``, ``config.json`` and the tokenizer's files, as ANEMLL's clients read them."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from milopt.package import Model
from milopt.sets.errors import SetError
from milopt.sets.roles import Decoder
from milopt.signature_head import HeadSignature

__all__ = [
    "CLIENT_FILES",
    "CONFIG",
    "META",
    "TOKENIZER",
    "TOKENIZER_CONFIG",
    "client_files",
    "first_of",
    "meta_text",
    "notes_of",
    "package_names",
    "settings_of",
    "source_files",
]

META, CONFIG, TOKENIZER, TOKENIZER_CONFIG = "meta.yaml", "config.json", "tokenizer.json", "tokenizer_config.json"

_SUFFIX = ".mlpackage"

# What a model's folder on the Hub has for its tokenizer and its settings.
CLIENT_FILES = (
    CONFIG,
    "generation_config.json",
    TOKENIZER,
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
)


def package_names(prefix: str, chunks: int, embeddings: int, layers: int, head: int) -> list[str]:
    """File names in the order the packages run; the numbers are bits of look-up tables, 0 for none."""

    def lut(bits: int) -> str:
        return f"_lut{bits}" if bits else ""

    inner = [f"{prefix}_FFN_PF{lut(layers)}_chunk_{at:02}of{chunks:02}" for at in range(1, chunks + 1)]
    names = [f"{prefix}_embeddings{lut(embeddings)}", *inner, f"{prefix}_lm_head{lut(head)}"]
    return [name + _SUFFIX for name in names]


def client_files(model: Model, decoder: Decoder, head: HeadSignature) -> dict[str, bytes]:
    """``config.json``, and the tokenizer that the package carries, with the class by which transformers reads it."""
    architecture = model.metadata.get("milopt.architecture", "")
    config: dict[str, Any] = {
        **({"architectures": [architecture]} if architecture else {}),
        "model_type": _family(architecture),
        "tokenizer_class": "PreTrainedTokenizerFast",
        "num_hidden_layers": decoder.layers,
        "num_key_value_heads": decoder.shape[1],
        "head_dim": decoder.shape[3],
        "max_position_embeddings": decoder.slots,
        "vocab_size": sum(head.sizes),
    }
    files: dict[str, bytes] = {}
    carried = model.attachments.get("milopt/tokenizer.json")
    if carried is not None:
        own = settings_of(model.attachments.get("milopt/tokenizer_config.json"), "the package's tokenizer_config.json")
        ends = first_of(own.get("eos_token_id"))
        config |= {key: own[key] for key in ("bos_token_id", "eos_token_id") if own.get(key) is not None}
        kept = {key: value for key, value in own.items() if value is not None and key != "eos_token_id"}
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": decoder.slots, **kept}
        if ends is not None:
            settings["eos_token_id"] = ends
        files = {TOKENIZER: carried, TOKENIZER_CONFIG: _json(settings)}
    return {CONFIG: _json(config), **files}


def settings_of(content: bytes | None, what: str) -> dict[str, Any]:
    """A JSON mapping, empty where there is none; SetError where it can't be read."""
    try:
        said: Any = json.loads(content) if content is not None else {}
    except (ValueError, RecursionError) as error:
        raise SetError(f"{what} can't be read: {' '.join(str(error).split())}") from error
    if not isinstance(said, dict):
        raise SetError(f"{what} is no mapping")
    return cast("dict[str, Any]", said)


def first_of(value: Any) -> Any:
    """A number, or the first of several, which is what clients read; None where there is none."""
    if not isinstance(value, list):
        return value
    return next(iter(cast("Any", value)), None)


def notes_of(files: Mapping[str, bytes], context: int, batch: int) -> list[str]:
    """What a client would miss in a folder of ``files``, or of a prompt in blocks of ``batch``."""
    notes: list[str] = []
    if TOKENIZER not in files:
        notes.append("the package carries no tokenizer, without which the client stops: give --source")
    if context % batch:
        notes.append(
            f"{context} tokens are no whole blocks of {batch}: the client can't feed a prompt that needs the last"
        )
    return notes


def source_files(folder: Path) -> dict[str, bytes]:
    """The files of a model's folder that describe it and its tokenizer, as they are."""
    return {name: (folder / name).read_bytes() for name in CLIENT_FILES if (folder / name).is_file()}


def meta_text(
    model: Model,
    *,
    prefix: str,
    context: int,
    batch: int,
    names: Sequence[str],
    bits: tuple[int, int, int],
    slices: int,
    chosen: Sequence[int] = (),
    window: int = 0,
) -> str:
    """The text of ``meta.yaml``; ``names`` are the packages' in order, which clients look for compiled.

    ``chosen`` are the sizes of the slices where the head gives the largest logit of each alone. From position
    ``window`` on, where it is not 0, the client is to call other functions. ``prefill_dynamic_slice`` tells clients of
    0.3.5 that a block of a prompt may be anywhere; without it they feed a prompt token by token.
    """
    compiled = [name.replace(_SUFFIX, ".mlmodelc") for name in names]
    lut: list[int | str] = [each or "none" for each in bits]
    title = model.metadata.get("milopt.source") or prefix
    said: dict[str, Any] = {
        "model_info": {
            "name": f"{Path(title).name}-ctx{context}",
            "version": model.version or "1.0",
            "description": model.short_description or f"{title}, context {context}, batch {batch}",
            "license": model.license or "unknown",
            "author": model.author or "unknown",
            "framework": "Core ML",
            "language": "Python",
            "architecture": _family(model.metadata.get("milopt.architecture", "")),
            "parameters": {
                "context_length": context,
                "batch_size": batch,
                "lut_embeddings": lut[0],
                "lut_ffn": lut[1],
                "lut_lmhead": lut[2],
                "num_chunks": len(names) - 2,
                "model_prefix": prefix,
                "embeddings": compiled[0],
                "lm_head": compiled[-1],
                "ffn": compiled[1],
                "split_lm_head": slices,
                "state_length": context,
                "prefill_dynamic_slice": True,
                **({"sliding_window": window} if window else {}),
                **(_argmax(chosen) if chosen else {}),
            },
        }
    }
    yaml: Any = importlib.import_module("yaml")
    return str(yaml.safe_dump(said, sort_keys=False, allow_unicode=True))


def _argmax(sizes: Sequence[int]) -> dict[str, Any]:
    """What clients of 0.3.5 read to know which words the places of a head's choices stand for."""
    return {"argmax_in_model": True, "vocab_size": sum(sizes), "lm_head_chunk_sizes": list(sizes)}


def _family(architecture: str) -> str:
    """``LlamaForCausalLM`` -> ``llama``."""
    return architecture.split("For")[0].lower() or "llama"


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()

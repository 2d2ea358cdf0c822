"""Is a model's folder that of the program? What its ``config.json`` says is held against what the program has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, cast

from milopt.mil import Var, is_compressed, is_constant, shape_of
from milopt.package import Model
from milopt.sets.anemll_files import CONFIG, settings_of
from milopt.sets.errors import SetError
from milopt.sets.roles import Decoder
from milopt.signature_head import HeadSignature

__all__ = ["check_source", "head_width"]

# What families of models call the same number.
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
_WIDTH = ("hidden_size", "n_embd", "d_model")
_HEADS = ("num_attention_heads", "n_head")
_KEY_HEADS, _HEAD_SIZE, _WORDS = "num_key_value_heads", "head_dim", "vocab_size"
# Some families say by other keys that heads share keys and values (Falcon, GPT-BigCode, ChatGLM) ...
_SHARED = frozenset({"multi_query", "new_decoder_architecture", "num_kv_heads", "multi_query_attention"})
# ... and that the head takes narrower rows than the layers (OPT).
_PROJECTED = frozenset({"word_embed_proj_dim", "embedding_size"})


@dataclass(frozen=True)
class _Sizes:
    """What the program has; ``width`` is None where it is not known."""

    layers: int
    key_heads: int
    head_size: int
    words: int
    width: int | None


def check_source(carried: Mapping[str, bytes], model: Model, decoder: Decoder, head: HeadSignature) -> None:
    """SetError, in a line, where the ``config.json`` among ``carried`` says another size than the program's."""
    said = settings_of(carried.get(CONFIG), CONFIG)
    text: Any = said.get("text_config")  # models that see or hear, too, have the decoder's settings in there
    if isinstance(text, dict):
        said = {**said, **cast("dict[str, Any]", text)}
    window = decoder.window  # where all layers keep a ring, the other state has no rows
    shape = window.shape if window is not None and not decoder.shape[0] else decoder.shape
    own = _Sizes(decoder.layers, shape[1], shape[3], sum(head.sizes), head_width(model, head))
    for key, known, have in _compared(said, own):
        if known != have:
            raise SetError(f"{CONFIG} of the source is another model's: {key} is {known}, and the program has {have}")


def _compared(said: Mapping[str, Any], own: _Sizes) -> Iterator[tuple[str, int, int]]:
    """What both know: what it is called, what is said of it, and what there is."""

    def number(*keys: str) -> tuple[str, int | None]:
        for key in keys:
            value = said.get(key)
            if isinstance(value, int) and not isinstance(value, bool):
                return key, value
        return keys[0], None

    taken = None if _PROJECTED & said.keys() else own.width
    for keys, have in (((_WORDS,), own.words), (_LAYERS, own.layers), (_WIDTH, taken), ((_HEAD_SIZE,), own.head_size)):
        key, known = number(*keys)
        if known is not None and have is not None:
            yield key, known, have
    _, heads = number(*_HEADS)
    _, key_heads = number(_KEY_HEADS)
    _, size = number(_HEAD_SIZE)
    _, width = number(*_WIDTH)
    if key_heads is not None:
        yield _KEY_HEADS, key_heads, own.key_heads
    elif heads is not None and not _SHARED & said.keys():
        yield _HEADS[0], heads, own.key_heads
    if heads and width is not None and size is None:
        yield f"hidden_size / {_HEADS[0]}", width // heads, own.head_size


def head_width(model: Model, head: HeadSignature) -> int | None:
    """How wide a row is that the head takes: what its weights have for each word."""
    for op in reversed(list(model.function().operations)):
        weight = op.inputs.get("weight" if op.op_type in ("linear", "conv") else "y")
        if op.op_type not in ("linear", "conv", "matmul") or not isinstance(weight, Var):
            continue
        if is_constant(weight) or is_compressed(weight):
            return int(prod(shape_of(weight))) // head.sizes[-1]
    return None

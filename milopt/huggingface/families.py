"""What a transformers config says about a model, as far as its conversion depends on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

from milopt.huggingface.errors import ConversionError
from milopt.huggingface.extras import extra
from milopt.huggingface.interface import Masks

__all__ = ["Kind", "kind_of", "masks_of", "require_convertible"]

Kind: TypeAlias = Literal["decoder", "text-encoder", "image-encoder"]

# These scale fixed frequencies.
_STATIC_ROPE = frozenset({"default", "linear", "llama3", "yarn", "proportional"})
# These choose frequencies by the length seen: up to the length of the original training they are fixed.
_GROWING_ROPE = frozenset({"dynamic", "longrope"})
# These add biases to the scores that follow from a mask of their own form. Others may, as their config says.
_ALIBI = frozenset({"bloom"})
_LAYERS = frozenset({"full_attention", "sliding_attention"})


def kind_of(architecture: str, config: Any) -> Kind:
    """What kind of model ``architecture``, a transformers class, is. ConversionError for a kind milopt has no form for.

    A decoder is what transformers lists as a causal language model. A bare stack of a decoder's layers is neither.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise ConversionError(f"{architecture} is an encoder with a decoder, for which milopt has no interface")
    if _has_other_modalities(config):
        raise ConversionError(f"{architecture} takes images or audio beside text, for which milopt has no interface")
    names = extra("transformers.models.auto.modeling_auto").MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if architecture in names.values() or architecture.endswith(("ForCausalLM", "LMHeadModel")):
        return "decoder"
    transformers = extra("transformers", error=ConversionError)
    main = getattr(getattr(transformers, architecture, None), "main_input_name", "input_ids")
    if main == "pixel_values":
        return "image-encoder"
    # BERT and its heirs also serve as decoders, if their config says so
    if main == "input_ids" and (config.model_type not in names or getattr(config, "is_decoder", None) is False):
        return "text-encoder"
    raise ConversionError(f"{architecture} is neither a causal language model nor an encoder of text or images")


def _has_other_modalities(config: Any) -> bool:
    return any(getattr(config, name, None) is not None for name in ("text_config", "vision_config", "audio_config"))


def masks_of(architecture: str, config: Any) -> Masks:
    """The masks a decoder needs. ConversionError for layers that are no attention, or of a third kind."""
    window: int | None = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return Masks(full=window is None, window=window)
    if others := sorted(set(kinds) - _LAYERS):
        raise ConversionError(
            f"{architecture} has layers of type {others[0]!r}; {' and '.join(sorted(_LAYERS))} are supported"
        )
    if "sliding_attention" not in kinds:
        return Masks()
    if window is None:
        raise ConversionError(f"{architecture} has sliding layers, but its config names no sliding_window")
    return Masks(full="full_attention" in kinds, window=window)


def require_convertible(config: Any, context: int) -> None:
    """ConversionError where ``context`` columns are too many for the positions that the model was made for, or their
    order is part of the scores.
    """
    if config.model_type in _ALIBI or getattr(config, "alibi", False) is True:
        raise ConversionError(
            f"models of type {config.model_type!r} add ALiBi to the scores, by the order of the cache's columns; "
            "milopt's caches leave it open"
        )
    longest: int | None = getattr(config, "max_position_embeddings", None)
    if longest is not None and context > longest:
        raise ConversionError(f"context {context} is more than the {longest} positions this model was made for")
    for parameters in _rope_parameters(config):
        rope: str = parameters.get("rope_type", "default")
        if rope in _GROWING_ROPE:
            fixed = parameters.get("original_max_position_embeddings") or longest
            if fixed is None or context > fixed:
                raise ConversionError(
                    f"RoPE of type {rope!r} depends on the length of the text: it is fixed up to {fixed} positions "
                    f"only, and the context is {context}"
                )
        elif rope not in _STATIC_ROPE:
            raise ConversionError(
                f"RoPE of type {rope!r} is not supported: only {', '.join(sorted(_STATIC_ROPE | _GROWING_ROPE))} are"
            )


def _rope_parameters(config: Any) -> Iterator[dict[str, Any]]:
    """RoPE's parameters: one set, or one for each type of layer."""
    parameters: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    nested: list[dict[str, Any]] = [each for each in parameters.values() if isinstance(each, dict)]
    yield from nested if nested and "rope_type" not in parameters else [parameters]

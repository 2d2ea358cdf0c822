"""The signatures of converted encoders: a whole text or an image goes in, hidden states or scores come out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from milopt.huggingface.features import Feature, Shape, Sizes

__all__ = ["OUTPUTS", "EncoderInterface", "ImageInterface"]

OUTPUTS = {
    "last_hidden_state": "the last layer's hidden state of every token",
    "pooler_output": "one vector for the whole input, from the first token's hidden state",
    "logits": "scores of the model's head",
    "start_logits": "scores of every token as the first of the answer",
    "end_logits": "scores of every token as the last of the answer",
}
"""What an encoder may return, under transformers' own names; those that the model has become outputs."""

_MASK = "1 for tokens, 0 for padding, which is not looked at"


@dataclass(frozen=True)
class EncoderInterface:
    """One function for texts of ``length`` tokens, padded at their end, or of up to ``context`` where it is ``None``.

    The mask is two-dimensional and int32, as tokenizers return it. ``token_types`` adds the third thing they return,
    for models that tell two texts apart. ``returns`` are the shapes of the outputs by name.
    """

    context: int
    length: int | None
    returns: Mapping[str, Shape]
    token_types: bool = False
    batch: int = 1

    @property
    def is_flexible(self) -> bool:
        return self.length is None

    @property
    def tokens(self) -> int | Sizes:
        """How many tokens one call takes."""
        return self.length if self.length is not None else Sizes("tokens", 1, self.context, self.context)

    @property
    def inputs(self) -> dict[str, Feature]:
        shape: Shape = (self.batch, self.tokens)
        types = {"token_type_ids": Feature(shape, "0 for tokens of the first text, 1 for the second's", integer=True)}
        return {
            "input_ids": Feature(shape, "token ids of the text, padded at its end", integer=True),
            "attention_mask": Feature(shape, _MASK, integer=True),
            **(types if self.token_types else {}),
        }

    @property
    def outputs(self) -> dict[str, Feature]:
        return {name: Feature(shape, OUTPUTS[name]) for name, shape in self.returns.items()}


@dataclass(frozen=True)
class ImageInterface:
    """One function for images (B, C, H, W), whose values are those that the model's own image processor makes."""

    channels: int
    height: int
    width: int
    returns: Mapping[str, Shape]
    batch: int = 1
    is_flexible: bool = False

    @property
    def inputs(self) -> dict[str, Feature]:
        shape = (self.batch, self.channels, self.height, self.width)
        return {"pixel_values": Feature(shape, "images, rescaled and normalised as the model's processor does it")}

    @property
    def outputs(self) -> dict[str, Feature]:
        return {name: Feature(shape, OUTPUTS[name]) for name, shape in self.returns.items()}

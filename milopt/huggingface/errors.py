"""What the Hugging Face front door raises."""

from __future__ import annotations

from milopt.errors import MiloptError

__all__ = ["ConversionError", "SelfCheckError", "TokenizerError"]


class ConversionError(MiloptError):
    """A model can't be converted: it is absent, damaged, of an unsupported kind, or the options don't fit it."""


class SelfCheckError(ConversionError):
    """What was traced does not compute what the unmodified model computes; ``difference`` is the largest seen."""

    def __init__(self, message: str, difference: float) -> None:
        self.difference = difference
        super().__init__(message)


class TokenizerError(MiloptError):
    """A tokenizer or its chat template is absent, damaged, or refuses what it was given."""

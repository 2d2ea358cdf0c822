"""What the Hugging Face front door raises."""

from __future__ import annotations

from milopt.errors import MiloptError

__all__ = ["ConversionError", "SelfCheckError", "TokenizerError"]


class ConversionError(MiloptError):
    """A model can't be converted: it is absent, damaged, of an unsupported kind, or the options don't fit it."""


class SelfCheckError(ConversionError):
    """What was made of a model does not compute what the unmodified model computes.

    ``difference`` is the largest seen, ``module`` the module in which it begins, where that could be found.
    """

    def __init__(self, message: str, difference: float, module: str | None = None) -> None:
        self.difference = difference
        self.module = module
        super().__init__(message)


class TokenizerError(MiloptError):
    """A tokenizer or its chat template is absent, damaged, or refuses what it was given."""

"""How many tokens each call of a language model takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from milopt.errors import MiloptError

__all__ = ["Block", "blocks"]


@dataclass(frozen=True)
class Block:
    """One call: ``count`` tokens through the function that takes ``length``; the rest of its rows are padding."""

    length: int
    count: int


def blocks(lengths: Sequence[int], position: int, count: int, context: int, *, padded: bool = True) -> Iterator[Block]:
    """How ``count`` tokens are fed when ``position`` slots are taken: whole blocks of the longest kind first.

    What remains goes as one padded block where all its rows, padding included, stay within the context, else in
    smaller blocks; without ``padded``, in smaller whole blocks. MiloptError when the last slots can't be reached
    because no function takes so few tokens.
    """
    while count:
        if not padded:
            length = max((each for each in lengths if each <= count), default=0)
            if not length:
                raise MiloptError(
                    f"{count} tokens can't be fed: no function takes fewer than {min(lengths)}, and a block can't be "
                    "filled up, since the program returns the logits of its last row only"
                )
            yield Block(length, length)
            position, count = position + length, count - length
            continue
        fitting = [length for length in lengths if position + length <= context]
        if not fitting:
            raise MiloptError(
                f"the last {context - position} of {context} slots can't be used: no function takes fewer than "
                f"{min(lengths)} tokens"
            )
        longest = max(lengths)
        if count >= longest and longest in fitting:
            length = longest
        else:
            length = min((each for each in fitting if each >= count), default=max(fitting))
        taken = min(length, count)
        yield Block(length, taken)
        position, count = position + taken, count - taken

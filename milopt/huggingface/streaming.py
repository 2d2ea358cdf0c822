"""Text from tokens, one at a time: never half a character, never half a word."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence

__all__ = ["TextStream"]

# What decoders put where bytes do not form a character (yet).
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """Tokens in, whole words out; everything given out, and :meth:`flush` at the end, is ``decode`` of all tokens.

    A decoder may treat the first token it sees specially (drop its space), so new tokens are decoded behind those
    before them: the text of the window without the text it is known to begin with.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._known = 0
        self._waiting = ""

    def push(self, token: int) -> str:
        """The words that ``token`` completes; often nothing."""
        self._window.append(token)
        self._waiting += self._new_text(final=False)
        end = _last_boundary(self._waiting)
        ready, self._waiting = self._waiting[:end], self._waiting[end:]
        return ready

    def flush(self) -> str:
        """What is left when no token follows. The stream is empty afterwards and can be used again."""
        rest = self._waiting + self._new_text(final=True)
        self._window, self._known, self._waiting = [], 0, ""
        return rest

    def _new_text(self, *, final: bool) -> str:
        before, now = self._decode(self._window[: self._known]), self._decode(self._window)
        if len(now) <= len(before) or (now.endswith(_INCOMPLETE) and not final):
            return ""
        self._window = self._window[self._known :]
        self._known = len(self._window)
        return now[len(before) :]


def _last_boundary(text: str) -> int:
    """The index behind the last character that ends a word: a space, or a letter of a script without spaces."""
    return next((i for i in range(len(text), 0, -1) if text[i - 1].isspace() or _is_wide_letter(text[i - 1])), 0)


def _is_wide_letter(character: str) -> bool:
    return unicodedata.category(character) == "Lo" and unicodedata.east_asian_width(character) in "WF"

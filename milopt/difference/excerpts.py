"""Two long texts that differ somewhere: what they have in common is left out, so that the difference is seen."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

__all__ = ["excerpts", "one_line"]

_HEAD = 48  # characters of the beginning that are told if they are the same: they say what the text is about
_CONTEXT = 24  # characters ahead of the first difference, where the words that differ are too long themselves
_MOST_WORDS = 2000  # comparing takes the square of it


def one_line(text: str) -> str:
    return " ".join(text.split()) if "\n" in text else text


def excerpts(before: str, after: str, longest: int) -> tuple[str, str]:
    """Both texts in at most ``longest`` characters: the words that differ, and a little of those around them."""
    old, new = one_line(before), one_line(after)
    if max(len(old), len(new)) > longest:
        old, new = _without_common_words(old, new)
    first = next((at for at, (one, other) in enumerate(zip(old, new, strict=False)) if one != other), None)
    first = min(len(old), len(new)) if first is None else first
    return _around(old, first, longest), _around(new, first, longest)


def _without_common_words(old: str, new: str) -> tuple[str, str]:
    words: list[list[str]] = [re.findall(r"\S+\s*|\s+", text) for text in (old, new)]
    if max(map(len, words)) > _MOST_WORDS:
        return old, new
    parts: tuple[list[str], list[str]] = ([], [])
    for tag, a, b, c, d in SequenceMatcher(None, words[0], words[1], autojunk=False).get_opcodes():
        if tag == "equal":
            run = _shortened(words[0][a:b], is_first=a == c == 0, is_last=b == len(words[0]) and d == len(words[1]))
            parts[0].append(run)
            parts[1].append(run)
        else:
            parts[0].extend(words[0][a:b])
            parts[1].extend(words[1][c:d])
    return "".join(parts[0]), "".join(parts[1])


def _shortened(words: list[str], *, is_first: bool, is_last: bool) -> str:
    """The ends of a run of words that both texts have, where something else lies beyond them."""
    whole = "".join(words)
    short = f"{whole[:_HEAD] if is_first else words[0]}... {'' if is_last else words[-1]}"
    return short if len(short) < len(whole) else whole


def _around(text: str, first: int, longest: int) -> str:
    """The text cut to a length, with what is at ``first``."""
    if len(text) <= longest:
        return text
    start = max(0, first - _CONTEXT)
    if first > longest // 2 and start > _HEAD:
        text = f"{text[:_HEAD]}... {text[start:]}"
    return text if len(text) <= longest else f"{text[: longest - 3]}..."

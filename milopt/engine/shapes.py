"""Shapes written with letters: what is called the same must be the same size."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from typing import Any

from milopt.errors import PatternError
from milopt.mil import ListVar, Var, flat, is_symbolic, shape_of
from milopt.reports import NoMatch

__all__ = ["Sizes", "same_size", "unify_shapes"]

sympy: Any = importlib.import_module("sympy")  # it carries no types

_WORD = re.compile(r"\*?[A-Za-z_][A-Za-z0-9_]*|[0-9]+")


class Sizes(dict[str, Any]):
    """Dimensions by letter; ``sizes.E`` is ``sizes["E"]``. A starred letter holds a tuple."""

    def __getattr__(self, letter: str) -> Any:
        if letter in self:
            return self[letter]
        raise AttributeError(f"no shape has a {letter!r}; there are {', '.join(self) or 'no letters'}")


def unify_shapes(shapes: Mapping[str, tuple[Any, str]]) -> Sizes:
    """:meth:`milopt.matching.Match.shapes` for values given by hand: ``{"q": (var, "*B L E")}``."""
    sizes = Sizes()
    starred: dict[str, bool] = {}
    for name, (value, pattern) in shapes.items():
        words = _parse(name, pattern, starred)
        for var in flat(value):
            if not isinstance(var, Var) or isinstance(var, ListVar):
                raise PatternError(f"shapes({name}={pattern!r}): {_instead(var)} has no shape")
            _unify(sizes, name, words, pattern, var)
    return sizes


def _instead(value: object) -> str:
    if value is None:
        return "a variable that the match leaves unbound"
    return "a list" if isinstance(value, ListVar) else f"a {type(value).__name__}"


def _parse(name: str, pattern: str, starred: dict[str, bool]) -> list[str]:
    """The words of a pattern. Raises PatternError where they make none."""
    words = pattern.split()
    for word in words:
        if not _WORD.fullmatch(word):
            raise PatternError(f"shapes({name}={pattern!r}): {word!r} is no letter, *letter, number or _")
        letter, star = word.lstrip("*"), word.startswith("*")
        if letter != "_" and starred.setdefault(letter, star) != star:
            raise PatternError(f"shapes({name}={pattern!r}): {letter} is starred in one place and not in another")
    if sum(word.startswith("*") for word in words) > 1:
        raise PatternError(f"shapes({name}={pattern!r}): two words are starred, and no shape says where to part them")
    return words


def _unify(sizes: Sizes, name: str, words: list[str], pattern: str, var: Var) -> None:
    shape = shape_of(var)
    star = next((at for at, word in enumerate(words) if word.startswith("*")), None)
    if star is None:
        if len(words) != len(shape):
            raise NoMatch("{}: rank {} does not fit {}", name, len(shape), pattern, at=var)
        dims: list[Any] = list(shape)
    else:
        count = len(shape) - len(words) + 1
        if count < 0:
            raise NoMatch("{}: rank {} is too small for {}", name, len(shape), pattern, at=var)
        dims = [*shape[:star], shape[star : star + count], *shape[star + count :]]
    for word, dim in zip(words, dims, strict=True):
        _bind(sizes, name, word, dim, var)


def _bind(sizes: Sizes, name: str, word: str, dim: Any, var: Var) -> None:
    letter = word.lstrip("*")
    if letter == "_":
        return
    if letter.isdigit():
        if not same_size(dim, int(letter)):
            raise NoMatch("{}: a dimension is {}, not {}", name, dim, letter, at=var)
    elif letter not in sizes:
        sizes[letter] = dim
    elif not _same(sizes[letter], dim):
        raise NoMatch("{}: {} is {}, but {} before", name, word, dim, sizes[letter], at=var)


def _same(one: Any, other: Any) -> bool:
    ones, others = flat(one), flat(other)
    return len(ones) == len(others) and all(map(same_size, ones, others))


def same_size(one: Any, other: Any) -> bool:
    """Whether two dimensions are proved equal, whatever their symbols stand for.

    Numbers that are equal, the same symbol, or expressions whose difference sympy expands or simplifies to 0 (where it
    is defined). Symbols of one name are the same; two symbols never are, although a run may give them one size.
    """
    if not (is_symbolic(one) or is_symbolic(other)):
        return bool(one == other)
    if one == other:
        return True
    difference = sympy.expand(one - other)
    # an expanded polynomial is 0 only if it says so; what holds quotients or roundings may be simplified
    return bool(difference == 0 or not (difference.is_polynomial() or sympy.simplify(difference) != 0))

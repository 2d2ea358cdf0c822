"""Where a pattern was found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from milopt.engine.shapes import Sizes, unify_shapes
from milopt.mil import Operation, Var

__all__ = ["Match"]


class Match:
    """Where a pattern was found: ``m.q`` is what the variable ``q`` is bound to, ``m.<tag>`` the chosen alternative.

    A variable or tag that only occurs in an alternative not chosen is ``None``. ``root`` is the op that the rewrite
    replaces, ``roots`` all of them where the pattern has several, ``ops`` every matched op, the roots first, and
    ``replaced`` the outputs of the roots that the rewrite has to give a value for.
    """

    def __init__(
        self, roots: Sequence[Operation], replaced: Sequence[Var], ops: Sequence[Operation], bound: dict[str, Any]
    ) -> None:
        self.root = roots[0]
        self.roots = tuple(roots)
        self.replaced = tuple(replaced)
        self.ops = list(dict.fromkeys([*roots, *ops]))
        self._bound = bound

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["_bound"][name]
        except KeyError:
            raise AttributeError(f"the pattern has no variable or tag {name!r}") from None

    def shapes(self, **patterns: str) -> Sizes:
        """Unify the shapes of variables by letter: ``m.shapes(q="*B L E", k="*B S E")``.

        A letter is one dimension, the same wherever it stands; a starred letter any number of them, once in a pattern
        and in any place; a number is itself, and ``_`` (or ``*_``) anything. Of a tuple of values each must fit.
        Symbolic dimensions are equal where they are the same symbol, or proved equal
        (:func:`milopt.engine.shapes.same_size`).
        Raises NoMatch when a shape does not fit, PatternError when a pattern is none or a variable is not bound.
        """
        return unify_shapes({name: (getattr(self, name), pattern) for name, pattern in patterns.items()})

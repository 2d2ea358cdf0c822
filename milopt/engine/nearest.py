"""The try that got furthest, of all in which a pattern was not found."""

from __future__ import annotations

from milopt.engine.forms import OpPattern
from milopt.engine.found import Found
from milopt.mil import Operation, Var, arguments

__all__ = ["NOTHING", "Nearest"]

NOTHING = Found()


class Nearest:
    """``depth`` is how many ops had matched, ``why`` the reason why no more did, ``where`` the op or value it is of."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self.depth = -1
        self._whole = False
        self.why: tuple[str, tuple[object, ...]] = ("nothing was tried", ())
        self.where: object = None
        self._nearest = NOTHING
        self._wanted: OpPattern | None = None

    def _fail(
        self,
        found: Found,
        at: object,
        text: str,
        *args: object,
        whole: bool = False,
        wanted: OpPattern | None = None,
    ) -> None:
        """Keep the reason of the try that got furthest; one that matched as a whole got further than any other."""
        depth = len(found.ops)
        if depth > self.depth or (depth == self.depth and whole > self._whole):
            self.depth, self._whole, self.why, self.where = depth, whole, (text, args), at
            self._nearest, self._wanted = found, wanted

    @property
    def matched(self) -> list[Operation]:
        """The ops of the nearest try that fit, the root first."""
        return list(dict.fromkeys(self._nearest.ops.values()))

    @property
    def source(self) -> str:
        """The file and line of the part of the pattern at which the nearest try ended."""
        if self._wanted is not None:
            return self._wanted.where
        at = self.where
        for pattern, op in reversed(self._nearest.ops.items()):
            if at is op or (isinstance(at, Var) and (at.op is op or any(var is at for _, var in arguments(op)))):
                return pattern.where
        return ""

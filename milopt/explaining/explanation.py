"""What :func:`milopt.explain` says."""

from __future__ import annotations

import linecache
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["Explanation", "Spot"]

_ALSO = 6  # further places named


@dataclass(frozen=True)
class Spot:
    """A place that would be rewritten, or one left alone and why.

    ``root`` is the op that the rule was tried at and ``place`` the one that its reason is about, both by name;
    ``depth`` counts the ops that had matched. ``source`` is the file and line of the part of the pattern, or of the
    ``check``, that wanted something else. ``also`` are places where the same is true. ``excerpt`` is the text around
    ``place``.
    """

    rewritten: bool
    rule: str
    function: str
    place: str
    root: str = ""
    depth: int = 0
    reason: str = ""
    declined: bool = False
    source: str = ""
    also: tuple[str, ...] = ()
    excerpt: tuple[str, ...] = ()

    def lines(self) -> Iterator[str]:
        met = f"matched {self.depth} ops, then " if self.depth and not self.declined else ""
        said = f"would be rewritten{f': {self.reason}' if self.reason else ''}" if self.rewritten else met + self.reason
        yield f"{self.function}: {self.place}: {said}" if self.place else f"{self.function}: {said}"
        yield f"  {self.rule}{self._where()}"
        yield from (f"  {line}" for line in self.excerpt)
        if self.also:
            more = f" and {len(self.also) - _ALSO} more" if len(self.also) > _ALSO else ""
            yield f"  the same at {', '.join(self.also[:_ALSO])}{more}"

    def _where(self) -> str:
        if not self.source:
            return ""
        file, _, line = self.source.rpartition(":")
        code = linecache.getline(file, int(line)).strip()
        return f", {_short(file)}:{line}: {code}" if code else f", {_short(file)}:{line}"

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return asdict(self)


def _short(file: str) -> str:
    """The path from where one stands, or from the folder of the package that the file is part of."""
    path = Path(file)
    if path.is_relative_to(Path.cwd()):
        return str(path.relative_to(Path.cwd()))
    top = path.parent
    while (top / "__init__.py").is_file():
        top = top.parent
    return str(path.relative_to(top))


@dataclass(frozen=True)
class Explanation:
    """What a pass would do to a model, and what it would leave alone, nearest misses first.

    ``rewritten`` and ``missed`` count every place; ``spots`` are the ones told of, places of equal reason as one.
    ``remark`` says why there is none. ``notes`` are those of the pass's report.
    """

    subject: str
    rewritten: int
    missed: int
    spots: tuple[Spot, ...]
    notes: tuple[str, ...] = ()
    op: str | None = None
    remark: str = ""

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {
            "pass": self.subject,
            "op": self.op,
            "rewritten": self.rewritten,
            "missed": self.missed,
            "remark": self.remark,
            "spots": [spot.as_dict() for spot in self.spots],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        where = f" at {self.op}" if self.op is not None else ""
        places = f"{self.rewritten} place{'' if self.rewritten == 1 else 's'}"
        lines = [f"{self.subject}{where}: would rewrite {places}, comes near {self.missed} more"]
        if self.remark:
            lines.append(self.remark)
        for spot in self.spots:
            lines += ["", *spot.lines()]
        if self.notes:
            lines += ["", *(f"note: {note}" for note in self.notes)]
        return "\n".join(lines)

"""What became of the matrices that a checkpoint had quantized: as it is told, as a table, and as JSON has it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

__all__ = ["FLOATS", "Fate", "Kept", "Row"]

FLOATS = "floats"


@dataclass(frozen=True)
class Fate:
    """One matrix: its ``name`` and ``kind`` in the checkpoint, its bytes there and those in the package.

    ``form`` is how its values are stored exactly, or empty where they are floats; then ``reason`` says why, and
    ``rounded`` of ``size`` numbers are not those of the checkpoint, but the nearest of the program's type.
    """

    name: str
    kind: str
    before: int
    after: int
    form: str = ""
    reason: str = ""
    rounded: int = 0
    size: int = 0

    def __str__(self) -> str:
        size = f"{self.before:,} bytes in the file, {self.after:,} in the package"
        if self.form:
            return f"{self.name}: {self.kind}: {self.form}; {size}"
        lost = f", {self.rounded:,} of {self.size:,} numbers rounded" if self.rounded else ""
        return f"{self.name}: {self.kind}: {self.reason}; stored as floats{lost}; {size}"


@dataclass(frozen=True)
class Row:
    """Matrices of one kind that are stored in one form. ``reason`` is that of the first of them, with its name."""

    kind: str
    form: str
    tensors: int
    kept: int
    before: int
    after: int
    rounded: int
    reason: str

    def __str__(self) -> str:
        size = f"{self.before:,} bytes in the file, {self.after:,} in the package"
        why = f": {self.reason}" if self.reason else ""
        lost = f"; {self.rounded:,} numbers are rounded" if self.rounded else ""
        return f"{self.kind}: {self.tensors} tensors, {self.form}, {size}{lost}{why}"


@dataclass(frozen=True)
class Kept:
    """All of them, in the checkpoint's order."""

    fates: tuple[Fate, ...]

    def rows(self) -> list[Row]:
        """By kind and form."""
        ordered = sorted(self.fates, key=_group)
        return [_row(kind, form, list(each)) for (kind, form), each in groupby(ordered, _group)]

    def __str__(self) -> str:
        kept = sum(bool(each.form) for each in self.fates)
        return f"{kept} of {len(self.fates)} quantized tensors keep their integers"

    def lines(self) -> list[str]:
        """The whole in words."""
        return [str(self), *map(str, self.rows())] if self.fates else []

    def as_dict(self) -> list[dict[str, Any]]:
        return [vars(each).copy() for each in self.rows()]


def _group(fate: Fate) -> tuple[str, str]:
    return fate.kind, fate.form or FLOATS


def _row(kind: str, form: str, fates: list[Fate]) -> Row:
    first = fates[0]
    return Row(
        kind,
        form,
        len(fates),
        sum(bool(each.form) for each in fates),
        _sum(each.before for each in fates),
        _sum(each.after for each in fates),
        _sum(each.rounded for each in fates),
        "" if first.form else f"{first.name}: {first.reason}",
    )


def _sum(numbers: Iterable[int] | Iterator[int]) -> int:
    return sum(numbers)

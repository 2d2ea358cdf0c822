"""Tensors: how large, where, used by what, shared by whom, and stored more than once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from milopt.package.storing import same_contents
from milopt.package.tensors import Stored

__all__ = ["Duplicate", "Tensor", "duplicates_in", "facts_of_tensors"]

# Saving leaves equal ones apart that are smaller.
_SMALLEST = 512


@dataclass(frozen=True)
class Tensor:
    """A constant tensor as it is stored.

    ``bytes`` are those of its elements, packed where they have less than 8 bits. ``file`` is its weight file, ``None``
    where it is written in the specification; ``constants`` how many ``const`` ops hold it, in ``functions``.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    file: str | None
    functions: tuple[str, ...]
    constants: int
    used_by: tuple[str, ...]

    @property
    def saved(self) -> int:
        """The bytes that it would take more if every constant had its own."""
        return (self.constants - 1) * self.bytes


@dataclass(frozen=True)
class Duplicate:
    """Tensors of weight files that hold the same bytes, each in a place of its own."""

    names: tuple[str, ...]
    bytes: int

    @property
    def wasted(self) -> int:
        return (len(self.names) - 1) * self.bytes


def facts_of_tensors(stored: Sequence[Stored]) -> tuple[Tensor, ...]:
    """The largest first."""
    found = (
        Tensor(each.name, each.dtype, each.shape, each.bytes, each.file, each.functions, len(each.places), each.users)
        for each in stored
    )
    return tuple(sorted(found, key=lambda each: (-each.bytes, each.name)))


def duplicates_in(stored: Sequence[Stored]) -> tuple[Duplicate, ...]:
    """Tensors of 512 bytes and more that are stored several times, the most wasteful first.

    Only tensors of one element type and size are looked at, the first 4096 bytes of each; those that agree so far are
    read whole.
    """
    in_files = [each for each in stored if each.file is not None and each.bytes >= _SMALLEST]
    groups = same_contents([(each.dtype, each.shape, each.box) for each in in_files])
    found = [Duplicate(tuple(in_files[index].name for index in group), in_files[group[0]].bytes) for group in groups]
    return tuple(sorted(found, key=lambda each: (-each.wasted, each.names)))

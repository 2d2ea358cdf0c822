"""What a pass says about inputs, outputs and states that it changed on purpose."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any, Literal

from milopt.errors import PackageError

__all__ = ["METADATA_KEY", "WINDOW_KEY", "CacheSignature", "CacheSlot", "Combined", "Returned", "outer", "windows_of"]

METADATA_KEY = "milopt.cache"
WINDOW_KEY = "milopt.sliding_window"
"""Metadata: how many tokens a query sees, itself included, where a mask is a sliding one."""
_SLIDING = "sliding_mask"

Returned = Literal["all", "kept", "new"]


@dataclass(frozen=True)
class CacheSlot:
    """One cached tensor: rows ``row .. row+rows`` (axis 0) of ``state`` took the place of ``past`` and ``present``.

    ``axis`` holds the slots where it isn't the signature's. A state of ``ring`` slots, fewer than the context, holds
    token ``t`` in slot ``t mod ring``. ``kept`` is the number of columns of a past that held the last so many tokens
    only, and ``returned`` what the present was: all columns, the last ``kept`` of them, or the new ones alone;
    ``dtype`` is the element type that both had.
    """

    past: str
    present: str
    state: str
    row: int
    rows: int
    axis: int | None = None
    ring: int = 0
    kept: int = 0
    returned: Returned = "all"
    dtype: str = "fp16"


@dataclass(frozen=True)
class Combined:
    """One input, and one output, that hold several cached tensors: one behind another, as their elements are stored.

    ``shape`` is that of the input, ``part`` that of each cached tensor; both have 0 where the slots are. The cached
    tensors are called ``past[0]``, ``past[1]``..., and ``present[0]``...
    """

    past: str
    present: str
    shape: tuple[int, ...]
    part: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many cached tensors there are."""
        return prod(dim for dim in self.shape if dim) // prod(dim for dim in self.part if dim)

    @property
    def axis(self) -> int:
        """The axis of the input that holds the slots."""
        return self.shape.index(0)

    def part_of(self, dims: Sequence[int]) -> tuple[int, ...]:
        """The shape of a cached tensor where the input, or the output, has ``dims``."""
        return tuple(each or dims[self.axis] for each in self.part)


def outer(name: str) -> str:
    """The input or output that holds a cached tensor: itself, or one of several (:class:`Combined`)."""
    return name.partition("[")[0]


@dataclass(frozen=True)
class CacheSignature:
    """How a program with past inputs and present outputs was turned into one with states.

    Before, the ``context`` columns of each of ``masks`` (last axis) were [past | new]. After, column ``j`` is slot
    ``j`` of the states (axis ``axis``), and Q new tokens are written to slots ``[position, position + Q)``;
    ``position`` is an int32 input of shape (1,). The same for every function of the program.

    ``rings`` are the masks whose columns are the slots of a ring, and its size: there column ``j`` is about the newest
    token ``t < position + Q`` with ``t mod size = j``. With ``prefix``, a call reads the slots up to its new tokens and
    its masks have as many columns. ``position`` is empty where the program takes the slot from an input it always had:
    ``counts`` names it, or is empty where it is the number of a mask's columns. ``texts`` are descriptions that the
    rewrite took away, with the names of those they described.

    The states of a ``stacked`` cache have an axis for the layers, (layers, B, H, slots, D): row ``r`` of a slot is
    layer ``r // B``. ``renamed`` are inputs that had another name before the rewrite, as (before, after); after is
    empty where the program computes the input itself since then. Of several masks that became one, the last is it, and
    the program computes the others of it. In keys, ``trace`` stands for 0 where a slot has to show that it was written.
    ``combined`` are inputs and outputs that held several cached tensors each.
    """

    slots: tuple[CacheSlot, ...]
    position: str
    masks: tuple[str, ...]
    context: int
    axis: int
    rings: tuple[tuple[str, int], ...] = ()
    prefix: bool = False
    counts: str = ""
    texts: tuple[tuple[str, tuple[str, ...]], ...] = ()
    stacked: bool = False
    renamed: tuple[tuple[str, str], ...] = ()
    trace: float = 0.0
    combined: tuple[Combined, ...] = ()

    def whole_of(self, name: str) -> Combined | None:
        """What holds the cached tensor that is called so, in the past form, where it is one of several."""
        return next((each for each in self.combined if outer(name) in (each.past, each.present)), None)

    def axis_of(self, slot: CacheSlot) -> int:
        """The axis of a cached tensor that holds the slots."""
        return self.axis if slot.axis is None else slot.axis

    def former(self) -> CacheSignature:
        """The same with the names that inputs had before they were ``renamed``."""
        masks = tuple(before for before, after in self.renamed if after in self.masks)
        return replace(self, masks=masks or self.masks, renamed=())

    def to_json(self) -> str:
        """The text for the metadata; fields that say nothing are left out."""
        fields = _telling(asdict(self), "rings", "prefix", "counts", "texts", "stacked", "renamed", "trace", "combined")
        fields["slots"] = [_telling(asdict(slot), "axis", "ring", "kept", "returned", "dtype") for slot in self.slots]
        return json.dumps(fields, separators=(",", ":"))

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> CacheSignature | None:
        """What a package says of itself; ``None`` when it says nothing. Raises PackageError when it can't be read."""
        if (text := metadata.get(METADATA_KEY)) is None:
            return None
        try:
            fields: dict[str, Any] = json.loads(text)
            return cls(
                slots=tuple(CacheSlot(**slot) for slot in fields.pop("slots")),
                masks=tuple(fields.pop("masks")),
                rings=tuple((str(mask), int(size)) for mask, size in fields.pop("rings", ())),
                texts=tuple((str(said), tuple(names)) for said, names in fields.pop("texts", ())),
                renamed=tuple((str(before), str(after)) for before, after in fields.pop("renamed", ())),
                combined=tuple(_combined(**each) for each in fields.pop("combined", ())),
                **fields,
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise PackageError(f"metadata {METADATA_KEY!r} is not a cache signature: {error}") from error


def _combined(past: str, present: str, shape: Sequence[int], part: Sequence[int]) -> Combined:
    return Combined(past, present, tuple(map(int, shape)), tuple(map(int, part)))


def _telling(fields: dict[str, Any], *optional: str) -> dict[str, Any]:
    """Without those of the optional fields that have their default."""
    silent = (None, 0, "", "all", "fp16", ())
    return {key: value for key, value in fields.items() if key not in optional or value not in silent}


def windows_of(masks: Sequence[str], metadata: Mapping[str, str] | None) -> dict[str, int]:
    """Mask -> how many tokens it lets a query see: ``sliding_mask``, or every mask of a program that has none.

    PackageError where the metadata of a package say something else than a number.
    """
    if metadata is None or (text := metadata.get(WINDOW_KEY)) is None:
        return {}
    if not text.isdecimal() or int(text) < 1:
        raise PackageError(f"metadata {WINDOW_KEY!r} is {text!r}, not a number of tokens")
    return dict.fromkeys([_SLIDING] if _SLIDING in masks else masks, int(text))

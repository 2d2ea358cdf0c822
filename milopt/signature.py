"""What a pass says about inputs, outputs and states that it changed on purpose."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from milopt.errors import PackageError

__all__ = ["METADATA_KEY", "CacheSignature", "CacheSlot"]

METADATA_KEY = "milopt.cache"


@dataclass(frozen=True)
class CacheSlot:
    """One cached tensor: rows ``row .. row+rows`` (axis 0) of ``state`` took the place of ``past`` and ``present``."""

    past: str
    present: str
    state: str
    row: int
    rows: int


@dataclass(frozen=True)
class CacheSignature:
    """How a program with past inputs and present outputs was turned into one with states.

    Before, the ``context`` columns of each of ``masks`` (last axis) were [past | new]. After, column ``j`` is slot
    ``j`` of the states (axis ``axis``), and Q new tokens are written to slots ``[position, position + Q)``;
    ``position`` is an int32 input of shape (1,). The same for every function of the program.
    """

    slots: tuple[CacheSlot, ...]
    position: str
    masks: tuple[str, ...]
    context: int
    axis: int

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_metadata(cls, metadata: dict[str, str]) -> CacheSignature | None:
        """What a package says of itself; ``None`` when it says nothing. Raises PackageError when it can't be read."""
        if (text := metadata.get(METADATA_KEY)) is None:
            return None
        try:
            fields: dict[str, Any] = json.loads(text)
            slots = tuple(CacheSlot(**slot) for slot in fields.pop("slots"))
            return cls(slots=slots, masks=tuple(fields.pop("masks")), **fields)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise PackageError(f"metadata {METADATA_KEY!r} is not a cache signature: {error}") from error

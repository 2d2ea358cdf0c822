"""What a package says of logits that it gives back in slices, or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from milopt.errors import PackageError

__all__ = ["HEAD_KEY", "HeadSignature"]

HEAD_KEY = "milopt.head"


@dataclass(frozen=True)
class HeadSignature:
    """How ``output``, with the vocabulary on ``axis`` (counted from the end), is given back.

    ``kind`` is ``logits`` (as it was), ``slices`` of ``sizes`` under names that count from 1, ``argmax`` (the index and
    the value of the largest, without that axis) or ``top-k`` (of the ``k`` largest, in descending order). The same for
    every function of the program.
    """

    output: str
    kind: str
    axis: int
    sizes: tuple[int, ...]
    k: int

    @property
    def names(self) -> tuple[str, ...]:
        """The outputs that stand for it; of two, the indices come first."""
        if self.kind == "slices":
            return tuple(f"{self.output}{at}" for at in range(1, len(self.sizes) + 1))
        return {"argmax": ("argmax_idx", "argmax_val"), "top-k": ("topk_idx", "topk_val")}.get(
            self.kind, (self.output,)
        )

    def to_json(self) -> str:
        """The text for the metadata."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> HeadSignature | None:
        """What a package says of itself; ``None`` when it says nothing. Raises PackageError when it can't be read."""
        if (text := metadata.get(HEAD_KEY)) is None:
            return None
        try:
            fields: dict[str, Any] = json.loads(text)
            fields["sizes"] = tuple(int(size) for size in fields["sizes"])
            found = cls(**fields)
            if found.kind not in ("slices", "argmax", "top-k") or found.axis >= 0 or found.k < 1 or not found.sizes:
                raise ValueError(f"{found.kind!r} on axis {found.axis}")
        except (ValueError, TypeError, KeyError) as error:
            raise PackageError(f"metadata {HEAD_KEY!r} does not describe a head: {error}") from error
        return found

"""What an export is told, checked before any work begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from milopt.exporting.errors import ExportError
from milopt.sets.choosing import EmbeddingPart, HeadPart
from milopt.sets.targets import target_named

__all__ = ["BITS", "PARTS", "Options"]

PARTS = ("embeddings", "layers", "head")
BITS = (1, 2, 3, 4, 6, 8)
"""The sizes of look-up tables that iOS 18 has (coremltools 9.0, constexpr_lut_to_dense)."""


@dataclass(frozen=True)
class Options:
    """How a set is made.

    ``target`` limits weight files (:mod:`milopt.sets.targets`); with ``chunks=None`` there are as few as it allows.
    ``lut`` are the bits of an index into look-up tables for weights of the embeddings, the layers and the head; None
    leaves them as they are. ``split_head`` above 0 is the longest slice of the vocabulary that an op of the head makes
    (``split-head{limit=...}``). ``architecture`` other than ``"auto"`` has to be the checkpoint's. ``verify`` compares
    after every stage. ``quantized`` is what becomes of weights that the checkpoint has quantized: ``"keep"``, where
    that is exact, and then ``lut`` does not touch them, or ``"floats"``.
    """

    target: str = "iphone"
    context: int = 512
    batch_size: int = 64
    chunks: int | None = None
    lut: Mapping[str, int | None] | int | None = 6
    split_head: int = 0
    architecture: str = "auto"
    embedding: EmbeddingPart = "package"
    head: HeadPart = "package"
    verify: bool = True
    pickles: bool = False
    quantized: str = "keep"

    def __post_init__(self) -> None:
        target_named(self.target)
        if not 2 <= self.batch_size < self.context:
            raise ExportError(
                f"the batch size is at least 2 and less than the context, {self.context}: not {self.batch_size}"
            )
        if self.quantized not in ("keep", "floats"):
            raise ExportError(f"quantized weights are kept, or become floats: not {self.quantized!r}")
        if self.chunks is not None and self.chunks < 1:
            raise ExportError(f"there is at least one chunk, not {self.chunks}")
        if self.split_head < 0:
            raise ExportError(
                f"the longest slice of the head is 1 or more, or 0 for a whole one: not {self.split_head}"
            )
        for part, bits in self.bits.items():
            if part not in PARTS:
                raise ExportError(f"there is no part {part!r} to compress: there are {', '.join(PARTS)}")
            if bits is not None and bits not in BITS:
                raise ExportError(f"look-up tables have {', '.join(map(str, BITS))} bits, not {bits} ({part})")

    @property
    def bits(self) -> dict[str, int | None]:
        """The bits of every part."""
        if isinstance(self.lut, Mapping):
            return {**dict.fromkeys(PARTS), **self.lut}
        return dict.fromkeys(PARTS, self.lut)

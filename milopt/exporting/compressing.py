"""Look-up tables of other sizes for the embeddings, the layers and the head, whatever a program calls them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from milopt.calibration.statistics import Statistics
from milopt.exporting.errors import ExportError
from milopt.mil import Operation
from milopt.package import Model
from milopt.passes.compression import Palettize
from milopt.passes.palettes import PalettePlan
from milopt.passes.uses import Weight
from milopt.reports import Report, require
from milopt.sets.choosing import cut_places
from milopt.sets.stream import stream_of

__all__ = ["PalettizeParts", "parts_of"]


def parts_of(model: Model) -> dict[Operation, str]:
    """Which part an op of the stream belongs to: what comes before the first layer, the layers, or what is behind.

    Ops that are not on the stream, such as those of rotary angles, are left out.
    """
    values = cut_places(model)
    ends = {each.after: each for each in values if each.after in ("embedding", "layers")}
    wanted = (("embeddings", "embedding"), ("layers", None), ("head", "layers"))
    names = [name for name, at in wanted if at is None or at in ends]
    found: dict[Operation, str] = {}
    for name, function in model.functions.items():
        cuts = tuple(values[ends[at]][name] for at in ("embedding", "layers") if at in ends)
        found.update({op: names[part] for op, part in stream_of(function).made_in(cuts).items()})
    return found


@dataclass(frozen=True)
class PalettizeParts(Palettize):
    """``palettize`` with ``bits`` of their own for each part; None leaves a part's weights as they are."""

    name: ClassVar[str] = "palettize"

    by_part: Mapping[str, int | None] = field(default_factory=dict[str, "int | None"])
    ops: Mapping[Operation, str] = field(default_factory=dict[Operation, str], repr=False)

    @classmethod
    def of(cls, model: Model, by_part: Mapping[str, int | None]) -> PalettizeParts:
        return cls(by_part=by_part, ops=parts_of(model))

    def __str__(self) -> str:
        return f"palettize by part: {', '.join(f'{part} {bits or 16} bits' for part, bits in self.by_part.items())}"

    def plan(self, weight: Weight, statistics: Statistics | None, report: Report) -> PalettePlan:
        parts = sorted({self.ops.get(op, "layers") for _, _, op in weight.users()})
        wanted = {self.by_part[part] for part in parts}
        if len(wanted) > 1:
            told = " and ".join(f"{self.by_part[part] or 'no'} bits in the {part}" for part in parts)
            raise ExportError(f"{weight.name} is one weight, and can't have {told}: give both the same")
        bits = wanted.pop()
        require(bits is not None, "no look-up tables are wanted in the {}", " and ".join(parts))
        changed: Any = {"bits": bits}  # checked by milopt.exporting.Options
        return Palettize.plan(replace(self, **changed), weight, statistics, report)

"""What :func:`milopt.numerics.lint` reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

__all__ = ["Finding", "Kind", "LintReport"]

Kind: TypeAlias = Literal["overflow", "near", "square", "angles", "frequencies", "mask", "epsilon"]

# what every kind is about, and the order in which a printed report has them
TITLES: Mapping[Kind, str] = {
    "overflow": "values beyond fp16",
    "near": "values near the end of fp16",
    "square": "squares in fp16",
    "angles": "angles in fp16",
    "frequencies": "rounded inverse frequencies",
    "mask": "mask fills",
    "epsilon": "epsilons",
}
# Places of one kind that a printed report names.
_LISTED = 10


@dataclass(frozen=True)
class Finding:
    """A place where fp16 is too small. ``repair`` is the pass for it, as text, or empty where milopt has none.

    ``why`` says of a value beyond fp16 why no pass repairs it.
    ``largest`` is the magnitude in float64, of an ``overflow`` or ``near`` one; ``times`` how often fp16's 65504 it is.
    """

    kind: Kind
    function: str
    place: str
    op_type: str
    text: str
    repair: str = ""
    largest: float | None = None
    why: str = ""

    @property
    def times(self) -> float | None:
        return None if self.largest is None else self.largest / 65504

    def __str__(self) -> str:
        repair = f"; {self.repair}" if self.repair else f"; no pass repairs it: {self.why}" if self.why else ""
        return f"{self.function}: {self.op_type} {self.place!r}: {self.text}{repair}"

    def to_json(self) -> dict[str, Any]:
        """Plain values, JSON's types."""
        own = {"kind": self.kind, "function": self.function, "place": self.place, "type": self.op_type}
        size = {} if self.largest is None else {"largest": self.largest, "times_fp16": self.times}
        return {**own, "text": self.text, "repair": self.repair, **size, **({"why": self.why} if self.why else {})}


@dataclass(frozen=True)
class LintReport:
    """The findings of one model; falsy if there is none. ``ran`` says whether it was run, or only looked at.

    Printed, those that no pass repairs come first, then the largest values.
    """

    findings: tuple[Finding, ...]
    ran: bool = True

    def __bool__(self) -> bool:
        return bool(self.findings)

    @property
    def repairs(self) -> tuple[str, ...]:
        """The passes that repair what was found, in the order in which they are to run."""
        known = ("finite-mask", "fp16-safe-norm", "scale-residual", "rope-table")
        found = dict.fromkeys(each.repair for each in self.findings if each.repair)
        return tuple(sorted(found, key=lambda name: known.index(name.partition("{")[0])))

    def __str__(self) -> str:
        if not self.findings:
            looked = "in a run on random inputs" if self.ran else "without running it"
            return f"no place found where fp16 is too small, {looked}"
        lines: list[str] = []
        for kind, title in TITLES.items():
            found = (each for each in self.findings if each.kind == kind)
            own = sorted(found, key=lambda each: (not each.why, -(each.largest or 0.0)))
            if own:
                lines.append(f"{title}: {len(own)}")
                lines += [f"  {each}" for each in own[:_LISTED]]
                lines += [f"  ... {len(own) - _LISTED} more"] * (len(own) > _LISTED)
        if self.repairs:
            lines.append(f'repaired by: milopt optimize --passes "{",".join(self.repairs)}"')
        if left := sum(bool(each.why) for each in self.findings):
            lines.append(f"repaired by no pass: {left}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        return {
            "ran": self.ran,
            "findings": [each.to_json() for each in self.findings],
            "repairs": list(self.repairs),
        }

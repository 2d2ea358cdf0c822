"""What a comparison of two packages found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from milopt.difference.excerpts import excerpts, one_line

__all__ = ["SECTIONS", "WEAK", "Change", "Difference"]

# Every kind of difference, in the order in which they are told, and what it is about.
SECTIONS = {
    "interface": "inputs, outputs and states",
    "classifier": "class labels and predicted features",
    "functions": "functions and the default one",
    "opsets": "opset per function",
    "specification": "specification version",
    "ops": "ops",
    "compression": "compressed weights by op",
    "weights": "weights by content",
    "sharing": "tensors stored once or several times",
    "metadata": "metadata",
    "attributes": "attributes of the program, its functions and values",
    "docs": "doc strings",
    "files": "further files and entries of the manifest",
    "order": "order of ops",
    "names": "names of ops and values",
    "storage": "where constants are stored",
    "encoding": "how the same content is written",
}
# Differences that leave what the package computes, says and offers as it is.
WEAK = frozenset({"order", "names", "storage", "encoding"})
_LONGEST = 160  # characters of a text in a message


@dataclass(frozen=True)
class Change:
    """One difference: something ``added``, ``removed``, or ``changed`` from ``before`` to ``after``.

    ``facts`` has numbers for programs: of weights ``bytes``, ``max_abs``, ``snr_db`` and ``elements`` that differ.
    """

    kind: str
    what: str
    before: str = ""
    after: str = ""
    facts: dict[str, Any] = field(default_factory=dict[str, Any])

    def __str__(self) -> str:
        if self.kind == "changed":
            return f"{self.what}: {' -> '.join(excerpts(self.before, self.after, _LONGEST))}"
        text = self.before if self.kind == "removed" else self.after
        return f"{self.kind} {self.what}{': ' if text else ''}{_short(text)}"

    def as_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "what": self.what, "before": self.before, "after": self.after, **self.facts}


@dataclass(frozen=True)
class Difference:
    """What :func:`milopt.diff` found. True when there is any difference; ``print`` tells all of it.

    ``sections`` has the changes by kind (the keys of ``milopt.difference.result.SECTIONS``), without empty ones.
    ``op_counts`` are ops by type, ``{function: {type: (before, after)}}``, where their numbers differ. ``sizes`` are
    ``{file: (before, after)}`` in bytes; a size alone is no difference.
    """

    before: str
    after: str
    sections: dict[str, tuple[Change, ...]]
    op_counts: dict[str, dict[str, tuple[int, int]]]
    sizes: dict[str, tuple[int, int]]

    @property
    def identical(self) -> bool:
        return not self.sections

    @property
    def only_weak(self) -> bool:
        """Whether there are differences, and all are of names, order, places and ways of writing."""
        return bool(self.sections) and set(self.sections) <= WEAK

    def __bool__(self) -> bool:
        return not self.identical

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self, most: int | None = None) -> Iterator[str]:
        """The text, with at most so many changes per section."""
        if self.identical:
            yield f"{self.before} and {self.after} are identical"
            return
        weak = ", in names, order or ways of writing only" if self.only_weak else ""
        yield f"{self.before} and {self.after} differ{weak}"
        for name, changes in self.sections.items():
            yield f"{name} ({len(changes)}): {SECTIONS[name]}"
            if name == "ops":
                for function, counts in self.op_counts.items():
                    told = ", ".join(f"{kind} {old} -> {new}" for kind, (old, new) in counts.items())
                    yield f"  {function}: {told}"
            for change in changes[:most]:
                yield f"  {change}"
            if most is not None and len(changes) > most:
                yield f"  ... {len(changes) - most} more"

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values for JSON."""
        return {
            "before": self.before,
            "after": self.after,
            "identical": self.identical,
            "only_weak": self.only_weak,
            "sections": {name: [change.as_dict() for change in changes] for name, changes in self.sections.items()},
            "op_counts": {
                function: {kind: list(pair) for kind, pair in counts.items()}
                for function, counts in self.op_counts.items()
            },
            "bytes": {name: list(pair) for name, pair in self.sizes.items()},
        }


def _short(text: str) -> str:
    line = one_line(text)
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."

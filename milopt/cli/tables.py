"""The tables of the reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from milopt.census import Census
from milopt.reports import Report
from milopt.tables import table

if TYPE_CHECKING:
    from milopt.passes.compressing import Coverage

__all__ = ["print_census", "print_coverage", "print_passes", "size"]

# What the passes are about; shown even where nothing changed.
_ALWAYS = ("linear", "conv", "matmul", "scaled_dot_product_attention", "softmax", "transpose", "reshape")

_MOST_LINES = 10


def size(count: float) -> str:
    """Bytes for people: ``258.1 MB`` (a million each)."""
    for unit in ("bytes", "kB", "MB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def print_census(console: Console, before: Census, after: Census, *, everything: bool = False) -> None:
    """Ops by type before and after, a pair of columns per function; then states and weights."""
    functions = [name for name in after.functions if name in before.functions]
    columns = [
        f">{name + ' ' if len(functions) > 1 else ''}{when}" for name in functions for when in ("before", "after")
    ]
    pairs = [(before.ops[name], after.ops[name]) for name in functions]
    kinds = sorted({kind for pair in pairs for counts in pair for kind in counts})
    ordered = sorted(kinds, key=lambda kind: (-max(max(old[kind], new[kind]) for old, new in pairs), kind))
    rows: list[list[object]] = [
        [kind, *(counts[kind] for pair in pairs for counts in pair)]
        for kind in ordered
        if everything or kind in _ALWAYS or any(old[kind] != new[kind] for old, new in pairs)
    ]
    if hidden := len(kinds) - len(rows):
        same = [kind for kind in kinds if kind not in {row[0] for row in rows}]
        rows.append(
            [f"{hidden} other types", *(sum(counts[kind] for kind in same) for pair in pairs for counts in pair)]
        )
    rows.append(["all ops", *(counts.total() for pair in pairs for counts in pair)])
    rows.append(["states", *(each.states[name] for name in functions for each in (before, after))])
    console.print(table("Ops by type", "op", *columns, rows=rows))
    console.print(f"weights: {size(before.weight_bytes)} before, {size(after.weight_bytes)} after\n")


def print_coverage(console: Console, name: str, coverage: Sequence[Coverage], *, everything: bool = False) -> None:
    """What became of the weights: those stored or left alone alike in one line, or with ``everything`` one for each.

    Of lines for several weights only the largest are shown, and how much the others are together.
    """
    if everything:
        lines = [(f"{each.name} {each.dtype}{list(each.shape)}", [each]) for each in coverage]
    else:
        alike: dict[str, list[Coverage]] = {}
        for each in coverage:
            alike.setdefault(_outcome(each), []).append(each)
        ordered = sorted(alike.values(), key=lambda those: -sum(each.before for each in those))
        lines = [(str(len(those)), those) for those in ordered[:_MOST_LINES]]
        if rest := [each for those in ordered[_MOST_LINES:] for each in those]:
            lines.append((str(len(rest)), rest))
    rows: list[list[object]] = []
    for number, (what, those) in enumerate(lines):
        known = [each.snr for each in those if each.snr is not None]
        told = _outcome(those[0]) if everything or number < _MOST_LINES else "others; -v shows all"
        sizes = (size(sum(each.before for each in those)), size(sum(each.after for each in those)))
        rows.append([what, told, f"{min(known):.1f}" if known else "", *sizes])
    console.print(
        table(f"Weights: {name}", "weight" if everything else ">weights", "form", ">dB", ">before", ">after", rows=rows)
    )


def _outcome(each: Coverage) -> str:
    return f"left alone: {each.reason}" if each.reason else each.form


def print_passes(console: Console, report: Report, *, reasons: bool = False) -> None:
    """What each pass did, and with ``reasons`` what each of its rules did, and the nearest places left alone."""
    parts = report.parts or ([report] if report.name else [])
    rows = [(part.name, part.applied, part.missed, f"{part.seconds:.1f}") for part in parts]
    if rows:
        console.print(table("Passes", "pass", ">applied", ">missed", ">seconds", rows=rows))
    if reasons and any(part.rules for part in parts):
        stats = [
            (part.name, rule, each.tried, each.matched, each.applied, f"{each.seconds:.2f}")
            for part in parts
            for rule, each in part.rules.items()
        ]
        console.print(table("Rules", "pass", "rule", ">tried", ">matched", ">applied", ">seconds", rows=stats))
    for part in parts:
        if coverage := getattr(part, "coverage", []):
            print_coverage(console, part.name, coverage, everything=reasons)
        for line in part.too_old():
            console.print(Text(line))
        for note in part.notes:
            console.print(Text(f"{part.name}: {note}"))
        for miss in part.nearest(5) if reasons else ():
            console.print(Text(f"{part.name} left {miss.function}: {miss} alone"))

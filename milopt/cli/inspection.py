"""The tables of ``milopt inspect``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import chain

from rich.console import Console
from rich.text import Text

from milopt.cli.tables import size
from milopt.inspection import Compressed, Feature, FunctionFacts, Inspection, Nested, Tensor
from milopt.tables import table

__all__ = ["print_inspection"]

# More inputs, outputs or states of one kind are shortened to the first and the last.
_MOST_ROWS = 12
_LONGEST = 100  # characters of a text
_LABELS = 5
_INNERMOST = 3  # levels of nested blocks

Row = tuple[str, str, str, str, str]


def print_inspection(console: Console, found: Inspection, listed: int) -> None:
    """Everything but the list of all weights, of which the ``listed`` largest are shown."""
    console.print(table("", "", "", rows=[(key, _short(value)) for key, value in _head(found) if value]))
    for function in found.functions:
        _print_function(console, function, is_default=function.name == found.default_function)
    schemes: dict[str, list[Compressed]] = {}
    for each in found.compressed:
        schemes.setdefault(each.scheme, []).append(each)
    if schemes:
        rows = [
            (scheme, len(all_), size(sum(each.bytes for each in all_)), size(sum(each.dense_bytes for each in all_)))
            for scheme, all_ in schemes.items()
        ]
        console.print(table("Compressed weights", "stored as", ">weights", ">size", ">uncompressed", rows=rows))
    biggest = [
        (each.name, each.dtype, _dims(each.shape), size(each.bytes), ", ".join(each.used_by[:3]), _shared_by(each))
        for each in found.weights[:listed]
    ]
    if biggest:
        columns = ("name", "type", "shape", ">size", "used by", "in functions")
        width = len(columns) if len(found.functions) > 1 else len(columns) - 1
        console.print(table("Largest weights", *columns[:width], rows=[row[:width] for row in biggest]))


def _head(found: Inspection) -> Iterator[tuple[str, str]]:
    where = ", ".join(f"{size(count)} in {file or 'the specification'}" for file, count in found.weight_files.items())
    twice = found.duplicates
    yield "package", f"{found.package}, {size(found.bytes)}"
    yield "specification", f"{found.specification_version} ({', '.join(found.targets) or 'unknown'})"
    count = _count(len(found.weights), "tensor")
    yield "weights", f"{count}, {size(found.weight_bytes)}: {where}" if where else "none"
    if shared := found.shared:
        total = size(sum(each.bytes for each in shared))
        yield "shared", f"{_count(len(shared), 'tensor')} of {total} used by several functions"
    if found.saved:
        yield "saved by sharing", size(found.saved)
    if twice:
        wasted = size(sum(each.wasted for each in twice))
        yield (
            "stored twice",
            f"{_count(len(twice), 'tensor')}, {wasted} too much, e.g. {' and '.join(twice[0].names[:2])}",
        )
    if found.compressed:
        dense, held = (sum(getattr(each, key) for each in found.compressed) for key in ("dense_bytes", "bytes"))
        yield "compression", f"{_count(len(found.compressed), 'weight')}, {size(held)} instead of {size(dense)}"
    else:
        yield "compression", "none"
    for key in ("author", "license", "version", "description"):
        yield key, getattr(found, key)
    yield "updatable", "yes" if found.updatable else ""
    yield from found.metadata.items()
    for name, value in found.build_info.items():
        yield name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    yield from ((f"file {name}", size(count)) for name, count in found.attachments.items())


def _print_function(console: Console, function: FunctionFacts, *, is_default: bool) -> None:
    rows = chain(_rows("inputs", function.inputs), _rows("outputs", function.outputs), _rows("states", function.states))
    title = f"function {function.name}{' (default)' if is_default else ''}, opset {function.opset}"
    console.print(table(title, "", "name", "type", "shape", "", rows=rows))
    if (classifier := function.classifier) is not None:
        first = ", ".join(map(str, classifier.labels[:_LABELS]))
        more = f", {len(classifier.labels) - _LABELS} more" if len(classifier.labels) > _LABELS else ""
        console.print(Text(f"classifier of {len(classifier.labels)} labels: {_short(first)}{more}"))
    console.print(Text(f"{sum(function.ops.values())} ops: {_counts(function.ops)}"))
    if function.opaque:
        console.print(Text(f"carried as they are, being unknown to coremltools: {_counts(function.opaque)}"))
    for line in _blocks(function.nested):
        console.print(Text(line))
    console.print()


def _rows(kind: str, features: tuple[Feature, ...]) -> list[Row]:
    rows: list[Row] = [
        (kind if index == 0 else "", each.name, _type(each), _dims(each.shape), _more(each))
        for index, each in enumerate(features)
    ]
    if len(rows) > _MOST_ROWS:
        rows = [*rows[:8], ("", f"... {len(rows) - 9} more", "", "", ""), rows[-1]]
    return rows


def _type(feature: Feature) -> str:
    return f"{feature.color} image" if feature.kind == "image" else feature.dtype


def _more(feature: Feature) -> str:
    """What else is known of it: sizes that it takes, whether it may be left out."""
    parts: list[str] = []
    if feature.shapes:
        parts.append(f"one of {', '.join(_dims(each) for each in feature.shapes[:4])}")
        parts[-1] += f" and {len(feature.shapes) - 4} more" if len(feature.shapes) > 4 else ""
    elif feature.ranges:
        parts.append(" x ".join(_range(*each) for each in feature.ranges))
    if feature.is_flexible and feature.default_shape:
        parts.append(f"default {_dims(feature.default_shape)}")
    if feature.optional:
        parts.append("optional" if feature.default is None else f"optional, {feature.default:g} if not given")
    return "; ".join(parts)


def _range(lowest: int, highest: int | None) -> str:
    if lowest == highest:
        return str(lowest)
    return f"{lowest}.." if highest is None else f"{lowest}..{highest}"


def _blocks(nested: Iterable[Nested], depth: int = 1) -> Iterator[str]:
    for op in nested:
        yield f"{'  ' * depth}{op.type} {op.name}: {len(op.blocks)} blocks"
        for block in op.blocks:
            yield f"{'  ' * depth}  {sum(block.ops.values())} ops: {_counts(block.ops)}"
            if depth < _INNERMOST:
                yield from _blocks(block.nested, depth + 2)


def _counts(ops: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in ops.items())


def _dims(shape: Iterable[int | None]) -> str:
    return "x".join("?" if dim is None else str(dim) for dim in shape)


def _shared_by(tensor: Tensor) -> str:
    return ", ".join(tensor.functions)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"

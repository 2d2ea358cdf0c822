"""Protos as facts: ``{path of the field: text}``, so that every field counts, those added to Core ML later too."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, MutableSequence
from typing import Any

from milopt.difference.result import Change

__all__ = ["changes", "feature_changes", "flatten", "quoted"]


text_format: Any = importlib.import_module("google.protobuf.text_format")  # it carries no types


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def flatten(message: Any, prefix: str = "") -> dict[str, str]:
    """Every field that is set, with its path; lists are one fact."""
    facts: dict[str, str] = {}
    for field, value in message.ListFields():
        name = f"{prefix}{field.name}"
        if isinstance(value, (MutableSequence, MutableMapping)):
            facts.update(_entries(field, value, name))
        elif field.message_type is not None:
            facts.update(flatten(value, f"{name}.") or {name: "set"})
        else:
            facts[name] = _scalar(field, value)
    return facts


def _entries(field: Any, values: Any, name: str) -> Iterator[tuple[str, str]]:
    if field.message_type is None:
        yield name, f"[{', '.join(_scalar(field, each) for each in values)}]"
    elif not field.message_type.GetOptions().map_entry:
        yield name, f"[{', '.join(_line(each) for each in values)}]"
    else:
        for key in sorted(values):
            yield f"{name}[{key}]", quoted(values[key]) if isinstance(values[key], str) else _line(values[key])


def _line(message: Any) -> str:
    return f"({text_format.MessageToString(message, as_one_line=True)})"


def _scalar(field: Any, value: Any) -> str:
    if field.enum_type is not None:
        known = field.enum_type.values_by_number
        return str(known[value].name if value in known else value)
    if isinstance(value, bool):
        return str(value).lower()
    return quoted(value) if isinstance(value, str) else str(value)


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[Change]:
    """How one set of facts differs from another."""
    for what in dict.fromkeys([*before, *after]):
        if what not in after:
            yield Change("removed", what, before=before[what])
        elif what not in before:
            yield Change("added", what, after=after[what])
        elif before[what] != after[what]:
            yield Change("changed", what, before[what], after[what])


def feature_changes(kind: str, before: Iterable[Any], after: Iterable[Any]) -> Iterator[Change]:
    """How two lists of ``FeatureDescription`` differ; ``kind`` says of what, e.g. ``input``."""
    old, new = ({each.name: each for each in features} for features in (before, after))
    for name in dict.fromkeys([*old, *new]):
        what = f"{kind} {quoted(name)}"
        if name not in new:
            yield Change("removed", what, before=_line(old[name]))
        elif name not in old:
            yield Change("added", what, after=_line(new[name]))
        else:
            yield from changes(flatten(old[name], f"{what}: "), flatten(new[name], f"{what}: "))
    if list(old) != list(new) and set(old) == set(new):
        yield Change("changed", f"order of {kind}s", ", ".join(old), ", ".join(new))

"""Names and attributes in a specification."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from milopt.errors import PackageError

__all__ = ["copied", "name_of", "names_in", "quoted"]


def quoted(name: str) -> str:
    """A name for a message: on one line, and not longer than one."""
    return repr(name if len(name) <= 80 else f"{name[:77]}...")


def names_in(block: Any) -> Iterator[str]:
    """Every name of a value or an op in a block and those nested in it."""
    for each in block.inputs:
        yield each.name
    for op in block.operations:
        yield name_of(op)
        for each in op.outputs:
            yield each.name
        for inner in op.blocks:
            yield from names_in(inner)


def name_of(op: Any) -> str:
    """The op's name for messages: its own, else its first output's, else its type."""
    if "name" in op.attributes:
        strings = op.attributes["name"].immediateValue.tensor.strings.values
        if strings and strings[0]:
            return str(strings[0])
    return str(op.outputs[0].name) if op.outputs else str(op.type)


def copied(attributes: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Copies of protos: a part of a message would keep the whole of it alive."""
    if any(map(_refers_to_a_file, attributes.values())):
        raise PackageError(f"{where} has an attribute whose value lies in a weight file")
    return {name: copy.deepcopy(value) for name, value in sorted(attributes.items())}


def _refers_to_a_file(value: Any) -> bool:
    if value.WhichOneof("value") == "blobFileValue":
        return True
    held = value.immediateValue
    pairs = held.dictionary.values
    inner = [*held.list.values, *held.tuple.values, *(each.key for each in pairs), *(each.value for each in pairs)]
    return any(map(_refers_to_a_file, inner))

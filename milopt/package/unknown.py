"""Ops that coremltools does not know: custom layers, and those of a later specification."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from milopt.errors import PackageError

__all__ = ["refuse_unknown_ops"]

_registry: Any = importlib.import_module("coremltools.converters.mil.mil.ops.registry")
# the reader's own cases; the registry has these under other names, or not at all
_READ = frozenset({"const", "write_state"})


def refuse_unknown_ops(proto: Any, where: str) -> None:
    """PackageError that lists all ops of ``proto`` (a ``MIL.Program``) that can't be read, over all functions."""
    known = _READ.union(_registry.SSAOpRegistry.core_ops)
    found: dict[str, list[str]] = {}
    for function in proto.functions.values():
        for block in function.block_specializations.values():
            for op in _operations(block):
                if op.type not in known:
                    found.setdefault(_label(op), []).append(op.outputs[0].name if op.outputs else "")
    if found:
        listed = ", ".join(f"{kind} ({len(names)}x, e.g. {names[0]!r})" for kind, names in sorted(found.items()))
        raise PackageError(f"{where} has ops that coremltools can't read: {listed}")


def _operations(block: Any) -> Iterator[Any]:
    for op in block.operations:
        yield op
        for inner in op.blocks:
            yield from _operations(inner)


def _label(op: Any) -> str:
    """The type; of a custom layer also the class that implements it."""
    if "class_name" not in op.attributes:
        return str(op.type)
    names = op.attributes["class_name"].immediateValue.tensor.strings.values
    return " ".join([op.type, *map(str, names)])

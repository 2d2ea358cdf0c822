"""Where the other roots of a pattern may lie, once one is found: up the users of a value they have in common."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from milopt.engine.forms import Chain, OneOf, OpPattern, Output, Variable, parts_of
from milopt.engine.found import Found
from milopt.mil import Operation, Var

__all__ = ["Path", "candidates", "paths_to"]


@dataclass(frozen=True)
class Path:
    """The types of the ops between a variable, or an op, and a root: the first uses it, the last is the root."""

    start: Variable | OpPattern
    types: tuple[str, ...]


def paths_to(root: Any, knots: set[Variable | OpPattern]) -> tuple[Path, ...]:
    """The ways on which ``root`` is reached from one of ``knots``."""
    return tuple(dict.fromkeys(_paths(root, knots, ())))


def _paths(pattern: Any, knots: set[Variable | OpPattern], above: tuple[str, ...]) -> Iterator[Path]:
    if isinstance(pattern, (Variable, OpPattern)) and pattern in knots:
        yield Path(pattern, above)
    if isinstance(pattern, OpPattern):
        above = (pattern.op_type, *above)
    if isinstance(pattern, (OpPattern, Output, OneOf, Chain, list, tuple)):
        for part in parts_of(cast("Any", pattern)):
            yield from _paths(part, knots, above)


def candidates(paths: tuple[Path, ...], found: Found) -> Iterator[Operation]:
    """The ops at the ends of the paths that start at something found, each once, in a fixed order."""
    seen: dict[Operation, None] = {}
    for path in paths:
        seen.update(dict.fromkeys(_ends(path, found)))
    yield from seen


def _ends(path: Path, found: Found) -> list[Operation]:
    start = _values(path.start, found)
    if not path.types:  # the root itself was found as an op of another root
        return [var.op for var in start[:1] if var.op is not None]
    ops: list[Operation] = []
    for op_type in path.types:
        users = dict.fromkeys(user for var in start for user in var.child_ops)
        ops = [user for user in users if user.op_type == op_type]
        start = [var for op in ops for var in op.outputs]
    return ops


def _values(start: Variable | OpPattern, found: Found) -> list[Var]:
    if isinstance(start, OpPattern):
        op = found.ops.get(start)
        return [] if op is None else list(op.outputs)
    value = found.values.get(start.name)
    if isinstance(value, tuple):
        return list(cast("tuple[Var, ...]", value))
    return [value] if isinstance(value, Var) else []

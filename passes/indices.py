"""What coremltools puts around the indices of an embedding -> the indices."""

from __future__ import annotations

from typing import Any

import numpy as np

from milopt.building import Builder
from milopt.matching import Match
from milopt.mil import Var, constant, dtype_name, function_of, is_symbolic, shape_of
from milopt.pattern import Ops, Scalar, Value
from milopt.reports import require
from milopt.rules import Rule

__all__ = ["INDEX_RULES", "DropIndexCast", "DropIndexGuard"]

_SETTINGS: dict[str, Any] = dict.fromkeys(("axis", "batch_dims", "validate_indices"), ...)


def _rows(m: Match) -> int:
    """How many rows the table has that ``m`` gathers from."""
    dim = shape_of(m.table)[int(constant(m.root.inputs["axis"]))]
    require(not is_symbolic(dim), "its table has a flexible number of rows", at=m.table)
    return int(dim)


def _gather(op: Builder, m: Match) -> Var:
    inputs = {name: value for name, value in m.root.inputs.items() if value is not None}
    result: Var = op.gather(**{**inputs, "indices": m.ids})
    return result


def _require_held(kind: str, rows: int, at: Var) -> None:
    """Every index of a row must survive the cast that is to go; others are no indices."""
    require(kind.startswith(("int", "uint")), "its indices come from {}", kind, at=at)
    require(rows - 1 <= np.iinfo(kind).max, "{} rows don't fit {}, and the cast changes indices", rows, kind, at=at)


class DropIndexGuard(Rule[None]):
    """``gather(table, select(ids >= 0, ids, ids + rows))``  ->  ``gather(table, ids)``, with or without a cast of ids.

    The guard counts negative indices from the end. Token ids and positions that a caller passes in are never negative,
    and opsets below iOS17 count negative ones from the end without it. It stays away from

    1. indices that are computed, such as differences of positions: they may be negative;
    2. a guard that adds something else than the number of rows.
    """

    def pattern(self, op: Ops, /, table: Value, ids: Value, rows: Scalar) -> Any:
        below = op.shared(op.greater_equal(x=ids, y=0))
        guarded = op.shared(op.select(cond=below, a=ids, b=op.shared(op.add(x=ids, y=rows))))
        cast = op.shared(op.cast(x=guarded, dtype=...))
        return op.gather(x=table, indices=op.one_of("narrowed", yes=cast, no=guarded), **_SETTINGS)

    def check(self, m: Match, /) -> None:
        rows = _rows(m)
        require(m.rows == rows, "its guard adds {}, but its table has {} rows", m.rows, rows, at=m.table)  # 2
        source: Var = m.ids
        while source.op is not None and source.op.op_type == "cast":
            source = source.op.inputs["x"]
        given = any(source is var for var in function_of(m.root).inputs.values())
        require(given, "its indices are computed, and may be negative", at=m.ids)  # 1
        if m.narrowed == "yes":
            _require_held(dtype_name(m.root.inputs["indices"]), rows, m.ids)

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Var:
        op.note("indices given from outside must not be negative: embeddings no longer count those from the end")
        return _gather(op, m)


class DropIndexCast(Rule[None]):
    """``gather(table, cast(ids))``  ->  ``gather(table, ids)`` for int32 ids, also with two casts in a row.

    An index that the cast would change is no row of the table, and a gather of it is undefined. It stays away where

    1. the table has more rows than the cast can count: some of them could not be reached before;
    2. the ids are no int32.
    """

    def pattern(self, op: Ops, /, table: Value, ids: Value) -> Any:
        once = op.shared(op.cast(x=ids, dtype=...))
        twice = op.shared(op.cast(x=once, dtype=...))
        return op.gather(x=table, indices=op.one_of("casts", two=twice, one=once), **_SETTINGS)

    def check(self, m: Match, /) -> None:
        kind = dtype_name(m.ids)
        require(kind == "int32", "its indices are {}", kind, at=m.ids)  # 2
        rows = _rows(m)
        cast: Var = m.root.inputs["indices"]
        while cast is not m.ids:
            _require_held(dtype_name(cast), rows, cast)  # 1
            assert cast.op is not None
            cast = cast.op.inputs["x"]

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Var:
        return _gather(op, m)


INDEX_RULES: tuple[Rule[Any], ...] = (DropIndexGuard(), DropIndexCast())

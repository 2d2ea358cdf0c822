"""Cosines and sines of positions -> a table of them, and a gather."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import numpy as np

from milopt.building import Builder
from milopt.errors import PassError
from milopt.matching import Match
from milopt.metrics import Lossy, Metric
from milopt.mil import (
    Function,
    Operation,
    Var,
    arguments,
    constant,
    digest,
    dtype_name,
    function_of,
    is_symbolic,
    operations,
    shape_of,
)
from milopt.package import Model
from milopt.passes.angles import Tabulated, tabulate
from milopt.pattern import Ops, Scalar, Value
from milopt.pipeline import Pass
from milopt.reports import Report, require
from milopt.rules import Rule, apply

__all__ = ["RopeTable", "TabulateWave", "positions_of"]

CONTEXT_KEY = "milopt.context"
# constraints L7b and L13: the longest axis of a Neural Engine, and the 16 bits it counts rows with
_MOST_ROWS = 65536
# fp16 tables leave 64 dB at the worst output of SmolLM2-135M, and fp16 in the rest of the program 45 dB
_LEAST_DB = 35.0
# the dimensions whose angles are off most may hold more than their share of a key's energy
_MARGIN_DB = 10.0
_FLOATS = {"fp16": np.float16, "fp32": np.float32}
_MASKED = frozenset({"add", "select", "logical_and", "scaled_dot_product_attention"})

Array: TypeAlias = np.ndarray[Any, Any]


@dataclass
class Made:
    """What a run of the pass has made so far.

    ``tables`` by their content, so that functions share them; ``original_db`` is the least signal-to-noise ratio that a
    row of one has in the original program, in float64, on account of frequencies which fp16 had rounded.
    """

    tables: dict[object, Array] = field(default_factory=dict[object, Array])
    original_db: float = np.inf

    def share(self, table: Array) -> Array:
        return self.tables.setdefault((digest(table), table.shape, table.dtype.str), table)

    def compare(self, exact: Array, original: Array) -> None:
        axes = tuple(range(1, exact.ndim))
        noise = ((exact - original) ** 2).sum(axes)
        if np.any(noise):
            ratio = (exact**2).sum(axes)[noise > 0] / noise[noise > 0]
            self.original_db = min(self.original_db, float(10 * np.log10(ratio.min())))


@dataclass(frozen=True)
class RopeTable(Pass):
    """``cos`` and ``sin`` of ``positions * inverse frequencies``  ->  ``gather(table, positions)``.

    fp16 angles are wrong beyond position 2048, and already before where the inverse frequencies are rounded themselves
    (constraints L12). The tables, (context, D) each, are computed in float64 and rounded once to the type of the
    cosines' users. Where fp16 has rounded the inverse frequencies, the table is that of the closed form which they have
    (:func:`milopt.passes.frequencies.exact_frequencies`); where they have none, the angles are left alone, or with
    ``approximate`` the table is made of the rounded ones, and a note says how far off the last angle may be.

    ``context`` is the number of positions, from 0; without it, what the model's metadata says
    (``milopt.context``), or else the columns of the attention mask. Positions from there on have no row: what a gather
    makes of them is undefined, so the input's description names the limit.
    """

    context: int | None = None
    approximate: bool = False

    name: ClassVar[str] = "rope-table"
    after: ClassVar[tuple[str, ...]] = ("canonicalize",)
    metric: ClassVar[Metric] = Lossy(min_snr_db=_LEAST_DB)

    def __post_init__(self) -> None:
        if self.context is not None and self.context < 1:
            raise PassError(f"rope-table: context is at least 1, not {self.context}")

    def run(self, model: Model) -> Report:
        report = Report(self.name)
        made = Made()
        rows = self.context or positions_of(model)
        for form in ("cast", "scaled", "bare"):  # what follows a wave goes into the table: the longest form first
            report.misses = []  # "bare" looks at every wave that is left; the other forms have nothing to add
            report.extend(apply(TabulateWave(form, rows, made, self.approximate), model))
        if made.original_db < _LEAST_DB + _MARGIN_DB:
            report.metric = Lossy(made.original_db - _MARGIN_DB)
        for name, function in model.functions.items():
            _describe(model, name, function, {id(table) for table in made.tables.values()})
        return report


def positions_of(model: Model) -> int:
    """How many positions the model's metadata says there are, 0 if nothing. PassError where it says no number."""
    text = model.metadata.get(CONTEXT_KEY)
    if text is not None and not (text.isdecimal() and int(text)):
        raise PassError(f"rope-table: metadata {CONTEXT_KEY!r} is {text!r}, not a number of positions")
    return int(text or 0)


def _describe(model: Model, name: str, function: Function, tables: set[int]) -> None:
    """Say in the descriptions of inputs how many rows there are."""
    for op in operations(function):
        if op.op_type != "gather" or id(constant(op.inputs["x"])) not in tables:
            continue
        limit = f"below {op.inputs['x'].shape[0]}"
        for var in _sources(op.inputs["indices"]):
            text = model.text_of(name, var.name)
            if var.op is None and limit not in text:
                model.describe(name, var.name, f"{text}, {limit}" if text else f"positions, {limit}")


def _sources(var: Var) -> Iterator[Var]:
    yield var
    if var.op is not None and var.op.op_type in ("cast", "expand_dims", "squeeze"):
        yield from _sources(var.op.inputs["x"])


class _Facts(NamedTuple):
    value: Tabulated
    positions: Var
    kind: str


@dataclass(frozen=True)
class TabulateWave(Rule[_Facts]):
    """``[cast](cos(f(positions)) [* s])``  ->  ``gather(table, positions)``, and the same for ``sin``.

    ``f`` may be anything that :func:`milopt.passes.angles.tabulate` reads: products with constant frequencies, as
    ``mul`` or ``matmul``, concatenations, transposes, casts. ``rows`` is the number of positions, or 0 to go by
    the mask; ``made`` collects what one run makes, for all functions. It stays away where

    1. the angles are no function of one integer value, or are constant;
    2. the number of positions is unknown, or more than 65536;
    3. the value has more than one axis beside those of the positions;
    4. fp16 has rounded the frequencies, and no closed form explains them; not with ``approximate``.
    """

    form: Literal["cast", "scaled", "bare"]
    rows: int = 0
    made: Made = field(default_factory=Made, compare=False)
    approximate: bool = False

    def pattern(self, op: Ops, /, angles: Value, s: Scalar | None) -> Any:
        wave = op.one_of("wave", cos=op.cos(x=angles), sin=op.sin(x=angles))
        scaled = op.mul(x=wave, y=s)
        cast = op.cast(x=op.one_of("scaling", mul=scaled, none=wave), dtype=...)
        return {"bare": wave, "scaled": scaled, "cast": cast}[self.form]

    def check(self, m: Match, /) -> _Facts:
        result: Var = m.root.outputs[0]
        kind = dtype_name(result)
        require(kind in _FLOATS, "it is cast to {}", kind)
        positions = tabulate(result, 1, approximate=True).positions
        require(positions is not None, "its angles are constant")  # 1
        assert positions is not None
        rows = self.rows or _columns_of_mask(function_of(m.root), positions)
        require(rows is not None, "how many positions there are is unknown: give the option context", at=positions)  # 2
        assert rows is not None
        require(rows <= _MOST_ROWS, "a table of {} positions is too long, {} are possible", rows, _MOST_ROWS)  # 2
        value = tabulate(result, rows, approximate=self.approximate)  # 4
        features = [dim for dim in value.table.shape[1:] if dim != 1]
        require(len(features) == 1, "it has {} axes beside the positions'", len(features))  # 3
        return _Facts(value, positions, kind)

    def rewrite(self, op: Builder, m: Match, facts: _Facts, /) -> Var:
        value = facts.value
        for note in value.notes:
            op.note(note)
        self.made.compare(value.table, tabulate(m.root.outputs[0], len(value.table), as_stored=True).table)
        table = self.made.share(np.reshape(value.table, (len(value.table), -1)).astype(_FLOATS[facts.kind]))
        held = op.const(val=table, name=f"rotary_{m.wave}")
        result: Var = op.gather(x=held, indices=facts.positions)
        rank = facts.positions.rank
        unit = [at for at, axis in enumerate(value.axes) if axis is None and value.table.shape[at + 1] == 1]
        perm = [rank if axis is None else axis for at, axis in enumerate(value.axes) if at not in unit]
        if perm != sorted(perm):
            result = op.transpose(x=result, perm=perm)
        return op.expand_dims(x=result, axes=unit) if unit else result


def _columns_of_mask(function: Function, positions: Var) -> int | None:
    """The last dimension of an input (B, 1, Q, S) that masks the scores of as many queries as there are positions."""
    if not positions.rank:
        return None
    queries = shape_of(positions)[-1]
    found: list[int] = []
    for var in function.inputs.values():
        shape = shape_of(var)
        if len(shape) == 4 and shape[1] == 1 and shape[2] == queries and not is_symbolic(shape[3]) and _masks(var):
            found.append(shape[3])
    return max(found, default=None)


def _masks(var: Var) -> bool:
    users: list[Operation] = list(var.child_ops)
    inner = [user.outputs[0] for user in users if user.op_type == "cast"]
    others = [user for user in users if user.op_type != "cast"]
    direct = all(user.op_type in _MASKED and ("query", var) not in list(arguments(user)) for user in others)
    return bool(users) and direct and all(map(_masks, inner))

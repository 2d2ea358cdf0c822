"""Mask fills that fp16 can't hold, or can't add up -> a finite number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

import numpy as np

from milopt.building import Builder
from milopt.errors import PassError
from milopt.metrics import Exact, Lossy, Metric
from milopt.mil import (
    Operation,
    Var,
    arguments,
    constant,
    digest,
    dtype_name,
    is_output,
    operations,
    remove_if_dead,
    replace_uses,
    value_names,
)
from milopt.package import Model
from milopt.pipeline import Pass
from milopt.reports import NoMatch, Report, require

__all__ = ["FiniteMask", "is_low", "leads_to_softmax", "shared_array"]

Array: TypeAlias = np.ndarray[Any, Any]

# Two masks are often added up, and scores to them: half of what fp16 holds.
_LOWEST = -32752.0
# exp(-1000) is 0 in fp32; fewer would leave masked columns a share where scores are large.
_HIGHEST = -1000.0
# fmt: off
_MOVES = frozenset(
    {
        "cast", "concat", "expand_dims", "gather", "identity", "reshape", "slice_by_index", "slice_by_size", "split",
        "squeeze", "stack", "tile", "transpose",
    }
)
# a part of a table may be the row that masks everything
_PARTS = frozenset({"gather", "slice_by_index", "slice_by_size", "split"})
# fmt: on

_USERS = _MOVES | {"add", "mul", "scaled_dot_product_attention", "select", "softmax"}


def is_low(array: Array | None) -> bool:
    """Whether some of its numbers are masks' fills: -inf, the least number of a format, -1e9..."""
    return array is not None and array.dtype.kind == "f" and array.size > 0 and bool(np.min(array) < _LOWEST)


@dataclass(frozen=True)
class FiniteMask(Pass):
    """Constants of -inf, ``finfo.min``, -1e9 that mask attention scores in fp16  ->  ``value``.

    In fp16 such a fill is -inf, or becomes it when two masks are added; -inf times 0 and a row of nothing else are NaN
    (constraints L10). Rewritten are constants added to scores, the branches of a ``select``, tables that masks are
    sliced from, and the factor of ``(1 - m) * fill``. Everything they flow into must end as the input of a softmax, or
    the mask of an attention op, in fp16 or with a cast to it on the way. exp(value) is 0, so that attention stays the
    same wherever the scores of a row lie within some thousands of one another: ``-value`` less about a hundred.

    A row that masks every column is NaN before, or even over all columns; afterwards it is what its scores say. Of a
    constant with such a row the pass stays away; of rows that are computed it can't know. It also stays away where

    1. the numbers reach anything else, or are an output;
    2. nothing on the way is fp16: fp32 holds them, and what comes of adding them;
    3. a factor multiplies what may be other than 0 and 1. An input from which 1 - m is made is taken to hold these
       alone, and a note says so. Where the factor is -inf, every number before is NaN: there is nothing to compare
       with, and a note says that too.
    """

    value: float = -1e4

    name: ClassVar[str] = "finite-mask"
    after: ClassVar[tuple[str, ...]] = ("canonicalize",)
    # Not called safe in fp16 on large inputs: scores of tens of thousands would reach over a finite mask.
    metric: ClassVar[Metric] = Exact()

    def __post_init__(self) -> None:
        if not _LOWEST <= self.value <= _HIGHEST:
            raise PassError(f"finite-mask: value is between {_LOWEST:g} and {_HIGHEST:g}, not {self.value:g}")

    def run(self, model: Model) -> Report:
        report = Report(self.name)
        made: dict[object, Array] = {}
        for name, function in model.functions.items():
            taken = value_names(function)
            for op in [op for op in operations(function) if op.op_type == "const" and _is_fill(op)]:
                report.tried += 1
                try:
                    way = _Way(op.outputs[0]).followed()
                except NoMatch as why:
                    report.decline(name, why.at, why.text, *why.arguments)
                    continue
                _replace(op, self._finite(_array(op), made), taken)
                report.applied += 1
                report.notes += [note for note in way.notes if note not in report.notes]
                if way.only_nan:
                    report.metric = Lossy(-np.inf)
        return report

    def _finite(self, array: Array, made: dict[object, Array]) -> Array:
        """The new numbers; functions share equal ones."""
        finite: Array = np.where(array < _LOWEST, np.array(self.value, array.dtype), array)
        return shared_array(made, finite)


def shared_array(made: dict[object, Array], array: Array) -> Array:
    """``array``, or what ``made`` has with the same numbers, shape and type: functions then share one weight."""
    return made.setdefault((digest(array), array.shape, array.dtype.str), array)


def leads_to_softmax(var: Var) -> bool:
    """Whether the numbers of a constant reach a softmax, or the mask of an attention op, as fp16 on the way."""
    way = _Way(var)
    try:
        way.followed()
    except NoMatch:
        return way.ends and way.half
    return True


def _is_fill(op: Operation) -> bool:
    """Whether the constant holds low numbers where masks do; weights are not read."""
    users = {user.op_type for user in op.outputs[0].child_ops}
    return bool(users & _USERS) and is_low(_array(op))


def _array(op: Operation) -> Array:
    value: Any = op.outputs[0].val
    return np.asarray(value) if hasattr(value, "dtype") else np.zeros(0)


def _replace(old: Operation, array: Array, taken: set[str]) -> None:
    held = Builder(old, taken).const(val=array if array.ndim else array[()], name=f"{old.name}_finite")
    replace_uses(old.outputs[0], held)
    remove_if_dead([old])


@dataclass
class _Way:
    """Where a constant's numbers flow to. ``half`` says that fp16 was met, ``only_nan`` that 0 · -inf was."""

    source: Var
    half: bool = False
    only_nan: bool = False
    ends: bool = False
    notes: list[str] = field(default_factory=list[str])
    _seen: set[int] = field(default_factory=set[int])

    def followed(self) -> _Way:
        """Follow them to the end; NoMatch where they are more, or other, than a mask."""
        self._follow(self.source)
        require(self.ends, "it reaches no softmax", at=self.source)
        require(self.half, "it stays {}, which holds it", dtype_name(self.source), at=self.source)  # 2
        return self

    def _follow(self, var: Var) -> None:
        if id(var) in self._seen:
            return
        self._seen.add(id(var))
        self.half |= dtype_name(var) == "fp16"
        require(not is_output(var), "{} is an output", var.name, at=var)  # 1
        for user in dict.fromkeys(var.child_ops):
            for name, given in arguments(user):
                if given is var and self._through(user, name, var):
                    for out in user.outputs:
                        self._follow(out)

    def _through(self, op: Operation, name: str, var: Var) -> bool:
        """Whether the numbers go on behind ``op``, which takes ``var`` as its input ``name``."""
        kind = op.op_type
        if (kind, name) in (("softmax", "x"), ("scaled_dot_product_attention", "attn_mask")):
            self.ends = True
            return False
        if kind == "select" or (kind in _MOVES and name in ("x", "values")):
            if kind in _PARTS:
                self._rows(var)
            return True
        if kind == "add":
            self._rows(var)
            return True
        if kind == "mul" and var is self.source:
            self._factor(op, op.inputs["y" if name == "x" else "x"])
            return True
        raise NoMatch("it reaches {}", kind, at=op)  # 1

    def _rows(self, var: Var) -> None:
        array = constant(var)
        if array is not None:
            low = np.asarray(array) < _LOWEST
            require(not np.any(np.all(np.atleast_1d(low), -1)), "a row of it masks every column", at=var)

    def _factor(self, op: Operation, other: Var) -> None:
        require(np.size(self.source.val) == 1, "it is multiplied, and no single number", at=op)
        inputs = dict.fromkeys(_truth_inputs(other))
        require(None not in inputs, "it multiplies what may be other than 0 and 1", at=op)  # 3
        self.notes += [f"input {each!r} is taken to hold 0 and 1 alone" for each in inputs]
        if np.isinf(np.ravel(self.source.val)[0]):
            self.only_nan = True
            self.notes.append("0 * -inf is NaN before, in float64 too: there was nothing to compare with")


def _truth_inputs(var: Var, reversed_: bool = False) -> Iterator[str | None]:
    """Of a value of zeros and ones the inputs that must hold them for it; ``None`` where it may be other."""
    op = var.op
    if dtype_name(var) == "bool":
        return
    if (array := constant(var)) is not None:
        if not np.all(np.isin(array, (0, 1))):
            yield None
    elif op is None:
        yield var.name if reversed_ else None
    elif op.op_type in _MOVES:
        for name, each in arguments(op):
            if name in ("x", "values"):
                yield from _truth_inputs(each, reversed_)
    elif op.op_type == "sub" and _is_one(op.inputs["x"]):
        yield from _truth_inputs(op.inputs["y"], True)
    elif op.op_type == "mul":
        for each in (op.inputs["x"], op.inputs["y"]):
            yield from _truth_inputs(each, reversed_)
    elif op.op_type == "select":
        for each in (op.inputs["a"], op.inputs["b"]):
            yield from _truth_inputs(each, reversed_)
    else:
        yield None


def _is_one(var: Var) -> bool:
    array = constant(var)
    return array is not None and bool(np.all(np.asarray(array) == 1))

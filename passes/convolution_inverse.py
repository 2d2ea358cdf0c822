"""1x1 convolutions -> linear layers, for targets that have no use for (B, C, 1, S)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np

from milopt.axes import axes_of
from milopt.building import Builder
from milopt.layout.relations import OnRows
from milopt.matching import Match
from milopt.mil import (
    Function,
    ListVar,
    Operation,
    Var,
    arguments,
    constant,
    dtype_name,
    is_constant,
    is_output,
    is_symbolic,
    remove_if_dead,
    replace_uses,
    shape_of,
)
from milopt.package import Model
from milopt.passes.kernels import Reform, reformed
from milopt.passes.layout import LayoutBc1s
from milopt.passes.layout_choice import settle
from milopt.passes.layout_reading import read
from milopt.passes.layout_writing import Writing
from milopt.passes.moves import MOVE_RULES
from milopt.passes.refining import refined
from milopt.passes.sharing import share_moves
from milopt.passes.tying import share_kernels
from milopt.pattern import Const, Ops, Value, Weight
from milopt.pipeline import RulePass
from milopt.reports import NoMatch, Report, require
from milopt.rules import Rule, apply

__all__ = ["Conv1x1ToLinear", "ConvAsLinear", "LiftExpandDims", "MergeUnitAxes"]


@dataclass(frozen=True)
class Conv1x1ToLinear(RulePass):
    """``conv`` with a 1x1 kernel  ->  ``linear``, and the moves around it: the way back from ``linear-to-conv``.

    Moves that undo each other go, so that a program comes back from there as it was; of one that layout-bc1s has been
    over, values get the layouts that linear layers work in, with the fewest moves. Weights keep their bytes and their
    compressed form. Convolutions of images, (B, C, H, W), stay unless ``images`` says otherwise: a transpose there and
    one back cost more than they give. So do those of what was pooled from an image, (B, C, 1, 1), such as
    squeeze-and-excitation: it goes back to an image as it is, and a program of convolutions stays one.
    """

    name: ClassVar[str] = "conv1x1-to-linear"
    after: ClassVar[tuple[str, ...]] = ("canonicalize",)

    images: bool = False

    def rules(self) -> tuple[Rule[Any], ...]:
        return (ConvAsLinear(self.images),)

    def run(self, model: Model) -> Report:
        before = {op for function in model.functions.values() for op in function.operations}
        report = super().run(model)
        if report.applied:
            apply((*MOVE_RULES, MergeUnitAxes(), LiftExpandDims()), model)
            share_moves(model.program)
            share_kernels(model.functions)
            for name, function in model.functions.items():
                _drop_names(function, before)
                _lay_out(name, function, report)
        return report


def _lay_out(name: str, function: Function, report: Report) -> None:
    """Give what was laid out for convolutions the layouts that suit linear layers, where that saves moves."""
    try:
        reading = read(function, LayoutBc1s.sequence)
        settled = settle([reading], OnRows)
        if settled.touched:
            Writing(reading, settled.modes, settled.touched).write()
    except NoMatch as why:
        report.decline(name, why.at, why.text, *why.arguments)


def _drop_names(function: Function, before: set[Operation]) -> None:
    """Let outputs be the values that an ``identity`` gives their names to, one that was not there ``before``."""
    for var in list(function.outputs):
        op = var.op
        if op is None or op.op_type != "identity" or op in before:
            continue
        source: Var = op.inputs["x"]
        if source.op is None or len(source.op.outputs) > 1 or is_output(source) or is_constant(source):
            continue
        replace_uses(var, source)
        remove_if_dead([op])
        source.name = source.op.name = var.name


_Place: TypeAlias = Literal["sequence", "row", "column", "image"]


class ConvAsLinear(Rule[_Place]):
    """``conv(x, w, b)`` of (B, C, 1, S), (B, C, S, 1) or (B, C, S)  ->  ``linear`` of (B, S, C), and back.

    It stays away from

    1. kernels that see more than one position, strides, padding and groups;
    2. kernels that are computed, and element types that ``linear`` has not;
    3. images, but for those that a transpose from (B, H, W, C) precedes, what is pooled from images, and volumes.
    """

    def __init__(self, images: bool) -> None:
        self._images = images

    def pattern(self, op: Ops, /, x: Value, weight: Weight) -> Any:
        others = dict.fromkeys(("bias", "strides", "pad_type", "pad", "dilations", "groups"), ...)
        return op.conv(x=x, weight=weight, **others)

    def check(self, m: Match, /) -> _Place:
        kernel = shape_of(m.weight)[2:]
        require(all(size == 1 for size in kernel), "its kernel is {}", "x".join(map(str, kernel)), at=m.weight)  # 1
        inputs = m.root.inputs  # which may lack some where the op is none of PyMIL's
        strides, groups = constant(inputs.get("strides")), constant(inputs.get("groups"))
        require(np.all(strides == 1), "its strides are {}", strides)
        require(groups == 1, "it has {} groups", groups)
        pads = constant(inputs.get("pad")) if constant(inputs.get("pad_type")) == "custom" else 0
        require(not np.any(pads), "it pads by {}", pads)
        require(dtype_name(m.x) in ("fp16", "fp32"), "linear takes no {}", dtype_name(m.x), at=m.x)  # 2
        place = _place(m.x)
        require(place is not None, "its operand has rank {}", m.x.rank, at=m.x)  # 3
        assert place is not None
        if place == "image":
            wanted = self._images or _perm(m.x.op) == [0, 3, 1, 2]
            require(wanted, "it is a convolution of images, where linear is not worth its transposes", at=m.x)
            unknown = sum(map(is_symbolic, shape_of(m.x)))
            require(unknown <= 1, "{} sizes of its image are not known", unknown, at=m.x)
        elif place == "row" and shape_of(m.x)[3] == 1:
            require(self._images or not _is_pooled(m.x), "it sees what was pooled from an image", at=m.x)
        return place

    def rewrite(self, op: Builder, m: Match, facts: _Place, /) -> Var:
        weight = reformed(op, m.weight, Reform(m.weight.rank, (0, 1)), f"{m.weight.name}_2d")
        bias = {} if (given := m.root.inputs.get("bias")) is None else {"bias": given}
        batch, _, *sides = shape_of(m.x)
        outputs = shape_of(weight)[0]
        # the spelling of linear-to-conv, which cancels
        last, first = {
            "sequence": ([0, 2, 1], [0, 2, 1]),
            "row": ([0, 3, 1, 2], [0, 2, 3, 1]),
            "column": ([0, 2, 3, 1], [0, 3, 1, 2]),
            "image": ([0, 2, 3, 1], [0, 3, 1, 2]),
        }[facts]
        rows = op.transpose(x=m.x, perm=last)
        if facts in ("row", "column"):
            unit = [3] if facts == "row" else [2]
            made = op.expand_dims(x=op.linear(x=op.squeeze(x=rows, axes=unit), weight=weight, **bias), axes=unit)
        elif facts == "image":
            merged = op.reshape(x=rows, shape=_sizes([batch, _product(sides), shape_of(m.x)[1]]))
            made = op.reshape(x=op.linear(x=merged, weight=weight, **bias), shape=_sizes([batch, *sides, outputs]))
        else:
            made = op.linear(x=rows, weight=weight, **bias)
        # conv's type inference makes new symbols for sizes that are not known
        return refined(op.transpose(x=made, perm=first), shape_of(m.root.outputs[0]), m.root)


def _place(x: Var) -> _Place | None:
    """Which of its axes hold positions; ``None`` for a volume."""
    shape = shape_of(x)
    if len(shape) == 3:
        return "sequence"
    if len(shape) != 4:
        return None
    return "row" if shape[2] == 1 else "column" if shape[3] == 1 else "image"


_POOLS = frozenset({"avg_pool", "l2_pool", "max_pool", "reduce_max", "reduce_mean", "reduce_min", "reduce_sum"})


def _is_pooled(x: Var) -> bool:
    """Whether a value of (B, C, 1, 1) is made of an image: pooled, and perhaps seen by further layers since."""
    return any(op.op_type in _POOLS and _place(value) == "image" for op, value in _sources(x))


def _sources(x: Var) -> Iterator[tuple[Operation, Var]]:
    """The ops that ``x`` and values of (B, C, 1, 1) before it are made by, each with what it reads."""
    todo, seen = [x], {x}
    while todo:
        op = todo.pop().op
        if op is None:
            continue
        for _, value in arguments(op):
            if value in seen or isinstance(value, ListVar):
                continue
            seen.add(value)
            yield op, value
            if tuple(shape_of(value)[2:]) == (1, 1):
                todo.append(value)


def _perm(op: Operation | None) -> list[int]:
    if op is None or op.op_type != "transpose":
        return []
    return [int(axis) % len(op.outputs[0].shape) for axis in constant(op.inputs["perm"])]


def _product(sides: list[Any]) -> Any:
    return -1 if any(map(is_symbolic, sides)) else int(np.prod(sides))


def _sizes(shape: list[Any]) -> list[int]:
    """A shape for ``reshape``, with at most one size that is not known."""
    return [-1 if is_symbolic(size) else int(size) for size in shape]


class MergeUnitAxes(Rule[tuple[str, tuple[int, ...]]]):
    """``squeeze`` and ``expand_dims`` in a row  ->  one of them, or ``x`` where its shape comes out."""

    def pattern(self, op: Ops, /, x: Value) -> Any:
        first = op.one_of(
            "first",
            squeeze=op.shared(op.squeeze(x=x, axes=...)),
            expand_dims=op.shared(op.expand_dims(x=x, axes=...)),
        )
        return op.one_of("second", squeeze=op.squeeze(x=first, axes=...), expand_dims=op.expand_dims(x=first, axes=...))

    def check(self, m: Match, /) -> tuple[str, tuple[int, ...]]:
        second, first = m.ops
        axes: list[int | None] = list(range(m.x.rank))
        for op in (first, second):
            chosen = _unit_axes(op)
            if op.op_type == "squeeze":
                axes = [axis for at, axis in enumerate(axes) if at not in chosen]
            else:
                for at in chosen:
                    axes.insert(at, None)
        kept = [axis for axis in axes if axis is not None]
        gone, new = _between(list(range(m.x.rank)), kept), _between(axes, kept)
        # between two axes that stay, unit axes that go and unit axes that come are the same
        left = [(axes_gone[len(come) :], come[len(axes_gone) :]) for axes_gone, come in zip(gone, new, strict=True)]
        away = tuple(axis for pair in left for axis in pair[0])
        added = tuple(axis for pair in left for axis in pair[1])
        require(not away or not added, "axes {} go and others come", away)
        return ("squeeze", away) if away else ("expand_dims", added)

    def rewrite(self, op: Builder, m: Match, facts: tuple[str, tuple[int, ...]], /) -> Var:
        kind, axes = facts
        result: Var = getattr(op, kind)(x=m.x, axes=list(axes)) if axes else m.x
        return result


def _between(axes: list[int | None] | list[int], kept: list[int]) -> list[list[int]]:
    """The positions of axes that are not kept: before the first one that is, between it and the next, and so on."""
    found: list[list[int]] = [[]]
    for at, axis in enumerate(axes):
        if axis in kept:
            found.append([])
        else:
            found[-1].append(at)
    return found


def _unit_axes(op: Operation) -> list[int]:
    """The axes of a squeeze or expand_dims, counted from the front, ascending."""
    axes = axes_of(op, "axes")
    return sorted(axes) if axes is not None else [at for at, size in enumerate(op.inputs["x"].shape) if size == 1]


class LiftExpandDims(Rule[tuple[int, ...]]):
    """``linear(expand_dims(x), w, b)``  ->  ``expand_dims(linear(x, w, b))``, where the last axis is not a new one."""

    def pattern(self, op: Ops, /, x: Value, axes: Const, weight: Weight, bias: Const) -> Any:
        return op.linear(x=op.shared(op.expand_dims(x=x, axes=axes)), weight=weight, bias=bias)

    def check(self, m: Match, /) -> tuple[int, ...]:
        axes = _unit_axes(m.ops[1])
        require(m.x.rank + len(axes) - 1 not in axes, "its channels are a new axis", at=m.axes)
        return tuple(axes)

    def rewrite(self, op: Builder, m: Match, facts: tuple[int, ...], /) -> Var:
        made = op.linear(x=m.x, weight=m.weight, bias=m.bias)
        result: Var = op.expand_dims(x=made, axes=list(facts))
        return result

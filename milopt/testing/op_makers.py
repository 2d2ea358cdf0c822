"""Makers of ops from the way their inputs are drawn for the properties of :mod:`milopt.testing.ops`."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from hypothesis import strategies as st

from milopt.mil import Target, Var, dtype_name, flat, mb, shape_of
from milopt.testing.ops.drawing import Draw as CaseDraw
from milopt.testing.ops.framework import Case
from milopt.testing.scope import Draw, Maker, Scope, fitted, is_fixed, mil_type, tensors_of

__all__ = ["case_makers", "cases_of"]


@lru_cache(maxsize=1)
def _by_type() -> Mapping[str, tuple[Case, ...]]:
    from milopt.testing.ops.families import CASES

    found: dict[str, tuple[Case, ...]] = {}
    for case in CASES:
        found[case.op_type] = (*found.get(case.op_type, ()), case)
    return found


def cases_of(op_type: str, opset: Target) -> tuple[Case, ...]:
    """The ways to draw the op's inputs in an opset."""
    return tuple(case for case in _by_type().get(op_type, ()) if opset in case.opsets)


def case_makers() -> dict[str, Maker]:
    """One maker for each op type that has a property."""
    return {op_type: _maker(op_type) for op_type in _by_type()}


def _maker(op_type: str) -> Maker:
    def make(draw: Draw, values: Sequence[Var]) -> Sequence[Var] | None:
        if not isinstance(values, Scope) or not (cases := cases_of(op_type, values.opset)):
            return None
        source = _NearValues(_Drawn(draw), values.opset, values)
        with np.errstate(all="ignore"):
            call = draw(st.sampled_from(cases)).draws(source)
        inputs: dict[str, Any] = {}
        for name, value in call.inputs.items():
            if isinstance(value, tuple):
                inputs[name] = tuple(_operand(draw, values, each) for each in flat(value))
            else:
                inputs[name] = _operand(draw, values, value)
        return tensors_of(flat(getattr(mb, op_type)(**inputs, **_written(call.attributes))))

    return make


def _written(attributes: Mapping[str, Any]) -> dict[str, Any]:
    # copies, because some of coremltools' value inferences write to their inputs
    return {name: copy.copy(value) for name, value in attributes.items()}


@dataclass(frozen=True)
class _Drawn:
    """hypothesis' ``draw`` under the name that cases know it by."""

    draw: Draw


class _NearValues(CaseDraw):
    """Draws shapes and types that values of the program have, so that the op can take one."""

    def __init__(self, data: Any, opset: Target, values: Scope) -> None:
        super().__init__(data, opset)
        self._values = [var for var in values if is_fixed(var) and 0 not in shape_of(var)]
        self._near: Var | None = None

    def shape(self, min_rank: int = 1, max_rank: int = 4, *, max_size: int = 4, empty: bool = True) -> tuple[int, ...]:
        fitting = [
            var
            for var in self._values
            if min_rank <= len(shape_of(var)) <= max_rank and max(shape_of(var), default=1) <= 2 * max_size
        ]
        if fitting and self.number(0, 3):
            near: Var = self.pick(*fitting)
            self._near = near
            return shape_of(near)
        return super().shape(min_rank, max_rank, max_size=max_size, empty=False)

    def pick(self, *options: Any) -> Any:
        if self._near is not None and all(isinstance(each, np.dtype) for each in options):
            kind = dtype_name(self._near)
            same = [each for each in options if mil_type(each) == kind]
            if same and self.number(0, 3):
                return same[0]
        return super().pick(*options)

    def array(self, shape: tuple[int, ...], dtype: Any = np.float32, **bounds: Any) -> Any:
        given: dict[str, Any] = {**bounds, "edges": "none"}
        return super().array(shape, dtype, **given)


def _operand(draw: Draw, scope: Scope, array: Any) -> Any:
    """A value like ``array``: one that is there, one made from it, a new input, or the array as a constant."""
    array = np.asarray(array)
    if not array.ndim or array.size == 0:
        return array[()]
    kind, shape = mil_type(array.dtype), array.shape
    exact = [var for var in scope if dtype_name(var) == kind and shape_of(var) == shape]
    if exact and array.dtype.kind in "fb" and draw(st.integers(0, 4)):
        return draw(st.sampled_from(exact))
    floats = [var for var in scope if dtype_name(var).startswith("fp")]
    how = draw(st.sampled_from(["fitted", "input", "constant"]))
    if how == "fitted" and floats and (made := fitted(draw, scope, draw(st.sampled_from(floats)), shape, kind)):
        return made
    # integers are indices, sizes and the like: what is drawn for them is within their bounds
    if how == "constant" or array.dtype.kind in "iu":
        return array.copy()
    return scope.input(shape, kind)

"""Builds ops that a pattern matches: variables get values, alternatives are picked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

from milopt.matching import COMMUTATIVE
from milopt.mil import Var, flat, mb
from milopt.pattern import (
    Chain,
    Const,
    OneOf,
    OpPattern,
    Output,
    Pat,
    Scalar,
    Value,
    Values,
    Variable,
    Weight,
    roots_of,
)
from milopt.testing.filling import PARAMETERS, Filling
from milopt.testing.fitting import setting_for, shape_for
from milopt.testing.op_makers import cases_of
from milopt.testing.scope import Maker, mil_type
from milopt.testing.typed_cases import OfType

__all__ = ["Instance"]


@dataclass
class Instance(Filling):
    """One program's worth of a pattern.

    ``values`` are the caller's own makers of variables. ``bound`` is what the variables got, ``built`` the outputs of
    the pattern's ops, ``tags`` the alternatives picked.
    """

    values: Mapping[str, Maker] = field(default_factory=dict[str, Maker])
    bound: dict[str, Any] = field(default_factory=dict[str, Any])
    built: dict[int, tuple[Var, ...]] = field(default_factory=dict[int, tuple[Var, ...]])
    tags: dict[str, str] = field(default_factory=dict[str, str])

    def roots(self, root: Any) -> list[Var]:
        """Build the pattern; the values that a rewrite would replace."""
        made: list[Var] = []
        for each in roots_of(root):
            outputs = self._op_of(each, {})
            made += [outputs] if isinstance(outputs, Var) else outputs
        return made

    def _op_of(self, pattern: Any, given: dict[str, Any]) -> Any:
        chosen = self._resolved(pattern)
        if isinstance(chosen, OpPattern):
            return self._built(chosen)
        return self._input(chosen, "", "", given)

    def _resolved(self, pattern: Any) -> Any:
        """The pattern with its alternatives and chains decided."""
        while isinstance(pattern, (OneOf, Chain)):
            if isinstance(pattern, OneOf):
                tag = self.tags.setdefault(pattern.tag, self.draw(st.sampled_from(list(pattern.choices))))
                pattern = pattern.choices[tag]
            else:
                pattern = self.draw(st.sampled_from([pattern.value, *pattern.links]))
        return pattern

    def _built(self, pattern: OpPattern) -> tuple[Var, ...]:
        if id(pattern) not in self.built:
            inputs = self._inputs(pattern)
            swaps = pattern.op_type in COMMUTATIVE and {"x", "y"} <= inputs.keys()
            if swaps and self.draw(st.booleans()):
                inputs["x"], inputs["y"] = inputs["y"], inputs["x"]
            self.built[id(pattern)] = flat(getattr(mb, pattern.op_type)(**inputs))
        return self.built[id(pattern)]

    def _inputs(self, pattern: OpPattern) -> dict[str, Any]:
        """The op's inputs. What is known comes first, so that the variables fit it."""
        wanted = {name: self._decided(each) for name, each in pattern.inputs.items()}
        given: dict[str, Any] = {}
        order = sorted(wanted, key=lambda name: _rank(wanted[name], self.bound))
        open_ones = [name for name in order if isinstance(wanted[name], (Value, Const, Weight)) and not (
            wanted[name].name in self.bound or wanted[name].name in self.values)]  # fmt: skip
        leaf = len(open_ones) == sum(_makes_value(each) for each in wanted.values())
        drawn = self._case(pattern.op_type, wanted) if leaf and self.draw(st.booleans()) else {}
        for name in order:
            each = wanted[name]
            if each is None:
                continue
            made = self._from_case(each, name, drawn[name]) if name in drawn else None
            if made is None:
                made = self._input(each, pattern.op_type, name, given)
            if made is not None:
                given[name] = made
        return given

    def _decided(self, pattern: Any) -> Any:
        pattern = self._resolved(pattern)
        if isinstance(pattern, (list, tuple)):
            return tuple(self._resolved(each) for each in flat(pattern))
        return pattern

    def _input(self, pattern: Any, op_type: str, name: str, given: dict[str, Any]) -> Any:
        pattern = self._resolved(pattern)
        if isinstance(pattern, OpPattern):
            outputs = self._built(pattern)
            return outputs[0]
        if isinstance(pattern, Output):
            outputs = self._built(pattern.op)
            index = pattern.index if isinstance(pattern.index, int) else self.draw(st.integers(0, len(outputs) - 1))
            return outputs[index]
        if isinstance(pattern, Values):
            return self._several(pattern, op_type, name, given)
        if isinstance(pattern, Variable):
            return self._variable(pattern, op_type, name, given)
        if isinstance(pattern, (list, tuple)) and any(_is_pattern(each) for each in flat(pattern)):
            members: list[Any] = []
            for each in flat(pattern):
                near = {**given, **{f"_{at}": var for at, var in enumerate(members)}}
                made = self._input(each, op_type, name, near)
                members += made if isinstance(made, tuple) else [made]
            return tuple(members)
        if pattern is ...:
            return setting_for(self.draw, op_type, name, given)
        return self.literal(pattern, op_type, name, given)

    def _several(self, variable: Values, op_type: str, name: str, given: dict[str, Any]) -> tuple[Var, ...]:
        if variable.name not in self.bound:
            count = self.draw(st.integers(0, 2)) if given else self.draw(st.integers(1, 3))
            members: list[Var] = []
            for _ in range(count):
                near = {**given, **{f"_{at}": var for at, var in enumerate(members)}}
                members.append(self.fresh(shape_for(self.draw, op_type, name, near) or self.base, self.dtype))
            self.bound[variable.name] = tuple(members)
        made: tuple[Var, ...] = self.bound[variable.name]
        return made

    def _variable(self, variable: Variable, op_type: str, name: str, given: dict[str, Any]) -> Any:
        if variable.name not in self.bound:
            maker = self.values.get(variable.name)
            if maker is not None:
                made = maker(self.draw, self.scope)
            elif isinstance(variable, Scalar):
                made = self.number(op_type, name, given)
            elif isinstance(variable, (Const, Weight)):
                made = self.constant(variable, op_type, name, given)
            else:
                made = self.value(op_type, name, given)
            self.bound[variable.name] = made
        return self.bound[variable.name]

    def _case(self, op_type: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Inputs of the op drawn together, for an op whose geometry no table knows."""
        cases = cases_of(op_type, self.scope.opset)
        if not cases:
            return {}
        with np.errstate(all="ignore"):
            call = self.draw(st.sampled_from(cases)).draws(OfType(self.draw, self.scope.opset, self.dtype, self.base))
        return {name: value for name, value in {**call.inputs, **call.attributes}.items() if name in wanted}

    def _from_case(self, pattern: Any, name: str, value: Any) -> Any:
        """What was drawn for an input, as the pattern wants it there; ``None`` where it wants something else."""
        if pattern is ...:
            return value
        if isinstance(value, tuple) or not isinstance(pattern, Variable) or isinstance(pattern, (Scalar, Values)):
            return None
        array = np.asarray(value)
        if pattern.name in self.bound or pattern.name in self.values or array.size == 0:
            return None
        if isinstance(pattern, (Const, Weight)) and array.dtype.kind == "f":
            array = self.array(array.shape, mil_type(array.dtype))
        if isinstance(pattern, Value):
            kept = not array.ndim or array.dtype.kind in "US" or name in PARAMETERS
            made = array[()] if kept else self.fresh(array.shape, mil_type(array.dtype))
        else:
            made = mb.const(val=array[()])
        self.bound[pattern.name] = made
        return made


def _makes_value(pattern: Any) -> bool:
    return isinstance(pattern, (OpPattern, Output, Value, Const, Weight, tuple)) and not isinstance(pattern, Scalar)


def _rank(pattern: Any, bound: Mapping[str, Any]) -> int:
    """Literals come first, then ops and what is known, then what is open: parameters before values, numbers last."""
    if not _is_pattern(pattern) and not isinstance(pattern, (list, tuple)):
        return 0
    if isinstance(pattern, (OpPattern, Output)) or (isinstance(pattern, Variable) and pattern.name in bound):
        return 1
    if isinstance(pattern, (Value, Values, tuple, list)):
        return 2
    return 3 if pattern is ... else 4


def _is_pattern(each: object) -> bool:
    return isinstance(each, Pat) or each is ...

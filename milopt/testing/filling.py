"""What the variables of a pattern get: inputs and what ops make of them, numbers, constants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

import numpy as np
from hypothesis import strategies as st

from milopt.mil import Var, add_input, dtype_name, is_symbolic, mb, shape_of, target
from milopt.pattern import Variable, Weight
from milopt.testing.fitting import BINARY, setting_for, shape_for
from milopt.testing.scope import Draw, Scope, numpy_type
from milopt.testing.typing_of import kinds_of

__all__ = ["PARAMETERS", "Filling"]

PARAMETERS = ("weight", "bias", "gamma", "beta")
"""Inputs that are values in MIL's eyes, and constants in nearly every program."""

_UNARY = ("relu", "tanh", "identity", "abs", "square")


@dataclass
class Filling:
    """Draws what stands at an input of an op, so that it fits the inputs that are ``given`` already.

    ``dtype`` is the element type of values where the ops leave it open, ``base`` a shape that many of them have,
    ``numbers`` what scalars are drawn from beside small ones. ``symbols`` are dimensions that inputs have in the place
    of a size. ``producers`` are op types that values may come from, ``hints`` those that the rule missed before;
    ``again`` whether it declined one. ``sizes`` are those of the values made so far.
    """

    draw: Draw
    scope: Scope
    dtype: str
    base: tuple[int, ...]
    numbers: Sequence[float] = ()
    symbols: Mapping[int, Any] = field(default_factory=dict[int, Any])
    stateful: bool = False
    producers: Sequence[str] = ()
    hints: Sequence[str] = ()
    again: bool = False
    sizes: list[int] = field(default_factory=list[int])

    def value(self, op_type: str, name: str, given: dict[str, Any]) -> Any:
        """Any value: a parameter is an array, what else is computed now and then too."""
        kind = self._kind(op_type, name, given)
        shape = self._shape(op_type, name, given)
        if name in PARAMETERS or (kind.startswith("fp") and self.draw(st.integers(0, 7)) == 7):
            return self.array(shape, kind)
        return self.fresh(shape, kind)

    def _kind(self, op_type: str, name: str, given: dict[str, Any]) -> str:
        """The element type for an input: that of the others where the op wants one type, or one it allows."""
        allowed, mates = kinds_of(op_type, name, self.scope.opset)
        for mate in mates:
            if isinstance(given.get(mate), Var):
                return dtype_name(given[mate])
        others = [dtype_name(var) for key, var in given.items() if isinstance(var, Var) and key.startswith("_")]
        if others:
            return others[0]
        near = next((dtype_name(var) for var in given.values() if isinstance(var, Var)), "")
        if near in allowed and near.startswith("fp"):
            return near
        if not allowed or self.dtype in allowed:
            return self.dtype
        return "int32" if "int32" in allowed else "bool" if "bool" in allowed else min(allowed)

    def _shape(self, op_type: str, name: str, given: dict[str, Any]) -> tuple[Any, ...]:
        """What the op's geometry asks for; else the shape of another input, or one near the base."""
        if (shape := shape_for(self.draw, op_type, name, given)) is not None:
            return shape
        alike = [shape_of(var) for var in given.values() if isinstance(var, Var)]
        return alike[0] if alike else self._near_base()

    def _near_base(self) -> tuple[int, ...]:
        base = self.base
        other = tuple(self.draw(st.integers(1, 4)) for _ in range(self.draw(st.integers(1, 4))))
        return tuple(self.draw(st.sampled_from([base, base, base, (*base[:-1], 1), other])))

    def fresh(self, shape: tuple[Any, ...], kind: str) -> Var:
        """A new input, or what an op or a state makes of one."""
        self.sizes += [int(dim) for dim in shape if not is_symbolic(dim)]
        wide = tuple(dim if is_symbolic(dim) else self.symbols.get(dim, dim) for dim in shape)
        if self.stateful and kind == "fp16" and wide == shape and shape:
            self.stateful = False
            return self._read(shape)
        if wide == shape:
            same = [var for var in self.scope if dtype_name(var) == kind and shape_of(var) == shape]
            if same and self.draw(st.integers(0, 3)) == 3:
                made: Var = self.draw(st.sampled_from(same))
                return made
        var = self.scope.input(wide, kind)
        return self._produced(var)

    def _produced(self, var: Var) -> Var:
        """The value as it is, or as the result of an op that keeps its type and shape."""
        how = self.draw(st.sampled_from(["input", "input", "unary", "producer"]))
        if self.hints and self.draw(st.integers(0, 3)):
            return _moved(self.draw, self.draw(st.sampled_from(list(self.hints))), var)
        if not dtype_name(var).startswith("fp") or how == "input":
            return var
        if how == "unary" or not self.producers:
            made: Var = getattr(mb, self.draw(st.sampled_from(_UNARY)))(x=var)
            return made
        return _moved(self.draw, self.draw(st.sampled_from(list(self.producers))), var)

    def _read(self, shape: tuple[int, ...]) -> Var:
        state = add_input(self.scope.function, f"s{len(self.scope.states)}", shape, "fp16", state=True)
        self.scope.states.append(state)
        made: Var = mb.read_state(input=state)
        return made

    def _pool(self) -> list[float]:
        dims = [size for size in dict.fromkeys(self.sizes) if size > 0]
        roots = [value for size in dims for value in (sqrt(size), 1 / sqrt(size))]
        return [0.0, 1.0, 1e-5, 1e-6, *self.numbers, *map(float, dims), *roots]

    def number(self, op_type: str, name: str, given: dict[str, Any]) -> Any:
        """One number in the type that fits, or now and then an array of it."""
        kind = numpy_type(self._kind(op_type, name, given))
        pool = self._pool()
        if kind.kind in "iu":
            whole = [value for value in pool if value == int(value)]
            return kind.type(self.draw(st.sampled_from(whole) | st.integers(-3, 3)))
        if kind.kind == "b":
            return kind.type(self.draw(st.booleans()))
        number = kind.type(self.draw(st.sampled_from(pool) | st.integers(-8, 8).map(lambda n: n / 4)))
        other = next((var for key, var in given.items() if isinstance(var, Var) and key in ("x", "y")), None)
        if op_type in BINARY and other is not None and self.draw(st.integers(0, 5)) == 5:
            dims = tuple(1 if is_symbolic(dim) else int(dim) for dim in shape_of(other))
            return np.full(self.draw(st.sampled_from([dims, (1,) * len(dims)])), number, kind)
        return number

    def constant(self, variable: Variable, op_type: str, name: str, given: dict[str, Any]) -> Any:
        """A constant; for a weight now and then a compressed one."""
        value = setting_for(self.draw, op_type, name, given)
        if isinstance(value, (int, list)):
            return mb.const(val=np.array(value, np.bool_ if isinstance(value, bool) else np.int32))
        kind = self._kind(op_type, name, given)
        shape = self._shape(op_type, name, given)
        array = self.array(shape, kind)
        if (
            isinstance(variable, Weight)
            and kind.startswith("fp")
            and len(shape) > 1
            and self.draw(st.integers(0, 2)) == 2
        ):
            return _compressed(self.draw, self.scope.opset, array)
        return mb.const(val=array)

    def array(self, shape: tuple[Any, ...], kind: str) -> Any:
        """An array of quarters, of one number, or zeros; of integers, small ones."""
        dims = tuple(1 if is_symbolic(dim) else int(dim) for dim in shape)
        dtype = numpy_type(kind)
        # a rule that declined may want a neutral element
        how = self.draw(st.sampled_from(["quarters", "neutral" if self.again else "quarters", "neutral", "alike"]))
        if how != "quarters":
            number = self.draw(st.sampled_from([0.0, 1.0] if how == "neutral" else self._pool()))
            return np.full(dims, number if dtype.kind == "f" else int(number) % 3, dtype)
        source = np.random.default_rng(self.draw(st.integers(0, 999)))
        whole = source.integers(-8, 9, dims)
        return np.asarray(whole / 4 if dtype.kind == "f" else np.abs(whole) % max(min(dims, default=1), 1)).astype(
            dtype
        )

    def literal(self, wanted: Any, op_type: str, name: str, given: dict[str, Any]) -> Any:
        """The literal in the type that the op takes it in."""
        if isinstance(wanted, (bool, str)) or not isinstance(wanted, (int, float)):
            return wanted
        allowed, _ = kinds_of(op_type, name, self.scope.opset)
        kind = numpy_type(self._kind(op_type, name, given))
        if allowed and not allowed & {"fp16", "fp32"}:
            return int(wanted)
        if kind.kind == "f":
            return kind.type(wanted)
        return kind.type(wanted) if kind.kind in "iu" and op_type in BINARY | {"select"} else wanted


def _moved(draw: Draw, op_type: str, var: Var) -> Var:
    """``var`` as the result of an op of the type: of its inverse on it, where it moves data."""
    shape = shape_of(var)
    made: Var
    if op_type == "transpose" and shape:
        made = mb.transpose(x=var, perm=list(draw(st.permutations(range(len(shape))))))
    elif op_type == "expand_dims":
        made = mb.expand_dims(x=var, axes=[draw(st.integers(-len(shape) - 1, len(shape)))])
    elif op_type == "squeeze" and 1 in shape:
        made = mb.squeeze(x=var, axes=[shape.index(1)])
    elif op_type == "reshape" and shape and not any(map(is_symbolic, shape)):
        made = mb.reshape(x=var, shape=draw(st.sampled_from([[-1], list(shape[::-1]), [1, *shape]])))
    elif op_type == "cast":
        made = mb.cast(x=var, dtype=draw(st.sampled_from(["fp16", "fp32", "int32"])))
    else:
        made = mb.relu(x=var)
    return made


def _compressed(draw: Draw, opset: target, array: Any) -> Any:
    """The array's shape and type as a compressed constant."""
    source = np.random.default_rng(draw(st.integers(0, 999)))
    data: Any = source.integers(-8, 8, array.shape, np.int8)
    if opset >= target.iOS18:
        counts = (array.shape[0], *[1] * (array.ndim - 1))
        scale = np.full(counts, 0.25, array.dtype)
        return mb.constexpr_blockwise_shift_scale(data=data, scale=scale)
    if opset >= target.iOS16:
        return mb.constexpr_affine_dequantize(
            quantized_data=data, zero_point=np.int8(0), axis=0, scale=array.dtype.type(0.25)
        )
    return mb.const(val=array)

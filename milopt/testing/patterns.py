"""Programs drawn from a rule's own pattern: those it is written for, and those that miss it by one detail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import reject
from hypothesis import strategies as st

from milopt.matching import COMMUTATIVE
from milopt.mil import Function, Operation, Program, Var, dtype_name, flat, mb, remove_ops, shape_of, target, types
from milopt.pattern import OneOf, OpPattern, Output, Scalar, Value, Variable, build
from milopt.rules import Rule
from milopt.testing.makers import ELEMENTWISE, MAKERS, Draw, numbers, tensors
from milopt.testing.naming import rename

__all__ = ["matching", "near_misses"]

# What MIL raises where inputs do not fit each other: the draw is given up, not the test.
_REFUSALS = (ValueError, TypeError, AssertionError, NotImplementedError, IndexError, KeyError)
Shape = tuple[int, ...]
# Inputs that ops take as constants only, and their shape for a value of some shape.
_PARAMETERS: dict[str, Callable[[Shape], Shape]] = {
    "weight": lambda x: (x[-1], x[-1]),
    **dict.fromkeys(("bias", "gamma", "beta"), lambda x: x[-1:]),
    "kernel weight": lambda x: (x[1], x[1], *(1 for _ in x[2:])),
    "kernel bias": lambda x: x[1:2],
}


def matching(
    rule: Rule[Any], *, dtypes: Sequence[str] = ("fp32", "fp16"), opset: target = target.iOS18
) -> st.SearchStrategy[Program]:
    """Programs that hold the rule's pattern, in one of its alternatives, with other ops behind it.

    Variables become inputs of fitting shapes (often square, so that products fit; sometimes broadcasting), constants
    where an op needs one; commutative inputs are swapped. A rule may still refuse what its ``check`` does not like.
    Patterns of integer values, and of inputs with a geometry of their own, are beyond it: write a strategy for those.
    """
    return _drawn(rule, tuple(dtypes), opset, misses=False)


def near_misses(
    rule: Rule[Any], *, dtypes: Sequence[str] = ("fp32", "fp16"), opset: target = target.iOS18
) -> st.SearchStrategy[Program]:
    """The same with one literal, or one input that the pattern leaves at its default, changed.

    On these a rule must refuse, or its result must still be right: ``check_rule(..., must_fire=False)``. A pattern
    without any such detail has no near misses, and hypothesis says that it can't be satisfied.
    """
    return _drawn(rule, tuple(dtypes), opset, misses=True)


@st.composite
def _drawn(draw: Draw, rule: Rule[Any], dtypes: tuple[str, ...], opset: target, misses: bool) -> Program:
    root, names = build(rule.pattern)
    kinds = _kinds(root)
    side, rank = draw(st.integers(2, 3)), draw(st.integers(2, 4))
    base = (*draw(st.lists(st.integers(1, 2), min_size=rank - 2, max_size=rank - 2)), side, side)
    dtype = draw(st.sampled_from(dtypes))
    specs: dict[str, Any] = {}
    for name in names:
        if isinstance(kinds.get(name), Value):
            shape = draw(_near(base))
            specs[name] = mb.placeholder(shape=shape, dtype=types.string_to_builtin(dtype))
    if not specs:
        specs["x"] = mb.placeholder(shape=base, dtype=types.string_to_builtin(dtype))
    program = Program()
    with Function(specs, opset_version=opset) as function:
        drawer = _Drawer(draw, dict(function.inputs), dtype, misses)
        try:
            result = flat(drawer.value(root, "x", None))[0]
        except _REFUSALS:
            reject()
        if misses and drawer.misses:
            reject()  # the pattern has nothing to change where the draw looked
        values = [result]
        for _ in range(draw(st.integers(0, 2)) if dtype_name(result).startswith("fp") else 0):
            made = MAKERS[draw(st.sampled_from(sorted(ELEMENTWISE)))](draw, values[-1:])
            values.append(made if made is not None else mb.identity(x=values[-1]))
        function.set_outputs([values[-1]])
    for index, op in enumerate(each for each in function.operations if each.op_type != "const"):
        rename(op, f"v{index}")
    program.add_function("main", function)
    return program


def _near(base: tuple[int, ...]) -> st.SearchStrategy[tuple[int, ...]]:
    """The shape itself, mostly; else one that broadcasts to it."""
    ones = tuple(1 for _ in base[:-2]) + base[-2:]
    row = (*ones[:-2], 1, base[-1])
    return st.sampled_from([base, base, base, ones, row])


def _kinds(root: Any) -> dict[str, Variable]:
    """The variables in a pattern by name."""
    if isinstance(root, Variable):
        return {root.name: root}
    parts: tuple[Any, ...] = ()
    if isinstance(root, OneOf):
        parts = tuple(root.choices.values())
    elif isinstance(root, Output):
        parts = (root.op,)
    elif isinstance(root, OpPattern):
        parts = tuple(root.inputs.values())
    elif isinstance(root, (list, tuple)):
        parts = flat(root)
    return {name: each for part in parts for name, each in _kinds(part).items()}


@dataclass
class _Drawer:
    """Builds one program. ``misses`` says that one detail is still to be changed."""

    draw: Draw
    inputs: dict[str, Var]
    dtype: str
    misses: bool
    bound: dict[str, Any] = field(default_factory=dict[str, Any])
    built: dict[int, Any] = field(default_factory=dict[int, Any])
    tags: dict[str, str] = field(default_factory=dict[str, str])

    def value(self, pattern: Any, name: str, other: Var | None) -> Any:
        """What stands for ``pattern`` as the input ``name`` of an op whose first input is ``other``."""
        if isinstance(pattern, OneOf):
            tag = self.tags.setdefault(pattern.tag, self.draw(st.sampled_from(list(pattern.choices))))
            return self.value(pattern.choices[tag], name, other)
        if isinstance(pattern, Output):
            return self.op(pattern.op)[pattern.index]
        if isinstance(pattern, OpPattern):
            return self.op(pattern)
        if isinstance(pattern, Variable):
            return self.variable(pattern, name, other)
        if isinstance(pattern, (list, tuple)) and any(_is_pattern(each) for each in flat(pattern)):
            return tuple(self.value(each, name, other) for each in flat(pattern))
        if pattern is ...:
            return self.setting(name, other)
        return self.literal(pattern)

    def op(self, pattern: OpPattern) -> Any:
        if id(pattern) in self.built:
            return self.built[id(pattern)]
        inputs: dict[str, Any] = {}
        for name, each in pattern.inputs.items():
            if each is None:
                continue
            first = next((var for given in inputs.values() for var in flat(given) if isinstance(var, Var)), None)
            made = self.value(each, f"kernel {name}" if pattern.op_type == "conv" else name, first)
            if made is not None:
                inputs[name] = made
        if pattern.op_type in COMMUTATIVE and {"x", "y"} <= inputs.keys() and self.draw(st.booleans()):
            inputs["x"], inputs["y"] = inputs["y"], inputs["x"]
        made = getattr(mb, pattern.op_type)(**inputs)
        if self.misses and (changed := self.other_default(flat(made)[0].op, inputs)):
            remove_ops([flat(made)[0].op])
            made = getattr(mb, pattern.op_type)(**inputs, **changed)
        self.built[id(pattern)] = made
        return made

    def variable(self, variable: Variable, name: str, other: Var | None) -> Any:
        if name in _PARAMETERS and not isinstance(variable, Scalar) and other is not None:
            shape = _PARAMETERS[name](shape_of(other))
            return self.bound.setdefault(variable.name, self.draw(tensors(shape, dtype=self.dtype)))
        if isinstance(variable, Value):
            return self.inputs[variable.name]
        if variable.name not in self.bound:
            self.bound[variable.name] = self.constant(variable, name, other)
        return self.bound[variable.name]

    def constant(self, variable: Variable, name: str, other: Var | None) -> Any:
        if name in _SETTINGS:
            value = self.setting(name, other)
            # one op for all uses: a variable stands for one value
            return mb.const(val=np.array(value, np.int32)) if isinstance(value, (int, list)) else value
        if isinstance(variable, Scalar) or other is None:
            return self.draw(numbers(self.dtype))
        return self.draw(tensors(shape_of(other), dtype=self.dtype) | numbers(self.dtype))

    def setting(self, name: str, other: Var | None) -> Any:
        """Some value for an input that the pattern leaves open; ``None`` leaves it at its default."""
        if name not in _SETTINGS or other is None:
            return None
        shape = shape_of(other)
        rank = len(shape)
        if name == "perm":
            return [axis - rank * self.draw(st.booleans()) for axis in self.draw(st.permutations(range(rank)))]
        if name == "axes":
            return [self.draw(st.integers(-rank, rank - 1))]
        if name == "axis":
            return self.draw(st.integers(-rank, rank - 1))
        if name == "dtype":
            return self.draw(st.sampled_from(["fp16", "fp32", "int32"]))
        if name == "reps":
            return [self.draw(st.integers(1, 2)) for _ in shape]
        return self.draw(st.sampled_from([list(shape), [-1], [*shape[:-2], -1], [1, *shape]]))

    def literal(self, wanted: Any) -> Any:
        """The literal, or once another one of its kind."""
        if self.misses and isinstance(wanted, (bool, int, float)) and self.draw(st.booleans()):
            self.misses = False
            return _other(wanted)
        if isinstance(wanted, float):
            return np.dtype("float16" if self.dtype == "fp16" else "float32").type(wanted)
        return wanted

    def other_default(self, op: Operation, inputs: dict[str, Any]) -> dict[str, Any]:
        """An input that was left out, with another value than its default; nothing if there is none, or by chance."""
        left = {
            name: default
            for name, default in op.default_inputs().items()
            if name not in inputs and isinstance(default, (bool, int, float))
        }
        if not left or not self.draw(st.booleans()):
            return {}
        name = self.draw(st.sampled_from(sorted(left)))
        self.misses = False
        return {name: _other(left[name])}


_SETTINGS = frozenset({"axes", "axis", "dtype", "perm", "reps", "shape"})


def _other(value: bool | float) -> Any:
    if isinstance(value, bool):
        return not value
    return (value + 1 if value >= 0 else value - 1) if isinstance(value, int) else np.float32(value * 2 + 1)


def _is_pattern(each: object) -> bool:
    return isinstance(each, (Variable, OpPattern, Output, OneOf)) or each is ...

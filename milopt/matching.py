"""Finds a pattern in a program, and says how far it got where it is not there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from milopt.literals import default_of, same_number, same_value
from milopt.mil import Operation, Var, constant, flat, is_output, is_symbolic, shape_of
from milopt.pattern import Const, OneOf, OpPattern, Output, Pat, Scalar, Variable
from milopt.reports import NoMatch

__all__ = ["COMMUTATIVE", "Match", "Matcher", "Sizes", "unify_shapes"]

COMMUTATIVE = frozenset(
    {"add", "mul", "maximum", "minimum", "equal", "not_equal", "logical_and", "logical_or", "logical_xor"}
)


@dataclass(frozen=True)
class _Found:
    """A partial match. Extending makes a new one, so that backtracking needs no undo."""

    values: dict[str, Any] = field(default_factory=dict[str, Any])
    tags: dict[str, str] = field(default_factory=dict[str, str])
    ops: dict[OpPattern, Operation] = field(default_factory=dict[OpPattern, Operation])

    def bind(self, name: str, value: Any) -> _Found:
        return _Found({**self.values, name: value}, self.tags, self.ops)

    def choose(self, tag: str, name: str) -> _Found:
        return _Found(self.values, {**self.tags, tag: name}, self.ops)

    def take(self, pattern: OpPattern, op: Operation) -> _Found:
        return _Found(self.values, self.tags, {**self.ops, pattern: op})


class Sizes(dict[str, Any]):
    """Dimensions by letter; ``sizes.E`` is ``sizes["E"]``. A starred letter holds a tuple."""

    def __getattr__(self, letter: str) -> Any:
        if letter in self:
            return self[letter]
        raise AttributeError(letter)


class Match:
    """Where a pattern was found: ``m.q`` is what the variable ``q`` is bound to, ``m.<tag>`` the chosen alternative.

    A variable that only occurs in an alternative not chosen is ``None``. ``root`` is the op that the rewrite replaces,
    ``ops`` every matched op, the root first.
    """

    def __init__(self, root: Operation, found: _Found, names: tuple[str, ...]) -> None:
        self.root = root
        self.ops = list(found.ops.values())
        self._bound: dict[str, Any] = {**dict.fromkeys(names), **found.values, **found.tags}

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["_bound"][name]
        except KeyError:
            raise AttributeError(f"the pattern has no variable or tag {name!r}") from None

    def shapes(self, **patterns: str) -> Sizes:
        """Unify the shapes of variables by letter: ``m.shapes(q="*B L E", k="*B S E")``.

        A letter is one dimension, the same wherever it stands; a starred letter any number of leading ones; a number
        is itself. Symbolic dimensions are equal only to the same symbol. Raises NoMatch when a shape does not fit.
        """
        return unify_shapes({name: (getattr(self, name), pattern) for name, pattern in patterns.items()})


def unify_shapes(shapes: dict[str, tuple[Var, str]]) -> Sizes:
    """:meth:`Match.shapes` for values given by hand: ``{"q": (var, "*B L E")}``."""
    sizes = Sizes()
    for name, (var, pattern) in shapes.items():
        letters, shape = pattern.split(), shape_of(var)
        if letters and letters[0].startswith("*"):
            star, letters = letters[0], letters[1:]
            count = len(shape) - len(letters)
            if count < 0:
                raise NoMatch("{}: rank {} is too small for {}", name, len(shape), pattern, at=var)
            _bind_size(sizes, name, star, shape[:count], var)
            shape = shape[count:]
        if len(letters) != len(shape):
            raise NoMatch("{}: rank {} does not fit {}", name, len(shape_of(var)), pattern, at=var)
        for letter, dim in zip(letters, shape, strict=True):
            _bind_size(sizes, name, letter, dim, var)
    return sizes


def _bind_size(sizes: Sizes, name: str, letter: str, dim: Any, var: Var) -> None:
    if letter.isdigit():
        if is_symbolic(dim) or dim != int(letter):
            raise NoMatch("{}: a dimension is {}, not {}", name, dim, letter, at=var)
        return
    key = letter.lstrip("*")
    if key in sizes and sizes[key] != dim:
        raise NoMatch("{}: {} is {}, but {} before", name, letter, dim, sizes[key], at=var)
    sizes[key] = dim


class Matcher:
    """Matches one pattern. After :meth:`matches` ran dry, ``depth``, ``why`` and ``where`` tell of the nearest try."""

    def __init__(self, root: Any, names: tuple[str, ...]) -> None:
        self._root = root
        self._names = names
        self._reset()

    def _reset(self) -> None:
        self.depth = -1
        self._whole = False
        self.why: tuple[str, tuple[object, ...]] = ("nothing was tried", ())
        self.where: object = None

    def _fail(self, found: _Found, at: object, text: str, *args: object, whole: bool = False) -> None:
        """Keep the reason of the try that got furthest; one that matched as a whole got further than any other."""
        if (len(found.ops), whole) > (self.depth, self._whole):
            self.depth, self._whole, self.why, self.where = len(found.ops), whole, (text, args), at

    def matches(self, root: Operation) -> Iterator[Match]:
        """Every way in which the pattern ends in ``root``, in a fixed order."""
        self._reset()
        for found in self._root_match(self._root, root, _Found()):
            if (outside := _used_outside(root, found)) is None:
                yield Match(root, found, self._names)
            else:
                self._fail(found, outside[0], outside[1], whole=True)

    def _root_match(self, pattern: Any, root: Operation, found: _Found) -> Iterator[_Found]:
        if isinstance(pattern, OneOf):
            for name, choice in pattern.choices.items():
                yield from self._root_match(choice, root, found.choose(pattern.tag, name))
        else:
            yield from self._op(pattern.op if isinstance(pattern, Output) else pattern, root, found)

    def _op(self, pattern: OpPattern, op: Operation, found: _Found) -> Iterator[_Found]:
        if (seen := found.ops.get(pattern)) is not None:
            if seen is op:
                yield found
            else:
                self._fail(found, op, "wanted the same {} as before", pattern.op_type)
            return
        if op.op_type != pattern.op_type:
            self._fail(found, op, "wanted {}, found {}", pattern.op_type, op.op_type)
            return
        found = found.take(pattern, op)
        inputs = op.inputs
        for name in op.input_spec.input_types:
            if name not in pattern.inputs and not self._is_default(op, name, inputs.get(name), found):
                return
        # literals first: they are cheap, and a reason found early is the one a reader looks for
        wanted = sorted(pattern.inputs.items(), key=lambda item: isinstance(item[1], (Pat, list, tuple)))
        yield from self._inputs(op, wanted, inputs, found)
        if op.op_type in COMMUTATIVE and {"x", "y"} <= pattern.inputs.keys() and inputs["x"] is not inputs["y"]:
            swapped = {**inputs, "x": inputs["y"], "y": inputs["x"]}
            yield from self._inputs(op, wanted, swapped, found)

    def _is_default(self, op: Operation, name: str, value: Any, found: _Found) -> bool:
        if value is None:
            return True
        default = default_of(op, name)
        if default is None or not isinstance(value, Var) or not same_value(op, name, default, value):
            self._fail(found, op, "{}'s {} is not the default", op.op_type, name)
            return False
        return True

    def _inputs(
        self, op: Operation, wanted: list[tuple[str, Any]], inputs: dict[str, Any], found: _Found
    ) -> Iterator[_Found]:
        if not wanted:
            yield found
            return
        (name, pattern), rest = wanted[0], wanted[1:]
        for extended in self._input(op, name, pattern, inputs.get(name), found):
            yield from self._inputs(op, rest, inputs, extended)

    def _input(self, op: Operation, name: str, pattern: Any, value: Any, found: _Found) -> Iterator[_Found]:
        if isinstance(pattern, (list, tuple)) and not isinstance(value, Var) and value is not None:
            yield from self._several(op, name, flat(pattern), flat(value), found)
        elif isinstance(pattern, OneOf):
            for choice, alternative in pattern.choices.items():
                if found.tags.get(pattern.tag, choice) == choice:
                    chosen = found.choose(pattern.tag, choice)
                    yield from self._input(op, name, alternative, value, chosen)
        elif pattern is ...:
            yield found
        elif pattern is None or value is None:
            if pattern is value:
                yield found
            else:
                self._fail(found, op, "{}'s {} is {}", op.op_type, name, "absent" if value is None else "given")
        elif isinstance(pattern, Variable):
            yield from self._variable(pattern, value, found)
        elif isinstance(pattern, (OpPattern, Output)):
            yield from self._producer(pattern, value, found)
        elif same_value(op, name, pattern, value):
            yield found
        else:
            self._fail(found, op, "{}'s {} is not {}", op.op_type, name, cast("object", pattern))

    def _several(
        self, op: Operation, name: str, patterns: tuple[Any, ...], values: tuple[Any, ...], found: _Found
    ) -> Iterator[_Found]:
        if len(patterns) != len(values):
            self._fail(found, op, "{} has {} {}, not {}", op.op_type, len(values), name, len(patterns))
        elif not patterns:
            yield found
        else:
            for extended in self._input(op, name, patterns[0], values[0], found):
                yield from self._several(op, name, patterns[1:], values[1:], extended)

    def _variable(self, variable: Variable, var: Var, found: _Found) -> Iterator[_Found]:
        value: Any = var
        if isinstance(variable, (Scalar, Const)):
            number = constant(var)
            if number is None:
                self._fail(found, var, "{} is computed, not a constant", variable.name)
                return
            if isinstance(variable, Scalar):
                if isinstance(number, str) or np.size(number) != 1:
                    self._fail(found, var, "{} is not a single number", variable.name)
                    return
                value = np.ravel(number)[0]
        if variable.name not in found.values:
            yield found.bind(variable.name, value)
        elif found.values[variable.name] is value or (
            isinstance(variable, Scalar) and same_number(float(found.values[variable.name]), value)
        ):
            yield found
        else:
            self._fail(found, var, "{} is not the same value as before", variable.name)

    def _producer(self, pattern: OpPattern | Output, var: Var, found: _Found) -> Iterator[_Found]:
        wanted = pattern.op if isinstance(pattern, Output) else pattern
        index = pattern.index if isinstance(pattern, Output) else 0
        if var.op is None:
            self._fail(found, var, "wanted {}, found an input", wanted.op_type)
        elif var.op.op_type == wanted.op_type and var.op_output_idx != index:
            self._fail(found, var, "wanted output {} of {}, found output {}", index, wanted.op_type, var.op_output_idx)
        else:
            yield from self._op(wanted, var.op, found)


def _used_outside(root: Operation, found: _Found) -> tuple[object, str] | None:
    """An interior value that something outside the match needs, and how."""
    matched = set(found.ops.values())
    for pattern, op in found.ops.items():
        if op is root or pattern.shared:
            continue
        if op.enclosing_block is not root.enclosing_block:
            return op, "a matched op lies in an outer block"
        for var in op.outputs:
            if is_output(var):
                return var, "a matched value is also an output"
            if any(user not in matched for user in var.child_ops):
                return var, "a matched value is also used outside the match"
    return None

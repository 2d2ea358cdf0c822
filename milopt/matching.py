"""Finds a pattern in a program, and says how far it got where it is not there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

from milopt.engine.forms import (
    Chain,
    Const,
    OneOf,
    OpPattern,
    Output,
    Scalar,
    Values,
    Variable,
    Weight,
    knots_of,
    root_op,
    root_ops,
    root_types,
    roots_of,
    walk,
)
from milopt.engine.found import Found, Tags
from milopt.engine.match import Match
from milopt.engine.nearest import NOTHING, Nearest
from milopt.engine.plan import COMMUTATIVE, Plan, Wrong, described
from milopt.engine.roots import candidates, paths_to
from milopt.engine.sameness import is_weight, same_numbers, same_var
from milopt.engine.shapes import Sizes, unify_shapes
from milopt.engine.uses import used_outside
from milopt.literals import broadcasts, default_of, enlarges, one_number, same_value
from milopt.mil import Operation, Var, constant, flat

__all__ = ["COMMUTATIVE", "Match", "Matcher", "Sizes", "unify_shapes"]


class Matcher(Nearest):
    """Matches one pattern. After :meth:`matches` ran dry, ``depth``, ``why`` and ``where`` tell of the nearest try."""

    def __init__(self, root: Any, names: tuple[str, ...]) -> None:
        super().__init__()
        self._names = names
        self._tags = Tags(root)
        self._plans = {form: Plan(form) for form in walk(root) if isinstance(form, OpPattern)}
        self._roots = roots_of(root)
        self._types = [frozenset(root_types(each)) for each in self._roots]
        self._ends: dict[str, list[OpPattern]] = {}
        for end in root_ops(root):
            self._ends.setdefault(end.op_type, []).append(end)
        knots = [knots_of(each) for each in self._roots] if len(self._roots) > 1 else []
        self._paths = [
            paths_to(self._roots[at], set[Any]().union(*knots[:at], *knots[at + 1 :])) for at in range(len(knots))
        ]

    def matches(self, op: Operation) -> Iterator[Match]:
        """Every way in which ``op`` is a root of the pattern, in a fixed order."""
        self._reset()
        if self._hopeless(op):
            return
        for at, root in enumerate(self._roots):
            if op.op_type not in self._types[at] and len(self._roots) > 1:
                continue
            for found in self._root(root, op, NOTHING):
                for whole, ops in self._others(found, {at: op}):
                    if (match := self._match(whole, [ops[each] for each in range(len(ops))])) is not None:
                        yield match

    def _hopeless(self, op: Operation) -> bool:
        """Whether none of the ops that the pattern may end in has the right ops before it: the commonest case."""
        first: tuple[OpPattern, Wrong] | None = None
        for end in self._ends.get(op.op_type, ()):
            if (wrong := self._plans[end].wrong_producer(op)) is None:
                return False
            first = first or (end, wrong)
        if first is None:
            return False
        self._wrong(NOTHING.take(first[0], op), *first[1])
        return True

    def _match(self, found: Found, roots: list[Operation]) -> Match | None:
        replaced: list[Var] = []
        for pattern, op in zip(self._roots, roots, strict=True):
            replaced += _replaced(pattern, op, found)
        if (outside := used_outside(roots, replaced, found)) is not None:
            self._fail(found, outside[0], outside[1], whole=True)
            return None
        bound = {**dict.fromkeys(self._names), **found.values, **self._tags.of(found)}
        return Match(roots, replaced, list(found.ops.values()), bound)

    def _others(self, found: Found, ops: dict[int, Operation]) -> Iterator[tuple[Found, dict[int, Operation]]]:
        """The roots that are not found yet, from what they have in common with those that are."""
        if len(ops) == len(self._roots):
            yield found, ops
            return
        missing = [at for at in range(len(self._roots)) if at not in ops]
        self._fail(found, ops[min(ops)], "found no other root that belongs to it")
        # one that has nothing in common with these may have it with the one that is found next
        for at in missing:
            whole = False
            for op in candidates(self._paths[at], found):
                if op in ops.values() or op.op_type not in self._types[at]:
                    continue
                for extended in self._root(self._roots[at], op, found):
                    for each in self._others(extended, {**ops, at: op}):
                        whole = True
                        yield each
            if whole:  # all of them are among these, whichever is found first
                return

    def _root(self, pattern: Any, op: Operation, found: Found) -> Iterator[Found]:
        if isinstance(pattern, OneOf):
            yield from self._choices(pattern, found, lambda choice, chosen: self._root(choice, op, chosen))
        elif isinstance(pattern, Chain):
            yield from self._links(pattern, found, lambda link, chosen: self._root(link, op, chosen))
        elif isinstance(pattern, Output) and not _has_output(op, pattern.index):
            text = "{} has {} outputs, of which none is number {}"
            self._fail(found, op, text, op.op_type, len(op.outputs), pattern.index, wanted=pattern.op)
        elif (wanted := root_op(pattern)) is not None:
            yield from self._op(wanted, op, found)

    def _choices(self, pattern: OneOf, found: Found, go: Callable[[Any, Found], Iterator[Found]]) -> Iterator[Found]:
        """The alternatives in order, or the one that the same tag has chosen before."""
        chosen = found.tags.get(pattern.tag)
        for name, choice in pattern.choices.items():
            if chosen is None or chosen == name:
                yield from go(choice, found.choose(pattern.tag, name))

    def _links(self, chain: Chain, found: Found, go: Callable[[Any, Found], Iterator[Found]]) -> Iterator[Found]:
        """The links of a chain in order, then its value; or what the same chain was before."""
        chosen = found.links.get(chain)
        for at, link in enumerate((*chain.links, chain.value)):
            if chosen is None or chosen == at:
                yield from go(link, found.follow(chain, at))

    def _op(self, pattern: OpPattern, op: Operation, found: Found) -> Iterator[Found]:
        if (seen := found.ops.get(pattern)) is not None:
            if seen is op:
                yield found
            else:
                self._fail(found, op, "wanted the same {} as before", pattern.op_type, wanted=pattern)
            return
        if op.op_type != pattern.op_type:
            self._fail(found, op, "wanted {}, found {}", pattern.op_type, op.op_type, wanted=pattern)
            return
        found = found.take(pattern, op)
        plan = self._plans[pattern]
        if (wrong := plan.wrong_producer(op)) is not None:
            self._wrong(found, *wrong)
            return
        inputs = op.inputs
        for name, value in inputs.items():
            if name not in plan.names and not self._is_default(op, name, value, found):
                return
        yield from self._inputs(op, plan.inputs, inputs, found)
        if plan.commutes and inputs["x"] is not inputs["y"]:
            swapped = {**inputs, "x": inputs["y"], "y": inputs["x"]}
            yield from self._inputs(op, plan.inputs, swapped, found)

    def _wrong(self, found: Found, at: object, types: tuple[str, ...], first: OpPattern) -> None:
        self._fail(found, at, "wanted {}, found {}", " or ".join(types), described(at), wanted=first)

    def _is_default(self, op: Operation, name: str, value: Any, found: Found) -> bool:
        default = default_of(op, name) if isinstance(value, Var) else None
        if default is None or not same_value(op, name, default, value):
            self._fail(found, op, "{}'s {} is not the default", op.op_type, name)
            return False
        return True

    def _inputs(
        self, op: Operation, wanted: list[tuple[str, Any]], inputs: dict[str, Any], found: Found
    ) -> Iterator[Found]:
        if not wanted:
            yield found
            return
        (name, pattern), rest = wanted[0], wanted[1:]
        for extended in self._input(op, name, pattern, inputs.get(name), found):
            yield from self._inputs(op, rest, inputs, extended)

    def _input(self, op: Operation, name: str, pattern: Any, value: Any, found: Found) -> Iterator[Found]:
        if isinstance(pattern, OneOf):
            yield from self._choices(
                pattern, found, lambda choice, chosen: self._input(op, name, choice, value, chosen)
            )
        elif isinstance(pattern, Chain):
            yield from self._links(pattern, found, lambda link, chosen: self._input(op, name, link, value, chosen))
        elif pattern is ...:
            yield found
        elif pattern is None or value is None:
            if pattern is value:
                yield found
            else:
                self._fail(found, op, "{}'s {} is {}", op.op_type, name, "absent" if value is None else "given")
        elif not isinstance(value, Var):
            yield from self._several(op, name, flat(pattern), flat(value), found)
        elif isinstance(pattern, Variable):
            yield from self._variable(op, name, pattern, value, found)
        elif isinstance(pattern, (OpPattern, Output)):
            yield from self._producer(pattern, value, found)
        elif same_value(op, name, pattern, value):
            yield found
        else:
            self._fail(found, op, "{}'s {} is not {}", op.op_type, name, cast("object", pattern))

    def _several(
        self, op: Operation, name: str, patterns: tuple[Any, ...], values: tuple[Any, ...], found: Found
    ) -> Iterator[Found]:
        """The values of a variadic input, or the last of them, against patterns; a star stands for any number."""
        stars = sum(isinstance(each, Values) for each in patterns)
        least = len(patterns) - stars
        if len(values) < least or (len(values) > least and not stars):
            wanted = f"{least} or more" if stars else least
            self._fail(found, op, "{} has {} {}, not {}", op.op_type, len(flat(op.inputs[name])), name, wanted)
        elif not patterns:
            yield found
        elif isinstance(star := patterns[0], Values):
            most = len(values) - least
            for count in range(0 if stars > 1 else most, most + 1):
                for extended in self._tuple(op, star, values[:count], found):
                    yield from self._several(op, name, patterns[1:], values[count:], extended)
        else:
            for extended in self._input(op, name, patterns[0], values[0], found):
                yield from self._several(op, name, patterns[1:], values[1:], extended)

    def _tuple(self, op: Operation, variable: Values, values: tuple[Var, ...], found: Found) -> Iterator[Found]:
        known: tuple[Var, ...] | None = found.values.get(variable.name)
        if known is None:
            yield found.bind(variable.name, values)
        elif len(known) == len(values) and all(map(same_var, known, values)):
            yield found
        else:
            self._fail(found, op, "{} are not the same values as before", variable.name)

    def _variable(self, op: Operation, name: str, variable: Variable, var: Var, found: Found) -> Iterator[Found]:
        value: Any = var
        if isinstance(variable, Weight) and not is_weight(var):
            self._fail(found, var, "{} is computed, not a weight", variable.name)
            return
        if isinstance(variable, (Scalar, Const)) and constant(var) is None:
            self._fail(found, var, "{} is computed, not a constant", variable.name)
            return
        if isinstance(variable, Scalar):
            value = one_number(op, name, var)
            if value is None:
                self._fail(found, var, _no_number(op, name, var), variable.name)
                return
        known = found.values.get(variable.name)
        if known is None:
            yield found.bind(variable.name, value)
        elif same_numbers(known, value) if isinstance(variable, Scalar) else same_var(known, value):
            yield found
        else:
            self._fail(found, var, "{} is not the same value as before", variable.name)

    def _producer(self, pattern: OpPattern | Output, var: Var, found: Found) -> Iterator[Found]:
        wanted = pattern.op if isinstance(pattern, Output) else pattern
        index = pattern.index if isinstance(pattern, Output) else 0
        if var.op is None:
            self._fail(found, var, "wanted {}, found an input", wanted.op_type, wanted=wanted)
        elif var.op.op_type == wanted.op_type and not _is_number(index, var, var.op):
            text = "wanted output {} of {}, found output {}"
            self._fail(found, var, text, index, wanted.op_type, var.op_output_idx, wanted=wanted)
        else:
            yield from self._op(wanted, var.op, found)


def _is_number(index: Any, var: Var, op: Operation) -> bool:
    return index is ... or var.op_output_idx == (index if index >= 0 else len(op.outputs) + index)


def _has_output(op: Operation, index: Any) -> bool:
    return index is ... or -len(op.outputs) <= index < len(op.outputs)


def _no_number(op: Operation, name: str, var: Var) -> str:
    if broadcasts(op, name) and enlarges(op, var):
        return "{} makes the result larger"
    return "{} is not a single number"


def _replaced(pattern: Any, op: Operation, found: Found) -> list[Var]:
    """The outputs of a root that get a replacement: all of them, or the one that the pattern returns."""
    if isinstance(pattern, OneOf):
        return _replaced(pattern.choices[found.tags[pattern.tag]], op, found)
    if isinstance(pattern, Chain):
        return _replaced((*pattern.links, pattern.value)[found.links[pattern]], op, found)
    index = pattern.index if isinstance(pattern, Output) else ...
    return [op.outputs[index]] if isinstance(index, int) else list(op.outputs)

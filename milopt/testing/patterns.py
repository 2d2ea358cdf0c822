"""Programs drawn from a rule's own pattern: those it is written for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import reject
from hypothesis import strategies as st

from milopt.engine.forms import OpPattern, walk
from milopt.matching import Match, Matcher
from milopt.mil import (
    Block,
    Function,
    Operation,
    Program,
    Var,
    constant,
    dtype_name,
    flat,
    get_new_symbol,
    is_constant_like,
    mb,
    named_blocks,
    shape_of,
    target,
    types,
)
from milopt.package import load
from milopt.pattern import build, root_types
from milopt.reports import NoMatch, Report
from milopt.rules import Rule, apply
from milopt.testing.instances import Instance
from milopt.testing.makers import ELEMENTWISE, MAKERS, shapes
from milopt.testing.naming import rename_all
from milopt.testing.rebuilding import Edit, rebuilt
from milopt.testing.scope import REFUSALS, Draw, Maker, Scope, is_fixed, numpy_type, tensors_of
from milopt.testing.tidying import forget_lost

__all__ = ["Asked", "drawn", "first_match", "matching"]

# What MIL raises where inputs do not fit each other: the draw is given up, not the test.


@dataclass(frozen=True)
class Asked:
    """What :func:`matching` was asked for."""

    rule: Rule[Any]
    dtypes: tuple[str, ...]
    opset: target
    values: Mapping[str, Maker] = field(default_factory=dict[str, Maker])
    attempts: int = 12
    surroundings: bool = True


def matching(
    rule: Rule[Any] | Sequence[Rule[Any]],
    *,
    dtypes: Sequence[str] = ("fp32", "fp16", "int32"),
    opset: target = target.iOS18,
    values: Mapping[str, Maker] | None = None,
    attempts: int = 12,
    surroundings: bool = True,
) -> st.SearchStrategy[Program]:
    """Programs that hold the pattern of a rule, or of one of several, in one of its alternatives.

    Variables become inputs, constants where the pattern or the op wants one, results of other ops, or values of a
    state; their shapes fit the ops they meet, their dimensions are symbols now and then. Commutative inputs are
    swapped; constants and values are shared, interior values needed elsewhere (the rule must refuse); there are ops
    before and behind, and the match may be in a nested block. Without ``surroundings`` there is the pattern alone.

    What the rule's ``check`` demands is found by trying: a program on which the rule does not fire is drawn again, up
    to ``attempts`` times, with the numbers that its reason names as constants, and the op types as what values come
    from. ``values`` makes what trying won't find: variable -> a function of ``draw`` and the values so far (a
    :class:`~milopt.testing.scope.Scope`, whose ``input`` makes a new input) that returns what the variable stands for.
    The rule may still refuse the last program drawn.
    """
    asked = [Asked(each, tuple(dtypes), opset, dict(values or {}), attempts, surroundings) for each in flat(rule)]
    return st.sampled_from(asked).flatmap(_matching)


@st.composite
def _matching(draw: Draw, asked: Asked) -> Program:
    return drawn(draw, asked)[0]


def drawn(draw: Draw, asked: Asked, *, must_fire: bool = False) -> tuple[Program, bool]:
    """A program, and whether the rule fires on it."""
    root, _ = build(asked.rule.pattern)
    producers = sorted({each.op_type for each in walk(root) if isinstance(each, OpPattern)} | set(root_types(root)))
    least = None
    seen = _Seen()
    order = draw(st.permutations(asked.dtypes))
    # one program in four is taken as it comes: a rule has to refuse, too
    picky = must_fire or draw(st.integers(0, 3)) > 0
    for attempt in range(asked.attempts):
        try:
            program = _program(draw, asked, root, order[attempt % len(order)], producers, seen)
        except REFUSALS:
            continue
        report = apply(asked.rule, load(program).clone())
        if report or not picky:
            return program, bool(report)
        seen = _named_in(report)
        if (mended := _mended(asked.rule, program, seen.numbers)) is not None:
            return mended, True
        least = least or program
    if least is None or must_fire:
        reject()
    return least, False


@dataclass(frozen=True)
class _Seen:
    """What the reasons of misses name: numbers that a check wanted or met, and op types."""

    numbers: tuple[float, ...] = ()
    op_types: tuple[str, ...] = ()
    again: bool = False


def _named_in(report: Report) -> _Seen:
    parts: list[Any] = [
        part for miss in report.misses if miss.declined for each in miss.arguments for part in flat(each)
    ]
    numbers = [number for part in parts if (number := _number_of(part)) is not None]
    op_types = [part for part in parts if isinstance(part, str) and part in MAKERS]
    return _Seen(tuple(number for number in numbers if abs(number) < 1e4)[:8], tuple(op_types), again=True)


def _number_of(part: Any) -> float | None:
    kind = np.asarray(part).dtype.kind
    return float(part) if kind in "iuf" and np.ndim(part) == 0 else None


def _mended(rule: Rule[Any], program: Program, numbers: Sequence[float]) -> Program | None:
    """The program with one number for another, both named by a reason, where the rule fires then."""
    for op in (op for _, block in named_blocks(program.functions) for op in block.operations):
        for name, value in op.inputs.items():
            number = constant(value) if isinstance(value, Var) else None
            single = _number_of(np.ravel(number)[0]) if number is not None and np.size(number) == 1 else None
            if single is None or single not in numbers:
                continue
            for other in dict.fromkeys(numbers):
                kind = np.asarray(number).dtype.type
                try:
                    made = rebuilt(program, Edit("", {(op, name): kind(other)}))
                except REFUSALS:
                    continue
                if apply(rule, load(made).clone()):
                    return made
    return None


def _program(draw: Draw, asked: Asked, root: Any, dtype: str, producers: Sequence[str], seen: _Seen) -> Program:
    # often all sides are equal: what is wrong with the order of axes then shows in numbers only
    base = draw(shapes(max_side=4) | shapes(max_side=4) | shapes(min_side=2, max_side=3).map(lambda s: s[:1] * len(s)))
    extra = asked.surroundings
    symbolic = extra and draw(st.integers(0, 4)) == 4
    # one symbol stands for one size wherever it is met, so that what had to agree still does
    symbols = {size: get_new_symbol() for size in draw(st.permutations(sorted({*base})))[:1]} if symbolic else {}
    program = Program()
    with Function({}, opset_version=asked.opset) as function:
        scope = Scope(function, [])
        made = Instance(
            draw,
            scope,
            dtype,
            base,
            seen.numbers,
            symbols,
            values=asked.values,
            stateful=extra and asked.opset >= target.iOS18 and draw(st.integers(0, 3)) == 3,
            producers=producers if extra else (),
            hints=seen.op_types,
            again=seen.again,
        )
        if extra and draw(st.integers(0, 5)) == 5:
            results = _in_branch(draw, scope, made, root)
        else:
            results = made.roots(root)
            scope.values += results
            if extra:
                results = _surrounded(draw, scope, results, least=int(seen.again))
        if not function.inputs:
            scope.input((1,), "fp32")
        forget_lost(function)
        function.set_outputs(_outputs(results))
    rename_all(function)
    program.add_function("main", function)
    program.validate()
    return program


def _outputs(results: Sequence[Var]) -> list[Var]:
    found = [var for var in dict.fromkeys(results) if not var.child_ops or var in results]
    return found or list(results)


def _surrounded(draw: Draw, scope: Scope, results: list[Var], *, least: int) -> list[Var]:
    """Ops behind the results, and now and then another use of a value on the way."""
    kept = list(results)
    for _ in range(draw(st.integers(least, 2))):
        if not dtype_name(kept[-1]).startswith("fp"):
            break
        made = MAKERS[draw(st.sampled_from(sorted(ELEMENTWISE)))](draw, kept[-1:])
        kept += [] if made is None else tensors_of(flat(made))
    inner = [
        op.outputs[0] for op in scope.function.operations if not is_constant_like(op) and op.outputs[0] not in kept
    ]
    if inner and draw(st.integers(0, 7)) == 7:
        var = draw(st.sampled_from(inner))
        used = mb.relu(x=var) if dtype_name(var).startswith("fp") and draw(st.booleans()) else var
        kept.append(used)
    held = [op.outputs[0] for op in scope.function.operations if op.op_type == "const" and op.outputs[0].child_ops]
    held = [var for var in held if var.dtype in (types.fp16, types.fp32) and var.rank]
    if held and draw(st.integers(0, 5)) == 5:  # a constant of the match that something else has too
        kept.append(
            mb.add(x=draw(st.sampled_from(held)), y=scope.input(shape_of(held[0])[:0] or (1,), dtype_name(held[0])))
        )
    return [
        var for var in dict.fromkeys(kept) if not var.child_ops or var in results[-1:] or draw(st.booleans())
    ] or kept


def _in_branch(draw: Draw, scope: Scope, made: Instance, root: Any) -> list[Var]:
    """The pattern in one branch of a ``cond``; the other gives zeros."""
    kinds: list[tuple[tuple[int, ...], str]] = []

    def inner() -> tuple[Var, ...]:
        results = made.roots(root)
        if not all(map(is_fixed, results)):
            raise ValueError("a branch of zeros needs fixed shapes")
        kinds.extend((shape_of(var), dtype_name(var)) for var in results)
        return tuple(results)

    def zeros() -> tuple[Var, ...]:
        return tuple(mb.const(val=np.zeros(shape, numpy_type(kind))) for shape, kind in kinds)

    flag = scope.input((1,), "fp32")
    pred = mb.squeeze(x=mb.greater(x=flag, y=np.float32(0)), axes=[0])
    return list(flat(mb.cond(pred=pred, _true_fn=inner, _false_fn=zeros)))


def first_match(rule: Rule[Any], program: Program) -> Match | None:
    """Where the rule's pattern is found and its ``check`` agrees, in program order."""
    root, names = build(rule.pattern)
    matcher = Matcher(root, names)
    kinds = set(root_types(root))
    for _, block in named_blocks(program.functions):
        for op in _of_types(block, kinds):
            for match in matcher.matches(op):
                try:
                    rule.check(match)
                except NoMatch:
                    continue
                return match
    return None


def _of_types(block: Block, kinds: set[str]) -> list[Operation]:
    return [op for op in block.operations if op.op_type in kinds]

"""A rewrite that is refused, or fails, leaves nothing behind: not in the program and not in what coremltools counts."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milopt.building import Builder
from milopt.errors import PassError
from milopt.matching import Match
from milopt.mil import Block, Program, flat, get_new_symbol, mb, operations, target
from milopt.pattern import Ops, Value
from milopt.reports import NoMatch, require
from milopt.rules import Rule, apply
from milopt.text import text

from .support import program

_blocks: Any = importlib.import_module("coremltools.converters.mil.mil.block")
_programs: Any = importlib.import_module("coremltools.converters.mil.mil.program")
_mb: Any = mb


def state(program: Program) -> dict[str, Any]:
    """All there is of a program and of the counters behind it, to the order of uses."""
    blocks: list[Any] = []

    def of_block(block: Block) -> list[Any]:
        ops: list[Any] = []
        for op in block.operations:
            inputs = {name: _names(value) for name, value in op.inputs.items()}
            outputs = [
                (var.name, str(var.sym_type), [user.name for user in var.child_ops], len(var.consuming_blocks))
                for var in op.outputs
            ]
            inner = [of_block(each) for each in op.blocks]
            ops.append((id(op), op.op_type, op.name, inputs, outputs, dict(op.scopes), inner))
        unlisted: Any = block
        return [ops, _names(block.outputs), sorted(var.name for var in unlisted._internal_vars)]

    for function in program.functions.values():
        uses = {name: [user.name for user in var.child_ops] for name, var in function.inputs.items()}
        blocks.append((of_block(function), uses))
    return {
        "text": text(program),
        "blocks": blocks,
        "names": {name: count for name, count in _mb.name_count.items() if count},
        "block": _blocks.Block.counter,
        "symbols": (_programs.k_num_internal_syms, sorted(_programs.k_used_symbols)),
    }


def _names(value: Any) -> list[str]:
    return [each.name for each in flat(value)]


class Interrupted(Exception):
    """No refusal: something else went wrong."""


STEPS = (
    *("mul", "concat", "cond", "symbol", "split", "transpose", "name"),
    *("refused", "late refused", "unfinished", "refused branch", "refused inner branch"),
)
ENDS = ("reason", "error", "stop", "shape", "dtype", "count", "same", "none", "number", "late", "foreign")


class Fails(Rule[None]):
    """Builds some ops of all kinds, then comes to a bad end."""

    def __init__(self, steps: tuple[str, ...], end: str) -> None:
        self.steps, self.end = steps, end

    def pattern(self, op: Ops, /, x: Value) -> Any:
        return op.exp(x=op.relu(x=x))

    def check(self, m: Match, /) -> None:
        if self.end == "error" and not self.steps:
            raise Interrupted

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Any:
        x = m.x
        for step in self.steps:
            x = self._step(step, op, m, x)
        return self._end(op, m, x)

    def _step(self, step: str, op: Builder, m: Match, x: Any) -> Any:
        if step == "mul":
            return op.mul(x=x, y=np.float32(2), name="scaled")
        if step == "concat":
            return op.slice_by_size(x=op.concat(values=(x, x), axis=0), begin=[0, 0], size=[2, 3])
        if step == "cond":
            return op.cond(pred=True, _true_fn=lambda: mb.abs(x=x), _false_fn=lambda: mb.abs(x=m.x))
        if step == "symbol":
            op.non_zero(x=x)  # how many there are is a new symbol
            return op.identity(x=x)
        if step == "split":
            return op.concat(values=op.split(x=x, num_splits=2, axis=0), axis=0)
        if step == "transpose":
            return op.transpose(x=op.transpose(x=x, perm=[1, 0]), perm=[1, 0])
        if step == "name":
            op.unique("taken")
            return x

        def branch() -> Any:
            return mb.matmul(x=mb.abs(x=m.x), y=np.ones((7, 5), np.float32))

        wrong: dict[str, Any] = {
            "refused branch": lambda: op.cond(pred=True, _true_fn=branch, _false_fn=lambda: m.x),
            "refused inner branch": lambda: op.cond(
                pred=True,
                _true_fn=lambda: mb.cos(x=m.x),
                _false_fn=lambda: mb.cond(pred=True, _true_fn=lambda: mb.abs(x=m.x), _false_fn=branch),
            ),
            "refused": lambda: op.matmul(x=x, y=np.ones((7, 5), np.float32)),
            "late refused": lambda: op.concat(values=(x, op.exp(x=np.ones((5, 5, 5), np.float32))), axis=0),
            "unfinished": lambda: op.matmul(x=x),
        }
        with pytest.raises(NoMatch, match="MIL refuses"):
            wrong[step]()
        return x

    def _end(self, op: Builder, m: Match, x: Any) -> Any:
        if self.end == "reason":
            require(False, "second thoughts")
        if self.end == "error":
            raise Interrupted
        if self.end == "stop":
            raise KeyboardInterrupt
        ends: dict[str, Any] = {
            "shape": lambda: op.reshape(x=x, shape=[6]),
            "dtype": lambda: op.cast(x=x, dtype="int32"),
            "count": lambda: (x, x),
            "same": lambda: m.replaced[0],
            "none": lambda: None,
            "number": lambda: 3,
            "late": lambda: op.add(x=x, y=m.root.enclosing_block.outputs[0]),
            "foreign": lambda: op.relu(x=_foreign()),
        }
        return ends[self.end]()


def _foreign() -> Any:
    """A value of another program."""
    return program(lambda a: mb.abs(x=a), (2, 3)).functions["main"].outputs[0]


def sample() -> Program:
    shape = (2, 3)

    @mb.program(input_specs=[mb.TensorSpec(shape), mb.TensorSpec((get_new_symbol(), 3))], opset_version=target.iOS18)
    def program(x: Any, s: Any) -> Any:
        y = mb.exp(x=mb.relu(x=x, name="first"), name="scaled")
        z = mb.exp(x=mb.relu(x=mb.mul(x=y, y=np.float32(3)), name="second"), name="out")
        return z, mb.add(x=mb.cos(x=z), y=y, name="last"), mb.exp(x=s, name="symbolic")

    return program


_STATES = ("names", "block", "symbols")


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from(STEPS), max_size=5).map(tuple), st.sampled_from(ENDS))
def test_nothing_is_left_behind(steps: tuple[str, ...], end: str) -> None:
    program = sample()
    for op in operations(program.functions["main"]):
        op.scopes = {"where": [op.name]}
    before = state(program)
    rule = Fails(steps, end)
    if end in ("error", "stop", "none", "number"):
        kinds: dict[str, type[BaseException]] = {"error": Interrupted, "stop": KeyboardInterrupt}
        with pytest.raises(kinds.get(end, PassError)):
            apply(rule, program)
    else:
        report = apply(rule, program)
        assert not report
        assert report.misses
        assert all(miss.declined for miss in report.misses if miss.place != "s")
    after = state(program)
    if end == "foreign":  # that other program counts too
        before, after = ({key: each[key] for key in each if key not in _STATES} for each in (before, after))
    assert after == before
    program.functions["main"].validate(force_validate=True)


def test_what_is_no_value_is_named() -> None:
    with pytest.raises(PassError, match=r"^Fails: rewrite returned NoneType, not the values that replace scaled$"):
        apply(Fails((), "none"), sample())


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ("count", "the rule returns 2 values for 1"),
        ("same", "the replacement is the same"),
        ("late", "its replacement needs a value that comes after it"),
        ("foreign", "its replacement needs a value of another block"),
    ],
)
def test_why_a_replacement_is_none(end: str, reason: str) -> None:
    report = apply(Fails(("mul",), end), sample())
    assert reason in [miss.reason for miss in report.misses]


def test_names_are_free_again_after_a_refusal() -> None:
    """The rule that follows gets the names that it would have got without the one that was refused."""

    class Works(Fails):
        def rewrite(self, op: Builder, m: Match, facts: None, /) -> Any:
            return op.mul(x=m.x, y=op.mul(x=m.x, y=np.float32(2), name="made"))

    one, other = sample(), sample()
    apply([Fails(("mul", "name", "concat"), "reason"), Works((), "")], one)
    apply(Works((), ""), other)
    made = [[op.name for op in operations(each.functions["main"]) if op.op_type == "mul"] for each in (one, other)]
    assert [name for name in made[0] if name.startswith("made")] == ["made", "made_1"]
    assert [name for name in made[1] if name.startswith("made")] == ["made", "made_1"]

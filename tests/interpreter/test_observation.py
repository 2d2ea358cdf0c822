"""Traces and profiles of runs, and the ops where numbers overflow."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from coremltools.converters.mil.mil import mil_list
from coremltools.converters.mil.mil.scope import ScopeSource
from rich.console import Console

from milopt import compare, evaluate, load, predict
from milopt.errors import EvaluationError, UnsupportedOps
from milopt.interpreter import Impls, Plan, Precision, compile, compile_all, core, make_state
from milopt.interpreter.impls import Tensor
from milopt.mil import Program, mb
from milopt.observation import OverflowReport, Profile, Trace, find_overflows, profile
from milopt.observation.hearing import Suspects
from milopt.observation.inside import Inside
from milopt.session import Session
from tests.interpreter.support import Build, program, state

ONE = np.ones((1, 4), np.float16)
INF = float("inf")


def half(*numbers: float) -> Any:
    return np.array([numbers], np.float16)


def loop(going: Callable[[Any, Any], Any], turn: Callable[[Any, Any], Any], start: Any, name: str = "loop") -> Any:
    """``start`` after a ``turn(i, value)`` for every ``i`` from 0 while it is ``going(i, value)``."""

    def body(i: Any, value: Any) -> tuple[Any, Any]:
        return mb.add(x=i, y=np.int32(1)), turn(i, value)

    return mb.while_loop(_cond=going, _body=body, loop_vars=(np.int32(0), start), name=name)[1]


def below(turns: Any) -> Callable[[Any, Any], Any]:
    return lambda i, _: mb.less(x=i, y=turns, name="goes_on")


def printed(what: Any) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(what)
    return captured.get()


def traced(made: Program, inputs: dict[str, Any], precision: Precision = "declared") -> Trace:
    trace = Trace()
    compile(made, precision=precision).run(inputs, listeners=[trace])
    return trace


# --- Trace


def test_a_trace_has_shape_dtype_range_and_counts() -> None:
    def build(x: Any) -> Any:
        doubled = mb.mul(x=x, y=np.float16(2), name="doubled")
        return mb.cast(x=mb.greater(x=doubled, y=np.float16(0), name="above"), dtype="int32", name="count")

    trace = traced(program(build, {"x": ONE}), {"x": half(-1, np.nan, INF, 3)})
    doubled, above, count = (op.outputs[op.name] for op in trace.ops)
    assert (doubled.dtype, doubled.shape, doubled.minimum, doubled.maximum) == ("fp16", (1, 4), -2, 6)
    assert (doubled.nan, doubled.inf) == (1, 1)
    assert (above.dtype, above.minimum, above.maximum) == ("bool", False, True)
    assert (count.dtype, count.minimum, count.maximum, count.nan) == ("int32", 0, 1, 0)
    assert all(op.seconds > 0 and op.calls == 1 for op in trace.ops)
    assert [op.op_type for op in trace.ops] == ["mul", "greater", "cast"]


def test_range_is_of_finite_numbers_alone() -> None:
    made = program(lambda x: mb.identity(x=x, name="y"), {"x": ONE})
    (op,) = traced(made, {"x": half(np.nan, INF, -INF, np.nan)}).ops
    assert (op.outputs["y"].minimum, op.outputs["y"].maximum) == (None, None)
    assert (op.outputs["y"].nan, op.outputs["y"].inf) == (2, 2)


def counting(turns: int) -> Program:
    """Doubles ``x`` so many times."""

    def build(x: Any) -> Any:
        return loop(below(turns), lambda _, a: mb.mul(x=a, y=np.float16(2), name="doubled"), x)

    return program(build, {"x": ONE})


def test_a_loop_shows_its_turns() -> None:
    trace = traced(counting(3), {"x": ONE})
    ops = {op.name: op for op in trace.ops}
    loop, condition, doubled = ops["loop"], ops["goes_on"], ops["doubled"]
    assert (loop.turns, loop.depth, loop.calls) == (3, 0, 1)
    assert (condition.calls, condition.block, condition.depth) == (4, "condition", 1)
    assert (doubled.calls, doubled.block, doubled.depth) == (3, "body", 1)
    assert (doubled.outputs["doubled"].minimum, doubled.outputs["doubled"].maximum) == (2, 8)


def test_loops_in_loops_and_branches() -> None:
    def inner(a: Any) -> Any:
        return loop(below(2), lambda _, b: mb.mul(x=b, y=np.float16(2), name="innermost"), a, "inner")

    def branch(i: Any, a: Any) -> Any:
        return mb.cond(
            pred=mb.greater(x=i, y=np.int32(0)),
            _true_fn=lambda: inner(a),
            _false_fn=lambda: mb.identity(x=a, name="same"),
            name="branch",
        )

    def build(x: Any) -> Any:
        return loop(below(3), branch, x, "outer")

    made = program(build, {"x": ONE})
    ops = {op.name: op for op in traced(made, {"x": ONE}).ops}
    assert (ops["outer"].turns, ops["branch"].calls, ops["same"].calls) == (3, 3, 1)
    assert (ops["inner"].turns, ops["inner"].calls, ops["innermost"].calls, ops["innermost"].depth) == (4, 2, 4, 3)
    assert (ops["same"].block, ops["inner"].block, ops["innermost"].block) == ("false", "true", "body")


def test_no_turn_at_all() -> None:
    (loop, condition) = traced(counting(0), {"x": ONE}).ops
    assert (loop.turns, condition.calls) == (0, 1)


def test_shapes_that_change_from_turn_to_turn() -> None:
    def longer(i: Any) -> Any:
        shape = mb.reshape(x=mb.add(x=i, y=np.int32(1)), shape=[1])
        return mb.reduce_sum(x=mb.fill(shape=shape, value=1.0, name="ones"), axes=[0], keep_dims=False)

    def build(x: Any) -> Any:
        return loop(below(3), lambda i, a: mb.add(x=a, y=longer(i)), x)

    made = program(build, {"x": np.ones((1, 2), np.float32)})
    ops = {op.name: op for op in traced(made, {"x": np.ones((1, 2), np.float32)}).ops}
    assert ops["ones"].outputs["ones"].shape == ((1, 3),)
    assert ops["ones"].outputs["ones"].shape_text == "1..3"


def test_a_second_run_begins_anew() -> None:
    trace, plan = Trace(), compile(counting(2))
    for number in (1, 5):
        plan.run({"x": number * ONE}, listeners=[trace])
    ops = {op.name: op for op in trace.ops}
    assert (ops["loop"].turns, ops["doubled"].calls) == (2, 2)
    assert ops["doubled"].outputs["doubled"].maximum == 20


def test_a_run_that_failed_leaves_nothing_behind() -> None:
    def add_row(i: Any, a: Any) -> Any:
        return mb.add(x=a, y=mb.gather(x=np.ones((2,), np.float16), indices=i, axis=0, name="row"))

    def build(x: Any, n: Any) -> Any:
        rows = loop(below(mb.squeeze(x=n)), add_row, x)
        return mb.relu(x=rows, name="last")

    trace = Trace()
    plan = compile(program(build, {"x": ONE, "n": np.ones(1, np.int32)}))
    with pytest.raises(EvaluationError, match="gather 'row'"):
        plan.run({"x": ONE, "n": np.array([3], np.int32)}, listeners=[trace])
    plan.run({"x": ONE, "n": np.array([2], np.int32)}, listeners=[trace])
    ops = {op.name: op for op in trace.ops}
    assert (ops["loop"].depth, ops["loop"].turns, ops["row"].calls, ops["last"].depth) == (0, 2, 2, 0)


def test_lists_and_labels() -> None:
    def build(x: Any) -> Any:
        made = mb.make_list(init_length=2, dynamic_length=False, elem_shape=(1, 4), dtype="fp32")
        written = mb.list_write(ls=made, index=0, value=mb.cast(x=x, dtype="fp32"), name="written")
        read = mb.reshape(x=mb.list_read(ls=written, index=0), shape=[4])
        return mb.classify(probabilities=read, classes=mb.const(val=mil_list(["ant", "bee", "cat", "dog"])), name="c")

    trace = traced(program(build, {"x": ONE}), {"x": half(1, 5, np.nan, -2)})
    ops = {op.op_type: op for op in trace.ops}
    written = ops["list_write"].outputs["written"]
    assert (written.shape, written.text, written.minimum, written.maximum, written.nan) == (
        None,
        "2 elements",
        -2,
        5,
        1,
    )
    label, probabilities = ops["classify"].outputs.values()
    assert label.text in ("'ant'", "'bee'", "'cat'", "'dog'")
    assert label.shape is None
    assert probabilities.maximum == 5
    assert "2 elements" in printed(trace)


def test_a_trace_prints_and_is_json() -> None:
    trace = traced(counting(2), {"x": half(INF, 1, 2, 3)})
    told = printed(trace)
    assert "while_loop" in told
    assert "  doubled" in told
    facts = json.loads(json.dumps(trace.to_json(), allow_nan=False))
    assert [each["name"] for each in facts] == [op.name for op in trace.ops]
    assert facts[0]["turns"] == 2
    assert next(each for each in facts if each["name"] == "doubled")["outputs"]["doubled"]["inf"] == 2


def test_an_empty_value() -> None:
    made = program(lambda x: mb.identity(x=x, name="y"), {"x": np.ones((0, 3), np.float16)})
    (op,) = traced(made, {"x": np.ones((0, 3), np.float16)}).ops
    assert (op.outputs["y"].shape, op.outputs["y"].minimum) == ((0, 3), None)


# --- Profile


class Clock:
    """Stands in for the module ``time``: it goes on only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now

    def relu(self, x: Tensor) -> Tensor:
        """An op that takes a second."""
        self.now += 1
        return x.clone()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    for module in ("walking", "profiling"):
        monkeypatch.setattr(f"milopt.observation.{module}.time", made)
    return made


def timed(build: Build, clock: Clock) -> Plan:
    """A plan in which every relu takes a second, and nothing else takes any time."""
    mine = Impls("slow")
    mine("relu", override=True)(clock.relu)
    return compile(program(build, {"x": ONE}), impls=core | mine)


def test_a_profile_tells_where_the_time_goes(clock: Clock) -> None:
    def build(x: Any) -> Any:
        return mb.relu(x=mb.add(x=mb.relu(x=x, name="first"), y=np.float16(1), name="plus"), name="second")

    made = profile(timed(build, clock), {"x": ONE}, runs=3, warmup=1)
    assert made.runs == 3
    assert {op.name: (op.calls, op.seconds) for op in made.ops} == {"first": (3, 3), "second": (3, 3), "plus": (3, 0)}
    relu, add = made.types
    assert (relu.op_type, relu.ops, relu.calls, relu.seconds, add.ops) == ("relu", 2, 6, 6, 1)
    assert made.to_json()["types"][0]["share"] == 1
    assert made.unobserved == made.observed == [2, 2, 2]
    told = printed(made)
    assert "3 runs, 2000.000 ms of ops a run" in told
    assert "a whole run: 2000.000 ms unobserved" in told


def test_warm_up_does_not_count() -> None:
    listener, plan = Profile(warmup=2), compile(counting(3))
    for _ in range(5):
        plan.run({"x": ONE}, listeners=[listener])
    calls = {op.name: op.calls for op in listener.ops}
    assert (listener.runs, calls["loop"], calls["doubled"], calls["goes_on"]) == (3, 3, 9, 12)
    assert not Profile().ops
    assert "warm-up" in Profile().summary()


def test_a_nested_op_is_counted_once(clock: Clock) -> None:
    def build(x: Any) -> Any:
        return loop(below(3), lambda _, a: mb.relu(x=a, name="slow"), x)

    made = profile(timed(build, clock), {"x": ONE}, runs=2, warmup=0)
    seconds = {op.name: op.seconds for op in made.ops}
    assert (seconds["slow"], seconds["loop"], made.seconds) == (6, 0, 6)


def test_a_trace_counts_nested_time_twice(clock: Clock) -> None:
    trace = Trace()
    timed(lambda x: loop(below(3), lambda _, a: mb.relu(x=a, name="slow"), x), clock).run({"x": ONE}, listeners=[trace])
    seconds = {op.name: op.seconds for op in trace.ops}
    assert (seconds["slow"], seconds["loop"]) == (3, 3)


def test_what_the_listener_does_is_not_in_the_ops_time(clock: Clock) -> None:
    class Sleepy(Profile):
        def entered(self, walk: Any, values: Any) -> None:
            clock.now += 10

        def left(self, walk: Any, outputs: Any, seconds: float) -> None:
            super().left(walk, outputs, seconds)
            clock.now += 10

    listener = Sleepy(warmup=1)
    plan = timed(lambda x: mb.relu(x=mb.relu(x=mb.relu(x=x))), clock)
    for _ in range(2):
        plan.run({"x": ONE}, listeners=[listener])
    assert (listener.seconds, listener.own_seconds) == (3, 60)


def test_a_profile_leaves_the_state_as_it_is() -> None:
    def build(x: Any, s: Any) -> Any:
        return mb.coreml_update_state(state=s, value=mb.add(x=mb.read_state(input=s), y=x), name="sum")

    made = program(build, {"x": ONE, "s": state(1, 4)})
    kept = make_state(made)
    profile(compile(made), {"x": ONE}, runs=2, state=kept)
    np.testing.assert_array_equal(kept["s"], np.zeros((1, 4)))


# --- find_overflows


def overflows(build: Build, inputs: dict[str, Any], precision: Precision = "declared", **more: Any) -> OverflowReport:
    return find_overflows(program(build, inputs), inputs, precision=precision, **more)


def test_the_first_op_is_named_with_its_inputs() -> None:
    def build(x: Any) -> Any:
        square = mb.mul(x=x, y=x, name="square")
        return mb.mul(x=square, y=np.float16(0.5), name="half")

    report = overflows(build, {"x": half(1, 300, 2, -400)})
    (found,) = report.overflows
    assert report
    assert (found.kind, found.op, found.op_type, found.output, found.dtype) == (
        "result",
        "square",
        "mul",
        "square",
        "fp16",
    )
    assert (found.index, found.value, found.reference, found.count) == ((0, 1), INF, 90000, 2)
    assert [(each.name, each.at, each.summary.minimum, each.summary.dtype) for each in found.operands] == [
        ("x", 300, -400, "fp16"),
        ("y", 300, -400, "fp16"),
    ]
    assert report.outputs == {"half": 2}
    assert "mul 'square': square is inf as fp16 at (0, 1), and 1 more, 90000 in float64" in str(report)
    assert "it reaches half (2 places)" in str(report)


def test_nothing_to_report() -> None:
    report = overflows(lambda x: mb.mul(x=x, y=x, name="y"), {"x": half(1, 2, 3, 4)})
    assert not report
    assert report.first is None
    assert str(report) == "function 'main' in declared: no NaN or Inf that float64 does not have"


def test_nan_of_inf_minus_inf_is_traced_to_where_inf_began() -> None:
    def build(x: Any) -> Any:
        big = mb.mul(x=x, y=np.float16(30000), name="big")
        return mb.sub(x=big, y=mb.add(x=big, y=np.float16(1), name="bigger"), name="difference")

    report = overflows(build, {"x": half(1, 3, 1, 1)})
    assert [each.op for each in report.overflows] == ["big"]
    assert report.outputs == {"difference": 1}


def test_nan_made_of_finite_numbers() -> None:
    """fp16 loses what keeps the root's argument above zero."""

    def build(x: Any) -> Any:
        rounded = mb.add(x=x, y=np.float16(1e-4), name="rounded")  # 1 + 1e-4 is 1 in fp16
        apart = mb.sub(x=rounded, y=np.float16(1), name="apart")
        return mb.sqrt(x=mb.sub(x=apart, y=np.float16(5e-5), name="below"), name="root")

    (found,) = overflows(build, {"x": ONE}).overflows
    assert found.op == "root"
    assert np.isnan(found.value)
    assert found.operands[0].at is not None
    assert found.operands[0].at < 0 < found.reference


def test_an_overflow_that_is_masked_later_is_reported() -> None:
    def build(x: Any) -> Any:
        sums = mb.mul(x=x, y=x, name="square")
        return mb.rsqrt(x=sums, epsilon=1e-5, name="y")

    report = overflows(build, {"x": half(1, 2, 400, 3)})
    assert [each.op for each in report.overflows] == ["square"]
    assert report.outputs == {}
    assert "no output is NaN or Inf for it" in str(report)


def test_infinite_masks_are_none() -> None:
    mask = half(0, -INF, 0, -INF)

    def build(x: Any) -> Any:
        return mb.softmax(x=mb.add(x=x, y=mask, name="masked"), axis=-1, name="y")

    assert not overflows(build, {"x": half(1, 2, 3, 4)})


def test_an_overflow_beside_an_infinite_mask() -> None:
    mask = half(-INF, 0, -INF, 0)

    def build(x: Any) -> Any:
        return mb.softmax(x=mb.add(x=mb.mul(x=x, y=np.float16(30000)), y=mask, name="masked"), axis=-1, name="y")

    report = overflows(build, {"x": half(1, 1, 1, -1.5)})
    assert not report
    (found,) = overflows(
        lambda x: mb.add(x=mb.sub(x=x, y=np.float16(6e4), name="low"), y=mask), {"x": -ONE * 6e4}
    ).overflows
    assert (found.op, found.count, found.value) == ("low", 4, -INF)

    def late(x: Any) -> Any:
        return mb.add(x=mb.add(x=x, y=mask, name="masked"), y=x, name="sum")

    (found,) = overflows(late, {"x": half(1, 2, 3, 5e4)}).overflows
    assert (found.op, found.index, found.count) == ("sum", (0, 3), 1)


def test_two_beginnings() -> None:
    def build(x: Any) -> Any:
        one = mb.mul(x=x, y=np.float16(60000), name="one")
        finite = mb.minimum(x=one, y=np.float16(100), name="finite")
        return mb.mul(x=finite, y=np.float16(3e4), name="two")

    assert [each.op for each in overflows(build, {"x": 2 * ONE}).overflows] == ["one", "two"]


def test_an_overflow_in_a_loop_tells_the_turn() -> None:
    def build(x: Any) -> Any:
        return loop(below(6), lambda _, a: mb.mul(x=a, y=np.float16(20), name="grown"), x)

    report = overflows(build, {"x": ONE})
    (found,) = report.overflows  # later turns get it from this one, and the loop from the last
    assert (found.op, found.turn, found.times, found.reference) == ("grown", 3, 1, 160000)
    assert list(report.outputs.values()) == [4]
    assert "in turn 3" in str(report)


def test_an_overflow_of_every_turn_is_told_once() -> None:
    def build(x: Any) -> Any:
        return loop(below(3), lambda _, a: mb.minimum(x=mb.mul(x=a, y=np.float16(6e4), name="big"), y=np.float16(2)), x)

    (found,) = overflows(build, {"x": 2 * ONE}).overflows
    assert (found.op, found.turn, found.times) == ("big", 0, 3)


def test_a_list_hands_it_on() -> None:
    def build(x: Any) -> Any:
        made = mb.make_list(init_length=1, dynamic_length=False, elem_shape=(1, 4), dtype="fp16")
        written = mb.list_write(ls=made, index=0, value=mb.mul(x=x, y=x, name="square"))
        return mb.relu(x=mb.list_read(ls=written, index=0), name="y")

    assert [each.op for each in overflows(build, {"x": 300 * ONE}).overflows] == ["square"]


def test_a_state_hands_it_on() -> None:
    def build(x: Any, s: Any) -> Any:
        turned = mb.transpose(x=mb.mul(x=x, y=x, name="square"), perm=[1, 0])  # which the state keeps as a copy
        mb.coreml_update_state(state=s, value=turned)
        return mb.relu(x=mb.read_state(input=s, name="read"), name="y")

    x = np.full((2, 4), 300, np.float16)
    made = program(build, {"x": x, "s": state(4, 2)})
    kept = make_state(made)
    report = find_overflows(made, {"x": x}, state=kept)
    assert [each.op for each in report.overflows] == ["square"]
    np.testing.assert_array_equal(kept["s"], np.zeros((4, 2)))  # all runs were on copies


def test_an_input_too_large_for_its_type() -> None:
    made = program(lambda x: mb.mul(x=x, y=np.float16(0.5), name="y"), {"x": ONE})
    report = find_overflows(made, {"x": np.array([[1, 70000, 2, 3]], np.float32)})
    (found,) = report.overflows
    assert (found.kind, found.output, found.index, found.reference) == ("input", "x", (0, 1), 70000)
    assert "input 'x': 70000 is inf as fp16 at (0, 1)" in str(report)
    assert report.outputs == {"y": 1}


def test_an_intermediate_value_is_seen_in_declared_strict() -> None:
    def build(x: Any) -> Any:
        return mb.layer_norm(x=x, axes=[-1], name="norm")

    inputs = {"x": half(600, -600, 1, 2)}
    assert not overflows(build, inputs)
    (found,) = overflows(build, inputs, "declared-strict").overflows
    assert (found.kind, found.op, found.op_type, found.dtype) == ("inside", "norm", "layer_norm", "fp16")
    assert found.reference > 65504
    assert "in an intermediate value" in str(found)


def test_declared_strict_leaves_integers_alone() -> None:
    made = program(lambda n: mb.reduce_sum(x=n, axes=[0], name="y"), {"n": np.ones(3, np.int32)})
    assert not find_overflows(made, {"n": np.array([2**30, 1, 2], np.int32)}, precision="declared-strict")


def test_a_run_that_stops_for_an_overflow_is_reported() -> None:
    def build(x: Any) -> Any:
        square = mb.mul(x=x, y=x, name="square")
        place = mb.cast(x=mb.mul(x=square, y=np.float16(1e-5), name="small"), dtype="int32")
        return mb.gather(x=np.arange(9, dtype=np.float16), indices=place, axis=0, name="row")

    report = overflows(build, {"x": half(300, 1, 2, 3)})
    assert [each.op for each in report.overflows] == ["square"]
    assert "gather 'row'" in report.stopped
    assert "the run stopped" in str(report)


def test_a_run_that_fails_without_overflow_fails() -> None:
    def build(i: Any) -> Any:
        return mb.gather(x=np.arange(3, dtype=np.float16), indices=i, axis=0, name="row")

    with pytest.raises(EvaluationError, match="gather 'row'"):
        overflows(build, {"i": np.array([7], np.int32)})
    with pytest.raises(EvaluationError, match="the call lacks 'x'"):
        find_overflows(program(lambda x: mb.relu(x=x), {"x": ONE}), {})
    with pytest.raises(EvaluationError, match="choose declared or declared-strict"):
        overflows(lambda x: mb.relu(x=x), {"x": ONE}, "float64")


def test_loops_that_part_are_said_to() -> None:
    """inf stays above the bound, where float64 gets below it: the loops make different numbers of turns."""

    def going(i: Any, a: Any) -> Any:
        return mb.logical_and(
            x=mb.less(x=i, y=np.int32(20)), y=mb.greater(x=mb.reduce_max(x=a, axes=[0, 1]), y=np.float16(9))
        )

    def build(x: Any) -> Any:
        square = mb.mul(x=x, y=x, name="square")
        return loop(going, lambda _, a: mb.mul(x=a, y=np.float16(0.5), name="halved"), square)

    report = overflows(build, {"x": 300 * ONE})
    assert [each.op for each in report.overflows] == ["square"]
    # float64 is below 9 after 14 halvings; 6 more, and the condition's 6 maxima, are only there for inf
    assert report.incomparable == 12
    assert "have no counterpart in float64" in str(report)


def test_random_ops_draw_the_same_numbers_in_all_runs() -> None:
    def build(x: Any) -> Any:
        noise = mb.random_normal(shape=[1, 1000], name="noise")
        return mb.mul(x=mb.mul(x=noise, y=mb.reduce_max(x=x, name="top")), y=np.float32(1), name="y")

    made = program(build, {"x": np.ones((1, 4), np.float32)})
    before = torch.random.get_rng_state()
    assert not find_overflows(made, {"x": np.ones((1, 4), np.float32)})
    assert torch.equal(before, torch.random.get_rng_state())


def test_random_ops_draw_from_the_seed() -> None:
    def build(x: Any) -> Any:
        return mb.mul(x=mb.random_normal(shape=[1000]), y=np.float32(65504), name="wide"), x

    def half_of(x: Any) -> Any:
        return mb.cast(x=build(x)[0], dtype="fp16", name="y"), mb.relu(x=x)

    made = program(half_of, {"x": ONE})
    counts = [find_overflows(made, {"x": ONE}, seed=seed).overflows[0].count for seed in (1, 2, 1)]
    assert counts[0] == counts[2] != counts[1]


def test_a_report_is_json() -> None:
    report = overflows(lambda x: mb.mul(x=x, y=x, name="y"), {"x": half(300, 1, 1, 1)})
    facts = json.loads(json.dumps(report.to_json(), allow_nan=False))
    (found,) = facts["overflows"]
    assert (found["op"], found["value"], found["float64"], found["inputs"][0]["at"]) == ("y", "inf", 90000, 300)


def test_the_module_is_named_where_the_program_knows() -> None:
    made = program(lambda x: mb.mul(x=x, y=x, name="y"), {"x": ONE})
    (op,) = (op for op in made.functions["main"].operations if op.op_type == "mul")
    op.scopes = {ScopeSource.TORCHSCRIPT_MODULE_NAME: ["layers", "0", "mlp"]}
    (found,) = find_overflows(made, {"x": 300 * ONE}).overflows
    assert found.scope == "layers.0.mlp"
    assert "mul 'y' (in layers.0.mlp)" in str(found)


def test_no_values_are_kept() -> None:
    """Of a chain of large values that all overflow, only bits remain, and these shrink."""

    def build(x: Any) -> Any:
        for _ in range(20):
            x = mb.mul(x=x, y=np.float16(300))
        return x

    large = np.ones((256, 256), np.float16)
    suspects = Suspects(Inside())
    compile(program(build, {"x": large})).run({"x": large}, listeners=[suspects])
    kept = sum(places.nbytes for places in suspects.places.values())
    assert len(suspects.places) == 19
    assert kept < 19 * large.nbytes / 100


# --- unsupported ops


def test_every_way_to_run_lists_all_unsupported_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sin", "cos"):
        monkeypatch.delitem(vars(core)["_impls"], name)

    def build(x: Any) -> Any:
        nested = loop(below(1), lambda _, a: mb.sin(x=a, name="nested"), x)
        return mb.sin(x=mb.cos(x=mb.sin(x=nested, name="first"), name="second"), name="third")

    made = program(build, {"x": ONE})
    ways: list[Callable[[], Any]] = [
        lambda: compile(made),
        lambda: compile_all(made),
        lambda: evaluate(made, {"x": ONE}),
        lambda: predict(made, {"x": ONE}),
        lambda: compare(made, made),
        lambda: Session(load(made)),
        lambda: find_overflows(made, {"x": ONE}),
    ]
    for way in ways:
        with pytest.raises(UnsupportedOps) as caught:
            way()
        assert caught.value.ops == {"sin": ["nested", "first", "third"], "cos": ["second"]}
        assert "cos (1x, e.g. 'second'), sin (3x, e.g. 'nested')" in str(caught.value)

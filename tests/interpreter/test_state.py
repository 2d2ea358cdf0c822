"""States: carried from call to call, shared by functions, and written in place only where nobody can tell."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from milopt.errors import EvaluationError
from milopt.interpreter import Plan, State, compile, compile_all, evaluate, make_state
from milopt.interpreter.sharing import Sharing
from milopt.interpreter.steps import Step
from milopt.mil import Program, mb, types
from tests.interpreter.support import function, normals, placeholder, program, state

HALF = np.float16
ROW = normals(1, 3, dtype=HALF)


def appending() -> Program:
    """Writes ``row`` at ``at`` of the state ``cache (4, 3)`` and returns the sum over rows."""

    def build(row: Any, at: Any, cache: Any) -> Any:
        begin = mb.concat(values=[at, np.zeros(1, np.int32)], axis=0)
        end = mb.concat(values=[mb.add(x=at, y=np.int32(1)), np.array([3], np.int32)], axis=0)
        updated = mb.slice_update(x=mb.read_state(input=cache), update=row, begin=begin, end=end)
        stored = mb.coreml_update_state(state=cache, value=updated)
        return mb.reduce_sum(x=stored, axes=[0], name="total")

    return program(build, {"row": ROW, "at": np.zeros(1, np.int32), "cache": state(4, 3)})


def test_a_state_carries_from_call_to_call() -> None:
    made = appending()
    plan, cache = compile(made), make_state(made)
    total = np.zeros(3, np.float32)
    for at in range(4):
        row = normals(1, 3, seed=at, dtype=HALF)
        total += row[0]
        got = plan.run({"row": row, "at": np.array([at])}, cache)["total"]
        np.testing.assert_allclose(got.numpy(), total, atol=4e-3)  # sums of four fp16 numbers below 4
        np.testing.assert_array_equal(cache["cache"][at], row[0])
    assert cache["cache"].dtype == HALF


def test_a_state_can_be_read_written_copied_and_reset() -> None:
    cache = make_state(appending())
    assert list(cache) == ["cache"]
    assert (cache.numpy("cache") == 0).all()
    cache["cache"] = np.full((4, 3), 2.0)
    twin = cache.copy()
    cache.reset()
    assert (cache["cache"] == 0).all()
    assert (twin["cache"] == 2).all()
    twin["cache"][:] = 5  # a copy
    assert (twin["cache"] == 2).all()
    with pytest.raises(EvaluationError, match=r"state 'cache' must be fp16\[4, 3\], got float64\[3\]"):
        cache["cache"] = np.zeros(3)
    with pytest.raises(EvaluationError, match="there is no state 'k'; the states are cache"):
        cache["k"]


def test_a_stateful_program_without_a_state_says_what_to_do() -> None:
    inputs = {"row": ROW, "at": np.zeros(1, np.int32)}
    with pytest.raises(EvaluationError, match=r"'main' has states \(cache\): pass state=milopt.make_state\(model\)"):
        evaluate(appending(), inputs)
    other = make_state(program(lambda x: mb.read_state(input=x), {"x": state(4, 3)}))
    with pytest.raises(EvaluationError, match=r"the state given has no 'cache'; make it with milopt\.make_state"):
        evaluate(appending(), inputs, state=other)
    small = make_state(program(lambda cache: mb.read_state(input=cache), {"cache": state(2, 3)}))
    with pytest.raises(EvaluationError, match=r"state 'cache' must be fp16\[4, 3\], the state given has fp16\[2, 3\]"):
        evaluate(appending(), inputs, state=small)


def test_a_state_follows_the_precision_of_the_run() -> None:
    """float64 keeps what fp16 would round; back in declared the state is rounded."""
    made = program(
        lambda x, s: mb.coreml_update_state(state=s, value=mb.add(x=mb.read_state(input=s), y=x)),
        {"x": ROW, "s": state(1, 3)},
    )
    cache = make_state(made)
    step = np.array([[1e-4, 1.0, 1000.1]])
    for _ in range(2):
        evaluate(made, {"x": step}, state=cache, precision="float64")
    np.testing.assert_array_equal(cache["s"], step + step)
    evaluate(made, {"x": np.zeros((1, 3))}, state=cache)
    np.testing.assert_array_equal(cache["s"], (step + step).astype(HALF), strict=True)


def two_functions() -> Program:
    made = Program()
    for name, sign in (("plus", 1), ("minus", -1)):

        def build(x: Any, s: Any, sign: int = sign) -> Any:
            moved = mb.add(x=mb.read_state(input=s), y=mb.mul(x=x, y=HALF(sign)))
            return mb.identity(x=mb.coreml_update_state(state=s, value=moved), name="out")

        built: Any = build
        made.add_function(name, function(built, {"x": ROW, "s": state(1, 3)}))
    return made


def test_functions_of_a_model_share_a_state() -> None:
    plans, cache = compile_all(two_functions()), make_state(two_functions())
    plans["plus"].run({"x": np.full((1, 3), 5.0)}, cache)
    plans["minus"].run({"x": np.full((1, 3), 2.0)}, cache)
    assert (cache["s"] == 3).all()


def test_read_state_sees_earlier_updates() -> None:
    def build(x: Any, s: Any) -> Any:
        before = mb.read_state(input=s)
        mb.coreml_update_state(state=s, value=x)
        return mb.identity(x=before, name="before"), mb.identity(x=mb.read_state(input=s), name="after")

    made = program(build, {"x": ROW, "s": state(1, 3)})
    out = compile(made).run({"x": ROW}, make_state(made))
    assert (out["before"] == 0).all()
    np.testing.assert_array_equal(out["after"].numpy(), ROW.astype(np.float32))


def writes_in_place(plan: Plan) -> list[str]:
    return [step.name for step in plan.body.steps if step.call.keywords.get("in_place")]


def write(x: Any, row: Any, at: int, name: str) -> Any:
    return mb.slice_update(x=x, update=row, begin=[at, 0], end=[at + 1, 3], name=name)


def test_the_usual_chain_writes_in_place() -> None:
    assert (
        writes_in_place(compile(appending())) == ["slice_update_0"] or len(writes_in_place(compile(appending()))) == 1
    )

    def twice(row: Any, s: Any) -> Any:
        first = mb.coreml_update_state(state=s, value=write(mb.read_state(input=s), row, 0, "first"))
        attention = mb.matmul(x=first, y=first, transpose_y=True)
        second = write(write(first, row, 1, "second"), row, 2, "third")
        return attention, mb.reduce_sum(x=mb.coreml_update_state(state=s, value=second))

    assert writes_in_place(compile(program(twice, {"row": ROW, "s": state(4, 3)}))) == ["first", "second", "third"]


def old_value_is_used_later(row: Any, s: Any) -> Any:
    old = mb.read_state(input=s)
    stored = mb.coreml_update_state(state=s, value=write(old, row, 0, "w"))
    return mb.add(x=old, y=stored)


def a_view_of_the_old_value_is_used_later(row: Any, s: Any) -> Any:
    old = mb.read_state(input=s)
    view = mb.transpose(x=mb.slice_by_size(x=old, begin=[0, 0], size=[2, 3]), perm=[1, 0])
    stored = mb.coreml_update_state(state=s, value=write(old, row, 0, "w"))
    return mb.matmul(x=stored, y=view)


def the_update_is_a_view_of_the_state(row: Any, s: Any) -> Any:
    old = mb.read_state(input=s)
    moved = mb.slice_update(x=old, update=mb.slice_by_size(x=old, begin=[0, 0], size=[3, 3]), begin=[1, 0], end=[4, 3])
    return mb.reduce_sum(x=mb.coreml_update_state(state=s, value=moved))


def the_result_is_not_stored(row: Any, s: Any) -> Any:
    return mb.reduce_sum(x=write(mb.read_state(input=s), row, 0, "w"))


def the_state_is_read_before_it_is_stored(row: Any, s: Any) -> Any:
    written = write(mb.read_state(input=s), row, 0, "w")
    again = mb.mul(x=mb.read_state(input=s), y=HALF(1))
    mb.coreml_update_state(state=s, value=written)
    return again


def something_else_is_stored(row: Any, s: Any) -> Any:
    written = write(mb.read_state(input=s), row, 0, "w")
    mb.coreml_update_state(state=s, value=mb.mul(x=written, y=HALF(2)))
    return mb.reduce_sum(x=written)


REFUSED: list[Callable[[Any, Any], Any]] = [
    old_value_is_used_later,
    a_view_of_the_old_value_is_used_later,
    the_update_is_a_view_of_the_state,
    the_result_is_not_stored,
    the_state_is_read_before_it_is_stored,
    something_else_is_stored,
]


@contextmanager
def copying() -> Generator[None]:
    """Plans made in here copy at every slice_update and every update of a state."""

    def as_they_are(self: Sharing) -> list[Step]:
        return list(self.steps)

    patch = pytest.MonkeyPatch()
    patch.setattr(Sharing, "improved", as_they_are)
    yield
    patch.undo()


def two_steps(plan: Plan, cache: State) -> list[np.ndarray[Any, Any]]:
    """All outputs of two calls, copied, and the states after each."""
    seen: list[np.ndarray[Any, Any]] = []
    kept: list[torch.Tensor] = []
    for seed in (1, 2):
        outputs = plan.run({"row": normals(1, 3, seed=seed, dtype=HALF)}, cache)
        kept += outputs.values()
        seen += [np.array(value.numpy()) for value in outputs.values()] + [cache[name] for name in cache]
    # what an earlier call returned must not have changed since
    return seen + [value.numpy() for value in kept]


def assert_in_place_makes_no_difference(made: Program) -> None:
    plan = compile(made)
    with copying():
        reference = compile(made)
    for got, want in zip(two_steps(plan, make_state(made)), two_steps(reference, make_state(made)), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("build", REFUSED, ids=lambda build: str(build.__name__))
def test_no_write_in_place_where_it_would_show(build: Callable[[Any, Any], Any]) -> None:
    made = program(build, {"row": ROW, "s": state(4, 3)})
    assert writes_in_place(compile(made)) == []
    assert_in_place_makes_no_difference(made)


def functions(**builds: Callable[[Any, Any, Any], Any]) -> Program:
    """A program of functions of ``row`` and two states, in fp32: an fp16 input would be copied to be rounded."""
    made = Program()
    for name, build in builds.items():
        states = {each: state(1, 3, dtype=types.fp32) for each in ("s", "t")}
        made.add_function(name, function(build, {"row": ROW.astype(np.float32), **states}))
    return made


def overwrite(row: Any, s: Any, t: Any) -> Any:
    """Writes in place into ``s``, and uses ``t`` because a function must use its inputs."""
    written = write(mb.read_state(input=s), row, 0, "w")
    return mb.coreml_update_state(state=s, value=written), mb.mul(x=mb.read_state(input=t), y=np.float32(1))


def take_row(row: Any, s: Any, t: Any) -> Any:
    mb.coreml_update_state(state=t, value=mb.read_state(input=t))
    return mb.reduce_sum(x=mb.coreml_update_state(state=s, value=mb.reshape(x=row, shape=[1, 3])))


def take_constant(row: Any, s: Any, t: Any) -> Any:
    mb.coreml_update_state(state=t, value=mb.read_state(input=t))
    constant = mb.transpose(x=ROW.astype(np.float32), perm=[0, 1])
    return mb.add(x=row, y=mb.coreml_update_state(state=s, value=constant))


def take_other(row: Any, s: Any, t: Any) -> Any:
    return mb.add(x=row, y=mb.coreml_update_state(state=t, value=mb.read_state(input=s)))


def test_a_state_never_holds_memory_that_others_hold() -> None:
    """A later call, of another function even, may write into the state's memory."""
    made = functions(overwrite=overwrite, take_row=take_row, take_constant=take_constant, take_other=take_other)
    plans, cache = compile_all(made), make_state(made)
    assert writes_in_place(plans["overwrite"]) == ["w"]
    row, seven = torch.ones(1, 3), {"row": torch.full((1, 3), 7.0)}

    plans["take_row"].run({"row": row}, cache)
    plans["overwrite"].run(seven, cache)
    assert torch.equal(row, torch.ones(1, 3))

    first = plans["take_constant"].run({"row": row}, cache)
    plans["overwrite"].run(seven, cache)
    again = plans["take_constant"].run({"row": row}, cache)
    assert all(torch.equal(now, then) for now, then in zip(again.values(), first.values(), strict=True))

    plans["take_other"].run({"row": row}, cache)
    before = cache["t"]
    plans["overwrite"].run(seven, cache)
    np.testing.assert_array_equal(cache["t"], before)


def test_returned_states_are_copies() -> None:
    made = functions(main=overwrite)
    plan, cache = compile(made), make_state(made)
    first = next(iter(plan.run({"row": ROW}, cache).values()))
    plan.run({"row": 2 * ROW}, cache)
    np.testing.assert_array_equal(first.numpy(), ROW.astype(np.float32))


VALUE_OPS: dict[str, Callable[[Any, Any], Any]] = {
    "write0": lambda x, row: mb.slice_update(x=x, update=row, begin=[0, 0], end=[1, 3]),
    "write2": lambda x, row: mb.slice_update(x=x, update=row, begin=[2, 0], end=[3, 3]),
    "view": lambda x, row: mb.transpose(x=mb.transpose(x=x, perm=[1, 0]), perm=[1, 0]),
    "reverse": lambda x, row: mb.reverse(x=x, axes=[0]),
    "double": lambda x, row: mb.mul(x=x, y=HALF(2)),
    "shift": lambda x, row: mb.slice_update(
        x=x, update=mb.slice_by_size(x=x, begin=[0, 0], size=[3, 3]), begin=[1, 0], end=[4, 3]
    ),
}


@st.composite
def stateful_programs(draw: st.DrawFn) -> Program:
    """Random mixtures of reads, updates, views and slice updates of two states."""
    kinds = ["read", "store", "append", "append", *VALUE_OPS]
    moves = draw(st.lists(st.tuples(st.sampled_from(kinds), st.integers(0, 99)), max_size=12))
    returned = draw(st.lists(st.integers(0, 99), min_size=1, max_size=3))

    def build(row: Any, s: Any, t: Any) -> Any:
        states, values = [s, t], [mb.read_state(input=s)]
        for kind, pick in moves:
            if kind == "read":
                values.append(mb.read_state(input=states[pick % 2]))
            elif kind == "append":
                written = write(mb.read_state(input=states[pick % 2]), row, pick % 4, f"append{len(values)}")
                values.append(mb.coreml_update_state(state=states[pick % 2], value=written))
            elif kind == "store":
                values.append(mb.coreml_update_state(state=states[pick % 2], value=values[pick // 2 % len(values)]))
            else:
                values.append(VALUE_OPS[kind](values[pick % len(values)], row))
        mb.coreml_update_state(state=t, value=mb.read_state(input=t))
        return tuple(mb.identity(x=values[pick % len(values)], name=f"out{i}") for i, pick in enumerate(returned))

    built: Any = build
    inputs = {"row": placeholder(ROW), "s": state(4, 3, dtype=types.fp16), "t": state(4, 3, dtype=types.fp16)}
    return program(built, inputs)


@settings(max_examples=150, deadline=None)
@given(stateful_programs())
def test_writing_in_place_never_shows(made: Program) -> None:
    assert_in_place_makes_no_difference(made)

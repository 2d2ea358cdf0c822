"""Branches, loops, lists and recurrent layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from milopt.errors import EvaluationError
from milopt.interpreter import Step, compile
from milopt.interpreter.values import Array
from milopt.mil import get_new_symbol, mb, types
from tests.interpreter.support import normals, program, run

ONE = np.ones(1, np.float32)
RANDOM: Any = torch.random


def plus_one(i: Any) -> Any:
    return mb.add(x=i, y=np.int32(1))


def zero() -> Any:
    return mb.const(val=np.int32(0))


@pytest.mark.parametrize(("x", "want"), [(3.0, 9.0), (-3.0, 3.0)])
def test_cond_runs_one_branch(x: float, want: float) -> None:
    def build(x: Any) -> Any:
        positive = mb.squeeze(x=mb.greater(x=x, y=np.float32(0)), axes=[0])
        return mb.cond(pred=positive, _true_fn=lambda: mb.mul(x=x, y=x), _false_fn=lambda: mb.abs(x=x))

    assert run(build, {"x": np.array([x], np.float32)})[0] == want


def collatz(n: Any) -> Any:
    """Steps until ``n`` is 1: a cond in a while_loop."""

    def unfinished(n: Any, steps: Any) -> Any:
        return mb.not_equal(x=n, y=np.int32(1))

    def halve_or_triple(n: Any, steps: Any) -> Any:
        following = mb.cond(
            pred=mb.equal(x=mb.mod(x=n, y=np.int32(2)), y=np.int32(0)),
            _true_fn=lambda: mb.floor_div(x=n, y=np.int32(2)),
            _false_fn=lambda: plus_one(mb.mul(x=n, y=np.int32(3))),
        )
        return following, plus_one(steps)

    loop_vars = mb.squeeze(x=n, axes=[0]), zero()
    return mb.identity(x=mb.while_loop(_cond=unfinished, _body=halve_or_triple, loop_vars=loop_vars)[1])


@pytest.mark.parametrize(("n", "steps"), [(1, 0), (6, 8), (27, 111)])
def test_while_loop_with_a_branch_inside(n: int, steps: int) -> None:
    assert run(collatz, {"n": np.array([n], np.int32)})[0] == steps


def test_nested_loops_read_values_of_outer_blocks_at_every_turn() -> None:
    """sum over i < 3, j < i of 2 * x * j"""

    def build(x: Any) -> Any:
        doubled = mb.mul(x=x, y=np.float32(2))

        def outer(i: Any, total: Any) -> Any:
            def below(j: Any, total: Any) -> Any:
                return mb.less(x=j, y=i)

            def inner(j: Any, total: Any) -> Any:
                return plus_one(j), mb.add(x=total, y=mb.mul(x=doubled, y=mb.cast(x=j, dtype="fp32")))

            return plus_one(i), mb.while_loop(_cond=below, _body=inner, loop_vars=(zero(), total))[1]

        def unfinished(i: Any, total: Any) -> Any:
            return mb.less(x=i, y=np.int32(3))

        return mb.while_loop(_cond=unfinished, _body=outer, loop_vars=(zero(), mb.mul(x=x, y=np.float32(0))))[1]

    np.testing.assert_allclose(run(build, {"x": 5 * ONE})[0], [10.0])


def growing(count: Any) -> Any:
    """A list that a loop appends ``i * [1, 2]`` to."""

    def unfinished(i: Any, ls: Any) -> Any:
        return mb.less(x=i, y=mb.squeeze(x=count, axes=[0]))

    def append(i: Any, ls: Any) -> Any:
        element = mb.mul(x=np.array([1, 2], np.float32), y=mb.cast(x=i, dtype="fp32"))
        return plus_one(i), mb.list_write(ls=ls, index=i, value=element)

    empty = mb.make_list(init_length=1, elem_shape=(2,))
    ls = mb.while_loop(_cond=unfinished, _body=append, loop_vars=(zero(), empty))[1]
    places = mb.range_1d(start=np.int32(0), end=mb.list_length(ls=ls), step=np.int32(1))
    return mb.list_gather(ls=ls, indices=places)


def test_a_list_grows_in_a_loop() -> None:
    for count in (1, 4):
        want = np.arange(count)[:, None] * [1, 2]
        np.testing.assert_array_equal(run(growing, {"count": np.array([count], np.int32)})[0], want)


def test_lists_are_values() -> None:
    """A write makes a new list; unwritten elements are zeros; scatter and gather agree."""

    def build(a: Any, b: Any) -> Any:
        empty = mb.make_list(init_length=2, elem_shape=(3,), dtype="fp32")
        first = mb.list_write(ls=empty, index=0, value=a)
        second = mb.list_write(ls=first, index=4, value=b)
        rows = mb.list_scatter(ls=second, indices=np.array([2, 1], np.int32), value=mb.stack(values=(b, a), axis=0))
        return (
            mb.list_read(ls=empty, index=0),
            mb.list_read(ls=first, index=0),
            mb.list_gather(ls=rows, indices=np.array([4, 2, 3, 1], np.int32)),
        )

    a, b = normals(3), normals(3, seed=1)
    unwritten, written, gathered = run(build, {"a": a, "b": b})
    np.testing.assert_array_equal(unwritten, np.zeros(3))
    np.testing.assert_array_equal(written, a)
    np.testing.assert_array_equal(gathered, np.stack([b, b, np.zeros(3), a]))


def test_symbols_inside_a_loop_may_change_from_turn_to_turn() -> None:
    def short(x: Any) -> Any:
        return mb.less(x=mb.gather(x=mb.shape(x=x), indices=np.int32(0)), y=np.int32(20))

    def twice(x: Any) -> Any:
        return mb.concat(values=(x, x), axis=0)

    def build(x: Any) -> Any:
        return mb.while_loop(_cond=short, _body=twice, loop_vars=(x,))

    plan = compile(program(build, {"x": mb.placeholder(shape=(get_new_symbol(),), dtype=types.fp32)}))
    assert next(iter(plan.run({"x": normals(3)}).values())).shape == (24,)


def test_an_error_inside_a_loop_names_the_inner_op_once() -> None:
    def unfinished(i: Any) -> Any:
        return mb.less(x=i, y=np.int32(5))

    def look(i: Any) -> Any:
        return mb.add(x=i, y=mb.gather(x=np.ones(2, np.int32), indices=i, name="look"))

    def build(x: Any) -> Any:
        return mb.while_loop(_cond=unfinished, _body=look, loop_vars=(mb.squeeze(x=x, axes=[0]),))

    seen: list[str] = []

    class Steps:
        def before(self, step: Step, values: Any) -> None:
            seen.append(step.op_type)

    plan = compile(program(build, {"x": np.zeros(1, np.int32)}))
    for listeners in ([], [Steps()]):
        with pytest.raises(EvaluationError, match=r"^gather 'look': ") as caught:
            plan.run({"x": np.zeros(1, np.int32)}, listeners=listeners)
        assert str(caught.value).count("gather 'look'") == 1
    assert seen == ["squeeze", "while_loop", *["less", "gather", "add"] * 2, "less", "gather"]


def gates(matrix: torch.Tensor, order: str, of: str) -> Array:
    """Blocks of rows of torch's weights in MIL's order."""
    parts = dict(zip(of, np.split(matrix.detach().numpy(), len(of)), strict=True))
    return np.concatenate([parts[name] for name in order])


@pytest.mark.parametrize("sequence", [False, True])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_lstm_is_torchs(direction: str, sequence: bool) -> None:
    both = direction == "bidirectional"
    RANDOM.manual_seed(0)
    layer = torch.nn.LSTM(3, 4, bidirectional=both)
    parameters = {name: value.detach() for name, value in layer.named_parameters()}
    x, h, c = (torch.randn(*shape) for shape in ((5, 2, 3), (1 + both, 2, 4), (1 + both, 2, 4)))
    with torch.no_grad():
        outputs, (last_h, last_c) = layer(x.flip(0) if direction == "reverse" else x, (h, c))

    given: dict[str, Any] = {}
    for end, suffix in (("l0", ""), ("l0_reverse", "_back"))[: 1 + both]:
        given[f"weight_ih{suffix}"] = gates(parameters[f"weight_ih_{end}"], "ifoz", "ifzo")
        given[f"weight_hh{suffix}"] = gates(parameters[f"weight_hh_{end}"], "ifoz", "ifzo")
        given[f"bias{suffix}"] = gates(parameters[f"bias_ih_{end}"] + parameters[f"bias_hh_{end}"], "ifoz", "ifzo")

    def build(x: Any, h: Any, c: Any) -> Any:
        return mb.lstm(x=x, initial_h=h, initial_c=c, direction=direction, output_sequence=sequence, **given)

    def side_by_side(state: torch.Tensor) -> Array:
        return torch.cat(list(state), -1).numpy()

    got = run(build, {"x": x.numpy(), "h": side_by_side(h), "c": side_by_side(c)})
    want = outputs.numpy() if sequence else side_by_side(last_h)[None]
    for have, each in zip(got, (want, side_by_side(last_h), side_by_side(last_c)), strict=True):
        np.testing.assert_allclose(have, each, atol=2e-6)  # torch ran in fp32


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_gru_that_resets_after_the_product_is_torchs(direction: str) -> None:
    RANDOM.manual_seed(0)
    layer = torch.nn.GRU(3, 4)
    parameters = {name: value.detach() for name, value in layer.named_parameters()}
    x, h = torch.randn(5, 2, 3), torch.randn(1, 2, 4)
    with torch.no_grad():
        outputs, last = layer(x.flip(0) if direction == "reverse" else x, h)

    def build(x: Any, h: Any) -> Any:
        return mb.gru(
            x=x,
            initial_h=h,
            weight_ih=gates(parameters["weight_ih_l0"], "roz", "rzo"),
            weight_hh=gates(parameters["weight_hh_l0"], "roz", "rzo"),
            bias=gates(parameters["bias_hh_l0"], "roz", "rzo"),
            input_bias=gates(parameters["bias_ih_l0"], "roz", "rzo"),
            reset_after=True,
            output_sequence=True,
            direction=direction,
        )

    got = run(build, {"x": x.numpy(), "h": h[0].numpy()})
    for have, want in zip(got, (outputs, last[0]), strict=True):
        np.testing.assert_allclose(have, want.numpy(), atol=2e-6)  # torch ran in fp32


def test_gru_resets_before_the_product_by_default() -> None:
    """Written out for one unit: z, r = 0.5 at zero weights; o = tanh(r * h * w)."""
    weight = np.array([[0.0], [2.0], [0.0]], np.float32)

    def build(x: Any, h: Any) -> Any:
        return mb.gru(x=x, initial_h=h, weight_ih=0 * weight, weight_hh=weight, bias=np.array([0, 1, 0], np.float32))

    _, h = run(build, {"x": np.zeros((1, 1, 1), np.float32), "h": 3 * ONE[None]})
    np.testing.assert_allclose(h, [[0.5 * np.tanh(0.5 * 3 * 2 + 1) + 0.5 * 3]], rtol=1e-12)


def test_rnn_is_torchs() -> None:
    RANDOM.manual_seed(0)
    layer = torch.nn.RNN(3, 4, nonlinearity="relu")
    parameters = {name: value.detach() for name, value in layer.named_parameters()}
    x, h = torch.randn(5, 2, 3), torch.randn(1, 2, 4)
    with torch.no_grad():
        outputs, _ = layer(x, h)

    def build(x: Any, h: Any) -> Any:
        return mb.rnn(
            x=x,
            initial_h=h,
            weight_ih=parameters["weight_ih_l0"].numpy(),
            weight_hh=parameters["weight_hh_l0"].numpy(),
            bias=(parameters["bias_ih_l0"] + parameters["bias_hh_l0"]).numpy(),
            activation="relu",
            output_sequence=True,
        )[0]

    got = run(build, {"x": x.numpy(), "h": h[0].numpy()})[0]
    np.testing.assert_allclose(got, outputs.numpy(), atol=2e-6)  # torch ran in fp32

"""scale-residual in detail: what a stream is made of, how much it is scaled, what is written, and every refusal."""

# The bodies of programs are lambdas of as many parameters as they have inputs, for which no one type can be written.
# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from milopt.errors import PassError
from milopt.mil import Program, constant, mb, operations, target, types
from milopt.package import load
from milopt.passes.residual import Plan, ScaleResidual, plans
from milopt.reports import Report

from .refusals import body, program_of
from .support import op_types

F16: Any = np.float16
FP16, FP32, INT32 = types.fp16, types.fp32, types.int32
EYE: Any = np.eye(4, dtype=F16)
LARGE = {"sum": 40000.0}


def norm(x: Any, name: str = "norm") -> Any:
    return mb.layer_norm(x=x, axes=[-1], epsilon=F16(2.0**-10), name=name)


def layer(x: Any, name: str = "layer", **given: Any) -> Any:
    return mb.linear(x=x, weight=mb.const(val=EYE * 2, name=f"{name}_w"), **given, name=name)


def program(build: Callable[..., Any], *, dtype: type = FP16, inputs: int = 2) -> Program:
    """``build`` of inputs of shape (1, 3, 4)."""
    return program_of(build, *[((1, 3, 4), dtype)] * inputs)


def planned(made: Program, largest: dict[str, float] | None = None, limit: float = 32768.0) -> list[Plan]:
    return list(plans(made.functions["main"], largest or LARGE, limit))


def one(made: Program, largest: dict[str, float] | None = None, limit: float = 32768.0) -> Plan:
    (plan,) = planned(made, largest, limit)
    return plan


def why(made: Program, largest: dict[str, float] | None = None) -> tuple[str, str]:
    found = one(made, largest).why
    assert found is not None
    at: Any = found.at
    return str(found), at.name


def plain(x: Any, y: Any) -> Any:
    return norm(mb.add(x=x, y=layer(y), name="sum"), "out")


@pytest.mark.parametrize(
    ("peak", "limit", "power"),
    [
        (32769.0, 32768.0, 1),
        (65536.0, 32768.0, 1),
        (65537.0, 32768.0, 2),
        (100.0, 1.0, 7),
        (128.0, 1.0, 7),
    ],
)
def test_how_much_it_is_scaled(peak: float, limit: float, power: int) -> None:
    plan = one(program(plain), {"sum": peak}, limit)
    assert (plan.peak, plan.power, plan.why, plan.var.name) == (peak, power, None, "sum")


def test_sums_within_the_limit_are_no_streams() -> None:
    assert planned(program(plain), {"sum": 32768.0}) == []
    assert planned(program(plain), {"other": 40000.0}) == []

    def product(x: Any, y: Any) -> Any:
        return norm(mb.mul(x=x, y=y, name="sum"), "out")

    assert planned(program(product)) == []

    def wide(x: Any, y: Any) -> Any:
        return mb.layer_norm(x=mb.add(x=x, y=y, name="sum"), axes=[-1], epsilon=np.float32(1e-5), name="out")

    assert planned(program(wide, dtype=FP32)) == []


def names(values: Any) -> list[str]:
    return [var.name for var in values]


def test_what_a_stream_is_made_of() -> None:
    """Sums of sums, what changes their shape alone, and the norms; leaves are what is added to it."""

    def build(x: Any, y: Any) -> Any:
        first = mb.add(x=x, y=layer(norm(y, "before"), "down"), name="sum")
        moved = mb.reshape(x=mb.transpose(x=first, perm=[0, 2, 1], name="turned"), shape=[1, 3, 4], name="moved")
        second = mb.sub(x=moved, y=y, name="second")
        return norm(second, "one"), norm(first, "two")

    plan = one(program(build), {"sum": 40000.0, "second": 70000.0})
    assert set(names(plan.stream.values)) == {"sum", "turned", "moved", "second"}
    assert {(op.name, at): var.name for (op, at), var in plan.stream.leaves.items()} == {
        ("sum", "x"): "x",
        ("sum", "y"): "down",
        ("second", "y"): "y",
    }
    assert {op.name for op in plan.stream.layer_norms} == {"one", "two"}
    assert (plan.peak, plan.power) == (70000.0, 2)
    assert [(op.name, name, float(value)) for op, name, value in plan.epsilons] == [
        (op.name, "epsilon", 2.0**-14) for op in plan.stream.layer_norms
    ]
    assert {"sum", "second", "down"} <= set(names(plan.repaired()))
    assert "x" not in names(plan.repaired())


def test_streams_are_found_once() -> None:
    def build(x: Any, y: Any) -> Any:
        first = mb.add(x=x, y=y, name="sum")
        second = mb.add(x=first, y=y, name="second")
        other = mb.add(x=norm(first), y=x, name="other")
        return norm(second, "one"), norm(other, "two")

    found = planned(program(build), {"sum": 40000.0, "second": 50000.0, "other": 90000.0})
    assert [(plan.var.name, plan.peak) for plan in found] == [("sum", 50000.0), ("other", 90000.0)]


FLOWS: dict[str, tuple[Callable[..., Any], str, str]] = {
    "tanh": (
        lambda x, y: mb.tanh(x=mb.add(x=x, y=y, name="sum"), name="out"),
        "the stream flows into tanh, which is no norm",
        "out",
    ),
    "a product": (
        lambda x, y: mb.mul(x=mb.add(x=x, y=y, name="sum"), y=y, name="out"),
        "the stream flows into mul, which is no norm",
        "out",
    ),
    "a layer": (
        lambda x, y: norm(layer(mb.add(x=x, y=y, name="sum"), "other"), "out"),
        "the stream flows into linear, which is no norm",
        "other",
    ),
    "an output": (lambda x, y: mb.add(x=x, y=y, name="sum"), "the stream is an output", "sum"),
    "an output on the way": (
        lambda x, y: (mb.identity(x=(s := mb.add(x=x, y=y, name="sum")), name="given"), norm(s, "out")),
        "the stream is an output",
        "given",
    ),
    "a sum that goes elsewhere": (
        lambda x, y: (norm(s := mb.add(x=x, y=y, name="sum"), "out"), mb.exp(x=mb.add(x=s, y=y), name="other")),
        "the stream flows into exp, which is no norm",
        "other",
    ),
    "the weights of a norm": (
        lambda x, y: mb.concat(values=(mb.add(x=x, y=y, name="sum"), y), axis=1, name="out"),
        "the stream flows into concat, which is no norm",
        "out",
    ),
}


@pytest.mark.parametrize("name", FLOWS)
def test_where_a_stream_may_not_flow(name: str) -> None:
    build, reason, place = FLOWS[name]
    made = program(build)
    assert why(made) == (reason, place)
    plan = one(made)
    assert (list(plan.repaired()), plan.power, plan.epsilons) == ([], 0, [])


def test_epsilons_that_are_no_numbers_any_more() -> None:
    def build(x: Any, y: Any) -> Any:
        return mb.layer_norm(
            x=mb.add(x=x, y=y, name="sum"), axes=[-1], epsilon=mb.const(val=F16(2.0**-24), name="eps"), name="out"
        )

    assert why(program(build)) == (
        "its epsilon 5.96e-08 times 0.25 is no fp16 number: run fp16-safe-norm first",
        "eps",
    )


def rms(x: Any, *, eps: float = 2.0**-8, outside: float = 0.0, name: str = "out") -> Any:
    mean = mb.reduce_mean(x=mb.mul(x=x, y=x, name="squares"), axes=[-1], keep_dims=True)
    root = mb.sqrt(x=mb.add(x=mean, y=F16(eps)))
    if outside:
        root = mb.add(x=root, y=F16(outside))
    return mb.real_div(x=x, y=root, name=name)


def test_norms_that_are_spelled_out() -> None:
    """What stands inside of the root goes with the square of the scale; the norm's own sums are no streams."""
    made = program(lambda x, y: rms(mb.add(x=x, y=layer(y), name="sum")))
    largest = {op.outputs[0].name: 70000.0 for op in operations(made.functions["main"]) if op.outputs}
    plan = one(made, largest)
    assert (plan.var.name, plan.power, plan.why) == ("sum", 2, None)
    assert [float(value) for _, _, value in plan.epsilons] == [2.0**-12]
    assert [root.name for root in plan.stream.found] == ["out"]


def run(made: Program, limit: float, **options: Any) -> Report:
    report = ScaleResidual(limit, **options).run(load(made))
    made.validate()
    return report


def steady(build: Callable[[Any], Any], value: float = 6.0) -> Program:
    """``build`` of a value that is 6 everywhere, whatever the inputs are."""
    table: Any = np.full((5, 4), value, F16)

    @mb.program(input_specs=[mb.TensorSpec((3,), INT32)], opset_version=target.iOS17)
    def made(ids: Any) -> Any:
        return build(mb.gather(x=mb.const(val=table, name="table"), indices=ids, axis=0, name="rows"))

    return made


def lines(made: Program) -> list[str]:
    return [line.partition(": ")[2] for line in body(made)][1:]


def test_a_leaf_that_no_layer_makes_is_multiplied() -> None:
    made = steady(lambda x: norm(mb.add(x=x, y=mb.relu(x=x), name="sum"), "out"))
    report = run(made, 4.0)
    assert report.notes == ["main: the stream of 1 values around 'sum' reaches 12, scaled by 2**-2"]
    assert (report.applied, report.tried) == (1, 1)
    assert lines(made) == [
        "fp16[3, 4] = relu(x=%0)",
        "fp16[3, 4] = mul(x=%0, y=fp16(0.25))",
        "fp16[3, 4] = mul(x=%1, y=fp16(0.25))",
        "fp16[3, 4] = add(x=%2, y=%3)",
        "fp16[3, 4] = layer_norm(x=%4, axes=[-1], epsilon=fp16(6.104e-05))",
    ]
    scaled = [op.name for op in operations(made.functions["main"]) if op.op_type == "mul"]
    assert scaled[0] == "rows_scaled"


def values_of(made: Program, name: str) -> dict[str, Any]:
    op = next(op for op in operations(made.functions["main"]) if op.name == name)
    return {key: constant(var) for key, var in op.inputs.items() if constant(var) is not None}


def test_layers_and_constants_take_the_scale_in() -> None:
    bias: Any = np.arange(4, dtype=F16)

    def build(x: Any) -> Any:
        down = layer(mb.relu(x=x), "down", bias=bias)
        other = layer(mb.exp(x=mb.mul(x=x, y=F16(0))), "plain")
        total = mb.add(x=mb.add(x=down, y=other, name="first"), y=mb.const(val=np.full(4, 8, F16), name="shift"))
        return norm(total, "out")

    made = steady(build)
    assert run(made, 16.0).applied == 1
    down, plain_layer = values_of(made, "down"), values_of(made, "plain")
    np.testing.assert_array_equal(down["weight"], EYE)
    np.testing.assert_array_equal(down["bias"], bias / 2)
    np.testing.assert_array_equal(plain_layer["weight"], EYE)
    assert not plain_layer["bias"].any()
    assert "mul" not in op_types(made)[4:]
    held = {op.name for op in operations(made.functions["main"]) if op.op_type == "const"}
    assert {"down_w_scaled", "plain_w_scaled", "shift_scaled"} <= held
    assert not {"down_w", "plain_w", "shift"} & held


def test_a_layer_behind_moves_takes_the_scale_in() -> None:
    def build(x: Any) -> Any:
        down = mb.reshape(x=mb.transpose(x=layer(mb.relu(x=x), "down"), perm=[1, 0]), shape=[3, 4])
        return norm(mb.add(x=x, y=down, name="sum"), "out")

    made = steady(build)
    assert run(made, 16.0).applied == 1
    np.testing.assert_array_equal(values_of(made, "down")["weight"], EYE)


def test_weights_that_others_use_stay() -> None:
    """The operand of the layer is multiplied instead, and its bias all the same."""

    def build(x: Any) -> Any:
        weight = mb.const(val=EYE * 2, name="tied")
        down = mb.linear(x=mb.relu(x=x), weight=weight, bias=np.ones(4, F16), name="down")
        other = mb.linear(x=mb.exp(x=mb.mul(x=x, y=F16(0))), weight=weight, name="other")
        return norm(mb.add(x=x, y=down, name="sum"), "out"), mb.relu(x=other, name="second")

    made = steady(build)
    assert run(made, 16.0).applied == 1
    down = next(op for op in operations(made.functions["main"]) if op.name == "down")
    np.testing.assert_array_equal(constant(down.inputs["weight"]), EYE * 2)
    np.testing.assert_array_equal(constant(down.inputs["bias"]), np.full(4, 0.5))
    assert down.inputs["x"].op.op_type == "mul"
    assert float(constant(down.inputs["x"].op.inputs["y"])) == 0.5


@pytest.mark.parametrize("used", ["otherwise", "as an output"])
def test_layers_whose_results_are_used_otherwise_stay(used: str) -> None:
    def build(x: Any) -> Any:
        down = layer(mb.relu(x=x), "down")
        other = mb.exp(x=down, name="more") if used == "otherwise" else mb.relu(x=x, name="more")
        made = norm(mb.add(x=x, y=down, name="sum"), "out")
        return (made, other) if used == "otherwise" else (made, down)

    made = steady(build)
    assert run(made, 16.0).applied == 1
    np.testing.assert_array_equal(values_of(made, "down")["weight"], EYE * 2)
    total = next(op for op in operations(made.functions["main"]) if op.name == "sum")
    assert total.inputs["y"].op.op_type == "mul"


def test_a_layer_that_is_added_twice_is_scaled_once() -> None:
    def build(x: Any) -> Any:
        down = layer(mb.relu(x=x), "down")
        return norm(mb.add(x=mb.add(x=x, y=down, name="sum"), y=down, name="second"), "out")

    made = steady(build)
    assert run(made, 16.0).applied == 1
    np.testing.assert_array_equal(values_of(made, "down")["weight"], EYE)  # 6 + 12 + 12 is 30, and 30 / 2 is 15
    made = steady(build)
    assert run(made, 15.0).notes == ["main: the stream of 2 values around 'sum' reaches 30, scaled by 2**-1"]
    np.testing.assert_array_equal(values_of(made, "down")["weight"], EYE)


def test_what_is_noted_where_nothing_is_done() -> None:
    made = steady(lambda x: norm(mb.add(x=x, y=x, name="sum"), "out"))
    report = run(made, 12.0)
    assert (report.applied, report.tried) == (0, 0)
    assert report.notes == ["no need: no fp16 sum is beyond 12, the limit 12"]
    none = steady(lambda x: norm(x, "out"))
    assert run(none, 12.0).notes == ["no need: no fp16 sum is beyond 0, the limit 12"]
    refused = steady(lambda x: mb.tanh(x=mb.add(x=x, y=x, name="sum"), name="out"))
    report = run(refused, 8.0)
    assert (report.applied, report.tried, report.notes) == (0, 1, [])
    assert [(miss.reason, miss.place, miss.function) for miss in report.misses] == [
        ("the stream flows into tanh, which is no norm", "out", "main")
    ]


def test_files_that_can_not_be_read(tmp_path: Path) -> None:
    made = steady(lambda x: norm(mb.add(x=x, y=x, name="sum"), "out"))
    broken = tmp_path / "broken.npz"
    broken.write_bytes(b"none")
    for path in (tmp_path / "missing.npz", broken):
        with pytest.raises(PassError, match=f"^scale-residual: can't read {path}: "):
            run(made, 4.0, inputs=str(path))


def test_options() -> None:
    for limit in (0.0, -1.0):
        with pytest.raises(PassError, match=f"scale-residual: limit is above 0, not {limit:g}"):
            ScaleResidual(limit)
    assert ScaleResidual(0.5).limit == 0.5
    assert (ScaleResidual().limit, ScaleResidual().trials, ScaleResidual().seed) == (32768.0, 1, 0)


def test_sums_before_the_large_one_belong_to_its_stream() -> None:
    """Also behind what changes their shape; what is moved and no sum is a leaf."""

    def build(x: Any, y: Any) -> Any:
        first = mb.add(x=x, y=y, name="first")
        moved = mb.transpose(x=mb.transpose(x=first, perm=[0, 2, 1], name="turned"), perm=[0, 2, 1], name="moved")
        total = mb.add(x=moved, y=mb.transpose(x=x, perm=[0, 1, 2], name="leaf"), name="sum")
        return norm(total, "out")

    plan = one(program(build))
    assert set(names(plan.stream.values)) == {"first", "turned", "moved", "sum"}
    assert {(op.name, at): var.name for (op, at), var in plan.stream.leaves.items()} == {
        ("first", "x"): "x",
        ("first", "y"): "y",
        ("sum", "y"): "leaf",
    }


def test_the_options_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: dict[str, Any] = {}

    def ranges(model: Any, **given: Any) -> dict[Any, Any]:
        heard.update(given)
        return {}

    monkeypatch.setattr("milopt.numerics.ranges.value_ranges", ranges)
    made = steady(lambda x: norm(mb.add(x=x, y=x, name="sum"), "out"))
    assert run(made, 4.0, trials=3, seed=7).notes == ["no need: no fp16 sum is beyond 0, the limit 4"]
    assert heard == {"inputs": [], "trials": 3, "seed": 7}

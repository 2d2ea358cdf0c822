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
from milopt.multifunction import merge
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
    assert (list(plan.repaired()), plan.peak, plan.power, plan.epsilons) == ([], 0.0, 0, [])


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
        down = layer(mb.relu(x=x), "down", bias=mb.const(val=bias, name="bias"))
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
    assert {"down_w_scaled", "plain_w_scaled", "shift_scaled", "out_epsilon_scaled", "bias_scaled"} <= held
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
    several = steady(lambda x: norm(mb.add(x=mb.add(x=x, y=x), y=mb.mul(x=x, y=F16(-1))), "out"))
    assert run(several, 12.0).notes == ["no need: no fp16 sum is beyond 12, the limit 12"]
    wide = steady(lambda x: mb.add(x=(y := mb.cast(x=x, dtype="fp32")), y=y, name="out"))
    assert run(wide, 4.0).notes == ["no need: no fp16 sum is beyond 0, the limit 4"]
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
    for path, why in ((tmp_path / "missing.npz", r"\[Errno 2\] No such file"), (broken, "")):
        with pytest.raises(PassError, match=f"^scale-residual: can't read {path}: {why}"):
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


def mean_of(x: Any) -> Any:
    return mb.reduce_mean(x=mb.mul(x=x, y=x), axes=[-1], keep_dims=True)


def safe(x: Any) -> Any:
    """What fp16-safe-norm writes."""
    largest = mb.maximum(x=mb.reduce_max(x=mb.abs(x=x), axes=[-1], keep_dims=True), y=F16(2.0**-5))
    scale = mb.real_div(x=F16(4), y=largest)
    mean = mean_of(mb.mul(x=x, y=scale))
    part = mb.mul(x=scale, y=F16(2.0**-6))
    total = mb.add(x=mean, y=mb.mul(x=mb.mul(x=part, y=part), y=F16(2.0**-3)))
    return mb.mul(x=x, y=mb.mul(x=scale, y=mb.rsqrt(x=total, epsilon=F16(0))), name="out")


# the norm, and the inputs that change, with what they become at a scale of a quarter
EPSILONS: dict[str, tuple[Callable[[Any], Any], list[tuple[str, str, float]]]] = {
    "inside": (
        lambda x: mb.mul(x=x, y=mb.rsqrt(x=mean_of(x), epsilon=F16(2.0**-8)), name="out"),
        [("rsqrt", "epsilon", 2.0**-12)],
    ),
    "added and inside": (
        lambda x: mb.mul(x=x, y=mb.rsqrt(x=mb.add(x=mean_of(x), y=F16(2.0**-7)), epsilon=F16(2.0**-8)), name="out"),
        [("add", "y", 2.0**-11), ("rsqrt", "epsilon", 2.0**-12)],
    ),
    "added, and zero inside": (
        lambda x: mb.mul(x=x, y=mb.rsqrt(x=mb.add(x=mean_of(x), y=F16(2.0**-7)), epsilon=F16(0)), name="out"),
        [("add", "y", 2.0**-11)],
    ),
    "outside": (
        lambda x: mb.mul(x=x, y=mb.inverse(x=mb.sqrt(x=mean_of(x)), epsilon=F16(2.0**-8)), name="out"),
        [("inverse", "epsilon", 2.0**-10)],
    ),
    "as fp16-safe-norm writes it": (safe, [("mul", "y", 2.0**-8)]),
}


@pytest.mark.parametrize("case", EPSILONS)
def test_epsilons_go_with_the_scale_or_its_square(case: str) -> None:
    build, wanted = EPSILONS[case]
    plan = one(program(lambda x, y: build(mb.add(x=x, y=y, name="sum"))), {"sum": 70000.0})
    assert (plan.power, plan.why) == (2, None)
    assert sorted((op.op_type, name, float(value)) for op, name, value in plan.epsilons) == wanted


def test_layers_behind_moves_are_repaired() -> None:
    def build(x: Any, y: Any) -> Any:
        moved = mb.reshape(x=mb.transpose(x=layer(y), perm=[0, 2, 1], name="turned"), shape=[1, 3, 4], name="moved")
        return norm(mb.add(x=x, y=moved, name="sum"), "out")

    assert names(one(program(build)).repaired()) == ["sum", "moved", "turned", "layer"]


def test_each_function_has_its_own_magnitudes() -> None:
    def build(value: float) -> Any:
        return load(steady(lambda x: norm(mb.add(x=x, y=x, name="sum"), "out"), value))

    report = ScaleResidual(16.0).run(merge({"large": build(16.0), "small": build(2.0)}, default="large"))
    assert report.notes == ["large: the stream of 1 values around 'sum' reaches 32, scaled by 2**-1"]


def flowing(build: Callable[[Any], Any], dtype: type = FP16) -> Callable[..., Any]:
    eps: Any = F16(2.0**-10) if dtype is FP16 else np.float32(2.0**-10)

    def body(x: Any, y: Any) -> Any:
        made: Any = build(mb.add(x=x, y=y, name="sum"))
        several = made if isinstance(made, (list, tuple)) else [made]
        return [mb.layer_norm(x=each, axes=[-1], epsilon=eps) for each in several]

    return body


# each takes s x to s times what it takes x to
MOVES: dict[str, Callable[[Any], Any]] = {
    "expand_dims": lambda x: mb.expand_dims(x=x, axes=[1]),
    "gather": lambda x: mb.gather(x=x, indices=np.array([2, 0], np.int32), axis=1),
    "identity": lambda x: mb.identity(x=x),
    "reduce_mean": lambda x: mb.reduce_mean(x=x, axes=[1], keep_dims=True),
    "reshape": lambda x: mb.reshape(x=x, shape=[3, 4]),
    "slice_by_index": lambda x: mb.slice_by_index(x=x, begin=[0, 1, 0], end=[1, 3, 4]),
    "slice_by_size": lambda x: mb.slice_by_size(x=x, begin=[0, 1, 0], size=[1, 2, 4]),
    "split": lambda x: mb.split(x=x, num_splits=2, axis=2),
    "squeeze": lambda x: mb.squeeze(x=x, axes=[0]),
    "transpose": lambda x: mb.transpose(x=x, perm=[0, 2, 1]),
}


@pytest.mark.parametrize("kind", MOVES)
def test_a_stream_flows_through_what_is_linear(kind: str) -> None:
    plan = one(program(flowing(MOVES[kind])))
    assert (plan.why, len(plan.stream.values)) == (None, 3 if kind == "split" else 2)


def test_a_stream_flows_through_casts() -> None:
    plan = one(program(flowing(lambda x: mb.cast(x=x, dtype="fp32"), FP32)))
    assert (plan.why, plan.power, len(plan.stream.values)) == (None, 1, 2)


def test_values_that_were_not_measured_count_as_nothing() -> None:
    assert planned(program(plain), {"other": 9.0}, 0.5) == []
    plan = one(program(flowing(MOVES["transpose"])), {"sum": 0.75}, 0.5)
    assert (plan.peak, plan.power) == (0.75, 1)


def test_layers_before_layers_are_not_repaired() -> None:
    def build(x: Any, y: Any) -> Any:
        return norm(mb.add(x=x, y=layer(layer(y, "first"), "second"), name="sum"), "out")

    assert names(one(program(build)).repaired()) == ["sum", "second"]


def test_a_layer_of_which_more_than_a_move_is_used_stays() -> None:
    def build(x: Any) -> Any:
        down = layer(mb.relu(x=x), "down")
        moved = mb.reshape(x=down, shape=[3, 4], name="moved")
        return norm(mb.add(x=x, y=moved, name="sum"), "out"), mb.exp(x=down, name="other")

    made = steady(build)
    assert run(made, 16.0).applied == 1
    np.testing.assert_array_equal(values_of(made, "down")["weight"], EYE * 2)


def test_compressed_weights_stay() -> None:
    def build(x: Any) -> Any:
        weight = mb.constexpr_affine_dequantize(
            quantized_data=np.eye(4, dtype=np.int8), zero_point=np.int8(0), scale=F16(2), axis=0
        )
        return norm(mb.add(x=x, y=mb.linear(x=mb.relu(x=x), weight=weight, name="down"), name="sum"), "out")

    made = steady(build)
    assert run(made, 16.0).applied == 1
    assert op_types(made).count("mul") == 2


def test_kernels_without_a_bias_and_weights_of_zeros_take_the_scale_in() -> None:
    kernel: Any = (EYE * 2).reshape(4, 4, 1)

    def build(x: Any) -> Any:
        y = mb.expand_dims(x=mb.transpose(x=x, perm=[1, 0]), axes=[0])
        down = mb.conv(x=mb.relu(x=y), weight=kernel, name="down")
        nothing = mb.conv(x=mb.exp(x=y), weight=kernel * F16(0), bias=mb.const(val=EYE[0] * 0, name="b"), name="none")
        return norm(mb.add(x=mb.add(x=y, y=down, name="sum"), y=nothing), "out")

    made = steady(build)
    assert run(made, 16.0).applied == 1
    np.testing.assert_array_equal(values_of(made, "down")["weight"], kernel / 2)
    assert op_types(made).count("mul") == 1  # of x, the embedding
    assert "b" in {op.name for op in operations(made.functions["main"])}


def test_how_much_of_a_weight_may_be_lost() -> None:
    """A millionth of its norm; three millionths are kept, by a product before the layer."""

    def weight(large: float) -> Any:
        array: Any = np.zeros((4, 4), F16)
        array[0, 0], array[1, 1] = (1 + 2.0**-10) * 2.0**-14, large  # half of it is a subnormal number
        return array

    for large, wanted, kept in ((1.25 * 2.0**-6, 3e-6, True), (2.0**-4, 1e-6, False)):
        array = weight(large)
        exact = array.astype(np.float64) / 2
        lost = np.linalg.norm(exact.astype(F16) - exact) / np.linalg.norm(exact)
        assert wanted / 1.1 < lost < wanted * 1.1

        def build(x: Any, array: Any = array) -> Any:
            return norm(mb.add(x=x, y=mb.linear(x=mb.relu(x=x), weight=array, name="down"), name="sum"), "out")

        made = steady(build)
        assert run(made, 4.0).applied == 1
        assert (values_of(made, "down")["weight"][1, 1] == F16(large)) == kept

"""What a run without listeners executes is what the ops say: the same bits, fewer calls."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from milopt.errors import EvaluationError
from milopt.interpreter import Plan, Precision, compile
from milopt.interpreter.values import Array
from milopt.mil import Program, mb
from milopt.testing import strategies as mil
from tests.interpreter.support import normals, program


class Silent:
    """Listens, so that every op is executed by itself."""


def executed(plan: Plan) -> list[str]:
    return [instruction.step.op_type for instruction in plan.body.instructions]


def observed(plan: Plan, inputs: dict[str, Array]) -> dict[str, torch.Tensor]:
    return plan.run(inputs, listeners=[Silent()])


def assert_same(made: Program, inputs: dict[str, Array], precision: Precision = "declared") -> Plan:
    """The same bits with and without a listener, at the first run and at the next ones."""
    plan = compile(made, precision=precision)
    expected = observed(plan, inputs)
    for _ in range(3):
        for name, value in plan.run(inputs).items():
            torch.testing.assert_close(value, expected[name], rtol=0, atol=0, equal_nan=True)
    return plan


@given(made=mil.programs(ops=mil.MOVEMENT | {"add", "mul"}, max_ops=12), seed=st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_any_program_gives_the_same_bits(made: Program, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shapes = {name: compile(made).inputs[name].shape or () for name in compile(made).inputs}
    inputs = {
        name: rng.standard_normal([int(size) for size in shape]).astype(np.float32) for name, shape in shapes.items()
    }
    assert_same(made, inputs)


def test_views_of_views_are_taken_in_one_stride() -> None:
    def build(x: Any) -> Any:
        y = mb.transpose(x=mb.relu(x=x), perm=[1, 0, 2])
        y = mb.slice_by_index(x=mb.expand_dims(x=y, axes=[0]), begin=[0, 1, 0, 0], end=[1, 3, 2, 4])
        return mb.relu(x=mb.squeeze(x=y, axes=[0]), name="out")

    plan = assert_same(program(build, {"x": normals(2, 3, 4)}), {"x": normals(2, 3, 4)})
    assert executed(plan) == ["relu", "squeeze", "relu"]


def test_a_reshape_that_copies_does_so_once_for_all_its_readers() -> None:
    def build(x: Any) -> Any:
        flat = mb.reshape(x=mb.transpose(x=mb.relu(x=x), perm=[1, 0]), shape=[3, 2])
        return [mb.relu(x=mb.transpose(x=flat, perm=[1, 0]), name=f"out{i}") for i in range(2)]

    plan = assert_same(program(build, {"x": normals(2, 3)}), {"x": normals(2, 3)})
    assert executed(plan).count("reshape") == 1


def test_a_reversed_slice_is_no_view() -> None:
    def build(x: Any) -> Any:
        back = mb.slice_by_index(x=x, begin=[-1, 0], end=[-3, 3], stride=[-1, 1], end_mask=[True, True])
        return [mb.relu(x=mb.transpose(x=back, perm=[1, 0]), name=f"out{i}") for i in range(2)]

    plan = assert_same(program(build, {"x": normals(2, 3)}), {"x": normals(2, 3)})
    assert executed(plan).count("slice_by_index") == 1


def test_other_layouts_of_an_input_are_told_apart() -> None:
    def build(x: Any) -> Any:
        return mb.mul(x=mb.reshape(x=mb.transpose(x=x, perm=[1, 0]), shape=[6]), y=2.0, name="out")

    plan = compile(program(build, {"x": normals(2, 3)}))
    dense, strided = torch.as_tensor(normals(2, 3)), torch.as_tensor(normals(3, 2, seed=1)).mT
    for _ in range(2):
        for x in (dense, strided):
            assert torch.equal(plan.run({"x": x})["out"], 2 * x.T.reshape(6))


def test_an_error_within_a_chain_names_its_op() -> None:
    def build(x: Any) -> Any:
        y = mb.reshape(x=mb.transpose(x=x, perm=[1, 0], name="turn"), shape=[6], name="flat")
        return mb.relu(x=mb.slice_by_index(x=y, begin=[0], end=[4], name="part"), name="out")

    made = program(build, {"x": normals(2, 3)})
    plan = compile(made)
    (chain,) = (each for each in plan.body.instructions if each.step.name == "part")
    turn = next(step for step in plan.body.steps if step.name == "flat")
    turn.call.keywords["shape"] = (7,)
    assert chain.step.op_type == "slice_by_index"
    with pytest.raises(EvaluationError, match=r"^reshape 'flat': .*inputs: x float32\[3, 2\]"):
        plan.run({"x": normals(2, 3)})


def attention(
    heads: int = 3, groups: int = 2, mask: Any = None, keep: bool = False
) -> tuple[Program, dict[str, Array]]:
    """Keys and values (1, heads, 5, 8), repeated for ``groups`` query heads each; with the repeated keys, if kept."""
    shapes = {"q": (1, heads * groups, 4, 8), "k": (1, heads, 5, 8), "v": (1, heads, 5, 8)}

    def repeated(x: Any) -> Any:
        wide = mb.tile(x=mb.expand_dims(x=x, axes=[2]), reps=[1, 1, groups, 1, 1])
        return mb.reshape(x=wide, shape=[1, heads * groups, 5, 8])

    def build(q: Any, k: Any, v: Any) -> Any:
        key = repeated(k)
        given = {} if mask is None else {"attn_mask": mask}
        out = mb.scaled_dot_product_attention(query=q, key=key, value=repeated(v), name="out", **given)
        return [out, mb.identity(x=key, name="key")] if keep else out

    inputs = {name: normals(*shape, seed=seed) for seed, (name, shape) in enumerate(shapes.items())}
    return program(build, inputs), inputs


MASKS = {
    "none": None,
    "one row for all": normals(1, 1, 1, 5, seed=7),
    "a row per query": normals(1, 1, 4, 5, seed=7),
    "a row per head": normals(1, 6, 4, 5, seed=7),
    "rank 2": normals(4, 5, seed=7),
    "bool": np.tril(np.ones((4, 5), bool)),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
def test_attention_of_groups_repeats_nothing(mask: Any) -> None:
    made, inputs = attention(mask=mask)
    plan = compile(made, precision="float64")
    assert "tile" not in executed(plan)
    assert "tile" in [step.op_type for step in plan.body.steps]
    # float64 sums of 8 products in another order
    torch.testing.assert_close(plan.run(inputs)["out"], observed(plan, inputs)["out"], rtol=1e-12, atol=1e-12)


def test_repeated_keys_that_are_asked_for_are_made() -> None:
    made, inputs = attention(keep=True)
    plan = compile(made, precision="float64")
    assert executed(plan).count("tile") == 1
    np.testing.assert_array_equal(plan.run(inputs)["key"].numpy(), np.repeat(inputs["k"], 2, axis=1))


def test_heads_that_are_repeated_as_a_whole_are_not_groups() -> None:
    """``tile`` of (1, 1, H, S, D) over its first axes repeats h0 h1 h0 h1, not h0 h0 h1 h1."""
    shapes = {"q": (1, 6, 4, 8), "k": (1, 3, 5, 8), "v": (1, 3, 5, 8)}

    def build(q: Any, k: Any, v: Any) -> Any:
        key, value = (
            mb.reshape(x=mb.tile(x=mb.expand_dims(x=x, axes=[1]), reps=[1, 2, 1, 1, 1]), shape=[1, 6, 5, 8])
            for x in (k, v)
        )
        return mb.scaled_dot_product_attention(query=q, key=key, value=value, name="out")

    inputs = {name: normals(*shape, seed=seed) for seed, (name, shape) in enumerate(shapes.items())}
    plan = assert_same(program(build, inputs), inputs)
    assert executed(plan).count("tile") == 2


@pytest.mark.parametrize(
    ("length", "calls"),
    [(1, ["conv", "conv", "transpose"]), (3, ["expand_dims", "conv", "conv", "transpose", "transpose"])],
)
def test_a_convolution_among_reshapes_of_one_row(length: int, calls: list[str]) -> None:
    """(B,S,C) -> (B,C,1,S) -> conv -> (B,S,O), as ``linear-to-conv`` writes it.

    Of a single token only the result that is an output before its reshapes, too, needs a view.
    """

    def build(x: Any) -> Any:
        y = mb.expand_dims(x=mb.transpose(x=mb.relu(x=x), perm=[0, 2, 1]), axes=[2])
        outs = [mb.conv(x=y, weight=normals(5, 4, 1, 1, seed=i), bias=normals(5, seed=i)) for i in range(2)]
        flat = [
            mb.transpose(x=mb.squeeze(x=out, axes=[2]), perm=[0, 2, 1], name=f"row{i}") for i, out in enumerate(outs)
        ]
        return [mb.relu(x=flat[0], name="out"), flat[1], outs[1]]

    inputs = {"x": normals(1, length, 4)}
    plan = compile(program(build, inputs), precision="float64")
    for name, value in plan.run(inputs).items():
        # float64 sums of 4 products in another order
        torch.testing.assert_close(value, observed(plan, inputs)[name], rtol=1e-13, atol=1e-13)
    assert executed(plan) == ["relu", *calls, "relu"]


EDGES = [0.0, -0.0, 1.0, -3.0, 2**-24, -(2.0**-14), 1000.0, 65504.0, -65504.0, 0.1, np.inf, -np.inf, np.nan]


@pytest.mark.parametrize("op", ["add", "sub", "mul", "real_div", "maximum"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_numbers_have_the_bits_of_tensors(op: str, dtype: Any) -> None:
    def build(x: Any, y: Any) -> Any:
        first = getattr(mb, op)(x=mb.square(x=x), y=mb.tanh(x=y))
        return mb.exp(x=getattr(mb, op)(x=first, y=dtype(1.7)), name="out")

    ones = np.ones((1, 1), dtype)
    plan = compile(program(build, {"x": ones, "y": ones}))
    assert executed(plan) == ["square", "tanh", op, op, "exp"]
    for x in EDGES:
        for y in EDGES:
            inputs = {"x": np.full((1, 1), x, dtype), "y": np.full((1, 1), y, dtype)}
            expected = observed(plan, inputs)["out"]
            torch.testing.assert_close(plan.run(inputs)["out"], expected, rtol=0, atol=0, equal_nan=True)


@given(
    made=mil.programs(ops=mil.ELEMENTWISE | mil.REDUCTION, max_ops=12, max_side=2, dtypes=["fp16"]),
    seed=st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_programs_on_few_elements_give_the_same_bits(made: Program, seed: int) -> None:
    rng = np.random.default_rng(seed)
    inputs = {
        name: (300 * rng.standard_normal([int(size) for size in info.shape or ()])).astype(np.float16)
        for name, info in compile(made).inputs.items()
    }
    assert_same(made, inputs)


def test_the_norm_of_one_token_is_computed_with_numbers() -> None:
    """What fp16-safe-norm writes: of the ops on one element, none makes a tensor but rsqrt."""
    half = np.float16

    def build(x: Any) -> Any:
        largest = mb.maximum(x=mb.reduce_max(x=mb.abs(x=x), axes=[-1], keep_dims=True), y=half(0.004))
        scale = mb.real_div(x=half(4), y=largest)
        scaled = mb.mul(x=x, y=scale)
        mean = mb.reduce_mean(x=mb.mul(x=scaled, y=scaled), axes=[-1], keep_dims=True)
        part = mb.mul(x=scale, y=half(0.002))
        factor = mb.mul(x=scale, y=mb.rsqrt(x=mb.add(x=mean, y=mb.mul(x=part, y=part)), epsilon=half(0)))
        return mb.mul(x=mb.mul(x=x, y=factor), y=normals(1, 1, 8, dtype=np.float16), name="out")

    x = 100 * normals(1, 1, 8, dtype=np.float16)
    plan = assert_same(program(build, {"x": x}), {"x": x})
    values: list[Any] = []
    for instruction in plan.body.instructions:
        call = instruction.step.call
        values += [instruction.step.op_type] if call.func.__module__ == "milopt.interpreter.numbers" else []
    assert values == ["maximum", "real_div", "mul", "mul", "add", "mul"]


def test_a_number_that_is_an_output_or_is_reshaped_is_a_tensor() -> None:
    def build(x: Any) -> Any:
        y = mb.add(x=mb.square(x=x), y=np.float32(1))
        z = mb.mul(x=y, y=np.float32(3), name="kept")
        return [z, mb.concat(values=[y, z], axis=0, name="both"), mb.reshape(x=z, shape=[1, 1, 1], name="shaped")]

    assert_same(program(build, {"x": normals(1)}), {"x": normals(1)})


def test_numbers_of_an_op_with_several_results() -> None:
    """All that a split or a topk makes are there, whether they are read as numbers, as tensors, or not at all."""

    def build(x: Any) -> Any:
        first, second = mb.split(x=x, num_splits=2, axis=0)
        best, place = mb.topk(x=mb.add(x=first, y=second), k=1, axis=0)
        return [
            mb.mul(x=best, y=mb.sub(x=second, y=np.float32(3)), name="product"),
            mb.add(x=mb.cast(x=place, dtype="fp32"), y=first, name="sum"),
        ]

    x = normals(2)
    plan = assert_same(program(build, {"x": x}), {"x": x})
    product = (x[0] + x[1]) * (x[1] - 3)
    np.testing.assert_allclose(plan.run({"x": x})["product"].numpy(), [product], rtol=1e-6)

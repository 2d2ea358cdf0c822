"""Plans: snapshots of a function that check what goes in, what comes out, and what each op makes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from coremltools.converters.mil.mil import mil_list

from milopt.errors import EvaluationError, UnsupportedOps
from milopt.interpreter import Impls, Plan, Step, compile, compile_all, core, evaluate
from milopt.interpreter.impls import Tensor
from milopt.interpreter.values import Array
from milopt.mil import Program, get_new_symbol, mb, types
from tests.interpreter.support import Build, function, normals, program, run

X = normals(2, 3)
WEIGHT = normals(4, 3)


def affine() -> Program:
    def build(x: Any) -> Any:
        return mb.relu(x=mb.linear(x=x, weight=WEIGHT.copy(), bias=normals(4), name="scores"), name="out")

    return program(build, {"x": X})


def expected(x: Array) -> Array:
    scores: Array = x @ WEIGHT.T + normals(4)
    return scores.clip(0)


def close(got: torch.Tensor, want: Array) -> None:
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-5, atol=1e-6)  # fp32 sums of three products


def test_a_plan_is_a_snapshot() -> None:
    made = affine()
    plan = compile(made)
    block = made.functions["main"]
    ops = {op.op_type: op for op in block.operations}
    with block:
        replacement = mb.square(x=ops["linear"].outputs[0], before_op=ops["relu"], name="squared")
    block.replace_uses_of_var_after_op(ops["relu"], ops["relu"].outputs[0], replacement, force_replace=True)
    block.remove_ops([ops["relu"]])
    assert (evaluate(made, {"x": X})["out"] >= 0).all()
    assert not np.allclose(evaluate(made, {"x": X})["out"], expected(X), rtol=0.1)
    close(plan.run({"x": X})["out"], expected(X))


def test_two_runs_of_a_plan_are_equal_and_independent() -> None:
    plan = compile(affine())
    first = plan.run({"x": X})["out"].clone()
    close(plan.run({"x": 2 * X})["out"], expected(2 * X))
    assert torch.equal(plan.run({"x": X})["out"], first)


def test_inputs_and_weights_are_not_shared_with_outputs() -> None:
    weight = normals(2, 3)

    def build(x: Any) -> Any:
        return mb.reshape(x=x, shape=[6], name="input"), mb.transpose(x=weight, perm=[1, 0], name="weight")

    given = X.copy()
    outputs = compile(program(build, {"x": X})).run({"x": given})
    outputs["input"].numpy()[:] = 7
    outputs["weight"].numpy()[:] = 7
    np.testing.assert_array_equal(given, X)
    np.testing.assert_array_equal(weight, normals(2, 3))


def test_all_unsupported_ops_are_listed_before_anything_runs() -> None:
    def build(x: Any) -> Any:
        return mb.sin(x=mb.cos(x=mb.sin(x=x, name="first"), name="second"), name="third")

    lacking = Impls("lacking")
    for name in core:
        if name not in ("sin", "cos"):
            lacking(name)(core[name].function)
    with pytest.raises(UnsupportedOps, match=r"cos \(1x, e.g. 'second'\), sin \(2x, e.g. 'first'\)") as caught:
        compile(program(build, {"x": X}), impls=lacking)
    assert caught.value.ops == {"sin": ["first", "third"], "cos": ["second"]}


def test_unsupported_ops_of_all_functions_are_listed() -> None:
    made = affine()
    made.add_function("other", function(lambda x: mb.sin(x=mb.cos(x=x, name="wave"), name="out"), {"x": X}))
    lacking = Impls("lacking")
    for name in core:
        if name not in ("relu", "cos", "sin"):
            lacking(name)(core[name].function)
    with pytest.raises(UnsupportedOps) as caught:
        compile_all(made, impls=lacking)
    assert caught.value.ops == {"relu": ["out"], "cos": ["wave"], "sin": ["out"]}


def test_a_vector_times_a_batch_of_matrices() -> None:
    """coremltools declares (4,) for (3,) times (2, 3, 4)."""
    x, y = normals(3), normals(2, 3, 4, seed=1)
    (got,) = run(lambda x, y: mb.matmul(x=x, y=y), {"x": x, "y": y})
    np.testing.assert_allclose(got, x.astype(np.float64) @ y, rtol=1e-12)  # float64 sums of three products


def plan_of(inputs: dict[str, Any], build: Build) -> Plan:
    return compile(program(build, inputs))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, r"the call lacks 'x'; 'main' takes x fp32\[2, 3\], n int32\[1\]"),
        ({"x": X, "n": np.ones(1, np.int32), "z": X}, r"function 'main' has no 'z'; 'main' takes x fp32"),
        ({"x": X[:1], "n": np.ones(1, np.int32)}, r"input 'x' must be fp32\[2, 3\], got float32\[1, 3\]"),
        ({"x": X[0], "n": np.ones(1, np.int32)}, r"input 'x' must be fp32\[2, 3\], got float32\[3\]"),
        ({"x": X.astype(np.int32), "n": np.ones(1, np.int32)}, r"input 'x' must be fp32\[2, 3\], got int32\[2, 3\]"),
        ({"x": X, "n": np.ones(1, np.float32)}, r"input 'n' must be int32\[1\], got float32\[1\]"),
        ({"x": X, "n": np.ones(1, np.bool_)}, r"input 'n' must be int32\[1\], got bool\[1\]"),
        ({"x": X, "n": np.array([2**40])}, r"input 'n' must be int32\[1\], but holds values beyond int32"),
        ({"x": np.array(["a"]), "n": np.ones(1, np.int32)}, r"input 'x' must be fp32\[2, 3\], got an array of <U1"),
    ],
)
def test_wrong_inputs_get_one_line(inputs: dict[str, Any], message: str) -> None:
    plan = plan_of(
        {"x": X, "n": np.ones(1, np.int32)}, lambda x, n: mb.mul(x=x, y=mb.cast(x=n, dtype="fp32"), name="out")
    )
    with pytest.raises(EvaluationError, match=message) as caught:
        plan.run(inputs)
    assert "\n" not in str(caught.value)


def test_any_width_of_the_right_kind_is_taken() -> None:
    plan = plan_of({"n": np.ones(2, np.int32)}, lambda n: mb.add(x=n, y=np.int32(1), name="out"))
    for kind in (np.int64, np.int16, np.uint8):
        assert plan.run({"n": np.array([3, 4], kind)})["out"].numpy().sum() == 9
    assert plan.run({"n": torch.tensor([3, 4])})["out"].dtype == torch.int32


def test_symbols_take_any_size_and_must_agree() -> None:
    n = get_new_symbol()
    inputs = {"x": mb.placeholder(shape=(n, 3), dtype=types.fp32), "y": mb.placeholder(shape=(n, 3), dtype=types.fp32)}
    plan = compile(program(lambda x, y: mb.add(x=x, y=y, name="out"), inputs))
    for size in (1, 5):
        assert plan.run({"x": normals(size, 3), "y": normals(size, 3)})["out"].shape == (size, 3)
    with pytest.raises(EvaluationError, match=rf"input 'y' is fp32\[{n}, 3\]: {n} is 4 here but 5 before it"):
        plan.run({"x": normals(5, 3), "y": normals(4, 3)})


def relu_that(function: Any) -> Impls:
    mine = Impls("mine")
    mine("relu", override=True)(function)
    return core | mine


def test_a_result_of_the_wrong_shape_is_named() -> None:
    def short(x: Tensor) -> Tensor:
        return x[:, :2]

    message = r"relu 'out': gave shape \(2, 2\) for 'out', declared fp32\[2, 4\] \(inputs: x float32\[2, 4\]\)"
    with pytest.raises(EvaluationError, match=message):
        compile(affine(), impls=relu_that(short)).run({"x": X})


def test_a_result_of_a_symbolic_shape_is_checked_too() -> None:
    def short(x: Tensor) -> Tensor:
        return x[:-1]

    n = get_new_symbol()
    made = program(lambda x: mb.relu(x=x, name="out"), {"x": mb.placeholder(shape=(n, 3), dtype=types.fp32)})
    with pytest.raises(EvaluationError, match=rf"gave shape \(4, 3\) for 'out', declared fp32\[{n}, 3\]"):
        compile(made, impls=relu_that(short)).run({"x": normals(5, 3)})


def test_a_result_of_the_wrong_kind_is_named() -> None:
    def whole(x: Tensor) -> Tensor:
        return x.to(torch.int32)

    with pytest.raises(EvaluationError, match=r"relu 'out': gave torch.int32 for 'out', declared fp32\[2, 4\]"):
        compile(affine(), impls=relu_that(whole)).run({"x": X})


def test_an_exception_in_an_op_says_where_and_is_chained() -> None:
    def fails(x: Tensor) -> Tensor:
        raise ZeroDivisionError("no\nsecond line")

    plan = compile(affine(), impls=relu_that(fails))
    for listeners in ([], [object()]):
        with pytest.raises(EvaluationError, match=r"^relu 'out': ZeroDivisionError: no \(inputs: x float") as caught:
            plan.run({"x": X}, listeners=listeners)
        assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_an_out_of_range_index_says_where() -> None:
    plan = plan_of({"i": np.ones(1, np.int32)}, lambda i: mb.gather(x=X, indices=i, axis=0, name="rows"))
    with pytest.raises(EvaluationError, match=r"gather 'rows': (IndexError|RuntimeError): index out of range"):
        plan.run({"i": np.array([2], np.int32)})


class Trace:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def before(self, step: Step, values: Any) -> None:
        self.lines.append(f"{step.op_type}({', '.join(values)})")

    def after(self, step: Step, outputs: Any) -> None:
        self.lines.append(
            f"{step.name} -> {', '.join(f'{name}{tuple(value.shape)}' for name, value in outputs.items())}"
        )


def test_listeners_see_every_step() -> None:
    trace = Trace()
    outputs = compile(affine()).run({"x": X}, listeners=[trace])
    close(outputs["out"], expected(X))
    assert trace.lines == ["linear(x, weight, bias)", "scores -> scores(2, 4)", "relu(x)", "out -> out(2, 4)"]


def test_values_are_freed_after_their_last_use() -> None:
    def build(x: Any) -> Any:
        for _ in range(4):
            x = mb.relu(x=mb.add(x=x, y=np.float32(1)))
        return x

    steps = compile(program(build, {"x": X})).body.steps
    freed = [slot for step in steps for slot in step.frees]
    made = [result.slot for step in steps for result in step.results]
    assert sorted([*freed, made[-1]]) == sorted([0, *made])
    assert all(len(step.frees) == 1 for step in steps)


def test_functions_are_found_by_name() -> None:
    made = Program()
    made.add_function("double", function(lambda x: mb.add(x=x, y=x, name="out"), {"x": X}))
    np.testing.assert_array_equal(evaluate(made, {"x": X})["out"], 2 * X)  # the only one
    made.add_function("square", function(lambda x: mb.mul(x=x, y=x, name="out"), {"x": X}))
    np.testing.assert_array_equal(evaluate(made, {"x": X}, function="square")["out"], X * X)
    with pytest.raises(EvaluationError, match="there is no function 'main'; the program has double, square"):
        evaluate(made, {"x": X})


def test_a_string_stays_a_string() -> None:
    def build(x: Any) -> Any:
        return mb.classify(probabilities=x, classes=mb.const(val=mil_list(["cat", "dog", "eel"])))

    plan = compile(program(build, {"x": X[0]}))
    label, probabilities = plan.run({"x": np.array([0.1, 0.7, 0.2], np.float32)}).values()
    assert str(label) == "dog"
    assert probabilities.argmax() == 1


def test_a_mask_may_choose_between_scalars() -> None:
    """coremltools declares the result a scalar; transformers' masks of ranged length are made so."""
    mask = X > 0

    def build(x: Any) -> Any:
        chosen = mb.select(cond=mb.greater(x=x, y=np.float32(0)), a=np.float32(0), b=np.float32(-1e4))
        assert chosen.shape == ()
        return mb.add(x=x, y=chosen, name="out")

    want: Any = X - np.float32(1e4) * ~mask
    np.testing.assert_array_equal(compile(program(build, {"x": X})).run({"x": X})["out"], want)


def test_integer_constants_may_meet_floats_in_matrix_products() -> None:
    """From iOS17 on; the result has the type of what is not constant."""
    whole: Any = np.arange(6, dtype=np.int32)

    def build(x: Any, n: Any) -> Any:
        weight = np.reshape(whole, (2, 3))
        return (
            mb.linear(x=x, weight=weight, bias=np.array([1, 2], np.int32), name="linear"),
            mb.matmul(x=weight, y=x, transpose_y=True, name="float"),
            mb.matmul(x=n, y=np.array([[1.0], [2.0]], np.float32), name="int"),
        )

    out = compile(program(build, {"x": X, "n": np.ones((1, 2), np.int32)})).run({"x": X, "n": np.array([[3, 4]])})
    weight: Any = whole.reshape(2, 3)
    close(out["linear"], X @ weight.T + [1, 2])
    close(out["float"], weight @ X.T)
    np.testing.assert_array_equal(out["int"], np.array([[11]], np.int32))

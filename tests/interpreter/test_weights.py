"""Working copies of weights: one for all that look at the same bytes, made at first use, kept if asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from milopt.interpreter import Step, Weights, compile, compile_all
from milopt.interpreter.weights import Constant
from milopt.mil import Program, mb
from tests.interpreter.support import function, normals, program

X = normals(2, 64, dtype=np.float16)
WEIGHT = normals(256, 64, dtype=np.float16)  # 32 KB: large enough not to be kept in any case


def layer(weight: Any) -> Any:
    def build(x: Any) -> Any:
        return mb.linear(x=x, weight=weight, name="out")

    return build


def kept(weights: Weights) -> list[tuple[int, ...]]:
    copies: dict[Any, Any] = vars(weights)["_kept"]
    return [tuple(tensor.shape) for _, tensor in copies.values()]


def test_functions_and_reshapes_share_one_copy() -> None:
    made = Program()
    made.add_function("flat", function(layer(WEIGHT), {"x": X}))

    def convolution(x: Any) -> Any:
        weight = np.reshape(WEIGHT, (256, 64, 1, 1))
        return mb.squeeze(x=mb.conv(x=mb.expand_dims(x=x, axes=[2, 3]), weight=weight), axes=[2, 3], name="out")

    made.add_function("conv", function(convolution, {"x": X}))
    weights = Weights()
    plans = [compile(made, name, weights=weights) for name in ("flat", "conv")]
    assert kept(weights) == []
    first, second = (plan.run({"x": X})["out"] for plan in plans)
    np.testing.assert_allclose(first.numpy(), second.numpy(), rtol=1e-3, atol=1e-3)  # fp16 results
    assert [shape for shape in kept(weights) if np.prod(shape) == WEIGHT.size] == [(256, 64)]


def test_compile_all_shares_by_itself() -> None:
    made = Program()
    for name in ("one", "two"):
        made.add_function(name, function(layer(WEIGHT), {"x": X}))
    seen: list[int] = []

    class Weighing:
        def before(self, step: Step, values: dict[str, Any]) -> None:
            seen.append(values["weight"].data_ptr())

    for plan in compile_all(made).values():
        plan.run({"x": X}, listeners=[Weighing()])
    assert seen[0] == seen[1]


def test_arrays_that_only_start_at_the_same_place_are_told_apart() -> None:
    """A transposed view has the address and the size of its array, but other numbers."""
    square = normals(64, 64, dtype=np.float16)

    def build(x: Any) -> Any:
        return mb.linear(x=x, weight=square, name="a"), mb.linear(x=x, weight=np.transpose(square), name="b")

    outputs = compile(program(build, {"x": X})).run({"x": X})
    for name, weight in (("a", square), ("b", square.T)):
        want = X.astype(np.float32) @ weight.astype(np.float32).T
        np.testing.assert_allclose(outputs[name].numpy(), want, rtol=2e-3, atol=2e-3)  # fp16 results


@pytest.mark.parametrize("keep", [True, False])
def test_weights_are_kept_only_if_asked(keep: bool) -> None:
    weights = Weights(keep=keep)
    compile(program(layer(WEIGHT), {"x": X}), weights=weights).run({"x": X})
    assert ((256, 64) in kept(weights)) == keep


def test_the_two_settings_compute_the_same() -> None:
    made = program(layer(WEIGHT), {"x": X})
    outputs = [compile(made, keep_weights=keep, precision="float64").run({"x": X})["out"] for keep in (True, False)]
    np.testing.assert_array_equal(outputs[0].numpy(), outputs[1].numpy())
    np.testing.assert_allclose(outputs[0].numpy(), X.astype(float) @ WEIGHT.T.astype(float), rtol=1e-12)


@pytest.mark.filterwarnings("error")
def test_memory_mapped_weights_are_read_where_they_are(tmp_path: Path) -> None:
    array = normals(128, 64)
    array.tofile(tmp_path / "weights")
    mapped = np.memmap(tmp_path / "weights", np.float32, "r", shape=(128, 64))
    weights = Weights()
    tensor = weights.prepare(Constant(mapped, "fp32", (128, 64)))
    assert tensor.data_ptr() == mapped.__array_interface__["data"][0]
    np.testing.assert_array_equal(tensor.numpy(), array)


def test_equal_scalars_of_different_types_are_told_apart() -> None:
    weights = Weights()
    one = weights.prepare(Constant(np.int32(1), "int32", ()))
    other = weights.prepare(Constant(np.float32(1), "fp32", ()))
    assert one.dtype != other.dtype
    assert weights.prepare(Constant(np.int32(1), "int32", ())) is not other

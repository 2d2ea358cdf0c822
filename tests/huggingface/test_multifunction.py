"""Models merged into the functions of one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import milopt
from milopt.errors import MiloptError
from milopt.interpreter import evaluate
from milopt.mil import constant, mb, target, types
from milopt.multifunction import merge, share_weights
from milopt.package import Model

Array = np.ndarray[Any, Any]
WEIGHT: Any = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)


def _model(rows: int, weight: Any, opset: Any = target.iOS18) -> Model:
    """``linear`` of (rows, 16), its weight an array of its own."""

    @mb.program(input_specs=[mb.TensorSpec((rows, 16), types.fp32)], opset_version=opset)
    def program(x: Any) -> Any:
        return mb.linear(x=x, weight=weight.copy(), name="y")

    model = milopt.load(program)
    model.describe(None, "x", f"{rows} rows")
    return model


def _weight(model: Model, name: str) -> Array:
    (linear,) = [op for op in model.function(name).operations if op.op_type == "linear"]
    weight: Array = constant(linear.weight)
    return weight


def test_equal_weights_become_one_array_and_compute_the_same() -> None:
    models = {"one": _model(1, WEIGHT), "four": _model(4, WEIGHT)}
    x = np.random.default_rng(1).standard_normal((4, 16)).astype(np.float32)
    merged = merge(models, default="four")
    assert _weight(merged, "one") is _weight(merged, "four")
    assert merged.default_function == "four"
    assert merged.text_of("one", "x") == "1 rows"
    assert merged.text_of("four", "x") == "4 rows"
    (y,) = evaluate(merged, {"x": x}, precision="float64").values()
    (first,) = evaluate(merged, {"x": x[:1]}, function="one", precision="float64").values()
    wanted: Any = x.astype(np.float64) @ WEIGHT.T.astype(np.float64)
    # float64 sums in another order
    np.testing.assert_allclose(y, wanted, rtol=0, atol=1e-12)
    np.testing.assert_allclose(first, wanted[:1], rtol=0, atol=1e-12)


def test_what_is_saved_is_counted() -> None:
    merged = merge({"one": _model(1, WEIGHT)}, default="one")
    merged.program.add_function("two", _model(2, WEIGHT).function())
    assert share_weights(merged.program) == WEIGHT.nbytes
    assert share_weights(merged.program) == 0


@pytest.mark.parametrize("change", ["values", "order", "last bit"])
def test_weights_that_differ_stay_apart(change: str) -> None:
    changed: dict[str, Any] = {
        "values": WEIGHT + 1,
        "order": np.flip(WEIGHT, axis=0),
        "last bit": np.where(np.arange(16) == 15, np.nextafter(WEIGHT, np.float32(9)), WEIGHT),
    }
    other = changed[change]
    merged = merge({"one": _model(1, WEIGHT), "two": _model(2, other)}, default="one")
    np.testing.assert_array_equal(_weight(merged, "one"), WEIGHT)
    np.testing.assert_array_equal(_weight(merged, "two"), other)


def test_metadata_of_the_default_function_wins() -> None:
    models = {"one": _model(1, WEIGHT), "two": _model(2, WEIGHT)}
    models["one"].metadata = {"a": "1", "b": "1"}
    models["two"].metadata = {"b": "2", "c": "2"}
    assert merge(models, default="one").metadata == {"a": "1", "b": "1", "c": "2"}


def test_a_default_that_is_no_function() -> None:
    with pytest.raises(MiloptError, match="the default function 'three' is not among: one"):
        merge({"one": _model(1, WEIGHT)}, default="three")


def test_functions_of_two_opsets() -> None:
    with pytest.raises(MiloptError, match="functions of one model need one opset"):
        merge({"one": _model(1, WEIGHT), "two": _model(2, WEIGHT, target.iOS17)}, default="one")

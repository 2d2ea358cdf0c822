"""coremltools' predictions answered by milopt, and everything put back afterwards."""

from __future__ import annotations

import importlib
import platform
from typing import Any

import coremltools as ct
import numpy as np
import pytest

from milopt.mil import mb, target, types
from milopt.testing import coremltools_predict
from tests.interpreter.support import program

utils: Any = importlib.import_module("coremltools.models.utils")
model: Any = importlib.import_module("coremltools.models.model")
testing: Any = importlib.import_module("coremltools.converters.mil.testing_utils")


def doubling(convert_to: str = "mlprogram", **options: Any) -> Any:
    old = convert_to == "neuralnetwork"
    return ct.convert(
        program(
            lambda x: mb.mul(x=x, y=2.0, name="y"), {"x": np.ones(3, np.float32)}, target.iOS14 if old else target.iOS18
        ),
        convert_to=convert_to,
        minimum_deployment_target=target.iOS14 if old else target.iOS18,
        **options,
    )


def counting() -> Any:
    def build(x: Any, s: Any) -> Any:
        total = mb.add(x=mb.read_state(input=s), y=x)
        return mb.identity(x=mb.coreml_update_state(state=s, value=total), name="y")

    cell = mb.state_tensor_placeholder(shape=(2,), dtype=types.fp16)
    made = program(build, {"x": np.ones(2, np.float16), "s": cell})
    return ct.convert(made, convert_to="mlprogram", minimum_deployment_target=target.iOS18)


def test_predictions_are_answered_and_counted() -> None:
    with coremltools_predict() as answers:
        mlmodel = doubling()
        y = mlmodel.predict({"x": np.array([1.0, 2.0, 3.0])})["y"]
        assert (y.dtype, y.tolist()) == (np.float32, [2, 4, 6])
        batch = mlmodel.predict([{"x": np.ones(3)}, {"x": np.zeros(3)}])
        assert [each["y"].tolist() for each in batch] == [[2, 2, 2], [0, 0, 0]]
        assert (answers.count, answers.failures) == (3, [])


def test_states_are_made_read_and_written() -> None:
    with coremltools_predict() as answers:
        mlmodel = counting()
        state = mlmodel.make_state()
        assert [mlmodel.predict({"x": np.ones(2)}, state)["y"].tolist() for _ in range(2)] == [[1, 1], [2, 2]]
        assert state.read_state("s").tolist() == [2, 2]
        state.write_state("s", np.array([5.0, 6.0]))
        assert mlmodel.predict({"x": np.ones(2)}, state)["y"].tolist() == [6, 7]
        with pytest.raises(RuntimeError, match="there is no state 't'"):
            state.read_state("t")
        assert answers.count == 3


def test_refusals_are_runtime_errors_and_are_kept() -> None:
    with coremltools_predict() as answers:
        with pytest.raises(RuntimeError, match=r"input 'x' must be fp32\[3\]"):
            doubling().predict({"x": np.ones(4)})
        assert answers.count == 0
        assert len(answers.failures) == 1


def test_a_neural_network_is_answered_from_the_program_it_was_made_of() -> None:
    with coremltools_predict() as answers:
        mlmodel = doubling("neuralnetwork")
        assert mlmodel.get_spec().WhichOneof("Type") == "neuralNetwork"
        assert mlmodel.predict({"x": np.ones(3)})["y"].tolist() == [2, 2, 2]
        with pytest.raises(RuntimeError, match="not converted from MIL in this process"):
            ct.models.MLModel(mlmodel.get_spec()).predict({"x": np.ones(3)})
        assert answers.count == 1


def test_another_predictor_can_be_put_in() -> None:
    class Wrong:
        def predict(self, inputs: Any, state: Any = None) -> dict[str, Any]:
            return {"y": np.zeros(3)}

        def make_state(self) -> Any:
            raise NotImplementedError

    with coremltools_predict(lambda mlmodel: Wrong()):
        assert doubling().predict({"x": np.ones(3)})["y"].tolist() == [0, 0, 0]


def seen() -> tuple[Any, ...]:
    mlmodel_class: Any = ct.models.MLModel
    return (
        utils._is_macos,
        utils._macos_version,
        model._is_macos,
        model._macos_version,
        testing._IS_MACOS,
        platform.machine,
        mlmodel_class.predict,
        mlmodel_class.make_state,
        mlmodel_class._get_proxy_and_spec,
    )


def test_everything_is_put_back() -> None:
    before = seen()
    mlmodel = doubling()

    def use_and_fail() -> None:
        with coremltools_predict():
            with coremltools_predict() as inner:
                assert (testing._IS_MACOS, utils._is_macos(), model._macos_version() >= (15, 0)) == (True, True, True)
                doubling().predict({"x": np.ones(3)})
                assert inner.count == 1
            assert testing._IS_MACOS
            assert mlmodel.predict({"x": np.ones(3)})["y"].tolist() == [2, 2, 2]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        use_and_fail()
    assert seen() == before
    with pytest.raises(Exception, match="macOS"):
        mlmodel.predict({"x": np.ones(3)})


def test_names_imported_meanwhile_are_put_back_too() -> None:
    name = "coremltools.converters.mil.mil.ops.tests.iOS14.test_random"
    with coremltools_predict():
        late: Any = importlib.import_module(name)
        assert late._macos_version() >= (15, 0)
    assert late._macos_version is utils._macos_version


def test_models_made_before_are_answered_and_those_not_to_be_loaded_are_not() -> None:
    earlier = doubling()
    with coremltools_predict():
        assert earlier.predict({"x": np.ones(3)})["y"].tolist() == [2, 2, 2]
        with pytest.raises(Exception, match="Cannot make predictions"):
            doubling(skip_model_load=True).predict({"x": np.ones(3)})

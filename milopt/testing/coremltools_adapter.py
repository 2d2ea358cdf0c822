"""coremltools' own predictions, answered by milopt's interpreter: for running coremltools tests on Linux.

On Linux ``MLModel.predict`` raises, and coremltools' tests leave the prediction out and pass with nothing behind them.
"""

from __future__ import annotations

import importlib
import platform
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol
from weakref import WeakSet

import numpy as np

from milopt.errors import EvaluationError, MiloptError
from milopt.interpreter.state import State
from milopt.interpreter.values import Precision
from milopt.package import Model, load
from milopt.prediction import Predictor

__all__ = ["Answers", "Predicts", "coremltools_predict", "milopt_predictor"]

_MACOS = (26, 0)  # the first that runs all that coremltools 9.0 can convert
# How Core ML begins, which coremltools' tests look for
_REFUSED = "Unable to compute the prediction using ML Program"
# Looks at Core ML itself, which is not there, where it takes the system for a Mac
_UNTOUCHED = "coremltools.models.ml_program.experimental"


class Predicts(Protocol):
    """What answers for one model; :class:`milopt.Predictor` does."""

    def predict(self, inputs: Mapping[str, Any], state: State | None = None) -> dict[str, Any]: ...
    def make_state(self) -> State: ...


class Answers:
    """What happened so far: ``count`` predictions were answered, ``failures`` are the errors raised instead."""

    def __init__(self) -> None:
        self.count = 0
        self.failures: list[Exception] = []


@contextmanager
def coremltools_predict(
    predictor: Callable[[Any], Predicts] | None = None, *, precision: Precision = "declared"
) -> Generator[Answers]:
    """Let ``MLModel.predict`` and ``MLModel.make_state`` be answered by milopt, as Core ML would on macOS 26.

    ::

        with milopt.testing.coremltools_predict() as answers:
            ct.convert(...).predict({"x": x})
        assert answers.count == 1

    coremltools takes the system for a Mac meanwhile (``_IS_MACOS``, ``_is_macos``, ``_macos_version``, also where they
    were imported by name, and ``platform.machine``), so that its tests skip nothing; tests that ask at import must be
    imported inside. What Core ML refuses by RuntimeError is refused by RuntimeError. A neural network is answered from
    the MIL program that it was converted from, if coremltools still has it. ``predictor`` makes another answerer of an
    ``MLModel``: a deliberately wrong one shows that a test can fail. On exit everything is put back.
    """
    answers = Answers()
    make = predictor or partial(milopt_predictor, precision=precision)
    proxied: WeakSet[Any] = WeakSet()
    with _patches() as patch:
        _claim_macos(patch)
        mlmodel_class: Any = importlib.import_module("coremltools.models").MLModel
        untouched = mlmodel_class._get_proxy_and_spec

        def get_proxy_and_spec(self: Any, filename: str, *args: Any, **kwargs: Any) -> Any:
            _, spec, error = untouched(self, filename, *args, **{**kwargs, "skip_model_load": True})
            if kwargs.get("skip_model_load"):
                self._milopt_skipped = True
                return None, spec, error
            return proxy_of(self), spec, None

        def proxy_of(mlmodel: Any) -> _Proxy:
            proxied.add(mlmodel)
            return _Proxy(mlmodel, make, answers)

        def with_proxy(method: Callable[..., Any]) -> Callable[..., Any]:
            def call(self: Any, *args: Any, **kwargs: Any) -> Any:
                if self.__proxy__ is None and not hasattr(self, "_milopt_skipped"):  # it was made before
                    self.__proxy__ = proxy_of(self)
                return method(self, *args, **kwargs)

            return call

        patch(mlmodel_class, "_get_proxy_and_spec", get_proxy_and_spec)
        patch(mlmodel_class, "predict", with_proxy(mlmodel_class.predict))
        patch(mlmodel_class, "make_state", with_proxy(mlmodel_class.make_state))
        try:
            yield answers
        finally:
            for mlmodel in proxied:
                mlmodel.__proxy__ = None


class _Proxy:
    """Stands where coremltools keeps its handle of a model that Core ML has loaded. Compiles when first asked."""

    def __init__(self, mlmodel: Any, make: Callable[[Any], Predicts], answers: Answers) -> None:
        self._mlmodel = mlmodel
        self._make = make
        self._answers = answers
        self._predictor: Predicts | None = None

    def predict(self, inputs: dict[str, Any], state: _StateProxy | None = None) -> dict[str, Any]:
        outputs = self._told(lambda: self._compiled().predict(inputs, None if state is None else state.state))
        self._answers.count += 1
        return {name: _widened(value) for name, value in outputs.items()}

    def batchPredict(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:  # noqa: N802
        return [self.predict(inputs) for inputs in batch]

    def newState(self) -> _StateProxy:  # noqa: N802
        return _StateProxy(self._told(lambda: self._compiled().make_state()))

    def get_compiled_model_path(self) -> str:
        raise RuntimeError("milopt answers the predictions of this model: there is no compiled model on the disk")

    def _compiled(self) -> Predicts:
        if self._predictor is None:
            self._predictor = self._make(self._mlmodel)
        return self._predictor

    def _told(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:
            self._answers.failures.append(error)
            if isinstance(error, MiloptError):
                raise RuntimeError(f"{_REFUSED}: {error}") from error
            raise


class _StateProxy:
    """coremltools' handle of a state."""

    def __init__(self, state: State) -> None:
        self.state = state

    def read_state(self, name: str) -> Any:
        try:
            return _widened(self.state[name])
        except EvaluationError as error:
            raise RuntimeError(str(error)) from error

    def write_state(self, name: str, value: Any) -> None:
        try:
            self.state[name] = value
        except EvaluationError as error:
            raise RuntimeError(str(error)) from error


def _widened(value: Any) -> Any:
    """coremltools hands out half precision as float32."""
    half: bool = getattr(value, "dtype", None) == np.float16
    return value.astype(np.float32) if half else value


def milopt_predictor(mlmodel: Any, *, precision: Precision = "declared") -> Predictor:
    """What answers for an ``MLModel`` where nothing else is asked for."""
    if not mlmodel._spec.WhichOneof("Type").startswith("neuralNetwork"):
        function = mlmodel.function_name if mlmodel._is_multifunction() else None
        return Predictor(mlmodel, function, precision=precision)
    return Predictor(_source_of_network(mlmodel), precision=precision)


def _source_of_network(mlmodel: Any) -> Model:
    """The MIL program that coremltools lowered to a neural network, with the network's description."""
    if mlmodel._mil_program is None:
        raise EvaluationError("this neural network was not converted from MIL in this process: milopt can't run it")
    network = getattr(mlmodel._spec, mlmodel._spec.WhichOneof("Type"))
    if network.preprocessing:
        raise EvaluationError("this neural network scales its images itself: milopt runs MIL programs only")
    model = load(mlmodel._mil_program)
    model.description = mlmodel.get_spec().description
    return model


def _claim_macos(patch: Callable[[Any, str, Any], None]) -> None:
    """Answer for the system in every module that asks, and knows the answers by name."""
    utils: Any = importlib.import_module("coremltools.models.utils")
    importlib.import_module("coremltools.models.model")
    patch(platform, "machine", lambda: "arm64")
    known = {"_is_macos": utils._is_macos, "_macos_version": utils._macos_version}
    given: dict[str, Any] = {"_is_macos": lambda: True, "_macos_version": lambda: _MACOS}
    for module in list(sys.modules.values()):
        names: dict[str, Any] = getattr(module, "__dict__", {})
        for name, original in known.items():
            if names.get(name) is original:
                patch(module, name, given[name])
        if names.get("_IS_MACOS") is False and _belongs(module):
            patch(module, "_IS_MACOS", True)


def _belongs(module: Any) -> bool:
    name = str(module.__name__)
    return name.split(".")[0] == "coremltools" and not name.startswith(_UNTOUCHED)


@contextmanager
def _patches() -> Generator[Callable[[Any, str, Any], None]]:
    """Yields a function that sets attributes, which are put back on exit.

    Modules imported meanwhile that copied a patched value by its name get the old one too.
    """
    done: list[tuple[Any, str, Any, Any]] = []
    before = set(sys.modules)

    def patch(holder: Any, name: str, value: Any) -> None:
        done.append((holder, name, getattr(holder, name), value))
        setattr(holder, name, value)

    try:
        yield patch
    finally:
        later = [module for name, module in list(sys.modules.items()) if name not in before]
        values = {name: (old, new) for _, name, old, new in done}
        for module in later:
            for name, (old, new) in values.items():
                if getattr(module, "__dict__", {}).get(name) is new and (name != "_IS_MACOS" or _belongs(module)):
                    setattr(module, name, old)
        for holder, name, old, _ in reversed(done):
            setattr(holder, name, old)

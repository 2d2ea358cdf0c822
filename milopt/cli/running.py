"""What ``milopt run`` does: one answer, and whatever is asked about how it came about."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from milopt.cli.answers import Answer, print_answer
from milopt.cli.console import Steps, output, steps
from milopt.cli.inputs import arrays_for
from milopt.cli.reading import given, read_arrays
from milopt.cli.writing import Files, check_file, write_arrays
from milopt.errors import EvaluationError, MiloptError
from milopt.interpreter import Precision, State
from milopt.interpreter.values import to_numpy
from milopt.observation import OverflowReport, Profile, Trace, find_overflows, profile
from milopt.observation.summary import summarize
from milopt.observation.walking import wait
from milopt.package import load
from milopt.prediction import Predictor
from milopt.prediction.images import ImageOutput
from milopt.prediction.labels import LabelOutput, ProbabilitiesOutput

__all__ = ["Request", "perform"]

# torch has more, such as one that computes shapes alone.
_DEVICES = ("cpu", "cuda", "mps")
# Runs of a profile, where --repeat does not say.
_PROFILED = 5


@dataclass(frozen=True)
class Request:
    """The options of the command."""

    package: Path
    inputs: tuple[str, ...] = ()
    output: Path | None = None
    function: str | None = None
    precision: Precision = "declared"
    device: str = "cpu"
    seed: int = 0
    random: bool = False
    state_in: Path | None = None
    state_out: Path | None = None
    repeat: int | None = None
    trace: bool = False
    profile: bool = False
    check_overflow: bool | None = None
    json: bool = False
    force: bool = False


def perform(request: Request) -> bool:
    """Run, write and print; False where ``check_overflow`` was asked for and found something."""
    if request.check_overflow and request.precision == "float64":
        raise MiloptError("--check-overflow compares with float64: choose another --precision")
    if request.device.split(":")[0] not in _DEVICES:
        raise MiloptError(f"there is no device {request.device!r}; choose {', '.join(_DEVICES)}")
    values = given(request.inputs)
    with steps() as tell:
        tell(f"load {request.package.name}")
        work = _Work(request, tell)
        tell("prepare the inputs")
        arrays = arrays_for(work.model, work.predictor, values, seed=request.seed if request.random else None)
        answer = _answer(work, arrays, request)
    if request.json:
        print(json.dumps(answer.to_json(), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        print_answer(output(), answer)
    return not (request.check_overflow and answer.overflow)


def _answer(work: _Work, arrays: Mapping[str, Any], request: Request) -> Answer:
    try:
        answer = work.answer(arrays)
    except EvaluationError:
        if not request.check_overflow:
            raise
        plan = work.predictor.plan  # what fails for another reason than an overflow fails in the next line too
        return Answer(plan.function, plan.precision, overflow=work.overflows(arrays))
    if request.profile:
        answer.profile = work.profile(arrays)
    if request.precision != "float64" and (answer.is_odd if request.check_overflow is None else request.check_overflow):
        answer.overflow = work.overflows(arrays)
    return answer


class _Work:
    """A package that is loaded, and where its answers go. Made anew, it refuses what could not be written."""

    def __init__(self, request: Request, tell: Steps) -> None:
        self._request = request
        self._tell = tell
        self.model = load(request.package)
        tell("prepare the model")
        self.predictor = Predictor(self.model, request.function, precision=request.precision, device=request.device)
        self._files = self._output_files()
        self._state = self._initial_state()

    def answer(self, arrays: Mapping[str, Any]) -> Answer:
        """Run as often as wanted, and write what the last run gave. If it is to be traced, the trace is of that one."""
        plan, request = self.predictor.plan, self._request
        trace = Trace() if request.trace else None
        outputs: dict[str, Any] = {}
        seconds: list[float] = []
        state: State | None = None
        runs = request.repeat or 1
        for index in range(runs):
            self._tell(f"run {plan.function}" if runs == 1 else f"run {plan.function}, {index + 1} of {runs}")
            state = self._copied_state()
            listeners = (trace,) if trace is not None and index == runs - 1 else ()
            random: Any = torch.random
            random.manual_seed(request.seed)
            begun = time.perf_counter()
            outputs = plan.run(arrays, state, listeners)
            wait(outputs)
            seconds += [] if listeners else [time.perf_counter() - begun]
        return self._written(outputs, state, seconds, trace)

    def _written(
        self, outputs: Mapping[str, Any], state: State | None, seconds: list[float], trace: Trace | None
    ) -> Answer:
        plan, ports = self.predictor.plan, self.predictor.outputs
        values = {
            name: port.write(to_numpy(outputs[name], plan.outputs[name], plan.precision))
            for name, port in ports.items()
        }
        if self._files is not None:
            self._files.write({name: _for_file(ports[name], value) for name, value in values.items()})
        states = {} if state is None else {name: state[name] for name in state}
        if self._request.state_out is not None:
            write_arrays(self._request.state_out, states)
        kinds = (LabelOutput, ProbabilitiesOutput)
        return Answer(
            plan.function,
            plan.precision,
            {name: summarize(outputs[name], _type(plan.outputs[name].dtype, outputs[name])) for name in ports},
            {name: value for name, value in values.items() if isinstance(ports[name], kinds)},
            {name: summarize(torch.as_tensor(states[name]), info.dtype) for name, info in plan.states.items()},
            seconds,
            {} if self._files is None else self._files.paths,
            trace,
        )

    def profile(self, arrays: Mapping[str, Any]) -> Profile:
        runs = self._request.repeat or _PROFILED
        self._tell(f"profile {runs} runs")
        return profile(self.predictor.plan, arrays, runs=runs, state=self._state)

    def overflows(self, arrays: Mapping[str, Any]) -> OverflowReport:
        self._tell("look for overflows")
        plan, seed = self.predictor.plan, self._request.seed
        return find_overflows(
            self.model,
            arrays,
            precision=plan.precision,
            function=plan.function,
            state=self._state,
            seed=seed,
            device=self._request.device,
        )

    def _output_files(self) -> Files | None:
        request = self._request
        if request.state_out is not None:
            if request.state_out.suffix != ".npz":
                raise MiloptError(f"{request.state_out}: the name of a file of states ends in .npz")
            check_file(request.state_out, force=request.force)
        if request.output is None:
            return None
        suffixes = {name: _suffix(port) for name, port in self.predictor.outputs.items()}
        return Files(request.output, suffixes, force=request.force)

    def _initial_state(self) -> State | None:
        plan, request = self.predictor.plan, self._request
        if not plan.states:
            if request.state_in is not None or request.state_out is not None:
                raise MiloptError(f"function {plan.function!r} has no states")
            return None
        state = self.predictor.make_state()
        arrays = {} if request.state_in is None else read_arrays(request.state_in)
        for name in plan.states if request.state_in is not None else ():
            if name not in arrays:
                raise MiloptError(f"{request.state_in} lacks the state {name!r}, which is {plan.states[name]}")
        for name, array in arrays.items():
            state[name] = array
        return state

    def _copied_state(self) -> State | None:
        return None if self._state is None else self._state.copy()


def _suffix(port: object) -> str:
    if isinstance(port, (LabelOutput, ProbabilitiesOutput)):
        return ".json"
    # PNG has no floating pixels
    return ".png" if isinstance(port, ImageOutput) and port.colors != "GRAYSCALE_FLOAT16" else ".npy"


def _for_file(port: object, value: Any) -> Any:
    return np.asarray(value) if _suffix(port) == ".npy" else value


def _type(declared: str, value: object) -> str:
    """The declared type; a dictionary is held as its values."""
    return "probabilities" if declared == "dict" and isinstance(value, torch.Tensor) else declared

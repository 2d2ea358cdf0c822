"""Published audio models against the same networks in onnxruntime, with the files that their authors publish too."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import milopt
from milopt.interpreter import compile
from milopt.interpreter.values import Array
from milopt.precisions import PRECISIONS, Precision

RATE = 22050
SAMPLES = 43844


class Onnx:
    """A model of an installed wheel, run by onnxruntime; the test is skipped where either is absent."""

    def __init__(self, package: str, file: str) -> None:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            pytest.skip(f"{package} is not installed (make test installs it)")
        runtime: Any = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
        self.folder = Path(spec.submodule_search_locations[0])
        self.session: Any = runtime.InferenceSession(str(self.folder / file), providers=["CPUExecutionProvider"])

    def __call__(self, inputs: Mapping[str, Array]) -> list[Array]:
        return list(self.session.run(None, dict(inputs)))


def audio(kind: str) -> Array:
    time: Any = np.arange(SAMPLES) / RATE
    if kind == "noise":
        signal = np.random.default_rng(0).standard_normal(SAMPLES) * 0.1
    elif kind == "sweep":
        signal = 0.5 * np.sin(2 * np.pi * (100 * time + 1450 / 2 * time**2))
    else:
        signal = sum(np.sin(2 * np.pi * each * time) for each in (220.0, 277.18, 329.63)) / 4 * np.exp(-time)
    return np.asarray(signal, np.float32)[None, :, None]


@pytest.fixture(scope="module")
def pitch() -> tuple[milopt.Model, Onnx]:
    onnx = Onnx("basic_pitch", "saved_models/icassp_2022/nmp.onnx")
    return milopt.load(onnx.folder / "saved_models/icassp_2022/nmp.mlpackage"), onnx


def pitches(onnx: Onnx, samples: Array) -> dict[str, Array]:
    onsets, notes, contours = onnx({"serving_default_input_2:0": samples})
    return {"Identity": contours, "Identity_1": notes, "Identity_2": onsets}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", ["noise", "sweep", "chord"])
def test_basic_pitch_equals_its_onnx_twin(pitch: tuple[milopt.Model, Onnx], kind: str, precision: Precision) -> None:
    model, onnx = pitch
    samples = audio(kind)
    expected = pitches(onnx, samples)
    # The network takes the logarithm of powers down to 1e-10: the pauses between the partials of a clear tone are made
    # of rounding errors. How much of that shows is seen when the samples are moved by as little as float32 can say.
    moved = pitches(onnx, np.nextafter(samples, np.float32(np.inf)))
    for name, value in compile(model, precision=precision).run({"input_2": samples}).items():
        noise = float(np.abs(moved[name] - expected[name]).max())
        # in fp32 both round alike but in the order of sums, in float64 only the twin rounds
        assert float(np.abs(value.numpy() - expected[name]).max()) < 4 * noise + 2e-5
        assert noise < 5e-3


def test_basic_pitch_divides_zero_by_zero_where_its_twin_does_not(pitch: tuple[milopt.Model, Onnx]) -> None:
    """TensorFlow's ``div_no_nan`` became ``real_div``: on silence the package as published gives NaN."""
    model, onnx = pitch
    silence = np.zeros((1, SAMPLES, 1), np.float32)
    assert all(np.isfinite(each).all() for each in pitches(onnx, silence).values())
    assert all(bool(each.isnan().all()) for each in compile(model).run({"input_2": silence}).values())


def speech(chunks: int) -> Array:
    """Something like a voice: thirty harmonics of a wavering pitch, four syllables a second, and a floor of noise.

    In chunks of 512. Without the noise some bins of the spectrum are empty, and what is left there is rounding.
    """
    time: Any = np.arange(512 * chunks) / 16000
    phase = 2 * np.pi * np.cumsum(120 + 60 * np.sin(2 * np.pi * 3 * time)) / 16000
    voice: Any = sum(np.sin(each * phase) / each for each in range(1, 31)) * (1 + np.sin(2 * np.pi * 4 * time)) / 10
    floor: Any = 0.01 * np.random.default_rng(0).standard_normal(512 * chunks)
    return np.asarray((voice + floor).reshape(chunks, 512), np.float32)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_silero_equals_its_onnx_twin(shared: Path, precision: Precision) -> None:
    """silero-vad 6.0.0 ships the weights that the package was made from; each chunk starts from the twin's state."""
    onnx = Onnx("silero_vad", "data/silero_vad_16k_op15.onnx")
    plan = compile(milopt.load(shared / "models/real/silero_v6_unified.mlpackage"), precision=precision)
    state, before = np.zeros((2, 1, 128), np.float32), np.zeros(64, np.float32)
    spoken: list[float] = []
    for chunk in speech(40):
        samples = np.concatenate([before, chunk])[None]
        before = chunk[-64:]
        values = plan.run({"audio_input": samples, "hidden_state": state[0], "cell_state": state[1]})
        probability, state = onnx({"input": samples, "state": state, "sr": np.array(16000)})
        spoken.append(float(probability[0, 0]))
        # fp16 weights alone are off by 0.0009 and 0.002; with fp16 values it is 0.0013 and 0.004
        assert abs(float(values["vad_output"][0, 0, 0]) - spoken[-1]) < 0.003
        assert float(np.abs(values["new_hidden_state"].numpy() - state[0]).max()) < 0.01
    assert min(spoken) < 0.1 < 0.5 < max(spoken)  # it hears both

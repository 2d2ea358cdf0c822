"""Published packages against their networks written again in torch, with the weights that the packages hold.

In float64 both must agree to the last digits; what declared precisions are off by is what fp16 does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

import milopt
from milopt.interpreter import compile
from milopt.interpreter.values import Array
from milopt.package import Model
from milopt.precisions import PRECISIONS
from tests.models import networks
from tests.models.twins import log_ratio, tensors


def normals(*shape: int, scale: float = 1.0, positive: bool = False) -> Array:
    """Normal numbers that fp16 can say, so that casting the inputs changes nothing."""
    values = np.random.default_rng(sum(shape)).standard_normal(shape) * scale
    return np.asarray(np.abs(values) if positive else values).astype(np.float16).astype(np.float64)


def check(model: Model, inputs: Mapping[str, Array], expected: Mapping[str, torch.Tensor], least: float = 55.0) -> None:
    """``least`` are the dB that fp16 leaves. In float64 the two differ in the order of sums: 270 dB and more."""
    for precision in PRECISIONS:
        for name, value in compile(model, precision=precision).run(inputs).items():
            assert value.shape == expected[name].shape
            assert log_ratio(value, expected[name]) > (260 if precision == "float64" else least), (name, precision)


def real(shared: Path, name: str) -> Model:
    return milopt.load(shared / "models" / "real" / f"{name}.mlpackage")


@pytest.mark.parametrize("batch", [1, 5])
def test_crepe(shared: Path, batch: int) -> None:
    model, frames = real(shared, "crepe_tiny"), normals(batch, 1024)
    check(model, {"frames": frames}, {"probabilities": networks.crepe(tensors(model), torch.as_tensor(frames))})


SILERO = ["silero_v6_unified", "silero_unified_int8", "silero_unified_palette_4bit", "silero_unified_pruned_int8"]


@pytest.mark.parametrize("name", SILERO)
def test_silero_with_dense_and_with_compressed_weights(shared: Path, name: str) -> None:
    model = real(shared, name)
    inputs = {
        "audio_input": normals(1, 576, scale=0.1),
        "hidden_state": normals(1, 128, scale=0.3),
        "cell_state": normals(1, 128, scale=0.4),
    }
    outputs = networks.silero(tensors(model), *(torch.as_tensor(each) for each in inputs.values()))
    names = ("vad_output", "new_hidden_state", "new_cell_state")
    check(model, inputs, dict(zip(names, outputs, strict=True)), least=50)


@pytest.mark.parametrize("length", [1, 37])
def test_silero_encoder(shared: Path, length: int) -> None:
    model, features = real(shared, "silero_v6_encoder"), normals(1, 129, length, positive=True)
    expected = networks.silero_encoder(tensors(model), torch.as_tensor(features), "")
    check(model, {"stft_features": features}, {"encoder_output": expected})


@pytest.mark.parametrize("batch", [1, 2])
def test_dtln_masks_a_spectrum(shared: Path, batch: int) -> None:
    model = real(shared, "dtln128_part1")
    inputs = {
        "mic_magnitude": normals(batch, 1, 257, positive=True),
        "lpb_magnitude": normals(batch, 1, 257, scale=0.1, positive=True),
        "states_in": normals(batch, 2, 128, 2),
    }
    outputs = networks.dtln_mask(tensors(model), *(torch.as_tensor(each) for each in inputs.values()))
    # fp32 throughout
    check(model, inputs, dict(zip(("Identity", "Identity_1"), outputs, strict=True)), least=110)


@pytest.mark.parametrize("batch", [1, 2])
def test_dtln_masks_samples(shared: Path, batch: int) -> None:
    model = real(shared, "dtln128_fp16_part2")
    inputs = {
        "estimated_frame": normals(batch, 1, 512),
        "lpb_time": normals(batch, 1, 512, scale=0.1),
        "states_in": normals(batch, 2, 128, 2),
    }
    outputs = networks.dtln_time(tensors(model), *(torch.as_tensor(each) for each in inputs.values()))
    check(model, inputs, dict(zip(("Identity", "Identity_1"), outputs, strict=True)))


@pytest.mark.slow
def test_u2netp(shared: Path) -> None:
    model = real(shared, "bibyu_u2netp")
    y, x = np.mgrid[0:320, 0:320] / 320
    disc = np.where((x - 0.4) ** 2 + (y - 0.6) ** 2 < 0.04, 0.9, 0.2)
    picture = np.stack([np.exp(-20 * ((x - 0.5) ** 2 + (y - 0.5) ** 2)), 0.3 * np.sin(6 * x) + 0.3, disc])[None]
    picture = ((picture - 0.45) / 0.225).astype(np.float16).astype(np.float64)
    expected = networks.u2netp(tensors(model), torch.as_tensor(picture))
    assert float(expected.max()) > 0.9  # it does see the disc
    # 366 ops in a row, in declared-strict with interpolation in fp16
    check(model, {"input_1": picture}, {"var_2227": expected}, least=50)


def test_clip_text_tower(refilled: Callable[[str], Model]) -> None:
    model = refilled("clipfinder_clip_text")
    ids = np.random.default_rng(0).integers(0, 49408, (1, 77))
    check(model, {"input_text": ids}, {"var_475": networks.clip_text(tensors(model), torch.as_tensor(ids))})

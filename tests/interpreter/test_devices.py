"""Runs on other devices than the CPU: what isn't there is refused, and nothing is left behind on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from milopt.errors import EvaluationError
from milopt.interpreter import compile, evaluate, make_state
from milopt.mil import Program, mb
from tests.interpreter.support import normals, program, state

X = normals(1, 3, 4, dtype=np.float16)


def everyday() -> Program:
    """A bit of what language models consist of, with a state, a mask and a few ops that make values."""

    def build(x: Any, cache: Any) -> Any:
        old = mb.read_state(input=cache)
        new = mb.coreml_update_state(
            state=cache, value=mb.slice_update(x=old, update=x, begin=[0, 1, 0], end=[1, 4, 4])
        )
        y = mb.layer_norm(x=mb.add(x=new, y=normals(5, 4, dtype=np.float16)), axes=[-1])
        y = mb.linear(x=y, weight=normals(4, 4, dtype=np.float16))
        square = mb.band_part(x=mb.matmul(x=y, y=y, transpose_y=True), lower=-1, upper=0)
        seen = mb.select(cond=mb.greater(x=square, y=np.float16(0)), a=np.float16(0), b=square)
        y = mb.scaled_dot_product_attention(query=y, key=y, value=new, attn_mask=seen)
        _, indices = mb.topk(x=y, k=2, axis=-1)
        noise = mb.random_uniform(shape=[1, 5, 4], low=np.float16(0), high=np.float16(1), seed=3)
        hot = mb.one_hot(indices=indices, one_hot_vector_size=4, name="hot")
        return [mb.add(x=y, y=noise, name="out"), hot, mb.shape(x=y, name="sizes")]

    return program(build, {"x": X, "cache": state(1, 5, 4)})


def test_unknown_devices_are_refused() -> None:
    with pytest.raises(EvaluationError, match=r"^there is no device 'gpu'; choose cpu, cuda, mps$"):
        compile(everyday(), device="gpu")
    with pytest.raises(EvaluationError, match=r"^there is no device 'xpu'; choose cpu, cuda, mps$"):
        compile(everyday(), device="xpu")


def test_a_device_that_is_not_there_is_refused() -> None:
    count = torch.cuda.device_count()
    with pytest.raises(EvaluationError, match=rf"^device 'cuda:{count}' is not available: torch sees {count} CUDA"):
        compile(everyday(), device=f"cuda:{count}")


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="Metal is available")
def test_metal_is_refused_elsewhere() -> None:
    with pytest.raises(EvaluationError, match=r"^device 'mps' is not available"):
        compile(everyday(), device="mps")


def test_metal_has_no_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    for precision in ("float64", "declared-strict"):
        with pytest.raises(EvaluationError, match=r"^device 'mps' has no float64"):
            compile(everyday(), device="mps", precision=precision)


def test_no_tensor_is_made_elsewhere() -> None:
    """On the device ``meta`` nothing is computed, and an op on values of two devices is an error."""
    made = everyday()
    memory = make_state(made)
    outputs = compile(made, device="meta").run({"x": X}, memory)
    assert {name: value.device.type for name, value in outputs.items()} == dict.fromkeys(
        ("out", "hot", "sizes"), "meta"
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("precision", ["declared", "declared-strict", "float64"])
def test_cuda_agrees_with_the_cpu(precision: Any) -> None:
    expected = evaluate(everyday(), {"x": X}, state=make_state(everyday()), precision=precision)
    got = evaluate(everyday(), {"x": X}, state=make_state(everyday()), precision=precision, device="cuda")
    for name, value in expected.items():
        # fp16 results of the same fp32 computation may be one unit apart: 2**-10 relative to numbers of up to 4
        np.testing.assert_allclose(got[name], value, rtol=2**-10, atol=2**-9)

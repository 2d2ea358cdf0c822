"""From a transformers folder to a model: signature, numbers, sharing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from milopt.huggingface import baseline, causal_mask, convert, lower, trace
from milopt.interpreter import compile
from milopt.mil import constant, dtype_name, operations, shape_of
from milopt.package import Model
from tests.huggingface.support import CONTEXT, HEAD_DIM, KV_HEADS, LAYERS, LENGTHS, VOCABULARY, llama

Array = np.ndarray[Any, Any]
PAST = [f"past_{kind}_{layer}" for layer in range(LAYERS) for kind in ("key", "value")]


def test_functions_are_named_by_their_use_and_the_shortest_is_the_default(converted: Model) -> None:
    assert list(converted.functions) == ["decode", "prefill"]
    assert converted.default_function == "decode"
    assert converted.program.default_function_name == "decode"
    assert converted.metadata["milopt.context"] == str(CONTEXT)
    assert converted.metadata["milopt.query_lengths"] == "1,8"
    assert converted.metadata["milopt.source"] == "tiny"


@pytest.mark.parametrize(("name", "length"), [("decode", 1), ("prefill", 8)])
def test_inputs_and_outputs(converted: Model, name: str, length: int) -> None:
    function = converted.function(name)
    past, present = (1, KV_HEADS, CONTEXT - length, HEAD_DIM), (1, KV_HEADS, CONTEXT, HEAD_DIM)
    assert {key: (dtype_name(var), shape_of(var)) for key, var in function.inputs.items()} == {
        "input_ids": ("int32", (1, length)),
        "position_ids": ("int32", (1, length)),
        "causal_mask": ("fp16", (1, 1, length, CONTEXT)),
        **dict.fromkeys(PAST, ("fp16", past)),
    }
    assert {var.name: (dtype_name(var), shape_of(var)) for var in function.outputs} == {
        "logits": ("fp16", (1, length, VOCABULARY)),
        **{each.replace("past", "present"): ("fp16", present) for each in PAST},
    }
    assert "[past | new]" in converted.text_of(name, "causal_mask")


def test_numbers_are_torchs_also_behind_a_past_the_program_made(converted: Model) -> None:
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, 18)
    plans = {length: compile(converted, name, precision="float64") for name, length in _lengths()}
    logits: list[Array] = []
    cache = dict.fromkeys(PAST, np.random.default_rng(2).standard_normal((1, KV_HEADS, CONTEXT, HEAD_DIM)))
    position = 0
    for length in (8, 8, 1, 1):
        feeds: dict[str, Array] = {
            "input_ids": tokens[None, position : position + length].astype(np.int32),
            "position_ids": np.arange(position, position + length, dtype=np.int32)[None],
            "causal_mask": causal_mask(CONTEXT, length, past=position).astype(np.float64),
            **{name: value[:, :, length:] for name, value in cache.items()},
        }
        outputs = {name: value.numpy() for name, value in plans[length].run(feeds).items()}
        logits.append(outputs["logits"][0])
        cache = {name: outputs[name.replace("past", "present")] for name in PAST}
        position += length

    # Torch's weights are rounded as the program's are, so that only eps in fp16 and float32 cosines differ: 5e-6 of
    # logits up to 7 was seen. A mask that hides one token of the past too many makes a difference of 7.
    np.testing.assert_allclose(np.concatenate(logits), _torch_logits(tokens), rtol=0, atol=5e-5)


def test_only_the_angles_stay_float32(converted: Model) -> None:
    for name in converted.functions:
        assert _float32(converted, name) == {"cast", "mul", "concat", "cos", "sin"}


def test_one_trace_gives_every_precision() -> None:
    traced = trace(llama(), context=CONTEXT, query_length=2)
    stock, exact = lower(traced, "default-float16"), lower(traced, "float32")
    assert not _float32(stock, "main")
    assert {dtype_name(var) for var in exact.function().outputs} == {"fp32"}
    # 1 / 10000^(2i/D) of the config; fp16 keeps 11 bits of it, 2^-11 is 5e-4
    wanted = 1e4 ** (-np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    assert np.max(np.abs(_frequencies(exact) / wanted - 1)) < 1e-6
    assert np.max(np.abs(_frequencies(lower(traced)) / wanted - 1)) < 1e-6
    assert 5e-5 < np.max(np.abs(_frequencies(stock) / wanted - 1)) < 1e-3


def test_the_baseline_has_the_same_interface(converted: Model, folder: Path) -> None:
    stock = baseline(folder, context=CONTEXT, query_lengths=(8,)).function()
    ours = converted.function("prefill")
    assert {name: var.sym_type for name, var in stock.inputs.items()} == {
        name: var.sym_type for name, var in ours.inputs.items()
    }
    assert [(var.name, var.sym_type) for var in stock.outputs] == [(var.name, var.sym_type) for var in ours.outputs]


def _float32(model: Model, name: str) -> set[str]:
    """Types of the ops, constants aside, that compute float32."""
    ops = [op for op in operations(model.function(name)) if op.op_type != "const"]
    return {op.op_type for op in ops if any(dtype_name(var) == "fp32" for var in op.outputs)}


def _frequencies(model: Model) -> Array:
    """The constant that positions are multiplied with on their way to the cosine."""
    (cosine,) = [op for op in operations(model.function()) if op.op_type == "cos"]
    angles: Any = cosine.x.op.values[0].op
    assert angles.op_type == "mul"
    return np.asarray(angles.y.val if angles.y.val is not None else angles.x.val, np.float64).ravel()


def _lengths() -> list[tuple[str, int]]:
    return list(zip(("decode", "prefill"), LENGTHS, strict=True))


def _torch_logits(tokens: Array) -> Array:
    """Logits (tokens, V) of the model with its weights rounded to fp16, computed in float64."""
    model = llama()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half())
        logits: Array = model.double()(input_ids=torch.as_tensor(tokens)[None]).logits[0].numpy()
    return logits


def test_weights_are_one_array_in_both_functions(converted: Model) -> None:
    decode, prefill = (_weights(converted, name) for name in ("decode", "prefill"))
    # embedding, lm_head, final norm; per layer 4 projections, 3 of the MLP, 2 norms
    assert len(decode) >= 3 + 9 * LAYERS
    assert set(decode) == set(prefill)


def _weights(model: Model, name: str) -> dict[int, str]:
    """Identity of a large constant's array -> name."""
    found: dict[int, str] = {}
    for op in operations(model.function(name)):
        value: Any = constant(op.outputs[0])
        if op.op_type == "const" and getattr(value, "nbytes", 0) >= 64 and value.dtype == np.float16:
            found[id(value)] = op.name
    return found


def test_progress_tells_every_step(converted: Model, steps: list[str]) -> None:
    assert len(converted.functions) == 2
    assert steps[-1].startswith("in its declared precision, the program is off by 0.00")
    assert [step.split(" (")[0] for step in steps[:-1]] == [
        "load tiny",
        "trace and check decode",
        "convert decode",
        "trace and check prefill",
        "convert prefill",
        "share the weights",
        "check the program",
    ]


def test_trained_weights_convert(shared: Path) -> None:
    source = shared / "models/stories260K/hf"
    if not source.is_dir():
        pytest.skip("../shared/models/stories260K/hf is absent")
    model = convert(source, context=CONTEXT, query_lengths=(8,), dtype="float32")
    tokens = np.array([1, 403, 407, 261, 378, 432, 384, 291])
    interface = {name: shape_of(var) for name, var in model.function().inputs.items()}
    feeds: dict[str, Array] = {name: np.zeros(shape, np.float32) for name, shape in interface.items()}
    feeds |= {
        "input_ids": tokens[None].astype(np.int32),
        "position_ids": np.arange(8, dtype=np.int32)[None],
        "causal_mask": causal_mask(CONTEXT, 8, past=0),
    }
    got = compile(model, precision="float64").run(feeds)["logits"][0].numpy()

    from milopt.huggingface.sources import open_source

    with torch.no_grad():
        wanted = open_source(source, context=CONTEXT).model.double()(input_ids=torch.as_tensor(tokens)[None]).logits[0]
    # nothing is rounded but torch's cosines, to float32: 2.4e-6 of logits up to 19 was seen
    np.testing.assert_allclose(got, wanted.numpy(), rtol=0, atol=5e-5)

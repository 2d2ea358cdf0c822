"""Weights that come from quantized matrices: which form each type has, and programs that compute the same with it."""

from __future__ import annotations

import json
import re
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from milopt.huggingface import ConversionError, convert
from milopt.huggingface.affine import small_floats
from milopt.huggingface.fitting import best_form
from milopt.huggingface.forms import Form
from milopt.huggingface.gguf_tensors import gguf_tensors
from milopt.huggingface.ggufs import amend, read_gguf
from milopt.huggingface.kept import Kept
from milopt.huggingface.origins import Grid, Quantized
from milopt.huggingface.quantized import decoded
from milopt.mil import constant, operations
from milopt.package import Model, load
from milopt.package.tensors import stored_tensors
from milopt.passes.decompression import compressed_weights
from milopt.pipeline import Pipeline
from milopt.verify import compare
from tests.huggingface.gguf_files import write
from tests.huggingface.quantized_files import Tensors, awq, compressed, four_bits, gptq, gptq_folder
from tests.huggingface.support import library, llama
from tests.huggingface.test_checkpoint_gguf import family_model
from tests.huggingface.test_forms import require_same

pytest.importorskip("gguf", reason="milopt[huggingface] is not installed")

_ROWS, _COLUMNS, _RUN = 32, 256, 64
_GROUPS = _COLUMNS // _RUN


def _elements(file: Path, class_name: str = "LlamaForCausalLM") -> dict[str, Any]:
    """A GGUF's matrices, without a model made of them."""
    config = library("transformers").AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name)
    held = read_gguf(file)
    amend(config, held)
    return dict(gguf_tensors(held, config, class_name))


def _form(values: torch.Tensor, grid: Grid | None, dtype: Any = np.float16) -> tuple[Form | None, str]:
    """The form of a whole matrix, which is compared with the floats."""
    assert grid is not None
    array: Any = values.numpy().astype(dtype)
    scales: Any = None if grid.scales is None else grid.scales().numpy()
    levels: Any = None if grid.levels is None else grid.levels.numpy()
    form, reason = best_form(array, scales, levels, grid.tables)
    if form is not None:
        require_same(form, array)
    return form, reason


def _of(elements: Any, dtype: Any = np.float16) -> tuple[Form | None, str]:
    assert isinstance(elements, Quantized)
    return _form(elements(), elements.origin.grid, dtype)


# 256 columns, which blocks of the K types need
_WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1, "vocab_size": 64}


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        ("Q4_0", "int4, a scale for 1 x 32", ""),
        ("Q4_1", "4 bits, a table for 1 x 32", ""),
        ("Q5_0", "int8, a scale for 1 x 32", ""),
        ("Q5_1", None, "integers times its scales are other numbers; tables of 64 numbers for blocks of 32"),
        ("Q8_0", "int8, a scale for 1 x 32", ""),
        ("Q2_K", "2 bits, a table for 1 x 16", ""),
        ("Q3_K", "3 bits, a table for 1 x 16", ""),
        ("Q4_K", "4 bits, a table for 1 x 32", ""),
        ("Q5_K", None, "scales have no fp16 form, as .*; tables of 64 numbers for blocks of 32"),
        ("Q6_K", None, "scales have no fp16 form, as .*; tables of 16 numbers for blocks of 16 would be 125% of"),
        ("TQ1_0", "2 bits, one table, a scale for 1 x 256", ""),
        ("TQ2_0", "2 bits, one table, a scale for 1 x 256", ""),
        ("MXFP4", "4 bits, one table, a scale for 1 x 32", ""),
        ("NVFP4", "4 bits, one table, a scale for 1 x 16", ""),
        ("IQ4_NL", "4 bits, one table, a scale for 1 x 32", ""),
        ("IQ4_XS", "4 bits, a table for 1 x 32", ""),
        ("IQ2_XXS", "3 bits, a table for 1 x 32", ""),
        ("IQ2_XS", "3 bits, a table for 1 x 16", ""),
        ("IQ3_S", "4 bits, a table for 1 x 32", ""),
        ("IQ1_S", "2 bits, a table for 1 x 32", ""),
    ],
)
def test_types_of_gguf(kind: str, text: str | None, reason: str, tmp_path: Path) -> None:
    elements = _elements(write(tmp_path / "a.gguf", llama(**_WIDE), kind=kind))
    # rows of the queries are in another order than in the file
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight"):
        form, why = _of(elements[name])
        assert (form.text if form is not None else None) == text, why
        assert form is not None or re.search(reason, why)
    assert {each.origin.kind for each in elements.values() if isinstance(each, Quantized)} == {kind}


@pytest.mark.parametrize(
    ("family", "class_name", "name", "text"),
    [
        # transformers' GPT-2 has its matrices transposed
        ("gpt-2", "GPT2LMHeadModel", "transformer.h.0.mlp.c_fc.weight", "int4, a scale for 32 x 1"),
        ("phi-3", "Phi3ForCausalLM", "model.layers.0.self_attn.qkv_proj.weight", "int4, a scale for 1 x 32"),
        ("gemma-2", "Gemma2ForCausalLM", "model.layers.0.self_attn.q_proj.weight", "int4, a scale for 1 x 32"),
    ],
)
def test_arrangements_of_families(family: str, class_name: str, name: str, text: str, tmp_path: Path) -> None:
    elements = _elements(write(tmp_path / "a.gguf", family_model(family), kind="Q4_0"), class_name)
    form, reason = _of(elements[name])
    assert form is not None, reason
    assert form.text == text


def test_scales_in_fp32(tmp_path: Path) -> None:
    """What fp16 has no place for, a program of fp32 has."""
    elements = _elements(write(tmp_path / "a.gguf", llama(**_WIDE), kind="Q6_K"))
    form, _ = _of(elements["model.layers.0.mlp.down_proj.weight"], np.float32)
    assert form is not None
    assert form.text == "int8, a scale for 1 x 16"


def _drawn(low: int, high: int, *shape: int) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(sum(shape)))


def _scales(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 0.02 + 0.001).to(dtype)


def _gptq_of(bits: int, zero: int | None) -> Tensors:
    zeros = _drawn(1, 1 << bits, _ROWS, _GROUPS) if zero is None else torch.full((_ROWS, _GROUPS), zero)
    return gptq(_drawn(0, 1 << bits, _ROWS, _COLUMNS), zeros, _scales(_ROWS, _GROUPS), bits, 1)


def _packed_of(bits: int, dtype: torch.dtype) -> Tensors:
    half = 1 << (bits - 1)
    scales = _scales(_ROWS, _GROUPS, dtype=dtype)
    return compressed(_drawn(-half, half, _ROWS, _COLUMNS), None, scales, bits)


def _bytes_of(*shape: int, dtype: torch.dtype) -> Tensors:
    return {"weight": _drawn(-128, 128, _ROWS, 1024).to(torch.int8), "weight_scale": _scales(*shape, dtype=dtype)}


_FP8 = {"weight": (_drawn(0, 127, _ROWS, _COLUMNS) + _drawn(0, 2, _ROWS, _COLUMNS) * 128).to(torch.uint8)}
_FP8["weight"] = _FP8["weight"].view(torch.float8_e4m3fn)
_NF4 = torch.linspace(-1, 1, 16) ** 3
_GPTQ, _AWQ = {"quant_method": "gptq"}, {"quant_method": "awq", "bits": 4, "version": "gemm"}
_CT = {"quant_method": "compressed-tensors"}


@pytest.mark.parametrize(
    ("tensors", "settings", "kind", "text"),
    [
        (_gptq_of(4, None), _GPTQ | {"bits": 4}, "4 bits", "uint4, a scale and an offset for 1 x 64"),
        (_gptq_of(4, 8), _GPTQ | {"bits": 4}, "4 bits", "int4, a scale for 1 x 64"),
        (_gptq_of(3, 4), _GPTQ | {"bits": 3}, "3 bits", "int4, a scale for 1 x 64"),
        (_gptq_of(2, 2), _GPTQ | {"bits": 2}, "2 bits", "2 bits, one table, a scale for 1 x 64"),
        (_gptq_of(2, None), _GPTQ | {"bits": 2}, "2 bits", "2 bits, a table for 1 x 64"),
        (_gptq_of(8, None), _GPTQ | {"bits": 8}, "8 bits", "uint8, a scale and an offset for 1 x 64"),
        (
            awq(_drawn(0, 16, _ROWS, _COLUMNS), _drawn(0, 16, _ROWS, _GROUPS), _scales(_ROWS, _GROUPS)),
            _AWQ,
            "4 bits",
            "uint4, a scale and an offset for 1 x 64",
        ),
        (_packed_of(4, torch.bfloat16), _CT | {"bits": 4}, "4 bits", "int4, a scale for 1 x 64"),
        (_packed_of(8, torch.float16), _CT | {"bits": 8}, "8 bits", "int8, a scale for 1 x 64"),
        (_packed_of(8, torch.float32), _CT | {"bits": 8}, "8 bits", None),
        (_bytes_of(_ROWS, 1, dtype=torch.bfloat16), _CT, "8 bits", "int8, a scale for 1 x 1024"),
        (_bytes_of(_ROWS, 1, dtype=torch.float32), _CT, "8 bits", "8 bits, a table for 1 x 1024"),
        (_bytes_of(1, dtype=torch.float32), _CT, "8 bits", "8 bits, a table for 32 x 1024"),
        (_FP8 | {"weight_scale": torch.tensor([0.5])}, _CT, "fp8", "8 bits, one table, a scale for 32 x 256"),
        (
            _FP8 | {"weight_scale_inv": _scales(2, 1, dtype=torch.bfloat16)},
            {"quant_method": "fp8", "weight_block_size": [16, 512]},
            "fp8",
            "8 bits, one table, a scale for 16 x 256",
        ),
        (
            {"weight": _drawn(-127, 128, _ROWS, 1024).to(torch.int8), "SCB": _scales(_ROWS, dtype=torch.float32)},
            {"quant_method": "bitsandbytes"},
            "int8",
            "8 bits, a table for 1 x 1024",
        ),
        (
            four_bits(_drawn(0, 16, _ROWS, _COLUMNS), _NF4, _scales(_ROWS * _GROUPS, dtype=torch.float32), _RUN),
            {"quant_method": "bitsandbytes"},
            "nf4",
            "4 bits, a table for 1 x 64",
        ),
    ],
)
def test_types_of_safetensors(tensors: Tensors, settings: dict[str, Any], kind: str, text: str | None) -> None:
    if settings["quant_method"] == "compressed-tensors":
        settings = settings | {"config_groups": {"a": {"weights": {"num_bits": settings.get("bits", 8)}}}}
    held = {f"a.{name}": partial(_itself, each) for name, each in tensors.items()}
    ((_, matrix, _),) = decoded(held, settings)
    form, reason = _form(matrix.values(), matrix.grid())
    assert (form.text if form is not None else None) == text, reason
    assert matrix.kind == kind


def _itself(value: torch.Tensor) -> torch.Tensor:
    return value


def test_an_order_of_columns() -> None:
    """Groups of columns that lie apart are no blocks, in whatever order whole ones are."""
    plain, settings = _gptq_of(4, None), _GPTQ | {"bits": 4}
    for order, whole in (
        (torch.arange(_COLUMNS) // _RUN, True),
        (3 - torch.arange(_COLUMNS) // _RUN, True),
        (torch.arange(_COLUMNS) % _GROUPS, False),
        (torch.cat((torch.zeros(32), torch.ones(64), torch.zeros(32), torch.ones(128))), False),
    ):
        tensors = plain | {"g_idx": order.to(torch.int32)}
        ((_, matrix, _),) = decoded({f"a.{name}": partial(_itself, each) for name, each in tensors.items()}, settings)
        assert (matrix.grid() is not None) is whole
        if whole:
            form, _ = _form(matrix.values(), matrix.grid())
            assert form is not None
            assert form.text.startswith("uint4")


def test_blocks_that_begin_within_rows() -> None:
    tensors = four_bits(_drawn(0, 16, 32, 96), _NF4, _scales(48, dtype=torch.float32), _RUN)
    held = {f"a.{name}": partial(_itself, each) for name, each in tensors.items()}
    ((_, matrix, _),) = decoded(held, {"quant_method": "bitsandbytes"})
    assert matrix.grid() is None
    assert matrix.beyond == "its blocks of 64 elements begin within rows of 96"


def test_floats_of_eight_bits() -> None:
    levels = small_floats(torch.float8_e4m3fn)
    assert len(levels) == 254
    assert bool((levels.diff() >= 0).all())
    assert [bool(torch.signbit(each)) for each in levels[levels == 0]] == [True, False]


# What the programs of both routes have in common.
_SIZES: dict[str, Any] = {"context": 16, "query_lengths": (2,)}


def _both(source: Path) -> tuple[Model, Model, Kept]:
    told: list[Kept] = []
    floats = convert(source, **_SIZES, quantized="floats", kept=told.append)
    kept = convert(source, **_SIZES, kept=told.append)
    assert not any(each.form for each in told[0].fates)
    return floats, kept, told[1]


def _require_same_weights(floats: Model, kept: Model) -> Counter[str]:
    """Every weight that is compressed is one of the floats, bit for bit; the ops that make them."""
    known = {
        each.tobytes()
        for op in operations(floats.function())
        if op.op_type == "const" and isinstance(each := constant(op.outputs[0]), np.ndarray)
    }
    weights = compressed_weights(kept)
    assert all(each.array.tobytes() in known for each in weights)
    return Counter(each.places[0].op.op_type for each in weights)


@pytest.mark.parametrize(
    ("kind", "op", "share"),
    [("Q4_0", "constexpr_blockwise_shift_scale", 1.0), ("Q4_1", "constexpr_lut_to_dense", 2.4)],
)
def test_a_gguf(kind: str, op: str, share: float, tmp_path: Path) -> None:
    floats, kept, told = _both(write(tmp_path / "a.gguf", llama(num_hidden_layers=1), kind=kind))
    assert [(each.kind, each.kept, round(each.after / each.before, 1)) for each in told.rows()] == [(kind, 9, share)]
    assert _require_same_weights(floats, kept) == {op: 9}
    assert compare(floats, kept)
    before = [each.array.tobytes() for each in compressed_weights(kept)]
    assert Pipeline.default().run(kept, verify="stage")
    kept.save(tmp_path / "a.mlpackage")
    again = load(tmp_path / "a.mlpackage")
    assert sorted(each.array.tobytes() for each in compressed_weights(again)) == sorted(before)
    assert not [each for each in operations(again.function()) if each.op_type == "linear"]


def test_gptq_in_a_program(tmp_path: Path) -> None:
    folder, _ = gptq_folder(tmp_path / "a")
    floats, kept, told = _both(folder)
    (row,) = told.rows()
    assert (row.kind, row.form, row.kept, row.tensors) == ("gptq, 4 bits", "int4, a scale for 1 x 32", 14, 14)
    assert _require_same_weights(floats, kept) == {"constexpr_blockwise_shift_scale": 14}
    assert compare(floats, kept)


def test_functions_share_what_is_kept(tmp_path: Path) -> None:
    file = write(tmp_path / "a.gguf", llama(num_hidden_layers=1, tie_word_embeddings=True), kind="Q8_0")
    convert(file, context=16, query_lengths=(1, 2)).save(tmp_path / "a.mlpackage")
    model = load(tmp_path / "a.mlpackage")
    integers = [each for each in stored_tensors(model) if each.dtype == "int8"]
    assert len(integers) == 8
    assert {each.functions for each in integers} == {("decode", "prefill")}
    # the head is the embedding
    assert [each.shape for each in integers].count((512, 64)) == 1


def test_what_stays_floats(tmp_path: Path) -> None:
    told: list[Kept] = []
    model = convert(write(tmp_path / "a.gguf", llama(**_WIDE), kind="Q6_K"), **_SIZES, kept=told.append)
    assert not compressed_weights(model)
    (row,) = told[0].rows()
    assert (row.kind, row.form, row.kept) == ("Q6_K", "floats", 0)
    assert row.after > 2.4 * row.before
    assert 0 < row.rounded < row.after / 2
    told_of = next(each for each in told[0].fates if each.name == "blk.0.ffn_down.weight")
    assert re.fullmatch(
        r"blk\.0\.ffn_down\.weight: Q6_K: its scales are products of two numbers; \d+ of 4096 scales have no fp16 "
        r"form, as [-.e\d]+; tables of 16 numbers for blocks of 16 would be 125% of the floats; stored as floats, "
        r"[\d,]+ of 65,536 numbers rounded; 53,760 bytes in the file, 131,072 in the package",
        str(told_of),
    )


def test_a_head_that_is_stored_twice(tmp_path: Path) -> None:
    model = llama(num_hidden_layers=1)
    with torch.no_grad():
        model.lm_head.weight.copy_(model.model.embed_tokens.weight)
    told: list[Kept] = []
    convert(write(tmp_path / "a.gguf", model, kind="Q8_0"), **_SIZES, kept=told.append)
    fates = {each.name: each for each in told[0].fates}
    words, head = fates["token_embd.weight"], fates["output.weight"]
    assert words.form == head.form == "int8, a scale for 1 x 32"
    assert (words.after, head.after) == (words.before, 0)


def test_what_has_no_blocks_in_the_program(tmp_path: Path) -> None:
    """Groups of columns that lie apart stay floats, beside others that are kept."""
    folder, _ = gptq_folder(tmp_path / "a")
    tensors = dict(library("safetensors.torch").load_file(folder / "model.safetensors"))
    name = "model.layers.1.mlp.up_proj"
    tensors[f"{name}.g_idx"] = (torch.arange(64) % 2).to(torch.int32)
    library("safetensors.torch").save_file(tensors, folder / "model.safetensors")
    told: list[Kept] = []
    convert(folder, **_SIZES, kept=told.append)
    (left,) = [each for each in told[0].fates if not each.form]
    assert (left.name, left.reason) == (f"{name}.weight", "its blocks do not stay whole in the model")
    assert str(told[0]) == "13 of 14 quantized tensors keep their integers"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scales_that_are_no_numbers(bad: float, tmp_path: Path) -> None:
    folder, _ = gptq_folder(tmp_path / "a")
    tensors = dict(library("safetensors.torch").load_file(folder / "model.safetensors"))
    tensors["model.layers.0.mlp.up_proj.scales"][1, 5] = bad
    library("safetensors.torch").save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ConversionError) as caught:
        convert(folder, **_SIZES)
    assert "\n" not in str(caught.value)


def _state(run: int) -> torch.Tensor:
    content = json.dumps({"blocksize": run, "shape": [_ROWS, _COLUMNS]})
    return torch.tensor(list(content.encode()), dtype=torch.uint8)


_NF4_OF = four_bits(_drawn(0, 16, _ROWS, _COLUMNS), _NF4, _scales(_ROWS * _GROUPS), _RUN)


@pytest.mark.parametrize(
    ("tensors", "settings"),
    [
        (_NF4_OF | {"weight.quant_state.bitsandbytes__nf4": _state(0)}, {"quant_method": "bitsandbytes"}),
        (_NF4_OF | {"weight.quant_state.bitsandbytes__nf4": _state(-64)}, {"quant_method": "bitsandbytes"}),
        (_FP8 | {"weight_scale_inv": torch.ones(2, 1)}, {"quant_method": "fp8", "weight_block_size": [-16, 256]}),
        (_FP8 | {"weight_scale_inv": torch.ones(2)}, {"quant_method": "fp8", "weight_block_size": [16, 256]}),
        ({"weight": torch.ones(8, 16, dtype=torch.int8), "weight_scale": torch.ones(3, 1)}, _CT),
    ],
)
def test_blocks_that_make_no_sense(tensors: Tensors, settings: dict[str, Any]) -> None:
    held = {f"a.{name}": partial(_itself, each) for name, each in tensors.items()}
    with pytest.raises(ConversionError, match=r"a: its .* tensors don't fit together") as caught:
        list(decoded(held, settings))
    assert "\n" not in str(caught.value)


def test_an_unknown_treatment(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="unknown treatment of quantized weights 'int4': keep or floats"):
        convert(tmp_path, quantized="int4")  # type: ignore[arg-type]

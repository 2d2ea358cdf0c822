"""Quantized checkpoints are the floats that their integers and scales stand for.

The files are packed here bit by bit, as the formats say, by other code than that which reads them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from milopt.huggingface import ConversionError, convert
from milopt.huggingface.quantized import decoded
from milopt.huggingface.sources import open_source
from tests.huggingface.quantized_files import Tensors, awq, compressed, gptq, gptq_folder, rows_packed

_ROWS, _COLUMNS, _RUN = 16, 64, 32


def _drawn(low: int, high: int, *shape: int) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(sum(shape)))


def _scales(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 0.02 + 0.001).to(dtype)


def _run_of(column: int) -> int:
    return column // _RUN


def _expected(
    integers: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, group: Callable[[int], int]
) -> torch.Tensor:
    result = torch.zeros(integers.shape)
    for row in range(integers.shape[0]):
        for column in range(integers.shape[1]):
            at = row, group(column)
            result[row, column] = float(int(integers[row, column]) - int(zeros[at])) * float(scales[at])
    return result


def _one(tensors: Tensors, settings: dict[str, Any]) -> torch.Tensor:
    held = {f"a.{name}": lambda each=each: each for name, each in tensors.items()}
    ((name, matrix, used),) = decoded(held, settings)
    assert name == "a.weight"
    assert used == set(held)
    return matrix.values()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("form", "less"), [("gptq", 1), ("gptq_v2", 0)])
def test_gptq(bits: int, form: str, less: int) -> None:
    rows = 32  # three bits: 32 in three words
    integers, zeros = _drawn(0, 1 << bits, rows, _COLUMNS), _drawn(1, 1 << bits, rows, 2)
    scales = _scales(rows, 2)
    got = _one(
        gptq(integers, zeros, scales, bits, less), {"quant_method": "gptq", "bits": bits, "checkpoint_format": form}
    )
    assert torch.equal(got, _expected(integers, scales, zeros, _run_of))


def test_gptq_with_an_order_of_its_own() -> None:
    integers, zeros, scales = _drawn(0, 16, _ROWS, _COLUMNS), _drawn(1, 16, _ROWS, 2), _scales(_ROWS, 2)
    order = torch.arange(_COLUMNS).flip(0) % 2
    tensors = gptq(integers, zeros, scales, 4, 1) | {"g_idx": order.to(torch.int32)}
    got = _one(tensors, {"quant_method": "gptq", "bits": 4})
    assert torch.equal(got, _expected(integers, scales, zeros, lambda column: int(order[column])))


def test_symmetric_gptq_by_the_name_of_the_first_form() -> None:
    """Zero points of half the range are stored as they are, as ``gptq_v2`` does, and called ``gptq``."""
    integers, scales = _drawn(0, 16, _ROWS, _COLUMNS), _scales(_ROWS, 2)
    zeros = torch.full((_ROWS, 2), 8)
    wanted = _expected(integers, scales, zeros, _run_of)
    settings = {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq"}
    for less in (0, 1):
        tensors = gptq(integers, zeros, scales, 4, less)
        assert torch.equal(_one(tensors, settings | {"sym": True}), wanted)
    # nothing says that these are symmetric: 9 is a zero point as good as another
    as_stored = gptq(integers, zeros, scales, 4, 0)
    assert torch.equal(_one(as_stored, settings | {"sym": False}), _expected(integers, scales, zeros + 1, _run_of))
    uneven = zeros.clone()
    uneven[3, 1] = 7
    got = _one(gptq(integers, uneven, scales, 4, 0), settings | {"sym": True})
    assert torch.equal(got, _expected(integers, scales, uneven + 1, _run_of))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_zero_point_of_zero_in_gptq(bits: int) -> None:
    """GPTQModel subtracts one from every field of a word at once, with a borrow from the next."""
    rows = 32
    integers, scales = _drawn(0, 1 << bits, rows, _COLUMNS), _scales(rows, 2)
    zeros = _drawn(0, 1 << bits, rows, 2)
    zeros[:3] = 0
    words = rows_packed(zeros.T, bits).long() - sum(1 << shift for shift in range(0, 32, bits))
    tensors = gptq(integers, zeros, scales, bits, 0)
    tensors["qzeros"] = ((words + 2**31) % 2**32 - 2**31).to(torch.int32)
    settings: dict[str, Any] = {"quant_method": "gptq", "bits": bits, "sym": False}
    for writer in ("gptqmodel:4.2.5", ["gptqmodel:0.9.2"]):
        got = _one(tensors, settings | {"meta": {"quantizer": writer}})
        assert torch.equal(got, _expected(integers, scales, zeros, _run_of))
    others: list[dict[str, Any]] = [{}, {"meta": {"quantizer": "autogptq"}}, {"meta": 3}]
    for meta in others:
        with pytest.raises(ConversionError, match="a zero point of 0 is read differently by every program; save it"):
            _one(tensors, settings | meta)


def test_a_zero_point_of_zero_of_three_bits_in_gptq() -> None:
    tensors = gptq(_drawn(0, 8, 32, _COLUMNS), torch.ones(32, 2).long(), _scales(32, 2), 3, 1)
    tensors["qzeros"] = torch.full_like(tensors["qzeros"], -1)
    with pytest.raises(ConversionError, match="a zero point of 0 is read differently by every program"):
        _one(tensors, {"quant_method": "gptq", "bits": 3, "meta": {"quantizer": "gptqmodel:4"}})


def test_awq() -> None:
    integers, zeros, scales = _drawn(0, 16, _ROWS, _COLUMNS), _drawn(0, 16, _ROWS, 2), _scales(_ROWS, 2)
    got = _one(awq(integers, zeros, scales), {"quant_method": "awq", "bits": 4, "version": "gemm"})
    assert torch.equal(got, _expected(integers, scales, zeros, _run_of))


def _groups(bits: int) -> dict[str, Any]:
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": bits}}}}


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_compressed_tensors_packed(bits: int, symmetric: bool) -> None:
    half = 1 << (bits - 1)
    integers, scales = _drawn(-half, half, _ROWS, _COLUMNS), _scales(_ROWS, 2, dtype=torch.bfloat16)
    zeros = torch.zeros(_ROWS, 2, dtype=torch.int64) if symmetric else _drawn(-half, half, _ROWS, 2)
    tensors = compressed(integers, None if symmetric else zeros, scales, bits)
    assert torch.equal(_one(tensors, _groups(bits)), _expected(integers, scales, zeros, _run_of))


@pytest.mark.parametrize("shape", [(1,), (_ROWS, 1)])
def test_compressed_tensors_of_bytes(shape: tuple[int, ...]) -> None:
    integers, scales = _drawn(-128, 128, _ROWS, _COLUMNS), _scales(*shape, dtype=torch.float32)
    got = _one({"weight": integers.to(torch.int8), "weight_scale": scales}, _groups(8))
    every = scales.reshape(-1, 1).expand(_ROWS, 1)
    assert torch.equal(got, _expected(integers, every, torch.zeros(_ROWS, 1), lambda _: 0))


def test_compressed_tensors_of_small_floats() -> None:
    weight = torch.randn(_ROWS, _COLUMNS).to(torch.float8_e4m3fn)
    got = _one({"weight": weight, "weight_scale": torch.tensor([0.5])}, _groups(8))
    assert torch.equal(got, weight.float() * 0.5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"format": "nvfp4-pack-quantized"}, "format 'nvfp4-pack-quantized'"),
        ({"format": "marlin-24"}, "format 'marlin-24'"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "a sparse format"),
        ({"transform_config": {"config_groups": {}}}, "transforms of activations"),
    ],
)
def test_other_compressed_tensors(settings: dict[str, Any], words: str) -> None:
    tensors = {"weight": torch.ones(_ROWS, _COLUMNS, dtype=torch.int8), "weight_scale": torch.ones(1)}
    with pytest.raises(ConversionError, match=f"a: its compressed-tensors tensors don't fit together: {words}"):
        _one(tensors, _groups(8) | settings)


def test_fp8_in_blocks() -> None:
    weight, scales = torch.randn(48, 40).to(torch.float8_e4m3fn), _scales(2, 2, dtype=torch.float32)
    got = _one({"weight": weight, "weight_scale_inv": scales}, {"quant_method": "fp8", "weight_block_size": [32, 32]})
    for row, column in ((0, 0), (31, 31), (32, 31), (31, 32), (47, 39)):
        assert got[row, column] == weight[row, column].float() * scales[row // 32, column // 32]


def test_bitsandbytes_of_bytes() -> None:
    integers, largest = _drawn(-127, 128, _ROWS, _COLUMNS), _scales(_ROWS, dtype=torch.float32)
    got = _one({"weight": integers.to(torch.int8), "SCB": largest}, {"quant_method": "bitsandbytes"})
    assert torch.allclose(got, integers * largest[:, None] / 127, rtol=1e-6)


@pytest.mark.parametrize("nested", [True, False])
def test_bitsandbytes_of_four_bits(nested: bool) -> None:
    indices = _drawn(0, 16, _ROWS * _COLUMNS)
    levels, blocks = torch.linspace(-1, 1, 16), _ROWS * _COLUMNS // 64
    state: dict[str, Any] = {"quant_type": "nf4", "blocksize": 64, "shape": [_ROWS, _COLUMNS], "dtype": "bfloat16"}
    tensors = {"weight": ((indices[0::2] << 4) + indices[1::2]).to(torch.uint8)[:, None], "weight.quant_map": levels}
    if nested:
        inner, offset = torch.linspace(-1, 1, 256), 0.25
        stored = _drawn(0, 256, blocks)
        outer = _scales(blocks // 8, dtype=torch.float32)
        state |= {"nested_blocksize": 8, "nested_offset": offset}
        tensors |= {
            "weight.absmax": stored.to(torch.uint8),
            "weight.nested_quant_map": inner,
            "weight.nested_absmax": outer,
        }
        largest = [float(inner[stored[block]]) * float(outer[block // 8]) + offset for block in range(blocks)]
    else:
        tensors["weight.absmax"] = _scales(blocks, dtype=torch.float32)
        largest = [float(each) for each in tensors["weight.absmax"]]
    content = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    got = _one(tensors | {"weight.quant_state.bitsandbytes__nf4": content}, {"quant_method": "bitsandbytes"})
    wanted = [float(levels[index]) * largest[at // 64] for at, index in enumerate(map(int, indices))]
    assert torch.allclose(got.reshape(-1), torch.tensor(wanted), rtol=1e-6)


@pytest.mark.parametrize("method", ["hqq", "quanto", "aqlm", "mxfp4"])
def test_other_methods_are_named(method: str) -> None:
    with pytest.raises(ConversionError, match=f"quantized by '{method}', which milopt does not decode"):
        list(decoded({}, {"quant_method": method}))


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        ({"quant_method": "gptq", "bits": 5}, {}),
        ({"quant_method": "gptq"}, {}),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, {}),
        ({"quant_method": "gptq", "bits": 4}, {"scales": torch.ones(3, _ROWS)}),
        ({"quant_method": "gptq", "bits": 4}, {"qzeros": torch.ones(2, 1, dtype=torch.int32)}),
        ({"quant_method": "gptq", "bits": 4}, {"g_idx": torch.full((_COLUMNS,), 9, dtype=torch.int32)}),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, {}),
        ({"quant_method": "awq", "bits": 4}, {}),
    ],
)
def test_tensors_that_do_not_fit(settings: dict[str, Any], changes: Tensors) -> None:
    parts = gptq(_drawn(0, 16, _ROWS, _COLUMNS), _drawn(1, 16, _ROWS, 2), _scales(_ROWS, 2), 4, 1) | changes
    tensors = {f"a.{name}": lambda each=each: each for name, each in parts.items()}
    with pytest.raises(ConversionError, match=r"a: its (gptq|awq) tensors don't fit together") as caught:
        list(decoded(tensors, settings))
    assert "\n" not in str(caught.value)


def test_a_whole_checkpoint(tmp_path: Path) -> None:
    folder, wanted = gptq_folder(tmp_path / "a")
    got = open_source(folder, context=16).model.state_dict()
    assert all(torch.equal(got[name], value) for name, value in wanted.state_dict().items())
    told: list[str] = []
    convert(folder, context=16, query_lengths=(2,), progress=told.append)
    assert "decode the weights, which gptq quantized" in told


def test_rounded_activations_are_told(tmp_path: Path) -> None:
    folder, _ = gptq_folder(tmp_path / "a")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= {"activation_scheme": "dynamic"}
    (folder / "config.json").write_text(json.dumps(config))
    told: list[str] = []
    open_source(folder, context=16, progress=told.append)
    assert "activations, which the checkpoint's makers rounded too, stay as they are" in told


@pytest.mark.parametrize("groups", [[1], {"a": "b"}, "x"])
def test_groups_that_are_none(groups: Any, tmp_path: Path) -> None:
    folder, _ = gptq_folder(tmp_path / "a")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "compressed-tensors", "config_groups": groups}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConversionError, match="no tensor is quantized that way"):
        open_source(folder, context=16)


_INT8 = {"quant_method": "compressed-tensors", "format": "int-quantized"}


@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        ((1, 1), {"quant_method": "fp8", "weight_block_size": [0, 0]}),
        ((8, 1, 5), _INT8),
        ((8, 0), _INT8),
        ((8, 1), {**_INT8, "sparsity_config": "x"}),
    ],
)
def test_settings_and_scales_that_make_no_sense(shape: tuple[int, ...], settings: dict[str, Any]) -> None:
    part = "weight_scale_inv" if settings["quant_method"] == "fp8" else "weight_scale"
    held = {"l.weight": torch.ones(8, 16, dtype=torch.int8), f"l.{part}": torch.ones(shape)}
    with pytest.raises(ConversionError, match="tensors don't fit together"):
        list(decoded({name: partial(_itself, value) for name, value in held.items()}, settings))


def _itself(value: torch.Tensor) -> torch.Tensor:
    return value


def test_a_config_that_says_more_than_the_file(tmp_path: Path) -> None:
    folder, _ = gptq_folder(tmp_path / "a")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConversionError, match="its config says 'fp8', but no tensor is quantized that way"):
        open_source(folder, context=16)

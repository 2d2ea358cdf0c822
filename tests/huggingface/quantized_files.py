"""Quantized matrices as the tensors of a checkpoint, packed bit by bit as the formats say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.huggingface.support import library, llama

_save: Callable[..., None] = library("safetensors.torch").save_file
Tensors = dict[str, torch.Tensor]
_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def packed(fields: list[int], bits: int) -> list[int]:
    """Signed words of 32 bits that hold the fields as one string of bits, the first in the lowest."""
    whole = sum(field << (index * bits) for index, field in enumerate(fields))
    words = [whole >> (32 * index) & 0xFFFFFFFF for index in range(-(-len(fields) * bits // 32))]
    return [word - (1 << 32) if word >> 31 else word for word in words]


def rows_packed(matrix: torch.Tensor, bits: int) -> torch.Tensor:
    return torch.tensor([packed([int(each) for each in row], bits) for row in matrix], dtype=torch.int32)


def gptq(integers: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor, bits: int, less: int) -> Tensors:
    # inputs along the rows of words, outputs along their columns
    return {
        "qweight": rows_packed(integers, bits).T.contiguous(),
        "qzeros": rows_packed(zeros.T - less, bits),
        "scales": scales.T.contiguous(),
    }


def awq(integers: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor) -> Tensors:
    def interleaved(matrix: torch.Tensor) -> torch.Tensor:
        eights = matrix.reshape(matrix.shape[0], -1, 8)[:, :, _ORDER]
        return rows_packed(eights.reshape(matrix.shape), 4)

    return {"qweight": interleaved(integers.T), "qzeros": interleaved(zeros.T), "scales": scales.T.contiguous()}


def compressed(integers: torch.Tensor, zeros: torch.Tensor | None, scales: torch.Tensor, bits: int) -> Tensors:
    half = 1 << (bits - 1)
    tensors = {
        "weight_packed": rows_packed(integers + half, bits),
        "weight_scale": scales,
        "weight_shape": torch.tensor(integers.shape),
    }
    if zeros is not None:
        tensors["weight_zero_point"] = rows_packed((zeros + half).T, bits).T.contiguous()
    return tensors


def four_bits(indices: torch.Tensor, levels: torch.Tensor, largest: torch.Tensor, run: int) -> Tensors:
    """bitsandbytes' nf4; ``indices`` (rows, columns)."""
    state: dict[str, Any] = {"blocksize": run, "shape": list(indices.shape), "dtype": "bfloat16"}
    flat = indices.reshape(-1)
    return {
        "weight": ((flat[0::2] << 4) + flat[1::2]).to(torch.uint8)[:, None],
        "weight.quant_map": levels,
        "weight.absmax": largest,
        "weight.quant_state.bitsandbytes__nf4": torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
    }


def gptq_folder(folder: Path) -> tuple[Path, Any]:
    """A Llama whose layers' matrices GPTQ quantized, and the float model that it stands for."""
    model, tensors = llama(), {}
    for name, value in model.state_dict().items():
        layer, _, part = name.rpartition(".")
        if value.dim() != 2 or "layers" not in name:
            tensors[name] = value.clone()
            continue
        rows = len(value)
        scales = (value.reshape(rows, -1, 32).abs().amax(-1) / 7).half()
        integers = (value / scales.float().repeat_interleave(32, 1)).round().clamp(-8, 7) + 8
        zeros = torch.full_like(scales, 8).long()
        for key, each in gptq(integers.long(), zeros, scales, 4, 1).items():
            tensors[f"{layer}.{key}"] = each
        value.copy_((integers - 8) * scales.float().repeat_interleave(32, 1))
        assert part == "weight"
    folder.mkdir()
    model.config.architectures = ["LlamaForCausalLM"]
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}
    model.config.quantization_config = settings
    model.config.save_pretrained(folder)
    _save(tensors, folder / "model.safetensors")
    return folder, model

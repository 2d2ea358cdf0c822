"""Checkpoints that hold integers with scales: GPTQ, AWQ, compressed-tensors, fp8 in blocks, and bitsandbytes.

Their matrices are decoded to the floats that they stand for, in float32, without any of the packages that wrote them.
The layouts are those of AutoGPTQ and GPTQModel (``checkpoint_format`` gptq and gptq_v2), AutoAWQ's GEMM, vLLM's
compressed-tensors 0.20 (pack-quantized, int-quantized, naive-quantized, float-quantized), transformers'
``FineGrainedFP8Config`` and bitsandbytes 0.45 (LLM.int8 and nf4 or fp4).

Importing this module imports torch; milopt does so only while it converts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias, cast

import torch

from milopt.huggingface.affine import Affine, Scaled, small_floats, unpacked
from milopt.huggingface.errors import ConversionError
from milopt.huggingface.origins import evenly

__all__ = ["Matrix", "decoded"]

Tensors: TypeAlias = Mapping[str, Callable[[], torch.Tensor]]
Matrix: TypeAlias = "Affine | Scaled"
"""A decoded matrix (outputs, inputs): integers with scales where it is that, else float32."""

Settings: TypeAlias = Mapping[str, Any]
Decoder: TypeAlias = Callable[["_Layer", Settings], Matrix]
_COMPRESSED = ("pack-quantized", "int-quantized", "naive-quantized", "float-quantized", "mixed-precision", None)
# What torch and Python say of tensors and settings of the wrong shape or type.
_UNFIT = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError, ArithmeticError)
_INTERLEAVED = (0, 2, 4, 6, 1, 3, 5, 7)  # AWQ: the column that each nibble of a word has, the lowest first


class _Layer:
    """What a checkpoint holds of one layer: tensors by the rest of their name."""

    def __init__(self, name: str, tensors: Tensors) -> None:
        self.name = name
        self._tensors = tensors
        self.used: set[str] = set()

    def has(self, part: str) -> bool:
        return f"{self.name}.{part}" in self._tensors

    def __getitem__(self, part: str) -> torch.Tensor:
        key = f"{self.name}.{part}"
        if key not in self._tensors:
            raise ConversionError(f"the quantized checkpoint has no {key}")
        self.used.add(key)
        return self._tensors[key]()

    def get(self, part: str) -> torch.Tensor | None:
        return self[part] if self.has(part) else None


def decoded(tensors: Tensors, settings: Settings) -> Iterator[tuple[str, Matrix, frozenset[str]]]:
    """The quantized layers' ``(name of the weight, matrix, names of the tensors that it was made of)``.

    ``settings`` is the config's ``quantization_config``. ConversionError names a method, or a form of it, that milopt
    does not decode, and tensors that don't fit together.
    """
    method = str(settings.get("quant_method"))
    if method not in _METHODS:
        raise ConversionError(
            f"a checkpoint quantized by {method[:50]!r}, which milopt does not decode ({', '.join(_METHODS)} it does); "
            "convert the model it was made of, or save this one as floats with the package that quantized it"
        )
    marks, decode = _METHODS[method]
    for key in tensors:
        name, _, part = key.rpartition(".")
        if part not in marks or (part == "weight" and not _is_quantized(tensors, name)):
            continue
        layer = _Layer(name, tensors)
        try:
            matrix = decode(layer, settings)
            values = matrix.integers if isinstance(matrix, Affine) else matrix.floats
            assert values.dim() == 2
        except _UNFIT as problem:
            reason = next(iter(str(problem).strip().splitlines()), type(problem).__name__)
            raise ConversionError(f"{name}: its {method} tensors don't fit together: {reason}") from problem
        yield f"{name}.weight", matrix, frozenset(layer.used)


def _is_quantized(tensors: Tensors, name: str) -> bool:
    return any(f"{name}.{part}" in tensors for part in ("weight_scale", "weight_scale_inv", "SCB", "weight.absmax"))


def _gptq(layer: _Layer, settings: Settings) -> Matrix:
    """``qweight`` packs inputs along rows, ``qzeros`` outputs along columns."""
    bits = int(settings["bits"])
    if bits not in (2, 3, 4, 8):
        raise ValueError(f"integers of {bits} bits")
    words, packed, scales, order = layer["qweight"], layer["qzeros"], layer["scales"], layer.get("g_idx")
    outputs, inputs = words.shape[1], words.shape[0] * 32 // bits
    zeros = _gptq_zeros(packed, bits, outputs, settings)
    if scales.shape != zeros.shape:
        raise ValueError(f"scales {tuple(scales.shape)}, zeros {tuple(zeros.shape)}")
    groups = order if order is not None and order.numel() else None
    if groups is not None and (groups.shape != (inputs,) or int(groups.min()) < 0 or int(groups.max()) >= len(scales)):
        raise ValueError(f"g_idx is no group of {len(scales)} for each of {inputs} columns")
    if groups is None and inputs % scales.shape[0]:
        raise ValueError(f"{inputs} columns in {scales.shape[0]} groups")
    return Affine(unpacked(words.T.contiguous(), bits, inputs), scales.T, zeros.T, groups, f"{bits} bits")


def _gptq_zeros(packed: torch.Tensor, bits: int, outputs: int, settings: Settings) -> torch.Tensor:
    """The zero points (groups, outputs): as stored in ``gptq_v2``, one more in ``gptq``.

    Symmetric integers have half of their range for a zero point; some writers store that as it is and call it ``gptq``.
    A zero point of 0 wraps around there. What then stands in the word depends on who wrote it, and what is read on the
    reader: 2**bits for AutoGPTQ's kernels; GPTQModel, which also writes so, adds one to every field of a word at once,
    so that a field carries over into the next.
    """
    stored, form = unpacked(packed, bits, outputs), settings.get("checkpoint_format", "gptq")
    if form not in ("gptq", "gptq_v2"):
        raise ValueError(f"checkpoint_format {form!r}; gptq and gptq_v2 are read")
    if form == "gptq_v2" or (settings.get("sym") and bool((stored == 1 << (bits - 1)).all())):
        return stored
    if int(stored.max()) < (1 << bits) - 1:
        return stored + 1
    if bits == 3 or not _by_gptqmodel(settings):
        raise ValueError(
            "checkpoint_format gptq stores zero points less one, and a zero point of 0 is read differently by every "
            "program; save it with GPTQModel as gptq_v2"
        )
    ones = sum(1 << shift for shift in range(0, 32, bits))
    return unpacked(packed + ones, bits, outputs)


def _by_gptqmodel(settings: Settings) -> bool:
    meta: dict[str, Any] = settings["meta"] if isinstance(settings.get("meta"), dict) else {}
    writers: list[Any] = meta["quantizer"] if isinstance(meta.get("quantizer"), list) else [meta.get("quantizer")]
    return any(str(each).startswith("gptqmodel") for each in writers)


def _awq(layer: _Layer, settings: Settings) -> Matrix:
    version = str(settings.get("version", "gemm")).lower()
    if (int(settings.get("bits", settings.get("w_bit", 4))), version) != (4, "gemm"):
        raise ValueError(f"version {version!r} of {settings.get('bits')} bits; gemm of 4 bits is read")
    weights, zeros, scales = _interleaved(layer["qweight"]), _interleaved(layer["qzeros"]), layer["scales"]
    if scales.shape != zeros.shape or scales.shape[1] != weights.shape[1] or weights.shape[0] % scales.shape[0]:
        raise ValueError(f"weights {tuple(weights.shape)}, scales {tuple(scales.shape)}, zeros {tuple(zeros.shape)}")
    return Affine(weights.T, scales.T, zeros.T, None, "4 bits")


def _interleaved(words: torch.Tensor) -> torch.Tensor:
    """(rows, words) of eight interleaved nibbles -> (rows, columns)."""
    fields = unpacked(words, 4, words.shape[1] * 8).reshape(words.shape[0], -1, 8)
    result = torch.empty_like(fields)
    result[..., list(_INTERLEAVED)] = fields
    return result.reshape(words.shape[0], -1)


def _compressed(layer: _Layer, settings: Settings) -> Matrix:
    """``weight_packed`` holds a row's integers as one string of bits, each raised by half of its range."""
    form = settings.get("format")
    sparsity: dict[str, Any] = settings.get("sparsity_config") or {}
    if form not in _COMPRESSED or layer.has("weight_global_scale"):
        raise ValueError(f"format {form!r}; {', '.join(filter(None, _COMPRESSED))} are read")
    if sparsity.get("format", "dense") != "dense":
        raise ValueError("a sparse format, which is not read")
    if settings.get("transform_config"):
        raise ValueError("transforms of activations, which are not read")
    scales, zeros = layer["weight_scale"], layer.get("weight_zero_point")
    if layer.has("weight"):
        integers = layer["weight"]
        if integers.dtype not in (torch.int8, torch.float8_e4m3fn):
            raise ValueError(f"a weight of {integers.dtype}")
        matrix = _runs(Affine(integers, scales, zeros, layer.get("weight_g_idx"), "8 bits"))
        return matrix if integers.dtype == torch.int8 else _of_levels(matrix)
    words = layer["weight_packed"]
    rows, columns = (int(each) for each in layer["weight_shape"])
    bits = _bits(settings, words.shape[1], columns)
    half = 1 << (bits - 1)
    if zeros is not None and zeros.dtype == torch.int32:
        zeros = unpacked(zeros.T.contiguous(), bits, rows).T - half
    integers = unpacked(words, bits, columns) - half
    if integers.shape != (rows, columns):
        raise ValueError(f"{tuple(integers.shape)} integers, weight_shape says {(rows, columns)}")
    return _runs(Affine(integers, scales, zeros, layer.get("weight_g_idx"), f"{bits} bits"))


def _of_levels(matrix: Affine) -> Scaled:
    """Floats of 8 bits with scales."""
    grid = matrix.grid() if matrix.zeros is None else None
    scales = None if grid is None or grid.scales is None else grid.scales()
    return Scaled(matrix.values(), scales, small_floats(matrix.integers.dtype), "fp8")


def _bits(settings: Settings, words: int, columns: int) -> int:
    """Of the numbers of bits that the config names, the one that makes so many words of the columns."""
    named = {
        int(group["weights"]["num_bits"])
        for group in cast("dict[str, Any]", settings["config_groups"]).values()
        if group.get("weights")
    }
    fitting = [bits for bits in sorted(named) if -(-columns * bits // 32) == words]
    if len(fitting) != 1:
        raise ValueError(f"{words} words for {columns} integers of {sorted(named)} bits")
    return fitting[0]


def _blocks(layer: _Layer, settings: Settings) -> Matrix:
    size = [int(each) for each in settings.get("weight_block_size") or (128, 128)]
    weight, scales = layer["weight"], layer["weight_scale_inv"]
    needed = tuple(-(-length // run) for length, run in zip(weight.shape, size, strict=True))
    if tuple(scales.shape) != needed:
        raise ValueError(f"scales {tuple(scales.shape)} for blocks {size} of {tuple(weight.shape)}")
    spread = scales
    for axis, run in enumerate(size):
        spread = spread.repeat_interleave(run, axis).narrow(axis, 0, weight.shape[axis])
    rows, columns = weight.shape
    equal = evenly(scales, (rows, columns), (size[0], size[1]))
    levels = small_floats(weight.dtype) if weight.dtype.itemsize == 1 else None
    return Scaled(weight.float() * spread.float(), equal, levels, "fp8")


def _runs(matrix: Affine) -> Affine:
    """The matrix, after a look at whether its scales and zeros are for equal runs of it, or for its groups."""
    rows, columns = matrix.integers.shape
    if (groups := matrix.groups) is not None:
        last = matrix.scales.shape[1] - 1
        if groups.shape != (columns,) or not 0 <= int(groups.min()) <= int(groups.max()) <= last:
            raise ValueError("weight_g_idx is no group for each column")
    for each in (matrix.scales, matrix.zeros):
        if each is None or each.numel() == 1:
            continue
        if each.dim() > 2:
            raise ValueError(f"scales or zeros {tuple(each.shape)} for {(rows, columns)} integers")
        shape = (*each.shape, 1)[:2]
        width = shape[1] if matrix.groups is None else 1
        if shape[0] not in (1, rows) or columns % width:
            raise ValueError(f"scales or zeros {tuple(each.shape)} for {(rows, columns)} integers")
    return matrix


def _bitsandbytes(layer: _Layer, settings: Settings) -> Matrix:
    del settings
    if not layer.has("SCB"):
        return _four_bits(layer)
    form = layer.get("weight_format")
    if form is not None and int(form):
        raise ValueError("weights that are laid out for one kind of GPU")
    # bitsandbytes: absolute maxima of rows, which the largest int8 stands for
    largest = layer["SCB"].float().reshape(-1, 1)
    return Scaled(layer["weight"].float() * largest / 127, largest / 127, None, "int8", "products are divided by 127")


def _four_bits(layer: _Layer) -> Matrix:
    states = [part for part in ("nf4", "fp4") if layer.has(f"weight.quant_state.bitsandbytes__{part}")]
    if len(states) != 1:
        raise ValueError("no quant_state")
    content: Any = layer[f"weight.quant_state.bitsandbytes__{states[0]}"]
    state: dict[str, Any] = json.loads(bytes(content.tolist()))
    levels, largest = layer["weight.quant_map"].float(), layer["weight.absmax"]
    if largest.dtype == torch.uint8:
        inner = layer["weight.nested_quant_map"].float()[largest.long()]
        scale = layer["weight.nested_absmax"].float().repeat_interleave(int(state["nested_blocksize"]))
        largest = inner * scale[: len(inner)] + float(state["nested_offset"])
    packed = layer["weight"].reshape(-1)
    # the first of two elements in the higher bits
    indices = torch.stack((packed >> 4, packed & 15), dim=-1).reshape(-1)
    rows, columns = (int(each) for each in state["shape"])
    run = int(state["blocksize"])
    scale = largest.float().repeat_interleave(run)
    if len(scale) < rows * columns:
        raise ValueError(f"{len(largest)} maxima of {run} elements for {rows} x {columns}")
    floats = (levels[indices[: rows * columns].long()] * scale[: rows * columns]).reshape(rows, columns)
    if columns % run:
        return Scaled(floats, None, None, states[0], f"its blocks of {run} elements begin within rows of {columns}")
    scales = largest.float()[: rows * columns // run].reshape(rows, columns // run)
    return Scaled(floats, scales, levels.sort().values, states[0])


_METHODS: dict[str, tuple[frozenset[str], Decoder]] = {
    "gptq": (frozenset({"qweight"}), _gptq),
    "awq": (frozenset({"qweight"}), _awq),
    "compressed-tensors": (frozenset({"weight_packed", "weight"}), _compressed),
    "fp8": (frozenset({"weight"}), _blocks),
    "bitsandbytes": (frozenset({"weight"}), _bitsandbytes),
}

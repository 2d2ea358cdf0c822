"""Weights as small integers with a scale per block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np

from milopt.building import Builder
from milopt.clustering import packed
from milopt.metrics import Lossy, Metric
from milopt.mil import Var, opset_of, shape_of, target
from milopt.package import Model
from milopt.package.weights import Packed
from milopt.passes.compressing import CompressionReport, Encoded, Plan, compress, constant_of
from milopt.passes.compression import note_compressed
from milopt.passes.decompression import weights_again
from milopt.passes.palettes import axis_of, nearest_divisor
from milopt.passes.uses import (
    CHANNEL_AXES,
    INPUT_AXES,
    Layout,
    Place,
    Weight,
    axes_at,
    find_weights,
    layouts_of,
    require_axis,
)
from milopt.pipeline import Pass
from milopt.quantizing import Clip, IntegerType, quantize
from milopt.reports import NoMatch, Report, require, require_opset

__all__ = ["IntegerPlan", "Quantize", "encode_integers"]

Array: TypeAlias = Any  # numpy.ndarray; its generic form is more than pyright strict can follow

_BITS = {"int4": 4, "uint4": 4, "int8": 8, "uint8": 8}

# int8 weights have 45 dB, of which 33 are left where int4 keeps 9.5; after 30 layers, then, about 26. One scale for a
# channel leaves 41 dB of normal weights, one for all of them 38: 4 and 7 less, and less again with outliers.
_INT8 = {"block": 20.0, "channel": 14.0, "tensor": 6.0}


@dataclass(frozen=True)
class Quantize(Pass):
    """A constant weight  ->  ``constexpr_blockwise_shift_scale`` of ``dtype``, a scale per ``block_size`` inputs.

    With ``granularity="block"`` an output channel has a scale for each ``block_size`` input channels (or the nearest
    number that divides them), with ``"channel"`` one, with ``"tensor"`` there is one in all; ``axis`` is that of the
    output channels where they shall not be those that the op has. ``symmetric``: the scale is max|w| / 7 (of 4 bits) or
    / 127, and integers of the signed types need no offset; otherwise they cover the range of the weights and zero.
    ``clip="mse"`` narrows the range where the squared error of the many gains more than that of the largest loses.
    Functions for iOS16 and iOS17 have ``constexpr_affine_dequantize``, of 8 bits and no blocks.

    Weights of ``linear``, ``conv``, ``conv_transpose``, ``matmul`` and ``gather`` are quantized, one that several ops
    or functions hold once; but not

    1. those with fewer than ``min_elements`` numbers, or that would not become smaller;
    2. those that are also an output, an operand of another kind of op or a vector, or whose uses differ in their axes;
    3. tables whose rows only scale other values: cosines and sines of positions;
    4. those that hold NaN or infinity;
    5. those that are compressed already, unless ``recompress``: then the error told is what is added to theirs;
    6. those of functions before iOS16, which have no such op, and before iOS18 of 4 bits or blocks.
    """

    name: ClassVar[str] = "quantize"
    after: ClassVar[tuple[str, ...]] = ("canonicalize", "fp16-safe-norm", "rope-table", "fuse-sdpa", "kv-to-state")
    # int4 weights have 20 dB (normal ones; no block of 32 has less than 10·log10(7² / (31·½²)) = 8), and random tokens
    # use that up layer by layer: 9.5 dB are left after 5 layers, 2.8 after the 30 of SmolLM2-135M. Outputs that have
    # nothing to do with the original's are at -3 dB, zeros at 0: a wrong axis or a shifted block does not pass.
    metric: ClassVar[Metric] = Lossy(min_snr_db=0.5)
    opset: ClassVar[int] = int(target.iOS16)

    dtype: IntegerType = "int4"
    granularity: Literal["tensor", "channel", "block"] = "block"
    block_size: int = 32
    axis: int | None = None
    symmetric: bool = True
    clip: Clip = "minmax"
    recompress: bool = False
    min_elements: int = 2048  # coremltools' weight_threshold, constraints W12

    def __post_init__(self) -> None:
        if self.block_size < 1:
            raise ValueError(f"block_size must be at least 1, not {self.block_size}")

    def run(self, model: Model) -> Report:
        metric = Lossy(_INT8[self.granularity]) if _BITS[self.dtype] == 8 else None
        report = CompressionReport(self.name, metric=metric)
        plans: list[IntegerPlan] = []
        weights = weights_again(model) if self.recompress else find_weights(model)
        for weight in weights:
            report.tried += 1
            try:
                plans.append(self._plan(weight))
            except NoMatch as why:
                report.leave(weight, why)
        if not self.recompress:
            note_compressed(model, report)  # 5
        totals, done = compress(plans, model, report)
        if done:
            report.notes += [
                f"{totals.numbers:,} numbers in {totals.weights} weights: {totals.before:,} -> {totals.after:,} bytes",
                f"SNR of the weights {totals.snr:.1f} dB, the lowest {totals.worst[0]:.1f} dB ({totals.worst[1]})",
                *(f"{text} ({count} weights)" for text, count in self._other_blocks(done).items()),
            ]
        report.sort(model)
        return report

    def _plan(self, weight: Weight) -> IntegerPlan:
        array = weight.array
        require(
            array.size >= max(self.min_elements, 1), "too small: {} of {} numbers", array.size, self.min_elements
        )  # 1
        require(all(len(shape_of(place.var)) > 1 for place in weight.places), "a vector has no channels")  # 2
        require_axis(weight, self.axis)
        channels = layouts_of(weight, CHANNEL_AXES if self.axis is None else axes_at(self.axis))  # 2, 3
        inputs = layouts_of(weight, INPUT_AXES if self.axis is None else axes_at(1 - self.axis % array.ndim % 2))
        uses = ", ".join(dict.fromkeys([*channels.values(), *inputs.values()]))
        alike = len(channels) == 1 and (len(inputs) == 1 or self.granularity != "block")
        require(alike or self.granularity == "tensor", "its uses have their channels on different axes: {}", uses)  # 2
        new = _BITS[self.dtype] == 4 or self.granularity == "block"
        require_opset(min(opset_of(place.op) for place in weight.places), target.iOS18 if new else target.iOS16)  # 6
        along = next(iter(inputs))
        block = nearest_divisor(along.channels, self.block_size) if self.granularity == "block" else along.channels
        plan = IntegerPlan(
            weight, next(iter(channels)), along, block, self.granularity, self.dtype, self.symmetric, self.clip
        )
        require(plan.nbytes < array.nbytes, "{} bytes would become {}", array.nbytes, plan.nbytes)  # 1
        return plan

    def _other_blocks(self, plans: Sequence[IntegerPlan]) -> dict[str, int]:
        """What became of ``block_size`` where it does not divide the inputs, and how often."""
        found: dict[str, int] = {}
        for plan in plans if self.granularity == "block" else ():
            if plan.block != self.block_size:
                text = f"blocks of {plan.block} for {plan.inputs.channels} inputs instead of {self.block_size}"
                found[text] = found.get(text, 0) + 1
        return found


@dataclass(frozen=True)
class IntegerPlan(Plan):
    """One weight to be stored as ``dtype``, with a scale for each output channel and ``block`` input channels."""

    channels: Layout
    inputs: Layout
    block: int
    granularity: str
    dtype: IntegerType
    symmetric: bool
    clip: Clip

    @property
    def form(self) -> str:
        per = {"tensor": "all", "channel": "a channel", "block": f"{self.block} inputs of a channel"}[self.granularity]
        return f"{self.dtype}, a scale{'' if self.symmetric else ' and an offset'} for {per}"

    @property
    def element_bits(self) -> int:
        return _BITS[self.dtype]

    @property
    def shifted(self) -> bool:
        """Whether there is an offset."""
        return not self.symmetric or self.dtype.startswith("u")

    def counts(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the scales where the weight has ``shape``."""
        found = [1] * len(shape)
        if self.granularity != "tensor":
            found[axis_of(self.channels, shape)] = self.channels.channels
        if self.granularity == "block":
            found[axis_of(self.inputs, shape)] = self.inputs.channels // self.block
        return tuple(found)

    @property
    def nbytes(self) -> int:
        array = self.weight.array
        scales, bits = prod(self.counts(array.shape)), _BITS[self.dtype]
        offsets = (scales * bits + 7) // 8 if self.shifted else 0
        return int((array.size * bits + 7) // 8 + scales * array.itemsize + offsets)

    def job(self) -> tuple[Callable[..., Encoded], tuple[Any, ...]]:
        array = self.weight.array
        return encode_integers, (array, self.counts(array.shape), self.dtype, self.symmetric, self.clip)

    def write(self, op: Builder, place: Place, tensors: dict[str, Array | Packed]) -> Var:
        shape = shape_of(place.var)
        counts = self.counts(shape)
        if opset_of(place.op) < target.iOS18:
            return self._affine(op, shape, tensors)
        scale: Array = tensors["scale"]
        inputs = {"data": constant_of(op, "data", tensors["data"], shape), "scale": scale.reshape(counts)}
        if self.shifted:
            inputs["offset"] = constant_of(op, "offset", tensors["offset"], counts)
        made: Var = op.constexpr_blockwise_shift_scale(**inputs)
        return made

    def _affine(self, op: Builder, shape: tuple[int, ...], tensors: dict[str, Any]) -> Var:
        """The op of iOS16: one scale, or one for each place along an axis, and integers for zero like them."""
        whole = self.granularity == "tensor"
        data, scale = tensors["data"].reshape(shape), tensors["scale"]
        zero = tensors["offset"] if self.shifted else np.zeros(len(scale), data.dtype)
        made: Var = op.constexpr_affine_dequantize(
            quantized_data=data,
            zero_point=zero[0] if whole else zero,
            scale=scale[0] if whole else scale,
            axis=np.int32(0 if whole else axis_of(self.channels, shape)),
        )
        return made


def encode_integers(array: Array, counts: tuple[int, ...], dtype: IntegerType, symmetric: bool, clip: Clip) -> Encoded:
    """The tensors of a weight as integers: ``data``, ``scale`` and, where the form has one, ``offset``."""
    found = quantize(array, counts, dtype, symmetric=symmetric, clip=clip)
    kind = "fp16" if array.dtype == np.float16 else "fp32"
    tensors = {
        "data": (_stored(found.data, dtype), dtype, found.data.size),
        "scale": (found.scale, kind, found.scale.size),
    }
    if found.offset is not None:
        tensors["offset"] = (_stored(found.offset, dtype), dtype, found.offset.size)
    return Encoded(tensors, found.error, found.power, found.wrong)


def _stored(integers: Array, dtype: str) -> Array:
    return integers if _BITS[dtype] == 8 else packed(integers.ravel().view(np.uint8), 4)

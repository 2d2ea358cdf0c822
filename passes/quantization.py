"""Weights as small integers with a scale per block."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Literal, TypeAlias

import joblib
import numpy as np

from milopt.building import Builder
from milopt.metrics import Lossy, Metric
from milopt.mil import Operation, constant, opset_of, shape_of, target, types, value_names
from milopt.package import Model
from milopt.passes.compression import note_compressed, snr
from milopt.passes.palettes import axis_of, nearest_divisor, put_in_place
from milopt.passes.uses import CHANNEL_AXES, Axes, Layout, Weight, find_weights, layouts_of
from milopt.pipeline import Pass
from milopt.reports import NoMatch, Report, require, require_opset

__all__ = ["Quantize", "quantize"]

Array: TypeAlias = Any  # numpy.ndarray; its generic form is more than pyright strict can follow

_BITS = {"int4": 4, "int8": 8}

# int8 weights have 45 dB, of which 33 are left where int4 keeps 9.5; after 30 layers, then, about 26
_INT8 = Lossy(min_snr_db=20)


@dataclass(frozen=True)
class Quantize(Pass):
    """A constant weight  ->  ``constexpr_blockwise_shift_scale`` of ``dtype``, a scale per ``block_size`` inputs.

    Symmetric: a block of one output channel and ``block_size`` input channels (or the nearest number that divides
    them) has the scale max|w| / 7 (int4) or / 127 (int8), and no offset. Weights of ``linear``, ``conv``,
    ``conv_transpose``, ``matmul`` and ``gather`` are quantized, one that several ops or functions hold once; but not

    1. those with fewer than ``min_elements`` numbers, or that would not become smaller;
    2. those that are also an output, an operand of another kind of op or a vector, or whose uses differ in their axes;
    3. tables whose rows only scale other values: cosines and sines of positions;
    4. those that hold NaN or infinity;
    5. those that are compressed already;
    6. those of functions before iOS18, which have no such op.
    """

    name: ClassVar[str] = "quantize"
    after: ClassVar[tuple[str, ...]] = ("canonicalize", "fp16-safe-norm", "rope-table", "fuse-sdpa", "kv-to-state")
    # int4 weights have 20 dB (normal ones; no block of 32 has less than 10·log10(7² / (31·½²)) = 8), and random tokens
    # use that up layer by layer: 9.5 dB are left after 5 layers, 2.8 after the 30 of SmolLM2-135M. Outputs that have
    # nothing to do with the original's are at -3 dB, zeros at 0: a wrong axis or a shifted block does not pass.
    metric: ClassVar[Metric] = Lossy(min_snr_db=0.5)
    opset: ClassVar[int] = int(target.iOS18)

    dtype: Literal["int4", "int8"] = "int4"
    block_size: int = 32
    min_elements: int = 2048  # coremltools' weight_threshold, constraints W12

    def __post_init__(self) -> None:
        if self.block_size < 1:
            raise ValueError(f"block_size must be at least 1, not {self.block_size}")

    def run(self, model: Model) -> Report:
        report = Report(self.name, metric=_INT8 if self.dtype == "int8" else None)
        plans: list[_Plan] = []
        for weight in find_weights(model):
            report.tried += 1
            try:
                plans.append(self._plan(weight))
            except NoMatch as why:
                place = weight.places[0]
                report.decline(place.function, why.at if why.at is not None else place.op, why.text, *why.arguments)
        note_compressed(model, report)  # 5
        if plans:
            _quantize_all(model, plans, report)
            for text, count in self._other_blocks(plans).items():
                report.notes.append(f"{text} ({count} weights)")
        return report

    def _plan(self, weight: Weight) -> _Plan:
        array = weight.array
        require(
            array.size >= max(self.min_elements, 1), "too small: {} of {} numbers", array.size, self.min_elements
        )  # 1
        require(all(len(shape_of(place.var)) > 1 for place in weight.places), "a vector has no channels")  # 2
        channels, inputs = layouts_of(weight), layouts_of(weight, _INPUT_AXES)  # 2, 3
        uses = ", ".join(dict.fromkeys([*channels.values(), *inputs.values()]))
        require(len(channels) == len(inputs) == 1, "its uses have their channels on different axes: {}", uses)  # 2
        require_opset(min(opset_of(place.op) for place in weight.places), target.iOS18)  # 6
        wrong = array.size - int(np.count_nonzero(np.isfinite(array)))
        require(not wrong, "holds {} values that are not finite", wrong)  # 4
        along = next(iter(inputs))
        plan = _Plan(weight, next(iter(channels)), along, nearest_divisor(along.channels, self.block_size), self.dtype)
        require(plan.nbytes < array.nbytes, "{} bytes would become {}", array.nbytes, plan.nbytes)  # 1
        return plan

    def _other_blocks(self, plans: list[_Plan]) -> dict[str, int]:
        """What became of ``block_size`` where it does not divide the inputs, and how often."""
        found: dict[str, int] = {}
        for plan in plans:
            if plan.block != self.block_size:
                text = f"blocks of {plan.block} for {plan.inputs.channels} inputs instead of {self.block_size}"
                found[text] = found.get(text, 0) + 1
        return found


def _beside_rows(op: Operation) -> int:
    """A gather's rows lie along its axis; their blocks along the last other one."""
    axis, rank = int(constant(op.axis)), len(shape_of(op.x))
    return -2 if axis % rank == rank - 1 else -1


# (op type, input) -> the axis of the weight that holds its input channels; coremltools' choice, as for CHANNEL_AXES
_INPUT_AXES: Axes = {
    ("linear", "weight"): lambda op: 1,
    ("conv", "weight"): lambda op: 1,
    ("conv_transpose", "weight"): lambda op: 0,
    ("matmul", "x"): lambda op: -3 - CHANNEL_AXES["matmul", "x"](op),
    ("matmul", "y"): lambda op: -3 - CHANNEL_AXES["matmul", "y"](op),
    ("gather", "x"): _beside_rows,
}


@dataclass(frozen=True)
class _Plan:
    """One weight to be stored as ``dtype``, with a scale for each output channel and ``block`` input channels."""

    weight: Weight
    channels: Layout
    inputs: Layout
    block: int
    dtype: str

    def scales(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the scales where the weight has ``shape``."""
        counts = [1] * len(shape)
        counts[axis_of(self.channels, shape)] = self.channels.channels
        counts[axis_of(self.inputs, shape)] = self.inputs.channels // self.block
        return tuple(counts)

    @property
    def nbytes(self) -> int:
        """The size on disk, without the header of 64 bytes that each array has there."""
        array = self.weight.array
        return int((array.size * _BITS[self.dtype] + 7) // 8 + prod(self.scales(array.shape)) * array.itemsize)

    def compute(self) -> tuple[Array, Array]:
        return quantize(self.weight.array, self.scales(self.weight.array.shape), _BITS[self.dtype])

    def place(self, data: Array, scale: Array, taken: dict[str, set[str]]) -> None:
        """Put the integers and scales where the weight stands. ``taken`` holds the names of each function's values."""
        kind = types.nptype_from_builtin(types.string_to_builtin(self.dtype))
        for place in self.weight.places:
            shape = shape_of(place.var)
            op = Builder(place.op, taken[place.function])
            new = op.constexpr_blockwise_shift_scale(
                data=data.view(kind).reshape(shape), scale=scale.reshape(self.scales(shape))
            )
            put_in_place(place, new)


def quantize(array: Array, counts: tuple[int, ...], bits: int) -> tuple[Array, Array]:
    """The integers (int8, of ``array``'s shape) and the scales (of its dtype, shape ``counts``), symmetric around zero.

    Axis ``a`` is cut into ``counts[a]`` blocks; ``counts[a]`` divides it. With ``m = 2**(bits - 1) - 1``, a block's
    scale is max|w| / m, and ``scale * integer`` is nowhere further from ``w`` than half a scale, but for its rounding.
    """
    most = 2 ** (bits - 1) - 1
    split = [size for count, whole in zip(counts, array.shape, strict=True) for size in (count, whole // count)]
    blocks: Array = np.reshape(array, split)
    inner = tuple(range(1, len(split), 2))
    # fp32 holds the products of fp16 numbers; fp32 weights need more
    exact: Array = blocks.astype(np.float64 if array.dtype == np.float32 else np.float32)
    largest: Array = np.abs(exact).max(axis=inner, keepdims=True)
    scale: Array = (largest / most).astype(array.dtype)
    # among the subnormals, rounding may take away so much that the largest number is past the last integer
    short = largest > (most + 0.5) * scale.astype(exact.dtype)
    scale = np.where(short, np.nextafter(scale, np.array(np.inf, array.dtype)), scale)
    scale = np.where(largest == 0, np.array(1, array.dtype), scale)  # all zeros: 0 * 1
    exact /= scale.astype(exact.dtype)
    return np.rint(exact).astype(np.int8).reshape(array.shape), scale.reshape(counts)


def _quantize_all(model: Model, plans: list[_Plan], report: Report) -> None:
    taken = {name: value_names(function) for name, function in model.functions.items()}
    jobs = (joblib.delayed(plan.compute)() for plan in plans)
    found = joblib.Parallel(n_jobs=-1, prefer="threads", return_as="generator")(jobs)
    power = error = before = after = numbers = 0.0
    for plan, (data, scale) in zip(plans, found, strict=True):
        plan.place(data, scale, taken)
        report.applied += len(plan.weight.places)
        numbers, before, after = numbers + data.size, before + plan.weight.array.nbytes, after + plan.nbytes
        signal, noise = _powers(plan.weight.array, data, scale)
        power, error = power + signal, error + noise
    report.notes += [
        f"{numbers:,.0f} numbers in {len(plans)} weights: {before:,.0f} -> {after:,.0f} bytes",
        f"SNR of the weights {snr(power, error):.1f} dB",
    ]


def _powers(array: Array, data: Array, scale: Array) -> tuple[float, float]:
    """The sums of squares of a weight and of what quantizing changed in it."""
    signal: Array = array.astype(np.float32).ravel()
    for axis, (count, size) in enumerate(zip(scale.shape, data.shape, strict=True)):
        scale = np.repeat(scale, size // count, axis)
    changed: Array = (data * scale).astype(np.float32).ravel() - signal
    return float(signal @ signal), float(changed @ changed)

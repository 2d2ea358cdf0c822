"""Compressed weights: how each is stored, and what it would be otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from milopt.mil import (
    Operation,
    Var,
    arguments,
    constant,
    dtype_name,
    is_constant,
    is_constexpr,
    is_output,
    operations,
    shape_of,
)
from milopt.opaque import Opaque
from milopt.package import Model
from milopt.package.tensors import box_of, bytes_of, stored_key

__all__ = ["Compressed", "Step", "compressed_weights"]

_QUANTIZED = {
    "constexpr_blockwise_shift_scale": "data",
    "constexpr_sparse_blockwise_shift_scale": "nonzero_data",
}
_NONZERO = {
    "constexpr_sparse_to_dense": "nonzero_data",
    "constexpr_sparse_blockwise_shift_scale": "nonzero_data",
    "constexpr_lut_to_sparse": "indices_nonzero_data",
}


@dataclass(frozen=True)
class Step:
    """What one ``constexpr_*`` op does.

    ``bits`` are those of a stored element. ``block`` is the part of the weight, by axis, that has one table or one
    scale of its own, ``blocks`` how many there are, and ``per`` the same in words; ``vector`` the length of a table's
    entries where they are vectors. ``density`` is the share of elements that are stored, of sparse weights.
    """

    op: str
    scheme: str
    bits: int | None = None
    block: tuple[int, ...] = ()
    blocks: int = 1
    per: str = ""
    vector: int = 1
    offsets: bool = False
    density: float | None = None

    def __str__(self) -> str:
        parts = [self.scheme if self.bits is None else f"{self.scheme} {self.bits} bits"]
        if self.per:
            parts.append(self.per)
        if self.vector > 1:
            parts.append(f"vectors of {self.vector}")
        if self.offsets:
            parts.append("with offsets")
        if self.density is not None:
            parts.append(f"{self.density:.0%} stored")
        return ", ".join(parts)


@dataclass(frozen=True)
class Compressed:
    """A weight that ops see as ``dtype`` and ``shape`` and the package holds in fewer bytes.

    ``steps`` are the ops that make it, the last one first. ``bytes`` are those of all tensors they are made of,
    ``dense_bytes`` those it would have uncompressed.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    dense_bytes: int
    steps: tuple[Step, ...]
    functions: tuple[str, ...]

    @property
    def scheme(self) -> str:
        """All steps in one text, without the density: what weights of one kind have in common."""
        return " of ".join(str(replace(each, density=None)) for each in self.steps)

    def __str__(self) -> str:
        return " of ".join(map(str, self.steps))


def compressed_weights(model: Model) -> tuple[Compressed, ...]:
    """Every compressed weight, the largest first; one that several functions make of the same tensors is one."""
    found: dict[object, Compressed] = {}
    for name, function in model.functions.items():
        for op in operations(function):
            if not _ends_in(op):
                continue
            chain = list(_chain(op))
            tensors = dict(_tensors(chain))
            var = op.outputs[-1]  # a mask comes first
            key = tuple(each.op_type for each in chain), tuple(tensors), shape_of(var)
            if key in found:
                known = found[key]
                found[key] = replace(known, functions=tuple(dict.fromkeys([*known.functions, name])))
                continue
            shape, dtype = shape_of(var), dtype_name(var)
            found[key] = Compressed(
                var.name,
                dtype,
                shape,
                sum(tensors.values()),
                bytes_of(shape, dtype),
                tuple(map(_step, chain)),
                (name,),
            )
    return tuple(sorted(found.values(), key=lambda each: (-each.dense_bytes, each.name)))


def _is_step(op: Operation | None) -> bool:
    return op is not None and is_constexpr(op.op_type) and not isinstance(op, Opaque)


def _ends_in(op: Operation) -> bool:
    """Whether the op's result is a weight, and not what another ``constexpr_*`` is made of."""
    users = [user for var in op.outputs for user in var.child_ops]
    return _is_step(op) and not (users and all(map(_is_step, users)) and not any(map(is_output, op.outputs)))


def _chain(op: Operation) -> Iterator[Operation]:
    yield op
    producers = (var.op for _, var in arguments(op))
    for each in dict.fromkeys(each for each in producers if each is not None and _is_step(each)):
        yield from _chain(each)


def _tensors(chain: list[Operation]) -> Iterator[tuple[object, int]]:
    """Key and bytes of the constants that the ops take; numbers, which take no room worth telling, are left out."""
    for op in chain:
        for _, var in arguments(op):
            if is_constant(var) and var.rank and (box := box_of(var)) is not None:
                yield stored_key(box), bytes_of(shape_of(var), dtype_name(var))


def _step(op: Operation) -> Step:
    kind, given = op.op_type, op.inputs
    density = None
    if kind in _NONZERO:
        whole = shape_of(given["indices_mask"] if "indices_mask" in given else op.outputs[0])
        density = prod(shape_of(given[_NONZERO[kind]])) / max(prod(whole), 1)
    if kind in ("constexpr_lut_to_dense", "constexpr_lut_to_sparse"):
        return _palette(op, density)
    if kind == "constexpr_affine_dequantize":
        return _affine(op)
    if kind in _QUANTIZED:
        blocks = _blocks(shape_of(op.outputs[0]), shape_of(given["scale"]))
        bits = _bits(given[_QUANTIZED[kind]])
        return Step(kind, "quantized", bits, *blocks, offsets=_given(op, "offset"), density=density)
    if kind == "constexpr_cast":
        return Step(kind, "cast", _bits(given["source_val"]))
    return Step(kind, "sparse" if density is not None else kind.removeprefix("constexpr_"), density=density)


def _palette(op: Operation, density: float | None) -> Step:
    lut = shape_of(op.inputs["lut"])
    if "shape" in op.inputs:  # before iOS18: one table, its length a power of two
        return Step(op.op_type, "palettized", (lut[0] - 1).bit_length(), *_blocks(shape_of(op.outputs[0]), ()))
    indices = op.inputs["indices"] if "indices" in op.inputs else op.inputs["indices_nonzero_data"]
    blocks = _blocks(shape_of(op.outputs[0]), lut[:-2])
    return Step(op.op_type, "palettized", _bits(indices), *blocks, vector=lut[-1], density=density)


def _affine(op: Operation) -> Step:
    shape, scale = shape_of(op.outputs[0]), shape_of(op.inputs["scale"])
    counts = [1] * len(shape)
    if scale and scale[0] > 1:
        counts[int(constant(op.inputs["axis"])) % len(shape)] = scale[0]
    zeros = op.inputs.get("zero_point")
    offsets = zeros is not None and bool((constant(zeros) != 0).any() if zeros.rank else constant(zeros))
    blocks = _blocks(shape, tuple(counts))
    return Step(op.op_type, "quantized", _bits(op.inputs["quantized_data"]), *blocks, offsets=offsets)


def _blocks(shape: tuple[int, ...], counts: tuple[int, ...]) -> tuple[tuple[int, ...], int, str]:
    """The shape of a block, how many there are, and both in words; ``counts`` are the blocks along each axis."""
    if len(shape) != len(counts):  # one for all
        counts = (1,) * len(shape)
    block = tuple(size // max(count, 1) for size, count in zip(shape, counts, strict=True))
    cut = [axis for axis, count in enumerate(counts) if count > 1]
    if not cut:
        return block, 1, "per tensor"
    if len(cut) > 1:
        return block, prod(counts), f"per block of {'x'.join(map(str, block))}"
    several = "channel" if block[cut[0]] == 1 else f"{block[cut[0]]} channels"
    return block, prod(counts), f"per {several} of axis {cut[0]}"


def _bits(var: Var) -> int:
    digits = "".join(each for each in dtype_name(var) if each.isdigit())
    return int(digits or 8)


def _given(op: Operation, name: str) -> bool:
    var: Any = op.inputs.get(name)
    return var is not None

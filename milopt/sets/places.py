"""Where a program can be cut: between its layers, and within them behind the attention.

A layer is told by what it does, not by names: attention is where positions are mixed (a softmax that weighs computed
values, a fused attention, or a state), and behind it come parts of the stream with weights, the MLP, before the next.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from milopt.mil import Operation, Var, dtype_name, is_constant_like, is_symbolic, shape_of
from milopt.package.tensors import bytes_of
from milopt.sets.stream import READERS, WRITERS, Stream, reads

__all__ = ["After", "Place", "can_pass", "places_of", "room_of"]

After: TypeAlias = Literal["embedding", "attention", "mlp", "layers", "layer"]

# What Core ML takes as an input and gives as an output of any deployment target from iOS 16 on.
_PASSES = ("fp16", "fp32", "int32")
_PRODUCTS = frozenset({"linear", "conv", "matmul", "einsum", "conv_transpose"})


@dataclass(frozen=True, order=True)
class Place:
    """A place for a cut: behind what comes before the layers (layer -1), the attention of a layer, or the whole layer.

    Layers count from 0. Behind the last one, its norm included, it is ``after="layers"``: there is such a place where a
    head follows. A program without attention has layers too, which end with ``after="layer"``.
    """

    layer: int
    after: After

    def __str__(self) -> str:
        if self.after == "embedding":
            return "before layer 0"
        return (
            f"after the attention of layer {self.layer}" if self.after == "attention" else f"after layer {self.layer}"
        )


def can_pass(var: Var) -> bool:
    """Whether the value may be the input of one part and the output of another."""
    shape = shape_of(var)
    return dtype_name(var) in _PASSES and bool(shape) and not any(map(is_symbolic, shape))


def room_of(var: Var) -> int:
    """The bytes of a value; a size that only a call tells counts as 1."""
    return bytes_of(tuple(1 if is_symbolic(dim) else dim for dim in shape_of(var)), dtype_name(var))


def places_of(stream: Stream) -> dict[Place, Var]:
    """The places where the stream's function can be cut, in order, and the value that is handed over there.

    Of several values at one place it is the one with the least bytes to hand over, what else crosses there counted;
    of equal ones the last, but behind the embedding the first, which is what was looked up.
    """
    cuts = stream.cuts[:-1] if stream.cuts and stream.cuts[-1] is stream.output else stream.cuts
    made = stream.made_in(cuts)
    segments: list[list[Operation]] = [[] for _ in range(len(cuts) + 1)]
    for op, segment in made.items():
        segments[segment].append(op)
    attention = [at for at, ops in enumerate(segments) if _mixes(ops)]
    products = [at for at, ops in enumerate(segments) if any(map(_is_product, ops))]
    widths = _widths(stream, cuts, made)
    found: dict[Place, Var] = {}
    for place, first, last in _groups(attention, products, len(cuts)):
        group = [at for at in range(max(first, 0), min(last, len(cuts) - 1) + 1) if can_pass(cuts[at])]
        if place.after != "embedding":
            group.reverse()
        if group:
            found[place] = cuts[min(group, key=widths.__getitem__)]
    return found


def _groups(attention: Sequence[int], products: Sequence[int], count: int) -> list[tuple[Place, int, int]]:
    """Places, and the first and the last of the cuts that are there; cut ``k`` ends segment ``k``."""
    if not attention:
        ends = [*products[1:], count]
        return [
            (Place(layer, "layer"), at, end - 1) for layer, (at, end) in enumerate(zip(products, ends, strict=True))
        ]
    found = [(Place(-1, "embedding"), 0, attention[0] - 1)]
    between = [
        [at for at in products if start < at < end]
        for start, end in zip(attention, (*attention[1:], count + 1), strict=True)
    ]
    rest = _beyond(between)
    if rest:
        between[-1] = between[-1][:-rest]
    for layer, (start, behind) in enumerate(zip(attention, between, strict=True)):
        if behind:
            found.append((Place(layer, "attention"), start, behind[0] - 1))
        begin = behind[-1] if behind else start
        if layer + 1 < len(attention):
            found.append((Place(layer, "mlp"), begin, attention[layer + 1] - 1))
        elif rest:
            found.append((Place(layer, "layers"), begin, products[-rest] - 1))
    return found


def _beyond(between: Sequence[Sequence[int]]) -> int:
    """How many of the products behind the last attention are no part of its layer: those that other layers lack."""
    usual = Counter(map(len, between[:-1])).most_common(1)
    own = usual[0][0] if usual else len(between[-1]) - 1
    return max(0, len(between[-1]) - max(own, 0))


def _is_product(op: Operation) -> bool:
    return op.op_type in _PRODUCTS and any(var.op is not None and is_constant_like(var.op) for var in reads(op))


def _mixes(ops: Sequence[Operation]) -> bool:
    weights: set[Var] = set()
    for op in ops:
        if op.op_type == "scaled_dot_product_attention" or op.op_type in WRITERS:
            return True
        if op.op_type == "softmax" or any(var in weights for var in reads(op)):
            computed = [var for var in reads(op) if var.op is None or not is_constant_like(var.op)]
            if op.op_type in ("matmul", "einsum") and len(computed) > 1:
                return True
            weights.update(op.outputs)
    return False


def _widths(stream: Stream, cuts: Sequence[Var], made: dict[Operation, int]) -> list[int]:
    """For each cut, the bytes of all values that are made before and used behind it; a state's don't count."""
    last: dict[Var, int] = {}
    for op, segment in made.items():
        for var in reads(op):
            if var.op is not None and var.op in made and var.op.op_type not in READERS:
                last[var] = max(last.get(var, 0), segment)
    widths = [room_of(cut) for cut in cuts]
    ends = {cut: at for at, cut in enumerate(cuts)}
    for var, end in last.items():
        assert var.op is not None
        for at in range(made[var.op], end):
            widths[at] += room_of(var) if ends.get(var) != at else 0
    return widths

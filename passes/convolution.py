"""Linear layers -> 1x1 convolutions in the (B, C, 1, S) layout of the Neural Engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from milopt.building import Builder
from milopt.matching import Match
from milopt.mil import Operation, Var, constant, dtype_name, is_constant, refine_shape
from milopt.package import Model
from milopt.package.making import hold
from milopt.package.weights import Packed, packed_of
from milopt.passes.moves import MOVE_RULES
from milopt.passes.sharing import share_moves
from milopt.pattern import Ops, Value
from milopt.pipeline import RulePass
from milopt.reports import Report, require
from milopt.rules import Rule, apply

__all__ = ["LinearAsConv", "LinearToConv"]

# constraints L6: Core ML takes no axis longer than this on the Neural Engine up to A15
_LONGEST_AXIS = 16384


@dataclass(frozen=True)
class LinearToConv(RulePass):
    """``linear``  ->  ``conv`` with a 1x1 kernel, and the transposes around it.

    Each linear gets the transposes it needs; equal ones of one value are shared, neighbours that undo each other go.
    The weights' bytes are not touched, and compressed weights stay compressed.
    """

    name: ClassVar[str] = "linear-to-conv"
    after: ClassVar[tuple[str, ...]] = ("canonicalize", "fuse-sdpa", "kv-to-state")

    def rules(self) -> tuple[Rule[Any], ...]:
        return (LinearAsConv(),)

    def run(self, model: Model) -> Report:
        report = super().run(model)
        if report.applied:
            share_moves(model.program)
            apply(MOVE_RULES, model)
        return report


class LinearAsConv(Rule[None]):
    """``linear(x, w, b)``  ->  ``conv`` of x as (B, C, 1, S) with w as (O, I, 1, 1), and back.

    It stays away from

    1. integer linears: ``conv`` is for fp16 and fp32;
    2. weights in a compressed form whose parts can't be reshaped one by one (joint forms);
    3. values of rank 4 and more, which MIL's documentation of ``linear`` excludes and coremltools lets pass.
    """

    def pattern(self, op: Ops, /, x: Value, weight: Value, bias: Value) -> Any:
        return op.linear(x=x, weight=weight, bias=bias)

    def check(self, m: Match, /) -> None:
        kind = dtype_name(m.x)
        require(kind in ("fp16", "fp32"), "conv takes no {}", kind, at=m.x)  # 1
        require(m.x.rank in _LAYOUTS, "its operand has rank {}", m.x.rank, at=m.x)  # 3
        if not is_constant(m.weight):
            producer: Operation = m.weight.op
            parts = [var for var in producer.inputs.values() if not is_constant(var)]
            known = producer.op_type in _KERNELS and not parts
            require(known, "its weight is {} of computed parts", producer.op_type, at=m.weight)  # 2

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Var:
        if m.weight.shape[0] > _LONGEST_AXIS:
            op.note(f"a conv has {m.weight.shape[0]} output channels; some Neural Engines end at {_LONGEST_AXIS}")
        kernel = _as_kernel(op, m.weight)
        zero = is_constant(m.bias) and not np.any(constant(m.bias))
        bias = {} if zero else {"bias": m.bias}
        into, out_of = _LAYOUTS[m.x.rank]
        columns = into(op, m.x)
        products: Var = op.conv(x=columns, weight=kernel, **bias)
        # a 1x1 kernel keeps every position; conv's type inference would invent a new symbol for their number
        refine_shape(products, (columns.shape[0], m.weight.shape[0], *columns.shape[2:]))
        return out_of(op, products)


# rank of x -> how it becomes (B, C, 1, S), and how the result becomes that rank again
_LAYOUTS: dict[int, tuple[Callable[[Builder, Var], Var], Callable[[Builder, Var], Var]]] = {
    1: (
        lambda op, x: op.expand_dims(x=x, axes=[0, 2, 3]),
        lambda op, y: op.squeeze(x=y, axes=[0, 2, 3]),
    ),
    2: (
        lambda op, x: op.expand_dims(x=op.transpose(x=x, perm=[1, 0]), axes=[0, 2]),
        lambda op, y: op.transpose(x=op.squeeze(x=y, axes=[0, 2]), perm=[1, 0]),
    ),
    3: (
        lambda op, x: op.expand_dims(x=op.transpose(x=x, perm=[0, 2, 1]), axes=[2]),
        lambda op, y: op.transpose(x=op.squeeze(x=y, axes=[2]), perm=[0, 2, 1]),
    ),
}


def _as_kernel(op: Builder, weight: Var) -> Var:
    """(O, I) as (O, I, 1, 1): a view of the same bytes, or the same compressed form of the longer shape."""
    name = f"{weight.name}_1x1"
    if is_constant(weight):
        kernel: Var = op.const(val=constant(weight).reshape(*weight.shape, 1, 1), name=name)
        return kernel
    assert weight.op is not None
    parts = {key: packed_of(var) or constant(var) for key, var in weight.op.inputs.items()}
    longer = {
        key: _packed(op, f"{name}_{key}", part) if isinstance(part, Packed) else part
        for key, part in _KERNELS[weight.op.op_type](parts).items()
    }
    compressed: Var = getattr(op, weight.op.op_type)(**longer, name=name)
    return compressed


def _packed(op: Builder, name: str, box: Packed) -> Var:
    """A constant whose elements stay packed; what it is made with takes no memory."""
    zeros = np.broadcast_to(np.zeros((), box.dtype), box.shape)
    return hold(op.const(val=zeros, name=name), box)


def _longer(array: Any, at: int = 2) -> Any:
    """Two unit dimensions more, behind the first ``at``."""
    return array.reshape(*array.shape[:at], 1, 1, *array.shape[at:])


def _lut(parts: dict[str, Any]) -> dict[str, Any]:
    if "shape" in parts:  # iOS16: packed indices, and the shape beside them
        return {**parts, "shape": np.append(parts["shape"], [1, 1]).astype(parts["shape"].dtype)}
    return {**parts, "indices": _longer(parts["indices"]), "lut": _longer(parts["lut"])}


def _sparse(parts: dict[str, Any]) -> dict[str, Any]:
    if "shape" in parts:
        return {**parts, "shape": np.append(parts["shape"], [1, 1]).astype(parts["shape"].dtype)}
    return {**parts, "mask": _longer(parts["mask"])}


# how each compressed form says (O, I, 1, 1) instead of (O, I); constraints W3
_KERNELS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "constexpr_lut_to_dense": _lut,
    "constexpr_sparse_to_dense": _sparse,
    "constexpr_blockwise_shift_scale": lambda parts: {key: _longer(array) for key, array in parts.items()},
    "constexpr_affine_dequantize": lambda parts: {**parts, "quantized_data": _longer(parts["quantized_data"])},
}

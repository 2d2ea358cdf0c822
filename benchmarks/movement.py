"""What a program moves: ops by kind, and elements and bytes by the definitions of layout anchors.

``M`` is the number of elements that transposes, reshapes that regroup axes longer than 1, tiles and concatenations of
floats write. The reshapes among them are free in dense row-major memory, and not in a layout of channels first.

Bytes: every op that is no constant reads its inputs that are none, and writes its outputs. States are written in place:
a read of one and its update take nothing, a ``slice_update`` twice what is written. What takes a part, a slice or a
gather, reads what it gives. *Net of views* leaves out reshapes, ``expand_dims`` and ``squeeze``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import prod
from typing import Any

from milopt.mil import Function, Operation, Var, arguments, constant, dtype_name, is_constant_like, operations, shape_of

__all__ = ["Movement", "movement", "per_layer"]

_WIDTHS = {"fp16": 2, "fp32": 4, "int32": 4, "int16": 2, "uint16": 2, "int8": 1, "uint8": 1, "bool": 1}
_LAYERS = frozenset({"conv", "linear", "matmul", "scaled_dot_product_attention"})
_TAKING = frozenset({"gather", "gather_along_axis", "gather_nd", "slice_by_index", "slice_by_size", "split"})
_VIEWS = frozenset({"expand_dims", "reshape", "squeeze"})
_IN_PLACE = frozenset({"coreml_update_state", "read_state"})


@dataclass(frozen=True)
class Movement:
    """Counts of one program; those of elements and bytes are per call."""

    ops: int = 0
    conv: int = 0
    linear: int = 0
    matmul: int = 0
    sdpa: int = 0
    transposes: int = 0
    real_transposes: int = 0
    reshapes: int = 0
    regrouping: int = 0
    views: int = 0
    slices: int = 0
    concats: int = 0
    index_concats: int = 0
    tiles: int = 0
    softmaxes: int = 0
    updates: int = 0
    transposed: int = 0
    regrouped: int = 0
    tiled: int = 0
    concatenated: int = 0
    sliced: int = 0
    bytes: int = 0
    net_bytes: int = 0

    @property
    def moved(self) -> int:
        """M, in elements."""
        return self.transposed + self.regrouped + self.tiled + self.concatenated


def movement(function: Function) -> Movement:
    """The counts of a function, whose sizes are all known."""
    counts: dict[str, int] = {each.name: 0 for each in fields(Movement)}
    for op in operations(function):
        if not is_constant_like(op):
            for name, count in _counts(op):
                counts[name] += count
    return Movement(**counts)


def per_layer(large: Movement, small: Movement, layers: int) -> Movement:
    """What one of ``layers`` layers takes, by which two programs differ. ValueError where that is no whole number."""
    found: dict[str, int] = {}
    for each in fields(Movement):
        difference = getattr(large, each.name) - getattr(small, each.name)
        if difference % layers:
            raise ValueError(f"{each.name}: {difference} for {layers} layers")
        found[each.name] = difference // layers
    return Movement(**found)


def _counts(op: Operation) -> list[tuple[str, int]]:
    kind, written = op.op_type, sum(prod(_sizes(var)) for var in op.outputs)
    moved = _bytes(op)
    found = [("ops", 1), ("bytes", moved), ("net_bytes", 0 if kind in _VIEWS else moved)]
    if kind in _LAYERS:
        found.append(("sdpa" if kind == "scaled_dot_product_attention" else kind, 1))
    elif kind == "transpose":
        found += [("transposes", 1), ("transposed", written), ("real_transposes", int(_is_real(op)))]
    elif kind == "reshape":
        regroups = _long(op.inputs["x"]) != _long(op.outputs[0])
        found += [("reshapes", 1), ("regrouping", int(regroups)), ("regrouped", written if regroups else 0)]
    elif kind in _VIEWS:
        found.append(("views", 1))
    elif kind in ("split", "slice_by_index", "slice_by_size"):
        found += [("slices", 1), ("sliced", written)]
    elif kind == "concat":
        floats = dtype_name(op.outputs[0]).startswith("fp")
        found += [("concats", 1), ("concatenated", written)] if floats else [("index_concats", 1)]
    elif kind == "tile":
        found += [("tiles", 1), ("tiled", written)]
    elif kind == "softmax":
        found.append(("softmaxes", 1))
    elif kind in ("slice_update", "coreml_update_state"):
        found.append(("updates", 1))
    return found


def _sizes(var: Var) -> tuple[Any, ...]:
    return shape_of(var)


def _long(var: Var) -> list[int]:
    """The axes longer than 1."""
    return [size for size in _sizes(var) if size != 1]


def _is_real(op: Operation) -> bool:
    """Whether a transpose changes the order of axes longer than 1."""
    shape = _sizes(op.inputs["x"])
    long = [axis for each in constant(op.inputs["perm"]) if shape[axis := int(each) % len(shape)] != 1]
    return long != sorted(long)


def _bytes(op: Operation) -> int:
    if op.op_type in _IN_PLACE:
        return 0
    written = sum(_size(var) for var in op.outputs)
    if op.op_type == "slice_update":
        return 2 * _size(op.inputs["update"])
    inputs = {var for _, var in arguments(op) if var.op is None or not is_constant_like(var.op)}
    if op.op_type in _TAKING:
        table = op.inputs["x"]
        others = sum(_size(var) for var in inputs if var is not table)
        return 2 * written + others if table in inputs else written + others
    return written + sum(_size(var) for var in inputs)


def _size(var: Var) -> int:
    return int(prod(_sizes(var))) * _WIDTHS[dtype_name(var)]

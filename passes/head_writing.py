"""Writes a head in slices, and what is given back of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from milopt.building import Builder
from milopt.mil import (
    Function,
    Operation,
    Var,
    constant,
    is_constant,
    refine_shape,
    remove_if_dead,
    replace_uses,
    shape_of,
)
from milopt.passes.head_finding import Head
from milopt.passes.kernels import Cut, reformed
from milopt.reports import require
from milopt.signature_head import HeadSignature

__all__ = ["Slices", "build_slices"]

Pair: TypeAlias = "tuple[Var, Var]"


@dataclass(frozen=True)
class Slices:
    """A head in slices, built and not yet used: :meth:`put` takes the head's place, :meth:`undo` leaves no trace."""

    function: Function
    head: Head
    signature: HeadSignature
    op: Builder
    made: tuple[Var, ...]

    def put(self) -> None:
        output = self.head.output
        last = self.op.before
        if self.signature.kind == "logits":
            replace_uses(output, self.made[0])
        else:
            outputs = [*self.function.outputs]
            at = [var is output for var in outputs].index(True)
            self.function.set_outputs([*outputs[:at], *self.made, *outputs[at + 1 :]])
        name = output.name
        remove_if_dead([last])
        for var, own in zip(self.made, self.signature.names, strict=True):
            _rename(var, name if self.signature.kind == "logits" else own)

    def undo(self) -> None:
        self.op.undo()


def build_slices(function: Function, head: Head, signature: HeadSignature, taken: set[str]) -> Slices:
    """``head`` as ``signature`` says. Raises NoMatch, and leaves the function as it was."""
    last = head.path[-1] if head.path else head.op
    for name in signature.names:
        require(name == head.output.name or name not in taken, "there is a value named {} already", name, at=last)
    op = Builder(head.op, taken, before=last)
    try:
        return Slices(function, head, signature, op, _outputs(op, head, signature))
    except BaseException:
        op.undo()
        raise


def _rename(var: Var, name: str) -> None:
    var.name = name
    assert var.op is not None
    if len(var.op.outputs) == 1:
        var.op.name = name


def _outputs(op: Builder, head: Head, signature: HeadSignature) -> tuple[Var, ...]:
    slices = [_slice(op, head, begin, size) for begin, size in _parts(signature.sizes)]
    axis = head.axes[-1]
    if signature.kind == "slices":
        return tuple(slices)
    if signature.kind == "logits":
        return (op.concat(values=slices, axis=axis),)
    begins = [begin for begin, _ in _parts(signature.sizes)]
    if signature.kind == "argmax":
        return _largest(op, slices, begins, axis)
    return _several(op, slices, begins, axis, signature.k)


def _parts(sizes: tuple[int, ...]) -> list[tuple[int, int]]:
    ends = np.cumsum(sizes)
    return [(int(end) - size, size) for end, size in zip(ends, sizes, strict=True)]


def _slice(op: Builder, head: Head, begin: int, size: int) -> Var:
    """The layer and what comes behind it, for ``size`` entries from ``begin``."""
    whole = head.size
    cut = Cut(head.weight_axis, begin, begin + size, whole)
    layer = dict(head.op.inputs)
    layer[head.argument] = reformed(op, head.weight, cut, f"{head.weight.name}_{begin}")
    if (bias := layer.get("bias")) is not None:
        layer["bias"] = _const_part(bias, 0, begin, size, whole)
    value = _again(op, head.op, layer, head.axes[0], size)
    for step, axis, after in zip(head.path, head.axes, head.axes[1:], strict=False):
        inputs = dict(step.inputs)
        for name, var in inputs.items():
            if not isinstance(var, Var) or not is_constant(var):
                inputs[name] = value
            elif name in ("x", "y"):
                inputs[name] = _const_part(var, axis - len(step.outputs[0].shape), begin, size, whole)
        if step.op_type == "reshape":
            inputs["shape"] = np.where(np.arange(len(step.outputs[0].shape)) == after, size, constant(inputs["shape"]))
        value = _again(op, step, inputs, after, size)
    return value


def _again(op: Builder, old: Operation, inputs: dict[str, Any], axis: int, size: int) -> Var:
    """The op for a slice; its result is what ``old`` made, with ``size`` entries on ``axis``."""
    made: Var = getattr(op, old.op_type)(**inputs)
    shape = list(shape_of(old.outputs[0]))
    shape[axis] = size
    return refine_shape(made, shape)


def _const_part(var: Var, axis: int, begin: int, size: int, whole: int) -> Any:
    """The part of a constant operand that belongs to a slice; ``axis`` is 0, or counted from the end."""
    array = np.asarray(constant(var))
    if axis < -array.ndim or array.ndim == 0 or array.shape[axis] != whole:
        return var
    return np.take(array, range(begin, begin + size), axis)


def _largest(op: Builder, slices: list[Var], begins: list[int], axis: int) -> Pair:
    """Index and value of the largest entry: of the largest of each slice. The first slice wins, as the first entry."""
    if len(slices) == 1:
        return op.reduce_argmax(x=slices[0], axis=axis, keep_dims=False), _max(op, slices[0], axis, keep=False)
    found = [op.reduce_argmax(x=each, axis=axis, keep_dims=True) for each in slices]
    indices = op.concat(values=_shifted(op, found, begins), axis=axis)
    values = op.concat(values=[_max(op, each, axis, keep=True) for each in slices], axis=axis)
    best = op.reduce_argmax(x=values, axis=axis, keep_dims=True)
    index = op.squeeze(x=op.gather_along_axis(x=indices, indices=best, axis=axis), axes=[axis])
    return index, _max(op, values, axis, keep=False)


def _max(op: Builder, value: Var, axis: int, *, keep: bool) -> Var:
    made: Var = op.reduce_max(x=value, axes=[axis], keep_dims=keep)
    return made


def _shifted(op: Builder, indices: list[Var], begins: list[int]) -> list[Var]:
    """Indices within slices as indices within the vocabulary."""
    return [
        op.add(x=index, y=np.int32(begin)) if begin else index for index, begin in zip(indices, begins, strict=True)
    ]


def _several(op: Builder, slices: list[Var], begins: list[int], axis: int, k: int) -> Pair:
    """Indices and values of the ``k`` largest entries: of the ``k`` largest of each slice."""
    found = [op.topk(x=each, k=min(k, int(each.shape[axis])), axis=axis) for each in slices]
    if len(found) == 1:
        return found[0][1], found[0][0]
    values = op.concat(values=[values for values, _ in found], axis=axis)
    indices = op.concat(values=_shifted(op, [index for _, index in found], begins), axis=axis)
    largest, places = op.topk(x=values, k=k, axis=axis)
    index: Var = op.gather_along_axis(x=indices, indices=places, axis=axis)
    return index, largest

"""What another pass before layout-bc1s would save."""

from __future__ import annotations

from milopt.mil import Function, operations
from milopt.package import Model
from milopt.passes.decomposition import DecomposeSdpa
from milopt.passes.layout_choice import settle
from milopt.passes.layout_reading import read

__all__ = ["moved_if_written_out"]


def moved_if_written_out(model: Model, name: str, sequence: int) -> int | None:
    """The elements that a function would move in the end with its attention as two matmuls and a softmax.

    ``None`` where there is no fused attention, or not all of it can be written out. The model stays as it is.
    """
    if not _is_fused(model.functions[name]):
        return None
    other = model.clone()
    with other.only([name]):
        DecomposeSdpa().run(other)
    if _is_fused(other.functions[name]):
        return None
    reading = read(other.functions[name], sequence)
    return settle([reading]).moved(reading.graph)


def _is_fused(function: Function) -> bool:
    return any(op.op_type == "scaled_dot_product_attention" for op in operations(function))

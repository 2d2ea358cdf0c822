"""Ops that allow less in a newer opset, or count otherwise: ``clip``, ``reshape``, ``non_maximum_suppression``."""

from __future__ import annotations

from typing import Any

import numpy as np

from milopt.mil import Operation, constant, dtype_name, is_symbolic, shape_of
from milopt.reports import require
from milopt.upgrading.editing import Edit

__all__ = ["clip_in_two", "say_sizes", "suppress_boxes"]


def clip_in_two(op: Operation, edit: Edit) -> bool:
    """``clip`` with alpha >= beta  ->  ``minimum(maximum(x, alpha), beta)``, which iOS15's value inference computes."""
    bounds = [constant(op.inputs[name]) for name in ("alpha", "beta")]
    require(all(each is not None for each in bounds), "its bounds are not constant")
    if bounds[0] < bounds[1]:
        return False
    build = edit.builder(op)
    raised = build.maximum(x=op.inputs["x"], y=op.inputs["alpha"])
    edit.replace(op, [build.minimum(x=raised, y=op.inputs["beta"])])
    return True


def say_sizes(op: Operation, edit: Edit) -> bool:
    """A 0 in the shape of a ``reshape`` that is not as long as x has dimensions  ->  the size that the result declares.

    Up to iOS16 such a 0 is not allowed, and programs that have it were made by others than coremltools.
    """
    shape = constant(op.inputs["shape"])
    if shape is None or len(shape) == len(shape_of(op.inputs["x"])) or np.all(shape != 0):
        return False
    sizes: list[Any] = [
        size if wanted == 0 else int(wanted) for wanted, size in zip(shape, shape_of(op.outputs[0]), strict=True)
    ]
    known = not any(is_symbolic(size) or size == 0 for size in sizes)  # coremltools infers 0 for what it can't tell
    require(known, "its shape keeps a dimension of x, and it is not known which")
    edit.rebind(op, "shape", edit.builder(op).const(val=np.array(sizes, np.int32)))
    return True


def suppress_boxes(op: Operation, edit: Edit) -> bool:
    """``non_maximum_suppression`` with a score threshold  ->  without one, its results cut where the scores fall below.

    Boxes are taken from the best score down, so those that the threshold would have left out come last, and suppress
    no other. As before, at least one box is selected; places left over hold zeros and the index -1 (coremltools'
    reference in its tests of iOS15, where a score must be above the threshold).
    """
    build = edit.builder(op)
    kept, scores, indices = build.non_maximum_suppression(
        boxes=build.transpose(x=op.inputs["boxes"], perm=[0, 2, 1]),
        scores=build.transpose(x=op.inputs["scores"], perm=[0, 2, 1]),
        **{name: op.inputs[name] for name in ("iou_threshold", "max_boxes", "per_class_suppression")},
    )
    kept, scores = (build.transpose(x=each, perm=[0, 2, 1]) for each in (kept, scores))
    best = build.reduce_max(x=scores, axes=[-1])
    first = np.arange(int(constant(op.inputs["max_boxes"])))[None] == 0
    above = build.logical_or(x=build.greater(x=best, y=op.inputs["score_threshold"]), y=first)
    valid = build.logical_and(x=above, y=build.greater(x=indices, y=np.int32(-1)))
    column = build.expand_dims(x=valid, axes=[-1])
    zero = (np.float16 if dtype_name(op.inputs["scores"]) == "fp16" else np.float32)(0)
    edit.replace(
        op,
        [
            build.select(cond=column, a=kept, b=zero),
            build.select(cond=column, a=scores, b=zero),
            build.select(cond=valid, a=indices, b=np.int32(-1)),
            build.reduce_sum(x=build.cast(x=valid, dtype="int32"), axes=[-1]),
        ],
    )
    return True

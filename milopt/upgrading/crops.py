"""``crop_resize``: regions of interest with an optional image number -> boxes, and image numbers beside them."""

from __future__ import annotations

import numpy as np

from milopt.building import Builder
from milopt.mil import Operation, Var, is_symbolic, shape_of
from milopt.reports import require
from milopt.upgrading.editing import Edit, has_default

__all__ = ["crop_by_boxes"]


def crop_by_boxes(op: Operation, edit: Edit) -> bool:
    """``roi (N,1,5,1,1) -> (N,1,C,h,w)`` or ``roi (N,1,4,1,1) -> (N,B,C,h,w)``  ->  ``boxes (.,4) -> (.,C,h,w)``.

    Without image numbers every box is cut from every image: boxes are repeated, and images numbered in turn.
    """
    build, roi = edit.builder(op), op.inputs["roi"]
    count, width = shape_of(roi)[0], shape_of(roi)[2]
    require(width in (4, 5), "its roi has {} numbers, not 4 or 5", width)
    require(not is_symbolic(count), "the number of its boxes is not known")  # which coremltools has no type for
    given = {name: var for name, var in op.inputs.items() if name not in ("x", "roi") and not has_default(op, name)}
    if width == 5:
        boxes = _columns(build, roi, 1, 5)
        images = build.cast(x=_columns(build, roi, 0, 1), dtype="int32")
        crops = build.crop_resize(x=op.inputs["x"], boxes=boxes, box_indices=images, **given)
        edit.replace(op, [build.expand_dims(x=crops, axes=[1])])
        return True
    batch = shape_of(op.inputs["x"])[0]
    require(not is_symbolic(batch), "the number of its images is not known")
    several = build.tile(x=_columns(build, roi, 0, 4), reps=[1, batch])
    boxes = build.reshape(x=several, shape=[count * batch, 4])
    images = np.tile(np.arange(batch, dtype=np.int32), count)
    crops = build.crop_resize(x=op.inputs["x"], boxes=boxes, box_indices=images, **given)
    edit.replace(op, [build.reshape(x=crops, shape=[count, batch, *shape_of(crops)[1:]])])
    return True


def _columns(build: Builder, roi: Var, first: int, last: int) -> Var:
    """``roi (N,1,K,1,1)`` -> ``(N, last - first)``, or ``(N,)`` for one column."""
    part = build.slice_by_index(
        x=roi,
        begin=[0, 0, first, 0, 0],
        end=[0, 0, last, 0, 0],
        begin_mask=[True, True, False, True, True],
        end_mask=[True, True, False, True, True],
    )
    rows: Var = build.squeeze(x=part, axes=[1, 3, 4] if last - first > 1 else [1, 2, 3, 4])
    return rows

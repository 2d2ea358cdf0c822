"""Non-maximum suppression."""

from __future__ import annotations

import torch

from milopt.interpreter.impls import Impls, Tensor

__all__ = ["detection"]

detection = Impls("detection")


@detection("non_maximum_suppression")
def _(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    max_boxes: int,
    score_threshold: float | None = None,
    per_class_suppression: bool = False,
) -> tuple[Tensor, ...]:
    """Boxes (x, y, width, height) around centers, best score first, dropping those that overlap a better one.

    With ``score_threshold`` the op of iOS15: ``boxes (n,B,4), scores (n,B,K) -> (n,M,4), (n,M,K), (n,M), (n,)``.
    Without it that of iOS17: ``(n,4,B), (n,K,B) -> (n,4,M), (n,K,M), (n,M)``. Places left over hold zeros and the
    index -1. At least one box is selected (coremltools' reference in its tests).
    """
    newer = score_threshold is None
    if newer:
        boxes, scores = boxes.mT, scores.mT
    rows = [
        _select(b, s, iou_threshold, max_boxes, score_threshold, per_class_suppression)
        for b, s in zip(boxes, scores, strict=True)
    ]
    kept, values, indices, counts = (torch.stack(each) for each in zip(*rows, strict=True))
    return (kept.mT, values.mT, indices) if newer else (kept, values, indices, counts)


def _select(
    boxes: Tensor, scores: Tensor, iou_threshold: float, max_boxes: int, score_threshold: float | None, per_class: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    best, classes = scores.max(-1)
    overlap = _overlap(boxes) > iou_threshold
    if per_class:
        overlap &= classes[:, None] == classes
    chosen: list[int] = []
    for index in map(int, torch.argsort(best, descending=True, stable=True)):
        if len(chosen) == max_boxes or (score_threshold is not None and best[index] <= score_threshold):
            break
        if not overlap[index, chosen].any():
            chosen.append(index)
    chosen = chosen or [int(best.argmax())]
    indices = boxes.new_full((max_boxes,), -1, dtype=torch.int32)
    indices[: len(chosen)] = torch.tensor(chosen, dtype=torch.int32)
    kept, values = boxes.new_zeros(max_boxes, 4), scores.new_zeros(max_boxes, scores.shape[-1])
    kept[: len(chosen)], values[: len(chosen)] = boxes[chosen], scores[chosen]
    return kept, values, indices, torch.tensor(len(chosen), dtype=torch.int32)


def _overlap(boxes: Tensor) -> Tensor:
    """Intersection over union of each pair; 0 for a pair without area."""
    x, y, width, height = boxes.unbind(-1)
    across = _common(x - width / 2, x + width / 2)
    down = _common(y - height / 2, y + height / 2)
    area = width * height
    union = area[:, None] + area - across * down
    return torch.where(union > 0, across * down / union, torch.zeros_like(union))


def _common(low: Tensor, high: Tensor) -> Tensor:
    return (torch.minimum(high[:, None], high) - torch.maximum(low[:, None], low)).clamp(min=0)

"""Reading an image at computed places: boxes, free coordinates, affine maps."""

from __future__ import annotations

import torch

from milopt.interpreter.impls import Impls, Tensor
from milopt.interpreter.ops.resizing import sampling_points

__all__ = ["sampling"]

sampling = Impls("sampling")


@sampling("crop_resize")
def _(
    x: Tensor,
    roi: Tensor | None = None,
    boxes: Tensor | None = None,
    box_indices: Tensor | None = None,
    target_height: int = 1,
    target_width: int = 1,
    normalized_coordinates: bool = False,
    spatial_scale: float = 1.0,
    box_coordinate_mode: str = "CORNERS_HEIGHT_FIRST",
    sampling_mode: str = "DEFAULT",
    pad_value: float = 0.0,
) -> Tensor:
    """Boxes of an image, each resized to one size; points outside the image are ``pad_value``.

    iOS15 and iOS16 have ``roi (N,1,4,1,1)``, boxes of every image, or ``(N,1,5,1,1)``, an image number before each
    box: ``x (B,C,H,W) -> (N,B,C,h,w)`` or ``(N,1,C,h,w)``. From iOS17 ``boxes (N,4)`` and ``box_indices (N,)`` give
    ``(N,C,h,w)``.
    """
    if boxes is not None:
        images = list(range(len(boxes))) if box_indices is None else [int(each) for each in box_indices]
        rows = [x[image : image + 1] for image in images]
    elif roi is not None:
        flat = roi.reshape(roi.shape[0], -1)
        rows = [x if flat.shape[1] == 4 else x[int(each[0]) :][:1] for each in flat]
        boxes = flat[:, -4:]
    else:
        raise ValueError("neither roi nor boxes is given")
    crops: list[Tensor] = []
    for row, box in zip(rows, boxes.double(), strict=True):
        top, left, bottom, right = _corners(box, box_coordinate_mode)
        high, wide = (x.shape[2] - 1, x.shape[3] - 1) if normalized_coordinates else (1, 1)
        top, bottom = top * high * spatial_scale, bottom * high * spatial_scale
        left, right = left * wide * spatial_scale, right * wide * spatial_scale
        # the last point must not be rounded to beyond the box, which may end where the image does
        vertical = (top + sampling_points(bottom - top, target_height, sampling_mode)).clamp(max=max(top, bottom))
        horizontal = (left + sampling_points(right - left, target_width, sampling_mode)).clamp(max=max(left, right))
        crops.append(_box(row, vertical, horizontal, pad_value))
    return torch.stack(crops) if roi is not None else torch.cat(crops)


def _corners(box: Tensor, mode: str) -> tuple[float, float, float, float]:
    """top, left, bottom, right"""
    a, b, c, d = map(float, box)
    if mode == "CORNERS_HEIGHT_FIRST":
        return a, b, c, d
    if mode == "CORNERS_WIDTH_FIRST":
        return b, a, d, c
    if mode == "CENTER_SIZE_WIDTH_FIRST":
        a, b, c, d = b, a, d, c
    return a - c / 2, b - d / 2, a + c / 2, b + d / 2


def _box(x: Tensor, vertical: Tensor, horizontal: Tensor, pad_value: float) -> Tensor:
    """``x (B,C,H,W)`` read bilinearly at the crossings of two lists of places."""
    inside = _within(vertical, x.shape[2])[:, None] & _within(horizontal, x.shape[3])
    y = _between(_between(x, 2, vertical), 3, horizontal)
    return torch.where(inside, y, torch.full_like(y, pad_value))


def _within(places: Tensor, size: int) -> Tensor:
    return (places >= 0) & (places <= size - 1)


def _between(x: Tensor, axis: int, places: Tensor) -> Tensor:
    places = places.clamp(0, x.shape[axis] - 1)
    low = places.floor().long()
    high = (low + 1).clamp(max=x.shape[axis] - 1)
    weight = (places - low).to(x.dtype).reshape([-1 if i == axis else 1 for i in range(x.dim())])
    return x.index_select(axis, low) * (1 - weight) + x.index_select(axis, high) * weight


@sampling("resample")
def resample(
    x: Tensor,
    coordinates: Tensor,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> Tensor:
    """``x (B,C,H,W), coordinates (B,h,w,2)`` as (x, y) ``-> (B,C,h,w)``.

    The nearest pixel is sought after reflection, halves going to the even one, as torch's ``grid_sample`` does.
    """
    height, width = x.shape[2:]
    places = coordinates.to(x.dtype)
    horizontal = _folded(_unnormalized(places[..., 0], width, coordinates_mode, align_corners), width, padding_mode)
    vertical = _folded(_unnormalized(places[..., 1], height, coordinates_mode, align_corners), height, padding_mode)
    if sampling_mode == "nearest":
        return _pixels(x, vertical.round(), horizontal.round(), padding_mode, padding_value)
    top, left = vertical.floor(), horizontal.floor()
    down, across = (vertical - top).unsqueeze(1), (horizontal - left).unsqueeze(1)
    upper = _pixels(x, top, left, padding_mode, padding_value) * (1 - across)
    upper = upper + _pixels(x, top, left + 1, padding_mode, padding_value) * across
    lower = _pixels(x, top + 1, left, padding_mode, padding_value) * (1 - across)
    lower = lower + _pixels(x, top + 1, left + 1, padding_mode, padding_value) * across
    return upper * (1 - down) + lower * down


def _unnormalized(places: Tensor, size: int, mode: str, align_corners: bool) -> Tensor:
    """Coordinates in pixels: 0 is the center of the first pixel, ``size - 1`` that of the last."""
    if mode == "unnormalized":
        return places
    unit = places if mode == "normalized_zero_to_one" else (places + 1) / 2
    return unit * (size - 1) if align_corners else unit * size - 0.5


def _pixels(x: Tensor, rows: Tensor, columns: Tensor, padding_mode: str, padding_value: float) -> Tensor:
    """``x (B,C,H,W)`` at whole coordinates ``(B,h,w) -> (B,C,h,w)``; outside the edge, or ``padding_value``."""
    height, width = x.shape[2:]
    inside = _within(rows, height) & _within(columns, width)
    down, across = rows.long().clamp(0, height - 1), columns.long().clamp(0, width - 1)
    flat = (down * width + across).flatten(1).unsqueeze(1).expand(-1, x.shape[1], -1)
    y = x.flatten(2).gather(2, flat).reshape(*x.shape[:2], *rows.shape[1:])
    if padding_mode != "constant":
        return y
    return torch.where(inside.unsqueeze(1), y, torch.full_like(y, padding_value))


def _folded(places: Tensor, size: int, padding_mode: str) -> Tensor:
    """Coordinates reflected into the image: at the centers of its outer pixels, or at their edges (``symmetric``)."""
    if padding_mode == "reflection" and size > 1:
        places = places.remainder(2 * (size - 1))
        return torch.minimum(places, 2 * (size - 1) - places)
    if padding_mode == "symmetric":
        places = (places + 0.5).remainder(2 * size)
        return torch.minimum(places, 2 * size - places) - 0.5
    return places


@sampling("affine")
def _(
    x: Tensor,
    transform_matrix: Tensor,
    output_height: int,
    output_width: int,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> Tensor:
    """Output place (x, y) in [-1, 1] reads ``x`` at ``(a0 x + a1 y + a2, b0 x + b1 y + b2)``."""
    across = torch.linspace(-1, 1, output_width, dtype=x.dtype)
    down = torch.linspace(-1, 1, output_height, dtype=x.dtype)
    vertical, horizontal = torch.meshgrid(down, across, indexing="ij")
    grid = torch.stack([horizontal, vertical, torch.ones_like(vertical)], -1)
    matrix = transform_matrix.to(x.dtype).reshape(-1, 2, 3).expand(x.shape[0], -1, -1)
    places = torch.einsum("hwk,bck->bhwc", grid, matrix)
    return resample(x, places, sampling_mode, padding_mode, padding_value, coordinates_mode, align_corners)

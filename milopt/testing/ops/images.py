"""Resizing, cropping and reading images at computed places, pixel by pixel."""

from __future__ import annotations

from functools import partial
from itertools import product
from math import floor
from typing import Any

from milopt.mil import target
from milopt.testing.ops.comparing import EXACT, Within
from milopt.testing.ops.drawing import F32, FLOATS, I32, Draw
from milopt.testing.ops.framework import SINCE_17, UNTIL_16, Call, Cases
from milopt.testing.ops.untyped import np

__all__ = ["cases"]

cases = Cases()

NOT_INFERRED = "it has none"
MODES = ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "DEFAULT", "OFFSET_CORNERS", "UNALIGN_CORNERS")


def _largest(a: Any) -> Any:
    return np.max(np.abs(a.x))


# two interpolations of three roundings each, and those of the weights
BILINEAR = Within(24, _largest)


def _points(size: float, count: int, mode: str) -> list[float]:
    """The grid points in the documentation of ``resize_bilinear``, one by one; for an interval of any length."""
    last = size - 1
    points: list[float] = []
    for i in range(count):
        if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
            alone = last / 2 if mode == "ALIGN_CORNERS" else 0.0
            point = i * last / (count - 1) if count > 1 else alone
        elif mode == "DEFAULT":
            point = i * size / count
        elif mode == "OFFSET_CORNERS":
            point = (i + 0.5) * max(1.0, last) / count
        else:
            point = (i + 0.5) * size / count - 0.5
        points.append(min(last, max(0.0, point)) if last > 0 else 0.0)
    return points


def _interpolated(x: Any, axis: int, points: list[float]) -> Any:
    rows: list[Any] = []
    for point in points:
        low = floor(point)
        high = min(low + 1, x.shape[axis] - 1)
        part = point - low
        rows.append(np.take(x, low, axis) * (1 - part) + (np.take(x, high, axis) * part if part else 0.0))
    return np.stack(rows, axis)


def _bilinear(x: Any, sizes: tuple[int, int], mode: str) -> Any:
    for axis, count in zip((-2, -1), sizes, strict=True):
        x = _interpolated(x, axis, _points(x.shape[axis], count, mode))
    return x


def _image(d: Draw, rank: int | None = None, *, edges: Any = "finite") -> Any:
    leading = d.numbers((rank or d.number(3, 5)) - 2, 1, 2)
    return d.array((*leading, d.number(1, 6), d.number(1, 6)), d.pick(*FLOATS), low=-8, high=8, edges=edges)


def _factors(d: Draw, x: Any) -> tuple[dict[str, Any], tuple[int, int]]:
    """Scale factors, whole or not, and the sizes they give: rounded down in float32."""
    kind, options = d.pick((np.int32, (1, 2, 3)), (np.float32, (1.5, 2, 1.3, 0.75, 0.4)))
    factors = [kind(d.pick(*options)) for _ in "hw"]
    factors = [kind(1) if factor * size < 1 else factor for factor, size in zip(factors, x.shape[-2:], strict=True)]
    given = dict(zip(("scale_factor_height", "scale_factor_width"), factors, strict=True))
    height, width = (int(np.floor(np.float32(f * size))) for f, size in zip(factors, x.shape[-2:], strict=True))
    defaults = kind is np.int32 and d.flag()
    return {name: factor for name, factor in given.items() if not (defaults and factor == 1)}, (height, width)


@cases("upsample_nearest_neighbor", not_inferred=NOT_INFERRED)
def _(d: Draw) -> Call:
    x = _image(d, edges="special")
    given, sizes = _factors(d, x)
    return Call({"x": x}, given, lambda a: _nearest_of(a.x, sizes), EXACT)


def _nearest_of(x: Any, sizes: tuple[int, int]) -> Any:
    places = ([i * size // count for i in range(count)] for size, count in zip(x.shape[-2:], sizes, strict=True))
    rows, columns = places
    return x[..., rows, :][..., columns]


@cases("resize_nearest_neighbor", not_inferred=NOT_INFERRED)
def _(d: Draw) -> Call:
    sizes = d.number(1, 9), d.number(1, 9)
    given = {"target_size_height": sizes[0], "target_size_width": sizes[1]}
    return Call({"x": _image(d, edges="special")}, given, lambda a: _nearest_of(a.x, sizes), EXACT)


@cases("upsample_bilinear", not_inferred=NOT_INFERRED)
def _(d: Draw) -> Call:
    x = _image(d)
    given, sizes = _factors(d, x)
    given |= d.some(align_corners=d.flag())
    aligned = given.get("align_corners", True)
    half = not aligned
    if d.opset >= target.iOS16 and not aligned and d.flag():
        given["half_pixel_centers"] = half = d.flag()
    mode = "STRICT_ALIGN_CORNERS" if aligned else "UNALIGN_CORNERS" if half else "DEFAULT"
    return Call({"x": x}, given, lambda a: _bilinear(a.x, sizes, mode), BILINEAR)


@cases("resize_bilinear", not_inferred=NOT_INFERRED)
def _(d: Draw) -> Call:
    sizes = d.number(1, 9), d.number(1, 9)
    given = {"target_size_height": sizes[0], "target_size_width": sizes[1]} | d.some(sampling_mode=d.pick(*MODES))
    return Call({"x": _image(d)}, given, lambda a: _bilinear(a.x, sizes, a("sampling_mode", "DEFAULT")), BILINEAR)


@cases("resize", opsets=SINCE_17, not_inferred=NOT_INFERRED)
def _(d: Draw) -> Call:
    dims = d.number(1, 2)
    nearest = d.flag()
    x = _image(d, edges="special" if nearest else "finite")
    if nearest and d.flag():
        x = d.array(x.shape, I32)
    listed = d.number(dims, x.ndim)
    asked = [d.number(0, 9) for _ in range(listed)]
    given: dict[str, Any] = {
        "shape": np.array(asked, d.pick("int32", "int16", "uint16", "uint32")),
        "resized_dims": np.uint32(dims),
    }
    given |= d.some(sampling_mode=d.pick(*MODES))
    given |= {"interpolation_mode": "NEAREST_NEIGHBOR"} if nearest else d.some(interpolation_mode="LINEAR")

    def oracle(a: Any) -> Any:
        y, mode = a.x, a("sampling_mode", "DEFAULT")
        for axis in range(-dims, 0):
            size = y.shape[axis]
            count = asked[axis] or size
            if not nearest:
                y = _interpolated(y, axis, _points(size, count, mode))
            elif mode == "DEFAULT":  # the middle of the output's element, in the input
                y = np.take(y, [(2 * i + 1) * size // (2 * count) for i in range(count)], axis)
            else:
                y = np.take(y, [min(floor(point + 0.5), size - 1) for point in _points(size, count, mode)], axis)
        return y

    return Call({"x": x}, given, oracle, EXACT if nearest else BILINEAR)


@cases("crop", not_inferred=NOT_INFERRED)
def _(d: Draw) -> Call:
    x = _image(d, edges="special")
    cuts: list[list[int]] = []
    for size in x.shape[-2:]:
        before = d.number(0, size - 1)
        cuts.append([before, d.number(0, size - 1 - before)])
    given = {name: np.array(cut, np.int32) for name, cut in zip(("crop_height", "crop_width"), cuts, strict=True)}
    kept = [range(cut[0], size - cut[1]) for cut, size in zip(cuts, x.shape[-2:], strict=True)]
    return Call({"x": x}, given, lambda a: a.x[..., list(kept[0]), :][..., list(kept[1])])


def _read(x: Any, row: float, column: float, pixel: Any) -> Any:
    """``x (C,H,W)`` at a place: between the four pixels around it, each given by ``pixel(row, column)``."""
    top, left = floor(row), floor(column)
    total = np.zeros(x.shape[0])
    for i, down in ((top, 1 - (row - top)), (top + 1, row - top)):
        for j, across in ((left, 1 - (column - left)), (left + 1, column - left)):
            if down * across:
                total = total + down * across * pixel(i, j)
    return total


BOXES = ("CORNERS_HEIGHT_FIRST", "CORNERS_WIDTH_FIRST", "CENTER_SIZE_HEIGHT_FIRST", "CENTER_SIZE_WIDTH_FIRST")


def _edges_of(box: Any, mode: str) -> tuple[float, float, float, float]:
    """top, left, bottom, right"""
    first, second, third, fourth = (float(each) for each in box)
    if mode.endswith("WIDTH_FIRST"):
        first, second, third, fourth = second, first, fourth, third
    if mode.startswith("CENTER"):
        return first - third / 2, second - fourth / 2, first + third / 2, second + fourth / 2
    return first, second, third, fourth


def _clamped(image: Any, row: int, column: int) -> Any:
    return image[:, min(row, image.shape[1] - 1), min(column, image.shape[2] - 1)]


def _cropped(image: Any, box: Any, height: int, width: int, a: Any) -> Any:
    """One box of ``image (C,H,W)``; what lies outside of the image, by more than a rounding, is the pad value."""
    top, left, bottom, right = _edges_of(box, a("box_coordinate_mode", "CORNERS_HEIGHT_FIRST"))
    last = image.shape[1] - 1, image.shape[2] - 1
    scale = a("spatial_scale", 1.0)
    high, wide = (scale * each for each in (last if a("normalized_coordinates", False) else (1, 1)))
    mode = a("sampling_mode", "DEFAULT")
    rows = [top * high + point for point in _points((bottom - top) * high + 1, height, mode)]
    columns = [left * wide + point for point in _points((right - left) * wide + 1, width, mode)]
    y = np.full((image.shape[0], height, width), float(a("pad_value", 0.0)))
    for (i, row), (j, column) in product(enumerate(rows), enumerate(columns)):
        if all(-1e-9 <= each <= end + 1e-9 for each, end in zip((row, column), last, strict=True)):
            place = min(max(row, 0.0), last[0]), min(max(column, 0.0), last[1])
            y[:, i, j] = _read(image, *place, partial(_clamped, image))
    return y


def _box(d: Draw, image: Any, mode: str, normalized: bool, kind: Any) -> list[float]:
    """A box, often up to an edge of the image and sometimes beyond it, in tenths."""
    corners: list[tuple[float, float]] = []
    for size in image.shape[-2:]:
        unit = 1 if normalized else size - 1
        low = d.pick(0, 0, d.number(-2, 8)) / 10
        high = d.pick(1.0, 1.0, low + d.number(1, 10) / 10)
        corners.append((low * unit, max(low, high) * unit))
    (top, bottom), (left, right) = corners
    if mode.startswith("CENTER"):
        pairs = [(top + bottom) / 2, (left + right) / 2, bottom - top, right - left]
    else:
        pairs = [top, left, bottom, right]
    order = (1, 0, 3, 2) if mode.endswith("WIDTH_FIRST") else (0, 1, 2, 3)
    return [float(kind.type(pairs[i])) for i in order]


def _crop_attributes(d: Draw, mode: str, normalized: bool) -> dict[str, Any]:
    given = {"target_height": d.number(1, 7), "target_width": d.number(1, 7), "box_coordinate_mode": mode}
    given |= d.some(sampling_mode=d.pick(*MODES), spatial_scale=np.float32(d.pick(0.5, 1.0, 2.0)))
    return given | ({"normalized_coordinates": True} if normalized else {})


@cases("crop_resize", opsets=UNTIL_16, not_inferred=NOT_INFERRED)
def _(d: Draw) -> Call:
    x = _image(d, 4)
    mode, normalized, count = d.pick(*BOXES), d.flag(), d.number(1, 2)
    boxes = [_box(d, x, mode, normalized, x.dtype) for _ in range(count)]
    images = d.flag()
    # a roi names its image; without, it is cut out of all of them; coremltools declares as many in both cases
    images = images and x.shape[0] == 1
    rows = [[0.0, *box] if images else box for box in boxes]
    roi = np.array(rows, x.dtype).reshape(count, 1, -1, 1, 1)
    given = _crop_attributes(d, mode, normalized)
    if d.opset == target.iOS16:
        given |= d.some(pad_value=d.scalar(x.dtype))

    def oracle(a: Any) -> Any:
        sizes = given["target_height"], given["target_width"]
        return np.stack([np.stack([_cropped(image, box, *sizes, a) for image in a.x]) for box in boxes])

    return Call({"x": x, "roi": roi}, given, oracle, BILINEAR)


@cases("crop_resize", opsets=SINCE_17, label="iOS17", not_inferred=NOT_INFERRED)
def _(d: Draw) -> Call:
    x = _image(d, 4)
    mode, normalized = d.pick(*BOXES), d.flag()
    given = _crop_attributes(d, mode, normalized) | d.some(pad_value=d.scalar(x.dtype))
    named = d.flag()
    count = d.number(1, 3) if named else x.shape[0]
    boxes = np.array([_box(d, x, mode, normalized, F32) for _ in range(count)], np.float32)
    fed = {"x": x, "boxes": boxes}
    images = d.array((count,), I32, low=0, high=x.shape[0] - 1) if named else np.arange(count)
    if named:
        fed["box_indices"] = images

    def oracle(a: Any) -> Any:
        sizes = given["target_height"], given["target_width"]
        return np.stack([_cropped(a.x[image], box, *sizes, a) for image, box in zip(images, boxes, strict=True)])

    return Call(fed, given, oracle, BILINEAR)


def _inside(i: int, size: int, padding: str) -> int | None:
    """Which pixel stands at ``i`` of the endlessly padded image; None for the padding value."""
    if 0 <= i < size:
        return i
    if padding == "constant":
        return None
    if padding == "border":
        return min(max(i, 0), size - 1)
    back = range(size - 2, 0, -1) if padding == "reflection" else range(size - 1, -1, -1)
    line: list[int] = [*range(size), *back]
    return line[i % len(line)]


def _resampled(x: Any, rows: Any, columns: Any, sampling: str, padding: str, value: float) -> Any:
    """``x (B,C,H,W)`` at ``rows, columns (B,h,w)``, in pixels."""
    y = np.zeros((*x.shape[:2], *rows.shape[1:]))
    for b, i, j in product(*map(range, rows.shape)):

        def pixel(row: int, column: int, image: Any = x[b]) -> Any:
            place = _inside(row, image.shape[1], padding), _inside(column, image.shape[2], padding)
            return np.full(image.shape[0], value) if None in place else image[:, place[0], place[1]]

        if sampling == "nearest":
            y[b, :, i, j] = pixel(round(rows[b, i, j]), round(columns[b, i, j]))
        else:
            y[b, :, i, j] = _read(x[b], rows[b, i, j], columns[b, i, j], pixel)
    return y


@cases("resample", not_inferred=NOT_INFERRED)
def _(d: Draw) -> Call:
    """Places are eighths of pixels, never halves, in images so large that these are numbers in every unit."""
    coordinates = d.pick("unnormalized", "normalized_minus_one_to_one", "normalized_zero_to_one")
    aligned = d.flag()
    sizes = [d.pick(2, 3, 5) if aligned else d.pick(1, 2, 4) for _ in "hw"]
    x = d.array((d.number(1, 2), d.number(1, 2), *sizes), d.pick(*FLOATS), low=-8, high=8, edges="finite")
    shape = (x.shape[0], d.number(1, 3), d.number(1, 3))
    whole = coordinates == "unnormalized" and d.flag()
    pixels = [d.array(shape, I32, low=-2 * size, high=3 * size) for size in sizes]
    if not whole:
        parts = [np.random.default_rng(d.number(0, 999)).choice([0, 1, 2, 3, 5, 7], shape) / 8 for _ in sizes]
        pixels = [pixel + part for pixel, part in zip(pixels, parts, strict=True)]

    def written(pixel: Any, size: int) -> Any:
        if coordinates == "unnormalized":
            return pixel
        unit = pixel / (size - 1) if aligned else (pixel + 0.5) / size
        return unit if coordinates == "normalized_zero_to_one" else 2 * unit - 1

    places = np.stack([written(pixel, size) for pixel, size in zip(pixels[::-1], sizes[::-1], strict=True)], -1)
    given: dict[str, Any] = {
        "sampling_mode": d.pick("bilinear", "nearest"),
        "padding_mode": d.pick("constant", "border", "reflection", "symmetric"),
        "padding_value": d.scalar(x.dtype),
        "coordinates_mode": coordinates,
        "align_corners": aligned,
    }

    def oracle(a: Any) -> Any:
        rows, columns = pixels
        return _resampled(a.x, rows, columns, a.sampling_mode, a.padding_mode, float(a.padding_value))

    return Call({"x": x, "coordinates": places.astype(np.int32 if whole else np.float32)}, given, oracle, BILINEAR)


@cases("affine", not_inferred=NOT_INFERRED)
def _(d: Draw) -> Call:
    x = _image(d, 4)
    matrix = d.array((d.pick(1, x.shape[0]), 6), x.dtype, low=-1.5, high=1.5)
    height, width = d.number(2, 4), d.number(2, 4)

    def oracle(a: Any) -> Any:
        matrices = np.broadcast_to(a.transform_matrix, (a.x.shape[0], 6))
        across, down = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
        rows: list[Any] = []
        columns: list[Any] = []
        for a0, a1, a2, b0, b1, b2 in matrices:
            columns.append((a0 * across + a1 * down + a2 + 1) / 2 * (a.x.shape[3] - 1))
            rows.append((b0 * across + b1 * down + b2 + 1) / 2 * (a.x.shape[2] - 1))
        return _resampled(a.x, np.stack(rows), np.stack(columns), "bilinear", "constant", 0.0)

    given = {
        "output_height": height,
        "output_width": width,
        "sampling_mode": "bilinear",
        "padding_mode": "constant",
        "padding_value": x.dtype.type(0),
        "coordinates_mode": "normalized_minus_one_to_one",
        "align_corners": True,
    }
    # the places are rounded too: up to 10 pixels away, with a slope of twice the largest value
    return Call({"x": x, "transform_matrix": matrix}, given, oracle, Within(400, _largest))

"""Blocks of pixels between channels, batch and space, pixel by pixel."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

from milopt.testing.ops.comparing import EXACT
from milopt.testing.ops.drawing import FLOATS, Draw
from milopt.testing.ops.framework import ALL, Call, Cases
from milopt.testing.ops.untyped import np

__all__ = ["cases"]

cases = Cases()


def _moved(x: Any, shape: tuple[int, ...], source: Callable[[int, int, int, int], tuple[int, ...] | None]) -> Any:
    """An array of ``shape`` with the element of ``x`` at ``source(place)`` in each place, or 0 if there is none."""
    y = np.zeros(shape)
    for n, c, i, j in product(*map(range, shape)):
        origin = source(n, c, i, j)
        if origin is not None:
            y[n, c, i, j] = x[origin]
    return y


def _image(d: Draw, channels: int, height: int, width: int) -> Any:
    return d.array((d.number(1, 2), channels, height, width), d.pick(*FLOATS))


@cases("depth_to_space", not_inferred="it has none")
def _(d: Draw) -> Call:
    b = d.number(2, 3)
    x = _image(d, b * b * d.number(1, 2), d.number(1, 3), d.number(1, 3))
    n, c, h, w = x.shape
    c //= b * b
    # channels are ordered (row in the block, column in the block, channel)
    return Call(
        {"x": x},
        {"block_size": b},
        lambda a: _moved(
            a.x, (n, c, h * b, w * b), lambda n, k, i, j: (n, ((i % b) * b + j % b) * c + k, i // b, j // b)
        ),
    )


@cases("space_to_depth", not_inferred="it has none")
def _(d: Draw) -> Call:
    b = d.number(2, 3)
    x = _image(d, d.number(1, 3), b * d.number(1, 2), b * d.number(1, 2))
    n, c, h, w = x.shape
    return Call(
        {"x": x},
        {"block_size": b},
        lambda a: _moved(
            a.x,
            (n, c * b * b, h // b, w // b),
            lambda n, k, i, j: (n, k % c, i * b + k // c // b, j * b + k // c % b),
        ),
    )


@cases("pixel_shuffle", not_inferred="it has none")
def _(d: Draw) -> Call:
    f = d.number(1, 3)
    x = _image(d, f * f * d.number(1, 2), d.number(1, 3), d.number(1, 3))
    n, c, h, w = x.shape
    # channels are ordered (channel, row in the block, column in the block)
    return Call(
        {"x": x},
        {"upscale_factor": f},
        lambda a: _moved(
            a.x,
            (n, c // (f * f), h * f, w * f),
            lambda n, k, i, j: (n, k * f * f + (i % f) * f + j % f, i // f, j // f),
        ),
    )


@cases("pixel_unshuffle", opsets=ALL[1:], not_inferred="it has none")
def _(d: Draw) -> Call:
    f = d.number(1, 3)
    x = _image(d, d.number(1, 2), f * d.number(1, 2), f * d.number(1, 2))
    n, c, h, w = x.shape
    return Call(
        {"x": x},
        {"downscale_factor": np.uint32(f)},
        lambda a: _moved(
            a.x,
            (n, c * f * f, h // f, w // f),
            lambda n, k, i, j: (n, k // (f * f), i * f + k // f % f, j * f + k % f),
        ),
        EXACT,
    )


@cases("space_to_batch", not_inferred="it has none")
def _(d: Draw) -> Call:
    """The batch is ordered (row in the block, column in the block, image)."""
    x = _image(d, d.number(1, 2), d.number(1, 4), d.number(1, 4))
    n, c, h, w = x.shape
    (b0, b1), top, left = d.numbers(2, 1, 3), d.number(0, 2), d.number(0, 2)
    pads = [[top, -(h + top) % b0], [left, -(w + left) % b1]]
    shape = (n * b0 * b1, c, (h + sum(pads[0])) // b0, (w + sum(pads[1])) // b1)

    def source(m: int, k: int, i: int, j: int) -> tuple[int, ...] | None:
        row, column = i * b0 + m // n // b1 - top, j * b1 + m // n % b1 - left
        return (m % n, k, row, column) if 0 <= row < h and 0 <= column < w else None

    given = {"block_shape": np.array([b0, b1], np.int32), "paddings": np.array(pads, np.int32)}
    return Call({"x": x}, given, lambda a: _moved(a.x, shape, source))


@cases("batch_to_space", not_inferred="it has none")
def _(d: Draw) -> Call:
    b0, b1 = d.numbers(2, 1, 3)
    n = d.number(1, 2)
    x = d.array((n * b0 * b1, d.number(1, 2), d.number(1, 3), d.number(1, 3)), d.pick(*FLOATS))
    _, c, h, w = x.shape
    top, bottom = d.number(0, (h * b0 - 1) // 2), d.number(0, (h * b0 - 1) // 2)
    left, right = d.number(0, (w * b1 - 1) // 2), d.number(0, (w * b1 - 1) // 2)
    shape = (n, c, h * b0 - top - bottom, w * b1 - left - right)

    def source(m: int, k: int, i: int, j: int) -> tuple[int, ...]:
        i, j = i + top, j + left
        return (i % b0 * b1 + j % b1) * n + m, k, i // b0, j // b1

    given = {
        "block_shape": np.array([b0, b1], np.int32),
        "crops": np.array([[top, bottom], [left, right]], np.int32),
    }
    return Call({"x": x}, given, lambda a: _moved(a.x, shape, source))

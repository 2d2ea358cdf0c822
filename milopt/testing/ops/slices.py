"""Slices, splits and writes into slices: to the bit."""

from __future__ import annotations

from itertools import product
from typing import Any

from milopt.mil import target
from milopt.testing.ops.drawing import Draw
from milopt.testing.ops.framework import Call, Cases
from milopt.testing.ops.movements import anything
from milopt.testing.ops.untyped import np

__all__ = ["cases"]

cases = Cases()


def _slice(d: Draw, shape: tuple[int, ...], *, squeezes: bool) -> tuple[dict[str, Any], list[list[int]], list[int]]:
    """The inputs of a slice, the places it takes along each axis, and the axes that are left out.

    Masks win over begin and end, which then may be anything; strides of both signs; indices counted from both ends and
    beyond them.
    """
    given: dict[str, list[Any]] = {
        name: [] for name in ("begin", "end", "stride", "begin_mask", "end_mask", "squeeze_mask")
    }
    places: list[list[int]] = []
    for size in shape:
        squeezed = squeezes and size > 0 and d.number(0, 3) == 3
        begin, end = d.number(-size, size - 1) if size else 0, d.number(-size, size + 1)
        masks = d.flag(), d.flag()
        stride = d.pick(1, 1, 2, -1, -2, 3) if size else 1
        taken = list(range(size))[None if masks[0] else begin : None if masks[1] else end : stride]
        if squeezed:
            stride, masks = 1, (False, masks[1])
            taken = [begin % size]
        if not taken:  # coremltools refuses slices without elements: take all
            begin, end, stride, masks, taken = 0, size, 1, (True, True), list(range(size))
        for name, value in zip(given, (begin, end, stride, *masks, squeezed), strict=True):
            given[name].append(value)
        places.append(taken)
    left_out = [axis for axis, squeezed in enumerate(given["squeeze_mask"]) if squeezed]
    inputs = {name: np.array(given[name], np.int32) for name in ("begin", "end")}
    if set(given["stride"]) != {1} or d.flag():
        inputs["stride"] = np.array(given["stride"], np.int32)
    inputs |= {name: np.array(given[name], bool) for name in list(given)[3:] if any(given[name]) or d.flag()}
    return inputs, places, left_out


@cases("slice_by_index")
def _(d: Draw) -> Call:
    x = anything(d, d.shape(1, empty=False))
    given, places, left_out = _slice(d, x.shape, squeezes=True)
    runtime = {name: given.pop(name) for name in ("begin", "end")}

    def oracle(a: Any) -> Any:
        return np.squeeze(a.x[np.ix_(*places)], tuple(left_out))

    # a single element is inferred as fp32 or int32, or not at all
    return Call({"x": x}, {**runtime, **given}, oracle, inferred=len(left_out) < x.ndim)


@cases("slice_update", opsets=(target.iOS18,))
def _(d: Draw) -> Call:
    x = anything(d, d.shape(1, empty=False), small=False)
    given, places, left_out = _slice(d, x.shape, squeezes=True)
    shape = tuple(len(each) for axis, each in enumerate(places) if axis not in left_out)
    if not shape:
        given.pop("squeeze_mask")
        left_out, shape = [], (1,) * x.ndim
        given["end"] = np.where(given["begin"] == -1, x.shape, given["begin"] + 1).astype(np.int32)
        given.pop("end_mask", None)
    update = d.array(shape, x.dtype)

    def oracle(a: Any) -> Any:
        y = a.x.copy()
        full = np.expand_dims(a.update, tuple(left_out))
        for index in product(*(range(len(each)) for each in places)):
            y[tuple(each[i] for each, i in zip(places, index, strict=True))] = full[index]
        return y

    return Call({"x": x, "update": update}, given, oracle)


@cases("slice_by_size")
def _(d: Draw) -> Call:
    x = anything(d, d.shape(1, empty=False))
    begin = [d.number(0, size - 1) for size in x.shape]
    size = [d.number(1, length - first) for length, first in zip(x.shape, begin, strict=True)]
    rest = [first + count == length and d.flag() for first, count, length in zip(begin, size, x.shape, strict=True)]
    # counted from the end; with a size of -1 coremltools infers a shape that is too large
    back = [not open_ended and d.flag() for open_ended in rest]
    given = {
        "begin": np.array([b - n * counted for b, n, counted in zip(begin, x.shape, back, strict=True)], np.int32),
        "size": np.array([-1 if open_ended else s for s, open_ended in zip(size, rest, strict=True)], np.int32),
    }

    def oracle(a: Any) -> Any:
        return a.x[np.ix_(*(range(b, b + s) for b, s in zip(begin, size, strict=True)))]

    return Call({"x": x}, given, oracle)


@cases("split")
def _(d: Draw) -> Call:
    count = d.number(2, 3)
    shape = list(d.shape(1))
    axis = d.axis(len(shape))
    sizes = [d.number(1, 3)] * count if d.flag() else d.numbers(count, 1, 3)
    shape[axis] = sum(sizes)
    x = anything(d, tuple(shape), small=False)
    even = len(set(sizes)) == 1 and d.flag()
    given: dict[str, Any] = {"num_splits": count} if even else {"split_sizes": np.array(sizes, np.int32)}
    if not even and d.flag():
        given["num_splits"] = count

    def oracle(a: Any) -> Any:
        starts = [sum(sizes[:i]) for i in range(count)]
        return tuple(np.take(a.x, range(start, start + n), axis) for start, n in zip(starts, sizes, strict=True))

    return Call({"x": x}, {"axis": axis} | given, oracle)

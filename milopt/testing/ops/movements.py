"""Ops that move, repeat or make elements: to the bit."""

from __future__ import annotations

from math import prod
from typing import Any

from milopt.testing.ops.comparing import EXACT, Within
from milopt.testing.ops.drawing import F16, F32, FLOATS, I32, Draw
from milopt.testing.ops.framework import ALL, Call, Cases
from milopt.testing.ops.untyped import np

__all__ = ["anything", "cases"]

cases = Cases()

BOOL = np.dtype(bool)
OLD = (F16, F32, I32, BOOL)
SMALL = tuple(np.dtype(name) for name in ("int8", "uint8", "int16", "uint16"))


def anything(d: Draw, shape: tuple[int, ...], *, small: bool = True, logical: bool = True) -> Any:
    """An array of any type the opset's movements take; with ``small`` the narrow integers of iOS17 too."""
    types = (*OLD, *SMALL) if small and d.newer else OLD
    return d.array(shape, d.pick(*(each for each in types if logical or each != BOOL)))


@cases("identity")
def _(d: Draw) -> Call:
    return Call({"x": anything(d, d.shape(1), small=False)}, {}, lambda a: a.x)


@cases("shape")
def _(d: Draw) -> Call:
    return Call({"x": anything(d, d.shape(1), small=False)}, {}, lambda a: np.array(a.x.shape))


@cases("non_zero")
def _(d: Draw) -> Call:
    return Call({"x": anything(d, d.shape(1), small=False)}, {}, lambda a: np.argwhere(a.x != 0))


def _factored(d: Draw, volume: int, rank: int) -> list[int]:
    shape = [1] * rank
    for factor in (2, 2, 2, 3, 3, 3):
        if volume % factor == 0:
            volume //= factor
            shape[d.number(0, rank - 1)] *= factor
    shape[-1] *= volume
    return shape


@cases("reshape")
def _(d: Draw) -> Call:
    """-1 is what remains, 0 the size of ``x`` at that place: from iOS17 on counted from the end, and 1 beyond it."""
    x = anything(d, d.shape(1, empty=False))
    rank = d.number(1, 5)
    want = _factored(d, x.size, rank)
    asked = list(want)
    for i in range(rank):
        distance = rank - i
        same = (x.shape[-distance] if distance <= x.ndim else 1) if d.newer else x.shape[i] if rank == x.ndim else None
        if same == want[i] and d.flag():
            asked[i] = 0
    if d.flag():
        asked[d.number(0, rank - 1)] = -1
    kind = d.pick("int8", "int16", "int32") if d.newer and max(asked) < 128 else "int32"
    return Call({"x": x}, {"shape": np.array(asked, kind)}, lambda a: np.reshape(a.x, want))


@cases("reshape_like", opsets=ALL[1:])
def _(d: Draw) -> Call:
    x = anything(d, d.shape(1, 3, empty=False))
    whole = tuple(_factored(d, x.size, d.number(1, 4)))
    cut = d.number(0, len(whole))
    first, second = (9, *whole[:cut]), (*whole[cut:], 7)
    if d.flag():  # up to the end
        second = (5, *whole[cut:])
    masked = second[0] == 5 and second[1:] == whole[cut:]
    attributes = {
        "begins": (np.int32(1), np.int32(1 if masked else 0)),
        "ends": (np.int32(cut + 1), np.int32(0 if masked else len(second) - 1)),
        "end_masks": (np.bool_(False), np.bool_(masked)),
    }
    references = (np.zeros(first, np.float32), np.zeros(second, np.float32))
    return Call({"x": x, "ref_tensors": references}, attributes, lambda a: np.reshape(a.x, whole))


@cases("transpose")
def _(d: Draw) -> Call:
    x = anything(d, d.shape(1, 5))
    perm = [axis % x.ndim if axis >= 0 else axis for axis in d.axes(x.ndim, x.ndim)]
    return Call({"x": x}, {"perm": np.array(perm, np.int32)}, lambda a: np.moveaxis(a.x, perm, range(a.x.ndim)))


@cases("expand_dims")
def _(d: Draw) -> Call:
    x = anything(d, d.shape(1, 3))
    count = d.number(1, 2)
    axes = d.axes(x.ndim + count, count)[:count]
    return Call({"x": x}, {"axes": np.array(axes, np.int32)}, lambda a: np.expand_dims(a.x, tuple(axes)))


@cases("squeeze")
def _(d: Draw) -> Call:
    shape = [1 if d.flag() else size for size in d.shape(1)]
    ones = [axis for axis, size in enumerate(shape) if size == 1]
    x = anything(d, tuple(shape))
    axes = [axis - x.ndim * d.flag() for axis in ones if d.flag()]
    given = {"axes": np.array(axes, np.int32)} if axes else {}

    def oracle(a: Any) -> Any:
        left = [size for axis, size in enumerate(shape) if not (axis in axes or axis - len(shape) in axes)]
        return np.reshape(a.x, left if axes else [size for size in shape if size != 1])

    # a single element is inferred of another shape than its type says
    return Call({"x": x}, given, oracle, inferred=len(axes or ones) < x.ndim)


@cases("flatten2d")
def _(d: Draw) -> Call:
    x = anything(d, d.shape(1, 5), small=False)
    given = d.some(axis=d.number(-x.ndim, x.ndim))

    def oracle(a: Any) -> Any:
        axis = a("axis", 1)
        return np.reshape(a.x, (prod(a.x.shape[:axis]), prod(a.x.shape[axis:])))

    # value inference takes the product of no sizes for a float, and fails
    return Call({"x": x}, given, oracle, inferred=given.get("axis", 1) not in (0, -x.ndim, x.ndim))


def _alike(d: Draw, count: int, axis: int | None, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """Arrays of one type and shape, but for the size along ``axis``."""
    dtype = d.pick(*OLD)
    sizes = [[d.number(1, 3) if i == axis else size for i, size in enumerate(shape)] for _ in range(count)]
    return tuple(d.array(tuple(each), dtype) for each in sizes)


@cases("concat")
def _(d: Draw) -> Call:
    shape = d.shape(1)
    axis = d.axis(len(shape))
    if len(shape) > 1 and d.flag():  # interleaved: the first of each, then the second of each...
        values = _alike(d, d.number(1, 3), None, shape)
        at = axis % len(shape)
        merged = (*shape[:at], len(values) * shape[at], *shape[at + 1 :])
        return Call(
            {"values": values},
            {"axis": axis, "interleave": True},
            lambda a: np.reshape(np.stack(a.values, at + 1), merged),
            inferred=False,  # it infers what it would without interleaving
        )
    return Call(
        {"values": _alike(d, d.number(1, 3), axis % len(shape), shape)},
        {"axis": axis} | d.some(interleave=False),
        lambda a: np.concatenate(a.values, axis),
    )


@cases("stack")
def _(d: Draw) -> Call:
    shape = d.shape(1, 3)
    axis = d.axis(len(shape) + 1)
    return Call({"values": _alike(d, d.number(1, 3), None, shape)}, {"axis": axis}, lambda a: np.stack(a.values, axis))


@cases("tile")
def _(d: Draw) -> Call:
    x = anything(d, d.shape(1), small=False)
    reps = d.numbers(x.ndim, 1, 3)

    def oracle(a: Any) -> Any:
        return a.x[np.ix_(*(list(range(size)) * count for size, count in zip(a.x.shape, reps, strict=True)))]

    return Call({"x": x}, {"reps": np.array(reps, np.int32)}, oracle)


@cases("pad")
def _(d: Draw) -> Call:
    x = d.array(d.shape(1, 5, empty=False), d.pick(*FLOATS))
    mode = d.pick("constant", "reflect", "replicate")
    padded = x.shape[-d.number(1, x.ndim) :]
    most = [size - 1 if mode == "reflect" else 3 for size in padded]
    pad = [amount for limit in most for amount in d.numbers(2, 0, min(limit, 3))]
    given: dict[str, Any] = {"pad": np.array(pad, np.int32)}
    given |= d.some(mode=mode) if mode == "constant" else {"mode": mode}
    given |= d.some(constant_val=d.scalar(x.dtype))

    def along(row: Any, before: int, after: int, value: float) -> list[Any]:
        """By definition: mirrored at the ends, the ends themselves not repeated; or the ends repeated."""
        inner: list[Any] = row.tolist()
        if mode == "constant":
            return [value] * before + inner + [value] * after
        if mode == "replicate":
            return inner[:1] * before + inner + inner[-1:] * after
        return inner[1 : before + 1][::-1] + inner + inner[::-1][1 : after + 1]

    def oracle(a: Any) -> Any:
        y = a.x
        for i in range(len(padded)):
            y = np.apply_along_axis(
                along, y.ndim - len(padded) + i, y, pad[2 * i], pad[2 * i + 1], float(a("constant_val", 0.0))
            )
        return y

    return Call({"x": x}, given, oracle)


@cases("reverse")
def _(d: Draw) -> Call:
    x = anything(d, d.shape(1))
    given = d.some(axes=np.array(d.axes(x.ndim), np.int32))

    def oracle(a: Any) -> Any:
        axes = [axis % a.x.ndim for axis in a("axes", range(a.x.ndim))]
        return a.x[tuple(slice(None, None, -1) if axis in axes else slice(None) for axis in range(a.x.ndim))]

    return Call({"x": x}, given, oracle)


@cases("reverse_sequence", not_inferred="it raises NotImplementedError")
def _(d: Draw) -> Call:
    x = anything(d, d.shape(2))
    batch, sequence = d.axes(x.ndim, 2)[:2]
    kind = d.pick("int8", "int16", "int32") if d.newer else "int32"
    lengths = d.array((x.shape[batch],), kind, low=0, high=x.shape[sequence])

    def oracle(a: Any) -> Any:
        y = np.moveaxis(a.x, (batch, sequence), (0, 1)).copy()
        for row, length in zip(y, lengths, strict=True):
            row[:length] = row[:length][::-1].copy()
        return np.moveaxis(y, (0, 1), (batch, sequence))

    return Call({"x": x, "lengths": lengths}, {"seq_axis": sequence, "batch_axis": batch}, oracle)


@cases("fill")
def _(d: Draw) -> Call:
    shape = d.shape(1)
    given = d.some(value=d.scalar(d.pick(*OLD)))
    return Call({}, {"shape": np.array(shape, np.int32)} | given, lambda a: np.full(shape, a("value", 0.0)))


@cases("fill_like", opsets=ALL[1:])
def _(d: Draw) -> Call:
    x = anything(d, d.shape(1), small=False)
    given = d.some(value=d.scalar(d.pick(*OLD)))
    return Call({"ref_tensor": x}, given, lambda a: np.full(a.ref_tensor.shape, a("value", 0.0)))


@cases("range_1d")
def _(d: Draw) -> Call:
    dtype = d.pick(*FLOATS, I32)
    # quarters, so that the number of elements doesn't hang on how a quotient is rounded
    start, step = (dtype.type(d.number(-8, 8) / (1 if dtype == I32 else 4)) for _ in "ab")
    step = dtype.type(1) if step == 0 else step
    end = dtype.type(start + step * d.number(0, 6) + (step / 2 if dtype != I32 and d.flag() else 0))

    def oracle(a: Any) -> Any:
        values: list[Any] = []
        while (a.start + len(values) * a.step - a.end) * np.sign(a.step) < 0:
            values.append(a.start + len(values) * a.step)
        return np.array(values, np.float64 if dtype.kind == "f" else np.int64)

    return Call({}, {"start": start, "end": end, "step": step}, oracle)


@cases("band_part")
def _(d: Draw) -> Call:
    x = anything(d, d.shape(2, empty=False), small=False)
    given = d.some(lower=d.number(-1, 3), upper=d.number(-1, 3))

    def oracle(a: Any) -> Any:
        lower, upper = a("lower", -1), a("upper", -1)
        y = a.x
        if upper >= 0:
            y = np.tril(y, upper)
        return np.triu(y, -lower) if lower >= 0 else y

    # the band is multiplied with x: 0 * infinity is NaN there, but what is set to zero is zero
    finite = bool(np.isfinite(x).all()) if x.dtype.kind == "f" else True
    return Call({"x": x}, given, oracle, EXACT, Within(1) if finite else False)


@cases("sliding_windows")
def _(d: Draw) -> Call:
    x = anything(d, d.shape(1, empty=False), logical=False)
    axis = d.axis(x.ndim)
    size = d.number(1, x.shape[axis])
    given = {"axis": axis, "size": size} | d.some(stride=d.number(1, 3))

    def oracle(a: Any) -> Any:
        starts = range(0, a.x.shape[axis] - size + 1, a("stride", 1))
        return np.stack([np.take(a.x, range(start, start + size), axis) for start in starts], axis % a.x.ndim)

    return Call({"x": x}, given, oracle)

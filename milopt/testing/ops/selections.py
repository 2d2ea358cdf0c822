"""Gathering, scattering and one-hot vectors, element by element."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

from milopt.testing.ops.comparing import EXACT, Within
from milopt.testing.ops.drawing import F16, F32, I32, Draw
from milopt.testing.ops.framework import Call, Cases
from milopt.testing.ops.movements import OLD, SMALL
from milopt.testing.ops.untyped import np

__all__ = ["cases"]

cases = Cases()


def _data(d: Draw, shape: tuple[int, ...]) -> Any:
    return d.array(shape, d.pick(F16, F32, I32, *(SMALL if d.newer else ())))


def _kind(d: Draw) -> Any:
    return np.dtype(d.pick("int8", "uint8", "int16", "uint16", "int32") if d.newer else "int32")


def _checked(d: Draw) -> dict[str, Any]:
    return d.some(validate_indices=d.flag()) if d.newer else {}


@cases("gather")
def _(d: Draw) -> Call:
    x = _data(d, d.shape(1, empty=False))
    batch_dims = d.number(0, x.ndim - 1) if str(d.opset.name) != "iOS15" and d.flag() else 0
    axis = d.number(batch_dims, x.ndim - 1)
    indices = d.places((*x.shape[:batch_dims], *d.shape(0, 2)), x.shape[axis], _kind(d))
    given: dict[str, Any] = {"axis": axis - x.ndim * d.flag()} | _checked(d)
    if batch_dims:
        given["batch_dims"] = batch_dims

    def oracle(a: Any) -> Any:
        if batch_dims == 0:
            return np.take(a.x, a.indices, axis)
        rest = tuple(range(size) for size in a.x.shape[:batch_dims])
        rows = [np.take(a.x[index], a.indices[index], axis - batch_dims) for index in product(*rest)]
        return np.reshape(np.stack(rows), (*a.x.shape[:batch_dims], *rows[0].shape))

    # with batch dimensions, value inference fails on axes counted from the end
    return Call({"x": x, "indices": indices}, given, oracle, inferred=not batch_dims or given["axis"] >= 0)


@cases("gather_along_axis")
def _(d: Draw) -> Call:
    x = _data(d, d.shape(1, empty=False))
    axis = d.axis(x.ndim)
    shape = list(x.shape)
    shape[axis] = d.number(0, 5)
    indices = d.places(tuple(shape), x.shape[axis], _kind(d))

    def oracle(a: Any) -> Any:
        y = np.empty(shape, a.x.dtype)
        for place in product(*map(range, shape)):
            source = list(place)
            source[axis] = a.indices[place]
            y[place] = a.x[tuple(source)]
        return y

    return Call({"x": x, "indices": indices}, {"axis": axis} | _checked(d), oracle)


def _deep_places(d: Draw, sizes: tuple[int, ...], shape: tuple[int, ...], kind: Any) -> Any:
    return np.stack([d.places(shape, size, kind) for size in sizes], -1)


@cases("gather_nd", not_inferred="it has none")
def _(d: Draw) -> Call:
    x = _data(d, d.shape(1, empty=False))
    batch_dims = d.number(0, x.ndim - 1) if str(d.opset.name) != "iOS15" and d.flag() else 0
    depth = d.number(1, x.ndim - batch_dims)
    sizes = x.shape[batch_dims : batch_dims + depth]
    indices = _deep_places(d, sizes, (*x.shape[:batch_dims], *d.shape(0 if batch_dims else 1, 2)), _kind(d))
    given = {"batch_dims": batch_dims} if batch_dims else _checked(d)

    def oracle(a: Any) -> Any:
        shape = (*a.indices.shape[:-1], *a.x.shape[batch_dims + depth :])
        y = np.empty(shape, a.x.dtype)
        for place in product(*map(range, a.indices.shape[:-1])):
            source = *place[:batch_dims], *a.indices[place]
            y[place] = a.x[source]
        return y

    return Call({"x": x, "indices": indices}, given, oracle)


MODES: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda old, new: old + new,
    "sub": lambda old, new: old - new,
    "mul": lambda old, new: old * new,
    # integers: cut to an integer, and 0 where the divisor is, as real_div
    "div": lambda old, new: (
        old / new if old.dtype.kind == "f" else np.where(new == 0, 0, np.trunc(old / np.where(new == 0, 1, new)))
    ),
    "max": np.maximum,
    "min": np.minimum,
    "update": lambda old, new: new,
}


def _mode(d: Draw) -> dict[str, Any]:
    return {} if d.number(0, 7) == 7 else {"mode": d.pick(*MODES)}


def _numbers(d: Draw, shape: tuple[int, ...], dtype: Any) -> Any:
    """Finite numbers, of which products neither overflow nor vanish, now and then a NaN or infinity, or integers."""
    if dtype.kind != "f":
        return d.array(shape, dtype, low=-9, high=9)
    x = np.where(d.array(shape, bool), 1, -1) * d.array(shape, dtype, low=0.5, high=2)
    if x.size and d.number(0, 3) == 3:
        x.flat[d.number(0, x.size - 1)] = d.pick(np.nan, np.inf, -np.inf)
    return x.astype(dtype)


def _combined(y: Any, place: Any, new: Any, mode: str) -> None:
    y[place] = MODES[mode](y[place], new)


def _count(given: dict[str, Any], size: int) -> bool:
    return given.get("mode", "add") == "update" and size > 0


# sums of some twenty numbers up to 2 in each place
FEW = Within(24, lambda a: np.full(a.data.shape, 40.0))


def _within(dtype: Any, given: dict[str, Any]) -> Within:
    return (
        Within(24)
        if dtype.kind == "f" and given.get("mode", "add") in ("mul", "div")
        else FEW
        if dtype.kind == "f"
        else EXACT
    )


@cases("scatter", not_inferred="it has none")
def _(d: Draw) -> Call:
    dtype = d.pick(F16, F32, I32)
    data = _numbers(d, d.shape(1, empty=False), dtype)
    axis = d.axis(data.ndim)
    given = _mode(d)
    size = data.shape[axis]
    count = d.number(1, size) if _count(given, size) else d.number(0, 5)
    indices = d.places((count,), size)
    if _count(given, size):  # which of two updates of a place stays is open
        indices = np.random.default_rng(count).permutation(size)[:count].astype(np.int32)
    shape = list(data.shape)
    shape[axis] = count
    updates = _numbers(d, tuple(shape), dtype)

    def oracle(a: Any) -> Any:
        y = np.moveaxis(a.data.copy(), axis, 0)
        for index, update in zip(a.indices, np.moveaxis(a.updates, axis, 0), strict=True):
            _combined(y, index, update, a("mode", "add"))
        return np.moveaxis(y, 0, axis)

    return Call(
        {"data": data, "indices": indices, "updates": updates},
        {"axis": axis} | given | _checked(d),
        oracle,
        _within(dtype, given),
    )


@cases("scatter_along_axis")
def _(d: Draw) -> Call:
    dtype = d.pick(F16, F32, I32)
    data = _numbers(d, d.shape(1, empty=False), dtype)
    axis = d.axis(data.ndim)
    given = _mode(d)
    shape = list(data.shape)
    updating = _count(given, shape[axis])
    shape[axis] = d.number(1, shape[axis]) if updating else d.number(1, 5)
    indices = d.places(tuple(shape), data.shape[axis])
    if updating:
        row = np.random.default_rng(shape[axis]).permutation(data.shape[axis])[: shape[axis]]
        indices = np.broadcast_to(np.expand_dims(row, tuple(range(1, data.ndim))), (len(row), *np.delete(shape, axis)))
        indices = np.moveaxis(indices, 0, axis).astype(np.int32)
    updates = _numbers(d, tuple(shape), dtype)

    def oracle(a: Any) -> Any:
        y = a.data.copy()
        for place in product(*map(range, shape)):
            target_place = list(place)
            target_place[axis] = a.indices[place]
            _combined(y, tuple(target_place), a.updates[place], a("mode", "add"))
        return y

    # value inference overwrites, whatever the mode
    inferred = given.get("mode") == "update"
    call = {"data": data, "indices": indices, "updates": updates}
    return Call(call, {"axis": axis} | given | _checked(d), oracle, _within(dtype, given), inferred)


@cases("scatter_nd", not_inferred="it has none")
def _(d: Draw) -> Call:
    dtype = d.pick(F16, F32, I32)
    data = _numbers(d, d.shape(1, empty=False), dtype)
    depth = d.number(1, data.ndim)
    given = _mode(d)
    indices = _deep_places(d, data.shape[:depth], d.shape(1, 2, max_size=3), I32)
    if given.get("mode") == "update":
        indices = np.unique(
            np.where(indices < 0, indices + np.array(data.shape[:depth]), indices).reshape(-1, depth), axis=0
        )
        indices = indices.astype(np.int32)
    updates = _numbers(d, (*indices.shape[:-1], *data.shape[depth:]), dtype)

    def oracle(a: Any) -> Any:
        y = a.data.copy()
        for place in product(*map(range, a.indices.shape[:-1])):
            _combined(y, tuple(a.indices[place]), a.updates[place], a("mode", "add"))
        return y

    call = {"data": data, "indices": indices, "updates": updates}
    return Call(call, given, oracle, _within(dtype, given))


@cases("one_hot", not_inferred="it has none")
def _(d: Draw) -> Call:
    shape = d.shape(1, 3)
    size = d.number(1, 5)
    # what is out of range marks nothing
    indices = d.array(shape, I32, low=0, high=size + 1)
    axis = d.axis(len(shape) + 1)
    dtype = d.pick(*OLD)
    given: dict[str, Any] = d.some(axis=axis)
    if d.flag():
        given |= {"on_value": d.scalar(dtype), "off_value": d.scalar(dtype)}

    def oracle(a: Any) -> Any:
        on, off = a("on_value", np.int64(1)), a("off_value", np.int64(0))
        y = np.full((*shape, size), off)
        for place in product(*map(range, shape)):
            if a.indices[place] < size:
                there = *place, a.indices[place]
                y[there] = on
        return np.moveaxis(y, -1, a("axis", -1))

    return Call({"indices": indices}, {"one_hot_vector_size": size} | given, oracle)

"""Reductions, sums along an axis, and the order of elements."""

from __future__ import annotations

from typing import Any

from milopt.mil import target
from milopt.testing.ops.comparing import EXACT, Oracle, Within, magnitudes
from milopt.testing.ops.drawing import F16, FLOATS, I32, NUMBERS, Draw
from milopt.testing.ops.framework import ALL, SINCE_17, UNTIL_16, Call, Cases
from milopt.testing.ops.untyped import np

__all__ = ["cases"]

cases = Cases()


def _axes(a: Any) -> tuple[int, ...] | None:
    axes = a("axes", None)
    return None if axes is None else tuple(int(axis) for axis in axes)


def _reduced(function: Any) -> Oracle:
    return lambda a: function(a.x, axis=_axes(a), keepdims=a("keep_dims", False))


def _truncated(a: Any, values: Any) -> Any:
    """Integers of floats as in ``cast``: NaN and what is too large become the smallest int32."""
    if a.x.dtype.kind == "f":
        return values
    return np.trunc(np.where(np.abs(values) < 2.0**31, values, -(2.0**31))).astype(np.int64)


def _l2_norm(a: Any) -> Any:
    squares = a.x * a.x
    if a.x.dtype.kind != "f":
        squares = squares.astype(np.int32).astype(np.int64)  # they wrap in value inference
    return _truncated(a, np.sqrt(squares.sum(_axes(a), keepdims=a("keep_dims", False))))


def _log_sum_exp(a: Any) -> Any:
    axes, keep = _axes(a), a("keep_dims", False)
    largest = a.x.astype(np.float64).max(axes, keepdims=True)
    # an infinite largest value stays what it is
    finite = np.where(np.isfinite(largest), largest, 0.0)
    sums = np.exp(a.x - finite).sum(axes, keepdims=keep)
    return _truncated(a, np.log(sums) + finite.max(axes, keepdims=keep))


def _largest(a: Any) -> Any:
    return 1 + _reduced(np.max)(a.magnitudes())


_sum = _reduced(np.sum)
_mean = _reduced(np.mean)

SUMS: dict[str, tuple[Oracle, Oracle]] = {
    "reduce_l1_norm": (lambda a: np.abs(a.x).sum(_axes(a), keepdims=a("keep_dims", False)), magnitudes(_sum)),
    # squares below the smallest fp32 vanish: their root is 2**-75
    "reduce_l2_norm": (_l2_norm, lambda a: 2.0**-50 + _l2_norm(a)),
    "reduce_mean": (lambda a: _truncated(a, _mean(a)), magnitudes(_mean)),
    "reduce_sum": (_sum, magnitudes(_sum)),
    "reduce_sum_square": (
        lambda a: (a.x * a.x).sum(_axes(a), keepdims=a("keep_dims", False)),
        lambda a: (a.x * a.x).sum(_axes(a), keepdims=a("keep_dims", False)),
    ),
}


def _some_axes(d: Draw, rank: int) -> dict[str, Any]:
    """Any axes, none at all included: then nothing is reduced."""
    return d.some(axes=np.array(d.axes(rank), np.int32), keep_dims=d.flag())


def _summed(oracle: Oracle, scale: Oracle) -> Any:
    def draws(d: Draw) -> Call:
        x = d.array(d.shape(1), d.pick(*NUMBERS), edges="special")
        # a sum of n terms takes n roundings
        # value inference takes the squares of fp16 in fp16, where they vanish and overflow
        inferred = oracle is not _l2_norm or x.dtype != F16
        return Call({"x": x}, _some_axes(d, x.ndim), oracle, Within(x.size + 4, scale), inferred)

    return draws


for _name, (_oracle, _scale) in SUMS.items():
    cases(_name)(_summed(_oracle, _scale))


@cases("reduce_log_sum")
def _(d: Draw) -> Call:
    x = d.array(d.shape(1), d.pick(*NUMBERS), low=0, high=9, edges="special")
    x = np.where(x < 0, 0, x).astype(x.dtype) if x.dtype.kind == "f" else x

    def oracle(a: Any) -> Any:
        return _truncated(a, np.log(_sum(a)))

    return Call({"x": x}, _some_axes(d, x.ndim), oracle, Within(x.size + 8, lambda a: 1 + np.abs(np.log(_sum(a)))))


@cases("reduce_log_sum_exp")
def _(d: Draw) -> Call:
    x = d.array(d.shape(1, empty=False), d.pick(*NUMBERS), low=-60, high=60, edges="special")
    if x.dtype.kind != "f":
        x = np.clip(x, -1000, 1000)
    # value inference has NaN for infinities, where the formula in the documentation has none
    inferred = not np.isinf(x).any()
    return Call({"x": x}, _some_axes(d, x.ndim), _log_sum_exp, Within(x.size + 16, _largest), inferred)


def _extreme(oracle: Oracle) -> Any:
    def draws(d: Draw) -> Call:
        x = d.array(d.shape(1, empty=False), d.pick(*NUMBERS))
        return Call({"x": x}, _some_axes(d, x.ndim), oracle, Within(1))

    return draws


cases("reduce_max")(_extreme(_reduced(np.max)))
cases("reduce_min")(_extreme(_reduced(np.min)))


@cases("reduce_prod")
def _(d: Draw) -> Call:
    dtype = d.pick(*NUMBERS)
    # numbers whose products neither overflow nor vanish in fp32, or any integers, whose products wrap
    x = (
        d.array(d.shape(1, max_size=3), dtype)
        if dtype == I32
        else d.array(d.shape(1, 3, max_size=3), dtype, low=0.5, high=2)
    )
    if dtype != I32 and x.size and d.flag():
        x.flat[d.number(0, x.size - 1)] = d.pick(np.nan, np.inf, -np.inf, 0.0, -1.5)
    # value inference multiplies fp16 as fp16
    return Call({"x": x}, _some_axes(d, x.ndim), _reduced(np.prod), Within(x.size))


def _argument(function: Any) -> Any:
    def draws(d: Draw) -> Call:
        x = d.array(d.shape(1, empty=False), d.pick(*NUMBERS))
        given = d.some(axis=d.axis(x.ndim), keep_dims=d.flag())
        if d.newer:
            given |= d.some(output_dtype=d.pick("int32", "uint16"))

        def oracle(a: Any) -> Any:
            return function(a.x, axis=a("axis", -1), keepdims=a("keep_dims", False))

        return Call({"x": x}, given, oracle)

    return draws


cases("reduce_argmax")(_argument(np.argmax))
cases("reduce_argmin")(_argument(np.argmin))


def _cumulated(a: Any) -> Any:
    axis = a("axis", 0)
    x = np.flip(a.x, axis) if a("reverse", False) else a.x
    sums = np.cumsum(x, axis)
    if a("exclusive", False):
        zeros = np.zeros_like(np.take(x, [0], axis)) if x.size else x
        sums = np.concatenate([zeros, np.delete(sums, -1, axis)], axis) if x.size else x
    return np.flip(sums, axis) if a("reverse", False) else sums


@cases("cumsum")
def _(d: Draw) -> Call:
    x = d.array(d.shape(1), d.pick(*NUMBERS), edges="special")
    given = d.some(axis=d.number(-1, x.ndim - 1), exclusive=d.flag(), reverse=d.flag())
    # value inference of an exclusive sum raises a TypeError
    inferred = not given.get("exclusive", False)
    return Call({"x": x}, given, _cumulated, Within(x.size + 1, magnitudes(_cumulated)), inferred)


def _order(x: Any, axis: int, ascending: bool) -> Any:
    """Indices that sort, NaN last in both directions, equal ones in their order: slow and by definition."""

    def ranked(row: Any) -> Any:
        key = [(bool(np.isnan(each)), each if ascending else -each, i) for i, each in enumerate(row.tolist())]
        return np.array([each[2] for each in sorted((k if not k[0] else (True, 0, k[2])) for k in key)], np.int64)

    return np.apply_along_axis(ranked, axis, x) if x.size else np.zeros(x.shape, np.int64)


@cases("argsort")
def _(d: Draw) -> Call:
    x = d.array(d.shape(1), d.pick(*NUMBERS))
    given = d.some(axis=d.axis(x.ndim), ascending=d.flag())
    return Call({"x": x}, given, lambda a: _order(a.x, a("axis", -1), a("ascending", False)), EXACT, _has_an_order(x))


def _has_an_order(x: Any) -> bool:
    """Value inference leaves the order of equal elements open, and negates integers to sort them downwards."""
    low = np.iinfo(x.dtype).min if x.dtype.kind != "f" else None
    return np.unique(x).size == x.size and not (low is not None and (x == low).any())


def _top(a: Any) -> Any:
    axis = a("axis", -1)
    k = a("k", 1)
    order = _order(a.x, axis, a("ascending", False))
    order = np.take(order, range(a.x.shape[axis] if k == -1 else int(k)), axis)
    values = np.take_along_axis(a.x, order, axis)
    return (values, order) if a("return_indices", True) else values


def _topk(dtypes: tuple[Any, ...]) -> Any:
    def draws(d: Draw) -> Call:
        x = d.array(d.shape(1, empty=False), d.pick(*dtypes))
        given = d.some(axis=d.axis(x.ndim), ascending=d.flag())
        given |= d.some(k=d.pick(np.int32, np.int16)(d.number(1, x.shape[given.get("axis", -1)])) if d.newer else 1)
        if d.opset >= target.iOS16:
            given |= d.some(sort=True, return_indices=d.flag())
        if d.newer and given.get("return_indices", True):
            given |= d.some(output_indices_dtype=d.pick("int32", "uint16"))
        return Call({"x": x}, given, _top, EXACT, _has_an_order(x))

    return draws


SMALL = tuple(np.dtype(name) for name in ("int8", "uint8", "int16", "uint16"))
cases("topk", opsets=UNTIL_16)(_topk((*FLOATS, I32)))
cases("topk", opsets=SINCE_17, label="iOS17")(_topk((*FLOATS, I32, *SMALL)))
assert ALL == UNTIL_16 + SINCE_17

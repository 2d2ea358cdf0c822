"""Convolutions and pooling, window by window."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

from milopt.mil import target
from milopt.testing.ops.comparing import EXACT, Within
from milopt.testing.ops.drawing import FLOATS, Draw
from milopt.testing.ops.framework import Call, Cases
from milopt.testing.ops.untyped import np

__all__ = ["cases"]

cases = Cases()

NOT_INFERRED = "it has none"


def _pads(pad_type: str, pad: list[int], size: int, taps: int, stride: int) -> tuple[int, int]:
    """Before and after one axis; ``same`` gives ``ceil(size / stride)`` windows of ``taps`` places, dilated ones."""
    if pad_type == "valid":
        return 0, 0
    if pad_type == "custom":
        return pad[0], pad[1]
    total = max(0, (-(-size // stride) - 1) * stride + taps - size)
    return (total // 2, total - total // 2) if pad_type == "same" else (total - total // 2, total // 2)


class Window:
    """The geometry drawn for a convolution or a pooling: per spatial axis its kernel, stride, dilation and padding."""

    def __init__(self, d: Draw, *, max_rank: int = 3, dilates: bool = True, lower: bool = True) -> None:
        self.rank = d.number(1, max_rank)
        most = 3 if self.rank == 3 else 5
        self.kernel = d.numbers(self.rank, 1, 3)
        self.strides = d.numbers(self.rank, 1, 3)
        self.dilations = d.numbers(self.rank, 1, 2) if dilates else [1] * self.rank
        self.taps = [(k - 1) * dilation + 1 for k, dilation in zip(self.kernel, self.dilations, strict=True)]
        self.size = [d.number(taps, taps + most - 1) for taps in self.taps]
        types = ("valid", "custom", "same", *(("same_lower",) if lower and d.opset >= target.iOS16 else ()))
        self.pad_type = d.pick(*types)
        self.pad = [[d.number(0, k - 1), d.number(0, k - 1)] for k in self.kernel]

    def given(self, d: Draw) -> dict[str, Any]:
        """The op's attributes; defaults are left out now and then."""
        given: dict[str, Any] = {"pad_type": self.pad_type}
        if self.pad_type == "custom":
            given["pad"] = np.array(self.pad, np.int32).reshape(-1)
        for name, values in (("strides", self.strides), ("dilations", self.dilations)):
            if set(values) != {1} or d.flag():
                given[name] = np.array(values, np.int32)
        return given

    def around(self) -> list[tuple[int, int]]:
        return [
            _pads(self.pad_type, pad, size, taps, stride)
            for pad, size, taps, stride in zip(self.pad, self.size, self.taps, self.strides, strict=True)
        ]

    def outputs(self) -> list[int]:
        return [
            (size + sum(pad) - taps) // stride + 1
            for size, pad, taps, stride in zip(self.size, self.around(), self.taps, self.strides, strict=True)
        ]


def _convolved(window: Window, groups: int, a: Any) -> Any:
    padded = np.pad(a.x, [(0, 0), (0, 0), *window.around()])
    n, _, *outputs = (a.x.shape[0], a.weight.shape[0], *window.outputs())
    y = np.zeros((n, a.weight.shape[0], *outputs))
    inner, outer = a.weight.shape[1], a.weight.shape[0] // groups
    for place in product(*map(range, outputs)):
        cut = tuple(
            slice(i * stride, i * stride + taps, dilation)
            for i, stride, taps, dilation in zip(place, window.strides, window.taps, window.dilations, strict=True)
        )
        for group in range(groups):
            columns = slice(None), slice(group * inner, (group + 1) * inner), *cut
            rows = slice(group * outer, (group + 1) * outer)
            terms = padded[columns][:, None] * a.weight[rows]
            there = slice(None), rows, *place
            y[there] = terms.reshape(n, outer, -1).sum(-1)
    return y + _bias(a)


def _bias(a: Any) -> Any:
    bias = a("bias", None)
    return 0.0 if bias is None else np.reshape(bias, (-1, *[1] * (a.x.ndim - 2)))


@cases("conv", not_inferred=NOT_INFERRED)
def _(d: Draw) -> Call:
    window = Window(d)
    groups = d.pick(1, 1, 2, 3)
    inner, outer = d.number(1, 2), d.number(1, 2)
    dtype = d.pick(*FLOATS)
    kind = d.other_float(dtype)
    x = d.array((d.number(1, 2), inner * groups, *window.size), dtype, edges="special")
    weight = d.array((outer * groups, inner, *window.kernel), kind, low=-2, high=2, edges="finite")
    given = window.given(d) | ({"groups": groups} if groups > 1 else {})
    given |= d.some(bias=d.array((outer * groups,), kind, low=-2, high=2))
    # dilated kernels must be constants before iOS17
    fed = {"x": x, "weight": weight} if set(window.dilations) == {1} and d.flag() else {"x": x}
    written = {} if "weight" in fed else {"weight": weight}
    within = Within(weight[0].size + 4, lambda a: _convolved(window, groups, a.magnitudes()))
    return Call(fed, written | given, lambda a: _convolved(window, groups, a), within)


def _transposed(window: Window, groups: int, sizes: list[int], before: list[int], a: Any) -> Any:
    """The gradient of a convolution: each input is spread over the window it would come from."""
    inner, outer = a.x.shape[1] // groups, a.weight.shape[1]
    y = np.zeros((a.x.shape[0], outer * groups, *sizes))
    for place in product(*map(range, a.x.shape[2:])):
        for tap in product(*map(range, window.kernel)):
            target_place = tuple(
                i * stride + t * dilation - cut
                for i, stride, t, dilation, cut in zip(
                    place, window.strides, tap, window.dilations, before, strict=True
                )
            )
            if not all(0 <= i < size for i, size in zip(target_place, sizes, strict=True)):
                continue
            for group in range(groups):
                rows = slice(group * inner, (group + 1) * inner)
                one, other = (slice(None), rows, *place), (rows, slice(None), *tap)
                there = slice(None), slice(group * outer, (group + 1) * outer), *target_place
                y[there] += (a.x[one][:, :, None] * a.weight[other]).sum(1)
    return y + _bias(a)


@cases("conv_transpose", not_inferred=NOT_INFERRED)
def _(d: Draw) -> Call:
    window = Window(d, lower=False)
    groups = d.pick(1, 1, 2)
    inner, outer = d.number(1, 2), d.number(1, 2)
    dtype = d.pick(*FLOATS)
    kind = d.other_float(dtype)
    size = d.numbers(window.rank, 1, 3)
    x = d.array((d.number(1, 2), inner * groups, *size), dtype, low=-4, high=4, edges="finite")
    weight = d.array((inner * groups, outer, *window.kernel), kind, low=-2, high=2, edges="finite")
    full = [(n - 1) * stride + taps for n, stride, taps in zip(size, window.strides, window.taps, strict=True)]
    if window.pad_type == "same":
        sizes = [n * stride for n, stride in zip(size, window.strides, strict=True)]
        before = [
            _pads("same", [], n, taps, stride)[0]
            for n, taps, stride in zip(sizes, window.taps, window.strides, strict=True)
        ]
    else:
        # something of the output must be left
        pads = [
            [0, 0] if n <= sum(pad) or window.pad_type == "valid" else pad
            for n, pad in zip(full, window.pad, strict=True)
        ]
        window.pad = pads
        before = [pad[0] for pad in pads]
        sizes = [n - sum(pad) for n, pad in zip(full, pads, strict=True)]
    given = window.given(d) | ({"groups": groups} if groups > 1 else {})
    given |= d.some(bias=d.array((outer * groups,), kind, low=-2, high=2))
    if window.pad_type != "same" and d.number(0, 3) == 3:
        # a convolution forgets up to stride - 1 elements at the end
        sizes = [n + d.number(0, stride - 1) for n, stride in zip(sizes, window.strides, strict=True)]
        given["output_shape"] = np.array([x.shape[0], outer * groups, *sizes], np.int32)
    within = Within(weight[:, 0].size + 4, lambda a: _transposed(window, groups, sizes, before, a.magnitudes()))
    return Call({"x": x}, {"weight": weight} | given, lambda a: _transposed(window, groups, sizes, before, a), within)


@cases("conv_quantized", not_inferred=NOT_INFERRED)
def _(d: Draw) -> Call:
    window = Window(d, max_rank=2)
    dtype = d.pick(*FLOATS)
    x = d.array((1, 2, *window.size), dtype, low=-4, high=4)
    outer = d.number(1, 3)
    weight = d.array((outer, 2, *window.kernel), np.uint8, low=0, high=255)
    shape = (outer,) if d.flag() else ()
    given = window.given(d) | {
        "quantization_type": "linear",
        "quant_scale": d.array(shape, dtype, low=0.01, high=0.1),
        "quant_bias": d.array(shape, dtype, low=-2, high=2),
    }

    def dense(a: Any, sign: int = 1) -> Any:
        scale, bias = (np.reshape(each, (-1, *[1] * (weight.ndim - 1))) for each in (a.quant_scale, a.quant_bias))
        return a.weight * scale + sign * bias

    class Dense:
        def __init__(self, a: Any, weight: Any) -> None:
            self.x, self.weight = a.x, weight

        def __call__(self, name: str, default: Any) -> Any:
            return default

    def oracle(a: Any) -> Any:
        return _convolved(window, 1, Dense(a, dense(a)))

    within = Within(weight[0].size + 6, lambda a: _convolved(window, 1, Dense(a.magnitudes(), dense(a.magnitudes()))))
    return Call({"x": x}, {"weight": weight} | given, oracle, within)


class Pool(Window):
    """``ceil_mode`` adds a window that reaches beyond the padding, but not one that begins in it."""

    def __init__(self, d: Draw, max_rank: int) -> None:
        super().__init__(d, max_rank=max_rank, dilates=False)
        self.ceil_mode = self.rank < 3 and self.pad_type in ("valid", "custom") and d.flag()
        if self.ceil_mode:
            self.pad = [[pad[0]] * 2 for pad in self.pad]
            # with a longer stride the documented size has a window without elements
            self.strides = [min(each) for each in zip(self.strides, self.kernel, strict=True)]

    def given(self, d: Draw) -> dict[str, Any]:
        given = super().given(d) | {"kernel_sizes": np.array(self.kernel, np.int32)}
        given.pop("dilations", None)
        return given | ({"ceil_mode": True} if self.ceil_mode else {})

    def outputs(self) -> list[int]:
        if not self.ceil_mode:
            return super().outputs()
        counts: list[int] = []
        for size, pad, taps, stride in zip(self.size, self.around(), self.taps, self.strides, strict=True):
            count = -(-(size + sum(pad) - taps) // stride) + 1
            if (count - 1) * stride >= size + pad[0] and pad != (0, 0):
                count -= 1
            counts.append(count)
        return counts

    def pooled(self, x: Any, function: Callable[[Any, int], Any]) -> Any:
        """``function(elements of the window, how many of its places are in the input or its padding)``."""
        y = np.zeros((*x.shape[:2], *self.outputs()))
        around = self.around()
        for place in product(*map(range, self.outputs())):
            starts = [i * stride - pad[0] for i, stride, pad in zip(place, self.strides, around, strict=True)]
            inside = tuple(
                slice(max(0, start), min(size, start + taps))
                for start, size, taps in zip(starts, self.size, self.taps, strict=True)
            )
            within = [
                min(size + pad[1], start + taps) - start
                for start, size, pad, taps in zip(starts, self.size, around, self.taps, strict=True)
            ]
            window = slice(None), slice(None), *inside
            there = slice(None), slice(None), *place
            y[there] = function(x[window].reshape(*x.shape[:2], -1), int(np.prod(within)))
        return y


def _pool(d: Draw, pool: Pool) -> dict[str, Any]:
    return {"x": d.array((d.number(1, 2), d.number(1, 2), *pool.size), d.pick(*FLOATS), edges="special")}


@cases("max_pool", not_inferred=NOT_INFERRED)
def _(d: Draw) -> Call:
    pool = Pool(d, 3)
    fed = _pool(d, pool)
    return Call(fed, pool.given(d), lambda a: pool.pooled(a.x, lambda window, count: window.max(-1)), EXACT)


@cases("avg_pool", not_inferred=NOT_INFERRED)
def _(d: Draw) -> Call:
    pool = Pool(d, 3)
    fed = _pool(d, pool)
    given = pool.given(d) | d.some(exclude_padding_from_average=d.flag())

    def average(a: Any) -> Any:
        excluded = a("exclude_padding_from_average", False)
        return pool.pooled(a.x, lambda window, count: window.sum(-1) / (window.shape[-1] if excluded else count))

    return Call(fed, given, average, Within(32, lambda a: average(a.magnitudes())))


@cases("l2_pool", not_inferred=NOT_INFERRED)
def _(d: Draw) -> Call:
    pool = Pool(d, 2)
    fed = _pool(d, pool)

    def norm(a: Any) -> Any:
        return pool.pooled(a.x, lambda window, count: np.sqrt((window**2).sum(-1)))

    # squares below the smallest fp32 vanish: their root is 2**-75
    return Call(fed, pool.given(d), norm, Within(16, lambda a: 2.0**-50 + norm(a)))

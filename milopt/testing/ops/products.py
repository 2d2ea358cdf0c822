"""Matrix products and attention, term by term; quantization."""

from __future__ import annotations

from itertools import product
from typing import Any

from milopt.mil import target
from milopt.testing.ops.comparing import EXACT, Within, magnitudes
from milopt.testing.ops.drawing import F32, FLOATS, I32, NUMBERS, Draw
from milopt.testing.ops.framework import SINCE_17, Call, Cases
from milopt.testing.ops.untyped import np

__all__ = ["cases"]

cases = Cases()


def _operand(d: Draw, shape: tuple[int, ...], dtype: Any) -> Any:
    """Integers so small that their products can be compared with value inference, which doesn't wrap them."""
    if dtype.kind != "f":
        return d.array(shape, dtype, low=-1000, high=1000)
    return d.array(shape, dtype, low=-8, high=8, edges="special")


def _linear(a: Any) -> Any:
    bias = a("bias", None)
    y = (a.x[..., None, :] * a.weight).sum(-1)
    return y if bias is None else y + bias


@cases("linear")
def _(d: Draw) -> Call:
    dtype = d.pick(*NUMBERS)
    inner, outer = d.number(1, 5), d.number(1, 5)
    x = _operand(d, (*d.shape(0, 2), inner), dtype)
    kind = d.other_float(dtype) if dtype.kind == "f" else dtype
    given = {"weight": d.array((outer, inner), kind, low=-4, high=4)}
    if d.flag():
        given["bias"] = d.array((outer,), kind, low=-4, high=4)
    within = Within(inner + 2, magnitudes(_linear)) if dtype.kind == "f" else EXACT
    return Call({"x": x}, given, _linear, within, inferred=kind == dtype)


def _matmul(a: Any) -> Any:
    """Numpy's rules for vectors and broadcasting, as the documentation says; transposes of matrices before that."""
    x = np.swapaxes(a.x, -1, -2) if a("transpose_x", False) and a.x.ndim > 1 else a.x
    y = np.swapaxes(a.y, -1, -2) if a("transpose_y", False) and a.y.ndim > 1 else a.y
    left = x[None, :] if x.ndim == 1 else x
    right = y[:, None] if y.ndim == 1 else y
    z = (left[..., :, :, None] * right[..., None, :, :]).sum(-2)
    z = z[..., 0, :] if x.ndim == 1 else z
    return z[..., 0] if y.ndim == 1 else z


@cases("matmul")
def _(d: Draw) -> Call:
    dtype = d.pick(*NUMBERS)
    rows, inner, columns = d.numbers(3, 1, 4)
    batch = d.shape(0, 2)
    given = d.some(transpose_x=d.flag(), transpose_y=d.flag())
    first = (inner, rows) if given.get("transpose_x", False) else (rows, inner)
    second = (columns, inner) if given.get("transpose_y", False) else (inner, columns)
    shapes = [(*batch, *first), (*d.broadcastable(batch), *second)]
    if not any(given.values()) and d.flag():
        # a vector times a matrix: coremltools infers a wrong shape for more, and refuses vectors on the other side
        shapes = [(inner,), (inner, columns)]
    fed = {name: _operand(d, shape, dtype) for name, shape in zip("xy", shapes, strict=True)}
    within = Within(inner + 1, magnitudes(_matmul)) if dtype.kind == "f" else EXACT
    return Call(fed, given, _matmul, within, inferred=min(map(len, shapes)) > 1)


@cases("einsum")
def _(d: Draw) -> Call:
    dtype = d.pick(*FLOATS)
    b, c, h, u, w = d.numbers(5, 1, 3)
    batch = (b,) if d.flag() else ()
    equations = ("nchw,nwhu->nchu", "abcd,adce->abce") if batch else ("chw,whu->chu", "abc,cbd->abd")
    equation, shapes = d.pick(*equations), [(*batch, c, h, w), (*batch, w, h, u)]
    values = tuple(_operand(d, shape, dtype) for shape in shapes)

    def oracle(a: Any) -> Any:
        x, y = a["values"]  # x (..., c, h, w), y (..., w, h, u)
        terms = x[..., :, :, :, None] * np.swapaxes(y, -3, -2)[..., None, :, :, :]
        return terms.sum(-2)

    return Call({"values": values}, {"equation": equation}, oracle, Within(w + 1, magnitudes(oracle)))


def _attention(a: Any) -> Any:
    """``softmax(q kᵀ / √E + mask) v``, row by row."""
    query, key, value = a.query, a.key, a.value
    batch = np.broadcast_shapes(query.shape[:-2], key.shape[:-2], value.shape[:-2])
    query, key, value = (np.broadcast_to(each, (*batch, *each.shape[-2:])) for each in (query, key, value))
    scores = (query[..., :, None, :] * key[..., None, :, :]).sum(-1) / np.sqrt(query.shape[-1])
    mask = a("attn_mask", None)
    if mask is not None:
        scores = np.where(mask, scores, -np.inf) if mask.dtype.kind == "b" else scores + mask
    y = np.zeros((*batch, query.shape[-2], value.shape[-1]))
    for place in product(*map(range, y.shape[:-1])):
        weights = np.exp(scores[place] - scores[place].max())
        y[place] = weights @ value[place[:-1]] / weights.sum()
    return y


@cases("scaled_dot_product_attention", opsets=(target.iOS18,))
def _(d: Draw) -> Call:
    dtype = d.pick(*FLOATS)
    batch, (rows, keys, inner, outer) = d.shape(1, 2, empty=False), d.numbers(4, 1, 4)
    shapes = {"query": (*batch, rows, inner), "key": (*batch, keys, inner), "value": (*batch, keys, outer)}
    fed = {name: d.array(shape, dtype, low=-2, high=2, edges="finite") for name, shape in shapes.items()}
    if d.flag():
        kind = d.pick(dtype, np.dtype(bool))
        fed["attn_mask"] = d.array((rows, keys), kind, low=-4, high=4)

    def scale(a: Any) -> Any:
        """Each weight is off by as much as the largest score, relatively; each value counts at most once."""
        return 8 * inner * np.abs(a.value).max() * (1 + np.zeros((*batch, rows, outer)))

    return Call(fed, {}, _attention, Within(keys + 16, scale), inferred=dtype == F32)


RANGES = {"int8": (-128, 127), "uint8": (0, 255)}


def _along(values: Any, a: Any) -> Any:
    axis = a("axis", None)
    if axis is None or np.ndim(values) == 0:
        return values
    return np.reshape(values, [-1 if i == axis % a.input.ndim else 1 for i in range(a.input.ndim)])


def _parameters(d: Draw, shape: tuple[int, ...], kind: Any, scale: Any) -> dict[str, Any]:
    """A scale and perhaps a zero point, scalars or one for each place of an axis."""
    given: dict[str, Any] = {}
    sizes: tuple[int, ...] = ()
    if d.flag():
        given["axis"] = d.axis(len(shape))
        sizes = (shape[given["axis"]],)
    given["scale"] = d.array(sizes, scale, low=0.5, high=2) if d.flag() else np.full(sizes, 0.25, scale)
    low, high = RANGES[str(kind)]
    return given | d.some(zero_point=d.array(sizes, kind, low=low, high=high))


@cases("quantize", opsets=SINCE_17)
def _(d: Draw) -> Call:
    dtype, kind = d.pick(*FLOATS), d.pick("int8", "uint8")
    # quarters: quotients that end in a half are met, and rounded to even
    x = (d.array(d.shape(1, empty=False), I32, low=-600, high=600) / d.pick(1, 4, 8)).astype(dtype)
    x.flat[0] = d.pick(x.flat[0], np.inf, -np.inf, 1e4)
    given = _parameters(d, x.shape, kind, dtype)
    given["scale"] = np.exp2(np.round(np.log2(given["scale"]))).astype(dtype)

    def oracle(a: Any) -> Any:
        shifted = np.rint(a.input / _along(a.scale, a)) + _along(a("zero_point", np.int64(0)), a)
        return np.clip(shifted, *RANGES[kind]).astype(np.int64)

    # value inference turns infinity into an integer first, which numpy leaves open
    return Call({"input": x}, {"output_dtype": kind} | given, oracle, inferred=bool(np.isfinite(x).all()))


@cases("dequantize", opsets=SINCE_17, not_inferred="it is materialized only: see test_constexpr")
def _(d: Draw) -> Call:
    dtype, kind = d.pick(*FLOATS), d.pick("int8", "uint8")
    low, high = RANGES[kind]
    x = d.array(d.shape(1, empty=False), kind, low=low, high=high)
    given = _parameters(d, x.shape, kind, dtype)

    def oracle(a: Any) -> Any:
        return (a.input - _along(a("zero_point", np.int64(0)), a)) * _along(a.scale, a)

    return Call({"input": x}, given, oracle, Within(1))

"""What each op demands of layouts: which axes of its values are one, and how it is written in another order of axes.

An entry of :data:`ENTRIES` reads an op into a :class:`Spec`, and builds it anew in a template. Ops without an entry,
and those that an entry does not understand, work in the layout they have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from milopt.axes import axes_of
from milopt.mil import Operation, Var, constant, dtype_name, flat, is_compressed, is_constant, is_symbolic, shape_of

__all__ = ["ENTRIES", "Entry", "Indices", "Keys", "Place", "Spec"]

Keys = tuple["int | None", ...]
"""The axes of a value by what they are in the op: a number for each, ``None`` for one that has length 1 here."""


@dataclass(frozen=True)
class Spec:
    """The axes of an op's operands and results, named by keys. A key at two values is one axis.

    ``whole`` keys are axes that the op works along: they stay alone, and may have another length at each value.
    ``drops`` are those that results lack. ``constants`` are operands written in the program, which take any layout.
    ``vectors`` are operands that say where, a number for each axis. Operands that broadcast may lack unit axes.
    """

    operands: tuple[tuple[Var, Keys], ...]
    results: tuple[tuple[Var, Keys], ...]
    whole: frozenset[int] = frozenset()
    drops: frozenset[int] = frozenset()
    constants: tuple[tuple[Var, Keys], ...] = ()
    kind: str = "along"
    channel: int | None = None
    product: tuple[int, int, int] = (0, 0, 0)
    vectors: tuple[Var, ...] = ()
    broadcasts: bool = False


@dataclass(frozen=True)
class Place:
    """Where a template puts the axes of a spec."""

    rank: int
    at: Mapping[int, int] = field(default_factory=dict[int, int])
    dropped: tuple[int, ...] = ()
    shape: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Indices:
    """An int32 vector: a number for each axis, or a value of shape (1,) that is only known when the program runs."""

    entries: tuple[int | Var, ...]


Build = Callable[[Operation, Spec, Place], dict[str, Any]]


@dataclass(frozen=True)
class Entry:
    """``read`` gives an op's spec, or ``None``; ``attributes`` its inputs other than tensors, in a template."""

    read: Callable[[Operation], Spec | None]
    attributes: Build = lambda op, spec, place: {}


def _aligned(var: Var, shape: Sequence[Any]) -> Keys | None:
    """The axes of an operand that broadcasts to ``shape``; ``None`` where a symbol may be 1."""
    own = shape_of(var)
    offset = len(shape) - len(own)
    keys: list[int | None] = []
    for at, dim in enumerate(own):
        if dim == 1:
            keys.append(None)
        elif dim == shape[offset + at]:
            keys.append(offset + at)
        else:
            return None
    return tuple(keys)


def _own(var: Var) -> Keys:
    return tuple(None if dim == 1 else at for at, dim in enumerate(shape_of(var)))


def _elementwise(names: Sequence[str], op: Operation) -> Spec | None:
    result = op.outputs[0]
    shape = shape_of(result)
    operands: list[tuple[Var, Keys]] = []
    constants: list[tuple[Var, Keys]] = []
    for var in (op.inputs[name] for name in names):
        keys = _aligned(var, shape)
        if keys is None:
            return None
        (constants if is_constant(var) else operands).append((var, keys))
    if not operands:
        return None
    return Spec(tuple(operands), ((result, _own(result)),), constants=tuple(constants), broadcasts=True)


def _positive(op: Operation, name: str = "axis") -> int | None:
    found = axes_of(op, name)
    return None if found is None else found[0]


def _reduction(op: Operation) -> Spec | None:
    x, y = op.inputs["x"], op.outputs[0]
    axes = axes_of(op, "axes") if op.inputs.get("axes") is not None else tuple(range(x.rank))
    keep = constant(op.inputs.get("keep_dims"))
    if axes is None or keep is None:
        return None
    keys = _own(x)
    drops = frozenset(key for key in keys if key in axes)
    if not drops:
        return None
    kept = tuple(None if at in axes else key for at, key in enumerate(keys) if keep or at not in axes)
    return Spec(((x, keys),), ((y, kept),), drops=drops)


def _argument(op: Operation) -> Spec | None:
    x, y = op.inputs["x"], op.outputs[0]
    axis, keep = _positive(op), constant(op.inputs.get("keep_dims"))
    keys = _own(x)
    if axis is None or keep is None or keys[axis] is None:
        return None
    kept = tuple(None if at == axis else key for at, key in enumerate(keys) if keep or at != axis)
    return Spec(((x, keys),), ((y, kept),), whole=frozenset({axis}), drops=frozenset({axis}))


def _along(op: Operation) -> Spec | None:
    x = op.inputs["x"]
    axis = _positive(op)
    keys = _own(x)
    if axis is None or keys[axis] is None:
        return None
    return Spec(((x, keys),), tuple((var, keys) for var in op.outputs), whole=frozenset({axis}))


def _axis(op: Operation, spec: Spec, place: Place) -> dict[str, Any]:
    (axis,) = spec.whole
    return {"axis": np.int32(place.at[axis])}


def _reverse(op: Operation) -> Spec | None:
    x, y = op.inputs["x"], op.outputs[0]
    axes = axes_of(op, "axes") if op.inputs.get("axes") is not None else tuple(range(x.rank))
    keys = _own(x)
    whole = frozenset(at for at in axes or () if keys[at] is not None)
    return Spec(((x, keys),), ((y, keys),), whole=whole) if whole else None


def _norm(op: Operation) -> Spec | None:
    x, y = op.inputs["x"], op.outputs[0]
    axes = axes_of(op, "axes")
    keys = _own(x)
    weights = [op.inputs.get(name) for name in ("gamma", "beta")]
    if axes is None or len(axes) != 1 or keys[axes[0]] is None:
        return None
    if any(each is not None and not is_constant(each) for each in weights):
        return None
    return Spec(((x, keys),), ((y, keys),), whole=frozenset(axes))


def _axes(op: Operation, spec: Spec, place: Place) -> dict[str, Any]:
    return {"axes": np.array(sorted(place.at[axis] for axis in spec.whole), np.int32)}


def _norm_attributes(op: Operation, spec: Spec, place: Place) -> dict[str, Any]:
    return {**_axes(op, spec, place), **_typed(op, "epsilon", "gamma" if op.inputs.get("gamma") is not None else "x")}


def _typed(op: Operation, name: str, like: str = "x") -> dict[str, Any]:
    """A number in the type of ``like``: MIL's defaults are fp32 whatever that is, and refused where written out."""
    value = constant(op.inputs.get(name))
    kind = {"fp16": np.float16, "fp32": np.float32}.get(dtype_name(op.inputs[like]))
    return {} if value is None or kind is None else {name: kind(value)}


def _concat(op: Operation) -> Spec | None:
    values, result = flat(op.inputs["values"]), op.outputs[0]
    axis = _positive(op)
    if axis is None or constant(op.inputs.get("interleave")) or any(map(is_constant, values)):
        return None
    keys = _own(result)
    if keys[axis] is None:
        return None
    operands: list[tuple[Var, Keys]] = []
    for var in values:
        own = _own(var)
        rest = tuple(key for at, key in enumerate(own) if at != axis)
        if rest != tuple(key for at, key in enumerate(keys) if at != axis):
            return None
        operands.append((var, own))
    return Spec(tuple(operands), ((result, keys),), whole=frozenset({axis}))


def _split(op: Operation) -> Spec | None:
    x = op.inputs["x"]
    axis = _positive(op)
    if axis is None or _own(x)[axis] is None:
        return None
    return Spec(((x, _own(x)),), tuple((var, _own(var)) for var in op.outputs), whole=frozenset({axis}))


def _vector(op: Operation, name: str, default: Any, rank: int) -> list[Any] | None:
    given = op.inputs.get(name)
    if given is None:
        return [default] * rank
    value = constant(given)
    return None if value is None else list(np.asarray(value).ravel().tolist())


_SLICE = {"begin": 0, "end": 0, "stride": 1, "begin_mask": False, "end_mask": False, "squeeze_mask": False}


def _slice_parts(op: Operation) -> dict[str, list[Any]] | None:
    rank = op.inputs["x"].rank
    parts = {name: _vector(op, name, default, rank) for name, default in _SLICE.items()}
    if any(each is None for each in parts.values()):
        return None
    return {name: each for name, each in parts.items() if each is not None}


def _slice(op: Operation) -> Spec | None:
    x, y = op.inputs["x"], op.outputs[0]
    parts = _slice_parts(op)
    if parts is None:
        return None
    keys = _own(x)
    whole: set[int] = set()
    kept: list[int | None] = []
    sizes = iter(shape_of(y))
    for at, dim in enumerate(shape_of(x)):
        if parts["squeeze_mask"][at]:
            if keys[at] is not None:
                whole.add(at)
            continue
        size = next(sizes)
        plain = _is_plain(parts, at, dim)
        if not plain and keys[at] is None:
            return None
        if size != 1 and keys[at] is None:
            return None  # MIL lost that the axis has one entry
        if not plain:
            whole.add(at)
        kept.append(None if size == 1 else at)
    return Spec(((x, keys),), ((y, tuple(kept)),), whole=frozenset(whole))


def _is_plain(parts: dict[str, list[Any]], at: int, dim: Any) -> bool:
    """Whether a slice takes the axis as it is."""
    begins = parts["begin_mask"][at] or parts["begin"][at] == 0
    ends = parts["end_mask"][at] or (not is_symbolic(dim) and parts["end"][at] >= dim)
    return bool(begins and ends and parts["stride"][at] == 1)


def _slice_attributes(op: Operation, spec: Spec, place: Place) -> dict[str, Any]:
    parts = _slice_parts(op)
    assert parts is not None
    begin, end = np.zeros(place.rank, np.int32), np.zeros(place.rank, np.int32)
    stride, masks = np.ones(place.rank, np.int32), np.zeros((2, place.rank), bool)
    for at, dim in enumerate(place.shape):
        end[at], masks[1, at] = (0, True) if is_symbolic(dim) else (dim, False)
    for key in spec.whole:
        at = place.at[key]
        masks[:, at] = parts["begin_mask"][key], parts["end_mask"][key]
        begin[at], end[at], stride[at] = parts["begin"][key], parts["end"][key], parts["stride"][key]
        if parts["squeeze_mask"][key]:
            masks[:, at] = False
            end[at] = begin[at] + 1 if begin[at] != -1 else 0
            masks[1, at] = begin[at] == -1
    names = {"stride": stride if np.any(stride != 1) else None, "squeeze_mask": None}
    names |= {name: mask if mask.any() else None for name, mask in zip(("begin_mask", "end_mask"), masks, strict=True)}
    return {"begin": begin, "end": end, **names}


def _resized(x: Var, y: Var, cut: set[int]) -> Spec | None:
    """One result with axes of other sizes; ``None`` where such an axis had one entry, or MIL lost that it has."""
    keys, kept = _own(x), _own(y)
    if any(keys[at] is None for at in (*cut, *(key for key in kept if key is not None))):
        return None
    return Spec(((x, keys),), ((y, kept),), whole=frozenset(cut))


def _slice_by_size(op: Operation) -> Spec | None:
    x, y = op.inputs["x"], op.outputs[0]
    begin, size = constant(op.inputs["begin"]), constant(op.inputs["size"])
    if begin is None or size is None:
        return None
    pairs = list(zip(begin.tolist(), size.tolist(), shape_of(x), strict=True))
    cut = {at for at, (start, length, dim) in enumerate(pairs) if start != 0 or length not in (-1, dim)}
    return _resized(x, y, cut)


def _size_attributes(op: Operation, spec: Spec, place: Place) -> dict[str, Any]:
    begin, size = np.zeros(place.rank, np.int32), np.full(place.rank, -1, np.int32)
    for key in spec.whole:
        begin[place.at[key]] = constant(op.inputs["begin"])[key]
        size[place.at[key]] = constant(op.inputs["size"])[key]
    return {"begin": begin, "size": size}


def _entries(vector: Var | None) -> tuple[int | Var, ...] | None:
    """The numbers of an index vector, be it a constant or joined of constants and single values."""
    known = constant(vector)
    if known is not None:
        return tuple(int(each) for each in np.asarray(known).ravel())
    maker = None if vector is None else vector.op
    if maker is None or maker.op_type != "concat" or constant(maker.inputs.get("interleave")):
        return None
    found: list[int | Var] = []
    for value in flat(maker.inputs["values"]):
        numbers = constant(value)
        if numbers is not None:
            found += [int(each) for each in numbers]
        elif shape_of(value) == (1,) and dtype_name(value) == "int32":
            found.append(value)
        else:
            return None
    return tuple(found)


def _update(op: Operation) -> Spec | None:
    """``slice_update`` in the slots of whole axes: nothing but begin and end is said of where."""
    x, update, result = op.inputs["x"], op.inputs["update"], op.outputs[0]
    begin, end = (op.inputs[name] for name in ("begin", "end"))
    first, last = _entries(begin), _entries(end)
    # none where it is not given
    masks = [constant(op.inputs.get(name)) for name in ("begin_mask", "end_mask", "squeeze_mask")]
    stride = constant(op.inputs.get("stride"))
    if first is None or last is None or any(map(np.any, masks)):
        return None
    if (stride is not None and np.any(stride != 1)) or any(is_symbolic(dim) for dim in shape_of(x)):
        return None
    keys, own = _own(x), _own(update)
    if update.rank != x.rank or not len(first) == len(last) == x.rank:
        return None
    whole: set[int] = set()
    for at, (low, high, dim) in enumerate(zip(first, last, shape_of(x), strict=True)):
        if isinstance(low, int) and isinstance(high, int) and (low, high) == (0, dim):
            continue
        if keys[at] is None:
            return None
        whole.add(at)
    vectors = tuple(var for var in (begin, end) if not is_constant(var))
    return Spec(((x, keys), (update, own)), ((result, keys),), whole=frozenset(whole), vectors=vectors)


def _update_attributes(op: Operation, spec: Spec, place: Place) -> dict[str, Any]:
    first, last = _entries(op.inputs["begin"]), _entries(op.inputs["end"])
    assert first is not None
    assert last is not None
    begin: list[int | Var] = [0] * place.rank
    end: list[int | Var] = [int(dim) for dim in place.shape]
    for key in spec.whole:
        begin[place.at[key]], end[place.at[key]] = first[key], last[key]
    unsaid = dict.fromkeys(("stride", "begin_mask", "end_mask", "squeeze_mask"))
    return {"begin": Indices(tuple(begin)), "end": Indices(tuple(end)), **unsaid}


def _pad(op: Operation) -> Spec | None:
    x, y = op.inputs["x"], op.outputs[0]
    pads = constant(op.inputs["pad"])
    if pads is None or constant(op.inputs["mode"]) != "constant":
        return None
    count = len(pads) // 2
    cut = {x.rank - count + at for at in range(count) if pads[2 * at] or pads[2 * at + 1]}
    return _resized(x, y, cut)


def _pad_attributes(op: Operation, spec: Spec, place: Place) -> dict[str, Any]:
    pads = constant(op.inputs["pad"])
    first = op.inputs["x"].rank - len(pads) // 2
    own = np.zeros((place.rank, 2), np.int32)
    for key in spec.whole:
        own[place.at[key]] = pads[2 * (key - first) : 2 * (key - first) + 2]
    return {"pad": own.ravel(), **_typed(op, "constant_val")}


def _tile(op: Operation) -> Spec | None:
    x, y = op.inputs["x"], op.outputs[0]
    reps = constant(op.inputs["reps"])
    if reps is None:
        return None
    cut = {at for at, count in enumerate(reps.tolist()) if count != 1}
    return _resized(x, y, cut)


def _tile_attributes(op: Operation, spec: Spec, place: Place) -> dict[str, Any]:
    reps = np.ones(place.rank, np.int32)
    for key in spec.whole:
        reps[place.at[key]] = constant(op.inputs["reps"])[key]
    return {"reps": reps}


def _conv(op: Operation) -> Spec | None:
    x, y, weight = op.inputs["x"], op.outputs[0], op.inputs["weight"]
    if not (is_constant(weight) or is_compressed(weight)):
        return None
    kernel = shape_of(weight)[2:]
    plain = all(dim == 1 for dim in kernel) and constant(op.inputs.get("groups")) in (None, 1)
    strides, pads = constant(op.inputs.get("strides")), constant(op.inputs.get("pad"))
    padded = constant(op.inputs.get("pad_type")) == "custom" and pads is not None and np.any(pads)
    if not plain or (strides is not None and np.any(strides != 1)) or padded:
        return None
    keys, after = _own(x), _own(y)
    operand, result = (keys[0], 1, *keys[2:]), (after[0], 1, *after[2:])
    return Spec(((x, operand),), ((y, result),), whole=frozenset({1}), kind="conv", channel=1)


def _linear(op: Operation) -> Spec | None:
    x, y, weight = op.inputs["x"], op.outputs[0], op.inputs["weight"]
    if not (is_constant(weight) or is_compressed(weight)) or x.rank < 2:
        return None
    last = x.rank - 1
    keys = (*_own(x)[:-1], last)
    return Spec(((x, keys),), ((y, keys),), whole=frozenset({last}), kind="linear", channel=last)


def _matmul(op: Operation) -> Spec | None:
    x, y, result = op.inputs["x"], op.inputs["y"], op.outputs[0]
    if is_constant(x) or is_constant(y) or x is y or x.rank < 2 or y.rank < 2 or result.rank < 2:
        return None
    turned = [constant(op.inputs.get(name)) for name in ("transpose_x", "transpose_y")]
    shape = shape_of(result)
    rank = len(shape)
    rows, columns, inner = rank - 2, rank - 1, rank
    keys: list[Keys] = []
    for var, own, turn, first in ((x, rows, turned[0], True), (y, columns, turned[1], False)):
        batch: list[int | None] = []
        dims = shape_of(var)
        offset = rank - len(dims)
        for at, dim in enumerate(dims[:-2]):
            if dim == 1:
                batch.append(None)
            elif dim == shape[offset + at]:
                batch.append(offset + at)
            else:
                return None
        pair = [own, inner] if first else [inner, own]
        if turn:
            pair.reverse()
        last = [None if dim == 1 else key for key, dim in zip(pair, dims[-2:], strict=True)]
        keys.append((*batch, *last))
    if inner not in keys[0] or inner not in keys[1]:
        return None
    return Spec(((x, keys[0]), (y, keys[1])), ((result, _own(result)),), kind="product", product=(rows, columns, inner))


_UNARY = (
    "abs acos asin atan atanh ceil clip cos cosh erf exp exp2 floor inverse log logical_not round rsqrt sign sin sinh "
    "sqrt square tan tanh threshold cast identity clamped_relu elu gelu leaky_relu linear_activation relu relu6 "
    "scaled_tanh sigmoid sigmoid_hard silu softplus softsign thresholded_relu"
)
_BINARY = (
    "add sub mul real_div floor_div mod pow maximum minimum equal not_equal less less_equal greater greater_equal "
    "logical_and logical_or logical_xor"
)
_REDUCTIONS = "sum mean max min prod l1_norm l2_norm log_sum log_sum_exp sum_square"


def _drop_axes(op: Operation, spec: Spec, place: Place) -> dict[str, Any]:
    return {"axes": np.array(place.dropped, np.int32), "keep_dims": True}


ENTRIES: dict[str, Entry] = {
    **dict.fromkeys(_UNARY.split(), Entry(partial(_elementwise, ("x",)))),
    **dict.fromkeys(_BINARY.split(), Entry(partial(_elementwise, ("x", "y")))),
    "select": Entry(partial(_elementwise, ("cond", "a", "b"))),
    **{f"reduce_{name}": Entry(_reduction, _drop_axes) for name in _REDUCTIONS.split()},
    **dict.fromkeys(
        ("reduce_argmax", "reduce_argmin"),
        Entry(_argument, lambda op, spec, place: {**_axis(op, spec, place), "keep_dims": True}),
    ),
    **dict.fromkeys(("softmax", "cumsum", "argsort"), Entry(_along, _axis)),
    "reverse": Entry(_reverse, _axes),
    "layer_norm": Entry(_norm, _norm_attributes),
    "concat": Entry(_concat, _axis),
    "split": Entry(_split, _axis),
    "slice_by_index": Entry(_slice, _slice_attributes),
    "slice_update": Entry(_update, _update_attributes),
    "slice_by_size": Entry(_slice_by_size, _size_attributes),
    "pad": Entry(_pad, _pad_attributes),
    "tile": Entry(_tile, _tile_attributes),
    "conv": Entry(_conv),
    "linear": Entry(_linear),
    "matmul": Entry(_matmul, lambda op, spec, place: {}),
}

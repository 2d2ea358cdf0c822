"""Decoders with caches of many kinds, for the passes that turn them into states and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from milopt.mil import Function, Program, get_new_symbol, mb, target, types
from milopt.package import Model, load
from milopt.signature import WINDOW_KEY

CONTEXT, HEADS, GROUPS, SIZE = 12, 4, 2, 4
WIDTH = HEADS * SIZE

Form = Literal["all", "kept", "new"]


@dataclass(frozen=True)
class Layer:
    """One attention layer: ``sliding`` uses the second mask, ``kept`` tokens make a past that forgets older ones.

    ``transposed`` stores keys as (B, H, D, S), ``together`` keys and values as one tensor (2, B, H, S, D), ``flat``
    without a batch axis, (H, S, D); without ``cached`` the layer has no attention at all.
    """

    sliding: bool = False
    kept: int = 0
    transposed: bool = False
    together: bool = False
    returned: Form = "all"
    cached: bool = True
    groups: int = GROUPS


def model(
    queries: Sequence[int] = (1, 4),
    layers: Sequence[Layer] = (Layer(), Layer()),
    *,
    window: int = 0,
    context: int = CONTEXT,
    fused: bool = False,
    combined: str = "",
) -> Model:
    """A model of one function for each query length; ``window`` goes to its metadata."""
    program = Program()
    for query in queries:
        name = "main" if len(queries) == 1 else f"q{query}"
        program.add_function(name, function(query, layers, context=context, fused=fused, combined=combined))
    program.default_function_name = next(iter(program.functions))
    program.export_as_multifunction = len(queries) > 1
    made = load(program)
    if window:
        made.metadata[WINDOW_KEY] = str(window)
    return made


def flexible(layers: Sequence[Layer] = (Layer(), Layer()), *, context: int = CONTEXT, combined: str = "") -> Model:
    """One function of any number of tokens behind any past, as the front door converts it."""
    program = Program()
    program.add_function("main", function(None, layers, context=context, combined=combined))
    made = load(program)
    made.metadata["milopt.context"] = str(context)
    return made


def function(
    query: int | None,
    layers: Sequence[Layer],
    *,
    context: int = CONTEXT,
    fused: bool = False,
    combined: str = "",
    seed: int = 0,
) -> Function:
    """``combined`` names the way in which one input holds all pasts, and one output all presents: see COMBINED."""
    rng = np.random.default_rng(seed)
    length: Any = get_new_symbol() if query is None else query
    inputs = {
        "x": mb.placeholder((1, length, WIDTH), types.fp16),
        "position_ids": mb.placeholder((1, length), types.int32),
    }
    open_past: Any = get_new_symbol() if query is None else 0
    columns: Any = get_new_symbol() if query is None else context
    masks = {_mask_of(layer): 0 for layer in layers if layer.cached}
    for layer in layers:
        if layer.cached:
            masks[_mask_of(layer)] = layer.kept + length if layer.kept else columns
    for name, size in masks.items():
        inputs[name] = mb.placeholder((1, 1, length, size), types.fp16)
    for at, layer in enumerate(layers):
        past: Any = layer.kept or (open_past if query is None else context - query)
        for kind in _kinds(layer) if not combined else ():
            inputs[f"past_{kind}_{at}"] = mb.placeholder(_shape(layer, kind, past), types.fp16)
    if combined:
        past = layers[0].kept or (open_past if query is None else context - query)
        dtype = types.fp32 if combined == "in fp32" else types.fp16
        inputs["past_all"] = mb.placeholder(_whole(combined, len(layers), past), dtype)

    def linear(x: Any, width: int) -> Any:
        return mb.linear(x=x, weight=(rng.standard_normal((width, WIDTH)) / 4).astype(np.float16))

    def heads(x: Any, count: int) -> Any:
        shape = [1, -1 if query is None else query, count, SIZE]
        return mb.transpose(x=mb.reshape(x=x, shape=shape), perm=[0, 2, 1, 3])

    with Function(inputs, opset_version=target.iOS18) as made:
        args: Any = dict(made.inputs)
        if combined:
            args |= _apart(combined, args["past_all"], len(layers))
        angles = mb.mul(
            x=mb.expand_dims(x=mb.cast(x=args["position_ids"], dtype="fp16"), axes=[1, 3]),
            y=np.array([0.5, 0.125], np.float16),
        )
        angles = mb.concat(values=[angles, angles], axis=-1)
        cos, sin = mb.cos(x=angles), mb.sin(x=angles)

        def rotated(x: Any) -> Any:
            first, second = mb.split(x=x, num_splits=2, axis=-1)
            turned = mb.concat(values=[mb.mul(x=second, y=np.float16(-1)), first], axis=-1)
            return mb.add(x=mb.mul(x=x, y=cos), y=mb.mul(x=turned, y=sin))

        x, presents = args["x"], list[Any]()
        for at, layer in enumerate(layers):
            if not layer.cached:
                x = mb.add(x=x, y=linear(mb.relu(x=x), WIDTH))
                continue
            queries = rotated(heads(linear(x, WIDTH), HEADS))
            key, value = (heads(linear(x, layer.groups * SIZE), layer.groups) for _ in range(2))
            key = rotated(key)
            total = layer.kept + length if layer.kept else (None if query is None else context)
            key, value = _cached(layer, at, args, key, value, presents, length)
            if layer.groups != HEADS:
                key, value = (_repeated(each, layer.groups, total) for each in (key, value))
            mask = args[_mask_of(layer)]
            if fused:
                mixed = mb.scaled_dot_product_attention(query=queries, key=key, value=value, attn_mask=mask)
            else:
                scores = mb.mul(x=mb.matmul(x=queries, y=key, transpose_y=True), y=np.float16(0.5))
                mixed = mb.matmul(x=mb.softmax(x=mb.add(x=scores, y=mask), axis=-1), y=value)
            merged = mb.transpose(x=mixed, perm=[0, 2, 1, 3])
            merged = mb.reshape(x=merged, shape=[1, -1 if query is None else query, WIDTH])
            x = mb.add(x=x, y=linear(merged, WIDTH), name=f"layer_{at}")
        if combined:
            presents = [_together(combined, presents)]
        made.set_outputs([mb.identity(x=x, name="hidden"), *presents])
    return made


# how one tensor holds keys and values of all layers, which are (1, H, S, D) each
COMBINED = ("rows", "layers first", "kinds first", "heads together", "batch first", "split", "in fp32")


def _whole(form: str, layers: int, slots: Any) -> tuple[Any, ...]:
    rest = (slots, SIZE)
    if form == "layers first":
        return (layers, 2, 1, GROUPS, *rest)
    if form == "kinds first":
        return (2, layers, 1, GROUPS, *rest)
    if form == "heads together":
        return (layers, 1, 2 * GROUPS, *rest)
    return (1, 2 * layers, GROUPS, *rest) if form == "batch first" else (2 * layers, GROUPS, *rest)


def _apart(form: str, past: Any, layers: int) -> dict[str, Any]:
    """Every past that ``past`` holds, cut out of it in a way of its own for each form."""
    kinds = ("key", "value")
    if form in ("split", "in fp32"):
        held = mb.cast(x=past, dtype="fp16") if form == "in fp32" else past
        parts = mb.split(x=held, num_splits=2 * layers, axis=0)
        return {f"past_{kind}_{at}": parts[2 * at + of] for at in range(layers) for of, kind in enumerate(kinds)}
    made: dict[str, Any] = {}
    for at in range(layers):
        for of, kind in enumerate(kinds):
            if form == "layers first":
                part = mb.gather(x=mb.gather(x=past, indices=np.int32(at), axis=0), indices=np.int32(of), axis=0)
            elif form == "heads together":
                both = mb.squeeze(
                    x=mb.slice_by_size(x=past, begin=[at, 0, 0, 0, 0], size=[1, -1, -1, -1, -1]), axes=[0]
                )
                part = mb.split(x=both, num_splits=2, axis=1)[of]
            else:
                part = _sliced(form, past, at, of)
            made[f"past_{kind}_{at}"] = part
    return made


def _sliced(form: str, past: Any, at: int, of: int) -> Any:
    row = 2 * at + of
    begin = {"kinds first": [of, at], "batch first": [0, row]}.get(form, [row])
    rest = past.rank - len(begin)
    gone = {"kinds first": [True, True], "batch first": [False, True]}.get(form, [False])
    cut = mb.slice_by_index(
        x=past,
        begin=[*begin, *[0] * rest],
        end=[*(each + 1 for each in begin), *[0] * rest],
        end_mask=[*[False] * len(begin), *[True] * rest],
        squeeze_mask=[*gone, *[False] * rest],
    )
    return mb.expand_dims(x=mb.squeeze(x=cut, axes=[0]), axes=[0]) if form == "batch first" else cut


def _together(form: str, presents: list[Any]) -> Any:
    name = {"name": "present_all"}
    keys, values = presents[0::2], presents[1::2]
    if form == "layers first":
        both = [mb.stack(values=pair, axis=0) for pair in zip(keys, values, strict=True)]
        return mb.stack(values=both, axis=0, **name)
    if form == "kinds first":
        return mb.stack(values=[mb.stack(values=keys, axis=0), mb.stack(values=values, axis=0)], axis=0, **name)
    if form == "heads together":
        both = [mb.concat(values=pair, axis=1) for pair in zip(keys, values, strict=True)]
        return mb.stack(values=both, axis=0, **name)
    if form == "batch first":
        return mb.stack(values=presents, axis=1, **name)
    joined = mb.concat(values=presents, axis=0, **({} if form == "in fp32" else name))
    return mb.cast(x=joined, dtype="fp32", **name) if form == "in fp32" else joined


def _mask_of(layer: Layer) -> str:
    return f"last_{layer.kept}_mask" if layer.kept else "sliding_mask" if layer.sliding else "causal_mask"


def _kinds(layer: Layer) -> tuple[str, ...]:
    return () if not layer.cached else ("both",) if layer.together else ("key", "value")


def _shape(layer: Layer, kind: str, slots: Any) -> tuple[Any, ...]:
    if kind == "both":
        return (2, 1, layer.groups, slots, SIZE)
    return (1, layer.groups, SIZE, slots) if layer.transposed and kind == "key" else (1, layer.groups, slots, SIZE)


def _cached(
    layer: Layer, at: int, args: Any, key: Any, value: Any, presents: list[Any], length: Any
) -> tuple[Any, Any]:
    if layer.together:
        both = _joined(layer, at, "both", args, mb.stack(values=[key, value], axis=0), 3, presents, length)
        halves = mb.split(x=both, num_splits=2, axis=0)
        return mb.squeeze(x=halves[0], axes=[0]), mb.squeeze(x=halves[1], axes=[0])
    if layer.transposed:
        key = mb.transpose(x=key, perm=[0, 1, 3, 2])
        key = _joined(layer, at, "key", args, key, 3, presents, length)
        key = mb.transpose(x=key, perm=[0, 1, 3, 2])
    else:
        key = _joined(layer, at, "key", args, key, 2, presents, length)
    return key, _joined(layer, at, "value", args, value, 2, presents, length)


def _joined(layer: Layer, at: int, kind: str, args: Any, new: Any, axis: int, presents: list[Any], length: Any) -> Any:
    name, past = f"present_{kind}_{at}", args[f"past_{kind}_{at}"]
    if layer.returned == "all":
        whole = mb.concat(values=[past, new], axis=axis, name=name)
        presents.append(whole)
        return whole
    if layer.returned == "new":
        presents.append(mb.identity(x=new, name=name))
        return mb.concat(values=[past, presents[-1]], axis=axis)
    whole = mb.concat(values=[past, new], axis=axis)
    begin, end = [0] * past.rank, [int(dim) for dim in whole.shape]
    begin[axis] = length
    presents.append(mb.slice_by_index(x=whole, begin=begin, end=end, name=name))
    return whole


def _repeated(x: Any, groups: int, total: Any) -> Any:
    if total is None:
        return mb.concat(values=[x, x], axis=1)
    wide = mb.tile(x=mb.expand_dims(x=x, axes=[2]), reps=[1, 1, HEADS // groups, 1, 1])
    return mb.reshape(x=wide, shape=[1, HEADS, total, SIZE])

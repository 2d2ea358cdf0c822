"""Small language models of ranged shapes, as the front door converts them: tokens in, logits and presents out."""

from __future__ import annotations

from typing import Any

import numpy as np

from milopt.mil import Function, Program, get_new_symbol, mb, target, types
from milopt.package import Model, load
from milopt.signature import WINDOW_KEY

CONTEXT, VOCABULARY, HEADS, SIZE, LAYERS = 16, 19, 2, 4, 2
WIDTH = HEADS * SIZE


def model(
    positions: str = "rotary",
    *,
    windows: tuple[int, ...] = (0, 0),
    query: Any = None,
    logits: str = "all",
    kind: Any = types.fp16,
    opset: Any = target.iOS18,
    silent: int | None = None,
    more: str = "",
    seed: int = 0,
) -> Model:
    """A decoder of one layer for each of ``windows`` (0: none), whose positions are rotary, a table's, or absent.

    ``query`` tokens are fed at once (any number for ``None``); ``logits`` come out of all or the last. The token
    ``silent`` has an embedding of zeros, so that its keys and values are zero too. ``more`` is an input that no client
    gives.
    """
    program = Program()
    program.add_function("main", _function(positions, windows, query, logits, kind, opset, silent, more, seed))
    made = load(program)
    made.metadata |= {"milopt.context": str(CONTEXT), "milopt.source": "org/tiny"}
    if any(windows):
        made.metadata[WINDOW_KEY] = str(max(windows))
    return made


def _function(
    positions: str,
    windows: tuple[int, ...],
    query: Any,
    logits: str,
    kind: Any,
    opset: Any,
    silent: int | None,
    more: str,
    seed: int,
) -> Function:
    rng = np.random.default_rng(seed)
    floats = types.nptype_from_builtin(kind)
    length, past, columns = (get_new_symbol() for _ in range(3)) if query is None else (query, CONTEXT - query, CONTEXT)
    sliding = "sliding_mask" if 0 in windows else "causal_mask"
    inputs = {"input_ids": mb.placeholder((1, length), types.int32)}
    if positions != "none":
        inputs["position_ids"] = mb.placeholder((1, length), types.int32)
    for name in dict.fromkeys(sliding if window else "causal_mask" for window in windows):
        inputs[name] = mb.placeholder((1, 1, length, columns), kind)
    if more:
        inputs[more] = mb.placeholder((1, length), types.int32)
    for layer in range(len(windows)):
        for what in ("key", "value"):
            inputs[f"past_{what}_{layer}"] = mb.placeholder((1, HEADS, past, SIZE), kind)
    rows = -1 if query is None else query

    def weight(*shape: int) -> Any:
        return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(floats)

    def linear(x: Any, width: int) -> Any:
        return mb.linear(x=x, weight=weight(width, WIDTH))

    def heads(x: Any) -> Any:
        return mb.transpose(x=mb.reshape(x=x, shape=[1, rows, HEADS, SIZE]), perm=[0, 2, 1, 3])

    with Function(inputs, opset_version=opset) as made:
        args = made.inputs
        table = weight(VOCABULARY, WIDTH) * floats(3)
        if silent is not None:
            table[silent] = 0
        x = mb.gather(x=table, indices=args["input_ids"], axis=0)
        if more:
            x = mb.add(x=x, y=mb.expand_dims(x=mb.cast(x=args[more], dtype="fp16"), axes=[2]))
        turn: Any = None
        if positions == "table":
            x = mb.add(x=x, y=mb.gather(x=weight(CONTEXT, WIDTH), indices=args["position_ids"], axis=0))
        elif positions == "rotary":
            angles = mb.mul(
                x=mb.expand_dims(x=mb.cast(x=args["position_ids"], dtype="fp32"), axes=[1, 3]),
                y=np.array([0.5, 0.125, 0.5, 0.125], np.float32),
            )
            name = "fp16" if kind is types.fp16 else "fp32"
            turn = mb.cast(x=mb.cos(x=angles), dtype=name), mb.cast(x=mb.sin(x=angles), dtype=name)

        def rotated(x: Any) -> Any:
            if turn is None:
                return x
            first, second = mb.split(x=x, num_splits=2, axis=-1)
            turned = mb.concat(values=[mb.mul(x=second, y=floats(-1)), first], axis=-1)
            return mb.add(x=mb.mul(x=x, y=turn[0]), y=mb.mul(x=turned, y=turn[1]))

        presents: list[Any] = []
        for layer, window in enumerate(windows):
            queries, key, value = (
                rotated(heads(linear(x, WIDTH))),
                rotated(heads(linear(x, WIDTH))),
                heads(linear(x, WIDTH)),
            )
            for what, new in (("key", key), ("value", value)):
                name = f"{what}_{layer}"
                presents.append(mb.concat(values=[args[f"past_{name}"], new], axis=2, name=f"present_{name}"))
            key, value = presents[-2:]
            scores = mb.mul(x=mb.matmul(x=queries, y=key, transpose_y=True), y=floats(0.5))
            scores = mb.add(x=scores, y=args[sliding if window else "causal_mask"])
            mixed = mb.matmul(x=mb.softmax(x=scores, axis=-1), y=value)
            merged = mb.reshape(x=mb.transpose(x=mixed, perm=[0, 2, 1, 3]), shape=[1, rows, WIDTH])
            x = mb.add(x=x, y=linear(merged, WIDTH), name=f"layer_{layer}")
        if logits == "last":
            x = mb.slice_by_index(x=x, begin=[0, -1, 0], end=[1, 0, WIDTH], end_mask=[False, True, False])
        made.set_outputs([mb.linear(x=x, weight=weight(VOCABULARY, WIDTH), name="logits"), *presents])
    return made

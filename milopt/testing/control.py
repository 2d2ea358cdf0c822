"""Makers of ops with nested blocks, states, lists and loops over time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from hypothesis import strategies as st

from milopt.mil import Var, dtype_name, flat, mb, shape_of, target
from milopt.testing.scope import Draw, Maker, Scope, fitted, is_fixed, numpy_type, tensors_of

__all__ = ["CONTROL", "LISTS", "RECURRENT", "SELECTING", "STATES"]

_DEEPEST = 2


def _float(draw: Draw, values: Sequence[Var], *, fixed: bool = True, least: int = 0) -> Var | None:
    fitting = [
        var
        for var in values
        if dtype_name(var) in ("fp16", "fp32") and len(shape_of(var)) >= least and (is_fixed(var) or not fixed)
    ]
    found: Var | None = draw(st.sampled_from(fitting)) if fitting else None
    return found


def _body(draw: Draw, scope: Scope, seed: Var) -> Var:
    """Some ops on what is known, and a value of the type of ``seed`` that they have a part in."""
    last = seed
    for _ in range(draw(st.integers(0, 2))):
        made = draw(st.sampled_from(scope.inner))(draw, scope) if scope.inner else None
        found = [] if made is None else tensors_of(flat(made))
        scope.values += found
        last = found[-1] if found else last
    if last is seed or dtype_name(last) != dtype_name(seed) or not is_fixed(last):
        alone: Var = getattr(mb, draw(st.sampled_from(["relu", "tanh", "abs"])))(x=seed)
        return alone
    if shape_of(last) != shape_of(seed) and shape_of(last):
        last = mb.reduce_mean(x=last, axes=list(range(len(shape_of(last)))), keep_dims=False)
    joined: Var = getattr(mb, draw(st.sampled_from(["add", "mul", "maximum"])))(x=seed, y=last)
    return joined


def _nested(values: Sequence[Var]) -> Scope | None:
    return values if isinstance(values, Scope) and values.depth < _DEEPEST and values.inner else None


def _cond(draw: Draw, values: Sequence[Var]) -> Var | None:
    """Both branches give a value of the type of one that is there."""
    scope = _nested(values)
    seed = _float(draw, values)
    if scope is None or seed is None:
        return None
    total = mb.reduce_sum(x=seed, axes=list(range(len(shape_of(seed)))), keep_dims=False) if shape_of(seed) else seed
    chosen = mb.greater(x=total, y=numpy_type(dtype_name(seed)).type(0))
    branch = partial(_branch, draw, scope, seed)
    made: Var = mb.cond(pred=chosen, _true_fn=branch, _false_fn=branch)
    return made


def _branch(draw: Draw, scope: Scope, seed: Var) -> Var:
    return _body(draw, scope.nested(), seed)


def _while_loop(draw: Draw, values: Sequence[Var]) -> Var | None:
    """One to three rounds over a value."""
    scope = _nested(values)
    if scope is None or (seed := _float(draw, values)) is None:
        return None
    rounds: int = draw(st.integers(1, 3))

    def body(count: Var, carried: Var) -> tuple[Var, Var]:
        inner = scope.nested()
        inner.values.append(carried)
        return mb.add(x=count, y=np.int32(1)), _body(draw, inner, carried)

    def more(count: Var, carried: Var) -> Any:
        return mb.less(x=count, y=np.int32(rounds))

    start: Var = mb.const(val=np.int32(0))
    _, made = mb.while_loop(_cond=more, _body=body, loop_vars=(start, seed))
    assert isinstance(made, Var)
    return made


CONTROL: dict[str, Maker] = {"cond": _cond, "while_loop": _while_loop}


def _state(draw: Draw, values: Sequence[Var]) -> Var | None:
    if not isinstance(values, Scope) or not values.states or values.depth:
        return None
    found: Var = draw(st.sampled_from(values.states))
    return found


def _read_state(draw: Draw, values: Sequence[Var]) -> Var | None:
    state = _state(draw, values)
    return None if state is None else mb.read_state(input=state)


def _coreml_update_state(draw: Draw, values: Sequence[Var]) -> Var | None:
    """A whole state anew, or a part of it through ``slice_update``, as caches are written."""
    state = _state(draw, values)
    if state is None or (var := _float(draw, values)) is None:
        return None
    assert isinstance(values, Scope)
    shape = shape_of(state)
    if draw(st.booleans()) and shape[0] > 1:
        rows: int = draw(st.integers(1, shape[0] - 1))
        part = fitted(draw, values, var, (rows, *shape[1:]), "fp16")
        if part is None:
            return None
        begin = [draw(st.integers(0, shape[0] - rows)), *[0] * (len(shape) - 1)]
        old = mb.read_state(input=state)
        value = mb.slice_update(x=old, update=part, begin=begin, end=[begin[0] + rows, *shape[1:]])
    else:
        value = fitted(draw, values, var, shape, "fp16")
    made: Var | None = None if value is None else mb.coreml_update_state(state=state, value=value)
    return made


STATES: dict[str, Maker] = {"coreml_update_state": _coreml_update_state, "read_state": _read_state}


def _list_maker(op_type: str) -> Maker:
    """A list of values of one type, written, and then read in one way."""

    def make(draw: Draw, values: Sequence[Var]) -> Var | None:
        x = _float(draw, [var for var in values if dtype_name(var) == "fp32"], least=1)
        if x is None:
            return None
        held: Any = mb.make_list(
            init_length=2, dynamic_length=draw(st.booleans()), elem_shape=shape_of(x), dtype="fp32"
        )
        for index in range(2):
            held = mb.list_write(ls=held, index=np.int32(index), value=x if index else mb.relu(x=x))
        if op_type == "list_scatter":
            rows = mb.stack(values=(x, mb.abs(x=x)), axis=0)
            held = mb.list_scatter(ls=held, indices=np.array([1, 0], np.int32), value=rows)
        if op_type == "list_length":
            made: Var = mb.list_length(ls=held)
        elif op_type in ("list_gather", "list_scatter"):
            made = mb.list_gather(ls=held, indices=np.array(draw(st.permutations([0, 1])), np.int32))
        else:
            made = mb.list_read(ls=held, index=np.int32(draw(st.integers(0, 1))))
        return made

    return make


LISTS: dict[str, Maker] = {
    name: _list_maker(name)
    for name in ("list_gather", "list_length", "list_read", "list_scatter", "list_write", "make_list")
}


def _recurrent(op_type: str, gates: int) -> Maker:
    def make(draw: Draw, values: Sequence[Var]) -> Sequence[Var] | None:
        fitting = [var for var in values if len(shape_of(var)) == 3 and is_fixed(var)]
        x = _float(draw, fitting)
        if x is None and (x := _float(draw, values, least=1)) is not None:
            x = mb.reshape(x=x, shape=[-1, 1, shape_of(x)[-1]])
        if x is None:
            return None
        _, batch, size = shape_of(x)
        hidden: int = draw(st.integers(1, 3))
        kind = numpy_type(dtype_name(x))
        source = np.random.default_rng(draw(st.integers(0, 999)))

        def weights(*shape: int) -> Any:
            return (source.integers(-4, 5, shape) / 4).astype(kind)

        given: dict[str, Any] = {
            "initial_h": weights(batch, hidden),
            "weight_ih": weights(gates * hidden, size),
            "weight_hh": weights(gates * hidden, hidden),
            "output_sequence": draw(st.booleans()),
            "direction": draw(st.sampled_from(["forward", "reverse"])),
        }
        if draw(st.booleans()):
            given["bias"] = weights(gates * hidden)
        if op_type == "lstm":
            given["initial_c"] = weights(batch, hidden)
        return tensors_of(flat(getattr(mb, op_type)(x=x, **given)))

    return make


RECURRENT: dict[str, Maker] = {
    "gru": _recurrent("gru", 3),
    "lstm": _recurrent("lstm", 4),
    "rnn": _recurrent("rnn", 1),
}


def _non_maximum_suppression(draw: Draw, values: Sequence[Var]) -> Sequence[Var] | None:
    """Boxes that are constants, and scores that are computed; from iOS17 on, their number is the last axis."""
    if not isinstance(values, Scope) or (x := _float(draw, values)) is None:
        return None
    kind = dtype_name(x)
    count: int = draw(st.integers(1, 3))
    newer = values.opset >= target.iOS17
    scores = fitted(draw, values, x, (1, 1, count) if newer else (1, count, 1), kind)
    if scores is None:
        return None
    corners = np.random.default_rng(draw(st.integers(0, 999))).integers(0, 8, (1, 4, count) if newer else (1, count, 4))
    boxes = (corners / 4 + 0.25).astype(numpy_type(kind))  # centres and sizes
    older: dict[str, Any] = {} if newer else {"score_threshold": numpy_type(kind).type(0)}
    made = mb.non_maximum_suppression(
        boxes=boxes,
        scores=scores,
        iou_threshold=numpy_type(kind).type(0.5),
        max_boxes=draw(st.integers(1, 3)),
        **older,
    )
    return tensors_of(flat(made))


SELECTING: dict[str, Maker] = {"non_maximum_suppression": _non_maximum_suppression}

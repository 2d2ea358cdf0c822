"""Attention over a cache that comes in and goes out, in many spellings, for ``kv-to-state``."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from milopt.mil import Function, Program, Var, mb, target, types
from milopt.package import load
from milopt.passes.cache import KvToState
from milopt.testing.naming import rename_all
from milopt.testing.notes import noted
from milopt.testing.scope import Draw

__all__ = ["broken_caches", "broken_states", "caches", "stateful"]

# What keeps the pass from rewriting, or what it must get right all the same
_BREAKS = (
    "no mask",
    "fp32",
    "past used",
    "present used",
    "slots summed",
    "other axis",
    "value without a key",
    "constant mask",
    "old opset",
    "position taken",
    "columns reversed",
    "past is an output",
)


@st.composite
def caches(draw: Draw) -> Program:
    """One or two layers of attention over cached keys and values."""
    return _program(draw, "")


@st.composite
def broken_caches(draw: Draw) -> Program:
    """The same with one thing that the pass has to notice."""
    broken: str = draw(st.sampled_from(_BREAKS))
    return noted(_program(draw, broken), f"changed: {broken}")


@st.composite
def stateful(draw: Draw) -> Program:
    """The same in states, as ``kv-to-state`` writes them."""
    return _in_states(draw)


# What keeps the pass from bringing a cache back out of states
_BREAKS_IN_STATES = ("position shown", "state shown", "written twice", "slots from the second")


@st.composite
def broken_states(draw: Draw) -> Program:
    """The same with one thing that the pass has to notice."""
    program = _in_states(draw)
    function = program.functions["main"]
    broken: str = draw(st.sampled_from(_BREAKS_IN_STATES))
    update = next(op for op in function.operations if op.op_type == "coreml_update_state")
    shown: list[Var] = []
    with function:
        if broken == "position shown":
            shown.append(mb.add(x=function.inputs["current_pos"], y=np.int32(1), name="shown"))
        elif broken == "state shown":
            shown.append(mb.relu(x=mb.read_state(input=update.state), name="shown"))
        elif broken == "written twice":
            mb.coreml_update_state(state=update.state, value=mb.relu(x=mb.read_state(input=update.state)))
        else:
            reader = next(user for user in update.outputs[0].child_ops if user.op_type == "slice_by_index")
            begin = np.array(reader.begin.val)
            begin[2] = 1
            shown.append(mb.slice_by_index(x=update.outputs[0], begin=begin, end=reader.end, name="shown"))
    function.set_outputs([*function.outputs, *shown])
    return noted(program, f"changed: {broken}")


def _in_states(draw: Draw) -> Program:
    program = _program(draw, "")
    options: dict[str, Any] = {"layout": draw(st.sampled_from(["pair", "unified", "per-layer"]))}
    model = load(program)
    assert KvToState(**options).run(model)
    return model.program


def _program(draw: Draw, broken: str) -> Program:
    batch, heads, past, new, size = 1, draw(st.integers(1, 2)), draw(st.integers(1, 4)), draw(st.integers(1, 2)), 2
    layers = draw(st.integers(1, 2))
    fused = draw(st.booleans())
    kind = types.fp32 if broken == "fp32" else types.fp16
    number: Any = np.float32 if broken == "fp32" else np.float16
    specs: dict[str, Any] = {"x": mb.placeholder(shape=(batch, heads, new, size), dtype=kind)}
    if broken not in ("no mask", "constant mask"):
        shape = (1, 1, new, past + new)
        specs["mask"] = mb.placeholder(shape=shape, dtype=kind)
    if broken == "position taken":
        specs["current_pos"] = mb.placeholder(shape=(1,), dtype=kind)
    for layer in range(layers):
        for letter in "kv":
            specs[f"past_{letter}{layer}"] = mb.placeholder(shape=(batch, heads, past, size), dtype=kind)
    opset = target.iOS17 if broken == "old opset" else target.iOS18
    fused = fused and opset >= target.iOS18
    made = Program()
    with Function(specs, opset_version=opset) as function:
        given = function.inputs
        x: Any = given["x"]
        presents: list[Var] = []
        extra: list[Var] = []
        mask: Any = given.get("mask")
        if broken == "constant mask":
            mask = np.zeros((1, 1, new, past + new), number)
        for layer in range(layers):
            pasts = [given[f"past_{letter}{layer}"] for letter in "kv"]
            axis = 3 if broken == "other axis" and layer == 0 else 2
            if axis == 3:
                pasts[0] = mb.transpose(x=pasts[0], perm=[0, 1, 3, 2])
            key = mb.concat(
                values=[given[f"past_k{layer}"], mb.mul(x=x, y=number(0.5))], axis=draw(st.sampled_from([2, -2]))
            )
            value = mb.concat(values=[pasts[1], mb.tanh(x=x)], axis=2)
            presents += [key, value]
            if broken == "past used" and layer == 0:
                extra.append(mb.relu(x=given["past_k0"]))
            if broken == "past is an output" and layer == 0:
                extra.append(given["past_v0"])
            if broken == "present used" and layer == 0:
                extra.append(mb.slice_by_index(x=key, begin=[0, 0, 0, 0], end=[batch, heads, 1, size]))
            if broken == "slots summed" and layer == 0:
                extra.append(mb.reduce_sum(x=value, axes=[2], keep_dims=True))
            if broken == "columns reversed" and layer == 0:
                value = mb.reverse(x=value, axes=[2])
            x = _attention(draw, x, key, x if broken == "value without a key" else value, mask, number, fused)
        outputs = [x, *presents, *extra]
        function.set_outputs(list(dict.fromkeys(outputs)))
    rename_all(function)
    made.add_function("main", function)
    return made


def _attention(draw: Draw, query: Any, key: Any, value: Any, mask: Any, number: Any, fused: bool) -> Any:
    if value is query:  # every slot counts alike: a value that was never cached
        value = mb.mul(x=key, y=number(2))
    if fused:
        masks = {} if mask is None else {"attn_mask": mask}
        return mb.scaled_dot_product_attention(query=query, key=key, value=value, **masks)
    if draw(st.booleans()):
        scores = mb.matmul(x=query, y=key, transpose_y=True)
    else:
        scores = mb.matmul(x=query, y=mb.transpose(x=key, perm=[0, 1, 3, 2]))
    scores = mb.mul(x=scores, y=number(0.5)) if draw(st.booleans()) else scores
    scores = scores if mask is None else mb.add(x=scores, y=mask)
    return mb.matmul(x=mb.softmax(x=scores, axis=-1), y=value)

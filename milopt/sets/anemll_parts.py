"""The parts of a set as ANEMLL's client calls them: names, ranks and functions; what they compute stays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from milopt.building import Builder
from milopt.mil import (
    Function,
    add_input,
    building_in,
    dtype_name,
    enumerate_shapes,
    get_new_symbol,
    mb,
    operations,
    rename_input,
    replace_input,
    replace_uses,
    shape_of,
    value_names,
)
from milopt.multifunction import extract
from milopt.package import Model
from milopt.retyping import RetypingError, set_shapes
from milopt.sets.anemll_windows import STATE, add_rotating, declare_states, state_titles
from milopt.sets.deployment import Part
from milopt.sets.errors import SetError
from milopt.sets.renaming import MASK, PLACE, POSITIONS, TOKENS, claim, free, name_inputs, order_inputs, unused_input
from milopt.sets.roles import Decoder
from milopt.signature import METADATA_KEY

__all__ = ["INFER", "PREFILL", "STATE", "chunk_part", "embeddings_part", "head_part", "lut_bits", "prepared"]

INFER, PREFILL = "infer", "prefill"
STREAM, STREAM_OUT = "hidden_states", "output_hidden_states"


def prepared(model: Model, decoder: Decoder) -> Model:
    """A copy of ``infer`` and ``prefill`` alone, whose inputs and states are called as the client does."""
    assert decoder.many is not None
    whole = model.clone()
    whole.metadata.pop(METADATA_KEY, None)
    named = {INFER: decoder.one, PREFILL: decoder.many}
    whole.program.functions = {name: whole.program.functions[roles.name] for name, roles in named.items()}
    whole.program.default_function_name = whole.default_function = INFER
    whole.program.export_as_multifunction = True
    whole.description, whole.carried = None, replace(whole.carried, function_attributes={})
    for name, roles in named.items():
        name_inputs(whole.function(name), roles, state_titles(decoder))
    return whole


def embeddings_part(model: Model, part: Part, batch: int) -> Model:
    """One function ``main``, input_ids (1, 1) or (1, batch) -> hidden_states fp16 (1, T, H)."""
    step = part.steps[PREFILL]
    if list(step.takes) != [TOKENS]:
        raise SetError(f"the embedding needs {', '.join(step.takes)}, and the client gives it token ids alone")
    (output,) = step.gives
    axes = _row_axes(model, part, output=True)
    alone = extract(model, step.function)
    function = alone.function()
    _give_rows(function, output, axes, STREAM)
    try:
        set_shapes(function, {TOKENS: (1, get_new_symbol())})
    except RetypingError as error:
        raise SetError(f"the embedding can't take any number of tokens: {error}") from error
    rows = shape_of(function.outputs[0])
    if len(rows) != 3 or isinstance(rows[1], int) or not isinstance(rows[2], int):
        raise SetError(f"the embedding can't take any number of tokens: it always makes {list(rows)}")
    enumerate_shapes(function, TOKENS, [(1, 1), (1, batch)])
    return alone


def chunk_part(model: Model, part: Part, decoder: Decoder) -> Model:
    """Functions ``infer`` and ``prefill`` of hidden_states, position_ids, causal_mask and current_pos."""
    assert decoder.many is not None
    streams, outputs = dict[str, str](), dict[str, str]()
    for name in (INFER, PREFILL):
        step = part.steps[name]
        handed = [each for each, source in step.takes.items() if "/" in source]
        if len(handed) != 1 or TOKENS in step.takes:
            own = [each for each, source in step.takes.items() if "/" not in source and source == TOKENS]
            raise SetError(
                f"{part.name} needs {', '.join([*handed, *own])}, and the client hands over hidden_states alone"
            )
        if len(step.gives) != 1:
            raise SetError(f"{part.name} gives {', '.join(step.gives)}, and the client reads {STREAM_OUT} alone")
        streams[name], outputs[name] = handed[0], next(iter(step.gives))
    taken, given = _row_axes(model, part, output=False), _row_axes(model, part, output=True)
    for name, length in ((INFER, 1), (PREFILL, decoder.many.length)):
        function = model.function(name)
        _take_rows(function, streams[name], taken)
        _give_rows(function, outputs[name], given, STREAM_OUT)
        kinds: tuple[tuple[str, tuple[int, ...], str], ...] = (
            (POSITIONS, (length,), "int32"),
            (MASK, (1, 1, length, decoder.slots), "fp16"),
            (PLACE, (1,), "int32"),
        )
        for each, shape, kind in kinds:
            if each not in function.inputs:
                unused_input(function, each, shape, kind)
        declare_states(function, decoder)
        order_inputs(function, (STREAM, POSITIONS, MASK, PLACE))
    if decoder.window is not None and decoder.window.ring:
        add_rotating(model)
    return model


def head_part(model: Model, part: Part) -> Model:
    """One function ``main`` of hidden_states (1, 1, H)."""
    step = part.steps[INFER]
    if len(step.takes) != 1 or "/" not in next(iter(step.takes.values())):
        raise SetError(f"the head needs {', '.join(step.takes)}, and the client gives it hidden_states alone")
    axes = _row_axes(model, part, output=False)
    alone = extract(model, step.function)
    _take_rows(alone.function(), next(iter(step.takes)), axes)
    return alone


def lut_bits(model: Model) -> int:
    """How many bits the indices of most weights have; 0 where none has a table."""
    found: dict[int, int] = {}
    for function in model.functions.values():
        for op in operations(function):
            if op.op_type == "constexpr_lut_to_dense":
                shape = list(shape_of(op.inputs["lut"]))
                entries = int(shape[-2] if len(shape) > 1 else shape[0])
                bits = (entries - 1).bit_length()
                found[bits] = found.get(bits, 0) + int(np.prod(shape_of(op.outputs[0])))
    return max(found, key=lambda bits: found[bits], default=0)


def _row_axes(model: Model, part: Part, *, output: bool) -> tuple[int, int, int]:
    """The rank of the value that is handed over, its axis of tokens and that of features."""
    shapes: list[tuple[Any, ...]] = []
    for name in (INFER, PREFILL):
        step = part.steps[name]
        if output:
            (var,) = (var for var in model.function(step.function).outputs if var.name in step.gives)
        else:
            handed = next(each for each, source in step.takes.items() if "/" in source)
            var = model.function(step.function).inputs[handed]
        if dtype_name(var) != "fp16":
            raise SetError(f"{part.name} is handed {dtype_name(var)}, and the client's hidden_states are fp16")
        shapes.append(shape_of(var))
    one, many = shapes
    differing = [axis for axis, sizes in enumerate(zip(one, many, strict=False)) if sizes[0] != sizes[1]]
    wide = [axis for axis, size in enumerate(one) if size != 1]
    if len(one) != len(many) or len(differing) != 1 or len(wide) != 1 or one[differing[0]] != 1:
        raise SetError(f"{part.name} is handed {list(one)} and {list(many)}, which are no rows of (1, T, H)")
    return len(one), differing[0], wide[0]


def _take_rows(function: Function, name: str, axes: tuple[int, int, int]) -> None:
    """Let the input be ``hidden_states`` (1, T, H), and what uses it get the value that it was."""
    rank, tokens, wide = axes
    old = function.inputs[name]
    if name != STREAM:
        claim(function, STREAM)
    if axes == (3, 1, 2):
        rename_input(function, name, STREAM)
        return
    size = shape_of(old)
    new = add_input(function, free(function, f"{STREAM}_rows"), (1, size[tokens], size[wide]), "fp16")
    op = Builder(next(iter(function.operations)), value_names(function))
    value = op.squeeze(x=new, axes=[0], name=f"{STREAM}_plain")
    if tokens > wide:
        value = op.transpose(x=value, perm=[1, 0], name=f"{STREAM}_turned")
    others = [axis for axis in range(rank) if axis not in (tokens, wide)]
    if others:
        value = op.expand_dims(x=value, axes=others, name=f"{STREAM}_laid")
    replace_uses(old, value, after=value.op)
    replace_input(function, name, new.name)
    rename_input(function, name, STREAM)


def _give_rows(function: Function, name: str, axes: tuple[int, int, int], title: str) -> None:
    """Let the function's one output be called ``title``, of shape (1, T, H)."""
    rank, tokens, wide = axes
    (value,) = function.outputs
    if axes != (3, 1, 2):
        others = [axis for axis in range(rank) if axis not in (tokens, wide)]
        with building_in(function):
            if others:
                value = mb.squeeze(x=value, axes=others, name=free(function, f"{title}_plain"))
            if tokens > wide:
                value = mb.transpose(x=value, perm=[1, 0], name=free(function, f"{title}_turned"))
            value = mb.expand_dims(x=value, axes=[0], name=free(function, f"{title}_rows"))
        function.set_outputs([value])
        function.output_types = None
    if value.name != title:
        claim(function, title)
        value.name = title
        assert value.op is not None
        if len(value.op.outputs) == 1:
            value.op.name = title

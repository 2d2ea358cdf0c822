"""Packages that keep the contract, and ways to break one thing of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from milopt.building import Builder
from milopt.mil import (
    Function,
    Operation,
    Program,
    add_input,
    mb,
    rename_input,
    replace_uses,
    set_ranges,
    target,
    types,
    value_names,
)
from milopt.package import Model, load
from milopt.passes.contract import ClientContract
from tests.passes.contract_programs import CONTEXT, model

__all__ = ["DEFECTS", "ORDINARY", "Plant", "kept"]

ORDINARY = "table"

Plant = Callable[[Model], Model]


def kept(positions: str = ORDINARY, **options: Any) -> Model:
    """A small model that keeps the contract."""
    made = model(positions, **options)
    assert ClientContract().run(made)
    return made


def _op(function: Function, name: str) -> Operation:
    return next(op for op in function.operations if op.name == name)


def _set(made: Model, name: str, **inputs: Any) -> Model:
    function = made.function()
    op = _op(function, name)
    build = Builder(op, value_names(function))
    op.set_inputs(**{key: build.const(val=value) for key, value in inputs.items()})
    return made


def _renamed_state(made: Model) -> Model:
    rename_input(made.function(), "keyCache", "k_cache")
    return made


def _without_metadata(made: Model) -> Model:
    del made.metadata["co.huggingface.exporters.name"]
    return made


def _described(made: Model, change: Callable[[Any], object]) -> Model:
    """With another description of its inputs, as a package on the disk may have it."""
    from milopt.package.describing import build_description

    made.description = build_description(made)
    for feature in made.description.input:
        change(feature.type.multiArrayType)
    return made


def _narrow(array: Any) -> None:
    for each in array.shapeRange.sizeRanges:
        each.upperBound = min(each.upperBound, 2)


def _short(array: Any) -> None:
    for each in array.shapeRange.sizeRanges:
        each.upperBound = min(each.upperBound, CONTEXT - 1)


def _long(array: Any) -> None:
    for each in array.shapeRange.sizeRanges:
        each.upperBound = each.upperBound if each.upperBound == 1 else 2 * CONTEXT


def _late(array: Any) -> None:
    for each in array.shapeRange.sizeRanges:
        each.lowerBound = min(each.upperBound, 4)


def _listed(array: Any) -> None:
    sizes = [[size if each.upperBound > 1 else 1 for each in array.shapeRange.sizeRanges] for size in (1, CONTEXT)]
    array.ClearField("shapeRange")
    for shape in sizes:
        array.enumeratedShapes.shapes.add().shape.extend(shape)


def _unneeded_input(made: Model) -> Model:
    add_input(made.function(), "position_ids", (1, 1), "int32")
    return made


def _overflow(made: Model) -> Model:
    function = made.function()
    logits = function.outputs[0]
    assert logits.op is not None
    op = Builder(logits.op, value_names(function))
    x = logits.op.x
    large = op.mul(x=op.mul(x=x, y=np.float16(3e4)), y=np.float16(3e4))
    small = op.mul(x=op.mul(x=large, y=np.float16(2**-14)), y=np.float16(2**-14))
    logits.op.set_inputs(x=small)
    return made


def _nonsense(made: Model) -> Model:
    """The logarithm of a negative number, in every precision."""
    function = made.function()
    logits = function.outputs[0]
    assert logits.op is not None
    op = Builder(logits.op, value_names(function))
    x = logits.op.x
    logits.op.set_inputs(x=op.log(x=op.sub(x=op.mul(x=x, y=np.float16(0)), y=np.float16(1))))
    return made


def _last_row_only(made: Model) -> Model:
    function = made.function()
    logits = function.outputs[0]
    assert logits.op is not None
    x = Builder(logits.op, value_names(function)).slice_by_index(
        x=logits.op.x, begin=[0, -1, 0], end=[1, 0, 8], end_mask=[False, True, False]
    )
    logits.op.set_inputs(x=x)
    logits.op.type_value_inference(overwrite_output=True)
    return made


def _first_row_missing(made: Model) -> Model:
    function = made.function()
    logits = function.outputs[0]
    assert logits.op is not None
    x = Builder(logits.op, value_names(function)).slice_by_index(
        x=logits.op.x, begin=[0, 1, 0], end=[1, 0, 8], end_mask=[False, True, False]
    )
    logits.op.set_inputs(x=x)
    logits.op.type_value_inference(overwrite_output=True)
    return made


def _float_states(_: Model) -> Model:
    shape = (2, 1, 2, CONTEXT, 4)
    inputs = {"x": mb.placeholder((1, 4), types.fp32)}
    states = {name: mb.state_tensor_placeholder(shape, types.fp32) for name in ("keyCache", "valueCache")}
    with Function({**inputs, **states}, opset_version=target.iOS18) as function:
        read = [mb.read_state(input=function.inputs[name]) for name in states]
        function.set_outputs([mb.relu(x=function.inputs["x"], name="logits"), *read])
    program = Program()
    program.add_function("main", function)
    return load(program)


def _two_functions(made: Model) -> Model:
    program = Program()
    for name in ("main", "other"):
        program.add_function(name, made.function() if name == "main" else kept().function())
    program.default_function_name = "main"
    program.export_as_multifunction = True
    two = load(program)
    two.metadata |= made.metadata
    return two


def _half_precision_ids(made: Model) -> Model:
    function = made.function()
    ids = function.inputs["inputIds"]
    rename_input(function, "inputIds", "ids")
    fresh = add_input(function, "inputIds", ids.shape, "fp32")
    cast = Builder(function.operations[0], value_names(function)).cast(x=fresh, dtype="int32")
    replace_uses(ids, cast, after=cast.op)
    function._input_dict.pop("ids")
    function.placeholder_inputs.pop("ids")
    set_ranges(function, "inputIds", [(1, 1), (1, CONTEXT)], default=1)
    return made


DEFECTS: dict[str, tuple[Plant, str, str]] = {
    "a state of another name": (
        _renamed_state,
        "state keyCache",
        "it is not among: k_cache, valueCache; the client stops: it is stateful only with both keyCache and valueCache",
    ),
    "no name in the metadata": (
        _without_metadata,
        "metadata co.huggingface.exporters.name",
        "it is not there: the client finds no tokenizer and stops",
    ),
    "ranges of 1 to 2": (
        lambda made: _described(made, _narrow),
        "range of query in inputIds",
        "1 to 2: the client stops: expecting ranged query sequence length",
    ),
    "ranges that end too early": (
        lambda made: _described(made, _short),
        "range of end in causalMask",
        "1 to 15, and the states have 16 slots: the client never fills them",
    ),
    "ranges that end too late": (
        lambda made: _described(made, _long),
        "range of end in causalMask",
        "1 to 32, and the states have 16 slots: the client goes on beyond them",
    ),
    "ranges that begin too late": (
        lambda made: _described(made, _late),
        "range of query in inputIds",
        "4 to 16: the client's first calls have 1, and fail",
    ),
    "shapes from a list": (
        lambda made: _described(made, _listed),
        "range of query in inputIds",
        "its shapes are enumerated: the client takes the first of them for the only one",
    ),
    "an input that no client gives": (
        _unneeded_input,
        "input position_ids",
        "int32 (1, 1): the client gives no such input, and each prediction fails",
    ),
    "ids that are no int32": (
        _half_precision_ids,
        "input inputIds",
        "fp32 (1, ?), not int32 (1, query): the client's arrays don't fit",
    ),
    "logits of the last token": (
        _last_row_only,
        "output logits",
        "fp16 (1, 1, 19): query is fixed, and the client stops: expecting ranged query sequence length",
    ),
    "logits of all tokens but the first": (
        _first_row_missing,
        "end = n, zeros, prompt at once",
        "the client's call fails: logits are (1, 6, 19) for 7 tokens: row q - 1 is not there",
    ),
    "fp32 states": (
        _float_states,
        "description",
        "state 'keyCache' is fp32[2, 1, 2, 16, 4]; Core ML's states are fp16 and of fixed shape",
    ),
    "several functions": (_two_functions, "version", "2 functions, and the client calls 'main' alone"),
    "a mask that is believed": (
        lambda made: _set(made, "causal_mask_added", y=np.float16(0)),
        "end = n, zeros, prompt at once",
        "the mask given is believed: tokens of a prompt see what comes after them",
    ),
    "slot 0 attended to": (
        lambda made: _set(made, "slots_first", x=np.zeros(1, np.int32)),
        "end = n + 1, zeros, token by token",
        "slot 0, which this client never writes, is attended to, or positions are counted from it",
    ),
    "positions counted from slot 0": (
        lambda made: _set(made, "positions", y=np.zeros(1, np.int32)),
        "end = n + 1, zeros, token by token",
        "slot 0, which this client never writes, is attended to, or positions are counted from it",
    ),
    "no numbers": (
        _nonsense,
        "end = n, causal mask, prompt at once",
        "are not finite, first of token 0: the client answers with nonsense",
    ),
    "an overflow": (
        _overflow,
        "declared precision",
        "the client answers with nonsense (milopt lint-numerics says where)",
    ),
}
"""What is broken -> how, the check that must fail, and what its line must say."""

"""Where programs can be cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import milopt
from milopt.mil import Function, mb, shape_of, target, types
from milopt.package import Model
from milopt.sets import cut_places
from milopt.sets.stream import stream_of
from tests.sets.programs import WIDTH, Transformer


def _said(model: Model) -> list[str]:
    return [str(place) for place in cut_places(model)]


def test_between_layers_and_behind_the_attention() -> None:
    model = Transformer(mlp=(24, 8)).model()
    assert _said(model) == [
        "before layer 0",
        "after the attention of layer 0",
        "after layer 0",
        "after the attention of layer 1",
        "after layer 1",
    ]
    for values in cut_places(model).values():
        assert shape_of(values["decode"]) == (1, 1, WIDTH)
        assert shape_of(values["prefill4"]) == (1, 4, WIDTH)


def test_the_embedding_ends_with_the_look_up_and_the_last_layer_with_its_norm() -> None:
    places = list(cut_places(Transformer().model()).values())
    first, last = places[0]["decode"].op, places[-1]["decode"].op
    assert first is not None
    assert last is not None
    assert (first.op_type, last.op_type) == ("gather", "mul")
    assert [each.op_type for each in last.outputs[0].child_ops] == ["linear"]


def test_attention_beside_the_mlp_has_no_place_behind_it() -> None:
    assert _said(Transformer(parallel=True).model()) == [
        "before layer 0",
        "after layer 0",
        "after layer 1",
        "after layer 2",
    ]


def test_names_mean_nothing() -> None:
    model = Transformer().model()
    wanted = _said(model)
    for function in model.functions.values():
        for number, op in enumerate(function.operations):
            for var in op.outputs:
                if var not in function.outputs:
                    op.name = var.name = f"v{number}"
    assert _said(model) == wanted


def test_functions_that_are_cut_alike_only_in_part() -> None:
    model, other = Transformer().model((1,)), Transformer(parallel=True).model((4,))
    model.program.add_function("other", other.function())
    assert _said(model) == ["before layer 0", "after layer 0", "after layer 1", "after layer 2"]


def _encoder(layers: int) -> Function:
    """Attention without a state or a mask, a norm behind each sum, and no head."""
    rng = np.random.default_rng(0)

    def weight(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(np.float32)

    @mb.function(input_specs=[mb.TensorSpec((1, 5, WIDTH), types.fp32)], opset_version=target.iOS15)
    def main(x: Any) -> Any:
        for _ in range(layers):
            query, key, value = (mb.linear(x=x, weight=weight(WIDTH, WIDTH)) for _ in range(3))
            shares = mb.softmax(x=mb.matmul(x=query, y=key, transpose_y=True), axis=-1)
            mixed = mb.linear(x=mb.matmul(x=shares, y=value), weight=weight(WIDTH, WIDTH))
            x = mb.layer_norm(x=mb.add(x=x, y=mixed), axes=[-1], epsilon=1e-5)
            fed = mb.linear(x=mb.gelu(x=mb.linear(x=x, weight=weight(8, WIDTH))), weight=weight(WIDTH, 8))
            x = mb.layer_norm(x=mb.add(x=x, y=fed), axes=[-1], epsilon=1e-5)
        return x

    function: Function = main
    return function


def test_an_encoder_is_cut_behind_its_norms() -> None:
    found = stream_of(_encoder(3))
    assert [cut.op.op_type for cut in found.cuts if cut.op is not None] == ["add", "layer_norm"] * 6
    program = milopt.mil.Program()
    program.add_function("main", _encoder(3))
    places = cut_places(milopt.load(program))
    assert [str(place) for place in places] == [
        f"after {what}layer {layer}" for layer in range(3) for what in ("the attention of ", "")
    ][:-1]
    assert {values["main"].op.op_type for values in places.values() if values["main"].op} == {"layer_norm"}


def test_a_network_without_attention_is_cut_behind_its_layers() -> None:
    rng = np.random.default_rng(0)

    @mb.program(input_specs=[mb.TensorSpec((1, 3, 8, 8), types.fp32)], opset_version=target.iOS15)
    def program(x: Any) -> Any:
        for channels, before in ((4, 3), (2, 4), (6, 2)):
            x = mb.relu(x=mb.conv(x=x, weight=rng.standard_normal((channels, before, 1, 1)).astype(np.float32)))
        return mb.reduce_mean(x=x, axes=[2, 3])

    places = cut_places(milopt.load(program))
    assert [str(place) for place in places] == ["after layer 0", "after layer 1", "after layer 2"]
    assert [shape_of(values["main"])[1] for values in places.values()] == [4, 2, 6]


def test_a_branch_around_a_layer_leaves_no_place_there() -> None:
    @mb.program(input_specs=[mb.TensorSpec((1, 4), types.fp32)], opset_version=target.iOS15)
    def program(x: Any) -> Any:
        weight = np.eye(4, dtype=np.float32)
        first = mb.linear(x=x, weight=weight, name="first")
        second = mb.linear(x=first, weight=weight, name="second")
        return mb.linear(x=mb.add(x=second, y=first), weight=weight)

    values = [each["main"].name for each in cut_places(milopt.load(program)).values()]
    assert "second" not in values
    assert len(values) == 2


@pytest.mark.parametrize("dtype", [types.bool, types.int16])
def test_values_that_no_part_can_be_given_are_no_places(dtype: Any) -> None:
    @mb.program(input_specs=[mb.TensorSpec((1, 4), types.fp32)], opset_version=target.iOS17)
    def program(x: Any) -> Any:
        weight = np.eye(4, dtype=np.float32)
        inner = mb.linear(x=x, weight=weight)
        narrow = mb.cast(x=inner, dtype=types.builtin_to_string(dtype))
        return mb.linear(x=mb.cast(x=narrow, dtype="fp32"), weight=weight)

    found = {value["main"].name: value["main"] for value in cut_places(milopt.load(program)).values()}
    assert all(var.dtype == types.fp32 for var in found.values())
    assert found

"""What layout-bc1s reads of a program, tensor by tensor and op by op, and which inputs, outputs and states it frees."""

# The bodies of programs are lambdas of as many parameters as they have inputs, for which no one type can be written.
# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import FrozenInstanceError, fields
from typing import Any

import numpy as np
import pytest

from milopt.layout.forms import OP, Layout
from milopt.layout.relations import Along, Port, Relation
from milopt.mil import Function, Program, Var, flat, get_new_symbol, mb, target, types
from milopt.opaque import opaque_class
from milopt.passes.layout_reading import Edge, Reading, read, read_free

from .programs import Build, fp16, fp32, ints, program_of
from .test_layout_disputes import declare

F32: Any = np.float32
F16: Any = np.float16
SYMBOL, OTHER = get_new_symbol(), get_new_symbol()
CONV = np.ones((5, 8, 1, 1), np.float32)


def layout_of(layout: Layout) -> str:
    return "|".join("".join(map(str, axis)) or "-" for axis in layout)


def _port(port: Port) -> str:
    groups = ",".join(f"{label}={''.join(map(str, each)) or '-'}" for label, each in sorted(port.groups.items()))
    return f"{port.tensor}[{layout_of(port.home)}]" + (f"{{{groups}}}" if groups else "")


def _settings(relation: Relation) -> str:
    """What a relation says beside its ports, where that is not what it would be for most."""
    found: list[str] = []
    for each in fields(relation)[1:]:
        value = getattr(relation, each.name)
        if value == each.default or each.name in ("operands", "labels"):
            continue
        if each.name == "constants":
            value = [sorted(own) for own in value]
        found.append(f"{each.name}={sorted(value) if isinstance(value, frozenset) else value}")
    return "".join(f" {each}" for each in found)


def relations(reading: Reading) -> list[str]:
    """A line for each relation: what it is, its operands and its results, with the labels of their pieces."""
    found: list[str] = []
    for number, (node, relation) in enumerate(zip(reading.nodes, reading.graph.relations, strict=True)):
        assert node.op is not None or (node.spec, node.labels, node.inputs) == (None, {}, {})
        kind = type(relation).__name__ if node.op is None else node.op.op_type
        count = sum((number, at) in reading.graph.tensors[p.tensor].consumers for at, p in enumerate(relation.ports))
        given, made = relation.ports[:count], relation.ports[count:]
        assert all(reading.graph.tensors[port.tensor].producer == (number, count + at) for at, port in enumerate(made))
        if isinstance(relation, Along):
            assert relation.operands == count
            assert relation.labels == {label for port in relation.ports for label in port.groups}
        sides = " -> ".join(" ".join(map(_port, each)) for each in (given, made)).strip()
        found.append(f"{kind}: {sides}{_settings(relation)}")
    return found


def tensors(reading: Reading) -> list[str]:
    """A line for each tensor: its pieces, as counted and as they are, and the layouts that outputs have."""
    found: list[str] = []
    for tensor, dims in zip(reading.graph.tensors, reading.dims, strict=True):
        counted, real = (" x ".join(map(str, each)) for each in (tensor.sizes, dims))
        wanted = "".join(f" wanted {layout_of(each)}" for each in sorted(tensor.wanted))
        found.append((counted if counted == real else f"{counted} ({real})") + wanted)
    return found


def read_of(build: Build, **inputs: Any) -> Reading:
    return read(program_of(build, **inputs).functions["main"], 64)


def places(reading: Reading) -> dict[str, str]:
    return {var.name: f"{tensor}[{layout_of(layout)}]" for var, (tensor, layout) in reading.places.items()}


def moves(reading: Reading) -> dict[str, float]:
    return {op.outputs[0].name: elements for op, elements in reading.moves.items()}


def known(value: Any) -> Any:
    """A value that MIL knows while it builds, though no constant holds it."""
    return mb.identity(x=mb.const(val=value))


def compressed(*shape: int) -> Any:
    """A weight of ``shape`` in eight bits."""
    data, scale = np.ones(shape, np.int8), np.ones((1,) * len(shape), np.float32)
    return mb.constexpr_blockwise_shift_scale(data=data, scale=scale)


def updated(begin: bool, end: bool) -> Build:
    """``slice_update`` of two rows whose begin, or end, is known when the program runs only."""

    def build(x: Any, update: Any, at: Any) -> Any:
        first = mb.concat(values=[at, [0]], axis=0, name="first") if begin else [1, 0]
        last = mb.concat(values=[at, [8]], axis=0, name="last") if end else [3, 8]
        return mb.slice_update(x=x, update=update, begin=first, end=last, name="out")

    return build


# what is read of a program: its relations, a line each
READ: dict[str, tuple[Build, dict[str, Callable[[], Any]], list[str]]] = {
    "a convolution": (
        lambda x: mb.relu(x=mb.conv(x=x, weight=CONV)),
        {"x": lambda: fp32(1, 8, 1, 6)},
        [
            "Fixed: -> 0[-|0|-|1]",
            "conv: 0[-|0|-|1]{0=0,1=1} -> 1[-|0|-|1]{0=0,1=1} whole=[0]",
            "relu: 1[-|0|-|1]{0=0,1=1} -> 2[-|0|-|1]{0=0,1=1} broadcasts=True",
        ],
    ),
    "a convolution of several": (
        lambda x: mb.conv(x=x, weight=CONV),
        {"x": lambda: fp32(2, 8, 3, 6)},
        [
            "Fixed: -> 0[0|1|2|3]",
            "conv: 0[0|1|2|3]{0=0,1=1,2=2,3=3} -> 1[0|1|2|3]{0=0,1=1,2=2,3=3} whole=[1] channel=1 batch=(0,)",
        ],
    ),
    "a convolution of rows": (
        lambda x: mb.conv(x=x, weight=np.ones((5, 8, 1), F32)),
        {"x": lambda: fp32(1, 8, 6)},
        ["Fixed: -> 0[-|0|1]", "conv: 0[-|0|1]{0=0,1=1} -> 1[-|0|1]{0=0,1=1} whole=[0] rank=3"],
    ),
    "one channel": (
        lambda x: mb.conv(x=x, weight=np.ones((5, 1, 1, 1), F32)),
        {"x": lambda: fp32(1, 1, 2, 6)},
        ["Fixed: -> 0[-|-|0|1]", "conv: 0[-|-|0|1]{0=-,1=0,2=1} -> 1[-|0|1|2]{0=0,1=1,2=2} whole=[0]"],
    ),
    "a compressed weight": (
        lambda x: mb.conv(x=x, weight=compressed(5, 8, 1, 1)),
        {"x": lambda: fp32(1, 8, 1, 6)},
        [
            "Fixed: -> 0[-|0|-|1]",
            "constexpr_blockwise_shift_scale: -> 1[0|1|-|-]",
            "conv: 0[-|0|-|1]{0=0,1=1} -> 2[-|0|-|1]{0=0,1=1} whole=[0]",
        ],
    ),
    "a compressed weight of a linear layer": (
        lambda x: mb.linear(x=x, weight=compressed(5, 8)),
        {"x": lambda: fp32(6, 8)},
        [
            "Fixed: -> 0[0|1]",
            "constexpr_blockwise_shift_scale: -> 1[0|1]",
            "linear: 0[0|1]{0=0,1=1} -> 2[0|1]{0=0,1=1} whole=[1] channel=1",
        ],
    ),
    "a weight that is computed": (
        lambda x: mb.linear(x=x, weight=known(np.ones((5, 8), F32))),
        {"x": lambda: fp32(6, 8)},
        ["Fixed: -> 0[0|1]", "identity: -> 1[0|1]", "linear: 0[0|1] 1[0|1] -> 2[0|1]"],
    ),
    "a bias that is computed": (
        lambda x: mb.conv(x=x, weight=CONV, bias=known(np.ones(5, F32))),
        {"x": lambda: fp32(1, 8, 1, 6)},
        ["Fixed: -> 0[-|0|-|1]", "identity: -> 1[0]", "conv: 0[-|0|-|1] 1[0] -> 2[-|0|-|1]"],
    ),
    "linear layers": (
        lambda x: mb.linear(x=x, weight=np.ones((5, 8), F32)),
        {"x": lambda: fp32(6, 8)},
        ["Fixed: -> 0[0|1]", "linear: 0[0|1]{0=0,1=1} -> 1[0|1]{0=0,1=1} whole=[1] channel=1"],
    ),
    "linear layers of rank 4": (
        lambda x: mb.linear(x=x, weight=np.ones((5, 8), F32)),
        {"x": lambda: fp32(1, 2, 6, 8)},
        [
            "Fixed: -> 0[-|0|1|2]",
            "linear: 0[-|0|1|2]{0=0,1=1,2=2} -> 1[-|0|1|2]{0=0,1=1,2=2} whole=[2] channel=2 rank=4",
        ],
    ),
    "a product": (
        lambda x, y: mb.matmul(x=x, y=y, transpose_y=True),
        {"x": lambda: fp32(1, 2, 6, 8), "y": lambda: fp32(1, 2, 3, 8)},
        [
            "Fixed: -> 0[-|0|1|2]",
            "Fixed: -> 1[-|0|1|2]",
            "matmul: 0[-|0|1|2]{0=0,1=1,2=2} 1[-|0|1|2]{0=0,2=2,3=1} -> 2[-|0|1|2]{0=0,1=1,3=2} "
            "inner=(2,) rows=(1,) columns=(3,)",
        ],
    ),
    "a product that broadcasts": (
        lambda x, y: mb.matmul(x=x, y=y),
        {"x": lambda: fp32(1, 6, 8), "y": lambda: fp32(2, 8, 5)},
        [
            "Fixed: -> 0[-|0|1]",
            "Fixed: -> 1[0|1|2]",
            "matmul: 0[-|0|1]{0=0,1=1} 1[0|1|2]{1=1,2=0,3=2} -> 2[0|1|2]{0=1,2=0,3=2} "
            "inner=(1,) rows=(0,) columns=(3,)",
        ],
    ),
    "a product of heads": (
        lambda x, y: mb.matmul(x=x, y=mb.reshape(x=y, shape=[4, 3, 1])),
        {"x": lambda: fp32(4, 6, 3), "y": lambda: fp32(12)},
        [
            "Fixed: -> 0[0|1|2]",
            "Fixed: -> 1[01]",
            "matmul: 0[0|1|2]{0=0,1=1,2=2} 1[0|1|-]{0=0,2=1} -> 2[0|1|-]{0=0,1=1} inner=(2,) rows=(1,)",
        ],
    ),
    "joined axes": (
        lambda x, y: mb.add(x=mb.relu(x=mb.reshape(x=x, shape=[2, 12])), y=y),
        {"x": lambda: fp32(2, 3, 4), "y": lambda: fp32(12)},
        [
            "Fixed: -> 0[0|1|2]",
            "Fixed: -> 1[01]",
            "relu: 0[0|12]{0=0,1=1,2=2} -> 2[0|12]{0=0,1=1,2=2} broadcasts=True",
            "add: 2[0|12]{0=0,1=1,2=2} 1[01]{1=0,2=1} -> 3[0|12]{0=0,1=1,2=2} broadcasts=True",
        ],
    ),
    "joined axes that are normed": (
        lambda x: mb.softmax(x=mb.reshape(x=x, shape=[2, 12]), axis=1),
        {"x": lambda: fp32(2, 3, 4)},
        ["Fixed: -> 0[0|1|2]", "softmax: 0[0|12]{0=0,1=12} -> 1[0|1]{0=0,1=1} whole=[1]"],
    ),
    "constants": (
        lambda x: mb.mul(x=mb.add(x=x, y=np.ones((6, 1), F32)), y=np.ones(8, F32)),
        {"x": lambda: fp32(1, 6, 8)},
        [
            "Fixed: -> 0[-|0|1]",
            "add: 0[-|0|1]{0=0,1=1} -> 1[-|0|1]{0=0,1=1} broadcasts=True constants=[[0]]",
            "mul: 1[-|0|1]{0=0,1=1} -> 2[-|0|1]{0=0,1=1} broadcasts=True constants=[[1]]",
        ],
    ),
    "a length that is not known": (
        lambda x: mb.mul(x=x, y=np.ones(8, F32)),
        {"x": lambda: fp32(1, SYMBOL, 8)},
        [
            "Fixed: -> 0[-|0|1]",
            "mul: 0[-|0|1]{0=0,1=1} -> 1[-|0|1]{0=0,1=1} broadcasts=True constants=[[1]] unknown=[0]",
        ],
    ),
    "two lengths that are not known": (
        lambda x: mb.relu(x=x),
        {"x": lambda: fp32(SYMBOL, 3, OTHER)},
        [
            "Fixed: -> 0[0|1|2]",
            "relu: 0[0|1|2]{0=0,1=1,2=2} -> 1[0|1|2]{0=0,1=1,2=2} broadcasts=True unknown=[0, 2]",
        ],
    ),
    "what works along an axis, of lengths that are not known": (
        lambda x: mb.softmax(x=x, axis=2),
        {"x": lambda: fp32(SYMBOL, 3, 8)},
        [
            "Fixed: -> 0[0|1|2]",
            "softmax: 0[0|1|2]{0=0,1=1,2=2} -> 1[0|1|2]{0=0,1=1,2=2} unknown=[0, 2] whole=[2]",
        ],
    ),
    "a state in its own layout": (
        lambda x, held: mb.coreml_update_state(state=held, value=mb.add(x=x, y=mb.read_state(input=held))),
        {"x": lambda: fp16(6, 8), "held": lambda: state(6, 8)},
        [
            "Fixed: -> 0[0|1]",
            "read_state: -> 1[0|1]",
            "add: 0[0|1]{0=0,1=1} 1[0|1]{0=0,1=1} -> 2[0|1]{0=0,1=1} broadcasts=True",
            "coreml_update_state: 2[0|1] -> 3[0|1]",
        ],
    ),
    "a sum": (
        lambda x: mb.reduce_sum(x=x, axes=[1], keep_dims=False),
        {"x": lambda: fp32(2, 6, 8)},
        ["Fixed: -> 0[0|1|2]", "reduce_sum: 0[0|1|2]{0=0,1=1,2=2} -> 1[0|1]{0=0,2=1} drops=[1]"],
    ),
    "a sum of all": (
        lambda x: mb.mul(x=mb.reduce_sum(x=x, keep_dims=False), y=x),
        {"x": lambda: fp32(6, 8)},
        [
            "Fixed: -> 0[0|1]",
            "reduce_sum: 0[0|1]{0=0,1=1} -> 1[] drops=[0, 1]",
            "mul: 1[] 0[0|1]{0=0,1=1} -> 2[0|1]{0=0,1=1} broadcasts=True",
        ],
    ),
    "parts": (
        lambda x: mb.concat(values=mb.split(x=x, split_sizes=[1, 5], axis=1)[::-1], axis=1),
        {"x": lambda: fp32(1, 6, 8)},
        [
            "Fixed: -> 0[-|0|1]",
            "split: 0[-|0|1]{0=0,1=1} -> 1[-|-|0]{1=0} 2[-|0|1]{0=0,1=1} whole=[0]",
            "concat: 2[-|0|1]{0=0,1=1} 1[-|-|0]{1=0} -> 3[-|0|1]{0=0,1=1} whole=[0]",
        ],
    ),
    "an update": (
        updated(begin=False, end=False),
        {"x": lambda: fp32(4, 8), "update": lambda: fp32(2, 8), "at": lambda: ints(1)},
        [
            "Fixed: -> 0[0|1]",
            "Fixed: -> 1[0|1]",
            "Fixed: -> 2[-]",
            "slice_update: 0[0|1]{0=0,1=1} 1[0|1]{0=0,1=1} -> 3[0|1]{0=0,1=1} whole=[0]",
        ],
    ),
    "an update somewhere": (
        updated(begin=True, end=True),
        {"x": lambda: fp32(4, 8), "update": lambda: fp32(2, 8), "at": lambda: ints(1)},
        [
            "Fixed: -> 0[0|1]",
            "Fixed: -> 1[0|1]",
            "Fixed: -> 2[-]",
            "concat: 2[-] -> 3[0]",
            "concat: 2[-] -> 4[0]",
            "slice_update: 0[0|1]{0=0,1=1} 1[0|1]{0=0,1=1} -> 5[0|1]{0=0,1=1} whole=[0]",
            "Fixed: 3[0] 4[0] ->",
        ],
    ),
    "an update that ends somewhere": (
        updated(begin=False, end=True),
        {"x": lambda: fp32(4, 8), "update": lambda: fp32(2, 8), "at": lambda: ints(1)},
        [
            "Fixed: -> 0[0|1]",
            "Fixed: -> 1[0|1]",
            "Fixed: -> 2[-]",
            "concat: 2[-] -> 3[0]",
            "slice_update: 0[0|1]{0=0,1=1} 1[0|1]{0=0,1=1} -> 4[0|1]{0=0,1=1} whole=[0]",
            "Fixed: 3[0] ->",
        ],
    ),
    "an update of a constant": (
        lambda x: mb.slice_update(x=np.ones((4, 8), F32), update=x, begin=[0, 0], end=[2, 8]),
        {"x": lambda: fp32(2, 8)},
        ["Fixed: -> 0[0|1]", "slice_update: 0[0|1] -> 1[0|1]"],
    ),
    "an update by a constant": (
        lambda x: mb.slice_update(x=x, update=np.ones((2, 8), F32), begin=[0, 0], end=[2, 8]),
        {"x": lambda: fp32(4, 8)},
        ["Fixed: -> 0[0|1]", "slice_update: 0[0|1] -> 1[0|1]"],
    ),
    "an op without an entry": (
        lambda x, y: mb.gather(x=mb.add(x=x, y=y), indices=[0], axis=1),
        {"x": lambda: fp32(1, 6, 8), "y": lambda: fp32(1, 6, 8)},
        [
            "Fixed: -> 0[-|0|1]",
            "Fixed: -> 1[-|0|1]",
            "add: 0[-|0|1]{0=0,1=1} 1[-|0|1]{0=0,1=1} -> 2[-|0|1]{0=0,1=1} broadcasts=True",
            "gather: 2[-|0|1] -> 3[-|-|0]",
        ],
    ),
    "a value used twice": (
        lambda x: mb.scaled_dot_product_attention(query=x, key=x, value=x),
        {"x": lambda: fp32(1, 2, 6, 8)},
        ["Fixed: -> 0[-|0|1|2]", "scaled_dot_product_attention: 0[-|0|1|2] -> 1[-|0|1|2]"],
    ),
    "a list": (
        lambda x: mb.list_read(ls=mb.identity(x=mb.list_write(ls=lists(), index=0, value=x)), index=0),
        {"x": lambda: fp32(6, 8)},
        [
            "Fixed: -> 0[0|1]",
            "make_list: ->",
            "list_write: 0[0|1] ->",
            "identity: ->",
            "list_read: -> 1[0|1]",
        ],
    ),
    "nested blocks": (
        lambda x, y, flag: mb.cond(
            pred=mb.squeeze(x=flag, axes=[0]),
            _true_fn=lambda: mb.exp(x=mb.add(x=x, y=x)),
            _false_fn=lambda: y,
        ),
        {"x": lambda: fp32(6, 8), "y": lambda: fp32(6, 8), "flag": lambda: mb.placeholder((1,), types.bool)},
        [
            "Fixed: -> 0[0|1]",
            "Fixed: -> 1[0|1]",
            "Fixed: -> 2[-]",
            "cond: 2[] 0[0|1] 1[0|1] -> 3[0|1]",
        ],
    ),
    "a constant that is turned": (
        lambda x: mb.add(x=x, y=mb.transpose(x=mb.const(val=np.ones((8, 6), F32)), perm=[1, 0])),
        {"x": lambda: fp32(6, 8)},
        [
            "Fixed: -> 0[0|1]",
            "transpose: -> 1[0|1]",
            "add: 0[0|1]{0=0,1=1} 1[0|1]{0=0,1=1} -> 2[0|1]{0=0,1=1} broadcasts=True",
        ],
    ),
    "an order that is computed": (
        lambda x: mb.exp(x=mb.transpose(x=x, perm=known(np.array([1, 0], np.int32)))),
        {"x": lambda: fp32(6, 8)},
        [
            "Fixed: -> 0[0|1]",
            "identity: -> 1[0]",
            "transpose: 0[0|1] 1[0] -> 2[0|1]",
            "exp: 2[0|1]{0=0,1=1} -> 3[0|1]{0=0,1=1} broadcasts=True",
        ],
    ),
    "cuts that do not fit": (
        lambda x: mb.exp(x=mb.reshape(x=x, shape=[4, 6])),
        {"x": lambda: fp32(6, 4)},
        [
            "Fixed: -> 0[0|1]",
            "reshape: 0[0|1] -> 1[0|1]",
            "exp: 1[0|1]{0=0,1=1} -> 2[0|1]{0=0,1=1} broadcasts=True",
        ],
    ),
}


def lists() -> Any:
    return mb.make_list(init_length=2, elem_shape=(6, 8), dtype="fp32")


@pytest.mark.parametrize("name", READ)
def test_relations(name: str) -> None:
    build, inputs, wanted = READ[name]
    assert relations(read_of(build, **{each: make() for each, make in inputs.items()})) == wanted


def test_moves_are_layouts_of_one_tensor() -> None:
    def build(x: Any) -> Any:
        unit = mb.reshape(x=x, shape=[2, 1, 3, 8], name="unit")
        cut = mb.reshape(x=unit, shape=[6, 2, 4], name="cut")
        wide = mb.expand_dims(x=cut, axes=[0], name="wide")
        turned = mb.transpose(x=wide, perm=[0, 2, 1, 3], name="turned")
        return mb.squeeze(x=turned, axes=[0], name="out"), wide

    reading = read_of(build, x=fp32(2, 3, 8))
    assert places(reading) == {
        "x": "0[0|1|23]",
        "unit": "0[0|-|1|23]",
        "cut": "0[01|2|3]",
        "wide": "0[-|01|2|3]",
        "turned": "0[-|2|01|3]",
        "out": "0[2|01|3]",
    }
    assert tensors(reading) == ["2 x 3 x 2 x 4 wanted -|01|2|3 wanted 2|01|3"]
    # a reshape that adds a unit axis moves nothing, one that joins and cuts all; an op is a trifle more
    assert moves(reading) == {"unit": OP, "cut": 48 + OP, "wide": OP, "turned": 48 + OP, "out": OP}
    assert [len(reading.graph.tensors), len(reading.graph.relations), len(reading.nodes)] == [1, 1, 1]
    assert reading.nodes[0].op is None


def test_what_a_move_counts() -> None:
    """A reshape that keeps all axes moves nothing, nor does one whose new axis has length 1; others move all."""

    def build(x: Any) -> Any:
        return (
            mb.reshape(x=x, shape=[1, 6, 1, 8], name="unit"),
            mb.reshape(x=x, shape=[48], name="joined"),
            mb.reshape(x=x, shape=[6, 2, 4], name="cut"),
            mb.transpose(x=x, perm=[0, 1], name="same"),
        )

    wanted = {"unit": OP, "joined": 48 + OP, "cut": 48 + OP, "same": 48 + OP}
    assert moves(read_of(build, x=fp32(6, 8))) == wanted


def test_a_reshape_that_can_not_be_told_is_an_op() -> None:
    reading = read_of(lambda x: mb.reshape(x=x, shape=[4, 6], name="out"), x=fp32(6, 4))
    assert reading.moves == {}
    assert places(reading) == {"x": "0[0|1]", "out": "1[0|1]"}


@pytest.mark.parametrize("sequence", [1, 10])
def test_lengths_that_are_not_known_are_counted(sequence: int) -> None:
    program = program_of(lambda x: mb.exp(x=x, name="out"), x=fp32(OTHER, SYMBOL, 3))
    function = program.functions["main"]
    for var in (function.inputs["x"], function.outputs[0]):
        declare(var, (OTHER, 2 * SYMBOL, 3))
    reading = read(function, sequence)
    line = f"{sequence} x {2 * sequence} x 3 ({OTHER} x {2 * SYMBOL} x 3)"
    assert tensors(reading) == [line, f"{line} wanted 0|1|2"]
    assert reading.graph.tensors[0].elements == 6 * sequence**2
    assert relations(reading)[1].endswith("unknown=[0, 1]")


@pytest.mark.parametrize(
    ("build", "name", "shape", "why"),
    [
        (lambda x: mb.add(x=x, y=x, name="out"), "out", (3, 6, 8), "out has 3 on axis 0, where the others have 1"),
        (
            lambda x: mb.softmax(x=x, axis=1, name="out"),
            "out",
            (1, 6, 9),
            "x has 8 on axis 2 where out has 9 on axis 2",
        ),
        (
            lambda x: mb.reduce_sum(x=x, axes=[1], keep_dims=True, name="out"),
            "out",
            (1, 5, 8),
            "out has 5 on axis 1, where the others have 1",
        ),
        (lambda x: mb.softmax(x=x, axis=1, name="out"), "out", (1, 7, 8), None),
        (
            lambda x: mb.softmax(x=x, axis=2, name="out"),
            "out",
            (1, SYMBOL, 8),
            f"x has 6 on axis 1 where out has {SYMBOL} on axis 1",
        ),
        (
            lambda x: mb.matmul(x=x, y=mb.exp(x=x, name="y"), transpose_y=True, name="out"),
            "out",
            (1, 1, 6),
            "x has 6 on axis 1, where the others have 1",
        ),
    ],
    ids=["batch", "size kept", "size reduced", "size reduced over", "symbol kept", "size contracted"],
)
def test_types_that_disagree(build: Build, name: str, shape: Sequence[Any], why: str | None) -> None:
    """Such an op is none of those that are laid out; what works along an axis may change its length."""
    program = program_of(build, x=fp32(1, 6, 8))
    function = program.functions["main"]
    (op,) = [op for op in function.operations if op.name == name]
    declare(op.outputs[0], shape)
    reading = read(function, 64)
    assert {each.name: told for each, told in reading.disputed.items()} == ({} if why is None else {name: why})
    (node,) = [node for node in reading.nodes if node.op is op]
    assert (node.spec is None) == (why is not None)


def test_a_transpose_of_another_shape_is_an_op() -> None:
    program = program_of(lambda x: mb.exp(x=mb.transpose(x=x, perm=[1, 0], name="turned")), x=fp32(6, 8))
    function = program.functions["main"]
    declare(function.outputs[0], (8, 7))
    (op,) = [op for op in function.operations if op.name == "turned"]
    declare(op.outputs[0], (8, 7))
    reading = read(function, 64)
    assert reading.moves == {}
    assert relations(reading)[1] == "transpose: 0[0|1] -> 1[0|1]"


def test_what_a_node_knows() -> None:
    """The labels of its keys with their sizes (0 for what it works along), and all inputs."""

    def build(x: Any) -> Any:
        y = mb.add(x=mb.reshape(x=x, shape=[2, 1, 12]), y=np.ones(12, F32))
        return mb.softmax(x=y, axis=0)

    reading = read_of(build, x=fp32(2, 3, 4))
    add, softmax = reading.nodes[1:]
    assert add.op is not None
    assert softmax.op is not None
    assert (add.labels, add.sizes) == ({0: (0,), 2: (1, 2)}, {0: 2, 1: 3, 2: 4})
    assert (softmax.labels, softmax.sizes) == ({0: (0,), 2: (1, 2)}, {0: 0, 1: 3, 2: 4})
    assert add.inputs == dict(add.op.inputs)
    assert [*softmax.inputs] == ["x", "axis"]


def test_what_is_read_stays_as_it_is() -> None:
    reading = read_of(lambda x: mb.relu(x=x), x=fp32(6, 8))
    for held, name in ((reading, "graph"), (reading.nodes[1], "op"), (Edge(1, 0), "port")):
        with pytest.raises(FrozenInstanceError):
            setattr(held, name, None)


# Inputs, outputs and states that may take other layouts.


def state(*shape: int) -> Any:
    return mb.state_tensor_placeholder(shape=shape, dtype=types.fp16)


Made = tuple[Callable[..., Any], Callable[[], dict[str, Any]]]


def functions_of(**functions: Made) -> Program:
    """A program of several functions: what is made of which inputs."""
    program = Program()
    for name, (build, inputs) in functions.items():
        with Function(inputs(), opset_version=target.iOS18) as function:
            function.set_outputs(list(flat(build(**dict(function.inputs)))))
        program.add_function(name, function)
    return program


def freed(kept: Mapping[str, frozenset[str]] | None = None, /, **functions: Made) -> list[str]:
    """What is free in each function, by the relation that it belongs to; tied values by those they are tied with."""
    readings = read_free(functions_of(**functions).functions, 64, kept or {})
    found: list[str] = []
    for name, reading in readings.items():
        assert reading.graph is readings[next(iter(readings))].graph
        for edges in (reading.inputs, reading.outputs, reading.accesses):
            for value, edge in edges.items():
                var = value if isinstance(value, Var) else value.outputs[0]
                relation = reading.graph.relations[edge.relation]
                port = relation.ports[edge.port]
                assert (port.tensor, port.home) == reading.places[var]
                assert reading.graph.tensors[port.tensor].wanted == set()
                if edge.other is not None:
                    written = relation.ports[edge.other]
                    assert not isinstance(value, Var)
                    assert (written.tensor, written.home) == reading.places[value.inputs["value"]]
                others = "" if edge.other is None else f" and {edge.other}"
                found.append(f"{name} {var.name}: {type(relation).__name__} {edge.relation}, port {edge.port}{others}")
    return found


def free_relations(**functions: Made) -> list[str]:
    return relations(next(iter(read_free(functions_of(**functions).functions, 64, {}).values())))


def test_inputs_and_outputs_are_free() -> None:
    made: Made = (lambda x, y: mb.add(x=x, y=y, name="out"), lambda: {"x": fp32(1, 6, 8), "y": fp32(1, 6, 8)})
    assert freed(main=made) == ["main x: Free 0, port 0", "main y: Free 1, port 0", "main out: Free 3, port 0"]
    assert freed({"main": frozenset({"x"})}, main=made) == ["main y: Free 1, port 0", "main out: Free 3, port 0"]
    assert freed({"main": frozenset({"out"})}, main=made) == ["main x: Free 0, port 0", "main y: Free 1, port 0"]
    assert len(freed({"other": frozenset({"out", "x"})}, main=made)) == 3
    assert free_relations(main=made) == [
        "Free: -> 0[-|0|1]",
        "Free: -> 1[-|0|1]",
        "add: 0[-|0|1]{0=0,1=1} 1[-|0|1]{0=0,1=1} -> 2[-|0|1]{0=0,1=1} broadcasts=True",
        "Free: 2[-|0|1] ->",
    ]


def test_nothing_is_free_in_public_layouts() -> None:
    reading = read_of(lambda x: mb.exp(x=x), x=fp32(6, 8))
    assert (reading.inputs, reading.outputs, reading.accesses) == ({}, {}, {})
    assert tensors(reading) == ["6 x 8", "6 x 8 wanted 0|1"]


def test_what_has_one_layout_is_not_free() -> None:
    """One axis longer than 1, lengths that are not known; an input that is an output as well."""
    assert freed(main=(lambda x: mb.exp(x=x), lambda: {"x": fp32(1, 8, 1)})) == []
    assert freed(main=(lambda x: mb.exp(x=x), lambda: {"x": fp32(6, SYMBOL, 8)})) == []
    assert freed(main=(lambda x: (x, mb.exp(x=x, name="out")), lambda: {"x": fp32(6, 8)})) == [
        "main out: Free 2, port 0"
    ]
    assert freed(main=(lambda x: mb.exp(x=x, name="out"), lambda: {"x": fp32(2, 2)})) == [
        "main x: Free 0, port 0",
        "main out: Free 2, port 0",
    ]


def pasts() -> dict[str, Any]:
    return {"past_x": fp32(6, 8), "x": fp32(2, 8)}


def joined(past_x: Any, x: Any) -> Any:
    return mb.exp(x=mb.concat(values=[mb.relu(x=past_x), x], axis=0), name="present_x")


def held(past: Any, x: Any) -> Any:
    return mb.concat(values=[past, mb.exp(x=x)], axis=0, name="out")


def test_what_comes_out_has_the_order_of_what_went_in() -> None:
    named: Made = (joined, pasts)
    assert freed(main=named) == [
        "main x: Free 0, port 0",
        "main past_x: Tied 4, port 1",
        "main present_x: Tied 4, port 0",
    ]
    assert free_relations(main=named)[-1] == "Tied: 4[0|1] -> 0[0|1]"
    unnamed: Made = (held, lambda: {"past": fp32(6, 8), "x": fp32(2, 8)})
    assert freed(main=unnamed) == ["main x: Free 0, port 0", "main past: Tied 3, port 1", "main out: Tied 3, port 0"]


def test_other_outputs_are_not_tied() -> None:
    def build(past_x: Any, x: Any) -> Any:
        return mb.relu(x=x, name="first"), joined(past_x, x), mb.exp(x=past_x, name="last")

    assert freed(main=(build, pasts)) == [
        "main x: Free 0, port 0",
        "main past_x: Tied 8, port 1",
        "main first: Free 6, port 0",
        "main last: Free 7, port 0",
        "main present_x: Tied 8, port 0",
    ]


def test_an_output_of_the_right_name_comes_before_a_concat() -> None:
    def build(past_x: Any, x: Any) -> Any:
        both = mb.concat(values=[past_x, mb.relu(x=x)], axis=0, name="both")
        return both, mb.exp(x=both, name="present_x")

    tied = [each for each in freed(main=(build, pasts)) if "past_x" in each or "present_x" in each]
    assert tied == ["main past_x: Tied 5, port 1", "main present_x: Tied 5, port 0"]
    without: Made = (lambda past_x, x: mb.concat(values=[past_x, mb.relu(x=x)], axis=0, name="both"), pasts)
    assert "main both: Tied 3, port 0" in freed(main=without)


def test_what_only_looks_like_a_past() -> None:
    """No output of that name; an output of another rank; a concat that is no output; another op."""
    alone: Made = (lambda past_x, x: mb.exp(x=joined(past_x, x), name="out"), pasts)
    wide: Made = (
        lambda past_x, x: mb.expand_dims(x=mb.exp(x=mb.concat(values=[past_x, x], axis=0)), axes=[0], name="present_x"),
        pasts,
    )
    added: Made = (lambda past, x: mb.add(x=past, y=x, name="out"), lambda: {"past": fp32(6, 8), "x": fp32(6, 8)})
    inner: Made = (
        lambda a_past_x, x: mb.exp(x=mb.concat(values=[a_past_x, x], axis=0), name="a_present_x"),
        lambda: {"a_past_x": fp32(6, 8), "x": fp32(2, 8)},
    )
    for made in (alone, wide, added, inner):
        assert [each.partition(":")[2].split()[0] for each in freed(main=made)] == ["Free"] * 3


def test_pairs_that_can_not_change_are_pinned() -> None:
    """Neither of a pair changes where one can't; other functions' values of these names stay as well."""
    for name in ("past_x", "present_x"):
        assert freed({"main": frozenset({name})}, main=(joined, pasts)) == ["main x: Free 1, port 0"]
    passed: Made = (lambda past_x, x: (joined(past_x, x), past_x), pasts)
    assert freed(main=passed) == ["main x: Free 1, port 0"]
    through: Made = (
        lambda past_x, present_x: (present_x, mb.add(x=past_x, y=x_of(present_x), name="y")),
        lambda: {"past_x": fp32(6, 8), "present_x": fp32(6, 8)},
    )
    assert freed(main=through) == ["main y: Free 4, port 0"]
    small: Made = (joined, lambda: {"past_x": fp32(1, 8), "x": fp32(2, 8)})
    assert freed(main=small) == ["main x: Free 1, port 0"]
    both = freed(main=(joined, pasts), other=small)
    assert both == ["main x: Free 1, port 0", "other x: Free 6, port 0"]


def x_of(value: Any) -> Any:
    return mb.exp(x=value)


@pytest.mark.parametrize("first", [True, False])
def test_a_function_that_only_gives_what_another_takes(first: bool) -> None:
    """Whichever comes first, both have one order."""
    begins: Made = (lambda x: mb.exp(x=x, name="present_x"), lambda: {"x": fp32(2, 8)})
    goes_on: Made = (joined, pasts)
    order = [("begin", begins), ("go_on", goes_on)]
    found = freed(**dict(order if first else order[::-1]))
    tied = [each for each in found if "Tied" in each]
    assert sorted(each.partition(":")[0] for each in tied) == ["begin present_x", "go_on past_x", "go_on present_x"]
    assert len({each.partition(": ")[2].partition(",")[0] for each in tied}) == 1
    assert sorted(each.split("port ")[1] for each in tied) == ["0", "1", "2"]
    begins = (lambda x: mb.exp(x=x, name="present_x"), lambda: {"x": fp32(SYMBOL, 8)})
    order = [("begin", begins), ("go_on", (joined, pasts))]
    assert [each.partition(":")[0] for each in freed(**dict(order if first else order[::-1]))] == ["go_on x"]


def test_states_are_one_for_all_functions() -> None:
    writes: Made = (
        lambda x, h: mb.exp(x=mb.coreml_update_state(state=h, value=mb.exp(x=x), name="updated"), name="out"),
        lambda: {"x": fp16(6, 8), "h": state(6, 8)},
    )
    reads: Made = (
        lambda h: (
            mb.exp(x=mb.read_state(input=h, name="read"), name="y"),
            mb.relu(x=mb.read_state(input=h, name="again")),
        ),
        lambda: {"h": state(6, 8)},
    )
    assert [each for each in freed(decode=writes, main=reads) if "Tied" in each] == [
        "decode updated: Tied 8, port 1 and 0",
        "main read: Tied 8, port 2",
        "main again: Tied 8, port 3",
    ]
    assert free_relations(decode=writes, main=reads)[-1] == "Tied: 1[0|1] -> 2[0|1] 4[0|1] 6[0|1]"


def test_two_states() -> None:
    def build(x: Any, a: Any, b: Any) -> Any:
        one = mb.coreml_update_state(state=a, value=mb.exp(x=x), name="one")
        return mb.coreml_update_state(state=b, value=mb.add(x=one, y=mb.read_state(input=b, name="two")), name="three")

    found = freed(main=(build, lambda: {"x": fp16(6, 8), "a": state(6, 8), "b": state(6, 8)}))
    assert found == [
        "main x: Free 0, port 0",
        "main three: Free 3, port 0",
        "main one: Tied 4, port 1 and 0",
        "main two: Tied 5, port 1",
        "main three: Tied 5, port 2 and 0",
    ]


def stateful(build: Callable[..., Any], held: tuple[int, ...] = (6, 8)) -> Made:
    return build, lambda: {"x": fp16(6, 8), "h": state(*held)}


def written_to(state: Any, value: Any) -> Any:
    return mb.coreml_update_state(state=state, value=value, name="out")


def test_states_that_stay() -> None:
    """One of one axis, and one that is written with a constant, be it in another function."""
    plain = stateful(lambda x, h: written_to(h, mb.exp(x=x)))
    assert [each for each in freed(main=plain) if "Tied" in each] == ["main out: Tied 3, port 1 and 0"]
    short: Made = (lambda x, h: written_to(h, mb.exp(x=x)), lambda: {"x": fp16(1, 8), "h": state(1, 8)})
    constant = stateful(lambda x, h: written_to(h, np.ones((6, 8), F16)))
    for made in (short, constant):
        assert not [each for each in freed(main=made) if "Tied" in each]
        assert not [each for each in freed(main=plain, other=made) if "Tied" in each]
        assert not [each for each in freed(other=made, main=plain) if "Tied" in each]
    assert free_relations(main=short) == [
        "Fixed: -> 0[-|0]",
        "exp: 0[-|0]{0=0} -> 1[-|0]{0=0} broadcasts=True",
        "coreml_update_state: 1[-|0] -> 2[-|0]",
    ]


def test_a_state_that_is_not_used() -> None:
    assert freed(main=stateful(lambda x, h: mb.exp(x=x, name="out"))) == [
        "main x: Free 0, port 0",
        "main out: Free 2, port 0",
    ]


def test_a_state_that_an_unknown_op_reads_stays() -> None:
    program = functions_of(
        main=stateful(lambda x, h: mb.add(x=written_to(h, mb.exp(x=x)), y=mb.read_state(input=h, name="hidden")))
    )
    (op,) = [op for op in program.functions["main"].operations if op.name == "hidden"]
    kind: Any = opaque_class("mystery")
    op.__class__ = kind
    assert read_free(program.functions, 64, {})["main"].accesses == {}


def test_states_of_nested_blocks_stay() -> None:
    def build(x: Any, h: Any) -> Any:
        y = mb.add(x=x, y=mb.read_state(input=h))
        return mb.cond(
            pred=mb.greater(x=mb.reduce_sum(x=x, keep_dims=False), y=F16(0)),
            _true_fn=lambda: mb.coreml_update_state(state=h, value=mb.relu(x=y)),
            _false_fn=lambda: mb.identity(x=y),
            name="out",
        )

    assert freed(main=stateful(build)) == ["main x: Free 0, port 0", "main out: Free 6, port 0"]


def test_what_nested_blocks_give_stays() -> None:
    """Of all outputs the function's own are free, if they may be; the others are needed as they are."""

    def build(x: Any, flag: Any) -> Any:
        y, z = mb.exp(x=x, name="y"), mb.relu(x=x, name="z")
        pred = mb.squeeze(x=flag, axes=[0])
        return mb.cond(pred=pred, _true_fn=lambda: mb.sin(x=x), _false_fn=lambda: y, name="out"), z

    program = program_of(build, x=fp32(6, 8), flag=mb.placeholder((1,), types.bool))
    reading = read_free(program.functions, 64, {"main": frozenset({"z"})})["main"]
    assert [var.name for var in reading.outputs] == ["out"]
    wanted = [reading.graph.tensors[reading.places[var][0]].wanted for var in (*program.functions["main"].outputs,)]
    assert wanted == [set(), {((0,), (1,))}]
    assert tensors(reading)[2] == "6 x 8 wanted 0|1"


def test_a_state_of_another_shape_than_what_is_written() -> None:
    """It stays, and what is wrong is said; a state that is one all along has nothing wrong."""
    for changed, why in (("value", "value is (6, 9), the state (6, 8)"), ("read", "read is (6, 9), the state (6, 8)")):
        program = functions_of(
            main=stateful(
                lambda x, h: (
                    mb.read_state(input=h, name="read"),
                    mb.coreml_update_state(state=h, value=mb.exp(x=x, name="value"), name="updated"),
                )
            )
        )
        (var,) = [op.outputs[0] for op in program.functions["main"].operations if op.name == changed]
        declare(var, (6, 9))
        reading = read_free(program.functions, 64, {})["main"]
        assert reading.accesses == {}
        assert [*reading.disputed.values()] == [why]
    short: Made = (
        lambda x, h: mb.coreml_update_state(state=h, value=mb.exp(x=x), name="out"),
        lambda: {"x": fp16(1, 8), "h": state(1, 8)},
    )
    reading = read_free(functions_of(main=short).functions, 64, {})["main"]
    assert (reading.accesses, reading.disputed) == ({}, {})


def test_a_state_is_cut_as_what_is_read_and_written() -> None:
    """What a reshape cuts behind a read is cut before a write."""

    def build(x: Any, h: Any) -> Any:
        cut = mb.reshape(x=mb.read_state(input=h, name="read"), shape=[6, 2, 4], name="cut")
        return cut, mb.coreml_update_state(state=h, value=mb.exp(x=x, name="value"), name="updated")

    reading = read_free(functions_of(main=stateful(build)).functions, 64, {})["main"]
    found = {name: place.partition("[")[2] for name, place in places(reading).items()}
    assert found == {"x": "0|12]", "value": "0|12]", "read": "0|12]", "cut": "0|1|2]", "updated": "0|12]"}


def test_an_input_with_the_name_of_a_state() -> None:
    """What uses it says nothing of each other."""
    stated = stateful(lambda x, h: mb.coreml_update_state(state=h, value=mb.exp(x=x), name="updated"))

    def build(h: Any) -> Any:
        turned = mb.exp(x=mb.transpose(x=h, perm=[1, 0], name="turned"))
        return turned, mb.reshape(x=h, shape=[6, 2, 4], name="cut"), mb.relu(x=h, name="straight")

    readings = read_free(functions_of(main=stated, other=(build, lambda: {"h": fp16(6, 8)})).functions, 64, {})
    found = {name: place.partition("[")[2] for name, place in places(readings["other"]).items()}
    assert len(readings["main"].accesses) == 1
    assert (found["h"], found["turned"], found["cut"], found["straight"]) == ("0|12]", "12|0]", "0|1|2]", "0|12]")

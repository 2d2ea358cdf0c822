"""What is written of a program in other layouts, line by line, and what is taken back where MIL refuses it."""

# The bodies of programs are lambdas of as many parameters as they have inputs, for which no one type can be written.
# pyright: reportUnknownLambdaType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from milopt.layout.forms import Layout
from milopt.layout.relations import Mode
from milopt.mil import Function, Program, get_new_symbol, mb, operations, target, types, value_names
from milopt.package import load
from milopt.passes.layout import LayoutBc1s
from milopt.passes.layout_choice import settle
from milopt.passes.layout_ops import ENTRIES, Entry
from milopt.passes.layout_reading import read, read_free
from milopt.passes.layout_writing import Writing
from milopt.reports import NoMatch, Report
from milopt.text import text
from milopt.verify import compare

from .programs import Build, fp16, fp32, ints, program_of

F32: Any = np.float32
SYMBOL, OTHER = get_new_symbol(), get_new_symbol()


def layout_of(told: str) -> Layout:
    """``-|0|12``: an axis of length 1, one that is piece 0, and one of the pieces 1 and 2."""
    return tuple(tuple(int(piece) for piece in axis.strip("-")) for axis in told.split("|"))


def _with(modes: Sequence[Mode], at: int, mode: Mode) -> list[Mode]:
    return [*modes[:at], mode, *modes[at + 1 :]]


def writing_of(program: Program, **wanted: str) -> Writing:
    """The program's ``main`` with ops, by name, whose first result has another layout."""
    reading = read(program.functions["main"], 64)
    graph, numbers = reading.graph, {node.op.name: at for at, node in enumerate(reading.nodes) if node.op is not None}
    # a result's port comes behind those of the operands
    first: dict[str, int] = {}
    for name in wanted:
        (op,) = [node.op for node in reading.nodes if node.op is not None and node.op.name == name]
        tensor = reading.places[op.outputs[0]][0]
        first[name] = next(at for at, port in enumerate(graph.relations[numbers[name]].ports) if port.tensor == tensor)
    also = [(graph.relations[numbers[name]].ports[at].tensor, layout_of(wanted[name])) for name, at in first.items()]
    modes, found = [relation.original for relation in graph.relations], graph.modes(also)
    for name, at in first.items():
        known = [mode for mode in found[numbers[name]] if mode.layouts[at] == layout_of(wanted[name])]
        modes[numbers[name]] = min(known, key=lambda mode: graph.cost_of(_with(modes, numbers[name], mode)))
    return Writing(reading, modes, set(range(len(graph.tensors))))


def shown(program: Program) -> list[str]:
    return [line.strip() for line in text(program).splitlines()[1:]]


def written(build: Build, wanted: dict[str, str], **inputs: Any) -> list[str]:
    """The lines of a program in which some ops have other layouts; it computes the same."""
    program = program_of(build, **inputs)
    before = load(program).clone()
    writing_of(program, **wanted).write()
    program.validate()
    assert compare(before, load(program), trials=1)
    names = [op.name for op in operations(program.functions["main"])]
    assert len(names) == len(set(names))
    assert all(op.name == op.outputs[0].name for op in operations(program.functions["main"]) if len(op.outputs) == 1)
    return shown(program)


THIRD = get_new_symbol()
RANGE: Any = np.arange(48, dtype=np.float32)


def compressed(*shape: int) -> Any:
    """A weight of ``shape`` in eight bits."""
    data, scale = np.ones(shape, np.int8), np.ones((1,) * len(shape), np.float32)
    return mb.constexpr_blockwise_shift_scale(data=data, scale=scale)


def updated(x: Any, update: Any, at: Any) -> Any:
    """Two updates of the rows from ``at``, one over the other."""
    begin = mb.concat(values=[at, [0]], axis=0)
    end = mb.concat(values=[mb.add(x=at, y=[2]), [8]], axis=0)
    one = mb.slice_update(x=x, update=update, begin=begin, end=end, name="one")
    return mb.slice_update(x=one, update=mb.exp(x=update), begin=begin, end=end, name="out")


def nested(x: Any, flag: Any) -> Any:
    y = mb.relu(x=x, name="relu")
    pred = mb.squeeze(x=flag, axes=[0])
    return mb.cond(pred=pred, _true_fn=lambda: mb.exp(x=y), _false_fn=lambda: y, name="out")


def given(x: Any, flag: Any) -> Any:
    """A value that nothing else uses."""
    y = mb.relu(x=x, name="relu")
    pred = mb.squeeze(x=flag, axes=[0])
    return mb.cond(pred=pred, _true_fn=lambda: mb.exp(x=x), _false_fn=lambda: y, name="out")


def repeated(x: Any) -> Any:
    """One value as two outputs, the second of which an op uses that stays."""
    y = mb.relu(x=x, name="relu")
    one, other = (mb.transpose(x=mb.transpose(x=y, perm=[1, 0]), perm=[1, 0], name=name) for name in ("one", "other"))
    return one, other, mb.gather(x=other, indices=[0], axis=0, name="row")


def used(x: Any) -> Any:
    y = mb.relu(x=x, name="relu")
    return y, mb.transpose(x=y, perm=[1, 0], name="turned"), mb.exp(x=y, name="exp")


# a program, the layouts that some of its ops get, by name, and what is written
WRITTEN: dict[str, tuple[Build, dict[str, str], dict[str, Callable[[], Any]], list[str]]] = {
    "an order": (
        lambda x: mb.relu(x=x, name="out"),
        {"out": "1|0"},
        {"x": lambda: fp32(6, 8)},
        [
            "%0: fp32[8, 6] = transpose(x=%x, perm=[1, 0])",
            "%1: fp32[8, 6] = relu(x=%0)",
            "%2: fp32[6, 8] = transpose(x=%1, perm=[1, 0])",
            "} -> (out=%2)",
        ],
    ),
    "unit axes": (
        lambda x: mb.relu(x=x, name="out"),
        {"out": "-|1|-|0"},
        {"x": lambda: fp32(6, 8)},
        [
            "%0: fp32[8, 6] = transpose(x=%x, perm=[1, 0])",
            "%1: fp32[1, 8, 1, 6] = expand_dims(x=%0, axes=[0, 2])",
            "%2: fp32[1, 8, 1, 6] = relu(x=%1)",
            "%3: fp32[1, 1, 6, 8] = transpose(x=%2, perm=[0, 2, 3, 1])",
            "%4: fp32[6, 8] = squeeze(x=%3, axes=[0, 1])",
            "} -> (out=%4)",
        ],
    ),
    "one axis": (
        lambda x: mb.relu(x=x, name="out"),
        {"out": "10"},
        {"x": lambda: fp32(6, 8)},
        [
            "%0: fp32[8, 6] = transpose(x=%x, perm=[1, 0])",
            "%1: fp32[48] = reshape(x=%0, shape=[48])",
            "%2: fp32[48] = relu(x=%1)",
            "%3: fp32[8, 6] = reshape(x=%2, shape=[8, 6])",
            "%4: fp32[6, 8] = transpose(x=%3, perm=[1, 0])",
            "} -> (out=%4)",
        ],
    ),
    "unit axes elsewhere": (
        lambda x: mb.relu(x=x, name="out"),
        {"out": "0|-|1|2"},
        {"x": lambda: fp32(4, 5, 1, 8)},
        [
            "%0: fp32[4, 1, 5, 8] = reshape(x=%x, shape=[4, 1, 5, 8])",
            "%1: fp32[4, 1, 5, 8] = relu(x=%0)",
            "%2: fp32[4, 5, 1, 8] = reshape(x=%1, shape=[4, 5, 1, 8])",
            "} -> (out=%2)",
        ],
    ),
    "unit axes elsewhere, between lengths that are not known": (
        lambda x: mb.relu(x=x, name="out"),
        {"out": "-|0|-|1|2"},
        {"x": lambda: fp32(1, SYMBOL, OTHER, 1, 8)},
        [
            "%0: fp32[s0, s1, 8] = squeeze(x=%x, axes=[0, 3])",
            "%1: fp32[1, s0, 1, s1, 8] = expand_dims(x=%0, axes=[0, 2])",
            "%2: fp32[1, s0, 1, s1, 8] = relu(x=%1)",
            "%3: fp32[s0, s1, 8] = squeeze(x=%2, axes=[0, 2])",
            "%4: fp32[1, s0, s1, 1, 8] = expand_dims(x=%3, axes=[0, 3])",
            "} -> (out=%4)",
        ],
    ),
    "one length that is not known": (
        lambda x: mb.relu(x=x, name="out"),
        {"out": "0|12"},
        {"x": lambda: fp32(SYMBOL, 2, 8)},
        [
            "%0: fp32[s0, 16] = reshape(x=%x, shape=[-1, 16])",
            "%1: fp32[s0, 16] = relu(x=%0)",
            "%2: fp32[s0, 2, 8] = reshape(x=%1, shape=[-1, 2, 8])",
            "} -> (out=%2)",
        ],
    ),
    "a length that is not known, joined": (
        lambda x: mb.relu(x=x, name="out"),
        {"out": "01|2"},
        {"x": lambda: fp32(SYMBOL, 2, 8)},
        [
            "%0: fp32[2*s0, 8] = reshape(x=%x, shape=[-1, 8])",
            "%1: fp32[2*s0, 8] = relu(x=%0)",
            "%2: fp32[s0, 2, 8] = reshape(x=%1, shape=[-1, 2, 8])",
            "} -> (out=%2)",
        ],
    ),
    "two lengths that are not known": (
        lambda x: mb.relu(x=x, name="out"),
        {"out": "0|-|1|23"},
        {"x": lambda: fp32(SYMBOL, OTHER, 2, 8)},
        [
            "%0: int32[4] = shape(x=%x)",
            "%1: int32[1] = gather(x=%0, indices=[0])",
            "%2: int32[4] = concat(values=(%1, [1, -1, 16]), axis=0)",
            "%3: fp32[s0, 1, s1, 16] = reshape(x=%x, shape=%2)",
            "%4: fp32[s0, 1, s1, 16] = relu(x=%3)",
            "%5: int32[4] = shape(x=%4)",
            "%6: int32[1] = gather(x=%5, indices=[0])",
            "%7: int32[4] = concat(values=(%6, [-1, 2, 8]), axis=0)",
            "%8: fp32[s0, s1, 2, 8] = reshape(x=%4, shape=%7)",
            "} -> (out=%8)",
        ],
    ),
    "three lengths that are not known": (
        lambda x: mb.relu(x=x, name="out"),
        {"out": "23|0|1"},
        {"x": lambda: fp32(SYMBOL, OTHER, 2, THIRD)},
        [
            "%0: fp32[2, s2, s0, s1] = transpose(x=%x, perm=[2, 3, 0, 1])",
            "%1: int32[4] = shape(x=%0)",
            "%2: int32[1] = gather(x=%1, indices=[2])",
            "%3: int32[1] = gather(x=%1, indices=[3])",
            "%4: int32[3] = concat(values=([-1], %2, %3), axis=0)",
            "%5: fp32[2*s2, s0, s1] = reshape(x=%0, shape=%4)",
            "%6: fp32[2*s2, s0, s1] = relu(x=%5)",
            "%7: fp32[s0, s1, 2*s2] = transpose(x=%6, perm=[1, 2, 0])",
            "%8: int32[3] = shape(x=%7)",
            "%9: int32[1] = gather(x=%8, indices=[0])",
            "%10: int32[1] = gather(x=%8, indices=[1])",
            "%11: int32[4] = concat(values=(%9, %10, [2, -1]), axis=0)",
            "%12: fp32[s0, s1, 2, s2] = reshape(x=%7, shape=%11)",
            "} -> (out=%12)",
        ],
    ),
    "constants": (
        lambda x: mb.mul(x=mb.add(x=x, y=RANGE[:8], name="sum"), y=RANGE[:6].reshape(6, 1), name="out"),
        {"sum": "-|1|0", "out": "-|1|0"},
        {"x": lambda: fp32(6, 8)},
        [
            "%0: fp32[8, 6] = transpose(x=%x, perm=[1, 0])",
            "%1: fp32[1, 8, 6] = expand_dims(x=%0, axes=[0])",
            "%2: fp32[1, 8, 6] = add(x=%1, y=[[[0.0], [1.0], [2.0], [3.0], [4.0], [5.0], [6.0], [7.0]]])",
            "%3: fp32[1, 8, 6] = mul(x=%2, y=[[[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]]])",
            "%4: fp32[1, 6, 8] = transpose(x=%3, perm=[0, 2, 1])",
            "%5: fp32[6, 8] = squeeze(x=%4, axes=[0])",
            "} -> (out=%5)",
        ],
    ),
    "a constant of one element": (
        lambda x: mb.add(x=x, y=np.full((1, 1, 1), 3, F32), name="out"),
        {"out": "1|0"},
        {"x": lambda: fp32(1, 6, 8)},
        [
            "%0: fp32[1, 8, 6] = transpose(x=%x, perm=[0, 2, 1])",
            "%1: fp32[8, 6] = squeeze(x=%0, axes=[0])",
            "%2: fp32[8, 6] = add(x=%1, y=[[3.0]])",
            "%3: fp32[6, 8] = transpose(x=%2, perm=[1, 0])",
            "%4: fp32[1, 6, 8] = expand_dims(x=%3, axes=[0])",
            "} -> (out=%4)",
        ],
    ),
    "a constant of one element that stays": (
        lambda x: mb.add(x=x, y=np.full((1, 1), 3, F32), name="out"),
        {"out": "1|0"},
        {"x": lambda: fp32(6, 8)},
        [
            "%0: fp32[8, 6] = transpose(x=%x, perm=[1, 0])",
            "%1: fp32[8, 6] = add(x=%0, y=[[3.0]])",
            "%2: fp32[6, 8] = transpose(x=%1, perm=[1, 0])",
            "} -> (out=%2)",
        ],
    ),
    "a number": (
        lambda x: mb.add(x=x, y=F32(3), name="out"),
        {"out": "-|1|0"},
        {"x": lambda: fp32(6, 8)},
        [
            "%0: fp32[8, 6] = transpose(x=%x, perm=[1, 0])",
            "%1: fp32[1, 8, 6] = expand_dims(x=%0, axes=[0])",
            "%2: fp32[1, 8, 6] = add(x=%1, y=3.0)",
            "%3: fp32[1, 6, 8] = transpose(x=%2, perm=[0, 2, 1])",
            "%4: fp32[6, 8] = squeeze(x=%3, axes=[0])",
            "} -> (out=%4)",
        ],
    ),
    "a constant that is repeated": (
        lambda x: mb.add(x=x, y=RANGE[:4], name="out"),
        {"out": "01"},
        {"x": lambda: fp32(2, 4)},
        [
            "%0: fp32[8] = reshape(x=%x, shape=[8])",
            "%1: fp32[8] = add(x=%0, y=[0.0, 1.0, 2.0, 3.0, 0.0, 1.0, 2.0, 3.0])",
            "%2: fp32[2, 4] = reshape(x=%1, shape=[2, 4])",
            "} -> (out=%2)",
        ],
    ),
    "a constant that is repeated within an axis": (
        lambda x: mb.add(x=x, y=RANGE[:6].reshape(3, 1, 2), name="out"),
        {"out": "01|2"},
        {"x": lambda: fp32(3, 2, 2)},
        [
            "%0: fp32[6, 2] = reshape(x=%x, shape=[6, 2])",
            "%1: fp32[6, 2] = add(x=%0, y=[[0.0, 1.0], [0.0, 1.0], [2.0, 3.0], [2.0, 3.0], [4.0, 5.0], [4.0, 5.0]])",
            "%2: fp32[3, 2, 2] = reshape(x=%1, shape=[3, 2, 2])",
            "} -> (out=%2)",
        ],
    ),
    "a constant that is cut": (
        lambda x: mb.add(x=mb.reshape(x=x, shape=[2, 8]), y=RANGE[:8], name="out"),
        {"out": "2|1|0"},
        {"x": lambda: fp32(2, 2, 4)},
        [
            "%0: fp32[4, 2, 2] = transpose(x=%x, perm=[2, 1, 0])",
            "%1: fp32[4, 2, 2] = add(x=%0, y=[[[0.0], [4.0]], [[1.0], [5.0]], [[2.0], [6.0]], [[3.0], [7.0]]])",
            "%2: fp32[2, 2, 4] = transpose(x=%1, perm=[2, 1, 0])",
            "%3: fp32[2, 8] = reshape(x=%2, shape=[2, 8])",
            "} -> (out=%3)",
        ],
    ),
    "a constant that is turned": (
        lambda x: mb.add(x=x, y=RANGE[:6].reshape(3, 1, 2), name="out"),
        {"out": "2|0|1"},
        {"x": lambda: fp32(3, 4, 2)},
        [
            "%0: fp32[2, 3, 4] = transpose(x=%x, perm=[2, 0, 1])",
            "%1: fp32[2, 3, 4] = add(x=%0, y=[[[0.0], [2.0], [4.0]], [[1.0], [3.0], [5.0]]])",
            "%2: fp32[3, 4, 2] = transpose(x=%1, perm=[1, 2, 0])",
            "} -> (out=%2)",
        ],
    ),
    "a constant that is turned and joined": (
        lambda x: mb.add(x=x, y=RANGE[:6].reshape(3, 1, 2), name="out"),
        {"out": "20|1"},
        {"x": lambda: fp32(3, 4, 2)},
        [
            "%0: fp32[2, 3, 4] = transpose(x=%x, perm=[2, 0, 1])",
            "%1: fp32[6, 4] = reshape(x=%0, shape=[6, 4])",
            "%2: fp32[6, 4] = add(x=%1, y=[[0.0], [2.0], [4.0], [1.0], [3.0], [5.0]])",
            "%3: fp32[2, 3, 4] = reshape(x=%2, shape=[2, 3, 4])",
            "%4: fp32[3, 4, 2] = transpose(x=%3, perm=[1, 2, 0])",
            "} -> (out=%4)",
        ],
    ),
    "a sum": (
        lambda x: mb.reduce_sum(x=x, axes=[0, 2], keep_dims=False, name="out"),
        {"out": "-|0|-"},
        {"x": lambda: fp32(6, 8, 3)},
        [
            "%0: fp32[1, 8, 1] = reduce_sum(x=%x, axes=[0, 2], keep_dims=true)",
            "%1: fp32[8] = squeeze(x=%0, axes=[0, 2])",
            "} -> (out=%1)",
        ],
    ),
    "the largest": (
        lambda x: mb.reduce_argmax(x=x, axis=1, keep_dims=True, name="out"),
        {"out": "-|0"},
        {"x": lambda: fp32(6, 8)},
        [
            "%0: fp32[8, 6] = transpose(x=%x, perm=[1, 0])",
            "%1: int32[1, 6] = reduce_argmax(x=%0, axis=0, keep_dims=true)",
            "%2: int32[6, 1] = reshape(x=%1, shape=[6, 1])",
            "} -> (out=%2)",
        ],
    ),
    "a slice of one": (
        lambda x: mb.slice_by_index(x=x, begin=[2, 1], end=[3, 5], name="out"),
        {"out": "0|-"},
        {"x": lambda: fp32(6, 8)},
        [
            "%0: fp32[8, 6] = transpose(x=%x, perm=[1, 0])",
            "%1: fp32[4, 1] = slice_by_index(x=%0, begin=[1, 2], end=[5, 3])",
            "%2: fp32[1, 4] = reshape(x=%1, shape=[1, 4])",
            "} -> (out=%2)",
        ],
    ),
    "an update": (
        lambda x, update: mb.slice_update(x=x, update=update, begin=[1, 0], end=[3, 8], name="out"),
        {"out": "1|0"},
        {"x": lambda: fp32(4, 8), "update": lambda: fp32(2, 8)},
        [
            "%0: fp32[8, 4] = transpose(x=%x, perm=[1, 0])",
            "%1: fp32[8, 2] = transpose(x=%update, perm=[1, 0])",
            "%2: fp32[8, 4] = slice_update(x=%0, update=%1, begin=[0, 1], end=[8, 3])",
            "%3: fp32[4, 8] = transpose(x=%2, perm=[1, 0])",
            "} -> (out=%3)",
        ],
    ),
    "parts of a length that is not known": (
        lambda x, y: mb.exp(x=mb.concat(values=[x, y], axis=0, name="out"), name="exp"),
        {"out": "1|0"},
        {"x": lambda: fp32(SYMBOL, 8), "y": lambda: fp32(3, 8)},
        [
            "%0: fp32[8, s0] = transpose(x=%x, perm=[1, 0])",
            "%1: fp32[8, 3] = transpose(x=%y, perm=[1, 0])",
            "%2: fp32[8, s1] = concat(values=(%0, %1), axis=1)",
            "%3: fp32[s1, 8] = transpose(x=%2, perm=[1, 0])",
            "%4: fp32[s1, 8] = exp(x=%3)",
            "} -> (exp=%4)",
        ],
    ),
    "what a nested block gives": (
        given,
        {"relu": "1|0"},
        {"x": lambda: fp32(6, 8), "flag": lambda: mb.placeholder((1,), types.bool)},
        [
            "%0: fp32[8, 6] = transpose(x=%x, perm=[1, 0])",
            "%1: fp32[8, 6] = relu(x=%0)",
            "%2: fp32[6, 8] = transpose(x=%1, perm=[1, 0])",
            "%3: bool[] = squeeze(x=%flag, axes=[0])",
            "%4: fp32[6, 8] = cond(pred=%3) {",
            "block() {",
            "%5: fp32[6, 8] = exp(x=%x)",
            "} -> (%5)",
            "block() {",
            "} -> (%2)",
            "}",
            "} -> (out=%4)",
        ],
    ),
    "an output that is an input": (
        lambda x: (mb.relu(x=x, name="relu"), mb.transpose(x=mb.transpose(x=x, perm=[1, 0]), perm=[1, 0], name="same")),
        {"relu": "1|0"},
        {"x": lambda: fp32(6, 8)},
        [
            "%0: fp32[8, 6] = transpose(x=%x, perm=[1, 0])",
            "%1: fp32[8, 6] = relu(x=%0)",
            "%2: fp32[6, 8] = transpose(x=%1, perm=[1, 0])",
            "%3: fp32[6, 8] = identity(x=%x)",
            "} -> (relu=%2, same=%3)",
        ],
    ),
    "a norm": (
        lambda x: mb.layer_norm(x=x, axes=[1], name="out"),
        {"out": "1|0"},
        {"x": lambda: fp32(6, 8)},
        [
            "%0: fp32[8, 6] = transpose(x=%x, perm=[1, 0])",
            "%1: fp32[8, 6] = layer_norm(x=%0, axes=[0])",
            "%2: fp32[6, 8] = transpose(x=%1, perm=[1, 0])",
            "} -> (out=%2)",
        ],
    ),
    "a slice": (
        lambda x: mb.slice_by_index(x=x, begin=[0, 1], end=[6, 5], name="out"),
        {"out": "1|0"},
        {"x": lambda: fp32(6, 8)},
        [
            "%0: fp32[8, 6] = transpose(x=%x, perm=[1, 0])",
            "%1: fp32[4, 6] = slice_by_index(x=%0, begin=[1, 0], end=[5, 6])",
            "%2: fp32[6, 4] = transpose(x=%1, perm=[1, 0])",
            "} -> (out=%2)",
        ],
    ),
    "parts": (
        lambda x: mb.split(x=x, split_sizes=[2, 4], axis=1, name="out"),
        {"out": "1|-|0"},
        {"x": lambda: fp32(1, 6, 8)},
        [
            "%0: fp32[8, 1, 6] = transpose(x=%x, perm=[2, 0, 1])",
            "%1: fp32[8, 1, 2], %2: fp32[8, 1, 4] = split(x=%0, split_sizes=[2, 4], axis=2)",
            "%3: fp32[1, 2, 8] = transpose(x=%1, perm=[1, 2, 0])",
            "%4: fp32[1, 4, 8] = transpose(x=%2, perm=[1, 2, 0])",
            "} -> (out_0=%3, out_1=%4)",
        ],
    ),
    "parts joined": (
        lambda x, y: mb.concat(values=[x, y], axis=1, name="out"),
        {"out": "1|-|0"},
        {"x": lambda: fp32(1, 6, 8), "y": lambda: fp32(1, 2, 8)},
        [
            "%0: fp32[8, 1, 6] = transpose(x=%x, perm=[2, 0, 1])",
            "%1: fp32[8, 1, 2] = transpose(x=%y, perm=[2, 0, 1])",
            "%2: fp32[8, 1, 8] = concat(values=(%0, %1), axis=2)",
            "%3: fp32[1, 8, 8] = transpose(x=%2, perm=[1, 2, 0])",
            "} -> (out=%3)",
        ],
    ),
    "a product": (
        lambda x, y: mb.matmul(x=x, y=y, transpose_x=True, name="out"),
        {"out": "0|1"},
        {"x": lambda: fp32(8, 6), "y": lambda: fp32(8, 5)},
        [
            "%0: fp32[6, 5] = matmul(x=%x, y=%y, transpose_x=true)",
            "} -> (out=%0)",
        ],
    ),
    "a product of an operand in another order": (
        lambda x, y: mb.matmul(x=x, y=mb.exp(x=y, name="other"), name="out"),
        {"other": "1|0", "out": "0|1"},
        {"x": lambda: fp32(6, 8), "y": lambda: fp32(8, 5)},
        [
            "%0: fp32[5, 8] = transpose(x=%y, perm=[1, 0])",
            "%1: fp32[5, 8] = exp(x=%0)",
            "%2: fp32[6, 5] = matmul(x=%x, y=%1, transpose_y=true)",
            "} -> (out=%2)",
        ],
    ),
    "a product the other way round": (
        lambda x, y: mb.matmul(x=x, y=mb.exp(x=y, name="other"), transpose_x=True, name="out"),
        {"other": "1|0", "out": "1|0"},
        {"x": lambda: fp32(8, 6), "y": lambda: fp32(8, 5)},
        [
            "%0: fp32[5, 8] = transpose(x=%y, perm=[1, 0])",
            "%1: fp32[5, 8] = exp(x=%0)",
            "%2: fp32[5, 6] = matmul(x=%1, y=%x)",
            "%3: fp32[6, 5] = transpose(x=%2, perm=[1, 0])",
            "} -> (out=%3)",
        ],
    ),
    "a linear layer": (
        lambda x: mb.linear(x=x, weight=RANGE[:40].reshape(5, 8), name="out"),
        {"out": "-|0|1"},
        {"x": lambda: fp32(6, 8)},
        [
            "%0: fp32[1, 6, 8] = expand_dims(x=%x, axes=[0])",
            "%1: fp32[1, 6, 5] = linear(x=%0, weight=w0)",
            "%2: fp32[6, 5] = squeeze(x=%1, axes=[0])",
            "} -> (out=%2)",
            "w0: fp32[5, 8]",
        ],
    ),
    "a compressed weight": (
        lambda x: mb.conv(x=x, weight=compressed(5, 8, 1, 1), bias=RANGE[:5], name="out"),
        {"out": "-|0|-|12"},
        {"x": lambda: fp32(1, 8, 6, 2)},
        [
            "%0: fp32[5, 8, 1, 1] = constexpr_blockwise_shift_scale(data=w0, scale=[[[[1.0]]]])",
            "%1: fp32[1, 8, 1, 12] = reshape(x=%x, shape=[1, 8, 1, 12])",
            "%2: fp32[1, 5, 1, 12] = conv(x=%1, weight=%0, bias=[0.0, 1.0, 2.0, 3.0, 4.0])",
            "%3: fp32[1, 5, 6, 2] = reshape(x=%2, shape=[1, 5, 6, 2])",
            "} -> (out=%3)",
            "w0: int8[5, 8, 1, 1]",
        ],
    ),
    "an update somewhere": (
        updated,
        {"one": "1|0", "out": "1|0"},
        {"x": lambda: fp32(4, 8), "update": lambda: fp32(2, 8), "at": lambda: ints(1)},
        [
            "%0: int32[1] = add(x=%at, y=[2])",
            "%1: fp32[8, 4] = transpose(x=%x, perm=[1, 0])",
            "%2: fp32[8, 2] = transpose(x=%update, perm=[1, 0])",
            "%3: int32[2] = concat(values=([0], %at), axis=0)",
            "%4: int32[2] = concat(values=([8], %0), axis=0)",
            "%5: fp32[8, 4] = slice_update(x=%1, update=%2, begin=%3, end=%4)",
            "%6: fp32[2, 8] = exp(x=%update)",
            "%7: fp32[8, 2] = transpose(x=%6, perm=[1, 0])",
            "%8: fp32[8, 4] = slice_update(x=%5, update=%7, begin=%3, end=%4)",
            "%9: fp32[4, 8] = transpose(x=%8, perm=[1, 0])",
            "} -> (out=%9)",
        ],
    ),
    "one move for several": (
        lambda x: (mb.exp(x=x, name="exp"), mb.relu(x=x, name="relu"), mb.sqrt(x=mb.abs(x=x, name="abs"), name="sqrt")),
        {"exp": "-|1|-|0", "relu": "1|0", "abs": "1|0", "sqrt": "1|0"},
        {"x": lambda: fp32(6, 8)},
        [
            "%0: fp32[8, 6] = transpose(x=%x, perm=[1, 0])",
            "%1: fp32[1, 8, 1, 6] = expand_dims(x=%0, axes=[0, 2])",
            "%2: fp32[1, 8, 1, 6] = exp(x=%1)",
            "%3: fp32[1, 1, 6, 8] = transpose(x=%2, perm=[0, 2, 3, 1])",
            "%4: fp32[6, 8] = squeeze(x=%3, axes=[0, 1])",
            "%5: fp32[8, 6] = relu(x=%0)",
            "%6: fp32[6, 8] = transpose(x=%5, perm=[1, 0])",
            "%7: fp32[8, 6] = abs(x=%0)",
            "%8: fp32[8, 6] = sqrt(x=%7)",
            "%9: fp32[6, 8] = transpose(x=%8, perm=[1, 0])",
            "} -> (exp=%4, relu=%6, sqrt=%9)",
        ],
    ),
    "a value in two layouts": (
        lambda x: mb.exp(x=mb.relu(x=x, name="relu"), name="exp"),
        {"relu": "1|0", "exp": "-|1|-|0"},
        {"x": lambda: fp32(6, 8)},
        [
            "%0: fp32[8, 6] = transpose(x=%x, perm=[1, 0])",
            "%1: fp32[8, 6] = relu(x=%0)",
            "%2: fp32[1, 8, 1, 6] = expand_dims(x=%1, axes=[0, 2])",
            "%3: fp32[1, 8, 1, 6] = exp(x=%2)",
            "%4: fp32[1, 1, 6, 8] = transpose(x=%3, perm=[0, 2, 3, 1])",
            "%5: fp32[6, 8] = squeeze(x=%4, axes=[0, 1])",
            "} -> (exp=%5)",
        ],
    ),
    "an op that stays": (
        lambda x: mb.gather(x=mb.relu(x=x, name="relu"), indices=[0], axis=0, name="out"),
        {"relu": "1|0"},
        {"x": lambda: fp32(6, 8)},
        [
            "%0: fp32[8, 6] = transpose(x=%x, perm=[1, 0])",
            "%1: fp32[8, 6] = relu(x=%0)",
            "%2: fp32[6, 8] = transpose(x=%1, perm=[1, 0])",
            "%3: fp32[1, 8] = gather(x=%2, indices=[0])",
            "} -> (out=%3)",
        ],
    ),
    "an op that nothing uses": (
        lambda x: (mb.relu(x=x, name="relu"), mb.exp(x=x, name="dead"))[0],
        {"relu": "1|0"},
        {"x": lambda: fp32(6, 8)},
        [
            "%0: fp32[8, 6] = transpose(x=%x, perm=[1, 0])",
            "%1: fp32[8, 6] = relu(x=%0)",
            "%2: fp32[6, 8] = transpose(x=%1, perm=[1, 0])",
            "%3: fp32[6, 8] = exp(x=%x)",
            "} -> (relu=%2)",
        ],
    ),
    "nested blocks": (
        nested,
        {"relu": "1|0"},
        {"x": lambda: fp32(6, 8), "flag": lambda: mb.placeholder((1,), types.bool)},
        [
            "%0: fp32[8, 6] = transpose(x=%x, perm=[1, 0])",
            "%1: fp32[8, 6] = relu(x=%0)",
            "%2: fp32[6, 8] = transpose(x=%1, perm=[1, 0])",
            "%3: bool[] = squeeze(x=%flag, axes=[0])",
            "%4: fp32[6, 8] = cond(pred=%3) {",
            "block() {",
            "%5: fp32[6, 8] = exp(x=%2)",
            "} -> (%5)",
            "block() {",
            "} -> (%2)",
            "}",
            "} -> (out=%4)",
        ],
    ),
    "outputs that are one value": (
        repeated,
        {"relu": "1|0"},
        {"x": lambda: fp32(6, 8)},
        [
            "%0: fp32[8, 6] = transpose(x=%x, perm=[1, 0])",
            "%1: fp32[8, 6] = relu(x=%0)",
            "%2: fp32[6, 8] = transpose(x=%1, perm=[1, 0])",
            "%3: fp32[6, 8] = identity(x=%2)",
            "%4: fp32[1, 8] = gather(x=%3, indices=[0])",
            "} -> (one=%2, other=%3, row=%4)",
        ],
    ),
    "an output that is used": (
        used,
        {"relu": "1|0"},
        {"x": lambda: fp32(6, 8)},
        [
            "%0: fp32[8, 6] = transpose(x=%x, perm=[1, 0])",
            "%1: fp32[8, 6] = relu(x=%0)",
            "%2: fp32[6, 8] = transpose(x=%1, perm=[1, 0])",
            "%3: fp32[6, 8] = exp(x=%2)",
            "} -> (relu=%2, turned=%1, exp=%3)",
        ],
    ),
    "an output that other ops use in its new layout": (
        used,
        {"relu": "1|0", "exp": "1|0"},
        {"x": lambda: fp32(6, 8)},
        [
            "%0: fp32[8, 6] = transpose(x=%x, perm=[1, 0])",
            "%1: fp32[8, 6] = relu(x=%0)",
            "%2: fp32[6, 8] = transpose(x=%1, perm=[1, 0])",
            "%3: fp32[8, 6] = exp(x=%1)",
            "%4: fp32[6, 8] = transpose(x=%3, perm=[1, 0])",
            "} -> (relu=%2, turned=%1, exp=%4)",
        ],
    ),
    "outputs of one op": (
        lambda x: [*mb.split(x=x, num_splits=2, axis=1, name="parts")],
        {"parts": "1|0"},
        {"x": lambda: fp32(6, 8)},
        [
            "%0: fp32[8, 6] = transpose(x=%x, perm=[1, 0])",
            "%1: fp32[4, 6], %2: fp32[4, 6] = split(x=%0, num_splits=2, axis=0)",
            "%3: fp32[6, 4] = transpose(x=%1, perm=[1, 0])",
            "%4: fp32[6, 4] = transpose(x=%2, perm=[1, 0])",
            "} -> (parts_0=%3, parts_1=%4)",
        ],
    ),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written(name: str) -> None:
    build, wanted, inputs, lines = WRITTEN[name]
    assert written(build, wanted, **{each: make() for each, make in inputs.items()}) == lines


# Inputs, outputs and states in other layouts.


def state(*shape: int) -> Any:
    return mb.state_tensor_placeholder(shape=shape, dtype=types.fp16)


def convolved(x: Any) -> Any:
    """Five channels of (1, 6, 8), as linear-to-conv leaves a layer."""
    wide = mb.transpose(x=mb.expand_dims(x=x, axes=[3]), perm=[0, 2, 3, 1])
    kernel = RANGE[:40].reshape(5, 8, 1, 1).astype(np.float16)
    return mb.squeeze(x=mb.transpose(x=mb.conv(x=wide, weight=kernel), perm=[0, 3, 1, 2]), axes=[3], name="out")


def free(build: Build, **inputs: Any) -> tuple[Program, Report]:
    """The program with inputs, outputs and states in the layouts that it uses them in; it computes the same."""
    model = load(program_of(build, **inputs))
    before = model.clone()
    report = LayoutBc1s(io="free").run(model)
    assert report
    model.program.validate()
    assert compare(before, model, trials=1)
    assert [*model.functions["main"].inputs] == [*inputs]
    return model.program, report


def test_inputs_and_outputs_in_another_layout() -> None:
    program, report = free(convolved, x=fp16(1, 6, 8))
    assert text(program).splitlines() == [
        "main[CoreML8](%x: fp16[1, 8, 1, 6]) {",
        "  %0: fp16[1, 5, 1, 6] = conv(x=%x, weight=w0)",
        "} -> (out=%0)",
        "w0: fp16[5, 8, 1, 1]",
    ]
    assert report.notes[1:] == [
        "main: x is 1 x 8 x 1 x 6, no longer 1 x 6 x 8",
        "main: out is 1 x 5 x 1 x 6, no longer 1 x 6 x 5",
    ]
    (op,) = [op for op in program.functions["main"].operations if op.op_type == "conv"]
    assert (op.name, op.outputs[0].name) == ("out", "out")


def test_outputs_of_one_op_in_another_layout() -> None:
    """The op's own name is none of theirs."""
    program, _ = free(lambda x: [*mb.split(x=convolved(x), split_sizes=[2, 3], axis=2, name="parts")], x=fp16(1, 6, 8))
    assert text(program).splitlines()[2:-1] == [
        "  %1: fp16[1, 2, 1, 6], %2: fp16[1, 3, 1, 6] = split(x=%0, split_sizes=[2, 3], axis=1)",
        "} -> (parts_0=%1, parts_1=%2)",
    ]
    (op,) = [op for op in program.functions["main"].operations if op.op_type == "split"]
    assert op.name not in ("parts_0", "parts_1")


def test_a_state_in_another_order() -> None:
    """What is read and what is written is in it, and the old ops that did so are gone."""

    def build(x: Any, held: Any) -> Any:
        y = mb.add(x=convolved(x), y=mb.read_state(input=held))
        y = mb.coreml_update_state(state=held, value=y, name="written")
        return y, mb.relu(x=y, name="after")

    program, report = free(build, x=fp16(1, 6, 8), held=state(1, 6, 5))
    assert text(program).splitlines() == [
        "main[CoreML8](%x: fp16[1, 8, 1, 6], %held: state<fp16[1, 5, 6]>) {",
        "  %0: fp16[1, 5, 1, 6] = conv(x=%x, weight=w0)",
        "  %1: fp16[1, 5, 6] = read_state(input=%held)",
        "  %2: fp16[1, 5, 6] = squeeze(x=%0, axes=[2])",
        "  %3: fp16[1, 5, 6] = add(x=%2, y=%1)",
        "  %4: fp16[1, 5, 6] = coreml_update_state(state=%held, value=%3)",
        "  %5: fp16[1, 5, 6] = relu(x=%4)",
        "} -> (written=%4, after=%5)",
        "w0: fp16[5, 8, 1, 1]",
    ]
    assert "main: held is 1 x 5 x 6, no longer 1 x 6 x 5" in report.notes


def test_a_state_that_is_written_with_an_input_and_again() -> None:
    def build(x: Any, held: Any, first: Any) -> Any:
        y = mb.add(x=convolved(x), y=mb.coreml_update_state(state=held, value=first))
        y = mb.exp(x=mb.coreml_update_state(state=held, value=y))
        return mb.coreml_update_state(state=held, value=y, name="written")

    program, report = free(build, x=fp16(1, 6, 8), held=state(1, 6, 5), first=fp16(1, 6, 5))
    assert text(program).splitlines() == [
        "main[CoreML8](%x: fp16[1, 8, 1, 6], %held: state<fp16[1, 5, 6]>, %first: fp16[1, 5, 6]) {",
        "  %0: fp16[1, 5, 1, 6] = conv(x=%x, weight=w0)",
        "  %1: fp16[1, 5, 6] = coreml_update_state(state=%held, value=%first)",
        "  %2: fp16[1, 5, 6] = squeeze(x=%0, axes=[2])",
        "  %3: fp16[1, 5, 6] = add(x=%2, y=%1)",
        "  %4: fp16[1, 5, 6] = coreml_update_state(state=%held, value=%3)",
        "  %5: fp16[1, 5, 6] = exp(x=%4)",
        "  %6: fp16[1, 5, 6] = coreml_update_state(state=%held, value=%5)",
        "} -> (written=%6)",
        "w0: fp16[5, 8, 1, 1]",
    ]
    assert report.notes[1:] == [
        "main: x is 1 x 8 x 1 x 6, no longer 1 x 6 x 8",
        "main: first is 1 x 5 x 6, no longer 1 x 6 x 5",
        "main: held is 1 x 5 x 6, no longer 1 x 6 x 5",
        "main: written is 1 x 5 x 6, no longer 1 x 6 x 5",
    ]


def test_ops_that_stay_use_inputs_as_they_were() -> None:
    """Of an input in a new layout, and of one in its own."""

    def build(x: Any, y: Any) -> Any:
        row = mb.gather(x=x, indices=[2], axis=1, name="row")
        return convolved(x), row, mb.gather(x=y, indices=[0], axis=0, name="other")

    program = program_of(build, x=fp16(1, 6, 8), y=fp16(3, 4))
    reading = read_free(program.functions, 64, {})["main"]
    modes, number = reading.graph.choose().modes, reading.inputs[program.functions["main"].inputs["x"]].relation
    (modes[number],) = (each for each in reading.graph.modes()[number] if each.layouts == (layout_of("-|1|-|0"),))
    Writing(reading, modes, set(range(len(reading.graph.tensors)))).write()
    program.validate()
    assert text(program).splitlines()[:-1] == [
        "main[CoreML8](%x: fp16[1, 8, 1, 6], %y: fp16[3, 4]) {",
        "  %0: fp16[1, 1, 6, 8] = transpose(x=%x, perm=[0, 2, 3, 1])",
        "  %1: fp16[1, 6, 8] = squeeze(x=%0, axes=[1])",
        "  %2: fp16[1, 1, 8] = gather(x=%1, indices=[2], axis=1)",
        "  %3: fp16[1, 5, 1, 6] = conv(x=%x, weight=w0)",
        "  %4: fp16[1, 4] = gather(x=%y, indices=[0])",
        "} -> (out=%3, row=%2, other=%4)",
    ]


def freed_writing(program: Program) -> Writing:
    reading = read_free(program.functions, 64, {})["main"]
    settled = settle([reading])
    return Writing(reading, settled.modes, settled.touched)


def test_new_inputs_have_names_of_their_own_until_they_take_the_old() -> None:
    def build(x: Any, x_laid: Any) -> Any:
        return convolved(x), mb.relu(x=x_laid, name="x_laid_")

    program = program_of(build, x=fp16(1, 6, 8), x_laid=fp16(3, 4))
    before, function = text(program), program.functions["main"]
    writing = freed_writing(program)
    writing.build()
    assert [*function.inputs] == ["x", "x_laid", "x_laid__"]
    assert [relaid.name for relaid in writing.relaid] == ["x", "out"]
    writing.undo()
    assert [*function.inputs] == ["x", "x_laid"]
    assert text(program) == before
    writing = freed_writing(program)
    writing.write()
    assert [*function.inputs] == ["x", "x_laid"]
    assert function.inputs["x"].shape == (1, 8, 1, 6)


def test_what_is_refused_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """New inputs too, and in every function."""
    monkeypatch.setitem(ENTRIES, "silu", Entry(ENTRIES["silu"].read, lambda op, spec, place: {"x": "nothing"}))
    program = Program()
    for name, kind in (("main", mb.relu), ("refused", mb.silu)):
        with Function({"x": fp16(1, 6, 8)}, opset_version=target.iOS18) as function:
            y = mb.square(x=mb.relu(x=convolved(function.inputs["x"])))
            function.set_outputs([kind(x=y, name="y")])
        program.add_function(name, function)
    before = text(program)
    names = [value_names(each) for each in program.functions.values()]
    model = load(program)
    report = LayoutBc1s(io="free").run(model)
    assert not report
    assert (report.applied, report.notes, model.metadata) == (0, [], {})
    assert text(program) == before
    assert [value_names(each) for each in program.functions.values()] == names
    (miss,) = report.misses
    assert (miss.function, miss.place) == ("refused", "y")
    assert miss.reason.startswith("MIL refuses the silu it would build")


def test_an_op_that_mil_gives_another_type() -> None:
    program = program_of(lambda x: mb.relu(x=mb.relu(x=x, name="one"), name="out"), x=fp32(6, 8))
    (op,) = [op for op in program.functions["main"].operations if op.name == "one"]
    held: Any = op.outputs[0]
    held._sym_type = types.tensor(types.fp16, (6, 8))
    before = text(program)
    with pytest.raises(NoMatch) as error:
        writing_of(program, one="1|0").write()
    assert str(error.value) == "it would be of fp32, not fp16"
    assert error.value.at is op
    assert text(program) == before


def test_outputs_that_stay_as_they_are() -> None:
    """A constant; and what an op that stays gives, as one output and as another."""

    def build(x: Any) -> Any:
        row = mb.gather(x=mb.relu(x=x, name="relu"), indices=[0, 2], axis=0, name="row")
        same = mb.transpose(x=mb.transpose(x=row, perm=[1, 0]), perm=[1, 0], name="same")
        return row, same, mb.const(val=RANGE[:2], name="fixed")

    program = program_of(build, x=fp32(6, 8))
    writing_of(program, relu="1|0").write()
    program.validate()
    assert shown(program) == [
        "%0: fp32[8, 6] = transpose(x=%x, perm=[1, 0])",
        "%1: fp32[8, 6] = relu(x=%0)",
        "%2: fp32[6, 8] = transpose(x=%1, perm=[1, 0])",
        "%3: fp32[2, 8] = gather(x=%2, indices=[0, 2])",
        "%4: fp32[2, 8] = identity(x=%3)",
        "%5: fp32[2] = const(val=[0.0, 1.0])",
        "} -> (row=%3, same=%4, fixed=%5)",
    ]


def test_lengths_that_are_joined_stay() -> None:
    """Of two that are not known and were joined MIL's reshape can't work out both."""
    program = program_of(lambda x: mb.relu(x=x, name="out"), x=fp32(SYMBOL, OTHER, 2))
    before = text(program)
    (op,) = [op for op in program.functions["main"].operations if op.name == "out"]
    with pytest.raises(NoMatch) as error:
        writing_of(program, out="01|2").write()
    assert str(error.value) == "several lengths that are not known are cut or joined"
    assert error.value.at is op
    assert text(program) == before


def test_constants_are_made_once_and_named_after_what_they_were() -> None:
    def build(x: Any) -> Any:
        table, unit = (
            mb.const(val=RANGE.reshape(6, 8), name="table"),
            mb.const(val=RANGE[:1].reshape(1, 1), name="unit"),
        )
        return mb.sub(x=mb.mul(x=mb.add(x=x, y=table, name="sum"), y=table, name="product"), y=unit, name="out")

    program = program_of(build, x=fp32(6, 8))
    writing_of(program, sum="1|0", product="1|0", out="1|0").write()
    constants = [op for op in program.functions["main"].operations if op.op_type == "const" and op.outputs[0].rank == 2]
    assert {op.name: op.outputs[0].shape for op in constants} == {"unit": (1, 1), "table_laid": (8, 6)}
    constants = [op for op in constants if op.name == "table_laid"]
    assert constants[0].outputs[0].val.flags.c_contiguous
    np.testing.assert_array_equal(constants[0].outputs[0].val, RANGE.reshape(6, 8).T)

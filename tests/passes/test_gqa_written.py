"""Written-out attention of which neither queries nor keys are counted: groups get an axis, and nothing is repeated."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from milopt.mil import Program, get_new_symbol, mb, shape_of, target, types
from milopt.package import load
from milopt.passes.gqa import PackGqa
from milopt.passes.gqa_written import PackAttention
from milopt.rules import apply
from milopt.testing import check_rule, holds
from milopt.text import text
from tests.testing.attentions import attention_programs, broken_programs

from .support import op_types

HEADS, SHARED, SIZE, OUT = 4, 2, 8, 6
Scores = Callable[..., Any]


def _capped(scores: Any, mask: Any) -> Any:
    scores = mb.mul(x=mb.tanh(x=mb.real_div(x=scores, y=np.float32(4))), y=np.float32(4))
    return mb.sub(x=mb.add(x=mask, y=scores), y=np.float32(1))


def _tanh(scores: Any, mask: Any) -> Any:
    return mb.tanh(x=scores)


def _added(scores: Any, mask: Any) -> Any:
    return mb.add(x=scores, y=mask)


def _tanh_added(scores: Any, mask: Any) -> Any:
    return mb.add(x=mb.tanh(x=scores), y=mask)


def _weights(scores: Any) -> Any:
    return mb.softmax(x=scores, axis=-1)


def capped(
    scored: Scores = _capped,
    *,
    weighed: Scores = _weights,
    mask: tuple[Any, ...] = (1, 1, -1, -2),
    rows: Any = None,
    keys: Any = None,
    turned: str = "",
    repeats: tuple[int, int] = (2, 2),
    opset: Any = target.iOS18,
    query: tuple[int, Any] = (HEADS, SIZE),
    batch: int = 1,
) -> Program:
    """Four heads of queries on two of keys, which are repeated; of a mask -1 are the queries and -2 the keys."""
    rows = get_new_symbol() if rows is None else rows
    keys = get_new_symbol() if keys is None else keys
    over = tuple({-1: rows, -2: keys}.get(dim, dim) for dim in mask)
    specs = [
        mb.TensorSpec((batch, query[0], query[1], rows) if turned == "x" else (batch, query[0], rows, query[1])),
        mb.TensorSpec(
            (batch, HEADS // repeats[0], SIZE, keys) if turned == "y" else (batch, HEADS // repeats[0], keys, SIZE)
        ),
        mb.TensorSpec((batch, HEADS // repeats[1], rows if turned == "weights" else keys, OUT)),
        mb.TensorSpec(over),
    ]

    def wide(x: Any, times: int, *shape: int) -> Any:
        if times == 1:
            return x
        apart = mb.tile(x=mb.expand_dims(x=x, axes=[2]), reps=[1, 1, times, 1, 1])
        return mb.reshape(x=apart, shape=[batch, HEADS, *shape])

    @mb.program(input_specs=specs, opset_version=opset)
    def program(q: Any, k: Any, v: Any, m: Any) -> Any:
        key = wide(k, repeats[0], *((SIZE, -1) if turned == "y" else (-1, SIZE)))
        product = mb.matmul(x=q, y=key, transpose_x=turned == "x", transpose_y=turned != "y", name="scores")
        weights = weighed(scored(product, m))
        return mb.matmul(x=weights, y=wide(v, repeats[1], -1, OUT), transpose_x=turned == "weights", name="out")

    return program


def _halved(scores: Any) -> Any:
    return mb.cast(x=mb.softmax(x=mb.cast(x=scores, dtype="fp16"), axis=3), dtype="fp32")


ACCEPTED: dict[str, dict[str, Any]] = {
    "capped": {},
    "without a mask": {"scored": _tanh},
    "a mask of one row": {"mask": (1, 1, 1, -2)},
    "a mask of low rank": {"mask": (-1, -2)},
    "several sequences": {"batch": 2},
    "below iOS18": {"opset": target.iOS16, "scored": _added},
    "casts around the softmax": {"weighed": _halved},
    "keys as columns": {"turned": "y"},
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_nothing_is_repeated(case: str) -> None:
    program = capped(**ACCEPTED[case])
    assert holds(PackGqa(), program)
    model = load(program)
    assert PackGqa().run(model).applied == 1
    assert "tile" not in op_types(model.program)
    (softmax,) = [op for op in model.function().operations if op.op_type == "softmax"]
    assert shape_of(softmax.x)[1:3] == (SHARED, HEADS // SHARED)
    assert shape_of(model.function().outputs[0])[1] == HEADS


def _over_queries(scores: Any) -> Any:
    return mb.softmax(x=scores, axis=-2)


def _chosen(scores: Any, mask: Any) -> Any:
    return mb.select(cond=mb.greater(x=mask, y=np.float32(0)), a=scores, b=np.float32(-1e4), name="chosen")


def _written(scores: Any) -> Any:
    powers = mb.exp(x=mb.sub(x=scores, y=mb.reduce_max(x=scores, axes=[-1], keep_dims=True)))
    return mb.real_div(x=powers, y=mb.reduce_sum(x=powers, axes=[-1], keep_dims=True))


def _zeros(scores: Any) -> Any:
    dead: Any = np.zeros((1, 1, 1, 1), bool)
    return mb.select(cond=dead, a=np.float32(0), b=mb.softmax(x=scores, axis=-1))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "keys alone are repeated": ({"repeats": (2, 1)}, "its keys and values are not repeated"),
    "values alone are repeated": ({"repeats": (1, 2)}, "its keys and values are not repeated"),
    "not as often": ({"repeats": (2, 4)}, "keys are repeated 2 times, values 4"),
    "so many queries": ({"rows": 3}, "its products can be packed one by one"),
    "so many keys": ({"keys": 5}, "its products can be packed one by one"),
    "queries as columns": ({"turned": "x"}, "its keys come first"),
    "weights of queries for keys": ({"turned": "weights"}, "its keys come first"),
    "one head of queries": ({"query": (1, SIZE)}, "its queries are of shape (1, 1, s, 8)"),
    "heads of any size": ({"query": (HEADS, get_new_symbol())}, "its queries are of shape (1, 4, s, s)"),
    "the softmax over queries": ({"weighed": _over_queries}, "its keys come first"),
    "a mask for each head": ({"mask": (1, HEADS, -1, -2)}, "a mask has heads or a batch"),
    "a mask for each head, without a batch": ({"mask": (HEADS, -1, -2)}, "a mask has heads or a batch"),
    "a mask for each of a batch": ({"mask": (2, 1, -1, -2), "batch": 2}, "a mask has heads or a batch"),
    "scores are chosen": ({"scored": _chosen}, "select may need the scores as they are"),
    "a softmax in other ops": ({"weighed": _written}, "its products are in another layout"),
    "weights are replaced": ({"weighed": _zeros}, "its products are in another layout"),
}


PLACES = {
    "its products can be packed one by one": "scores",
    "its keys come first": "scores",
    "its queries are of shape (1, 1, s, 8)": "q",
    "its queries are of shape (1, 4, s, s)": "q",
    "a mask has heads or a batch": "m",
    "select may need the scores as they are": "chosen",
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_with_its_reason(case: str) -> None:
    options, reason = REFUSED[case]
    program = capped(**options)
    before = text(program)
    report = apply(PackAttention(), program)
    assert not report
    told = [(re.sub(r"is\d+|dim\d+", "s", miss.reason), miss.place) for miss in report.misses]
    assert (reason, PLACES.get(reason, "out")) in told
    assert text(program) == before
    holds(PackGqa(), program)


def test_keys_that_are_gathered_get_an_axis_for_groups() -> None:
    rows, keys = get_new_symbol(), get_new_symbol()
    specs = [mb.TensorSpec((1, HEADS, rows, SIZE)), mb.TensorSpec((1, SHARED, keys, SIZE))]

    @mb.program(input_specs=specs, opset_version=target.iOS18)
    def program(q: Any, k: Any) -> Any:
        wide = mb.gather(x=k, indices=np.array([0, 0, 1, 1], np.int32), axis=1)
        weights = mb.softmax(x=mb.tanh(x=mb.matmul(x=q, y=wide, transpose_y=True)), axis=-1)
        return mb.matmul(x=weights, y=wide)

    assert holds(PackAttention(), program)
    assert apply(PackAttention(), program).applied == 1
    assert op_types(program).count("expand_dims") == 1


def test_values_first_are_refused() -> None:
    rows, keys = get_new_symbol(), get_new_symbol()
    specs = [mb.TensorSpec((1, HEADS, rows, SIZE)), mb.TensorSpec((1, SHARED, keys, SIZE))]

    @mb.program(input_specs=specs, opset_version=target.iOS18)
    def program(q: Any, k: Any) -> Any:
        wide = mb.gather(x=k, indices=np.array([0, 0, 1, 1], np.int32), axis=1)
        weights = mb.softmax(x=mb.tanh(x=mb.matmul(x=q, y=wide, transpose_y=True)), axis=-1)
        return mb.matmul(x=wide, y=weights, transpose_x=True, transpose_y=True)

    report = apply(PackAttention(), program)
    assert not report
    assert "its products are in another layout" in {miss.reason for miss in report.misses}


def test_keys_first_are_refused() -> None:
    length, keys = get_new_symbol(), get_new_symbol()
    shapes = [(1, HEADS, length, SIZE), (1, SHARED, keys, SIZE)]

    @mb.program(input_specs=[mb.TensorSpec(shape) for shape in shapes], opset_version=target.iOS18)
    def program(q: Any, k: Any) -> Any:
        wide = mb.reshape(x=mb.tile(x=mb.expand_dims(x=k, axes=[2]), reps=[1, 1, 2, 1, 1]), shape=[1, HEADS, -1, SIZE])
        weights = mb.softmax(x=mb.tanh(x=mb.matmul(x=wide, y=q, transpose_y=True)), axis=-2)
        return mb.matmul(x=weights, y=wide, transpose_x=True)

    report = apply(PackAttention(), program)
    assert not report
    assert {miss.reason for miss in report.misses if miss.declined} == {"its keys and values are not repeated"}


def test_the_report_of_what_was_packed_names_no_refusal() -> None:
    report = PackGqa().run(load(capped()))
    assert report.applied == 1
    assert not [miss.reason for miss in report.misses if miss.declined]


def test_golden() -> None:
    program = capped(_tanh_added)
    assert apply(PackAttention(), program).applied == 1
    assert text(program) == GOLDEN


GOLDEN = """\
main[CoreML8](%q: fp32[1, 4, s0, 8], %k: fp32[1, 2, s1, 8], %v: fp32[1, 2, s1, 6], %m: fp32[1, 1, s0, s1]) {
  %0: fp32[1, 2, 1, s1, 8] = expand_dims(x=%k, axes=[2])
  %1: fp32[1, 2, 1, s1, 6] = expand_dims(x=%v, axes=[2])
  %2: fp32[1, 2, 2, s0, 8] = reshape(x=%q, shape=[1, 2, 2, -1, 8])
  %3: fp32[1, 2, 2, s0, s1] = matmul(x=%2, y=%0, transpose_y=true)
  %4: fp32[1, 2, 2, s0, s1] = tanh(x=%3)
  %5: fp32[1, 2, 2, s0, s1] = add(x=%4, y=%m)
  %6: fp32[1, 2, 2, s0, s1] = softmax(x=%5)
  %7: fp32[1, 2, 2, s0, 6] = matmul(x=%6, y=%1)
  %8: fp32[1, 4, s0, 6] = reshape(x=%7, shape=[1, 4, -1, 6])
} -> (out=%8)
"""


def test_every_spelling_that_goes_together() -> None:
    fixed: dict[str, Any] = {"opset": target.iOS16, "symbolic": "LS", "half": False}
    programs = attention_programs(gqa="tile", keys="rows", softmax="op", **fixed)
    check_rule(PackAttention(), programs, max_examples=20)
    check_rule(PackAttention(), broken_programs(**fixed), max_examples=10, must_fire=False)


def test_half_precision_is_kept() -> None:
    length, keys = get_new_symbol(), get_new_symbol()
    shapes = [(1, HEADS, length, SIZE), (1, SHARED, keys, SIZE)]

    @mb.program(input_specs=[mb.TensorSpec(shape, types.fp16) for shape in shapes], opset_version=target.iOS18)
    def program(q: Any, k: Any) -> Any:
        wide = mb.concat(values=[mb.expand_dims(x=k, axes=[2])] * 2, axis=2)
        wide = mb.reshape(x=wide, shape=[1, HEADS, -1, SIZE])
        scores = mb.mul(x=mb.tanh(x=mb.matmul(x=q, y=wide, transpose_y=True)), y=np.float16(3))
        return mb.matmul(x=mb.softmax(x=scores, axis=-1), y=wide)

    assert holds(PackGqa(), program)
    assert apply(PackAttention(), program).applied == 1
    assert "concat" not in op_types(program)

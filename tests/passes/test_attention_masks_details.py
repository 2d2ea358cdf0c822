"""How scores are read and masks written: every step between the product and the softmax, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from milopt.mil import Program, get_new_symbol, mb
from milopt.passes.attention import FuseAttention
from milopt.passes.attention_masks import alike, fits

from .programs import Build, after, bools, fp16, fp32, program_of, reasons

L, S, E = 3, 5, 4
F32 = np.float32
LOW = F32(-1e4)

# coremltools computes with infinity as well, while it builds
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def masked(steps: Build, *, kind: Any = fp32, layers: int = 1, **inputs: Any) -> Program:
    """One attention (1, 2, L, E) or several; ``steps`` makes something of the scores and the inputs."""

    call: Callable[..., Any] = steps

    def build(q: Any, k: Any, v: Any, **given: Any) -> Any:
        made = q
        for _ in range(layers):
            scores = mb.matmul(x=made, y=k, transpose_y=True, name=f"scores_{_}" if _ else "scores")
            made = mb.matmul(x=mb.softmax(x=call(scores, **given), axis=-1), y=v)
        return made

    return program_of(build, q=kind(1, 2, L, E), k=kind(1, 2, S, E), v=kind(1, 2, S, E), **inputs)


def kept(found: list[str]) -> list[str]:
    """Without the types, the scale of q and the numbers of constants with several rows."""
    told = [line.partition(": ")[0] + line.partition("]")[2] for line in found if "x=%q, y=2.0" not in line]
    return [re.sub(r"\[\[[^=]*\], \[[^=]*\]\]", "rows", line) for line in told]


def select(scores: Any, keep: Any, low: Any = LOW) -> Any:
    return mb.select(cond=keep, a=scores, b=low)


def constant(*shape: int, empty: bool = False) -> Any:
    """A condition that leaves every row all but its first key, or the first row none."""
    made: Any = np.ones(shape, bool)
    made[..., 0] = False
    if empty:
        made[..., 0, :] = False
    return made


def by_rows(low: float) -> Build:
    return lambda x, m: select(x, m, F32(low))


STEPS: dict[str, tuple[Build, Callable[[], dict[str, Any]]]] = {
    "added": (lambda x, m: mb.add(x=x, y=m), lambda: {"m": fp32(L, S)}),
    "two are added": (lambda x, m, n: mb.add(x=mb.add(x=x, y=m), y=n), lambda: {"m": fp32(L, S), "n": fp32(1, S)}),
    "subtracted": (lambda x, m: mb.sub(x=x, y=m), lambda: {"m": fp32(L, S)}),
    "added and subtracted": (
        lambda x, m, n: mb.sub(x=mb.add(x=x, y=m), y=n),
        lambda: {"m": fp32(L, S), "n": fp32(1, S)},
    ),
    "subtracted and added": (
        lambda x, m, n: mb.add(x=mb.sub(x=x, y=m), y=n),
        lambda: {"m": fp32(L, S), "n": fp32(1, S)},
    ),
    "scaled and added": (lambda x, m: mb.add(x=mb.mul(x=x, y=F32(0.25)), y=m), lambda: {"m": fp32(L, S)}),
    "added and scaled": (lambda x, m: mb.mul(x=mb.add(x=x, y=m), y=F32(0.5)), lambda: {"m": fp32(L, S)}),
    "added, scaled and divided": (
        lambda x, m: mb.real_div(x=mb.mul(x=mb.add(x=x, y=m), y=F32(3)), y=F32(4)),
        lambda: {"m": fp32(L, S)},
    ),
    "constant": (lambda x: select(x, constant(1, S)), dict),
    "constant, the other way": (lambda x: mb.select(cond=np.logical_not(constant(1, S)), a=LOW, b=x), dict),
    "constant columns": (lambda x: select(x, constant(S)), dict),
    "a constant row without keys": (lambda x: select(x, constant(L, S, empty=True)), dict),
    "infinity": (by_rows(-np.inf), lambda: {"m": bools(L, S)}),
    "infinity, the other way": (lambda x, m: mb.select(cond=m, a=F32(-np.inf), b=x), lambda: {"m": bools(L, S)}),
    "infinity and added": (
        lambda x, m, n: mb.add(x=select(x, m, F32(-np.inf)), y=n),
        lambda: {"m": bools(L, S), "n": fp32(L, S)},
    ),
    "constant and added": (
        lambda x, n: mb.add(x=select(x, constant(1, S)), y=n),
        lambda: {"n": fp32(L, S)},
    ),
    "as low as fp32 can tell": (by_rows(-1e30), lambda: {"m": bools(L, S)}),
    "nearly as low": (by_rows(-9e29), lambda: {"m": bools(L, S)}),
    "selected": (by_rows(-1e4), lambda: {"m": bools(L, S)}),
    "selected, the other way": (lambda x, m: mb.select(cond=m, a=LOW, b=x), lambda: {"m": bools(L, S)}),
    "selected by columns": (by_rows(-1e4), lambda: {"m": bools(S)}),
    "selected and scaled": (
        lambda x, m: mb.mul(x=select(x, m, F32(-4e4)), y=F32(0.25)),
        lambda: {"m": bools(L, S)},
    ),
    "selected and added": (
        lambda x, m, n: mb.add(x=select(x, m, F32(-1e30)), y=n),
        lambda: {"m": bools(L, S), "n": fp32(1, S)},
    ),
    "added and selected": (
        lambda x, m, n: select(mb.add(x=x, y=n), m, F32(-1e30)),
        lambda: {"m": bools(L, S), "n": fp32(L, S)},
    ),
    "added in another shape and selected": (
        lambda x, m, n: select(mb.add(x=x, y=n), m, F32(-1e30)),
        lambda: {"m": bools(L, S), "n": fp32(1, S)},
    ),
    "added and selected, the other way": (
        lambda x, m, n: mb.select(cond=m, a=F32(-1e30), b=mb.add(x=x, y=n)),
        lambda: {"m": bools(L, S), "n": fp32(L, S)},
    ),
    "selected twice": (
        lambda x, m, n: select(select(x, m, F32(-np.inf)), n, F32(-1e30)),
        lambda: {"m": bools(L, S), "n": bools(1, S)},
    ),
    "casts": (
        lambda x, m: mb.cast(x=mb.cast(x=mb.add(x=x, y=m), dtype="fp16"), dtype="fp32"),
        lambda: {"m": fp32(L, S)},
    ),
    "two layers": (
        lambda x, m, n: mb.add(x=mb.select(cond=m, a=LOW, b=mb.sub(x=x, y=n)), y=n),
        lambda: {"m": bools(L, S), "n": fp32(L, S), "layers": 2},
    ),
    "two layers and infinity": (
        lambda x, m: mb.select(cond=m, a=F32(-np.inf), b=x),
        lambda: {"m": bools(L, S), "layers": 2},
    ),
}


def made(case: str) -> list[str]:
    steps, inputs = STEPS[case]
    # float64 has no fp16 in it
    return kept(after(FuseAttention(), masked(steps, **inputs()), same=case != "casts"))


@pytest.mark.parametrize("case", STEPS)
def test_what_becomes_of_steps(case: str) -> None:
    assert made(case) == EXPECTED[case]


REFUSED: dict[str, tuple[Build, Callable[[], dict[str, Any]], list[tuple[str, str]]]] = {
    "times values": (
        lambda x, m: mb.mul(x=x, y=m, name="times"),
        lambda: {"m": fp32(L, S)},
        [("times", "the scores are multiplied by values, not by one number")],
    ),
    "times an array": (
        lambda x: mb.mul(x=x, y=np.arange(S, dtype=F32), name="times"),
        dict,
        [("times", "the scores are multiplied by values, not by one number")],
    ),
    "divided by zero": (lambda x: mb.real_div(x=x, y=F32(0)), dict, [("out", "the scores are divided by zero")]),
    "values in their place": (
        lambda x, m, n: mb.select(cond=m, a=x, b=n, name="chosen"),
        lambda: {"m": bools(L, S), "n": fp32(1, 2, L, S)},
        [("chosen", "what is selected in the place of scores is not one number")],
    ),
    "an array in their place": (
        lambda x, m: mb.select(
            cond=m, a=x, b=np.random.default_rng(0).standard_normal((1, 2, L, S)).astype(F32), name="chosen"
        ),
        lambda: {"m": bools(L, S)},
        [("chosen", "what is selected in the place of scores is not one number")],
    ),
    "not low enough": (
        lambda x, m: mb.select(cond=m, a=x, b=F32(-9999), name="chosen"),
        lambda: {"m": bools(L, S)},
        [("chosen", "-9999 in the place of scores is not minus infinity")],
    ),
    "not low enough in the end": (
        lambda x, m: mb.mul(x=mb.mul(x=mb.select(cond=m, a=x, b=LOW, name="chosen"), y=F32(0.5)), y=F32(0.5)),
        lambda: {"m": bools(L, S)},
        [("chosen", "-2500 in the place of scores is not minus infinity")],
    ),
    "turned round in the end": (
        lambda x, m: mb.mul(x=mb.select(cond=m, a=x, b=LOW, name="chosen"), y=F32(-1)),
        lambda: {"m": bools(L, S)},
        [("chosen", "10000 in the place of scores is not minus infinity")],
    ),
    "capped": (
        lambda x: mb.tanh(x=x, name="capped"),
        dict,
        [("capped", "the scores are capped by tanh, which scaled_dot_product_attention can't say")],
    ),
    "in another type": (
        lambda x, m: mb.cast(x=mb.add(x=mb.cast(x=x, dtype="fp16"), y=m), dtype="fp32"),
        lambda: {"m": fp16(L, S)},
        [("m", "a fp16 mask on fp32 scores")],
    ),
    "added twice, once in another type": (
        lambda x, m, n: mb.cast(x=mb.add(x=mb.cast(x=mb.add(x=x, y=n), dtype="fp16"), y=m), dtype="fp32"),
        lambda: {"m": fp16(L, S), "n": fp32(L, S)},
        [("m", "a fp16 mask on fp32 scores")],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_with_its_reason(case: str) -> None:
    steps, inputs, expected = REFUSED[case]
    found = reasons(FuseAttention(), masked(steps, **inputs()))
    assert [why for _, why in found] == [why for _, why in expected]
    assert [place for place, _ in found] == [place for place, _ in expected] or expected[0][0] == "out"


# --- what is there already


def found(build: Build, kind: str, **wanted: Any) -> str | None:
    """The name of what serves for an op of ``kind`` before the op ``at``; ``wanted`` may name values."""
    program = program_of(build, x=fp32(1, 2, 3), y=fp32(1, 2, 3))
    function = program.functions["main"]
    values = {**function.inputs, **{op.outputs[0].name: op.outputs[0] for op in function.operations}}
    inputs: dict[str, Any] = {
        name: values[each] if isinstance(each, str) and each in values else each for name, each in wanted.items()
    }
    if "values" in inputs:
        inputs["values"] = [values[each] for each in wanted["values"]]
    anchor = values["at"].op
    assert anchor is not None
    made = alike(kind, anchor, **inputs)
    return None if made is None else made.name


def turned(**changes: Any) -> Build:
    def build(x: Any, y: Any) -> Any:
        first = mb.transpose(x=x, **{"perm": [0, 2, 1], **changes}, name="first")
        return mb.relu(x=first, name="at"), mb.transpose(x=x, perm=[2, 0, 1], name="later"), mb.relu(x=y)

    return build


def test_what_is_there_already_serves() -> None:
    assert found(turned(), "transpose", x="x", perm=[0, 2, 1]) == "first"
    assert found(turned(), "transpose", x="x", perm=[0, 1, 2]) is None
    assert found(turned(), "transpose", x="y", perm=[0, 2, 1]) is None
    assert found(turned(), "expand_dims", x="x", axes=[0]) is None


def test_what_comes_later_does_not_serve() -> None:
    assert found(turned(), "transpose", x="x", perm=[2, 0, 1]) is None
    assert found(turned(), "relu", x="first") is None  # the op itself


def sliced(**more: Any) -> Build:
    def build(x: Any, y: Any) -> Any:
        first = mb.slice_by_index(x=x, begin=[0, 0, 0], end=[1, 2, 3], **more, name="first")
        return mb.relu(x=first, name="at"), mb.relu(x=y)

    return build


def test_inputs_that_are_not_asked_for_have_their_defaults() -> None:
    wanted: dict[str, Any] = {"x": "x", "begin": [0, 0, 0], "end": [1, 2, 3]}
    assert found(sliced(), "slice_by_index", **wanted) == "first"
    assert found(sliced(stride=[1, 2, 1]), "slice_by_index", **wanted) is None
    assert found(sliced(), "slice_by_index", **wanted, stride=[1, 2, 1]) is None
    assert found(sliced(), "slice_by_index", **wanted, stride=F32(1)) is None
    assert found(sliced(begin_mask=[True, True, False]), "slice_by_index", **wanted) is None
    assert found(sliced(squeeze_mask=[True, False, False]), "slice_by_index", **wanted) is None


def joined(**more: Any) -> Build:
    def build(x: Any, y: Any) -> Any:
        first = mb.concat(values=(x, x), axis=1, **more, name="first")
        return mb.relu(x=first, name="at"), mb.relu(x=y)

    return build


def test_several_values() -> None:
    assert found(joined(), "concat", values=["x", "x"], axis=1) == "first"
    assert found(joined(), "concat", values=["x", "x"], axis=2) is None
    assert found(joined(), "concat", values=["x", "x", "x"], axis=1) is None
    assert found(joined(), "concat", values=["x"], axis=1) is None
    assert found(joined(), "concat", values=["x", "y"], axis=1) is None
    assert found(joined(interleave=True), "concat", values=["x", "x"], axis=1) is None


def test_numbers_words_and_arrays() -> None:
    def build(x: Any, y: Any) -> Any:
        half = mb.cast(x=x, dtype="fp16", name="half")
        many = mb.mul(x=x, y=np.array([1, 2, 3], F32), name="many")
        one = mb.add(x=x, y=F32(0.5), name="one")
        both = mb.sub(x=x, y=y, name="both")
        return mb.relu(x=mb.add(x=many, y=mb.add(x=one, y=both)), name="at"), half

    assert found(build, "cast", x="x", dtype="fp16") == "half"
    assert found(build, "cast", x="x", dtype="int32") is None
    assert found(build, "cast", x="x", dtype=F32(1)) is None
    assert found(build, "mul", x="x", y=np.array([1, 2, 3], F32)) == "many"
    assert found(build, "mul", x="x", y=np.array([1, 2, 4], F32)) is None
    assert found(build, "mul", x="x", y=np.array([1, 2], F32)) is None
    assert found(build, "mul", x="x", y=F32(1)) is None
    assert found(build, "add", x="x", y=F32(0.5)) == "one"
    assert found(build, "add", x="x", y=F32(0.25)) is None
    assert found(build, "add", x="x", y="fp16") is None
    assert found(build, "add", x="x", y=np.array([0.5], F32)) is None
    assert found(build, "add", x="x", y="y") is None
    assert found(build, "sub", x="x", y="y") == "both"
    assert found(build, "sub", x="x", y=F32(1)) is None


def test_other_blocks_are_left_alone() -> None:
    def build(x: Any, y: Any) -> Any:
        inside = mb.cond(
            pred=mb.greater(x=mb.reduce_max(x=y, axes=[0, 1, 2], keep_dims=False), y=F32(0)),
            _true_fn=lambda: mb.transpose(x=x, perm=[0, 2, 1], name="inside"),
            _false_fn=lambda: mb.transpose(x=y, perm=[0, 2, 1]),
            name="chosen",
        )
        return mb.relu(x=inside, name="at")

    assert found(build, "transpose", x="x", perm=[0, 2, 1]) is None


# --- what fits


@pytest.mark.parametrize(
    ("mine", "shape", "expected"),
    [
        ((), (2, 3), True),
        ((3,), (2, 3), True),
        ((1,), (2, 3), True),
        ((2,), (2, 3), False),
        ((2, 1), (2, 3), True),
        ((2, 3), (2, 3), True),
        ((2, 3), (1, 3), False),
        ((3, 1), (2, 3), False),
        ((1, 2, 3), (2, 3), False),
        ((1, 1, 1), (2, 3), False),
        (("s", 3), (2, 3), True),
        (("s", 3), (1, 3), False),
        (("s", "s"), (2, 3), True),
        ((3, 3), ("s", 3), True),
        ((1, 3), ("s", 3), True),
    ],
)
def test_what_makes_scores_no_larger(mine: Any, shape: Any, expected: bool) -> None:
    symbol = get_new_symbol()
    mine, shape = (tuple(symbol if dim == "s" else dim for dim in each) for each in (mine, shape))
    var = mb.placeholder(shape=mine or (1,)).outputs[0]
    if not mine:
        program = program_of(lambda x: mb.squeeze(x=x, axes=[0], name="number"), x=fp32(1))
        var = program.functions["main"].outputs[0]
    assert fits(var, shape) is expected


EXPECTED: dict[str, list[str]] = {
    "added": [
        "%1 = scaled_dot_product_attention(query=%0, key=%k, value=%v, attn_mask=%m)",
    ],
    "two are added": [
        "%1 = add(x=%m, y=%n)",
        "%2 = scaled_dot_product_attention(query=%0, key=%k, value=%v, attn_mask=%1)",
    ],
    "subtracted": [
        "%1 = mul(x=%m, y=-1.0)",
        "%2 = scaled_dot_product_attention(query=%0, key=%k, value=%v, attn_mask=%1)",
    ],
    "added and subtracted": [
        "%1 = sub(x=%m, y=%n)",
        "%2 = scaled_dot_product_attention(query=%0, key=%k, value=%v, attn_mask=%1)",
    ],
    "subtracted and added": [
        "%1 = mul(x=%m, y=-1.0)",
        "%2 = add(x=%1, y=%n)",
        "%3 = scaled_dot_product_attention(query=%0, key=%k, value=%v, attn_mask=%2)",
    ],
    "scaled and added": [
        "%0 = mul(x=%q, y=0.5)",
        "%1 = scaled_dot_product_attention(query=%0, key=%k, value=%v, attn_mask=%m)",
    ],
    "added and scaled": [
        "%0 = mul(x=%m, y=0.5)",
        "%1 = scaled_dot_product_attention(query=%q, key=%k, value=%v, attn_mask=%0)",
    ],
    "added, scaled and divided": [
        "%0 = mul(x=%q, y=1.5)",
        "%1 = mul(x=%m, y=3.0)",
        "%2 = mul(x=%1, y=0.25)",
        "%3 = scaled_dot_product_attention(query=%0, key=%k, value=%v, attn_mask=%2)",
    ],
    "constant": [
        "%1 = scaled_dot_product_attention(query=%0, key=%k, value=%v, attn_mask=[[false, true, true, true, true]])",
    ],
    "constant, the other way": [
        "%1 = logical_not(x=[[true, false, false, false, false]])",
        "%2 = scaled_dot_product_attention(query=%0, key=%k, value=%v, attn_mask=%1)",
    ],
    "constant columns": [
        "%1 = scaled_dot_product_attention(query=%0, key=%k, value=%v, attn_mask=[false, true, true, true, true])",
    ],
    "a constant row without keys": [
        '%1 = cast(x=rows, dtype="fp32")',
        "%2 = reduce_max(x=%1, axes=[-1], keep_dims=true)",
        "%3 = mul(x=%0, y=%2)",
        "%4 = mul(x=%1, y=0.0)",
        "%5 = select(cond=rows, a=%4, b=-10000.0)",
        "%6 = scaled_dot_product_attention(query=%3, key=%k, value=%v, attn_mask=%5)",
    ],
    "infinity": [
        "%1 = scaled_dot_product_attention(query=%0, key=%k, value=%v, attn_mask=%m)",
    ],
    "infinity, the other way": [
        "%1 = logical_not(x=%m)",
        "%2 = scaled_dot_product_attention(query=%0, key=%k, value=%v, attn_mask=%1)",
    ],
    "infinity and added": [
        '%1 = cast(x=%m, dtype="fp32")',
        "%2 = mul(x=%1, y=0.0)",
        "%3 = select(cond=%m, a=%2, b=-inf)",
        "%4 = add(x=%3, y=%n)",
        "%5 = scaled_dot_product_attention(query=%0, key=%k, value=%v, attn_mask=%4)",
    ],
    "constant and added": [
        '%1 = cast(x=[[false, true, true, true, true]], dtype="fp32")',
        "%2 = mul(x=%1, y=0.0)",
        "%3 = select(cond=[[false, true, true, true, true]], a=%2, b=-10000.0)",
        "%4 = add(x=%3, y=%n)",
        "%5 = scaled_dot_product_attention(query=%0, key=%k, value=%v, attn_mask=%4)",
    ],
    "as low as fp32 can tell": [
        '%1 = cast(x=%m, dtype="fp32")',
        "%2 = mul(x=%1, y=0.0)",
        "%3 = select(cond=%m, a=%2, b=-1e+30)",
        "%4 = scaled_dot_product_attention(query=%0, key=%k, value=%v, attn_mask=%3)",
    ],
    "nearly as low": [
        '%1 = cast(x=%m, dtype="fp32")',
        "%2 = reduce_max(x=%1, axes=[-1], keep_dims=true)",
        "%3 = mul(x=%0, y=%2)",
        "%4 = mul(x=%1, y=0.0)",
        "%5 = select(cond=%m, a=%4, b=-9e+29)",
        "%6 = scaled_dot_product_attention(query=%3, key=%k, value=%v, attn_mask=%5)",
    ],
    "selected": [
        '%1 = cast(x=%m, dtype="fp32")',
        "%2 = reduce_max(x=%1, axes=[-1], keep_dims=true)",
        "%3 = mul(x=%0, y=%2)",
        "%4 = mul(x=%1, y=0.0)",
        "%5 = select(cond=%m, a=%4, b=-10000.0)",
        "%6 = scaled_dot_product_attention(query=%3, key=%k, value=%v, attn_mask=%5)",
    ],
    "selected, the other way": [
        "%1 = logical_not(x=%m)",
        '%2 = cast(x=%1, dtype="fp32")',
        "%3 = reduce_max(x=%2, axes=[-1], keep_dims=true)",
        "%4 = mul(x=%0, y=%3)",
        '%5 = cast(x=%m, dtype="fp32")',
        "%6 = mul(x=%5, y=0.0)",
        "%7 = select(cond=%m, a=-10000.0, b=%6)",
        "%8 = scaled_dot_product_attention(query=%4, key=%k, value=%v, attn_mask=%7)",
    ],
    "selected by columns": [
        '%1 = cast(x=%m, dtype="fp32")',
        "%2 = reduce_max(x=%1, axes=[-1], keep_dims=true)",
        "%3 = mul(x=%0, y=%2)",
        "%4 = mul(x=%1, y=0.0)",
        "%5 = select(cond=%m, a=%4, b=-10000.0)",
        "%6 = scaled_dot_product_attention(query=%3, key=%k, value=%v, attn_mask=%5)",
    ],
    "selected and scaled": [
        "%0 = mul(x=%q, y=0.5)",
        '%1 = cast(x=%m, dtype="fp32")',
        "%2 = reduce_max(x=%1, axes=[-1], keep_dims=true)",
        "%3 = mul(x=%0, y=%2)",
        "%4 = mul(x=%1, y=0.0)",
        "%5 = select(cond=%m, a=%4, b=-40000.0)",
        "%6 = mul(x=%5, y=0.25)",
        "%7 = scaled_dot_product_attention(query=%3, key=%k, value=%v, attn_mask=%6)",
    ],
    "selected and added": [
        '%1 = cast(x=%m, dtype="fp32")',
        "%2 = mul(x=%1, y=0.0)",
        "%3 = select(cond=%m, a=%2, b=-1e+30)",
        "%4 = add(x=%3, y=%n)",
        "%5 = scaled_dot_product_attention(query=%0, key=%k, value=%v, attn_mask=%4)",
    ],
    "added and selected": [
        "%1 = select(cond=%m, a=%n, b=-1e+30)",
        "%2 = scaled_dot_product_attention(query=%0, key=%k, value=%v, attn_mask=%1)",
    ],
    "added in another shape and selected": [
        '%1 = cast(x=%m, dtype="fp32")',
        "%2 = mul(x=%1, y=0.0)",
        "%3 = add(x=%2, y=%n)",
        "%4 = select(cond=%m, a=%3, b=-1e+30)",
        "%5 = scaled_dot_product_attention(query=%0, key=%k, value=%v, attn_mask=%4)",
    ],
    "added and selected, the other way": [
        "%1 = select(cond=%m, a=-1e+30, b=%n)",
        "%2 = scaled_dot_product_attention(query=%0, key=%k, value=%v, attn_mask=%1)",
    ],
    "selected twice": [
        '%1 = cast(x=%m, dtype="fp32")',
        "%2 = mul(x=%1, y=0.0)",
        "%3 = select(cond=%m, a=%2, b=-inf)",
        '%4 = cast(x=%n, dtype="fp32")',
        "%5 = mul(x=%4, y=0.0)",
        "%6 = add(x=%5, y=%3)",
        "%7 = select(cond=%n, a=%6, b=-1e+30)",
        "%8 = scaled_dot_product_attention(query=%0, key=%k, value=%v, attn_mask=%7)",
    ],
    "casts": [
        "%1 = scaled_dot_product_attention(query=%0, key=%k, value=%v, attn_mask=%m)",
    ],
    "two layers": [
        "%1 = logical_not(x=%m)",
        '%2 = cast(x=%1, dtype="fp32")',
        "%3 = reduce_max(x=%2, axes=[-1], keep_dims=true)",
        "%4 = mul(x=%0, y=%3)",
        "%5 = mul(x=%n, y=-1.0)",
        "%6 = select(cond=%m, a=-10000.0, b=%5)",
        "%7 = add(x=%6, y=%n)",
        "%8 = scaled_dot_product_attention(query=%4, key=%k, value=%v, attn_mask=%7)",
        "%9 = mul(x=%8, y=2.0)",
        "%10 = mul(x=%9, y=%3)",
        "%11 = scaled_dot_product_attention(query=%10, key=%k, value=%v, attn_mask=%7)",
    ],
    "two layers and infinity": [
        "%1 = logical_not(x=%m)",
        "%2 = scaled_dot_product_attention(query=%0, key=%k, value=%v, attn_mask=%1)",
        "%3 = mul(x=%2, y=2.0)",
        "%4 = scaled_dot_product_attention(query=%3, key=%k, value=%v, attn_mask=%1)",
    ],
}

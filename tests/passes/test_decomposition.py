"""decompose-sdpa: every style computes what the op does, and fuse-sdpa brings it back."""

from __future__ import annotations

from collections import Counter
from typing import Any, cast

import numpy as np
import pytest

from milopt.errors import PassError
from milopt.interpreter import evaluate
from milopt.metrics import Lossy
from milopt.mil import Program, get_new_symbol, mb, target, types
from milopt.package import load
from milopt.passes.decomposition import DecomposeSdpa, RestyleAttention
from milopt.pipeline import Pipeline
from milopt.rules import apply
from milopt.testing import check_pass, holds
from milopt.text import text
from milopt.verify import compare
from tests.testing.attentions import Spelling, attention_programs, fused_programs, spelled
from tests.verify.decoders import Decoder

from .support import op_types

STYLES = ("matmul", "per-head", "split-einsum", "sliced-q")


def fused(mask: str = "rows", *, rows: Any = 5, kind: Any = types.fp32, groups: int = 1, size: int = 8) -> Program:
    heads = 4
    shape = {
        "rows": (1, 1, rows, 6),
        "row": (1, 1, 1, 6),
        "bool": (1, 1, rows, 6),
        "low": (rows, 6),
        "heads": (1, heads, rows, 6),
        "heads, rank 3": (heads, rows, 6),
        "all heads, rank 3": (1, rows, 6),
    }
    specs = [
        mb.TensorSpec((1, heads, rows, size), kind),
        mb.TensorSpec((1, heads // groups, 6, size), kind),
        mb.TensorSpec(shape.get(mask, (1,)), types.bool if mask == "bool" else kind),
    ]

    @mb.program(input_specs=specs, opset_version=target.iOS18)
    def program(q: Any, k: Any, mask_: Any) -> Any:
        value = mb.relu(x=k)
        if groups > 1:
            k, value = (
                mb.reshape(
                    x=mb.tile(x=mb.expand_dims(x=x, axes=[2]), reps=[1, 1, groups, 1, 1]), shape=[1, heads, 6, size]
                )
                for x in (k, value)
            )
        masks = {} if mask == "none" else {"attn_mask": mask_}
        return mb.scaled_dot_product_attention(query=q, key=k, value=value, **masks, name="out")

    return program


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("mask", ["none", "rows", "row", "bool", "low", "heads", "heads, rank 3", "all heads, rank 3"])
@pytest.mark.parametrize("style", STYLES)
def test_every_style_computes_the_same(style: Any, mask: str, groups: int) -> None:
    program = fused(mask, groups=groups)
    each = DecomposeSdpa(style=style, rows=2)
    assert holds(each, program)
    model = load(program)
    each.run(model)
    assert "scaled_dot_product_attention" not in op_types(model.program)
    assert ("tile" in op_types(model.program)) == (groups > 1 and style == "sliced-q")


@pytest.mark.parametrize("style", STYLES)
def test_there_and_back(style: Any) -> None:
    model = load(fused("rows", groups=1))
    start = model.clone()
    DecomposeSdpa(style=style, rows=2).run(model)
    Pipeline.parse("canonicalize,fuse-sdpa").run(model)
    attentions = op_types(model.program).count("scaled_dot_product_attention")
    assert attentions == (3 if style == "sliced-q" else 1)
    assert compare(start, model)


COUNTS = {
    "matmul": {"matmul": 2, "softmax": 1, "split": 0},
    "per-head": {"matmul": 8, "softmax": 4, "split": 3, "concat": 1},
    "split-einsum": {"einsum": 8, "softmax": 4, "split": 3, "concat": 1, "transpose": 5},
    "sliced-q": {"matmul": 6, "softmax": 3, "slice_by_index": 6, "concat": 1},
}


@pytest.mark.parametrize("style", STYLES)
def test_what_a_style_is_made_of(style: Any) -> None:
    model = load(fused())
    DecomposeSdpa(style=style, rows=2).run(model)
    made = Counter(op_types(model.program))
    assert {kind: made[kind] for kind in COUNTS[style]} == COUNTS[style]


def test_golden() -> None:
    model = load(fused("bool"))
    DecomposeSdpa(style="matmul").run(model)
    assert text(model) == GOLDEN


GOLDEN = """\
main[CoreML8](%q: fp32[1, 4, 5, 8], %k: fp32[1, 4, 6, 8], %mask_: bool[1, 1, 5, 6]) {
  %0: fp32[1, 4, 6, 8] = relu(x=%k)
  %1: fp32[1, 4, 5, 8] = mul(x=%q, y=0.35355338)
  %2: fp32[1, 1, 5, 6] = cast(x=%mask_, dtype="fp32")
  %3: fp32[1, 1, 5, 6] = mul(x=%2, y=0.0)
  %4: fp32[1, 1, 5, 6] = select(cond=%mask_, a=%3, b=-40000.0)
  %5: fp32[1, 4, 5, 6] = matmul(x=%1, y=%k, transpose_y=true)
  %6: fp32[1, 4, 5, 6] = add(x=%5, y=%4)
  %7: fp32[1, 4, 5, 6] = softmax(x=%6)
  %8: fp32[1, 4, 5, 8] = matmul(x=%7, y=%0)
} -> (out=%8)
"""


@pytest.mark.parametrize("style", STYLES)
def test_scores_in_fp16_are_scaled_before_they_can_overflow(style: Any) -> None:
    """q·k of 64 features of 40 is 102,400, beyond fp16; scaled by 1/8 it is 12,800."""
    program = fused("rows", kind=types.fp16, size=64)
    model = load(program)
    report = DecomposeSdpa(style=style, rows=2).run(model)
    assert report.metric is None  # 1/8 is exact
    assert compare(load(program), model)
    large: Any = np.full((1, 4, 5, 64), 40, np.float16)
    inputs = {"q": large, "k": large[:, :, :1].repeat(6, 2), "mask_": np.zeros((1, 1, 5, 6), np.float16)}
    (out,) = evaluate(model.program, inputs, precision="declared-strict").values()
    np.testing.assert_allclose(out, 40, rtol=2**-10)


def test_a_scale_that_fp16_rounds_is_declared() -> None:
    model = load(fused("rows", kind=types.fp16, size=8))
    report = DecomposeSdpa().run(model)
    assert report.metric == Lossy(min_snr_db=40)
    assert report.notes == ["1/sqrt(E) is rounded to fp16 where scaled_dot_product_attention computes it exactly"]


def test_masks_of_booleans_are_added_and_finite() -> None:
    model = load(fused("bool", kind=types.fp16))
    DecomposeSdpa().run(model)
    numbers = [op.b.val for op in model.program.functions["main"].operations if op.op_type == "select"]
    assert [float(each) for each in numbers] == [-40000.0]


@pytest.mark.parametrize("style", ["per-head", "split-einsum", "sliced-q"])
def test_below_ios18_attention_is_brought_into_the_style(style: Any) -> None:
    program = spelled(Spelling(opset=target.iOS16))
    each = DecomposeSdpa(style=style, rows=2)
    assert holds(each, program)
    model = load(program)
    each.run(model)
    made = Counter(op_types(model.program))
    assert made["softmax"] == (2 if style == "sliced-q" else 3)
    assert bool(made["einsum"]) == (style == "split-einsum")
    assert model.program.functions["main"].opset_version == target.iOS16


def test_below_ios18_two_scales_that_become_one_are_declared() -> None:
    program = spelled(Spelling(opset=target.iOS16, scale="query and key", number=0.3, half=True))
    report = DecomposeSdpa(style="per-head").run(load(program))
    assert report.metric == Lossy(min_snr_db=40)
    assert report.notes == ["two scales are one, which fp16 rounds"]
    once = DecomposeSdpa(style="per-head").run(load(spelled(Spelling(opset=target.iOS16, half=True))))
    assert (once.applied, once.metric, once.notes) == (1, None, [])


def test_below_ios18_matmuls_stay() -> None:
    report = DecomposeSdpa().run(load(spelled(Spelling(opset=target.iOS16))))
    assert not report
    assert "it is written as matmuls already" in [miss.reason for miss in report.misses]


def plain(lead: tuple[int, ...], mask: Any = None, *, rows: Any = 5, kind: Any = types.fp32) -> Program:
    """Attention of 6 keys; ``mask`` is a constant, or the shape of an input."""
    specs = [mb.TensorSpec((*lead, rows, 8), kind), mb.TensorSpec((*lead, 6, 8), kind)]
    given = isinstance(cast("object", mask), tuple)

    def three(q: Any, k: Any, m: Any) -> Any:
        return mb.scaled_dot_product_attention(query=q, key=k, value=mb.relu(x=k), attn_mask=m, name="out")

    def two(q: Any, k: Any) -> Any:
        masks = {} if mask is None else {"attn_mask": mask}
        return mb.scaled_dot_product_attention(query=q, key=k, value=mb.relu(x=k), **masks, name="out")

    if given:
        return mb.program(input_specs=[*specs, mb.TensorSpec(mask, kind)], opset_version=target.iOS18)(three)
    return mb.program(input_specs=specs, opset_version=target.iOS18)(two)


@pytest.mark.parametrize("style", STYLES)
def test_one_head(style: Any) -> None:
    program = plain((1, 1), (1, 1, 5, 6))
    assert holds(DecomposeSdpa(style=style, rows=2), program)
    model = load(program)
    DecomposeSdpa(style=style, rows=2).run(model)
    assert ("concat" in op_types(model.program)) == (style == "sliced-q")


def test_slices_of_queries_without_heads() -> None:
    program = plain((2,), (2, 5, 6))
    assert holds(DecomposeSdpa(style="sliced-q", rows=2), program)
    assert holds(DecomposeSdpa(style="sliced-q", rows=5), program)
    model = load(program)
    DecomposeSdpa(style="sliced-q", rows=5).run(model)
    assert "concat" not in op_types(model.program)


def causal(low: float, *, empty: bool = False) -> Any:
    """A constant mask that leaves the first row one key, or none."""
    keep = np.tril(np.ones((5, 6), bool), -1 if empty else 0)
    return np.where(keep, 0, low).astype(np.float32)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("low", [-np.inf, -1e30, -4e4, -1e4])
def test_constant_masks_are_finite(low: float, style: Any) -> None:
    """What is below the fill of masks is raised to it, where every row keeps a key."""
    program = plain((1, 2), causal(low))
    assert holds(DecomposeSdpa(style=style, rows=2), program)
    model = load(program)
    DecomposeSdpa(style=style, rows=2).run(model)
    assert ("maximum" in op_types(model.program)) == (low < -4e4)


def test_a_constant_mask_that_empties_a_row_stays() -> None:
    """Raised to the same number for all keys it would be the mean of all values, and not what it was."""
    program = plain((1, 2), causal(-1e30, empty=True))
    assert holds(DecomposeSdpa(), program)
    model = load(program)
    DecomposeSdpa().run(model)
    assert "maximum" not in op_types(model.program)


def test_a_mask_of_an_unknown_number_of_rows_is_not_sliced() -> None:
    report = DecomposeSdpa(style="sliced-q", rows=2).run(load(plain((1, 2), (1, 1, get_new_symbol(), 6))))
    assert not report
    assert [(miss.place, miss.reason) for miss in report.misses] == [("m", "the mask has an unknown number of rows")]


REFUSALS = {
    ("per-head", "rank 3"): "of rank 3, it has no axis of heads",
    ("sliced-q", "queries"): "the number of queries is not known",
}


@pytest.mark.parametrize(("style", "what"), REFUSALS)
def test_refuses_with_its_reason(style: Any, what: str) -> None:
    lead: tuple[int, ...] = (2,) if what == "rank 3" else (1, 2)
    rows: Any = get_new_symbol() if what == "queries" else 3
    specs = [mb.TensorSpec((*lead, rows, 8)), mb.TensorSpec((*lead, 5, 8))]

    @mb.program(input_specs=specs, opset_version=target.iOS18)
    def program(q: Any, k: Any) -> Any:
        return mb.scaled_dot_product_attention(query=q, key=k, value=k)

    report = DecomposeSdpa(style=style).run(load(program))
    assert not report
    assert [(miss.place, miss.reason) for miss in report.misses] == [("q", REFUSALS[style, what])]


@pytest.mark.parametrize("style", STYLES)
def test_sizes_that_are_not_known(style: Any) -> None:
    size = get_new_symbol()
    specs = [mb.TensorSpec((1, 2, 3, size)), mb.TensorSpec((1, 2, 5, size))]

    @mb.program(input_specs=specs, opset_version=target.iOS18)
    def program(q: Any, k: Any) -> Any:
        return mb.scaled_dot_product_attention(query=q, key=k, value=k)

    report = DecomposeSdpa(style=style, rows=2).run(load(program))
    assert [(miss.place, miss.reason) for miss in report.misses] == [("q", "the head size is not known")]


@pytest.mark.parametrize("style", ["per-head", "split-einsum"])
def test_heads_of_unknown_number(style: Any) -> None:
    heads = get_new_symbol()
    report = DecomposeSdpa(style=style).run(load(plain((1, heads))))
    assert [(miss.place, miss.reason) for miss in report.misses] == [("q", "the number of heads is not known")]


def written(*, heads: int = 2, keys: int = 2, rows: int = 3, opset: Any = target.iOS16) -> Program:
    specs = [mb.TensorSpec((1, heads, rows, 8)), mb.TensorSpec((1, keys, 5, 8)), mb.TensorSpec((1, keys, 5, 6))]

    @mb.program(input_specs=specs, opset_version=opset)
    def program(q: Any, k: Any, v: Any) -> Any:
        weights = mb.softmax(x=mb.matmul(x=q, y=k, transpose_y=True), axis=-1)
        return mb.matmul(x=weights, y=v, name="out")

    return program


@pytest.mark.parametrize(
    ("style", "rows", "built", "place", "reason"),
    [
        ("sliced-q", 3, written(), "q", "3 queries are no more than a slice"),
        ("per-head", 1, written(heads=1, keys=1), "q", "it has one head"),
        ("split-einsum", 1, written(heads=1, keys=1), "q", "it has one head"),
        ("per-head", 1, written(keys=1), "q", "q, k and v differ in batch"),
        ("matmul", 1, written(), "q", "it is written as matmuls already"),
        ("per-head", 1, written(opset=target.iOS18), "out", "the op exists in iOS18: fuse-sdpa comes first"),
        ("per-head", 1, spelled(Spelling(opset=target.iOS16, keys="einsum")), "", "it is an einsum already"),
    ],
)
def test_what_is_written_out_and_stays(style: Any, rows: int, built: Program, place: str, reason: str) -> None:
    before = text(built)
    report = apply(RestyleAttention(style, rows), built)
    assert not report
    assert text(built) == before
    declined = [miss for miss in report.misses if miss.declined]
    assert [miss.reason for miss in declined] == [reason]
    assert place in ("", declined[0].place)


def test_more_queries_than_a_slice() -> None:
    model = load(written())
    assert DecomposeSdpa(style="sliced-q", rows=2).run(model)
    assert op_types(model.program).count("softmax") == 2


def test_what_is_left_out() -> None:
    assert DecomposeSdpa() == DecomposeSdpa(style="matmul", rows=512)
    assert DecomposeSdpa(rows=1).rows == 1


def test_two_heads_are_written_apart() -> None:
    built = written()
    assert apply(RestyleAttention("per-head", 1), built).applied == 1
    assert op_types(built).count("softmax") == 2


def test_queries_without_heads_are_counted_too() -> None:
    unknown = DecomposeSdpa(style="sliced-q", rows=2).run(load(plain((2,), rows=get_new_symbol())))
    assert [miss.reason for miss in unknown.misses] == ["the number of queries is not known"]
    specs = [mb.TensorSpec((2, 3, 8)), mb.TensorSpec((2, 5, 8))]

    @mb.program(input_specs=specs, opset_version=target.iOS16)
    def program(q: Any, k: Any) -> Any:
        return mb.matmul(x=mb.softmax(x=mb.matmul(x=q, y=k, transpose_y=True), axis=-1), y=k)

    report = apply(RestyleAttention("sliced-q", 3), program)
    assert [miss.reason for miss in report.misses if miss.declined] == ["3 queries are no more than a slice"]
    assert apply(RestyleAttention("sliced-q", 2), program).applied == 1


def test_options_as_text() -> None:
    assert str(Pipeline.parse("decompose-sdpa{style=split-einsum}")) == "decompose-sdpa{style=split-einsum}"
    with pytest.raises(PassError, match="style is one of matmul, per-head, split-einsum, sliced-q"):
        Pipeline.parse("decompose-sdpa{style=fast}")
    with pytest.raises(PassError, match="rows is 1 or more, not 0"):
        Pipeline.parse("decompose-sdpa{rows=0}")


@pytest.mark.parametrize("style", STYLES)
def test_many_programs(style: Any) -> None:
    each = DecomposeSdpa(style=style, rows=2)
    check_pass(each, fused_programs(fp16=True), max_examples=25)
    check_pass(each, fused_programs(shared=True), max_examples=25)
    older = attention_programs(opset=target.iOS16, half=False)
    check_pass(each, older, max_examples=15, must_fire=style != "matmul")


@pytest.mark.parametrize("style", STYLES)
def test_attention_over_states(style: Any) -> None:
    """Behind kv-to-state: keys and values of shared heads come from the state, and only sliced-q repeats them."""
    model = Decoder().stateless()
    text_ = f"canonicalize,fuse-sdpa,kv-to-state,decompose-sdpa{{style={style},rows=2}}"
    report = Pipeline.parse(text_).run(model, verify="each")
    assert all(report.verdicts)
    left = [op for name in model.functions for op in op_types(model.program, name)]
    assert "scaled_dot_product_attention" not in left
    assert ("tile" in left) == (style == "sliced-q")

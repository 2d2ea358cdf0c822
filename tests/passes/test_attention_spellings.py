"""fuse-sdpa on attention put together from every part: what must fuse, and what must not or must agree.

``MILOPT_SPELLINGS`` says how many are drawn; ``make fuzz`` draws thousands.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from milopt.interpreter import evaluate
from milopt.metrics import Lossy
from milopt.mil import Program, mb, target, types
from milopt.package import load
from milopt.passes.attention import FuseAttention, FuseSdpa
from milopt.rules import apply
from milopt.testing import holds
from milopt.text import text
from milopt.verify import compare
from tests.testing.attentions import BREAKS, MASKS, Spelling, attentions, broken_attentions, spelled

from .support import op_types

COUNT = int(os.environ.get("MILOPT_SPELLINGS", "100"))

# coremltools computes with infinity as well, while it builds
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

drawn = settings(
    max_examples=COUNT,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@drawn
@given(spelling=attentions())
def test_every_spelling_fuses_and_agrees(spelling: Spelling) -> None:
    program = spelled(spelling)
    assert holds(FuseSdpa(), program)
    model = load(program)
    report = FuseSdpa().run(model)
    left = op_types(model.program)
    assert left.count("scaled_dot_product_attention") == 1, str(report)
    assert not {"softmax", "exp", "einsum", "matmul"} & set(left), str(report)


@drawn
@given(spelling=broken_attentions(), other=st.sampled_from(BREAKS))
def test_a_near_miss_is_refused_or_agrees(spelling: Spelling, other: str) -> None:
    try:
        program = spelled(spelling)
    except ValueError:  # MIL itself refuses some
        program = spelled(replace(spelling, broken="tanh" if other == "mask enlarges" else ""))
    holds(FuseSdpa(), program)


@pytest.mark.parametrize("rank", [3, 4, 5])
@pytest.mark.parametrize("mask", MASKS)
def test_every_mask_in_every_rank(mask: str, rank: int) -> None:
    spelling = Spelling(mask=mask, rank=rank)
    if spelling.sound:
        assert holds(FuseSdpa(), spelled(spelling))


REASONS = {
    "tanh": "the scores are capped by tanh, which scaled_dot_product_attention can't say",
    "sink": "a column that is no key joins the softmax (an attention sink)",
    "softmax over queries": "the weights are not summed over the keys",
    "weights used": "a matched value is also used outside the match",
    "scores used": "a matched value is also used outside the match",
    "one column": "the mask has (1,) columns for 5 keys",
    "scores times values": "the scores are multiplied by values, not by one number",
}


@pytest.mark.parametrize("broken", REASONS)
def test_refuses_with_its_reason(broken: str) -> None:
    program = spelled(Spelling(broken=broken))
    before = text(program)
    report = apply(FuseAttention(), program)
    assert not report
    assert REASONS[broken] in [miss.reason for miss in report.misses]
    assert text(program) == before


def filled(low: float, factor: float = 1.0) -> Program:
    """``low`` in the place of the scores of the first key, and a factor after it."""
    specs = [mb.TensorSpec((1, 2, 3, 8)), mb.TensorSpec((1, 2, 5, 8)), mb.TensorSpec((1, 2, 5, 6))]
    keep: Any = np.arange(5)[None, None, None] > 0

    @mb.program(input_specs=specs, opset_version=target.iOS18)
    def program(q: Any, k: Any, v: Any) -> Any:
        scores = mb.select(
            cond=np.broadcast_to(keep, (1, 1, 3, 5)), a=mb.matmul(x=q, y=k, transpose_y=True), b=np.float32(low)
        )
        scores = mb.mul(x=scores, y=np.float32(factor)) if factor != 1 else scores
        return mb.matmul(x=mb.softmax(x=scores, axis=-1), y=v)

    return program


@pytest.mark.parametrize(
    ("low", "factor", "in_the_end"),
    [(-5, 1, "-5"), (-1e3, 1, "-1000"), (-9984, 1, "-9984"), (-2e4, 0.25, "-5000"), (-39968, 0.25, "-9992")],
)
def test_a_number_that_is_not_minus_infinity_is_refused(low: float, factor: float, in_the_end: str) -> None:
    report = apply(FuseAttention(), filled(low, factor))
    assert not report
    assert f"{in_the_end} in the place of scores is not minus infinity" in [miss.reason for miss in report.misses]


@pytest.mark.parametrize(("low", "factor"), [(-1e4, 1), (-4e4, 0.25), (-np.inf, 1)])
def test_a_number_as_low_as_masks_have_is_minus_infinity(low: float, factor: float) -> None:
    program = filled(low, factor)
    assert holds(FuseAttention(), program)
    assert apply(FuseAttention(), program).applied == 1


def test_minus_a_thousand_is_not_low_beside_low_scores() -> None:
    """Where all scores are -2000, the one that was replaced by -1000 takes all the weight."""
    rng = np.random.default_rng(3)
    q: Any = np.full((1, 2, 3, 8), 16.0)
    inputs: dict[str, Any] = {"q": q, "k": -q[:, :, :1].repeat(5, 2), "v": rng.standard_normal((1, 2, 5, 6))}
    (made,) = evaluate(filled(-1e3), inputs, precision="float64").values()
    np.testing.assert_allclose(made, inputs["v"][:, :, :1].repeat(3, 2), rtol=1e-6)  # v is handed in as fp32


def masked_rows(low: float) -> Program:
    """Scores are replaced where a condition, which may leave a row without keys, does not hold."""
    specs = [
        mb.TensorSpec((1, 2, 3, 8)),
        mb.TensorSpec((1, 2, 5, 8)),
        mb.TensorSpec((1, 2, 5, 6)),
        mb.TensorSpec((1, 1, 3, 5)),
    ]

    @mb.program(input_specs=specs, opset_version=target.iOS18)
    def program(q: Any, k: Any, v: Any, m: Any) -> Any:
        scores = mb.matmul(x=q, y=k, transpose_y=True)
        scores = mb.select(cond=mb.greater(x=m, y=0.0), a=scores, b=low)
        return mb.matmul(x=mb.softmax(x=scores, axis=-1), y=v)

    return program


@pytest.mark.parametrize("low", [-1e4, -1e30])
def test_a_row_without_keys_stays_the_mean_of_all_values(low: float) -> None:
    before, after = masked_rows(low), masked_rows(low)
    assert apply(FuseAttention(), after).applied == 1
    rng = np.random.default_rng(0)
    inputs: dict[str, Any] = {
        name: rng.standard_normal(var.shape).astype(np.float32) for name, var in before.functions["main"].inputs.items()
    }
    inputs["m"][0, 0, 1] = -1
    inputs["m"][0, 0, [0, 2], 0] = 1
    first, second = (next(iter(evaluate(each, inputs, precision="float64").values())) for each in (before, after))
    np.testing.assert_allclose(first[0, :, 1], inputs["v"].mean(axis=2)[0], rtol=1e-6, atol=1e-6)
    # as near as the factor sqrt(8) is to its fp32 constant
    np.testing.assert_allclose(second, first, rtol=1e-6, atol=1e-6)


def test_masks_are_made_once_for_all_layers() -> None:
    specs = [mb.TensorSpec((1, 2, 3, 8)), mb.TensorSpec((1, 1, 3, 3)), mb.TensorSpec((2, 1, 3))]

    @mb.program(input_specs=specs, opset_version=target.iOS18)
    def program(x: Any, mask: Any, bias: Any) -> Any:
        for _ in range(3):
            scores = mb.add(x=mb.add(x=mb.matmul(x=x, y=x, transpose_y=True), y=bias), y=mask)
            x = mb.matmul(x=mb.softmax(x=scores, axis=-1), y=x)
        return x

    assert apply(FuseAttention(), program).applied == 3
    assert op_types(program).count("add") == 1


def test_a_scale_before_the_heads_are_moved_is_taken_out() -> None:
    """OPT scales what its linear gives: with 1/sqrt(E) there is no product left."""
    model = load(spelled(Spelling(scale="before moves", number=8**-0.5)))
    assert FuseSdpa().run(model)
    assert op_types(model.program) == ["transpose", "scaled_dot_product_attention"]


def test_values_padded_to_the_size_of_keys() -> None:
    specs = [mb.TensorSpec((1, 2, 3, 8)), mb.TensorSpec((1, 2, 5, 8)), mb.TensorSpec((1, 2, 5, 6))]

    @mb.program(input_specs=specs, opset_version=target.iOS18)
    def program(q: Any, k: Any, v: Any) -> Any:
        wide = mb.pad(x=v, pad=[0, 0, 0, 2], mode="constant", constant_val=0.0)
        made = mb.matmul(x=mb.softmax(x=mb.matmul(x=q, y=k, transpose_y=True), axis=-1), y=wide)
        return mb.slice_by_index(x=made, begin=[0, 0, 0, 0], end=[1, 2, 3, 6])

    assert holds(FuseSdpa(), program)


@pytest.mark.parametrize("kind", [types.fp16, types.fp32])
def test_rows_whose_weights_are_zero(kind: Any) -> None:
    """torch's safe softmax: a row that sees nothing gives nothing."""
    specs = [mb.TensorSpec((1, 2, 3, 4), kind), mb.TensorSpec((1, 1, 3, 3), kind)]

    @mb.program(input_specs=specs, opset_version=target.iOS18)
    def program(x: Any, mask: Any) -> Any:
        number = types.nptype_from_builtin(kind)
        dead = mb.less(x=mb.reduce_max(x=mask, axes=[-1], keep_dims=True), y=number(-100))
        weights = mb.softmax(
            x=mb.add(x=mb.matmul(x=mb.mul(x=x, y=number(0.5)), y=x, transpose_y=True), y=mask), axis=-1
        )
        return mb.matmul(x=mb.select(cond=dead, a=number(0), b=weights), y=x)

    assert holds(FuseSdpa(), program)


@pytest.mark.parametrize("mask", ["none", "added", "per head", "causal constant", "two (ALiBi)"])
@pytest.mark.parametrize("scale", ["scores", "query", "query and key", "before moves"])
def test_fp16_stays_as_near_as_fp16_is(scale: str, mask: str) -> None:
    """The op scales by the exact 1/sqrt(E): 40 dB is what the pass declares where a program had it rounded."""
    program = spelled(Spelling(scale=scale, mask=mask, half=True, number=8**-0.5))
    model = load(program)
    assert FuseSdpa().run(model)
    assert (verdict := compare(load(program), model, metric=Lossy(min_snr_db=40))), str(verdict)


def test_heads_that_are_sliced_out_are_merged() -> None:
    """Apple's ml-ane-transformers slices heads out of the channels."""
    specs = [
        mb.TensorSpec((1, 16, 1, 3)),
        mb.TensorSpec((1, 5, 1, 16)),
        mb.TensorSpec((1, 12, 1, 5)),
        mb.TensorSpec((1, 5, 1, 3)),
    ]

    @mb.program(input_specs=specs, opset_version=target.iOS18)
    def program(q: Any, k: Any, v: Any, mask: Any) -> Any:
        made: list[Any] = []
        for head in range(2):
            query = mb.slice_by_index(x=q, begin=[0, 8 * head, 0, 0], end=[1, 8 * head + 8, 1, 3])
            key = mb.slice_by_index(x=k, begin=[0, 0, 0, 8 * head], end=[1, 5, 1, 8 * head + 8])
            value = mb.slice_by_index(x=v, begin=[0, 6 * head, 0, 0], end=[1, 6 * head + 6, 1, 5])
            scores = mb.mul(x=mb.einsum(values=(key, query), equation="bkhc,bchq->bkhq"), y=np.float32(0.25))
            weights = mb.softmax(x=mb.add(x=scores, y=mask), axis=1)
            made.append(mb.einsum(values=(value, weights), equation="bchk,bkhq->bchq"))
        return mb.concat(values=made, axis=1, name="out")

    assert holds(FuseSdpa(), program)
    model = load(program)
    FuseSdpa().run(model)
    assert text(model) == MERGED


MERGED = """\
main[CoreML8](%q: fp32[1, 16, 1, 3], %k: fp32[1, 5, 1, 16], %v: fp32[1, 12, 1, 5], %mask: fp32[1, 5, 1, 3]) {
  %0: fp32[1, 1, 3, 5] = transpose(x=%mask, perm=[0, 2, 3, 1])
  %1: fp32[1, 16, 1, 3] = mul(x=%q, y=0.70710677)
  %2: fp32[1, 2, 8, 3] = reshape(x=%1, shape=[1, 2, 8, 3])
  %3: fp32[1, 2, 3, 8] = transpose(x=%2, perm=[0, 1, 3, 2])
  %4: fp32[1, 5, 2, 8] = reshape(x=%k, shape=[1, 5, 2, 8])
  %5: fp32[1, 2, 5, 8] = transpose(x=%4, perm=[0, 2, 1, 3])
  %6: fp32[1, 2, 6, 5] = reshape(x=%v, shape=[1, 2, 6, 5])
  %7: fp32[1, 2, 5, 6] = transpose(x=%6, perm=[0, 1, 3, 2])
  %8: fp32[1, 2, 3, 6] = scaled_dot_product_attention(query=%3, key=%5, value=%7, attn_mask=%0)
  %9: fp32[1, 2, 6, 3] = transpose(x=%8, perm=[0, 1, 3, 2])
  %10: fp32[1, 12, 1, 3] = reshape(x=%9, shape=[1, 12, 1, 3])
} -> (out=%10)
"""


def test_heads_out_of_order_are_not_merged() -> None:
    specs = [mb.TensorSpec((1, 2, 3, 8)), mb.TensorSpec((1, 2, 5, 8))]

    @mb.program(input_specs=specs, opset_version=target.iOS18)
    def program(q: Any, k: Any) -> Any:
        queries, keys = (mb.split(x=each, num_splits=2, axis=1) for each in (q, k))
        made = [
            mb.matmul(x=mb.softmax(x=mb.matmul(x=query, y=key, transpose_y=True), axis=-1), y=key)
            for query, key in zip(queries, reversed(keys), strict=True)
        ]
        return mb.concat(values=made, axis=1)

    assert holds(FuseSdpa(), program)
    report = FuseSdpa().run(load(program))
    assert report.applied == 2
    assert "the pieces are not the whole, in order" in [miss.reason for miss in report.misses]

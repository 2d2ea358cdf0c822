"""fuse-sdpa: spellings that must fuse, programs on which a naive rewrite is wrong, and reasons."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milopt.metrics import Lossy
from milopt.mil import Program, get_new_symbol, mb, target, types
from milopt.package import load
from milopt.passes import attention_writing
from milopt.passes.attention import FuseAttention, FuseSdpa
from milopt.reports import Report
from milopt.rules import apply
from milopt.text import text
from milopt.verify import compare

from .support import assert_same, op_types, twice

B, H, L, S, E, D = 2, 3, 4, 5, 8, 6


def attention(
    *,
    scale: float = 0.7,
    where: str = "scores",
    divide: bool = False,
    mask: tuple[int, ...] | None = (1, 1, L, S),
    mask_first: bool = False,
    keys: str = "rows",
    lead: tuple[int, ...] = (B, H),
    dtype: type = types.fp32,
    axis: int = -1,
    extra: str = "",
    opset: Any = target.iOS18,
    q_lead: tuple[int, ...] | None = None,
    k_lead: tuple[int, ...] | None = None,
    v_lead: tuple[int, ...] | None = None,
    size: Any = E,
) -> Program:
    """One attention, spelled as asked. Head sizes of k and v differ, and the scale is not 1/sqrt(E)."""
    number = (np.float16 if dtype is types.fp16 else np.float32)(scale)
    by_columns = keys.startswith("columns") and keys != "columns of rows"
    k_shape = (*(k_lead or lead), size, S) if by_columns else (*(k_lead or lead), S, size)
    specs = [
        mb.TensorSpec((*(q_lead or lead), L, size), dtype),
        mb.TensorSpec((B, S, H, E), dtype) if keys == "transposed" else mb.TensorSpec(k_shape, dtype),
        mb.TensorSpec((*(v_lead or lead), S, D), dtype),
        mb.TensorSpec(mask or (1,), dtype),
    ]

    @mb.program(input_specs=specs, opset_version=opset)
    def program(q: Any, k: Any, v: Any, m: Any) -> Any:
        if where in ("query", "both"):
            q = mb.mul(x=number, y=q)
        if keys == "transposed":
            k = mb.transpose(x=k, perm=[0, 2, -1, -3])
        if keys == "columns of rows":
            k = mb.transpose(x=k, perm=[0, 1, 3, 2])
        if keys == "columns of an op":
            k = mb.abs(x=k)
        scores = mb.matmul(x=q, y=k, transpose_y=keys == "rows", name="scores")
        if where in ("scores", "both"):
            scores = mb.real_div(x=scores, y=number) if divide else mb.mul(x=scores, y=number)
        if mask is not None:
            scores = mb.add(x=m, y=scores) if mask_first else mb.add(x=scores, y=m)
        weights = mb.softmax(x=scores, axis=axis, name="weights")
        out = mb.matmul(x=weights, y=v, name="out")
        if extra == "weights":
            return out, mb.relu(x=weights, name="seen")
        if extra == "output":
            return out, weights
        return out

    return program


def fused(build: Callable[[], Program]) -> tuple[Program, Report]:
    before, after = twice(build)
    report = apply(FuseAttention(), after)
    after.validate()
    if report:
        assert_same(before, after)
    return after, report


SPELLINGS: dict[str, dict[str, Any]] = {
    "eager": {},
    "divided": {"divide": True},
    "sdpa": {"where": "query"},
    "no scale": {"where": "nowhere"},
    "exact scale": {"scale": 1 / sqrt(E)},
    "mask first": {"mask_first": True},
    "no mask": {"mask": None},
    "mask that broadcasts over rows": {"mask": (1, 1, 1, S)},
    "mask of lower rank": {"mask": (L, S)},
    "mask per head": {"mask": (1, H, L, S)},
    "keys as columns": {"keys": "columns"},
    "keys transposed": {"keys": "transposed"},
    "rank 3": {"lead": (B,), "mask": (B, L, S)},
    "rank 5": {"lead": (1, B, H), "mask": (1, 1, 1, L, S)},
    "axis counted from the front": {"axis": 3},
    "two scales": {"where": "both"},
    "divided by one": {"divide": True, "scale": 1.0},
    "times zero": {"scale": 0.0},
    "no scale and two features": {"where": "nowhere", "size": 2},
    "keys as columns, rank 3": {"lead": (B,), "mask": None, "keys": "columns"},
    "keys as columns, rank 5": {"lead": (1, B, H), "mask": None, "keys": "columns"},
    "keys as columns of rows": {"keys": "columns of rows"},
    "keys as columns that an op computes": {"keys": "columns of an op"},
}
# beside the attention itself; the scale of q, where nothing is said
LEFT: dict[str, list[str]] = {
    "exact scale": [],
    "keys as columns": ["mul", "transpose"],
    "keys transposed": ["mul", "transpose"],
    "keys as columns, rank 3": ["mul", "transpose"],
    "keys as columns, rank 5": ["mul", "transpose"],
    "keys as columns that an op computes": ["abs", "mul", "transpose"],
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_fuses(spelling: str) -> None:
    program, report = fused(lambda: attention(**SPELLINGS[spelling]))
    assert report.applied == 1, str(report)
    assert op_types(program) == [*LEFT.get(spelling, ["mul"]), "scaled_dot_product_attention"]


REFUSALS: dict[str, tuple[dict[str, Any], str, str]] = {
    "weights used": ({"extra": "weights"}, "weights", "a matched value is also used outside the match"),
    "weights returned": ({"extra": "output"}, "weights", "a matched value is also an output"),
    "softmax over heads": ({"axis": 1, "mask": None}, "scores", "the softmax runs over axis -3, which has no keys"),
    "softmax over rows": ({"axis": 2, "mask": None}, "out", "the weights are not summed over the keys"),
    "old opset": ({"opset": target.iOS17}, "out", "needs iOS18, the function is iOS17"),
    "mask shifts all": ({"mask": (1, 1, L, 1)}, "m", f"the mask has (1,) columns for {S} keys"),
    "q has fewer heads": ({"q_lead": (B, 1)}, "k", f"k: *B is ({B}, {H}), but ({B}, 1) before"),
    "k has fewer heads": ({"k_lead": (B, 1)}, "v", f"v: *B is ({B}, {H}), but ({B}, 1) before"),
    "v has fewer heads": ({"v_lead": (B, 1)}, "v", f"v: *B is ({B}, 1), but ({B}, {H}) before"),
    "rank 2": ({"lead": (), "mask": None}, "q", "rank 2 has no batch dimension"),
    "flexible head size": ({"size": get_new_symbol()}, "q", "the head size is not known"),
    "divided by zero": ({"divide": True, "scale": 0.0}, "out", "the scores are divided by zero"),
    "a scale beyond fp16": (
        {"scale": 6e4, "dtype": types.fp16},
        "out",
        "a scale of 169706 on q is no fp16",
    ),
}


@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize("case", REFUSALS)
def test_refuses_with_its_reason(case: str) -> None:
    options, place, reason = REFUSALS[case]
    program = attention(**options) if options.get("lead") != () else attention_of_rank_2()
    before = text(program)
    report = apply(FuseAttention(), program)
    assert not report
    assert (place, reason) in [(miss.place, miss.reason) for miss in report.misses]
    assert text(program) == before


def attention_of_rank_2() -> Program:
    specs = [mb.TensorSpec((L, E)), mb.TensorSpec((S, E)), mb.TensorSpec((S, D))]

    @mb.program(input_specs=specs, opset_version=target.iOS18)
    def program(q: Any, k: Any, v: Any) -> Any:
        weights = mb.softmax(x=mb.matmul(x=q, y=k, transpose_y=True), axis=-1)
        return mb.matmul(x=weights, y=v, name="out")

    return program


def test_a_shift_of_all_scores_is_no_mask() -> None:
    @mb.program(
        input_specs=[mb.TensorSpec((1, L, E)), mb.TensorSpec((1, S, E)), mb.TensorSpec((1, S, D))],
        opset_version=target.iOS18,
    )
    def program(q: Any, k: Any, v: Any) -> Any:
        scores = mb.matmul(x=q, y=k, transpose_y=True)
        shifted = mb.add(x=scores, y=np.float32(3))
        return mb.matmul(x=mb.softmax(x=shifted, axis=-1), y=v)

    report = apply(FuseAttention(), program)
    assert [miss.reason for miss in report.misses if miss.declined] == [f"the mask has no columns for {S} keys"]


def test_two_scales_whose_product_fp16_does_not_hold_stay_two() -> None:
    """1e-5 twice: their product is 0 in fp16, and scores of zero are other scores."""
    program, report = fused(lambda: attention(scale=1e-5, where="both", dtype=types.fp16))
    assert report.applied == 1
    assert op_types(program) == ["mul", "mul", "scaled_dot_product_attention"]


def test_a_scale_one_step_beside_the_exact_one() -> None:
    """1/sqrt(8) and 1/2 in fp32, the number beside it: as near as fp32 comes, so that no product is needed."""
    beside = np.nextafter(np.float32(1 / sqrt(E)), np.float32(0))
    assert 2.0**-24 < abs(float(beside) * sqrt(E) - 1) < 2.0**-23
    for scale, size in ((float(beside), E), (0.5 + 2.0**-24, 4)):
        model = load(attention(scale=scale, size=size))
        report = FuseSdpa().run(model)
        assert op_types(model.program) == ["scaled_dot_product_attention"]
        assert (report.notes, report.metric) == ([], None)
    two_steps = load(attention(scale=0.5 + 2.0**-23, size=4))
    FuseSdpa().run(two_steps)
    assert op_types(two_steps.program) == ["mul", "scaled_dot_product_attention"]


def test_shared_query_scale_stays_where_others_need_it() -> None:
    """q * s is used twice: the scale must not be taken out of it, and must not be applied twice."""

    def build() -> Program:
        @mb.program(
            input_specs=[mb.TensorSpec((1, L, E)), mb.TensorSpec((1, S, E)), mb.TensorSpec((1, S, D))],
            opset_version=target.iOS18,
        )
        def program(q: Any, k: Any, v: Any) -> Any:
            scaled = mb.mul(x=q, y=np.float32(0.3))
            weights = mb.softmax(x=mb.matmul(x=scaled, y=k, transpose_y=True), axis=-1)
            return mb.matmul(x=weights, y=v, name="out"), mb.relu(x=scaled, name="also")

        return program

    _, report = fused(build)
    assert report.applied == 1


def test_grouped_query_attention_keeps_its_repeated_heads() -> None:
    def build() -> Program:
        @mb.program(
            input_specs=[mb.TensorSpec((1, 4, L, E)), mb.TensorSpec((1, 2, S, E)), mb.TensorSpec((1, 2, S, D))],
            opset_version=target.iOS18,
        )
        def program(q: Any, k: Any, v: Any) -> Any:
            def repeat(x: Any, size: int) -> Any:
                wide = mb.tile(x=mb.expand_dims(x=x, axes=[2]), reps=[1, 1, 2, 1, 1])
                return mb.reshape(x=wide, shape=[1, 4, S, size])

            scores = mb.mul(x=mb.matmul(x=q, y=repeat(k, E), transpose_y=True), y=np.float32(0.2))
            return mb.matmul(x=mb.softmax(x=scores, axis=-1), y=repeat(v, D), name="out")

        return program

    program, report = fused(build)
    assert report.applied == 1
    assert op_types(program).count("tile") == 2


def test_transpose_of_keys_is_merged() -> None:
    program, _ = fused(lambda: attention(keys="transposed"))
    perms = [op.perm.val.tolist() for op in program.functions["main"].operations if op.op_type == "transpose"]
    assert perms == [[0, 2, 1, 3]]


def test_fp16_scale_that_fp16_can_only_round_is_judged_by_another_metric() -> None:
    """1/sqrt(8) is no fp16 number: the op's own exact scale replaces its rounding, and the report says so."""
    model = load(attention(scale=1 / sqrt(E), dtype=types.fp16))
    report = FuseSdpa().run(model)
    assert report.applied == 1
    assert report.metric == Lossy(min_snr_db=40)
    assert report.notes == ["a scale is the fp16 rounding of what scaled_dot_product_attention computes exactly"]
    assert "mul" not in op_types(model.program)
    others: tuple[dict[str, Any], ...] = ({"scale": 0.5}, {"scale": 0.0, "dtype": types.fp16}, {"scale": 1 / sqrt(E)})
    for options in others:
        exact = FuseSdpa().run(load(attention(**options)))
        assert (exact.applied, exact.notes, exact.metric) == (1, [], None)


def test_a_wrong_scale_is_rejected_by_that_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    """The metric that allows for the rounding of 1/sqrt(8) still sees a scale that is 1/32 off, and one left out."""
    build: dict[str, Any] = {"scale": 1 / sqrt(E), "dtype": types.fp16}
    before = load(attention(**build))
    after = before.clone()
    report = FuseSdpa().run(after)
    assert report.metric is not None
    assert compare(before, after, metric=report.metric)
    exact: Any = attention_writing.scaled
    for factor in (1 + 1 / 32, 1 - 1 / 32, sqrt(E), 1 / sqrt(E)):

        def planted(op: Any, var: Any, scale: float, factor: float = factor) -> Any:
            return exact(op, var, scale * factor)

        monkeypatch.setattr(attention_writing, "scaled", planted)
        wrong = before.clone()
        assert FuseSdpa().run(wrong).applied == 1
        assert not compare(before, wrong, metric=report.metric)


def test_nothing_is_left_to_do_after_the_first_time() -> None:
    program, _ = fused(attention)
    before = text(program)
    assert not apply(FuseAttention(), program)
    assert text(program) == before


def test_golden() -> None:
    program, _ = fused(attention)
    assert text(program) == GOLDEN


GOLDEN = """\
main[CoreML8](%q: fp32[2, 3, 4, 8], %k: fp32[2, 3, 5, 8], %v: fp32[2, 3, 5, 6], %m: fp32[1, 1, 4, 5]) {
  %0: fp32[2, 3, 4, 8] = mul(x=%q, y=1.9798989)
  %1: fp32[2, 3, 4, 6] = scaled_dot_product_attention(query=%0, key=%k, value=%v, attn_mask=%m)
} -> (out=%1)
"""


@settings(max_examples=40, deadline=None)
@given(
    scale=st.floats(0.0625, 4, width=32),
    where=st.sampled_from(["query", "scores", "nowhere"]),
    divide=st.booleans(),
    mask=st.sampled_from([None, (1, 1, L, S), (B, H, L, S), (1, 1, 1, S), (S,)]),
    mask_first=st.booleans(),
    keys=st.sampled_from(["rows", "columns", "transposed"]),
)
def test_every_combination_agrees(**options: Any) -> None:
    _, report = fused(lambda: attention(**options))
    assert report.applied == 1

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
from milopt.mil import Program, mb, target, types
from milopt.package import load
from milopt.passes.attention import FuseAttention, FuseSdpa
from milopt.reports import Report
from milopt.rules import apply
from milopt.text import text

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
    v_lead: tuple[int, ...] | None = None,
) -> Program:
    """One attention, spelled as asked. Head sizes of k and v differ, and the scale is not 1/sqrt(E)."""
    number = (np.float16 if dtype is types.fp16 else np.float32)(scale)
    k_shape = (*lead, E, S) if keys == "columns" else (*lead, S, E)
    specs = [
        mb.TensorSpec((*lead, L, E), dtype),
        mb.TensorSpec((B, S, H, E), dtype) if keys == "transposed" else mb.TensorSpec(k_shape, dtype),
        mb.TensorSpec((*(v_lead or lead), S, D), dtype),
        mb.TensorSpec(mask or (1,), dtype),
    ]

    @mb.program(input_specs=specs, opset_version=opset)
    def program(q: Any, k: Any, v: Any, m: Any) -> Any:
        if where == "query":
            q = mb.mul(x=number, y=q)
        if keys == "transposed":
            k = mb.transpose(x=k, perm=[0, 2, -1, -3])
        scores = mb.matmul(x=q, y=k, transpose_y=keys == "rows", name="scores")
        if where == "scores":
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
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_fuses(spelling: str) -> None:
    program, report = fused(lambda: attention(**SPELLINGS[spelling]))
    assert report.applied == 1, str(report)
    assert "softmax" not in op_types(program)
    assert op_types(program).count("scaled_dot_product_attention") == 1


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "weights used": ({"extra": "weights"}, "a matched value is also used outside the match"),
    "weights returned": ({"extra": "output"}, "a matched value is also an output"),
    "softmax over rows": ({"axis": 2, "mask": None}, "softmax's axis is not -1"),
    "old opset": ({"opset": target.iOS17}, "scaled_dot_product_attention needs iOS18, the function is iOS17"),
    "mask shifts all": ({"mask": (1, 1, L, 1)}, f"the mask has (1,) columns for {S} keys"),
    "v has fewer heads": ({"v_lead": (B, 1)}, f"v: *B is ({B}, 1), but ({B}, {H}) before"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refuses_with_its_reason(case: str) -> None:
    options, reason = REFUSALS[case]
    program = attention(**options)
    before = text(program)
    report = apply(FuseAttention(), program)
    assert not report
    assert reason in [miss.reason for miss in report.misses]
    assert text(program) == before


def test_mask_of_another_dtype_is_refused() -> None:
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
    assert isinstance(report.metric, Lossy)
    assert "mul" not in op_types(model.program)
    exact = FuseSdpa().run(load(attention(scale=0.5, where="scores", dtype=types.fp32)))
    assert exact.metric is None


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

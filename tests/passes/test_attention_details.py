"""What counts as attention that is written out: every link of the pattern, and what is one step beside it."""

from __future__ import annotations

from typing import Any, TypedDict

import numpy as np
import pytest

from milopt.metrics import Lossy
from milopt.mil import Program, mb, target
from milopt.package import load
from milopt.passes.attention import FuseAttention, FuseSdpa
from milopt.reports import Report
from milopt.rules import apply

from .programs import One, Two, after, bools, fp32, program_of, reasons

L, S, E = 3, 5, 4
F32 = np.float32


class Parts(TypedDict, total=False):
    """What is not as usual in an attention."""

    product: Two
    steps: Two
    softmax: One
    weights: Two
    summed: Two
    mask: Any
    q: Any
    k: Any
    v: Any


def attention(
    *,
    product: Two = lambda q, k: mb.matmul(x=q, y=k, transpose_y=True),
    steps: Two = lambda x, m: x,
    softmax: One = lambda x: mb.softmax(x=x, axis=-1),
    weights: Two = lambda x, m: x,
    summed: Two = lambda x, v: mb.matmul(x=x, y=v, name="out"),
    mask: Any = None,
    opset: Any = target.iOS18,
    **shapes: Any,
) -> Program:
    def build(q: Any, k: Any, v: Any, m: Any) -> Any:
        return summed(weights(softmax(steps(product(q, k), m)), m), v)

    given = {"q": fp32(1, 2, L, E), "k": fp32(1, 2, S, E), "v": fp32(1, 2, S, E), **shapes}
    return program_of(build, opset=opset, m=fp32(L, S) if mask is None else mask, **given)


def kinds(program: Program) -> list[str]:
    return [line.partition("= ")[2].partition("(")[0] for line in after(FuseAttention(), program)]


SDPA = "scaled_dot_product_attention"


def number(value: float) -> Any:
    return F32(value)


def exponentials(x: Any, *, most: Any = (-1,), total: Any = (-1,), keep: bool = True) -> Any:
    powers = mb.exp(x=mb.sub(x=x, y=mb.reduce_max(x=x, axes=list(most), keep_dims=True)))
    return mb.real_div(x=powers, y=mb.reduce_sum(x=powers, axes=list(total), keep_dims=keep))


FUSED: dict[str, tuple[Parts, list[str]]] = {
    "plain": ({}, ["mul", SDPA]),
    "q is scaled": ({"product": lambda q, k: mb.matmul(x=mb.mul(x=q, y=number(0.5)), y=k, transpose_y=True)}, [SDPA]),
    "q is divided": (
        {"product": lambda q, k: mb.matmul(x=mb.real_div(x=q, y=number(2)), y=k, transpose_y=True)},
        [SDPA],
    ),
    "k is scaled": ({"product": lambda q, k: mb.matmul(x=q, y=mb.mul(x=k, y=number(0.5)), transpose_y=True)}, [SDPA]),
    "k is divided": (
        {"product": lambda q, k: mb.matmul(x=q, y=mb.real_div(x=k, y=number(2)), transpose_y=True)},
        [SDPA],
    ),
    "scaled": ({"steps": lambda x, m: mb.mul(x=x, y=number(0.5))}, [SDPA]),
    "scaled from the left": ({"steps": lambda x, m: mb.mul(x=number(0.5), y=x)}, [SDPA]),
    "divided": ({"steps": lambda x, m: mb.real_div(x=x, y=number(2))}, [SDPA]),
    "seven steps": (
        {
            "steps": lambda x, m: mb.mul(
                x=mb.mul(
                    x=mb.mul(
                        x=mb.mul(
                            x=mb.mul(
                                x=mb.mul(x=mb.mul(x=x, y=number(0.5)), y=number(2)),
                                y=number(0.5),
                            ),
                            y=number(2),
                        ),
                        y=number(0.5),
                    ),
                    y=number(2),
                ),
                y=number(0.5),
            )
        },
        [SDPA],
    ),
    "exponentials": ({"softmax": exponentials}, ["mul", SDPA]),
    "a mask and exponentials": ({"steps": lambda x, m: mb.add(x=x, y=m), "softmax": exponentials}, ["mul", SDPA]),
    "rows without keys are zero": (
        {"weights": lambda x, m: mb.select(cond=m, a=number(0), b=x), "mask": bools(L, 1)},
        ["mul", SDPA, "select"],
    ),
    "rows with keys are not": (
        {"weights": lambda x, m: mb.select(cond=m, a=x, b=number(0)), "mask": bools(L, 1)},
        ["mul", SDPA, "select"],
    ),
    "values first": (
        {
            "product": lambda q, k: mb.einsum(values=(k, q), equation="bkhc,bchq->bkhq"),
            "softmax": lambda x: mb.softmax(x=x, axis=1),
            "summed": lambda x, v: mb.einsum(values=(v, x), equation="bchk,bkhq->bchq", name="out"),
            "q": fp32(1, E, 2, L),
            "k": fp32(1, S, 2, E),
            "v": fp32(1, E, 2, S),
        },
        ["mul", "transpose", "transpose", "transpose", SDPA, "transpose"],
    ),
    "values first, as columns": (
        {
            "product": lambda q, k: mb.matmul(x=k, y=q, transpose_y=True),
            "softmax": lambda x: mb.softmax(x=x, axis=-2),
            "summed": lambda x, v: mb.matmul(x=v, y=x, transpose_x=True, name="out"),
        },
        ["mul", SDPA, "transpose"],
    ),
    "products turned round": (
        {
            "product": lambda q, k: mb.matmul(x=q, y=k, transpose_x=True),
            "summed": lambda x, v: mb.matmul(x=x, y=v, transpose_y=True, name="out"),
            "q": fp32(1, 2, E, L),
            "k": fp32(1, 2, E, S),
            "v": fp32(1, 2, E, S),
        },
        ["mul", "transpose", "transpose", "transpose", SDPA],
    ),
}


@pytest.mark.parametrize("case", FUSED)
def test_what_is_attention(case: str) -> None:
    options, expected = FUSED[case]
    assert kinds(attention(**options)) == expected


def eight(x: Any, m: Any) -> Any:
    for at in range(8):
        x = mb.mul(x=x, y=number(1.5 + at))
    return x


BESIDE: dict[str, Parts] = {
    "eight steps": {"steps": eight},
    "other powers": {
        "softmax": lambda x: mb.real_div(x=mb.exp(x=x), y=mb.reduce_sum(x=mb.exp(x=x), axes=[-1], keep_dims=True))
    },
    "weights are bent": {"weights": lambda x, m: mb.relu(x=x)},
    "sums are bent": {"softmax": lambda x: mb.relu(x=mb.softmax(x=x, axis=-1))},
    "log": {"softmax": lambda x: mb.log(x=mb.softmax(x=x, axis=-1))},
}


@pytest.mark.parametrize("case", BESIDE)
def test_what_is_one_step_beside(case: str) -> None:
    report = apply(FuseAttention(), attention(**BESIDE[case]))
    assert not report
    assert not [miss for miss in report.misses if miss.declined]


def test_an_older_opset() -> None:
    found = reasons(FuseAttention(), attention(opset=target.iOS17))
    assert found == [("out", "needs iOS18, the function is iOS17")]


@pytest.mark.parametrize(("mask", "told"), [((L, 1), "(1,)"), ((1,), "(1,)")])
def test_masks_without_columns(mask: tuple[int, ...], told: str) -> None:
    found = reasons(FuseAttention(), attention(steps=lambda x, m: mb.add(x=x, y=m), mask=fp32(*mask)))
    assert found == [("m", f"the mask has {told} columns for {S} keys")]


def test_a_mask_that_is_one_number() -> None:
    found = reasons(FuseAttention(), attention(steps=lambda x, m: mb.add(x=x, y=number(1), name="shifted")))
    assert [why for _, why in found] == [f"the mask has no columns for {S} keys"]


NOTHING = [False] * 4


@pytest.mark.parametrize(
    "options", [{}, {"begin_mask": NOTHING, "end_mask": NOTHING}, {"stride": [1] * 4}, {"squeeze_mask": NOTHING}]
)
def test_a_sink(options: dict[str, Any]) -> None:
    def steps(x: Any, m: Any) -> Any:
        return mb.concat(values=(x, m), axis=-1, name="sunk")

    def weights(x: Any, m: Any) -> Any:
        return mb.slice_by_index(x=x, begin=[0, 0, 0, 0], end=[1, 2, L, S], **options)

    found = reasons(FuseAttention(), attention(steps=steps, weights=weights, mask=fp32(1, 2, L, 1)))
    assert found == [("sunk", "a column that is no key joins the softmax (an attention sink)")]


def fused(half: bool, scale: float) -> Report:
    kind: Any = np.float16 if half else F32

    def build(q: Any, k: Any) -> Any:
        q, k = (mb.cast(x=each, dtype="fp16") for each in (q, k)) if half else (q, k)
        scores = mb.mul(x=mb.matmul(x=q, y=k, transpose_y=True), y=kind(scale))
        return mb.matmul(x=mb.softmax(x=scores, axis=-1), y=k)

    return FuseSdpa().run(load(program_of(build, q=fp32(1, L, 8), k=fp32(1, S, 8))))


def test_the_rounding_of_a_scale_is_told_and_declared() -> None:
    told = "a scale is the fp16 rounding of what scaled_dot_product_attention computes exactly"
    report = fused(True, 8**-0.5)
    assert report.notes == [told]
    assert report.metric == Lossy(min_snr_db=40)
    for half, scale in ((True, 0.0), (False, 8**-0.5)):
        report = fused(half, scale)
        assert (report.applied, report.notes, report.metric) == (1, [], None)

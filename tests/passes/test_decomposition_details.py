"""decompose-sdpa, op by op: what each style writes for every form of mask, of shared keys and of batch."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from milopt.mil import Program, get_new_symbol, mb, target
from milopt.package import load
from milopt.passes.decomposition import DecomposeAttention, DecomposeSdpa, RestyleAttention

from .programs import One, after, bools, fp16, fp32, program_of, reasons

L, S, E = 3, 5, 4
F32 = np.float32

# coremltools computes with infinity as well, while it builds
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def as_they_are(x: Any) -> Any:
    return x


def tiled(x: Any) -> Any:
    wide = mb.tile(x=mb.expand_dims(x=x, axes=[2]), reps=[1, 1, 2, 1, 1])
    return mb.reshape(x=wide, shape=[x.shape[0], 2 * x.shape[1], *x.shape[2:]])


def gathered(x: Any) -> Any:
    return mb.gather(x=x, indices=np.array([at // 2 for at in range(2 * int(x.shape[1]))], np.int32), axis=1)


def fused(
    mask: Any = None,
    *,
    heads: int = 2,
    repeat: One = as_they_are,
    values: One | None = None,
    batch: int = 1,
    rows: Any = L,
    kind: Any = fp32,
    lead: tuple[int, ...] | None = None,
) -> Program:
    """The op of ``heads`` heads; ``mask`` is an input or numbers."""
    own = heads // 2 if repeat is not as_they_are else heads
    lead = (batch, heads) if lead is None else lead
    shared = lead if repeat is as_they_are else (batch, own)

    def build(q: Any, k: Any, v: Any, m: Any = None) -> Any:
        masks = {} if mask is None else {"attn_mask": mask if m is None else m}
        return mb.scaled_dot_product_attention(
            query=q, key=repeat(k), value=(repeat if values is None else values)(v), **masks, name="out"
        )

    many = shared if values is None else lead
    given = {} if mask is None or isinstance(mask, np.ndarray) else {"m": mask}
    return program_of(build, q=kind(*lead, rows, E), k=kind(*shared, S, E), v=kind(*many, S, E), **given)


def numbers(*shape: int, low: float = -np.inf, best: float = 0.0) -> Any:
    """``low`` for all keys but the last of each row, which has ``best``."""
    made: Any = np.full((*shape, S), low, F32)
    made[..., -1] = best
    return made


STEPS: dict[str, tuple[str, Callable[[], Program]]] = {
    "matmul": ("matmul", lambda: fused()),
    "matmul, fp32 mask": ("matmul", lambda: fused(fp32(1, 1, L, S))),
    "matmul, booleans": ("matmul", lambda: fused(bools(L, S))),
    "matmul, infinity": ("matmul", lambda: fused(numbers(1))),
    "matmul, tiled": ("matmul", lambda: fused(repeat=tiled)),
    "matmul, gathered": ("matmul", lambda: fused(repeat=gathered, heads=4)),
    "matmul, tiled, a mask for all": ("matmul", lambda: fused(fp32(2, 1, L, S), repeat=tiled, heads=4, batch=2)),
    "matmul, tiled, a mask for each head": ("matmul", lambda: fused(fp32(2, 4, L, S), repeat=tiled, heads=4, batch=2)),
    "matmul, tiled, a mask for each head of any batch": (
        "matmul",
        lambda: fused(fp32(4, L, S), repeat=tiled, heads=4, batch=2),
    ),
    "matmul, tiled, a mask of rank 2": ("matmul", lambda: fused(fp32(L, S), repeat=tiled, heads=4)),
    "matmul, tiled keys alone": ("matmul", lambda: fused(repeat=tiled, values=as_they_are)),
    "per-head": ("per-head", lambda: fused()),
    "per-head, one": ("per-head", lambda: fused(heads=1)),
    "per-head, masks": ("per-head", lambda: fused(fp32(1, 2, L, S))),
    "per-head, masks of rank 3": ("per-head", lambda: fused(fp32(2, L, S))),
    "per-head, a mask": ("per-head", lambda: fused(fp32(L, S))),
    "per-head, tiled": ("per-head", lambda: fused(fp32(1, 1, L, S), repeat=tiled, heads=4)),
    "split-einsum": ("split-einsum", lambda: fused()),
    "split-einsum, one": ("split-einsum", lambda: fused(fp32(1, 1, 1, S), heads=1)),
    "split-einsum, masks": ("split-einsum", lambda: fused(fp32(1, 2, L, S))),
    "split-einsum, tiled": ("split-einsum", lambda: fused(bools(1, 1, 1, S), repeat=tiled)),
    "sliced-q": ("sliced-q", lambda: fused()),
    "sliced-q, a mask": ("sliced-q", lambda: fused(fp32(1, 1, L, S))),
    "sliced-q, a mask of one row": ("sliced-q", lambda: fused(fp32(1, S))),
    "sliced-q, a mask of columns": ("sliced-q", lambda: fused(fp32(S))),
    "sliced-q, as many as a slice": ("sliced-q", lambda: fused(rows=2)),
    "sliced-q, without heads": ("sliced-q", lambda: fused(fp32(L, S), lead=(2,))),
}


def kept(found: list[str]) -> list[str]:
    """Without the types but their sizes, the numbers of constants, and what is cut whole."""
    told = [re.sub(r": (fp32|fp16|bool)(\[[^\]]*\])", r"\2", line) for line in found]
    return [re.sub(r", begin_mask=.*", ")", re.sub(r"\[\[.*\]\]", "numbers", line)) for line in told]


def made(case: str) -> list[str]:
    style, build = STEPS[case]
    rule: Any = DecomposeAttention(style, 2)  # type: ignore[arg-type]
    return kept(after(rule, build()))


@pytest.mark.parametrize("case", STEPS)
def test_what_is_written(case: str) -> None:
    assert made(case) == EXPECTED[case]


def raised(mask: Any) -> bool:
    program = fused(mask)
    return any("maximum" in line for line in after(DecomposeSdpa(), program))


def test_constant_masks_are_raised_where_every_row_keeps_a_key() -> None:
    assert raised(numbers(1, 1, L))
    assert raised(numbers(1, 1, L, best=-1e4))
    assert not raised(numbers(1, 1, L, best=-1.1e4))
    assert not raised(numbers(1, 1, L, best=-4e4))
    assert not raised(numbers(1, 1, L, low=-4e4))
    assert raised(numbers(1, 1, L, low=-4.1e4))
    some = numbers(1, 1, L)
    some[0, 0, 1, -1] = -3e4
    assert not raised(some)


def test_a_row_whose_best_key_is_masked_too_keeps_it() -> None:
    """-40000 against minus infinity: all the weight is on the one, and not shared."""
    mask = numbers(1, best=-4e4)
    assert kept(after(DecomposeSdpa(), fused(mask)))[-3] == "%2[1, 2, 3, 5] = add(x=%1, y=numbers)"


def test_a_mask_of_an_unknown_number_of_rows_is_not_cut() -> None:
    rows = get_new_symbol()
    rule: Any = DecomposeAttention("sliced-q", 2)
    assert reasons(rule, fused(fp32(1, 1, rows, S))) == [("m", "the mask has an unknown number of rows")]


@pytest.mark.parametrize("style", ["matmul", "per-head", "split-einsum"])
def test_any_number_of_queries(style: Any) -> None:
    rows = get_new_symbol()
    program = fused(fp32(1, 1, rows, S), rows=rows, repeat=tiled, heads=4)
    assert "s0" in after(DecomposeAttention(style, 2), program, same=False)[-1]
    shape = program.functions["main"].outputs[0].shape
    assert shape == (1, 4, rows, E)


# --- attention that is written out


def written(
    *,
    mask: str = "none",
    repeat: One = as_they_are,
    values: One | None = None,
    lead: tuple[int, ...] = (1, 2),
    shared: tuple[int, ...] | None = None,
    regroup: bool = False,
    kind: Any = fp32,
) -> Program:
    """Attention below iOS18 on keys that ``repeat`` makes."""
    shared = lead if shared is None else shared

    def build(q: Any, k: Any, v: Any, m: Any) -> Any:
        scores = mb.matmul(x=q, y=repeat(k), transpose_y=True, name="scores")
        scores = mb.reshape(x=scores, shape=[2, 1, L, S]) if regroup else scores
        if mask == "infinity":
            scores = mb.select(cond=m, a=scores, b=F32(-np.inf))
        weights = mb.softmax(x=scores, axis=-1)
        weights = mb.reshape(x=weights, shape=[*lead, L, S]) if regroup else weights
        return mb.matmul(x=weights, y=(values or repeat)(v), name="out")

    own = lead if values is as_they_are else shared
    return program_of(
        build,
        opset=target.iOS16,
        q=kind(*lead, L, E),
        k=kind(*shared, S, E),
        v=kind(*own, S, E),
        m=bools(1, 1, L, S),
    )


def restyled(style: Any, program: Program) -> list[str]:
    return kept(after(RestyleAttention(style, 2), program))


def test_a_choice_becomes_a_mask_that_is_added() -> None:
    found = restyled("per-head", written(mask="infinity"))
    assert [line for line in found if "%m" in line] == [
        '%0[1, 1, 3, 5] = cast(x=%m, dtype="fp32")',
        "%2[1, 1, 3, 5] = select(cond=%m, a=%1, b=-40000.0)",
    ]


def test_what_is_written_out_with_shared_keys() -> None:
    both = restyled("per-head", written(repeat=tiled, lead=(1, 4), shared=(1, 2)))
    assert [line.partition("= ")[2] for line in both if "split" in line] == [
        "split(x=%q, num_splits=4, axis=1)",
        "split(x=%6, num_splits=2, axis=1)",
        "split(x=%9, num_splits=2, axis=1)",
    ]
    keys = restyled("per-head", written(repeat=tiled, values=as_they_are, lead=(1, 4), shared=(1, 2)))
    assert [line.partition("= ")[2] for line in keys if "split" in line] == [
        "split(x=%q, num_splits=4, axis=1)",
        "split(x=%2, num_splits=4, axis=1)",
        "split(x=%v, num_splits=4, axis=1)",
    ]


def test_ranks_other_than_four_are_sliced() -> None:
    assert len(restyled("sliced-q", written(lead=(2,)))) > 0
    assert len(restyled("sliced-q", written(lead=(1, 2, 2)))) > 0


def test_batches_of_keys_that_differ_are_left() -> None:
    told = [("q", "q, k and v differ in batch")]
    rule: Any = RestyleAttention("per-head", 2)
    assert reasons(rule, written(shared=(1, 1))) == told
    assert reasons(rule, written(lead=(2,), regroup=True)) == told
    rule = RestyleAttention("sliced-q", 2)
    assert reasons(rule, written(lead=(1, 2, 2), shared=(1, 2, 1))) == told


def test_notes() -> None:
    rounded = "1/sqrt(E) is rounded to fp16 where scaled_dot_product_attention computes it exactly"
    exact = DecomposeSdpa().run(load(fused(kind=fp16)))
    assert (exact.applied, exact.notes) == (1, [])
    wide = program_of(
        lambda q, k: mb.scaled_dot_product_attention(query=q, key=k, value=k), q=fp16(1, L, 8), k=fp16(1, S, 8)
    )
    assert DecomposeSdpa().run(load(wide)).notes == [rounded]


EXPECTED: dict[str, list[str]] = {
    "matmul": [
        "%0[1, 2, 3, 4] = mul(x=%q, y=0.5)",
        "%1[1, 2, 3, 5] = matmul(x=%0, y=%k, transpose_y=true)",
        "%2[1, 2, 3, 5] = softmax(x=%1)",
        "%3[1, 2, 3, 4] = matmul(x=%2, y=%v)",
    ],
    "matmul, fp32 mask": [
        "%0[1, 2, 3, 4] = mul(x=%q, y=0.5)",
        "%1[1, 2, 3, 5] = matmul(x=%0, y=%k, transpose_y=true)",
        "%2[1, 2, 3, 5] = add(x=%1, y=%m)",
        "%3[1, 2, 3, 5] = softmax(x=%2)",
        "%4[1, 2, 3, 4] = matmul(x=%3, y=%v)",
    ],
    "matmul, booleans": [
        "%0[1, 2, 3, 4] = mul(x=%q, y=0.5)",
        '%1[3, 5] = cast(x=%m, dtype="fp32")',
        "%2[3, 5] = mul(x=%1, y=0.0)",
        "%3[3, 5] = select(cond=%m, a=%2, b=-40000.0)",
        "%4[1, 2, 3, 5] = matmul(x=%0, y=%k, transpose_y=true)",
        "%5[1, 2, 3, 5] = add(x=%4, y=%3)",
        "%6[1, 2, 3, 5] = softmax(x=%5)",
        "%7[1, 2, 3, 4] = matmul(x=%6, y=%v)",
    ],
    "matmul, infinity": [
        "%0[1, 2, 3, 4] = mul(x=%q, y=0.5)",
        "%1[1, 5] = maximum(x=numbers, y=-40000.0)",
        "%2[1, 2, 3, 5] = matmul(x=%0, y=%k, transpose_y=true)",
        "%3[1, 2, 3, 5] = add(x=%2, y=%1)",
        "%4[1, 2, 3, 5] = softmax(x=%3)",
        "%5[1, 2, 3, 4] = matmul(x=%4, y=%v)",
    ],
    "matmul, tiled": [
        "%0[1, 1, 1, 5, 4] = expand_dims(x=%k, axes=[2])",
        "%1[1, 1, 1, 5, 4] = expand_dims(x=%v, axes=[2])",
        "%2[1, 2, 3, 4] = mul(x=%q, y=0.5)",
        "%3[1, 1, 2, 3, 4] = reshape(x=%2, shape=[1, 1, 2, 3, 4])",
        "%4[1, 1, 2, 3, 5] = matmul(x=%3, y=%0, transpose_y=true)",
        "%5[1, 1, 2, 3, 5] = softmax(x=%4)",
        "%6[1, 1, 2, 3, 4] = matmul(x=%5, y=%1)",
        "%7[1, 2, 3, 4] = reshape(x=%6, shape=[1, 2, 3, 4])",
    ],
    "matmul, gathered": [
        "%0[1, 4, 3, 4] = mul(x=%q, y=0.5)",
        "%1[1, 2, 2, 3, 4] = reshape(x=%0, shape=[1, 2, 2, 3, 4])",
        "%2[1, 2, 1, 5, 4] = expand_dims(x=%k, axes=[2])",
        "%3[1, 2, 1, 5, 4] = expand_dims(x=%v, axes=[2])",
        "%4[1, 2, 2, 3, 5] = matmul(x=%1, y=%2, transpose_y=true)",
        "%5[1, 2, 2, 3, 5] = softmax(x=%4)",
        "%6[1, 2, 2, 3, 4] = matmul(x=%5, y=%3)",
        "%7[1, 4, 3, 4] = reshape(x=%6, shape=[1, 4, 3, 4])",
    ],
    "matmul, tiled, a mask for all": [
        "%0[2, 2, 1, 5, 4] = expand_dims(x=%k, axes=[2])",
        "%1[2, 2, 1, 5, 4] = expand_dims(x=%v, axes=[2])",
        "%2[2, 4, 3, 4] = mul(x=%q, y=0.5)",
        "%3[2, 1, 1, 3, 5] = expand_dims(x=%m, axes=[1])",
        "%4[2, 2, 2, 3, 4] = reshape(x=%2, shape=[2, 2, 2, 3, 4])",
        "%5[2, 2, 2, 3, 5] = matmul(x=%4, y=%0, transpose_y=true)",
        "%6[2, 2, 2, 3, 5] = add(x=%5, y=%3)",
        "%7[2, 2, 2, 3, 5] = softmax(x=%6)",
        "%8[2, 2, 2, 3, 4] = matmul(x=%7, y=%1)",
        "%9[2, 4, 3, 4] = reshape(x=%8, shape=[2, 4, 3, 4])",
    ],
    "matmul, tiled, a mask for each head": [
        "%0[2, 2, 1, 5, 4] = expand_dims(x=%k, axes=[2])",
        "%1[2, 2, 1, 5, 4] = expand_dims(x=%v, axes=[2])",
        "%2[2, 4, 3, 4] = mul(x=%q, y=0.5)",
        "%3[2, 2, 2, 3, 5] = reshape(x=%m, shape=[2, 2, 2, 3, 5])",
        "%4[2, 2, 2, 3, 4] = reshape(x=%2, shape=[2, 2, 2, 3, 4])",
        "%5[2, 2, 2, 3, 5] = matmul(x=%4, y=%0, transpose_y=true)",
        "%6[2, 2, 2, 3, 5] = add(x=%5, y=%3)",
        "%7[2, 2, 2, 3, 5] = softmax(x=%6)",
        "%8[2, 2, 2, 3, 4] = matmul(x=%7, y=%1)",
        "%9[2, 4, 3, 4] = reshape(x=%8, shape=[2, 4, 3, 4])",
    ],
    "matmul, tiled, a mask for each head of any batch": [
        "%0[2, 2, 1, 5, 4] = expand_dims(x=%k, axes=[2])",
        "%1[2, 2, 1, 5, 4] = expand_dims(x=%v, axes=[2])",
        "%2[2, 4, 3, 4] = mul(x=%q, y=0.5)",
        "%3[2, 2, 3, 5] = reshape(x=%m, shape=[2, 2, 3, 5])",
        "%4[2, 2, 2, 3, 4] = reshape(x=%2, shape=[2, 2, 2, 3, 4])",
        "%5[2, 2, 2, 3, 5] = matmul(x=%4, y=%0, transpose_y=true)",
        "%6[2, 2, 2, 3, 5] = add(x=%5, y=%3)",
        "%7[2, 2, 2, 3, 5] = softmax(x=%6)",
        "%8[2, 2, 2, 3, 4] = matmul(x=%7, y=%1)",
        "%9[2, 4, 3, 4] = reshape(x=%8, shape=[2, 4, 3, 4])",
    ],
    "matmul, tiled, a mask of rank 2": [
        "%0[1, 2, 1, 5, 4] = expand_dims(x=%k, axes=[2])",
        "%1[1, 2, 1, 5, 4] = expand_dims(x=%v, axes=[2])",
        "%2[1, 4, 3, 4] = mul(x=%q, y=0.5)",
        "%3[1, 2, 2, 3, 4] = reshape(x=%2, shape=[1, 2, 2, 3, 4])",
        "%4[1, 2, 2, 3, 5] = matmul(x=%3, y=%0, transpose_y=true)",
        "%5[1, 2, 2, 3, 5] = add(x=%4, y=%m)",
        "%6[1, 2, 2, 3, 5] = softmax(x=%5)",
        "%7[1, 2, 2, 3, 4] = matmul(x=%6, y=%1)",
        "%8[1, 4, 3, 4] = reshape(x=%7, shape=[1, 4, 3, 4])",
    ],
    "matmul, tiled keys alone": [
        "%0[1, 1, 1, 5, 4] = expand_dims(x=%k, axes=[2])",
        "%1[1, 1, 2, 5, 4] = tile(x=%0, reps=[1, 1, 2, 1, 1])",
        "%2[1, 2, 5, 4] = reshape(x=%1, shape=[1, 2, 5, 4])",
        "%3[1, 2, 3, 4] = mul(x=%q, y=0.5)",
        "%4[1, 2, 3, 5] = matmul(x=%3, y=%2, transpose_y=true)",
        "%5[1, 2, 3, 5] = softmax(x=%4)",
        "%6[1, 2, 3, 4] = matmul(x=%5, y=%v)",
    ],
    "per-head": [
        "%0[1, 2, 3, 4] = mul(x=%q, y=0.5)",
        "%1[1, 1, 3, 4], %2[1, 1, 3, 4] = split(x=%0, num_splits=2, axis=1)",
        "%3[1, 1, 5, 4], %4[1, 1, 5, 4] = split(x=%k, num_splits=2, axis=1)",
        "%5[1, 1, 5, 4], %6[1, 1, 5, 4] = split(x=%v, num_splits=2, axis=1)",
        "%7[1, 1, 3, 5] = matmul(x=%1, y=%3, transpose_y=true)",
        "%8[1, 1, 3, 5] = softmax(x=%7)",
        "%9[1, 1, 3, 4] = matmul(x=%8, y=%5)",
        "%10[1, 1, 3, 5] = matmul(x=%2, y=%4, transpose_y=true)",
        "%11[1, 1, 3, 5] = softmax(x=%10)",
        "%12[1, 1, 3, 4] = matmul(x=%11, y=%6)",
        "%13[1, 2, 3, 4] = concat(values=(%9, %12), axis=1)",
    ],
    "per-head, one": [
        "%0[1, 1, 3, 4] = mul(x=%q, y=0.5)",
        "%1[1, 1, 3, 5] = matmul(x=%0, y=%k, transpose_y=true)",
        "%2[1, 1, 3, 5] = softmax(x=%1)",
        "%3[1, 1, 3, 4] = matmul(x=%2, y=%v)",
    ],
    "per-head, masks": [
        "%0[1, 2, 3, 4] = mul(x=%q, y=0.5)",
        "%1[1, 1, 3, 4], %2[1, 1, 3, 4] = split(x=%0, num_splits=2, axis=1)",
        "%3[1, 1, 5, 4], %4[1, 1, 5, 4] = split(x=%k, num_splits=2, axis=1)",
        "%5[1, 1, 5, 4], %6[1, 1, 5, 4] = split(x=%v, num_splits=2, axis=1)",
        "%7[1, 1, 3, 5], %8[1, 1, 3, 5] = split(x=%m, num_splits=2, axis=1)",
        "%9[1, 1, 3, 5] = matmul(x=%1, y=%3, transpose_y=true)",
        "%10[1, 1, 3, 5] = add(x=%9, y=%7)",
        "%11[1, 1, 3, 5] = softmax(x=%10)",
        "%12[1, 1, 3, 4] = matmul(x=%11, y=%5)",
        "%13[1, 1, 3, 5] = matmul(x=%2, y=%4, transpose_y=true)",
        "%14[1, 1, 3, 5] = add(x=%13, y=%8)",
        "%15[1, 1, 3, 5] = softmax(x=%14)",
        "%16[1, 1, 3, 4] = matmul(x=%15, y=%6)",
        "%17[1, 2, 3, 4] = concat(values=(%12, %16), axis=1)",
    ],
    "per-head, masks of rank 3": [
        "%0[1, 2, 3, 4] = mul(x=%q, y=0.5)",
        "%1[1, 1, 3, 4], %2[1, 1, 3, 4] = split(x=%0, num_splits=2, axis=1)",
        "%3[1, 1, 5, 4], %4[1, 1, 5, 4] = split(x=%k, num_splits=2, axis=1)",
        "%5[1, 1, 5, 4], %6[1, 1, 5, 4] = split(x=%v, num_splits=2, axis=1)",
        "%7[1, 3, 5], %8[1, 3, 5] = split(x=%m, num_splits=2, axis=0)",
        "%9[1, 1, 3, 5] = matmul(x=%1, y=%3, transpose_y=true)",
        "%10[1, 1, 3, 5] = add(x=%9, y=%7)",
        "%11[1, 1, 3, 5] = softmax(x=%10)",
        "%12[1, 1, 3, 4] = matmul(x=%11, y=%5)",
        "%13[1, 1, 3, 5] = matmul(x=%2, y=%4, transpose_y=true)",
        "%14[1, 1, 3, 5] = add(x=%13, y=%8)",
        "%15[1, 1, 3, 5] = softmax(x=%14)",
        "%16[1, 1, 3, 4] = matmul(x=%15, y=%6)",
        "%17[1, 2, 3, 4] = concat(values=(%12, %16), axis=1)",
    ],
    "per-head, a mask": [
        "%0[1, 2, 3, 4] = mul(x=%q, y=0.5)",
        "%1[1, 1, 3, 4], %2[1, 1, 3, 4] = split(x=%0, num_splits=2, axis=1)",
        "%3[1, 1, 5, 4], %4[1, 1, 5, 4] = split(x=%k, num_splits=2, axis=1)",
        "%5[1, 1, 5, 4], %6[1, 1, 5, 4] = split(x=%v, num_splits=2, axis=1)",
        "%7[1, 1, 3, 5] = matmul(x=%1, y=%3, transpose_y=true)",
        "%8[1, 1, 3, 5] = add(x=%7, y=%m)",
        "%9[1, 1, 3, 5] = softmax(x=%8)",
        "%10[1, 1, 3, 4] = matmul(x=%9, y=%5)",
        "%11[1, 1, 3, 5] = matmul(x=%2, y=%4, transpose_y=true)",
        "%12[1, 1, 3, 5] = add(x=%11, y=%m)",
        "%13[1, 1, 3, 5] = softmax(x=%12)",
        "%14[1, 1, 3, 4] = matmul(x=%13, y=%6)",
        "%15[1, 2, 3, 4] = concat(values=(%10, %14), axis=1)",
    ],
    "per-head, tiled": [
        "%0[1, 2, 1, 5, 4] = expand_dims(x=%k, axes=[2])",
        "%1[1, 2, 1, 5, 4] = expand_dims(x=%v, axes=[2])",
        "%2[1, 4, 3, 4] = mul(x=%q, y=0.5)",
        "%3[1, 1, 3, 4], %4[1, 1, 3, 4], %5[1, 1, 3, 4], %6[1, 1, 3, 4] = split(x=%2, num_splits=4, axis=1)",
        "%7[1, 2, 5, 4] = squeeze(x=%0, axes=[2])",
        "%8[1, 1, 5, 4], %9[1, 1, 5, 4] = split(x=%7, num_splits=2, axis=1)",
        "%10[1, 2, 5, 4] = squeeze(x=%1, axes=[2])",
        "%11[1, 1, 5, 4], %12[1, 1, 5, 4] = split(x=%10, num_splits=2, axis=1)",
        "%13[1, 1, 3, 5] = matmul(x=%3, y=%8, transpose_y=true)",
        "%14[1, 1, 3, 5] = add(x=%13, y=%m)",
        "%15[1, 1, 3, 5] = softmax(x=%14)",
        "%16[1, 1, 3, 4] = matmul(x=%15, y=%11)",
        "%17[1, 1, 3, 5] = matmul(x=%4, y=%8, transpose_y=true)",
        "%18[1, 1, 3, 5] = add(x=%17, y=%m)",
        "%19[1, 1, 3, 5] = softmax(x=%18)",
        "%20[1, 1, 3, 4] = matmul(x=%19, y=%11)",
        "%21[1, 1, 3, 5] = matmul(x=%5, y=%9, transpose_y=true)",
        "%22[1, 1, 3, 5] = add(x=%21, y=%m)",
        "%23[1, 1, 3, 5] = softmax(x=%22)",
        "%24[1, 1, 3, 4] = matmul(x=%23, y=%12)",
        "%25[1, 1, 3, 5] = matmul(x=%6, y=%9, transpose_y=true)",
        "%26[1, 1, 3, 5] = add(x=%25, y=%m)",
        "%27[1, 1, 3, 5] = softmax(x=%26)",
        "%28[1, 1, 3, 4] = matmul(x=%27, y=%12)",
        "%29[1, 4, 3, 4] = concat(values=(%16, %20, %24, %28), axis=1)",
    ],
    "split-einsum": [
        "%0[1, 2, 3, 4] = mul(x=%q, y=0.5)",
        "%1[1, 4, 2, 3] = transpose(x=%0, perm=[0, 3, 1, 2])",
        "%2[1, 4, 1, 3], %3[1, 4, 1, 3] = split(x=%1, num_splits=2, axis=2)",
        "%4[1, 5, 2, 4] = transpose(x=%k, perm=[0, 2, 1, 3])",
        "%5[1, 5, 1, 4], %6[1, 5, 1, 4] = split(x=%4, num_splits=2, axis=2)",
        "%7[1, 4, 2, 5] = transpose(x=%v, perm=[0, 3, 1, 2])",
        "%8[1, 4, 1, 5], %9[1, 4, 1, 5] = split(x=%7, num_splits=2, axis=2)",
        '%10[1, 5, 1, 3] = einsum(values=(%5, %2), equation="bkhc,bchq->bkhq")',
        "%11[1, 5, 1, 3] = softmax(x=%10, axis=1)",
        '%12[1, 4, 1, 3] = einsum(values=(%8, %11), equation="bchk,bkhq->bchq")',
        '%13[1, 5, 1, 3] = einsum(values=(%6, %3), equation="bkhc,bchq->bkhq")',
        "%14[1, 5, 1, 3] = softmax(x=%13, axis=1)",
        '%15[1, 4, 1, 3] = einsum(values=(%9, %14), equation="bchk,bkhq->bchq")',
        "%16[1, 4, 2, 3] = concat(values=(%12, %15), axis=2)",
        "%17[1, 2, 3, 4] = transpose(x=%16, perm=[0, 2, 3, 1])",
    ],
    "split-einsum, one": [
        "%0[1, 1, 3, 4] = mul(x=%q, y=0.5)",
        "%1[1, 4, 1, 3] = transpose(x=%0, perm=[0, 3, 1, 2])",
        "%2[1, 5, 1, 4] = transpose(x=%k, perm=[0, 2, 1, 3])",
        "%3[1, 4, 1, 5] = transpose(x=%v, perm=[0, 3, 1, 2])",
        "%4[1, 5, 1, 1] = transpose(x=%m, perm=[0, 3, 1, 2])",
        '%5[1, 5, 1, 3] = einsum(values=(%2, %1), equation="bkhc,bchq->bkhq")',
        "%6[1, 5, 1, 3] = add(x=%5, y=%4)",
        "%7[1, 5, 1, 3] = softmax(x=%6, axis=1)",
        '%8[1, 4, 1, 3] = einsum(values=(%3, %7), equation="bchk,bkhq->bchq")',
        "%9[1, 1, 3, 4] = transpose(x=%8, perm=[0, 2, 3, 1])",
    ],
    "split-einsum, masks": [
        "%0[1, 2, 3, 4] = mul(x=%q, y=0.5)",
        "%1[1, 4, 2, 3] = transpose(x=%0, perm=[0, 3, 1, 2])",
        "%2[1, 4, 1, 3], %3[1, 4, 1, 3] = split(x=%1, num_splits=2, axis=2)",
        "%4[1, 5, 2, 4] = transpose(x=%k, perm=[0, 2, 1, 3])",
        "%5[1, 5, 1, 4], %6[1, 5, 1, 4] = split(x=%4, num_splits=2, axis=2)",
        "%7[1, 4, 2, 5] = transpose(x=%v, perm=[0, 3, 1, 2])",
        "%8[1, 4, 1, 5], %9[1, 4, 1, 5] = split(x=%7, num_splits=2, axis=2)",
        "%10[1, 5, 2, 3] = transpose(x=%m, perm=[0, 3, 1, 2])",
        "%11[1, 5, 1, 3], %12[1, 5, 1, 3] = split(x=%10, num_splits=2, axis=2)",
        '%13[1, 5, 1, 3] = einsum(values=(%5, %2), equation="bkhc,bchq->bkhq")',
        "%14[1, 5, 1, 3] = add(x=%13, y=%11)",
        "%15[1, 5, 1, 3] = softmax(x=%14, axis=1)",
        '%16[1, 4, 1, 3] = einsum(values=(%8, %15), equation="bchk,bkhq->bchq")',
        '%17[1, 5, 1, 3] = einsum(values=(%6, %3), equation="bkhc,bchq->bkhq")',
        "%18[1, 5, 1, 3] = add(x=%17, y=%12)",
        "%19[1, 5, 1, 3] = softmax(x=%18, axis=1)",
        '%20[1, 4, 1, 3] = einsum(values=(%9, %19), equation="bchk,bkhq->bchq")',
        "%21[1, 4, 2, 3] = concat(values=(%16, %20), axis=2)",
        "%22[1, 2, 3, 4] = transpose(x=%21, perm=[0, 2, 3, 1])",
    ],
    "split-einsum, tiled": [
        "%0[1, 1, 1, 5, 4] = expand_dims(x=%k, axes=[2])",
        "%1[1, 1, 1, 5, 4] = expand_dims(x=%v, axes=[2])",
        "%2[1, 2, 3, 4] = mul(x=%q, y=0.5)",
        '%3[1, 1, 1, 5] = cast(x=%m, dtype="fp32")',
        "%4[1, 1, 1, 5] = mul(x=%3, y=0.0)",
        "%5[1, 1, 1, 5] = select(cond=%m, a=%4, b=-40000.0)",
        "%6[1, 1, 5, 4] = squeeze(x=%0, axes=[2])",
        "%7[1, 1, 5, 4] = squeeze(x=%1, axes=[2])",
        "%8[1, 4, 2, 3] = transpose(x=%2, perm=[0, 3, 1, 2])",
        "%9[1, 4, 1, 3], %10[1, 4, 1, 3] = split(x=%8, num_splits=2, axis=2)",
        "%11[1, 5, 1, 4] = transpose(x=%6, perm=[0, 2, 1, 3])",
        "%12[1, 4, 1, 5] = transpose(x=%7, perm=[0, 3, 1, 2])",
        "%13[1, 5, 1, 1] = transpose(x=%5, perm=[0, 3, 1, 2])",
        '%14[1, 5, 1, 3] = einsum(values=(%11, %9), equation="bkhc,bchq->bkhq")',
        "%15[1, 5, 1, 3] = add(x=%14, y=%13)",
        "%16[1, 5, 1, 3] = softmax(x=%15, axis=1)",
        '%17[1, 4, 1, 3] = einsum(values=(%12, %16), equation="bchk,bkhq->bchq")',
        '%18[1, 5, 1, 3] = einsum(values=(%11, %10), equation="bkhc,bchq->bkhq")',
        "%19[1, 5, 1, 3] = add(x=%18, y=%13)",
        "%20[1, 5, 1, 3] = softmax(x=%19, axis=1)",
        '%21[1, 4, 1, 3] = einsum(values=(%12, %20), equation="bchk,bkhq->bchq")',
        "%22[1, 4, 2, 3] = concat(values=(%17, %21), axis=2)",
        "%23[1, 2, 3, 4] = transpose(x=%22, perm=[0, 2, 3, 1])",
    ],
    "sliced-q": [
        "%0[1, 2, 3, 4] = mul(x=%q, y=0.5)",
        "%1[1, 2, 2, 4] = slice_by_index(x=%0, begin=[0, 0, 0, 0], end=[0, 0, 2, 0])",
        "%2[1, 2, 2, 5] = matmul(x=%1, y=%k, transpose_y=true)",
        "%3[1, 2, 2, 5] = softmax(x=%2)",
        "%4[1, 2, 2, 4] = matmul(x=%3, y=%v)",
        "%5[1, 2, 1, 4] = slice_by_index(x=%0, begin=[0, 0, 2, 0], end=[0, 0, 3, 0])",
        "%6[1, 2, 1, 5] = matmul(x=%5, y=%k, transpose_y=true)",
        "%7[1, 2, 1, 5] = softmax(x=%6)",
        "%8[1, 2, 1, 4] = matmul(x=%7, y=%v)",
        "%9[1, 2, 3, 4] = concat(values=(%4, %8), axis=-2)",
    ],
    "sliced-q, a mask": [
        "%0[1, 2, 3, 4] = mul(x=%q, y=0.5)",
        "%1[1, 2, 2, 4] = slice_by_index(x=%0, begin=[0, 0, 0, 0], end=[0, 0, 2, 0])",
        "%2[1, 1, 2, 5] = slice_by_index(x=%m, begin=[0, 0, 0, 0], end=[0, 0, 2, 0])",
        "%3[1, 2, 2, 5] = matmul(x=%1, y=%k, transpose_y=true)",
        "%4[1, 2, 2, 5] = add(x=%3, y=%2)",
        "%5[1, 2, 2, 5] = softmax(x=%4)",
        "%6[1, 2, 2, 4] = matmul(x=%5, y=%v)",
        "%7[1, 2, 1, 4] = slice_by_index(x=%0, begin=[0, 0, 2, 0], end=[0, 0, 3, 0])",
        "%8[1, 1, 1, 5] = slice_by_index(x=%m, begin=[0, 0, 2, 0], end=[0, 0, 3, 0])",
        "%9[1, 2, 1, 5] = matmul(x=%7, y=%k, transpose_y=true)",
        "%10[1, 2, 1, 5] = add(x=%9, y=%8)",
        "%11[1, 2, 1, 5] = softmax(x=%10)",
        "%12[1, 2, 1, 4] = matmul(x=%11, y=%v)",
        "%13[1, 2, 3, 4] = concat(values=(%6, %12), axis=-2)",
    ],
    "sliced-q, a mask of one row": [
        "%0[1, 2, 3, 4] = mul(x=%q, y=0.5)",
        "%1[1, 2, 2, 4] = slice_by_index(x=%0, begin=[0, 0, 0, 0], end=[0, 0, 2, 0])",
        "%2[1, 2, 2, 5] = matmul(x=%1, y=%k, transpose_y=true)",
        "%3[1, 2, 2, 5] = add(x=%2, y=%m)",
        "%4[1, 2, 2, 5] = softmax(x=%3)",
        "%5[1, 2, 2, 4] = matmul(x=%4, y=%v)",
        "%6[1, 2, 1, 4] = slice_by_index(x=%0, begin=[0, 0, 2, 0], end=[0, 0, 3, 0])",
        "%7[1, 2, 1, 5] = matmul(x=%6, y=%k, transpose_y=true)",
        "%8[1, 2, 1, 5] = add(x=%7, y=%m)",
        "%9[1, 2, 1, 5] = softmax(x=%8)",
        "%10[1, 2, 1, 4] = matmul(x=%9, y=%v)",
        "%11[1, 2, 3, 4] = concat(values=(%5, %10), axis=-2)",
    ],
    "sliced-q, a mask of columns": [
        "%0[1, 2, 3, 4] = mul(x=%q, y=0.5)",
        "%1[1, 2, 2, 4] = slice_by_index(x=%0, begin=[0, 0, 0, 0], end=[0, 0, 2, 0])",
        "%2[1, 2, 2, 5] = matmul(x=%1, y=%k, transpose_y=true)",
        "%3[1, 2, 2, 5] = add(x=%2, y=%m)",
        "%4[1, 2, 2, 5] = softmax(x=%3)",
        "%5[1, 2, 2, 4] = matmul(x=%4, y=%v)",
        "%6[1, 2, 1, 4] = slice_by_index(x=%0, begin=[0, 0, 2, 0], end=[0, 0, 3, 0])",
        "%7[1, 2, 1, 5] = matmul(x=%6, y=%k, transpose_y=true)",
        "%8[1, 2, 1, 5] = add(x=%7, y=%m)",
        "%9[1, 2, 1, 5] = softmax(x=%8)",
        "%10[1, 2, 1, 4] = matmul(x=%9, y=%v)",
        "%11[1, 2, 3, 4] = concat(values=(%5, %10), axis=-2)",
    ],
    "sliced-q, as many as a slice": [
        "%0[1, 2, 2, 4] = mul(x=%q, y=0.5)",
        "%1[1, 2, 2, 5] = matmul(x=%0, y=%k, transpose_y=true)",
        "%2[1, 2, 2, 5] = softmax(x=%1)",
        "%3[1, 2, 2, 4] = matmul(x=%2, y=%v)",
    ],
    "sliced-q, without heads": [
        "%0[2, 3, 4] = mul(x=%q, y=0.5)",
        "%1[2, 2, 4] = slice_by_index(x=%0, begin=[0, 0, 0], end=[0, 2, 0])",
        "%2[2, 5] = slice_by_index(x=%m, begin=[0, 0], end=[2, 0])",
        "%3[2, 2, 5] = matmul(x=%1, y=%k, transpose_y=true)",
        "%4[2, 2, 5] = add(x=%3, y=%2)",
        "%5[2, 2, 5] = softmax(x=%4)",
        "%6[2, 2, 4] = matmul(x=%5, y=%v)",
        "%7[2, 1, 4] = slice_by_index(x=%0, begin=[0, 2, 0], end=[0, 3, 0])",
        "%8[1, 5] = slice_by_index(x=%m, begin=[2, 0], end=[3, 0])",
        "%9[2, 1, 5] = matmul(x=%7, y=%k, transpose_y=true)",
        "%10[2, 1, 5] = add(x=%9, y=%8)",
        "%11[2, 1, 5] = softmax(x=%10)",
        "%12[2, 1, 4] = matmul(x=%11, y=%v)",
        "%13[2, 3, 4] = concat(values=(%6, %12), axis=-2)",
    ],
}

"""What fuse-sdpa writes, op by op: masks and factors in other layouts, scales that move, keys that heads share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from milopt.mil import Program, get_new_symbol, mb, shape_of
from milopt.passes.attention import FuseAttention
from milopt.passes.gqa import PackHeads
from milopt.reports import Report
from milopt.rules import apply

from .programs import Build, One, after, bools, fp16, fp32, lines, program_of, reasons

L, S, E, D = 3, 5, 4, 6
F32 = np.float32


def channels_first(mask: Build | None = None, *, layers: int = 1, **inputs: Any) -> Program:
    """q (B, E, H, L), k (B, S, H, E), v (B, D, H, S); ``mask`` makes something of the scores (B, S, H, L)."""

    call: Callable[..., Any] | None = mask

    def build(q: Any, k: Any, v: Any, **given: Any) -> Any:
        outs: list[Any] = []
        for _ in range(layers):
            scores = mb.einsum(values=(k, q), equation="bkhc,bchq->bkhq")
            scores = scores if call is None else call(scores, *given.values())
            weights = mb.softmax(x=scores, axis=1)
            outs.append(mb.einsum(values=(v, weights), equation="bchk,bkhq->bchq"))
        return outs

    return program_of(build, q=fp32(1, E, 2, L), k=fp32(1, S, 2, E), v=fp32(1, D, 2, S), **inputs)


def test_channels_first() -> None:
    assert after(FuseAttention(), channels_first()) == [
        "%0: fp32[1, 4, 2, 3] = mul(x=%q, y=2.0)",
        "%1: fp32[1, 2, 3, 4] = transpose(x=%0, perm=[0, 2, 3, 1])",
        "%2: fp32[1, 2, 5, 4] = transpose(x=%k, perm=[0, 2, 1, 3])",
        "%3: fp32[1, 2, 5, 6] = transpose(x=%v, perm=[0, 2, 3, 1])",
        "%4: fp32[1, 2, 3, 6] = scaled_dot_product_attention(query=%1, key=%2, value=%3)",
        "%5: fp32[1, 6, 2, 3] = transpose(x=%4, perm=[0, 3, 1, 2])",
    ]


def test_a_constant_mask_of_low_rank_is_turned_as_a_constant() -> None:
    numbers: Any = np.array([[[L * key + row for row in range(L)]] for key in range(S)], F32)
    program = channels_first(lambda scores: mb.add(x=scores, y=numbers))
    (attention,) = [line for line in after(FuseAttention(), program) if "attention" in line]
    rows = "[[[[0.0, 3.0, 6.0, 9.0, 12.0], [1.0, 4.0, 7.0, 10.0, 13.0], [2.0, 5.0, 8.0, 11.0, 14.0]]]]"
    assert attention.endswith(f"attn_mask={rows})")


def test_a_mask_of_low_rank_is_turned_once_for_all_layers() -> None:
    program = channels_first(lambda scores, m: mb.add(x=scores, y=m), layers=2, m=fp32(S, 1, L))
    found = [line for line in after(FuseAttention(), program) if "%m" in line or "%4" in line or "attention" in line]
    assert found == [
        "%4: fp32[1, 5, 1, 3] = expand_dims(x=%m, axes=[0])",
        "%5: fp32[1, 1, 3, 5] = transpose(x=%4, perm=[0, 2, 3, 1])",
        "%6: fp32[1, 2, 3, 6] = scaled_dot_product_attention(query=%1, key=%2, value=%3, attn_mask=%5)",
        "%12: fp32[1, 2, 3, 6] = scaled_dot_product_attention(query=%9, key=%10, value=%11, attn_mask=%5)",
    ]


def test_rows_without_keys_in_channels_first() -> None:
    """What a row keeps is said with the axes of q; the condition is as large as the scores, or of lower rank."""

    def chosen(scores: Any, keep: Any) -> Any:
        return mb.select(cond=keep, a=scores, b=F32(-1e4))

    assert after(FuseAttention(), channels_first(chosen, keep=bools(1, S, 1, L))) == [
        "%0: fp32[1, 4, 2, 3] = mul(x=%q, y=2.0)",
        '%1: fp32[1, 5, 1, 3] = cast(x=%keep, dtype="fp32")',
        "%2: fp32[1, 1, 1, 3] = reduce_max(x=%1, axes=[-3], keep_dims=true)",
        "%3: fp32[1, 4, 2, 3] = mul(x=%0, y=%2)",
        "%4: fp32[1, 2, 3, 4] = transpose(x=%3, perm=[0, 2, 3, 1])",
        "%5: fp32[1, 2, 5, 4] = transpose(x=%k, perm=[0, 2, 1, 3])",
        "%6: fp32[1, 2, 5, 6] = transpose(x=%v, perm=[0, 2, 3, 1])",
        "%7: fp32[1, 5, 1, 3] = mul(x=%1, y=0.0)",
        "%8: fp32[1, 5, 1, 3] = select(cond=%keep, a=%7, b=-10000.0)",
        "%9: fp32[1, 1, 3, 5] = transpose(x=%8, perm=[0, 2, 3, 1])",
        "%10: fp32[1, 2, 3, 6] = scaled_dot_product_attention(query=%4, key=%5, value=%6, attn_mask=%9)",
        "%11: fp32[1, 6, 2, 3] = transpose(x=%10, perm=[0, 3, 1, 2])",
    ]
    low = after(FuseAttention(), channels_first(chosen, keep=bools(S, 1, L)))
    heads = after(FuseAttention(), channels_first(chosen, keep=bools(1, S, 2, L)))
    assert low[1:4] == [
        '%1: fp32[5, 1, 3] = cast(x=%keep, dtype="fp32")',
        "%2: fp32[1, 1, 3] = reduce_max(x=%1, axes=[-3], keep_dims=true)",
        "%3: fp32[1, 4, 2, 3] = mul(x=%0, y=%2)",
    ]
    assert heads[2:4] == [
        "%2: fp32[1, 1, 2, 3] = reduce_max(x=%1, axes=[-3], keep_dims=true)",
        "%3: fp32[1, 4, 2, 3] = mul(x=%0, y=%2)",
    ]


def keys_first(*conditions: Any, regroup: bool = False) -> Program:
    def build(q: Any, k: Any, v: Any, **given: Any) -> Any:
        scores = mb.matmul(x=k, y=q, transpose_y=True)
        scores = mb.reshape(x=scores, shape=[1, 2, S, L]) if regroup else scores
        for keep in given.values():
            scores = mb.select(cond=keep, a=scores, b=F32(-1e4))
        weights = mb.softmax(x=scores, axis=-2)
        weights = mb.reshape(x=weights, shape=[2, S, L]) if regroup else weights
        return mb.matmul(x=weights, y=v, transpose_x=True)

    lead = (2,) if regroup else (1, 2)
    keep = {f"keep_{at}": each for at, each in enumerate(conditions)}
    return program_of(build, q=fp32(*lead, L, E), k=fp32(*lead, S, E), v=fp32(*lead, S, D), **keep)


def test_rows_without_keys_where_keys_come_first() -> None:
    assert after(FuseAttention(), keys_first(bools(1, 2, S, L)))[1:5] == [
        '%1: fp32[1, 2, 5, 3] = cast(x=%keep_0, dtype="fp32")',
        "%2: fp32[1, 2, 1, 3] = reduce_max(x=%1, axes=[-2], keep_dims=true)",
        "%3: fp32[1, 2, 3, 1] = transpose(x=%2, perm=[0, 1, 3, 2])",
        "%4: fp32[1, 2, 3, 4] = mul(x=%0, y=%3)",
    ]
    assert after(FuseAttention(), keys_first(bools(S, L)))[1:7] == [
        '%1: fp32[5, 3] = cast(x=%keep_0, dtype="fp32")',
        "%2: fp32[1, 3] = reduce_max(x=%1, axes=[-2], keep_dims=true)",
        "%3: fp32[1, 1, 3] = expand_dims(x=%2, axes=[0])",
        "%4: fp32[1, 1, 1, 3] = expand_dims(x=%3, axes=[0])",
        "%5: fp32[1, 1, 3, 1] = transpose(x=%4, perm=[0, 1, 3, 2])",
        "%6: fp32[1, 2, 3, 4] = mul(x=%0, y=%5)",
    ]


def test_conditions_of_all_keys_alike_where_keys_come_first() -> None:
    """One of (L,) has no axis of keys: it is itself what a row keeps."""
    assert after(FuseAttention(), keys_first(bools(S, L), bools(L)))[7:12] == [
        "%7: fp32[1, 2, 3, 4] = mul(x=%0, y=%6)",
        "%8: fp32[1, 3] = expand_dims(x=%3, axes=[0])",
        "%9: fp32[1, 1, 3] = expand_dims(x=%8, axes=[0])",
        "%10: fp32[1, 1, 1, 3] = expand_dims(x=%9, axes=[0])",
        "%11: fp32[1, 1, 3, 1] = transpose(x=%10, perm=[0, 1, 3, 2])",
    ]


def test_rows_without_keys_where_keys_come_first_and_the_batch_is_regrouped() -> None:
    assert after(FuseAttention(), keys_first(bools(S, L), regroup=True))[1:5] == [
        '%1: fp32[5, 3] = cast(x=%keep_0, dtype="fp32")',
        "%2: fp32[1, 3] = reduce_max(x=%1, axes=[-2], keep_dims=true)",
        "%3: fp32[3, 1] = transpose(x=%2, perm=[1, 0])",
        "%4: fp32[2, 3, 4] = mul(x=%0, y=%3)",
    ]


def regrouped(step: Build | None = None, **inputs: Any) -> Program:
    """Six heads in the products, two times three in the softmax; ``step`` makes something of the scores."""

    call: Callable[..., Any] | None = step

    def build(q: Any, k: Any, v: Any, **given: Any) -> Any:
        scores = mb.reshape(x=mb.matmul(x=q, y=k, transpose_y=True), shape=[2, 3, L, -1])
        scores = scores if call is None else call(scores, *given.values())
        weights = mb.softmax(x=scores, axis=-1)
        return mb.matmul(x=mb.reshape(x=weights, shape=[6, L, -1]), y=v, name="out")

    shapes = {"q": fp32(6, L, E), "k": fp32(6, S, E), "v": fp32(6, S, D), **inputs}
    return program_of(build, **shapes)


def test_rows_without_keys_and_a_batch_that_is_regrouped() -> None:
    def chosen(scores: Any, keep: Any) -> Any:
        return mb.select(cond=keep, a=scores, b=F32(-1e4))

    told = "a row without keys meets a batch that is regrouped"
    assert reasons(FuseAttention(), regrouped(chosen, keep=bools(2, 1, L, S))) == [("out_reduce_max", told)]
    assert reasons(FuseAttention(), regrouped(chosen, keep=bools(1, L, S))) == [("out_reduce_max", told)]
    assert after(FuseAttention(), regrouped(chosen, keep=bools(L, S))) == [
        "%0: fp32[6, 3, 4] = mul(x=%q, y=2.0)",
        '%1: fp32[3, 5] = cast(x=%keep, dtype="fp32")',
        "%2: fp32[3, 1] = reduce_max(x=%1, axes=[-1], keep_dims=true)",
        "%3: fp32[6, 3, 4] = mul(x=%0, y=%2)",
        "%4: fp32[2, 3, 3, 4] = reshape(x=%3, shape=[2, 3, 3, 4])",
        "%5: fp32[2, 3, 5, 4] = reshape(x=%k, shape=[2, 3, 5, 4])",
        "%6: fp32[2, 3, 5, 6] = reshape(x=%v, shape=[2, 3, 5, 6])",
        "%7: fp32[3, 5] = mul(x=%1, y=0.0)",
        "%8: fp32[3, 5] = select(cond=%keep, a=%7, b=-10000.0)",
        "%9: fp32[2, 3, 3, 6] = scaled_dot_product_attention(query=%4, key=%5, value=%6, attn_mask=%8)",
        "%10: fp32[6, 3, 6] = reshape(x=%9, shape=[6, 3, 6])",
    ]


def test_weights_that_are_replaced_and_a_batch_that_is_regrouped() -> None:
    def build(q: Any, k: Any, v: Any, seen: Any) -> Any:
        scores = mb.reshape(x=mb.matmul(x=q, y=k, transpose_y=True), shape=[2, 3, L, S])
        weights = mb.softmax(x=mb.reshape(x=mb.mul(x=scores, y=F32(0.5)), shape=[6, L, S]), axis=-1)
        return mb.matmul(x=mb.select(cond=seen, a=weights, b=F32(0)), y=v, name="out")

    shapes = {"q": fp32(6, L, E), "k": fp32(6, S, E), "v": fp32(6, S, D), "seen": bools(6, L, 1)}
    told = "weights are replaced in another layout"
    assert reasons(FuseAttention(), program_of(build, **shapes)) == [("seen", told)]


def test_weights_of_all_rows_that_are_replaced_in_another_layout() -> None:
    def build(q: Any, k: Any, v: Any, seen: Any) -> Any:
        weights = mb.softmax(x=mb.matmul(x=k, y=q, transpose_y=True), axis=-2)
        weights = mb.select(cond=mb.squeeze(x=seen, axes=[0]), a=weights, b=F32(0))
        return mb.matmul(x=weights, y=v, transpose_x=True)

    shapes = {"q": fp32(1, L, E), "k": fp32(1, S, E), "v": fp32(1, S, D), "seen": bools(1)}
    assert after(FuseAttention(), program_of(build, **shapes)) == [
        "%0: bool = squeeze(x=%seen, axes=[0])",
        "%1: fp32[1, 3, 4] = mul(x=%q, y=2.0)",
        "%2: fp32[1, 3, 6] = scaled_dot_product_attention(query=%1, key=%k, value=%v)",
        "%3: fp32[1, 3, 6] = select(cond=%0, a=%2, b=0.0)",
    ]


def test_a_batch_of_keys_that_is_broadcast_is_not_regrouped() -> None:
    """Of how many keys there are nothing is known, so that MIL itself takes the reshape of too few for one."""
    keys = get_new_symbol()
    told = [("out", "a batch is broadcast and regrouped")]
    assert reasons(FuseAttention(), regrouped(k=fp32(1, keys, E), v=fp32(6, keys, D))) == told
    assert reasons(FuseAttention(), regrouped(v=fp32(1, S, D))) == told
    assert reasons(FuseAttention(), regrouped(k=fp32(1, S, E))) == told


# --- scales that are moved

NUMBER: Any = F32(E**-0.5)


def moved(change: One, q: Any, *, returned: bool = False) -> Program:
    def build(q: Any, k: Any) -> Any:
        scaled = mb.mul(x=q, y=NUMBER, name="scaled")
        query = change(scaled)
        out = mb.matmul(x=mb.softmax(x=mb.matmul(x=query, y=k, transpose_y=True), axis=-1), y=k)
        return (out, scaled) if returned else out

    return program_of(build, q=q, k=fp32(1, 2, S, E))


MOVES: list[tuple[One, tuple[int, ...], list[str]]] = [
    (lambda x: mb.reshape(x=x, shape=[1, 2, L, E]), (2, L, 2, 2), ["reshape"]),
    (lambda x: mb.expand_dims(x=x, axes=[0]), (2, L, E), ["expand_dims"]),
    (lambda x: mb.squeeze(x=x, axes=[1]), (1, 1, 2, L, E), ["squeeze"]),
    (lambda x: mb.squeeze(x=mb.expand_dims(x=x, axes=[0]), axes=[0]), (1, 2, L, E), ["expand_dims", "squeeze"]),
]


@pytest.mark.parametrize(("change", "shape", "moves"), MOVES)
def test_a_scale_in_front_of_moves_goes(change: One, shape: tuple[int, ...], moves: list[str]) -> None:
    made = after(FuseAttention(), moved(change, fp32(*shape)))
    assert [line.partition("= ")[2].partition("(")[0] for line in made] == [*moves, "scaled_dot_product_attention"]


def test_a_scale_that_is_returned_stays() -> None:
    program = moved(lambda x: mb.transpose(x=x, perm=[0, 2, 1, 3]), fp32(1, L, 2, E), returned=True)
    assert after(FuseAttention(), program) == [
        "%0: fp32[1, 3, 2, 4] = mul(x=%q, y=0.5)",
        "%1: fp32[1, 2, 3, 4] = transpose(x=%0, perm=[0, 2, 1, 3])",
        "%2: fp32[1, 2, 3, 4] = mul(x=%1, y=2.0)",
        "%3: fp32[1, 2, 3, 4] = scaled_dot_product_attention(query=%2, key=%k, value=%k)",
    ]


# --- heads that share keys by broadcasting


def broadcast(q: Any, keys: tuple[Any, ...], *mask: Any, kind: Any = fp32) -> Program:
    def build(q: Any, k: Any, v: Any, m: Any = None) -> Any:
        scores = mb.matmul(x=q, y=k, transpose_y=True)
        scores = scores if m is None else mb.add(x=scores, y=m)
        return mb.matmul(x=mb.softmax(x=scores, axis=-1), y=v, name="out")

    masks = {"m": kind(*mask)} if mask else {}
    return program_of(build, q=q, k=kind(*keys, S, E), v=kind(*keys, S, D), **masks)


def test_heads_of_unknown_number_that_share_no_keys() -> None:
    heads = get_new_symbol()
    program = broadcast(fp32(1, heads, 3, L, E), (1, heads, 1))
    assert after(FuseAttention(), program, same=False) == [
        "%0: fp32[1, s0, 3, 3, 4] = mul(x=%q, y=2.0)",
        "%1: fp32[1, s0, 9, 4] = reshape(x=%0, shape=[1, -1, 9, 4])",
        "%2: fp32[1, s0, 5, 4] = reshape(x=%k, shape=[1, -1, 5, 4])",
        "%3: fp32[1, s0, 5, 6] = reshape(x=%v, shape=[1, -1, 5, 6])",
        "%4: fp32[1, s0, 9, 6] = scaled_dot_product_attention(query=%1, key=%2, value=%3)",
        "%5: fp32[1, s0, 3, 3, 6] = reshape(x=%4, shape=[1, -1, 3, 3, 6])",
    ]


def test_one_of_two_axes_that_share_keys_is_of_unknown_number() -> None:
    told = [("out", "an unknown number of heads share keys")]
    assert reasons(FuseAttention(), broadcast(fp32(1, get_new_symbol(), 3, L, E), (1, 1, 1))) == told
    assert reasons(FuseAttention(), broadcast(fp32(1, 3, get_new_symbol(), L, E), (1, 1, 1))) == told


def test_heads_that_share_keys_with_a_mask_each() -> None:
    program = broadcast(fp32(1, 2, 3, L, E), (1, 2, 1), 1, 2, 3, L, S)
    assert after(FuseAttention(), program) == [
        "%0: fp32[1, 2, 3, 3, 4] = mul(x=%q, y=2.0)",
        "%1: fp32[1, 2, 9, 4] = reshape(x=%0, shape=[1, 2, 9, 4])",
        "%2: fp32[1, 2, 5, 4] = reshape(x=%k, shape=[1, 2, 5, 4])",
        "%3: fp32[1, 2, 5, 6] = reshape(x=%v, shape=[1, 2, 5, 6])",
        "%4: fp32[1, 2, 9, 5] = reshape(x=%m, shape=[1, 2, 9, 5])",
        "%5: fp32[1, 2, 9, 6] = scaled_dot_product_attention(query=%1, key=%2, value=%3, attn_mask=%4)",
        "%6: fp32[1, 2, 3, 3, 6] = reshape(x=%5, shape=[1, 2, 3, 3, 6])",
    ]


# --- masks of heads that share repeated keys


def packed(*mask: Any, kind: Any = fp32, heads: int = 4, groups: int = 2, rows: Any = L) -> Program:
    def build(q: Any, k: Any, m: Any) -> Any:
        wide = mb.tile(x=mb.expand_dims(x=k, axes=[2]), reps=[1, 1, groups, 1, 1])
        wide = mb.reshape(x=wide, shape=[1, heads, S, E])
        return mb.scaled_dot_product_attention(query=q, key=wide, value=wide, attn_mask=m, name="out")

    number = fp32 if kind is bools else kind
    return program_of(build, q=number(1, heads, rows, E), k=number(1, heads // groups, S, E), m=kind(*mask))


def mask_after(program: Program, *, same: bool = True) -> tuple[list[str], tuple[Any, ...]]:
    """The ops that the mask goes through, and the shape it then has."""
    kinds = [line.partition("= ")[2].partition("(")[0] for line in after(PackHeads(), program, same=same)]
    (op,) = [op for op in program.functions["main"].operations if op.op_type == "scaled_dot_product_attention"]
    found: list[str] = []
    at = op.attn_mask
    while at.op is not None:
        found.append(at.op.op_type)
        at = at.op.values[0] if at.op.op_type == "concat" else at.op.x
    assert set(found) <= set(kinds)
    return found[::-1], shape_of(op.attn_mask)


@pytest.mark.parametrize(
    ("mask", "moves", "shape"),
    [
        ((S,), [], (S,)),
        ((1, S), [], (1, S)),
        ((L, S), ["concat"], (2 * L, S)),
        ((1, 1, S), [], (1, 1, S)),
        ((1, L, S), ["concat"], (1, 2 * L, S)),
        ((4, 1, S), ["concat", "reshape"], (2, 2 * L, S)),
        ((4, L, S), ["reshape"], (2, 2 * L, S)),
        ((1, 1, 1, S), [], (1, 1, 1, S)),
        ((1, 1, L, S), ["concat"], (1, 1, 2 * L, S)),
        ((1, 4, 1, S), ["concat", "reshape"], (1, 2, 2 * L, S)),
        ((1, 4, L, S), ["reshape"], (1, 2, 2 * L, S)),
    ],
)
def test_masks_of_heads_that_share_repeated_keys(
    mask: tuple[int, ...], moves: list[str], shape: tuple[int, ...]
) -> None:
    assert mask_after(packed(*mask)) == (moves, shape)


def test_masks_of_two_rows_are_no_masks_of_one() -> None:
    assert mask_after(packed(1, 4, 2, S, rows=2)) == (["reshape"], (1, 2, 4, S))
    assert mask_after(packed(1, 1, 2, S, rows=2)) == (["concat"], (1, 1, 4, S))
    assert mask_after(packed(1, 2, 1, S, heads=2, rows=2)) == (["concat", "reshape"], (1, 1, 4, S))


def test_one_query_needs_no_rows_of_its_mask() -> None:
    assert mask_after(packed(1, 4, 1, S, rows=1)) == (["reshape"], (1, 2, 2, S))
    assert mask_after(packed(1, 1, 1, S, rows=1)) == ([], (1, 1, 1, S))


def test_masks_of_another_shape_are_refused() -> None:
    heads = get_new_symbol()
    told = f"the mask is of shape (1, {heads}, {L}, {S})"
    assert reasons(PackHeads(), packed(1, heads, L, S)) == [("m", told)]
    told = f"the mask is of shape (1, 1, 1, {L}, {S})"
    assert reasons(PackHeads(), packed(1, 1, 1, L, S)) == [("m", told)]


def test_rows_of_any_number_are_counted_by_their_symbol() -> None:
    rows = get_new_symbol()
    assert mask_after(packed(1, 4, rows, S, rows=rows), same=False) == (["reshape"], (1, 2, 2 * rows, S))
    program = broadcast(fp32(1, 2, 3, rows, E), (1, 2, 1), 1, 2, 3, rows, S)
    shapes = [line.partition("]")[0].partition("[")[2] for line in after(FuseAttention(), program, same=False)]
    assert shapes == [
        "1, 2, 3, s0, 4",
        "1, 2, 3*s0, 4",
        "1, 2, 5, 4",
        "1, 2, 5, 6",
        "1, 2, 3*s0, 5",
        "1, 2, 3*s0, 6",
        "1, 2, 3, s0, 6",
    ]


def note_of(program: Program) -> list[str]:
    report: Report = apply(PackHeads(), program)
    return report.notes


@pytest.mark.parametrize(("kind", "size"), [(fp16, 2), (fp32, 4), (bools, 1)])
def test_the_bytes_of_a_repeated_mask(kind: Any, size: int) -> None:
    told = "the mask m is repeated 2 times, once for all layers, for query heads that share keys"
    assert note_of(packed(1, 1, L, S, kind=kind)) == [f"{told}: {2 * L * S * size} bytes"]
    assert note_of(packed(1, 1, 100, S, kind=kind, rows=100)) == [f"{told}: {1000 * size:,} bytes"]
    rows = get_new_symbol()
    assert note_of(packed(1, 1, rows, S, kind=kind, rows=rows)) == [told]
    assert note_of(packed(1, 1, 1, S, kind=kind)) == []


def test_a_mask_for_each_head_and_any_number_of_queries() -> None:
    rows = get_new_symbol()
    told = "a mask is repeated for a number of queries that is not known"
    assert reasons(PackHeads(), packed(1, 4, 1, S, rows=rows)) == [("m", told)]
    assert lines(packed(1, 1, 1, S, rows=rows)) != []

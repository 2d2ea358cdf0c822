"""fuse-sdpa where the batch of q, k, v and the mask is laid out in other ways: broadcast, regrouped, in lower rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from milopt.interpreter import evaluate
from milopt.mil import Program, get_new_symbol, mb, target, types
from milopt.passes.attention import FuseAttention
from milopt.reports import Report
from milopt.rules import apply
from milopt.text import text

from .support import assert_same, op_types, random_inputs

HEADS, GROUPS, L, S, E, D = 2, 3, 4, 5, 8, 6
SDPA = "scaled_dot_product_attention"

Specs = dict[str, tuple[Any, ...]]


def program_of(build: Callable[..., Any], specs: Specs, dtype: Any = types.fp32) -> Program:
    """``build`` of inputs q, k, v and, where there is one, mask."""
    made = [mb.TensorSpec(shape, dtype) for shape in specs.values()]

    def three(q: Any, k: Any, v: Any) -> Any:
        return build(q, k, v)

    def four(q: Any, k: Any, v: Any, mask: Any) -> Any:
        return build(q, k, v, mask)

    return mb.program(input_specs=made, opset_version=target.iOS18)(four if len(specs) == 4 else three)


def attend(q: Any, k: Any, v: Any, mask: Any = None) -> Any:
    scores = mb.matmul(x=mb.mul(x=q, y=np.float32(0.3)), y=k, transpose_y=True)
    scores = scores if mask is None else mb.add(x=scores, y=mask)
    return mb.matmul(x=mb.softmax(x=scores, axis=-1), y=v, name="out")


def fused(specs: Specs, build: Callable[..., Any] = attend) -> tuple[Program, Report]:
    """The program after the rule; what it computes is the same."""
    before, after = program_of(build, specs), program_of(build, specs)
    report = apply(FuseAttention(), after)
    after.validate()
    assert report.applied == 1, str(report)
    assert op_types(after).count(SDPA) == 1
    assert_same(before, after)
    return after, report


def reason(specs: Specs, build: Callable[..., Any] = attend) -> list[tuple[str, str]]:
    """Where and why the rule stays away."""
    program = program_of(build, specs)
    before = text(program)
    report = apply(FuseAttention(), program)
    assert not report
    assert text(program) == before
    return [(miss.place, miss.reason) for miss in report.misses if miss.declined]


# --- keys and values that several heads share by broadcasting: the heads become rows


def shared(*mask: Any, lead: tuple[int, ...] = (1, HEADS, GROUPS), keys: tuple[int, ...] = (1, HEADS, 1)) -> Specs:
    made: Specs = {"q": (*lead, L, E), "k": (*keys, S, E), "v": (*keys, S, D)}
    return {**made, "mask": mask} if mask else made


# the mask's shape -> the shape that the op is given, and what the mask goes through
MASKS: dict[tuple[int, ...], tuple[tuple[int, ...], list[str]]] = {
    (S,): ((S,), []),
    (L, S): ((GROUPS * L, S), ["concat"]),
    (1, S): ((1, S), []),
    (1, 1, 1, 1, S): ((1, 1, 1, S), ["squeeze"]),
    (1, 1, 1, L, S): ((1, 1, GROUPS * L, S), ["squeeze", "concat"]),
    (1, HEADS, 1, L, S): ((1, HEADS, GROUPS * L, S), ["squeeze", "concat"]),
    (1, HEADS, GROUPS, L, S): ((1, HEADS, GROUPS * L, S), ["reshape"]),
    (1, HEADS, GROUPS, 1, S): ((1, HEADS, GROUPS * L, S), ["concat", "reshape"]),
    (GROUPS, L, S): ((1, 1, GROUPS * L, S), ["reshape"]),
    (1, 1, GROUPS, 1, S): ((1, 1, GROUPS * L, S), ["concat", "reshape"]),
}


@pytest.mark.parametrize("mask", [mask for mask in MASKS if len(mask) > 1])
def test_masks_of_heads_that_share_keys(mask: tuple[int, ...]) -> None:
    after, report = fused(shared(*mask))
    (op,) = (op for op in after.functions["main"].operations if op.op_type == SDPA)
    shape, moves = MASKS[mask]
    assert tuple(op.attn_mask.shape) == shape
    kinds = op_types(after)
    for kind in ("squeeze", "concat", "expand_dims"):
        assert kinds.count(kind) == moves.count(kind)
    repeated = "concat" in moves
    assert bool(report.notes) == repeated
    if repeated:
        count = L if mask[-2] == 1 else GROUPS
        size = 4 * int(np.prod(mask)) * count
        (note,) = report.notes
        assert note.startswith("the mask ")
        said = f" is repeated {count} times, once for all layers, for query heads that share keys: {size} bytes"
        assert note.endswith(said)


def test_heads_that_share_keys_without_a_mask() -> None:
    after, report = fused(shared())
    (op,) = (op for op in after.functions["main"].operations if op.op_type == SDPA)
    assert tuple(op.query.shape) == (1, HEADS, GROUPS * L, E)
    assert tuple(op.key.shape) == (1, HEADS, S, E)
    assert tuple(op.value.shape) == (1, HEADS, S, D)
    assert report.notes == []


@pytest.mark.parametrize("mask", [(), (L, S), (1, L, S), (1, 1, L, S), (1, 1, 1, L, S), (1, HEADS, GROUPS, L, S)])
def test_one_head_of_keys_for_all(mask: tuple[int, ...]) -> None:
    """Two axes of heads share the keys."""
    after, _ = fused(shared(*mask, keys=(1, 1, 1)))
    (op,) = (op for op in after.functions["main"].operations if op.op_type == SDPA)
    assert tuple(op.query.shape) == (1, HEADS * GROUPS * L, E)


def test_one_head_of_keys_for_all_in_rank_3() -> None:
    """There is no batch axis beside the heads: the op gets one."""
    for mask in ((), (L, S), (1, L, S), (GROUPS, L, S)):
        after, _ = fused(shared(*mask, lead=(GROUPS,), keys=(1,)))
        (op,) = (op for op in after.functions["main"].operations if op.op_type == SDPA)
        assert tuple(op.query.shape) == (1, GROUPS * L, E)


@pytest.mark.parametrize("mask", [(), (L, S), (1, 1, L, S), (HEADS, GROUPS, L, S), (HEADS, GROUPS, 1, S)])
def test_one_head_of_keys_for_all_axes(mask: tuple[int, ...]) -> None:
    """The first axis too is one of heads, not of sequences."""
    after, _ = fused(shared(*mask, lead=(HEADS, GROUPS), keys=(1, 1)))
    (op,) = (op for op in after.functions["main"].operations if op.op_type == SDPA)
    assert tuple(op.query.shape) == (1, HEADS * GROUPS * L, E)


def test_an_unknown_number_of_heads_that_share_keys() -> None:
    heads = get_new_symbol()
    specs: Specs = {"q": (1, heads, L, E), "k": (1, 1, S, E), "v": (1, 1, S, D)}
    assert reason(specs) == [("out", "an unknown number of heads share keys")]


def test_a_mask_for_some_of_the_heads_that_share_keys() -> None:
    said = [("mask", "a mask is broadcast over some of the heads that share keys")]
    assert reason(shared(1, HEADS, 1, L, S, keys=(1, 1, 1))) == said
    assert reason(shared(1, 1, GROUPS, L, S, keys=(1, 1, 1))) == said


def test_queries_of_unknown_number_that_share_keys() -> None:
    rows = get_new_symbol()
    specs: Specs = {
        "q": (1, HEADS, GROUPS, rows, E),
        "k": (1, HEADS, 1, S, E),
        "v": (1, HEADS, 1, S, D),
        "mask": (1, 1, GROUPS, 1, S),
    }
    assert ("mask", "a mask is repeated for a number of queries that is not known") in reason(specs)


# --- reshapes that regroup the batch between the products


def regrouped(
    *,
    before: tuple[int, ...] = (HEADS * GROUPS,),
    between: tuple[int, ...] = (HEADS, GROUPS),
    mask: str = "after",
    dead: bool = False,
) -> Callable[..., Any]:
    """Products of one batch, a softmax and a mask of another, as exporters write with ``baddbmm``."""

    def build(q: Any, k: Any, v: Any, given: Any = None) -> Any:
        product = mb.matmul(x=q, y=k, transpose_y=True, name="product")
        if mask == "before":
            product = mb.add(x=product, y=given, name="masked")
        if mask == "select before":
            product = mb.select(cond=mb.greater(x=given, y=np.float32(0)), a=product, b=np.float32(-1e9), name="masked")
        scores = mb.reshape(x=mb.mul(x=product, y=np.float32(0.3)), shape=[*between, L, S], name="regrouped")
        if mask == "after":
            scores = mb.add(x=scores, y=given)
        weights = mb.softmax(x=scores, axis=-1, name="weights")
        return mb.matmul(x=mb.reshape(x=weights, shape=[*before, L, S]), y=v, name="out")

    return build


def batches(before: tuple[int, ...], *mask: int) -> Specs:
    made: Specs = {"q": (*before, L, E), "k": (*before, S, E), "v": (*before, S, D)}
    return {**made, "mask": mask} if mask else made


@pytest.mark.parametrize("mask", [(), (L, S), (1, 1, L, S), (HEADS, GROUPS, L, S), (HEADS, 1, 1, S), (GROUPS, 1, S)])
def test_a_batch_that_is_regrouped_for_the_softmax(mask: tuple[int, ...]) -> None:
    before = (HEADS * GROUPS,)
    build = regrouped(mask="after" if mask else "none")
    after, _ = fused(batches(before, *mask), build)
    (op,) = (op for op in after.functions["main"].operations if op.op_type == SDPA)
    assert tuple(op.query.shape) == (HEADS, GROUPS, L, E)
    assert tuple(after.functions["main"].outputs[0].shape) == (HEADS * GROUPS, L, D)


def test_a_batch_of_two_axes_that_becomes_one() -> None:
    before, between = (HEADS, GROUPS), (HEADS * GROUPS,)
    after, _ = fused(batches(before, HEADS * GROUPS, 1, S), regrouped(before=before, between=between))
    (op,) = (op for op in after.functions["main"].operations if op.op_type == SDPA)
    assert tuple(op.query.shape) == (HEADS * GROUPS, L, E)
    assert tuple(after.functions["main"].outputs[0].shape) == (HEADS, GROUPS, L, D)


@pytest.mark.parametrize("mask", ["before", "select before"])
def test_a_mask_before_its_batch_is_regrouped(mask: str) -> None:
    specs = batches((HEADS * GROUPS,), HEADS * GROUPS, L, S)
    assert reason(specs, regrouped(mask=mask)) == [("regrouped", "a mask comes before its batch is regrouped")]


def test_reshapes_that_mix_rows_and_columns() -> None:
    def build(q: Any, k: Any, v: Any) -> Any:
        scores = mb.reshape(x=mb.matmul(x=q, y=k, transpose_y=True), shape=[HEADS, S, L], name="mixed")
        weights = mb.reshape(x=mb.softmax(x=scores, axis=-1), shape=[HEADS, L, S])
        return mb.matmul(x=weights, y=v, name="out")

    assert reason(batches((HEADS,)), build) == [("mixed", "a reshape mixes rows and columns of the scores")]

    def flattened(q: Any, k: Any, v: Any) -> Any:
        weights = mb.softmax(x=mb.matmul(x=q, y=k, transpose_y=True), axis=-1)
        return mb.matmul(x=mb.reshape(x=weights, shape=[HEADS * L, S], name="flat"), y=v, name="out")

    specs: Specs = {"q": (HEADS, L, E), "k": (HEADS, S, E), "v": (S, D)}
    assert reason(specs, flattened) == [("flat", "a reshape mixes rows and columns of the scores")]


def test_a_batch_of_unknown_size_is_not_regrouped() -> None:
    batch = get_new_symbol()

    def build(q: Any, k: Any, v: Any) -> Any:
        scores = mb.reshape(x=mb.matmul(x=q, y=k, transpose_y=True), shape=[-1, GROUPS, L, S])
        weights = mb.reshape(x=mb.softmax(x=scores, axis=-1), shape=[-1, L, S])
        return mb.matmul(x=weights, y=v, name="out")

    specs: Specs = {"q": (batch, L, E), "k": (batch, S, E), "v": (batch, S, D)}
    assert [why for _, why in reason(specs, build)] == ["a batch of unknown size is regrouped"]


def test_the_batch_of_an_einsum_is_not_regrouped() -> None:
    def build(q: Any, k: Any, v: Any) -> Any:
        """k (S, H, E), q (E, H, L), v (D, H, S)."""
        scores = mb.reshape(x=mb.einsum(values=(k, q), equation="khc,chq->khq"), shape=[1, S, GROUPS, L], name="wide")
        weights = mb.reshape(x=mb.softmax(x=scores, axis=1), shape=[S, GROUPS, L])
        return mb.einsum(values=(v, weights), equation="chk,khq->chq", name="out")

    specs: Specs = {"q": (E, GROUPS, L), "k": (S, GROUPS, E), "v": (D, GROUPS, S)}
    assert reason(specs, build) == [("wide", "the batch of an einsum is regrouped")]


def test_reshapes_that_keep_the_columns_alone() -> None:
    """Each row by itself: the softmax is the same, and yet the rows of the product are no rows of an attention."""

    def build(q: Any, k: Any, v: Any) -> Any:
        product = mb.matmul(x=q, y=k, transpose_y=True)
        weights = mb.softmax(x=mb.reshape(x=product, shape=[1, HEADS * L, S], name="long"), axis=-1)
        return mb.matmul(x=mb.reshape(x=weights, shape=[HEADS, L, S]), y=v, name="out")

    assert reason(batches((HEADS,)), build) == [("long", "a reshape mixes rows and columns of the scores")]


@pytest.mark.parametrize("steps", ["mask", "mask, then a scale", "select"])
def test_weights_that_are_regrouped_for_the_values(steps: str) -> None:
    """The mask stands before the only reshape, and its batch is the softmax's."""

    def build(q: Any, k: Any, v: Any, given: Any) -> Any:
        scores = mb.matmul(x=q, y=k, transpose_y=True)
        if steps == "select":
            scores = mb.select(cond=mb.greater(x=given, y=np.float32(-9)), a=scores, b=np.float32(-1e30))
        else:
            scores = mb.add(x=scores, y=given)
        scores = mb.mul(x=scores, y=np.float32(0.3)) if "scale" in steps else scores
        weights = mb.reshape(x=mb.softmax(x=scores, axis=-1), shape=[HEADS * GROUPS, L, S])
        return mb.matmul(x=weights, y=v, name="out")

    batch = (HEADS, GROUPS)
    specs: Specs = {"q": (*batch, L, E), "k": (*batch, S, E), "v": (HEADS * GROUPS, S, D), "mask": (HEADS, 1, L, S)}
    fused(specs, build)


def test_a_batch_that_is_dropped() -> None:
    def build(q: Any, k: Any, v: Any) -> Any:
        weights = mb.softmax(x=mb.matmul(x=q, y=k, transpose_y=True), axis=-1)
        return mb.matmul(x=mb.reshape(x=weights, shape=[L, S]), y=v, name="out")

    fused({"q": (1, L, E), "k": (1, S, E), "v": (S, D)}, build)


def test_rows_of_unknown_number_are_regrouped() -> None:
    rows = get_new_symbol()

    def build(q: Any, k: Any, v: Any) -> Any:
        scores = mb.reshape(x=mb.matmul(x=q, y=k, transpose_y=True), shape=[HEADS, GROUPS, -1, S])
        weights = mb.reshape(x=mb.softmax(x=scores, axis=-1), shape=[HEADS * GROUPS, -1, S])
        return mb.matmul(x=weights, y=v, name="out")

    heads = HEADS * GROUPS
    after = program_of(build, {"q": (heads, rows, E), "k": (heads, S, E), "v": (heads, S, D)})
    report = apply(FuseAttention(), after)
    assert report.applied == 1, str(report)
    before = program_of(build, {"q": (heads, L, E), "k": (heads, S, E), "v": (heads, S, D)})
    inputs = random_inputs(before)
    first, second = (evaluate(each, inputs, precision="float64")["out"] for each in (before, after))
    np.testing.assert_allclose(second, first, rtol=1e-6, atol=1e-6)


def lengths_kept(*which: str) -> Program:
    """Scores of unknown rows and columns lose a batch of one, (1, H, L, S) -> (H, L, S), or what ``which`` says."""
    rows, columns, values = (get_new_symbol() for _ in range(3))

    def build(q: Any, k: Any, v: Any) -> Any:
        sizes = {name: mb.gather(x=mb.shape(x=each), indices=[2], axis=0) for name, each in (("L", q), ("S", k))}
        dims = [sizes.get(each, np.array([-1], np.int32)) for each in which]
        shape = mb.concat(values=[np.array([HEADS], np.int32), *dims], axis=0)
        scores = mb.reshape(x=mb.matmul(x=q, y=k, transpose_y=True), shape=shape, name="dropped")
        return mb.matmul(x=mb.softmax(x=scores, axis=-1), y=v, name="out")

    return program_of(build, {"q": (1, HEADS, rows, E), "k": (1, HEADS, columns, E), "v": (HEADS, values, D)})


def test_rows_and_columns_of_unknown_number() -> None:
    """A reshape may exchange their numbers, which is no transpose; values of L rows go with that."""
    for which in ("SL", "S?", "?L"):
        report = apply(FuseAttention(), lengths_kept(*which))
        assert not report
        assert [(miss.place, miss.reason) for miss in report.misses if miss.declined] == [
            ("dropped", "a reshape mixes rows and columns of the scores")
        ]
    for which in ("LS", "L?", "?S"):
        assert apply(FuseAttention(), lengths_kept(*which)).applied == 1


def test_a_batch_that_is_unknown_on_one_side_of_a_reshape() -> None:
    batch = get_new_symbol()
    heads = HEADS * GROUPS

    def build(q: Any, k: Any, v: Any) -> Any:
        scores = mb.reshape(x=mb.matmul(x=q, y=k, transpose_y=True), shape=[HEADS, GROUPS, L, S])
        weights = mb.reshape(x=mb.softmax(x=scores, axis=-1), shape=[heads, L, S])
        return mb.matmul(x=weights, y=v, name="out")

    specs: Specs = {"q": (batch, L, E), "k": (batch, S, E), "v": (heads, S, D)}
    assert [why for _, why in reason(specs, build)] == ["a batch of unknown size is regrouped"]

    def values(q: Any, k: Any, v: Any) -> Any:
        scores = mb.matmul(x=q, y=k, transpose_y=True)
        weights = mb.reshape(x=mb.softmax(x=scores, axis=-1), shape=[-1, L, S])
        return mb.matmul(x=weights, y=v, name="out")

    specs = {"q": (HEADS, batch, L, E), "k": (HEADS, batch, S, E), "v": (get_new_symbol(), S, D)}
    assert [why for _, why in reason(specs, values)] == ["a batch of unknown size is regrouped"]


# --- softmax as exponentials


def exponentials(first: list[int], second: list[int]) -> Callable[..., Any]:
    def build(q: Any, k: Any, v: Any) -> Any:
        scores = mb.matmul(x=q, y=k, transpose_y=True)
        powers = mb.exp(x=mb.sub(x=scores, y=mb.reduce_max(x=scores, axes=first, keep_dims=True)))
        weights = mb.real_div(x=powers, y=mb.reduce_sum(x=powers, axes=second, keep_dims=True))
        return mb.matmul(x=weights, y=v, name="out")

    return build


@pytest.mark.parametrize(("first", "second"), [([-1], [-1]), ([3], [-1]), ([-1], [3])])
def test_a_softmax_that_is_written_out(first: list[int], second: list[int]) -> None:
    fused(batches((1, HEADS)), exponentials(first, second))


@pytest.mark.parametrize(("first", "second"), [([-2, -1], [-1]), ([-2], [-1]), ([-1], [-2]), ([2, 3], [2, 3])])
def test_a_softmax_over_several_axes(first: list[int], second: list[int]) -> None:
    found = reason(batches((1, HEADS)), exponentials(first, second))
    assert found == [("out", "the softmax runs over several axes")]


# --- what q, k, v and masks must have in common


def test_weights_in_another_type() -> None:
    def build(q: Any, k: Any, v: Any) -> Any:
        q, k = (mb.cast(x=each, dtype="fp16") for each in (q, k))
        weights = mb.softmax(x=mb.matmul(x=q, y=k, transpose_y=True), axis=-1)
        return mb.matmul(x=mb.cast(x=weights, dtype="fp32"), y=v, name="out")

    assert reason(batches((1, HEADS)), build) == [("out", "q, k and v are ['fp16', 'fp32']")]


def test_a_mask_that_makes_the_scores_larger() -> None:
    found = reason(batches((1, HEADS), 2, 1, L, S))
    assert found == [("mask", f"a mask of shape (2, 1, {L}, {S}) may make the scores larger")]


@pytest.mark.parametrize(
    ("mask", "keys", "fits"),
    [("symbol", S, True), (S, "symbol", True), (1, "symbol", False), (1, 1, True), (1, S, False)],
)
def test_columns_of_masks_that_may_be_keys(mask: Any, keys: Any, fits: bool) -> None:
    mask, keys = (get_new_symbol() if each == "symbol" else each for each in (mask, keys))
    specs: Specs = {"q": (1, HEADS, L, E), "k": (1, HEADS, keys, E), "v": (1, HEADS, keys, D), "mask": (1, 1, L, mask)}
    program = program_of(attend, specs)
    report = apply(FuseAttention(), program)
    assert bool(report) == fits, str(report)
    if not fits:
        assert f"the mask has (1,) columns for {keys} keys" in [miss.reason for miss in report.misses]


def test_two_masks_of_one_column() -> None:
    def build(q: Any, k: Any, v: Any, given: Any) -> Any:
        scores = mb.add(x=mb.matmul(x=q, y=k, transpose_y=True), y=given)
        scores = mb.add(x=scores, y=mb.relu(x=given))
        return mb.matmul(x=mb.softmax(x=scores, axis=-1), y=v, name="out")

    found = reason(batches((1, HEADS), 1, 1, L, 1), build)
    assert [why for _, why in found] == [f"the mask has (1,) columns for {S} keys"]


def test_weights_of_which_some_are_not_used() -> None:
    def build(q: Any, k: Any, v: Any) -> Any:
        weights = mb.softmax(x=mb.matmul(x=q, y=k, transpose_y=True), axis=-1)
        cut = mb.slice_by_index(x=weights, begin=[0, 0, 0, 0], end=[1, HEADS, L, S - 1], name="cut")
        return mb.matmul(x=cut, y=v, name="out")

    specs: Specs = {"q": (1, HEADS, L, E), "k": (1, HEADS, S, E), "v": (1, HEADS, S - 1, D)}
    assert reason(specs, build) == [("cut", "some of the weights are not used")]


def test_keys_and_values_of_different_batches() -> None:
    specs: Specs = {"q": (2, HEADS, L, E), "k": (2, HEADS, S, E), "v": (2, 1, S, D)}
    assert reason(specs) == [("v", f"v: *B is (2, 1), but (2, {HEADS}) before")]
    specs = {"q": (2, 1, L, E), "k": (2, HEADS, S, E), "v": (2, HEADS, S, D)}
    assert reason(specs) == [("k", f"k: *B is (2, {HEADS}), but (2, 1) before")]
    specs = {"q": (2, HEADS, L, E), "k": (1, HEADS, S, E), "v": (1, HEADS, S, D)}
    assert [why for _, why in reason(specs)] == [f"k: *B is (1, {HEADS}), but (2, {HEADS}) before"]


# --- rows whose weights are replaced by zeros


def test_all_rows_that_give_nothing() -> None:
    """One condition for all: a number, not an array."""

    def build(q: Any, k: Any, v: Any, given: Any) -> Any:
        none = mb.squeeze(x=mb.less(x=given, y=np.float32(0)), axes=[0])
        weights = mb.softmax(x=mb.matmul(x=q, y=k, transpose_y=True), axis=-1)
        return mb.matmul(x=mb.select(cond=none, a=np.float32(0), b=weights), y=v, name="out")

    fused(batches((1, HEADS), 1), build)


def test_rows_that_give_nothing_in_another_layout() -> None:
    def build(q: Any, k: Any, v: Any, given: Any) -> Any:
        weights = mb.softmax(x=mb.matmul(x=k, y=q, transpose_y=True), axis=-2)
        seen = mb.select(cond=mb.less(x=given, y=np.float32(0)), a=np.float32(0), b=weights, name="seen")
        return mb.matmul(x=seen, y=v, transpose_x=True, name="out")

    found = reason(batches((1, HEADS), 1, 1, 1, L), build)
    assert [why for _, why in found] == ["weights are replaced in another layout"]


def without_dead_rows(*, zero: float = 0.0, other_way: bool = False) -> Callable[..., Any]:
    def build(q: Any, k: Any, v: Any, given: Any) -> Any:
        seen = mb.greater(x=given, y=np.float32(0), name="seen")
        weights = mb.softmax(x=mb.matmul(x=q, y=k, transpose_y=True), axis=-1)
        sides = {"a": weights, "b": np.float32(zero)} if other_way else {"a": np.float32(zero), "b": weights}
        return mb.matmul(x=mb.select(cond=seen, **sides), y=v, name="out")

    return build


@pytest.mark.parametrize("other_way", [False, True])
@pytest.mark.parametrize("rows", [(1, 1, L, 1), (1, HEADS, L, 1), (L, 1), (1,), (1, 1, 1, 1)])
def test_rows_that_give_nothing(rows: tuple[int, ...], other_way: bool) -> None:
    after, _ = fused(batches((1, HEADS), *rows), without_dead_rows(other_way=other_way))
    assert "select" in op_types(after)


def test_rows_that_give_something_else() -> None:
    specs = batches((1, HEADS), 1, 1, L, 1)
    assert [why for _, why in reason(specs, without_dead_rows(zero=0.5))] == ["weights are replaced by 0.5, not by 0"]
    for columns in ((1, 1, L, S), (S,)):
        found = reason(batches((1, HEADS), *columns), without_dead_rows())
        assert found == [("seen", "some of a row's weights are replaced")]


# --- scales


@pytest.mark.parametrize("kind", ["mul", "real_div"])
@pytest.mark.parametrize("on", ["query", "key", "both"])
def test_scales_on_the_operands(on: str, kind: str) -> None:
    def build(q: Any, k: Any, v: Any) -> Any:
        q = getattr(mb, kind)(x=q, y=np.float32(0.7)) if on != "key" else q
        k = getattr(mb, kind)(x=k, y=np.float32(0.6)) if on != "query" else k
        return mb.matmul(x=mb.softmax(x=mb.matmul(x=q, y=k, transpose_y=True), axis=-1), y=v, name="out")

    after, _ = fused(batches((1, HEADS)), build)
    assert "real_div" not in op_types(after)
    assert op_types(after).count("mul") == 1


def test_keys_times_zero() -> None:
    def build(q: Any, k: Any, v: Any) -> Any:
        k = mb.mul(x=k, y=np.float32(0))
        return mb.matmul(x=mb.softmax(x=mb.matmul(x=q, y=k, transpose_y=True), axis=-1), y=v, name="out")

    after, _ = fused(batches((1, HEADS)), build)
    assert op_types(after) == ["mul", SDPA]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("on", ["query", "key"])
def test_an_operand_that_is_divided_by_zero_stays_so(on: str) -> None:
    def build(q: Any, k: Any, v: Any) -> Any:
        q = mb.real_div(x=q, y=np.float32(0)) if on == "query" else q
        k = mb.real_div(x=k, y=np.float32(0)) if on == "key" else k
        return mb.matmul(x=mb.softmax(x=mb.matmul(x=q, y=k, transpose_y=True), axis=-1), y=v, name="out")

    after, _ = fused(batches((1, HEADS)), build)
    assert op_types(after).count("real_div") == 1


def test_something_divided_by_an_operand_is_no_scale() -> None:
    """``0.5 / q`` is another operand, not q with a scale."""

    def build(q: Any, k: Any, v: Any) -> Any:
        turned = mb.real_div(x=np.float32(0.5), y=q)
        return mb.matmul(x=mb.softmax(x=mb.matmul(x=turned, y=k, transpose_y=True), axis=-1), y=v, name="out")

    after, _ = fused(batches((1, HEADS)), build)
    assert op_types(after).count("real_div") == 1


# --- a scale that q is moved from


NUMBER: Any = np.float32(E**-0.5)


def first_row(q: Any) -> Any:
    return mb.reduce_max(x=q, axes=[1], keep_dims=True)


IN_FRONT: dict[str, tuple[Callable[[Any], Any], list[str]]] = {
    "mul": (lambda q: mb.mul(x=q, y=NUMBER), ["transpose"]),
    "mul from the left": (lambda q: mb.mul(x=NUMBER, y=q), ["transpose"]),
    "real_div": (lambda q: mb.real_div(x=q, y=1 / NUMBER), ["transpose"]),
    "something divided by it": (lambda q: mb.real_div(x=1 / NUMBER, y=q), ["real_div", "transpose", "mul"]),
    "a sum": (lambda q: mb.add(x=q, y=1 / NUMBER), ["add", "transpose", "mul"]),
    "times infinity": (lambda q: mb.mul(x=q, y=np.float32(np.inf)), ["mul", "transpose", "mul"]),
    "times zero": (lambda q: mb.mul(x=q, y=np.float32(0)), ["mul", "transpose", "mul"]),
    "divided by zero": (lambda q: mb.real_div(x=q, y=np.float32(0)), ["real_div", "transpose", "mul"]),
    "another number": (lambda q: mb.mul(x=q, y=np.float32(0.3)), ["mul", "transpose", "mul"]),
    "times an array": (lambda q: mb.mul(x=q, y=np.full((1, 1, 1, E), NUMBER)), ["mul", "transpose", "mul"]),
    "times an array that enlarges": (
        lambda q: mb.mul(x=first_row(q), y=np.full((1, L, 1, 1), NUMBER)),
        ["mul", "transpose", "mul"],
    ),
    "times a value": (lambda q: mb.mul(x=q, y=mb.relu(x=q)), ["mul", "transpose", "mul"]),
    "a number that adds an axis": (
        lambda q: mb.mul(x=mb.squeeze(x=q, axes=[0]), y=np.full((1, 1, 1, 1), NUMBER)),
        ["mul", "transpose", "mul"],
    ),
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("case", IN_FRONT)
def test_a_scale_in_front_of_a_move(case: str) -> None:
    """Where it is 1/sqrt(E) it goes; what is no such scale stays, beside the one that the op needs."""
    change, kinds = IN_FRONT[case]

    def build(q: Any, k: Any, v: Any) -> Any:
        q = mb.transpose(x=change(q), perm=[0, 2, 1, 3])
        return mb.matmul(x=mb.softmax(x=mb.matmul(x=q, y=k, transpose_y=True), axis=-1), y=v, name="out")

    specs: Specs = {"q": (1, L, HEADS, E), "k": (1, HEADS, S, E), "v": (1, HEADS, S, D)}
    after, _ = fused(specs, build)
    assert [kind for kind in op_types(after) if kind in ("add", "mul", "real_div", "transpose")] == kinds


@pytest.mark.parametrize("seen", ["scaled", "moved"])
def test_a_scale_that_something_else_needs_stays(seen: str) -> None:
    def build(q: Any, k: Any, v: Any) -> Any:
        scaled = mb.mul(x=q, y=NUMBER)
        moved = mb.transpose(x=scaled, perm=[0, 2, 1, 3])
        out = mb.matmul(x=mb.softmax(x=mb.matmul(x=moved, y=k, transpose_y=True), axis=-1), y=v, name="out")
        return out, mb.relu(x=scaled if seen == "scaled" else moved, name="also")

    specs: Specs = {"q": (1, L, HEADS, E), "k": (1, HEADS, S, E), "v": (1, HEADS, S, D)}
    after, _ = fused(specs, build)
    assert op_types(after).count("mul") == 2

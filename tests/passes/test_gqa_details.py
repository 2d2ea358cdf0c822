"""What counts as keys that heads share, and what pack-gqa writes for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from milopt.mil import Program, get_new_symbol, mb, target
from milopt.package import load
from milopt.passes import gqa_shared
from milopt.passes.gqa import PackGqa, PackHeads, PackProduct
from milopt.passes.gqa_shared import shared_heads

from .programs import Build, One, after, fp32, ints, lines, program_of, reasons

S, D = 5, 8


def apart(x: Any) -> Any:
    return mb.expand_dims(x=x, axes=[2], name="apart")


def found(build: Build, *shape: Any, **more: Any) -> tuple[str, int] | None:
    """What the value that ``build`` makes of x repeats, and how often."""
    program = program_of(build, x=fp32(*shape), **more)
    shared = shared_heads(program.functions["main"].outputs[0])
    return None if shared is None else (shared.source.name, shared.groups)


def tiled(reps: list[int], shape: list[int]) -> Build:
    return lambda x: mb.reshape(x=mb.tile(x=apart(x), reps=reps), shape=shape)


def joined(axis: int, shape: list[int], count: int = 3, **more: Any) -> Build:
    return lambda x: mb.reshape(x=mb.concat(values=[apart(x)] * count, axis=axis, **more), shape=shape)


def of_five(reps: list[int], shape: list[int]) -> Build:
    return lambda x: mb.reshape(x=mb.tile(x=x, reps=reps), shape=shape)


def other_copies(x: Any) -> Any:
    return mb.reshape(x=mb.concat(values=[apart(x), mb.relu(x=apart(x)), apart(x)], axis=2), shape=[1, 6, S, D])


def interleaved(x: Any) -> Any:
    """(B, Hkv, S, D) with the heads last, repeated there, and moved back."""
    last = mb.expand_dims(x=mb.transpose(x=x, perm=[0, 2, 3, 1]), axes=[4])
    flat = mb.reshape(x=mb.tile(x=last, reps=[1, 1, 1, 1, 3]), shape=[1, S, D, 6])
    return mb.transpose(x=flat, perm=[0, -1, 1, 2])


def blocks(x: Any) -> Any:
    """All heads, one after another, three times."""
    last = mb.expand_dims(x=mb.transpose(x=x, perm=[0, 2, 3, 1]), axes=[3])
    flat = mb.reshape(x=mb.tile(x=last, reps=[1, 1, 1, 3, 1]), shape=[1, S, D, 6])
    return mb.transpose(x=flat, perm=[0, 3, 1, 2])


def by_concat(interleave: bool) -> Build:
    def build(x: Any) -> Any:
        return mb.squeeze(
            x=mb.concat(values=[mb.expand_dims(x=x, axes=[0])] * 3, axis=2, interleave=interleave), axes=[0]
        )

    return build


def stacked(axis: int) -> Build:
    def build(x: Any) -> Any:
        wide = mb.concat(values=[mb.expand_dims(x=x, axes=[3])] * 3, axis=axis)
        return mb.reshape(x=mb.squeeze(x=mb.expand_dims(x=wide, axes=[0]), axes=[0]), shape=[1, 6, S, D])

    return build


def gathered(indices: Any, axis: int = 1) -> One:
    return lambda x: mb.gather(x=x, indices=np.array(indices, np.int32), axis=axis)


SHARED: dict[str, tuple[Build, tuple[int, ...], tuple[str, int] | None]] = {
    "nothing": (lambda x: mb.relu(x=x), (1, 2, S, D), None),
    "a tile": (tiled([1, 1, 3, 1, 1], [1, 6, S, D]), (1, 2, S, D), ("apart", 3)),
    "a tile of one time": (tiled([1, 1, 1, 1, 1], [1, 2, S, D]), (1, 2, S, D), None),
    "a tile of a batch": (tiled([1, 1, 3, 1, 1], [4, 6, S, D]), (4, 2, S, D), ("apart", 3)),
    "a tile of heads": (tiled([1, 3, 1, 1, 1], [1, 6, S, D]), (1, 2, S, D), None),
    "a tile of rows": (tiled([1, 1, 1, 3, 1], [1, 2, 3 * S, D]), (1, 2, S, D), None),
    "a tile of rows and heads": (tiled([1, 1, 3, 2, 1], [1, 6, 2 * S, D]), (1, 2, S, D), None),
    "a tile of features and heads": (tiled([1, 1, 3, 1, 2], [1, 6, S, 2 * D]), (1, 2, S, D), None),
    "a tile of the batch and heads": (tiled([2, 1, 3, 1, 1], [2, 6, S, D]), (1, 2, S, D), None),
    "a tile of three heads": (of_five([1, 1, 2, 1, 1], [1, 12, S, D]), (1, 2, 3, S, D), None),
    "a tile of three rows": (of_five([1, 1, 2, 1, 1], [1, 4, 3 * S, D]), (1, 2, 3, S, D), None),
    "other heads": (tiled([1, 1, 3, 1, 1], [1, 3, 2 * S, D]), (1, 2, S, D), None),
    "other features": (tiled([1, 1, 3, 1, 1], [1, 6, D, S]), (1, 2, S, D), None),
    "another batch": (tiled([1, 1, 3, 1, 1], [1, 6, 2 * S, D]), (2, 2, S, D), None),
    "a concat": (joined(2, [1, 6, S, D]), (1, 2, S, D), ("apart", 3)),
    "a concat from the end": (joined(-3, [1, 6, S, D]), (1, 2, S, D), ("apart", 3)),
    "an interleaved concat": (joined(2, [1, 6, S, D], interleave=True), (1, 2, S, D), ("apart", 3)),
    "a concat of heads": (joined(1, [1, 6, S, D]), (1, 2, S, D), None),
    "a concat of others": (other_copies, (1, 2, S, D), None),
    "one head": (lambda x: mb.tile(x=x, reps=[1, 4, 1, 1]), (1, 1, S, D), ("x", 4)),
    "one head of a batch": (lambda x: mb.tile(x=x, reps=[1, 4, 1, 1]), (3, 1, S, D), ("x", 4)),
    "one head once": (lambda x: mb.tile(x=x, reps=[2, 1, 1, 1]), (1, 1, S, D), None),
    "one head in a larger batch": (lambda x: mb.tile(x=x, reps=[2, 4, 1, 1]), (1, 1, S, D), None),
    "one head with more rows": (lambda x: mb.tile(x=x, reps=[1, 4, 2, 1]), (1, 1, S, D), None),
    "one head with more features": (lambda x: mb.tile(x=x, reps=[1, 4, 1, 2]), (1, 1, S, D), None),
    "two heads, all again": (lambda x: mb.tile(x=x, reps=[1, 2, 1, 1]), (1, 2, S, D), None),
    "copies of one head": (lambda x: mb.concat(values=[x] * 4, axis=1), (1, 1, S, D), ("x", 4)),
    "copies of one head, from the end": (lambda x: mb.concat(values=[x] * 4, axis=-3), (1, 1, S, D), ("x", 4)),
    "copies of two heads": (lambda x: mb.concat(values=[x] * 4, axis=1), (1, 2, S, D), None),
    "copies as rows": (lambda x: mb.concat(values=[x] * 4, axis=2), (1, 1, S, D), None),
    "not all copies": (lambda x: mb.concat(values=[x, x, mb.relu(x=x)], axis=1), (1, 1, S, D), None),
    "gathered": (gathered([0, 0, 1, 1]), (1, 2, S, D), ("x", 2)),
    "gathered from the end": (gathered([0, 0, 0, 1, 1, 1], axis=-3), (1, 2, S, D), ("x", 3)),
    "gathered one by one": (gathered([0, 1]), (1, 2, S, D), None),
    "gathered in turn": (gathered([0, 1, 0, 1]), (1, 2, S, D), None),
    "gathered in part": (gathered([0, 0]), (1, 2, S, D), None),
    "gathered rows": (gathered([0, 0, 1, 1, 2, 2, 3, 3], axis=2), (1, 4, 4, D), None),
    "gathered of lower rank": (gathered([[0, 0], [1, 1]]), (1, 2, D), None),
    "gathered from a vector": (gathered([[[[0, 0, 1, 1]]]], axis=0), (7,), None),
    "gathered batch by batch": (
        lambda x: mb.gather(x=x, indices=np.array([[0, 0, 1, 1]] * 4, np.int32), axis=1, batch_dims=1),
        (4, 2, S, D),
        None,
    ),
    "interleaved": (interleaved, (1, 2, S, D), ("x", 3)),
    "blocks": (blocks, (1, 2, S, D), None),
    "copies along a new axis": (by_concat(False), (1, 1, S, D), ("x", 3)),
    "copies along a new axis, in turn": (by_concat(True), (1, 1, S, D), ("x", 3)),
    "copies of two heads along a new axis": (by_concat(False), (1, 2, S, D), None),
    "copies of two heads along a new axis, in turn": (by_concat(True), (1, 2, S, D), ("x", 3)),
    "heads of one row": (by_concat(True), (1, 2, 1, D), ("x", 3)),
    "copies of one row": (
        lambda x: mb.reshape(x=mb.concat(values=[x] * 3, axis=2), shape=[1, 6, 1, D]),
        (1, 2, 1, D),
        ("x", 3),
    ),
    "copies of rows": (stacked(2), (1, 2, S, D), ("x", 3)),
    "copies of each row": (stacked(3), (1, 2, S, D), None),
}


@pytest.mark.parametrize("case", SHARED)
def test_what_is_repeated(case: str) -> None:
    build, shape, expected = SHARED[case]
    assert found(build, *shape) == expected


def test_an_input_repeats_nothing() -> None:
    assert found(lambda x: x, 1, 2, S, D) is None
    assert found(lambda x: mb.reshape(x=x, shape=[1, 2, S, D]), 1, 2, 1, S, D) is None


def test_ranks_other_than_four() -> None:
    assert found(lambda x: mb.tile(x=x, reps=[1, 4, 1]), 1, 1, S) is None
    assert found(lambda x: mb.tile(x=x, reps=[1, 4, 1, 1, 1]), 1, 1, S, D, D) is None


def test_heads_of_unknown_number() -> None:
    heads = get_new_symbol()
    assert found(lambda x: mb.tile(x=x, reps=[1, 2, 1, 1]), 1, heads, S, D) is None
    assert found(gathered([0, 0, 1, 1]), 1, heads, S, D) is None
    assert found(tiled([1, 1, 3, 1, 1], [1, 6, S, D]), 1, heads, S, D) is None
    assert found(tiled([1, 1, 3, 1, 1], [1, -1, S, D]), 1, heads, S, D) is None


def test_rows_and_batches_of_unknown_number() -> None:
    rows = get_new_symbol()
    assert found(tiled([1, 1, 3, 1, 1], [1, 6, -1, D]), 1, 2, rows, D) == ("apart", 3)
    assert found(tiled([1, 1, 3, 1, 1], [-1, 6, S, D]), rows, 2, S, D) == ("apart", 3)
    assert found(gathered([0, 0, 1, 1]), rows, 2, S, D) == ("x", 2)
    assert (
        found(lambda x: mb.transpose(x=mb.transpose(x=x, perm=[0, 1, 3, 2]), perm=[0, 1, 3, 2]), 1, 2, rows, D) is None
    )


def test_one_head_of_any_number_of_rows() -> None:
    """Nothing but the op itself tells: arrays of unknown size are not moved to see where they end."""
    rows = get_new_symbol()

    def tile(*reps: int) -> One:
        return lambda x: mb.tile(x=x, reps=list(reps))

    assert found(tile(1, 4, 1, 1), 1, 1, rows, D) == ("x", 4)
    assert found(tile(1, 2, 1, 1), 1, 2, rows, D) is None
    assert found(tile(2, 4, 1, 1), 1, 1, rows, D) is None
    assert found(tile(1, 4, 2, 1), 1, 1, rows, D) is None
    assert found(tile(1, 4, 1, 2), 1, 1, rows, D) is None
    assert found(tile(1, 4, 1, 1), 3, 1, rows, D) == ("x", 4)
    for axis in (1, -3):
        assert found(lambda x, axis=axis: mb.concat(values=[x] * 4, axis=axis), 1, 1, rows, D) == ("x", 4)
    assert found(lambda x: mb.concat(values=[x] * 4, axis=1), 1, 2, rows, D) is None
    assert found(lambda x: mb.concat(values=[x] * 4, axis=0), 1, 1, rows, D) is None
    assert found(lambda x: mb.concat(values=[x, mb.relu(x=x), x], axis=1), 1, 1, rows, D) is None
    assert found(lambda x: mb.concat(values=[mb.relu(x=x), x, x], axis=1), 1, 1, rows, D) is None
    assert found(gathered([0, 0, 1, 1]), 1, 2, rows, D) == ("x", 2)
    assert found(gathered([0, 0, 0, 0]), 1, 2, rows, D) is None


def test_moves_of_what_has_no_heads() -> None:
    def build(x: Any) -> Any:
        return mb.transpose(x=mb.reshape(x=x, shape=[1, 2, S, D]), perm=[0, 1, 3, 2])

    assert found(build, 2 * S * D) is None
    assert found(build, 2, S * D) is None


def test_computed_repetitions_are_not_known() -> None:
    def five(x: Any, reps: Any) -> Any:
        return mb.reshape(x=mb.tile(x=apart(x), reps=reps), shape=[1, 6, S, D])

    def four(x: Any, reps: Any) -> Any:
        return mb.reshape(x=mb.tile(x=x, reps=reps), shape=[1, 4, S, D])

    def last(x: Any, reps: Any) -> Any:
        return mb.transpose(x=four(x, reps), perm=[0, 1, 2, 3])

    assert found(five, 1, 2, S, D, reps=ints(5)) is None
    assert found(four, 1, 1, S, D, reps=ints(4)) is None
    assert found(last, 1, 1, S, D, reps=ints(4)) is None
    assert found(lambda x, at: mb.gather(x=x, indices=at, axis=1), 1, 2, S, D, at=ints(4)) is None


def test_how_large_arrays_are_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gqa_shared, "_MOST", 6 * S * D)
    assert found(interleaved, 1, 2, S, D) == ("x", 3)
    monkeypatch.setattr(gqa_shared, "_MOST", 6 * S * D - 1)
    assert found(interleaved, 1, 2, S, D) is None


def test_how_many_moves_are_followed() -> None:
    def turned(count: int) -> Build:
        def build(x: Any) -> Any:
            made = interleaved(x)
            for _ in range(count):
                made = mb.reshape(x=made, shape=[1, 6, S, D])
            return made

        return build

    assert found(turned(5), 1, 2, S, D) == ("x", 3)
    assert found(turned(6), 1, 2, S, D) is None


def test_other_ops_are_no_moves() -> None:
    assert found(lambda x: interleaved(mb.relu(x=x, name="bent")), 1, 2, S, D) == ("bent", 3)
    assert found(lambda x: mb.relu(x=interleaved(x)), 1, 2, S, D) is None


# --- what is written


def wide(x: Any, groups: int = 2, heads: int = 4) -> Any:
    return mb.reshape(x=mb.tile(x=mb.expand_dims(x=x, axes=[2]), reps=[1, 1, groups, 1, 1]), shape=[1, heads, S, D])


def attended(
    key: One = wide, value: One | None = None, query: Any = (1, 4, 3, D), shape: Any = (1, 2, S, D)
) -> Program:
    def build(q: Any, k: Any) -> Any:
        return mb.scaled_dot_product_attention(query=q, key=key(k), value=(value or key)(k))

    return program_of(build, q=fp32(*query), k=fp32(*shape))


def test_keys_that_have_an_axis_for_groups_already() -> None:
    def five(x: Any) -> Any:
        return mb.reshape(x=mb.tile(x=x, reps=[1, 1, 2, 1, 1]), shape=[1, 4, S, D])

    assert after(PackHeads(), attended(five, shape=(1, 2, 1, S, D)))[:2] == [
        "%0: fp32[1, 2, 5, 8] = squeeze(x=%k, axes=[2])",
        "%1: fp32[1, 2, 5, 8] = squeeze(x=%k, axes=[2])",
    ]


def test_keys_that_got_their_axis_otherwise() -> None:
    def first(x: Any) -> Any:
        apart = mb.expand_dims(x=x, axes=[0])
        return mb.reshape(x=mb.tile(x=apart, reps=[1, 1, 2, 1, 1]), shape=[1, 4, S, D])

    assert after(PackHeads(), attended(first, shape=(2, 1, S, D)))[:3] == [
        "%0: fp32[1, 2, 1, 5, 8] = expand_dims(x=%k, axes=[0])",
        "%1: fp32[1, 2, 1, 5, 8] = expand_dims(x=%k, axes=[0])",
        "%2: fp32[1, 2, 5, 8] = squeeze(x=%0, axes=[2])",
    ]

    def reshaped(x: Any) -> Any:
        apart = mb.reshape(x=x, shape=[1, 2, 1, S, D])
        return mb.reshape(x=mb.tile(x=apart, reps=[1, 1, 2, 1, 1]), shape=[1, 4, S, D])

    assert after(PackHeads(), attended(reshaped, shape=(1, 2, D, S)))[2:4] == [
        "%2: fp32[1, 2, 5, 8] = squeeze(x=%0, axes=[2])",
        "%3: fp32[1, 2, 5, 8] = squeeze(x=%1, axes=[2])",
    ]


def test_keys_that_need_no_other_axis() -> None:
    assert after(PackHeads(), attended(gathered([0, 0, 1, 1]))) == [
        "%0: fp32[1, 2, 6, 8] = reshape(x=%q, shape=[1, 2, 6, 8])",
        "%1: fp32[1, 2, 6, 8] = scaled_dot_product_attention(query=%0, key=%k, value=%k)",
        "%2: fp32[1, 4, 3, 8] = reshape(x=%1, shape=[1, 4, 3, 8])",
    ]


def test_keys_of_lower_rank() -> None:
    def build(q: Any, k: Any) -> Any:
        apart = mb.expand_dims(x=k, axes=[0, 2])
        keys = mb.reshape(x=mb.tile(x=apart, reps=[1, 1, 2, 1, 1]), shape=[1, 4, 2, D])
        return mb.scaled_dot_product_attention(query=q, key=keys, value=keys)

    found = after(PackHeads(), program_of(build, q=fp32(1, 4, 3, D), k=fp32(2, 2, D)))
    assert found[1:3] == [
        "%1: fp32[1, 2, 2, 8] = squeeze(x=%0, axes=[2])",
        "%2: fp32[1, 2, 2, 8] = squeeze(x=%0, axes=[2])",
    ]


def test_any_number_of_queries() -> None:
    found = after(PackHeads(), attended(query=(1, 4, get_new_symbol(), D)), same=False)
    assert [line.partition(" = ")[0] for line in found] == [
        "%0: fp32[1, 2, 2*s0, 8]",
        "%1: fp32[1, 2, 2*s0, 8]",
        "%2: fp32[1, 4, s0, 8]",
    ]


def test_a_computed_repetition_of_one_head_counts() -> None:
    rows = get_new_symbol()

    def build(q: Any, k: Any) -> Any:
        sizes = mb.shape(x=k)
        length = mb.gather(x=sizes, indices=np.array([2], np.int32), axis=0)
        wanted = mb.concat(values=[np.array([1, 4], np.int32), length, np.array([D], np.int32)], axis=0)
        keys = mb.tile(x=k, reps=mb.real_div(x=wanted, y=sizes))
        return mb.scaled_dot_product_attention(query=q, key=keys, value=keys)

    report = PackGqa().run(load(program_of(build, q=fp32(1, 4, 3, D), k=fp32(1, 1, rows, D))))
    assert report.applied == 2, str(report)


def test_refusals_of_attention() -> None:
    told = "keys are repeated 2 times, values 4"

    def one(x: Any) -> Any:
        return mb.tile(x=mb.slice_by_index(x=x, begin=[0, 0, 0, 0], end=[1, 1, S, D]), reps=[1, 4, 1, 1])

    assert [why for _, why in reasons(PackHeads(), attended(wide, one))] == [told]
    heads = get_new_symbol()
    assert reasons(PackHeads(), attended(query=(1, heads, 3, D))) == [("q", f"q has {heads} heads")]
    nothing = "its keys and values are not repeated"

    def once(x: Any) -> Any:
        return mb.concat(values=(x, mb.relu(x=x)), axis=1)

    assert [why for _, why in reasons(PackHeads(), attended(wide, once))] == [nothing]
    assert [why for _, why in reasons(PackHeads(), attended(once, wide))] == [nothing]


def product(x: tuple[Any, ...], *, transposed: bool = True, repeated: bool = True) -> Program:
    def build(x: Any, y: Any) -> Any:
        return mb.matmul(x=x, y=wide(y) if repeated else mb.relu(x=y), transpose_y=transposed, name="out")

    return program_of(build, opset=target.iOS16, x=fp32(*x), y=fp32(1, 2 if repeated else 4, S, D))


def test_products() -> None:
    assert after(PackProduct(), product((1, 4, 3, D))) == [
        "%0: fp32[1, 2, 6, 8] = reshape(x=%x, shape=[1, 2, 6, 8])",
        "%1: fp32[1, 2, 6, 5] = matmul(x=%0, y=%y, transpose_y=true)",
        "%2: fp32[1, 4, 3, 5] = reshape(x=%1, shape=[1, 4, 3, 5])",
    ]
    assert after(PackProduct(), product((1, 4, 3, S), transposed=False))[1:] == [
        "%1: fp32[1, 2, 6, 8] = matmul(x=%0, y=%y)",
        "%2: fp32[1, 4, 3, 8] = reshape(x=%1, shape=[1, 4, 3, 8])",
    ]
    assert after(PackProduct(), product((1, 4, get_new_symbol(), D)), same=False) == [
        "%0: fp32[1, 2, 2*s0, 8] = reshape(x=%x, shape=[1, 2, -1, 8])",
        "%1: fp32[1, 2, 2*s0, 5] = matmul(x=%0, y=%y, transpose_y=true)",
        "%2: fp32[1, 4, s0, 5] = reshape(x=%1, shape=[1, 4, -1, 5])",
    ]


def test_refusals_of_products() -> None:
    assert reasons(PackProduct(), product((1, 1, 3, D))) == [("x", f"x is of shape (1, 1, 3, {D})")]
    assert reasons(PackProduct(), product((4, 3, D))) == [("x", f"x is of shape (4, 3, {D})")]
    assert reasons(PackProduct(), product((4, 4, D))) == [("x", f"x is of shape (4, 4, {D})")]
    assert [why for _, why in reasons(PackProduct(), product((1, 4, 3, D), repeated=False))] == [
        "its second operand is not repeated"
    ]


def test_what_the_report_leaves_out() -> None:
    """A product of anything is no near miss; attention without repeated keys is one, unless some had them."""

    def build(q: Any, k: Any) -> Any:
        first = mb.scaled_dot_product_attention(query=q, key=wide(k), value=wide(k))
        second = mb.scaled_dot_product_attention(query=first, key=first, value=first)
        return mb.matmul(x=second, y=second, transpose_y=True)

    def bare(q: Any, k: Any) -> Any:
        made = mb.scaled_dot_product_attention(query=q, key=q, value=q)
        return mb.matmul(x=made, y=made, transpose_y=True), mb.relu(x=k)

    shapes = {"q": fp32(1, 4, 3, D), "k": fp32(1, 2, S, D)}
    both = PackGqa().run(load(program_of(build, **shapes)))
    assert (both.applied, [miss.reason for miss in both.misses if miss.declined]) == (1, [])
    shapes = {"q": fp32(1, 4, 3, D), "k": fp32(1, 2, S, D)}
    program = program_of(bare, **shapes)
    before = lines(program)
    none = PackGqa().run(load(program))
    assert (none.applied, [miss.reason for miss in none.misses if miss.declined]) == (
        0,
        ["its keys and values are not repeated"],
    )
    assert lines(program) == before

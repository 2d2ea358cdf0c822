"""Repetitions by computed numbers, of which coremltools knows no size: those of one key head, as Falcon has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import pytest

from benchmarks.cache_counts import copies, sizes
from milopt.interpreter import evaluate
from milopt.mil import Function, Operation, Program, Var, constant, get_new_symbol, is_symbolic, mb, shape_of, target
from milopt.package import load
from milopt.passes.attention import FuseSdpa
from milopt.passes.gqa import PackGqa
from milopt.passes.tiles import fold_tiles
from milopt.text import text

I32: Any = np.int32
HEADS, SIZE = 4, 2
ROWS, COLUMNS = get_new_symbol(), get_new_symbol()

Reps: TypeAlias = Callable[[Any], Any]


def expansion(x: Any) -> Any:
    """The repetitions of torch's ``x.expand(1, HEADS, *x.shape[2:])``."""
    mine = mb.shape(x=x)
    rest = mb.slice_by_index(x=mine, begin=[2], end=[4])
    wanted = mb.concat(values=[I32([1, HEADS]), rest], axis=0)
    chosen = mb.select(cond=mb.equal(x=wanted, y=I32(-1)), a=mine, b=wanted)
    return mb.real_div(x=chosen, y=mine)


def program_of(build: Callable[[Any], Any], shape: tuple[Any, ...]) -> Program:
    program = Program()
    with Function({"x": mb.placeholder(shape=shape)}, opset_version=target.iOS18) as function:
        function.set_outputs([build(dict(function.inputs)["x"])])
    program.add_function("main", function)
    return program


def tile_of(program: Program) -> Operation:
    return next(op for op in program.functions["main"].operations if op.op_type == "tile")


def output_of(program: Program) -> Var:
    return program.functions["main"].outputs[0]


def attended(reps: Reps) -> Program:
    """``sdpa(q, repeat(x), repeat(x))``, merged: with sizes that are symbols all along."""

    def build(x: Any) -> Any:
        query = np.random.default_rng(0).standard_normal((1, HEADS, 3, SIZE)).astype(np.float32)
        wide = mb.tile(x=x, reps=reps(x))
        made = mb.scaled_dot_product_attention(query=query, key=wide, value=wide)
        return mb.reshape(x=mb.transpose(x=made, perm=[0, 2, 1, 3]), shape=[1, 3, -1])

    return program_of(build, (1, 1, ROWS, SIZE))


def test_sizes_become_known() -> None:
    program = attended(expansion)
    assert all(map(is_symbolic, shape_of(tile_of(program).outputs[0])))
    assert fold_tiles(load(program)) == 1
    tile = tile_of(program)
    assert list(constant(tile.inputs["reps"])) == [1, HEADS, 1, 1]
    assert shape_of(tile.outputs[0]) == (1, HEADS, ROWS, SIZE)
    attention = next(iter(dict.fromkeys(tile.outputs[0].child_ops)))
    assert shape_of(attention.outputs[0]) == (1, HEADS, 3, SIZE)
    kinds = [op.op_type for op in program.functions["main"].operations if op.op_type != "const"]
    assert kinds == ["tile", "scaled_dot_product_attention", "transpose", "reshape"]
    assert fold_tiles(load(program)) == 0


def test_sizes_made_of_them_become_known() -> None:
    """A size that is computed from a symbol, here by a reshape that joins two."""
    program = program_of(
        lambda x: mb.reshape(x=mb.relu(x=mb.tile(x=x, reps=expansion(x))), shape=[1, -1, SIZE]), (1, 1, ROWS, SIZE)
    )
    before = shape_of(output_of(program))[1]
    assert len(before.free_symbols) > 1
    fold_tiles(load(program))
    assert shape_of(output_of(program)) == (1, HEADS * ROWS, SIZE)


@pytest.mark.parametrize("each", [FuseSdpa(), PackGqa()])
def test_passes_fold_and_say_so(each: FuseSdpa | PackGqa) -> None:
    program = attended(expansion)
    before = load(program).clone()
    report = each.run(load(program))
    assert report.applied == (1 if isinstance(each, FuseSdpa) else 2)
    assert sizes(load(program)) == 0 < sizes(before)
    assert copies(load(program)) == (1 if isinstance(each, FuseSdpa) else 0)
    x = np.random.default_rng(1).standard_normal((1, 1, 5, SIZE)).astype(np.float32)
    one, other = (evaluate(every, {"x": x}, precision="float64") for every in (before.program, program))
    for name in one:
        np.testing.assert_allclose(other[name], one[name], rtol=1e-12)  # float64, and the same sums
    assert not each.run(load(program))


def test_repetitions_that_depend_on_more_stay() -> None:
    """As many times as there are rows."""

    def by_rows(x: Any) -> Any:
        rows = mb.gather(x=mb.shape(x=x), indices=I32([2]), axis=0)
        return mb.concat(values=[I32([1]), rows, I32([1, 1])], axis=0)

    program = attended(by_rows)
    before = shape_of(tile_of(program).outputs[0])
    assert fold_tiles(load(program)) == 0
    assert constant(tile_of(program).inputs["reps"]) is None
    assert shape_of(tile_of(program).outputs[0]) == before


def test_constant_repetitions_stay() -> None:
    program = program_of(lambda x: mb.relu(x=mb.tile(x=x, reps=[1, HEADS, 1, 1])), (1, 1, ROWS, SIZE))
    assert fold_tiles(load(program)) == 0


@pytest.mark.parametrize("also", [False, True])
def test_a_reshape_tells_the_sizes_itself(also: bool) -> None:
    """What only reshapes use is left to FoldTile."""

    def build(x: Any) -> Any:
        wide = mb.tile(x=x, reps=expansion(x))
        shaped = mb.reshape(x=wide, shape=[HEADS, -1, SIZE])
        return mb.add(x=mb.squeeze(x=mb.relu(x=wide), axes=[0]), y=shaped) if also else shaped

    assert fold_tiles(load(program_of(build, (1, 1, ROWS, SIZE)))) == int(also)


def test_repetitions_that_nothing_uses() -> None:
    program = program_of(lambda x: mb.tile(x=x, reps=expansion(x)), (1, 1, ROWS, SIZE))
    assert fold_tiles(load(program)) == 1
    assert shape_of(output_of(program)) == (1, HEADS, ROWS, SIZE)


def test_repeated_rows_of_unknown_number_keep_their_symbol() -> None:
    """Twice a number of rows is another unknown number."""

    def twice(x: Any) -> Any:
        mine = mb.shape(x=x)
        ones = mb.real_div(x=mine, y=mine)
        front, back = (mb.slice_by_index(x=ones, begin=[at], end=[to]) for at, to in ((0, 2), (3, 4)))
        return mb.concat(values=[front, I32([2]), back], axis=0)

    program = program_of(lambda x: mb.relu(x=mb.tile(x=x, reps=twice(x))), (1, 1, ROWS, SIZE))
    rows = shape_of(tile_of(program).outputs[0])[2]
    assert fold_tiles(load(program)) == 1
    assert shape_of(output_of(program)) == (1, 1, rows, SIZE)


def test_a_mask_that_is_repeated_for_every_row() -> None:
    """As often as another input has rows: no constant, but every size is known."""
    program = Program()
    inputs = {"x": mb.placeholder(shape=(1, ROWS)), "mask": mb.placeholder(shape=(1, 1, 1, COLUMNS))}
    with Function(inputs, opset_version=target.iOS18) as function:
        x, mask = dict(function.inputs)["x"], dict(function.inputs)["mask"]
        rows, columns = (mb.gather(x=mb.shape(x=each), indices=I32([-1]), axis=0) for each in (x, mask))
        wanted = mb.concat(values=[I32([1, 1]), rows, columns], axis=0)
        wide = mb.tile(x=mask, reps=mb.real_div(x=wanted, y=mb.shape(x=mask)))
        function.set_outputs([mb.relu(x=wide)])
    program.add_function("main", function)
    assert fold_tiles(load(program)) == 1
    assert shape_of(output_of(program)) == (1, 1, ROWS, COLUMNS)
    assert constant(tile_of(program).inputs["reps"]) is None
    assert fold_tiles(load(program)) == 0


@pytest.mark.parametrize("width", [1, 3])
def test_repetitions_by_a_number_of_the_input_stay_unknown(width: int) -> None:
    """One size is known, and one is what an input says, or a product of two that are not known."""

    def build(x: Any) -> Any:
        number = mb.cast(x=mb.reduce_max(x=x), dtype="int32")
        mine = mb.shape(x=x)
        times = mb.concat(
            values=[I32([2]), mb.expand_dims(x=number, axes=[0]), mb.gather(x=mine, indices=[2], axis=0)], axis=0
        )
        reps = mb.concat(values=[times, I32([1])], axis=0)
        chosen = mb.select(cond=mb.equal(x=reps, y=I32(-1)), a=mine, b=reps)
        return mb.relu(x=mb.tile(x=x, reps=mb.real_div(x=chosen, y=I32([1, 1, 1, 1]))))

    program = program_of(build, (1, width, ROWS, SIZE))
    before = shape_of(output_of(program))
    assert all(map(is_symbolic, before))
    assert fold_tiles(load(program)) == 1
    after = shape_of(output_of(program))
    assert after == (2, before[1], before[2], SIZE)


def repeated(shape: tuple[Any, ...], reps: Reps) -> Program:
    return program_of(lambda x: mb.relu(x=mb.tile(x=x, reps=reps(x))), shape)


def read_off(x: Any) -> Any:
    """Repetitions that the elements of an input say."""
    return mb.cast(x=mb.reduce_max(x=x, axes=[0, 1, 2], keep_dims=False), dtype="int32")


def always_rows(x: Any) -> Any:
    return mb.concat(values=[mb.gather(x=mb.shape(x=x), indices=I32([2, 2, 2]))], axis=0)


# the second: as often as there are rows, of 3 and of 2, which are numbers that no symbol stands for
@pytest.mark.parametrize(("shape", "reps"), [((1, 3, ROWS, 4), read_off), ((3, 2, ROWS), always_rows)])
def test_repetitions_of_which_nothing_is_known(shape: Any, reps: Reps) -> None:
    program = repeated(shape, reps)
    before = text(program)
    assert fold_tiles(load(program)) == 0
    assert text(program) == before


def test_sizes_that_are_numbers_times_symbols_stay_symbols() -> None:
    """Three times as many as there are rows is no size that is named; one time, or of one, it is."""

    def by_rows(x: Any) -> Any:
        rows = mb.gather(x=mb.shape(x=x), indices=I32([2]), axis=0)
        return mb.real_div(x=mb.concat(values=[rows, rows, I32([1, 5])], axis=0), y=I32([1, 1, 1, 1]))

    program = repeated((3, 1, ROWS, SIZE), by_rows)
    before = shape_of(output_of(program))
    assert fold_tiles(load(program)) == 1
    assert shape_of(output_of(program)) == (before[0], ROWS, ROWS, 5 * SIZE)
    assert constant(tile_of(program).inputs["reps"]) is None


def test_constants_are_named_for_the_op() -> None:
    program = attended(expansion)
    name = tile_of(program).name
    fold_tiles(load(program))
    assert tile_of(program).inputs["reps"].name == f"{name}_reps"


def test_lists_have_no_sizes() -> None:
    """As the classes of a classifier are."""

    def build(x: Any) -> Any:
        mb.make_list(init_length=2, elem_shape=(3,), dtype="fp32")
        return mb.relu(x=mb.tile(x=x, reps=expansion(x)))

    program = program_of(build, (1, 1, ROWS, SIZE))
    assert fold_tiles(load(program)) == 1
    assert shape_of(output_of(program)) == (1, HEADS, ROWS, SIZE)


def test_every_function_is_folded() -> None:
    program = attended(expansion)
    program.add_function("other", attended(expansion).functions["main"])
    assert fold_tiles(load(program)) == 2

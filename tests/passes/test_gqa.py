"""pack-gqa: nothing is repeated but a mask, and that once."""

from __future__ import annotations

from typing import Any

import pytest

from milopt.mil import Program, get_new_symbol, mb, shape_of, target, types
from milopt.package import load
from milopt.passes.gqa import PackGqa, PackHeads, PackProduct
from milopt.passes.repeats import FoldTile
from milopt.pipeline import Pipeline
from milopt.rules import apply
from milopt.testing import check_rule, holds
from milopt.text import text
from tests.testing.attentions import Spelling, attention_programs, flexible_repeats, fused_programs, spelled
from tests.verify.decoders import Decoder

from .support import op_types

REPEATED = "the mask mask is repeated 2 times, once for all layers, for query heads that share keys"
REPEATS = ("tile", "concat", "gather", "interleaved", "one head")


def shared(repeat: str, *, rows: int = 3, mask: str = "added", half: bool = False) -> Any:
    model = load(spelled(Spelling(gqa=repeat, rows=rows, mask=mask, half=half, number=0.25)))
    Pipeline.parse("canonicalize,fuse-sdpa").run(model)
    return model


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("mask", ["none", "added", "one row", "low rank", "per head", "select computed, -inf"])
@pytest.mark.parametrize("repeat", REPEATS)
def test_no_key_or_value_is_repeated(repeat: str, mask: str, rows: int) -> None:
    model = shared(repeat, mask=mask, rows=rows)
    assert holds(PackGqa(), model.program)
    report = PackGqa().run(model)
    assert report.applied == 1, str(report)
    (attention,) = [op for op in model.program.functions["main"].operations if op.op_type.startswith("scaled")]
    assert shape_of(attention.key)[1] == shape_of(attention.value)[1] == (1 if repeat == "one head" else 2)
    repeated = [op for op in op_types(model.program) if op in ("tile", "concat", "gather")]
    needs = rows > 1 and mask not in ("none", "one row", "per head")
    assert repeated == (["concat"] if needs else [])
    assert bool(report.notes) == needs


def test_the_bytes_of_the_repeated_mask_are_told() -> None:
    report = PackGqa().run(shared("tile", half=True))
    assert report.notes == [f"{REPEATED}: 60 bytes"]  # 2 * 3 * 5 * fp16


def layers(count: int, heads: int = 4, groups: int = 2, rows: Any = 3) -> Program:
    specs = [
        mb.TensorSpec((1, heads, rows, 8)),
        mb.TensorSpec((1, heads // groups, 5, 8)),
        mb.TensorSpec((1, 1, rows, 5)),
    ]

    @mb.program(input_specs=specs, opset_version=target.iOS18)
    def program(x: Any, k: Any, mask: Any) -> Any:
        for layer in range(count):
            name = "out" if layer == count - 1 else f"layer_{layer}"
            wide = mb.tile(x=mb.expand_dims(x=mb.relu(x=k), axes=[2]), reps=[1, 1, groups, 1, 1])
            wide = mb.reshape(x=wide, shape=[1, heads, 5, 8])
            x = mb.scaled_dot_product_attention(query=x, key=wide, value=wide, attn_mask=mask, name=name)
        return x

    return program


def test_the_mask_is_repeated_once_for_all_layers() -> None:
    program = layers(3)
    assert apply(PackHeads(), program).applied == 3
    assert op_types(program).count("concat") == 1
    assert "tile" not in op_types(program)


def test_any_number_of_queries() -> None:
    program = layers(2, rows=get_new_symbol())
    assert holds(PackGqa(), program)
    report = apply(PackHeads(), program)
    assert (report.applied, report.notes) == (2, [REPEATED])


def test_golden() -> None:
    program = layers(1)
    apply(PackHeads(), program)
    assert text(program) == GOLDEN


GOLDEN = """\
main[CoreML8](%x: fp32[1, 4, 3, 8], %k: fp32[1, 2, 5, 8], %mask: fp32[1, 1, 3, 5]) {
  %0: fp32[1, 2, 5, 8] = relu(x=%k)
  %1: fp32[1, 1, 6, 5] = concat(values=(%mask, %mask), axis=-2)
  %2: fp32[1, 2, 6, 8] = reshape(x=%x, shape=[1, 2, 6, 8])
  %3: fp32[1, 2, 6, 8] = scaled_dot_product_attention(query=%2, key=%0, value=%0, attn_mask=%1)
  %4: fp32[1, 4, 3, 8] = reshape(x=%3, shape=[1, 4, 3, 8])
} -> (out=%4)
"""


def tiled(axes: list[int], reps: list[int], *, values: bool = True) -> Program:
    specs = [mb.TensorSpec((1, 4, 3, 8)), mb.TensorSpec((1, 2, 5, 8))]

    @mb.program(input_specs=specs, opset_version=target.iOS18)
    def program(q: Any, k: Any) -> Any:
        wide = mb.reshape(x=mb.tile(x=mb.expand_dims(x=k, axes=axes), reps=reps), shape=[1, 4, 5, 8])
        value = wide if values else mb.concat(values=(k, mb.relu(x=k)), axis=1)
        return mb.scaled_dot_product_attention(query=q, key=wide, value=value)

    return program


@pytest.mark.parametrize(
    "program",
    [tiled([1], [1, 2, 1, 1, 1]), tiled([3], [1, 1, 1, 2, 1]), tiled([2], [1, 1, 2, 1, 1], values=False)],
    ids=["all heads twice", "every row twice", "values not repeated"],
)
def test_what_is_repeated_otherwise_is_refused(program: Program) -> None:
    """All heads one after another are other heads for the third query head; rows twice are no heads at all."""
    before = text(program)
    report = apply(PackHeads(), program)
    assert not report
    assert "its keys and values are not repeated" in [miss.reason for miss in report.misses]
    assert text(program) == before


def test_programs_with_shared_keys() -> None:
    check_rule(PackHeads(), fused_programs(shared=True), max_examples=40)
    check_rule(PackHeads(), fused_programs(broken=True), max_examples=20, must_fire=False)


@pytest.mark.parametrize("symbolic", ["", "L", "S"])
@pytest.mark.parametrize("opset", [target.iOS16, target.iOS18])
@pytest.mark.parametrize("repeat", ["tile", "concat", "gather", "one head"])
def test_products_of_attention_that_is_written_out(repeat: str, opset: Any, symbolic: str) -> None:
    """Scores that are capped can't fuse; their keys are not repeated all the same, and no mask is."""
    program = spelled(Spelling(gqa=repeat, opset=opset, symbolic=symbolic, broken="tanh"))
    assert holds(PackGqa(), program)
    model = load(program)
    Pipeline.parse("canonicalize,pack-gqa").run(model)
    assert not {"tile", "concat", "gather"} & set(op_types(model.program))


def test_products_of_attention_are_packed_alone() -> None:
    programs = attention_programs(opset=target.iOS16, gqa="tile", half=False)
    check_rule(PackProduct(), programs, max_examples=20)


def test_repetitions_computed_from_shapes() -> None:
    check_rule(FoldTile(), flexible_repeats(), max_examples=20)
    check_rule(FoldTile(), flexible_repeats(broken=True), max_examples=10, must_fire=False)


def test_repetitions_that_depend_on_an_input_are_refused() -> None:
    specs = [mb.TensorSpec((1, 2, 3)), mb.TensorSpec((3,), types.int32)]

    @mb.program(input_specs=specs, opset_version=target.iOS18)
    def program(x: Any, reps: Any) -> Any:
        return mb.reshape(x=mb.tile(x=x, reps=reps), shape=[-1])

    report = apply(FoldTile(), program)
    assert [miss.reason for miss in report.misses if miss.declined] == ["its repetitions depend on more than shapes"]


@pytest.mark.parametrize("order", ["pack-gqa,kv-to-state", "kv-to-state,pack-gqa"])
def test_a_cache_becomes_states_before_and_after(order: str) -> None:
    model = Decoder().stateless()
    report = Pipeline.parse(f"canonicalize,fuse-sdpa,{order}").run(model, verify="each")
    assert all(verdict for verdict in report.verdicts)
    types_left = [op for name in model.functions for op in op_types(model.program, name)]
    assert "tile" not in types_left
    assert "coreml_update_state" in types_left


def test_heads_that_coremltools_has_a_symbol_for() -> None:
    """Phi-3 of flexible length: heads are what a reshape to a computed shape leaves open."""
    length: Any = get_new_symbol()
    specs = [mb.TensorSpec((1, length, 32)), mb.TensorSpec((1, 2, 5, 8))]

    @mb.program(input_specs=specs, opset_version=target.iOS18)
    def program(x: Any, k: Any) -> Any:
        rows = mb.gather(x=mb.shape(x=x), indices=1)
        part = mb.slice_by_index(x=mb.relu(x=x), begin=[0, 0, 0], end=[1, 0, 32], end_mask=[True, True, False])
        q = mb.reshape(x=part, shape=mb.concat(values=[1, rows, -1, 8], axis=0))
        q = mb.transpose(x=q, perm=[0, 2, 1, 3])
        wide = mb.tile(x=mb.expand_dims(x=k, axes=[2]), reps=[1, 1, 2, 1, 1])
        wide = mb.reshape(x=wide, shape=[1, 4, 5, 8])
        weights = mb.softmax(x=mb.matmul(x=q, y=wide, transpose_y=True), axis=-1)
        return mb.matmul(x=weights, y=wide)

    model = load(program)
    report = Pipeline.parse("fuse-sdpa,pack-gqa").run(model, verify="each")
    assert all(report.verdicts)
    assert [part.applied for part in report.parts] == [1, 1]
    assert "tile" not in op_types(model.program)

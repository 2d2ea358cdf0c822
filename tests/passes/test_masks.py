"""finite-mask: every spelling of a fill, what attention then gives, and what it stays away from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from milopt.errors import PassError
from milopt.interpreter import evaluate
from milopt.metrics import Lossy
from milopt.mil import Program, mb, operations, target, types
from milopt.multifunction import merge
from milopt.package import load
from milopt.passes.masks import FiniteMask, is_low, leads_to_softmax
from milopt.reports import Report
from milopt.text import text
from milopt.verify import compare

F16, F32 = np.float16, np.float32
ROWS = 4
SEEN: Any = np.tri(ROWS, dtype=bool)[None, None]
CAUSAL = np.where(SEEN, 0, -np.inf).astype(F16)
SCORES = np.random.default_rng(0).standard_normal((1, 2, ROWS, ROWS)).astype(F16)

Build = Callable[[Any, Any], Any]


def program(build: Build, mask: Any = None, shape: tuple[int, ...] = (1, 1, ROWS, ROWS)) -> Program:
    specs = [mb.TensorSpec((1, 2, ROWS, ROWS), types.fp16)]
    if mask is None:

        @mb.program(input_specs=specs, opset_version=target.iOS18)
        def alone(x: Any) -> Any:
            return mb.identity(x=build(x, None), name="out")

        return alone

    @mb.program(input_specs=[*specs, mb.TensorSpec(shape, mask)], opset_version=target.iOS18)
    def masked(x: Any, mask: Any) -> Any:
        return mb.identity(x=build(x, mask), name="out")

    return masked


def run(built: Program, value: float = -1e4) -> Report:
    report = FiniteMask(value).run(load(built))
    built.validate()
    return report


def _softmax(x: Any) -> Any:
    return mb.softmax(x=x, axis=-1)


def _where(x: Any, mask: Any) -> Any:
    """As transformers writes it: zeros and finfo(fp32).min, and a cast, which makes it -inf."""
    full = np.full((1, 1, ROWS, ROWS), np.finfo(F32).min, F32)
    return _softmax(mb.add(x=x, y=mb.cast(x=mb.select(cond=mask, a=full * 0, b=full), dtype="fp16")))


def _both(x: Any, _: Any) -> Any:
    """Two masks of -40000: -inf where they meet."""
    return _softmax(mb.add(x=mb.add(x=x, y=np.maximum(CAUSAL, F16(-4e4))), y=np.maximum(CAUSAL, F16(-4e4))))


def _table(x: Any, _: Any) -> Any:
    held = mb.const(val=np.pad(CAUSAL, ((0, 0), (0, 0), (0, 3), (0, 0))))
    return _softmax(mb.add(x=x, y=mb.slice_by_index(x=held, begin=[0, 0, 0, 0], end=[1, 1, ROWS, ROWS])))


def _attention(x: Any, _: Any) -> Any:
    return mb.scaled_dot_product_attention(query=x, key=x, value=x, attn_mask=CAUSAL)


SPELLINGS: dict[str, tuple[Build, Any]] = {
    "added": (lambda x, _: _softmax(mb.add(x=x, y=CAUSAL)), None),
    "selected": (lambda x, mask: _softmax(mb.select(cond=mask, a=x, b=F16(-np.inf))), types.bool),
    "where and a cast": (_where, types.bool),
    "twice": (_both, None),
    "a table": (_table, None),
    "an attention op": (_attention, None),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings(spelling: str) -> None:
    build, kind = SPELLINGS[spelling]
    built = program(build, kind)
    model = load(built)
    before = model.clone()
    report = FiniteMask().run(model)
    assert (bool(report), report.misses, report.metric) == (True, [], None)
    assert "inf" not in text(model)
    assert compare(before, model, metric=FiniteMask.metric)
    again = FiniteMask().run(model)
    assert (bool(again), again.misses) == (False, [])
    if spelling != "an attention op":
        inputs = {"x": SCORES} if kind is None else {"x": SCORES, "mask": SEEN}
        found = evaluate(built, inputs)["out"]
        assert np.all(found[np.broadcast_to(~SEEN, found.shape)] == 0)


def test_a_row_that_is_masked_as_a_whole_becomes_finite() -> None:
    """What it is then the docstring says: the softmax of its scores."""
    build, kind = SPELLINGS["selected"]
    built = program(build, kind)
    mask = SEEN.copy()
    mask[..., 1, :] = False
    inputs = {"x": SCORES, "mask": mask}
    assert np.isnan(evaluate(built, inputs)["out"][..., 1, :]).all()
    run(built)
    found = evaluate(built, inputs, precision="float64")["out"]
    np.testing.assert_allclose(found[..., 1, :], 0.25, atol=1e-12)  # all of them -1e4


def _product(fill: float, *, more: bool = False) -> Build:
    def build(x: Any, mask: Any) -> Any:
        kept = mb.sub(x=F16(1), y=mb.cast(x=mask, dtype="fp16"))
        kept = mb.add(x=kept, y=F16(0.5)) if more else kept
        return _softmax(mb.add(x=x, y=mb.mul(x=kept, y=F16(fill))))

    return build


@pytest.mark.parametrize("kind", [types.int32, types.bool])
@pytest.mark.parametrize("fill", [-5e4, -np.inf])
def test_products(fill: float, kind: Any) -> None:
    """(1 - m) * fill; where the fill is infinite everything was NaN before, and that is said."""
    built = program(_product(fill), kind, (1, 1, 1, ROWS))
    report = run(built)
    assert report.applied == 1
    taken = ["input 'mask' is taken to hold 0 and 1 alone"] if kind is types.int32 else []
    nothing = ["0 * -inf is NaN before, in float64 too: there was nothing to compare with"]
    assert report.notes == (taken if np.isfinite(fill) else [*taken, *nothing])
    assert report.metric == (None if np.isfinite(fill) else Lossy(-np.inf))
    seen = np.array([[[[1, 0, 1, 1]]]], bool if kind is types.bool else np.int32)
    found = evaluate(built, {"x": SCORES, "mask": seen})["out"]
    assert np.all(found[..., 1] == 0)
    np.testing.assert_allclose(found.astype(float).sum(-1), 1, rtol=2e-3)  # four fp16 numbers


TABLE: Any = np.pad(CAUSAL, ((0, 0), (0, 0), (0, 3), (0, 0)))
WHOLE: Any = [0, 0, 0, 0]

# how a constant becomes the mask of scores; the parts are of a table with more rows
MOVES: dict[str, Callable[[Any], Any]] = {
    "cast": lambda table: mb.cast(x=mb.cast(x=table, dtype="fp32"), dtype="fp16"),
    "concat": lambda table: mb.concat(values=[table, table], axis=1),
    "expand_dims": lambda table: mb.squeeze(x=mb.expand_dims(x=table, axes=[0]), axes=[0]),
    "identity": lambda table: mb.identity(x=table),
    "reshape": lambda table: mb.reshape(x=table, shape=[1, 1, ROWS, ROWS]),
    "stack": lambda table: mb.squeeze(x=mb.stack(values=[table, table], axis=2), axes=[1]),
    "tile": lambda table: mb.tile(x=table, reps=[1, 2, 1, 1]),
    "transpose": lambda table: mb.transpose(x=mb.transpose(x=table, perm=[0, 1, 3, 2]), perm=[0, 1, 3, 2]),
}
PARTS: dict[str, Callable[[Any], Any]] = {
    "gather": lambda table: mb.gather(x=table, indices=np.arange(ROWS, dtype=np.int32), axis=2),
    "slice_by_index": lambda table: mb.slice_by_index(x=table, begin=WHOLE, end=[1, 1, ROWS, ROWS]),
    "slice_by_size": lambda table: mb.slice_by_size(x=table, begin=WHOLE, size=[1, 1, ROWS, ROWS]),
    "split": lambda table: mb.split(x=table, split_sizes=[ROWS, 3], axis=2)[0],
}


@pytest.mark.parametrize("move", [*MOVES, *PARTS])
def test_constants_that_are_moved(move: str) -> None:
    table = TABLE if move in PARTS else CAUSAL

    def build(x: Any, _: Any) -> Any:
        held = mb.const(val=table, name="table")
        return _softmax(mb.add(x=x, y={**MOVES, **PARTS}[move](held)))

    built = program(build)
    report = run(built)
    assert (report.applied, report.tried, report.misses) == (1, 1, [])
    (held,) = [op for op in operations(built.functions["main"]) if op.op_type == "const" and op.name == "table_finite"]
    assert held.outputs[0].val.min() == FiniteMask().value == -1e4


@pytest.mark.parametrize("part", PARTS)
def test_parts_of_a_table_with_a_row_that_masks_everything(part: str) -> None:
    table = TABLE.copy()
    table[0, 0, -1] = -np.inf

    def build(x: Any, _: Any) -> Any:
        return _softmax(mb.add(x=x, y=PARTS[part](mb.const(val=table, name="table"))))

    report = run(program(build))
    assert not report
    assert [(miss.place, miss.reason) for miss in report.misses] == [("table", "a row of it masks every column")]


def test_what_is_low_and_what_is_not() -> None:
    """-32752 is what fp16 can add up twice: no fill, and it stays beside one; a row with it keeps a column."""
    kept = np.where(SEEN, 0, -32752).astype(F16)
    assert run(program(lambda x, _: _softmax(mb.add(x=x, y=kept)))).tried == 0
    both = np.where(np.eye(ROWS, dtype=bool), -32752, -np.inf).astype(F16)[None, None]
    built = program(lambda x, _: _softmax(mb.add(x=x, y=mb.const(val=both, name="both"))))
    assert run(built).applied == 1
    (held,) = [op for op in operations(built.functions["main"]) if op.name == "both_finite"]
    assert np.all(held.outputs[0].val == np.where(np.eye(ROWS, dtype=bool), -32752, -1e4))


def test_a_column_that_no_row_sees_is_no_row() -> None:
    padded = np.zeros((1, 1, ROWS, ROWS), F16)
    padded[..., -1] = -np.inf
    assert run(program(lambda x, _: _softmax(mb.add(x=x, y=padded)))).applied == 1


def test_a_constant_that_is_the_input_of_a_softmax() -> None:
    built = program(lambda x, _: mb.mul(x=x, y=_softmax(CAUSAL)))
    assert run(built).applied == 1


def test_weights_with_low_numbers_are_not_looked_at() -> None:
    weight = np.full((3, ROWS), -5e4, F16)
    report = run(program(lambda x, _: mb.linear(x=x, weight=weight)))
    assert (report.tried, report.misses) == (0, [])


def test_a_note_is_made_once() -> None:
    def build(x: Any, mask: Any) -> Any:
        first = mb.mul(x=_one_minus(mask), y=F16(-5e4))
        second = mb.mul(x=_one_minus(mask), y=F16(-6e4))
        return _softmax(mb.add(x=_softmax(mb.add(x=x, y=first)), y=second))

    report = run(program(build, types.int32, (1, 1, 1, ROWS)))
    assert report.applied == 2
    assert report.notes == ["input 'mask' is taken to hold 0 and 1 alone"]


def _one_minus(mask: Any) -> Any:
    return mb.sub(x=F16(1), y=mb.cast(x=mask, dtype="fp16"))


SEEN_FIRST: Any = np.array([1, 1, 0, 1], F16)

# what is multiplied by the fill -> which inputs are taken to hold 0 and 1; None where it may be something else
FACTORS: dict[str, tuple[Build, list[str] | None]] = {
    "a truth, moved": (lambda x, m: mb.expand_dims(x=mb.cast(x=m, dtype="fp16"), axes=[0]), None),
    "an input, moved": (lambda x, m: mb.squeeze(x=mb.expand_dims(x=_one_minus(m), axes=[0]), axes=[0]), ["mask"]),
    "parts": (
        lambda x, m: mb.concat(
            values=mb.split(x=_one_minus(m), split_sizes=[1, ROWS - 1], axis=-1), axis=-1, interleave=False
        ),
        ["mask"],
    ),
    "a comparison": (lambda x, m: mb.cast(x=mb.less(x=m, y=1), dtype="fp16"), []),
    "its opposite": (lambda x, m: mb.cast(x=mb.logical_not(x=mb.less(x=m, y=1)), dtype="fp16"), []),
    "one minus a comparison": (lambda x, m: mb.sub(x=F16(1), y=mb.cast(x=mb.less(x=m, y=1), dtype="fp16")), []),
    "a constant": (lambda x, m: mb.sub(x=F16(1), y=mb.mul(x=SEEN_FIRST, y=mb.cast(x=m, dtype="fp16"))), ["mask"]),
    "another constant": (lambda x, m: mb.mul(x=_one_minus(m), y=SEEN_FIRST * F16(0.5)), None),
    "a product": (lambda x, m: mb.mul(x=_one_minus(m), y=mb.cast(x=mb.less(x=m, y=2), dtype="fp16")), ["mask"]),
    "a product with scores": (lambda x, m: mb.mul(x=_one_minus(m), y=x), None),
    "a choice": (lambda x, m: mb.select(cond=mb.less(x=m, y=1), a=F16(1), b=np.zeros(ROWS, F16)), []),
    "a choice of something else": (lambda x, m: mb.select(cond=mb.less(x=m, y=1), a=F16(1), b=F16(2)), None),
    "the other choice": (lambda x, m: mb.select(cond=mb.less(x=m, y=1), a=F16(2), b=F16(1)), None),
    "two minus": (lambda x, m: mb.sub(x=F16(2), y=mb.cast(x=m, dtype="fp16")), None),
    "minus one": (lambda x, m: mb.sub(x=mb.cast(x=m, dtype="fp16"), y=F16(1)), None),
    "an input as it is": (lambda x, m: mb.cast(x=m, dtype="fp16"), None),
    "one and two minus": (lambda x, m: mb.sub(x=np.array([1, 1, 1, 2], F16), y=mb.cast(x=m, dtype="fp16")), None),
    "minus what is computed": (lambda x, m: mb.sub(x=mb.relu(x=x), y=mb.cast(x=m, dtype="fp16")), None),
    "what is computed": (lambda x, m: mb.relu(x=_one_minus(m)), None),
}


@pytest.mark.parametrize("case", FACTORS)
def test_factors_that_are_zero_or_one(case: str) -> None:
    made, inputs = FACTORS[case]
    built = program(
        lambda x, m: _softmax(mb.add(x=x, y=mb.mul(x=F16(-5e4), y=made(x, m)))), types.int32, (1, 1, 1, ROWS)
    )
    report = run(built)
    if inputs is None:
        assert [miss.reason for miss in report.misses] == ["it multiplies what may be other than 0 and 1"]
        assert report.misses[0].place
        assert not report
    else:
        assert (report.applied, report.misses) == (1, [])
        assert report.notes == [f"input {each!r} is taken to hold 0 and 1 alone" for each in inputs]


def test_one_fill_for_two_layers() -> None:
    """Its numbers reach the same values by two ways."""

    def build(x: Any, _: Any) -> Any:
        held = mb.const(val=CAUSAL)
        once = mb.add(x=x, y=held)
        return _softmax(mb.add(x=mb.add(x=_softmax(once), y=held), y=mb.mul(x=_softmax(once), y=F16(2))))

    report = run(program(build))
    assert (report.applied, report.misses) == (1, [])


def test_a_fill_for_a_norm_and_a_softmax() -> None:
    """The numbers are followed to every use before anything changes."""

    def build(x: Any, _: Any) -> Any:
        held = mb.const(val=CAUSAL)
        return mb.add(x=_softmax(mb.add(x=x, y=held)), y=mb.relu(x=mb.add(x=x, y=held), name="bent"))

    report = run(program(build))
    assert not report
    assert [(miss.place, miss.reason) for miss in report.misses] == [("bent", "it reaches relu")]


def _outer(kind: str) -> Build:
    def build(x: Any, _: Any) -> Any:
        scores = mb.add(x=x, y=CAUSAL)
        return mb.add(x=_softmax(scores), y=getattr(mb, kind)(x=scores))

    return build


REFUSALS: dict[str, tuple[Build, Any, str]] = {
    "something else": (_outer("relu"), None, "it reaches relu"),
    "one row": (
        lambda x, _: _softmax(mb.add(x=x, y=np.where(np.arange(ROWS)[:, None] == 1, -np.inf, 0).astype(F16))),
        None,
        "a row of it masks every column",
    ),
    "nothing": (lambda x, _: [mb.add(x=x, y=CAUSAL), mb.relu(x=x)][1], None, "it reaches no softmax"),
    "indices": (
        lambda x, _: mb.gather(
            x=x, indices=mb.cast(x=np.array([-4e4, 0], F16), dtype="int32"), axis=-1, validate_indices=False
        ),
        None,
        "it reaches gather",
    ),
    "a factor that is moved": (
        lambda x, m: _softmax(mb.mul(x=_one_minus(m), y=mb.squeeze(x=np.array([-5e4], F16), axes=[0]))),
        types.int32,
        "it reaches mul",
    ),
    "an output": (lambda x, _: mb.add(x=x, y=CAUSAL), None, "out is an output"),
    "a row": (
        lambda x, _: _softmax(mb.add(x=x, y=np.full((ROWS, ROWS), -np.inf, F16))),
        None,
        "a row of it masks every column",
    ),
    "a factor": (_product(-5e4, more=True), types.int32, "it multiplies what may be other than 0 and 1"),
    "a product of scores": (
        lambda x, _: _softmax(mb.mul(x=x, y=F16(-5e4))),
        None,
        "it multiplies what may be other than 0 and 1",
    ),
    "an array as factor": (
        lambda x, _: _softmax(mb.mul(x=x, y=np.linspace(-5e4, 0, ROWS).astype(F16))),
        None,
        "it is multiplied, and no single number",
    ),
    "fp32": (
        lambda x, _: mb.cast(x=_softmax(mb.add(x=mb.cast(x=x, dtype="fp32"), y=CAUSAL.astype(F32))), dtype="fp16"),
        None,
        "it stays fp32, which holds it",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case: str) -> None:
    build, kind, reason = REFUSALS[case]
    shape = (1, 1, 1, ROWS) if kind is types.int32 else (1, 1, ROWS, ROWS)
    built = program(build, kind, shape)
    before = text(built)
    report = run(built)
    assert not report
    assert [miss.reason for miss in report.misses] == [reason]
    assert all(miss.place for miss in report.misses)
    assert text(built) == before


def test_ordinary_numbers_are_no_fills() -> None:
    for fill in (-3e4, -1e4, 0.0):
        kept = np.maximum(CAUSAL, F16(fill))

        def build(x: Any, _: Any, kept: Any = kept) -> Any:
            return _softmax(mb.add(x=x, y=kept))

        assert run(program(build)).tried == 0
    assert is_low(CAUSAL)
    assert not is_low(None)
    assert not is_low(np.zeros(0, F16))
    assert not is_low(np.array([-(10**9)]))


def test_what_leads_to_a_softmax() -> None:
    built = program(_outer("relu"))
    consts = [op for op in built.functions["main"].operations if op.op_type == "const" and op.outputs[0].rank == 4]
    assert [leads_to_softmax(op.outputs[0]) for op in consts] == [True]
    plain = program(lambda x, _: mb.relu(x=mb.add(x=x, y=CAUSAL)))
    consts = [op for op in plain.functions["main"].operations if op.op_type == "const" and op.outputs[0].rank == 4]
    assert [leads_to_softmax(op.outputs[0]) for op in consts] == [False]
    weight = program(lambda x, _: mb.matmul(x=x, y=np.tile(CAUSAL, (1, 2, 1, 1))))
    consts = [op for op in weight.functions["main"].operations if op.op_type == "const" and op.outputs[0].rank == 4]
    assert [leads_to_softmax(op.outputs[0]) for op in consts] == [False]
    whole = program(lambda x, _: _softmax(mb.add(x=x, y=CAUSAL)))
    consts = [op for op in whole.functions["main"].operations if op.op_type == "const" and op.outputs[0].rank == 4]
    assert [leads_to_softmax(op.outputs[0]) for op in consts] == [True]


def test_what_reaches_a_softmax_and_more_in_fp32() -> None:
    """The way leads to a softmax, and fp32 holds it; that it ends elsewhere too does not matter."""

    def build(x: Any, _: Any) -> Any:
        scores = mb.add(x=mb.cast(x=x, dtype="fp32"), y=CAUSAL.astype(F32))
        return mb.cast(x=mb.add(x=_softmax(scores), y=mb.relu(x=scores)), dtype="fp16")

    built = program(build)
    consts = [op for op in built.functions["main"].operations if op.op_type == "const" and op.outputs[0].rank == 4]
    assert [leads_to_softmax(op.outputs[0]) for op in consts] == [False]


def test_text() -> None:
    built = program(*SPELLINGS["selected"])
    run(built, -2e4)
    assert (
        text(built)
        == """\
main[CoreML8](%x: fp16[1, 2, 4, 4], %mask: bool[1, 1, 4, 4]) {
  %0: fp16[1, 2, 4, 4] = select(cond=%mask, a=%x, b=fp16(-2e+04))
  %1: fp16[1, 2, 4, 4] = softmax(x=%0)
  %2: fp16[1, 2, 4, 4] = identity(x=%1)
} -> (out=%2)
"""
    )


def test_functions_share_the_new_numbers() -> None:
    build, kind = SPELLINGS["added"]
    model = merge({name: load(program(build, kind)) for name in ("a", "b")}, default="a")
    assert FiniteMask().run(model).applied == 2
    held = [
        op.outputs[0].val
        for function in model.functions.values()
        for op in function.operations
        if op.op_type == "const" and op.outputs[0].rank == 4
    ]
    assert len(held) == 2
    assert held[0] is held[1]


@pytest.mark.parametrize("value", [-999.0, -32753.0, 0.0, -np.inf, np.nan])
def test_values_that_are_no_masks(value: float) -> None:
    with pytest.raises(PassError, match=rf"^finite-mask: value is between -32752 and -1000, not {value:g}$"):
        FiniteMask(value)


def test_values_at_the_ends() -> None:
    assert [FiniteMask(value).value for value in (-32752.0, -1000.0)] == [-32752.0, -1000.0]

"""split-head: the same logits in slices, the largest of them with ties and NaN, and what stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from milopt.building import Builder
from milopt.errors import PackageError
from milopt.interpreter import evaluate
from milopt.mil import Program, get_new_symbol, mb, target, types
from milopt.package import Model, load
from milopt.passes.convolution import LinearToConv
from milopt.passes.head import SplitHead
from milopt.pipeline import Pipeline
from milopt.reports import Report
from milopt.signature_head import HEAD_KEY, HeadSignature
from milopt.text import text
from milopt.verify import compare

from .support import op_types

RNG = np.random.default_rng(0)
WEIGHT: Any = RNG.standard_normal((24, 6)).astype(np.float32)
BIAS: Any = RNG.standard_normal(24).astype(np.float32)
TYPED: Any = types.nptype_from_builtin(types.string_to_builtin("uint4"))


def program(body: Callable[[Any], Any], *, shape: tuple[Any, ...] = (1, 5, 6), opset: target = target.iOS18) -> Program:
    return mb.program(input_specs=[mb.TensorSpec(shape)], opset_version=opset)(body)


def softcap(x: Any) -> Any:
    """Gemma 2: a head in the middle of ops that are done to each logit."""
    y = mb.linear(x=mb.relu(x=x), weight=WEIGHT, bias=BIAS)
    y = mb.mul(x=mb.tanh(x=mb.real_div(x=y, y=np.float32(30))), y=np.float32(30))
    return mb.add(x=y, y=np.arange(24, dtype=np.float32), name="logits")


def columns(x: Any) -> Any:
    y = mb.conv(x=mb.transpose(x=mb.expand_dims(x=x, axes=[1]), perm=[0, 3, 1, 2]), weight=WEIGHT[..., None, None])
    y = mb.transpose(x=mb.squeeze(x=y, axes=[2]), perm=[0, 2, 1])
    return mb.squeeze(x=mb.expand_dims(x=y, axes=[0]), axes=[0], name="logits")


def palette(x: Any) -> Any:
    indices = np.random.default_rng(1).integers(0, 16, (24, 6)).astype(np.uint8).astype(TYPED)
    lut = np.random.default_rng(2).standard_normal((6, 1, 16, 1)).astype(np.float32)
    return mb.linear(x=x, weight=mb.constexpr_lut_to_dense(indices=indices, lut=lut), name="logits")


def blocks(x: Any) -> Any:
    rng = np.random.default_rng(1)
    data, scale = rng.integers(-8, 8, (24, 6)).astype(np.int8), rng.random((24, 2)).astype(np.float32)
    return mb.linear(x=x, weight=mb.constexpr_blockwise_shift_scale(data=data, scale=scale), name="logits")


def affine(x: Any) -> Any:
    rng = np.random.default_rng(1)
    weight = mb.constexpr_affine_dequantize(
        quantized_data=rng.integers(-8, 8, (24, 6)).astype(np.int8),
        scale=rng.random(24).astype(np.float32),
        zero_point=rng.integers(-2, 2, 24).astype(np.int8),
        axis=np.int32(0),
    )
    return mb.linear(x=x, weight=weight, name="logits")


def sparse(x: Any) -> Any:
    rng = np.random.default_rng(1)
    mask = rng.integers(0, 2, (24, 6)).astype(np.uint8)
    data = rng.standard_normal(int(mask.sum())).astype(np.float32)
    kind: Any = types.nptype_from_builtin(types.string_to_builtin("uint1"))
    return mb.linear(x=x, weight=mb.constexpr_sparse_to_dense(nonzero_data=data, mask=mask.astype(kind)), name="logits")


HEADS: dict[str, Callable[[Any], Any]] = {
    "linear": lambda x: mb.linear(x=x, weight=WEIGHT, name="logits"),
    "linear with bias": lambda x: mb.linear(x=x, weight=WEIGHT, bias=BIAS, name="logits"),
    "matmul": lambda x: mb.matmul(x=x, y=np.ascontiguousarray(WEIGHT.T), name="logits"),
    "matmul, turned": lambda x: mb.matmul(x=x, y=WEIGHT, transpose_y=True, name="logits"),
    "matmul, left": lambda x: mb.matmul(x=WEIGHT, y=x, transpose_y=True, name="logits"),
    "matmul, left and turned": lambda x: mb.matmul(
        x=np.ascontiguousarray(WEIGHT.T), y=x, transpose_x=True, transpose_y=True, name="logits"
    ),
    "conv": columns,
    "softcap": softcap,
    "unit axes": lambda x: mb.reshape(x=mb.linear(x=x, weight=WEIGHT), shape=[5, 1, 24], name="logits"),
    "palette": palette,
    "blocks": blocks,
    "affine": affine,
    "sparse": sparse,
}


def split(made: Program, **options: Any) -> tuple[Model, Model, Report]:
    model = load(made)
    before = model.clone()
    report = SplitHead(**options).run(model)
    model.program.validate()
    return before, model, report


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("output", ["logits", "slices", "argmax", "top-k"])
def test_every_head(name: str, output: str) -> None:
    before, after, report = split(program(HEADS[name]), slices=3, output=output, k=5)
    assert report.applied == 1, str(report)
    verdict = compare(before, after)
    assert verdict, str(verdict)
    kinds = op_types(after.program)
    layer = next(kind for kind in op_types(before.program) if kind in ("linear", "matmul", "conv"))
    assert kinds.count(layer) == 3
    for op in after.function().operations:
        for var in op.outputs:
            if op.op_type in (layer, "tanh", "mul", "real_div", "add"):
                assert 24 not in var.shape


def test_outputs_and_what_the_package_says() -> None:
    for output, names in {
        "logits": ["logits"],
        "slices": ["logits1", "logits2", "logits3", "logits4"],
        "argmax": ["argmax_idx", "argmax_val"],
        "top-k": ["topk_idx", "topk_val"],
    }.items():
        _, after, _ = split(program(HEADS["linear"]), slices=4, output=output, k=2)
        assert [var.name for var in after.function().outputs] == names
        said = HeadSignature.from_metadata(after.metadata)
        if output == "logits":
            assert said is None
        else:
            assert said == HeadSignature("logits", output, -1, (6, 6, 6, 6), 2)
    _, after, _ = split(program(HEADS["linear"]), slices=4, output="top-k", k=2)
    shapes = [tuple(var.shape) for var in after.function().outputs]
    assert shapes == [(1, 5, 2), (1, 5, 2)]


def test_a_package_is_compared_by_what_it_says(tmp_path: Path) -> None:
    before, after, _ = split(program(softcap), slices=2, output="argmax")
    before.save(tmp_path / "before.mlpackage")
    after.save(tmp_path / "after.mlpackage")
    assert compare(tmp_path / "before.mlpackage", tmp_path / "after.mlpackage")
    wrong = load(tmp_path / "after.mlpackage")
    shift = next(op for op in wrong.function().operations if op.op_type == "add" and op.outputs[0].shape[-1] == 1)
    shift.set_inputs(y=Builder(shift, set()).const(val=np.int32(11), name="wrong"))
    assert not compare(tmp_path / "before.mlpackage", wrong)
    # two of one kind are compared as they are
    assert compare(tmp_path / "after.mlpackage", after)


def test_a_pipeline_is_verified() -> None:
    model = load(program(softcap))
    pipeline = Pipeline.parse("linear-to-conv,split-head{slices=3,output=top-k,k=4}")
    report = pipeline.run(model, verify="each")
    assert [bool(verdict) for verdict in report.verdicts] == [True, True]
    assert op_types(model.program).count("conv") == 3


# equal rows of the weight, on both sides of where slices end, and one that is NaN
def planted(x: Any) -> Any:
    table: Any = np.rint(np.multiply(WEIGHT, 2))  # sums of whole numbers are the same in any order
    table[[3, 7, 8, 15, 16, 23]] = 20
    return mb.linear(x=x, weight=table, name="logits")


@pytest.mark.parametrize("slices", [1, 2, 3, 4, 8])
def test_ties_and_nan(slices: int) -> None:
    """The first of equal logits wins wherever slices end; NaN counts as the largest for argmax, and last for top-k."""
    x = np.ones((1, 5, 6), np.float32)
    x[0, 1] = -1
    x[0, 2, 0] = np.nan
    made = program(planted)
    logits = evaluate(made, {"x": x})["logits"]
    after = split(program(planted), slices=slices, output="argmax")[1]
    found = evaluate(after, {"x": x})
    np.testing.assert_array_equal(found["argmax_idx"], logits.argmax(-1))
    np.testing.assert_array_equal(found["argmax_val"], logits.max(-1))
    assert found["argmax_idx"][0, 0] == 3
    after = split(program(planted), slices=slices, output="top-k", k=7)[1]
    found = evaluate(after, {"x": x})
    order = np.argsort(np.where(np.isnan(logits), np.inf, -logits), axis=-1, kind="stable")[..., :7]
    np.testing.assert_array_equal(found["topk_idx"], order)
    np.testing.assert_array_equal(found["topk_val"], np.take_along_axis(logits, order, -1))
    assert found["topk_idx"][0, 0].tolist()[:6] == [3, 7, 8, 15, 16, 23]


def sizes(rows: int, *, made: Callable[[Any], Any] | None = None, **options: Any) -> tuple[tuple[int, ...], Report]:
    def plain(x: Any) -> Any:
        return mb.linear(x=x, weight=np.zeros((rows, 6), np.float32), name="logits")

    _, after, report = split(program(made or plain), output="slices", **options)
    said = HeadSignature.from_metadata(after.metadata)
    return () if said is None else said.sizes, report


def test_lengths() -> None:
    assert sizes(24, limit=12)[0] == (12, 12)
    assert sizes(24, limit=11)[0] == (8, 8, 8)
    assert sizes(25, limit=12)[0] == (5, 5, 5, 5, 5)  # a divisor that is less than twice as many
    assert sizes(23, limit=12)[0] == (12, 11)  # a prime
    assert sizes(23, slices=3)[0] == (8, 8, 7)
    assert sizes(40_000)[0] == (10_000,) * 4
    assert sizes(24, made=palette, limit=11)[0] == (8, 8, 8)  # tables of 4 rows
    assert sizes(24, made=palette, limit=9)[0] == (8, 8, 8)
    assert sizes(24, made=palette, slices=5)[0] == (8, 4, 4, 4, 4)
    assert sizes(24, made=blocks, slices=5)[0] == (5, 5, 5, 5, 4)


def test_reports() -> None:
    report = sizes(23, limit=12)[1]
    assert report.notes == ["23 entries of logits: 2 slices of 12 to 11"]
    report = sizes(24, limit=12)[1]
    assert report.notes == ["24 entries of logits: 2 slices of 12"]
    hazards = {
        "argmax": ["reduce_argmax is wrong, or not on the Neural Engine, on some devices (constraints L15)"],
        "top-k": [
            "topk is not on the Neural Engine, nor what comes behind it (constraints L30)",
            "topk of 4 fails on some Neural Engines (constraints L15)",
        ],
    }
    for output, notes in hazards.items():
        assert split(program(HEADS["linear"]), output=output, k=4)[2].notes[1:] == notes
    assert len(split(program(HEADS["linear"]), output="top-k", k=5)[2].notes) == 2


def test_a_tied_head_is_stored_twice() -> None:
    @mb.program(input_specs=[mb.TensorSpec((1, 5), types.int32)], opset_version=target.iOS18)
    def made(ids: Any) -> Any:
        weight = mb.const(val=WEIGHT, name="table")
        return mb.linear(x=mb.gather(x=weight, indices=ids, axis=0, name="rows"), weight=weight, name="logits")

    report = split(made, slices=2)[2]
    assert report.notes[1:] == ["the head is also the table of rows: 576 bytes are stored a second time"]
    assert split(program(HEADS["linear"]), slices=2)[2].notes[1:] == []


def refused(body: Callable[[Any], Any], **options: Any) -> list[str]:
    made = program(body)
    before = text(made)
    model = load(made)
    report = SplitHead(**options).run(model)
    assert (report.applied, text(model.program), HEAD_KEY in model.metadata) == (0, before, False)
    return [miss.reason for miss in report.misses]


def layer(x: Any, **given: Any) -> Any:
    return mb.linear(x=x, weight=WEIGHT, **given)


def test_refusals() -> None:
    assert refused(HEADS["linear"]) == ["its 24 entries are within 16384"]
    assert refused(HEADS["linear"], slices=1) == ["its 24 entries are within 16384"]
    assert refused(palette, slices=7) == ["it has 6 groups of 4, which are no 7 slices"]
    assert refused(lambda x: mb.softmax(x=layer(x), name="logits"), slices=2) == [
        "softmax comes before it, and no layer"
    ]
    assert refused(lambda x: (y := layer(x, name="y"), mb.relu(x=y, name="logits")), slices=2) == [
        "a value before the output is an output too"
    ]
    assert refused(lambda x: (y := layer(x), mb.relu(x=y, name="logits"), mb.exp(x=y, name="z"))[1:], slices=2) == [
        "a value before the output is used otherwise"
    ]
    assert refused(lambda x: mb.mul(x=(y := layer(x)), y=y, name="logits"), slices=2) == [
        "mul of 2 computed values comes before it"
    ]
    assert refused(lambda x: mb.mul(x=layer(x), y=mb.reduce_mean(x=x, axes=[-1], keep_dims=True), name="logits"),
                   slices=2) == ["mul of 2 computed values comes before it"]  # fmt: skip
    wide: Any = np.ones((2, 1, 1, 1), np.float32)
    assert refused(lambda x: mb.mul(x=layer(x), y=wide, name="logits"), slices=2) == ["it is enlarged"]
    assert refused(lambda x: mb.relu(x=x, name="out")) == ["no output comes from a layer with a constant weight"]
    assert refused(lambda x: (layer(x, name="logits2"), mb.linear(x=x, weight=WEIGHT, name="logits")), slices=2,
                   output="slices") == ["there is a value named logits2 already"]  # fmt: skip
    grouped: Any = np.ones((24, 1, 1), np.float32)
    assert refused(lambda x: mb.conv(x=mb.transpose(x=x, perm=[0, 2, 1]), weight=grouped, groups=6, name="logits"),
                   slices=2) == ["conv comes before it, and no layer"]  # fmt: skip


def test_packed_indices_are_cut() -> None:
    def old(x: Any) -> Any:
        rng = np.random.default_rng(1)
        weight = mb.constexpr_lut_to_dense(
            indices=rng.integers(0, 256, 72).astype(np.uint8),
            lut=rng.standard_normal(16).astype(np.float32),
            shape=np.array([24, 6], np.uint32),
        )
        return mb.linear(x=x, weight=weight, name="logits")

    before, after, report = split(program(old, opset=target.iOS16), slices=3)
    assert report.applied == 1
    assert compare(before, after)


def test_which_output() -> None:
    """``logits``, or the longest; another one is left alone."""

    def several(x: Any) -> Any:
        small = mb.linear(x=x, weight=WEIGHT[:8], name="small")
        return small, mb.linear(x=x, weight=WEIGHT, name="scores")

    _, after, report = split(program(several), slices=2)
    assert report.notes == ["24 entries of scores: 2 slices of 12"]
    assert [var.name for var in after.function().outputs] == ["small", "scores"]
    _, after, _ = split(program(several), slices=2, output="slices")
    assert [var.name for var in after.function().outputs] == ["small", "scores1", "scores2"]

    def named(x: Any) -> Any:
        return mb.linear(x=x, weight=WEIGHT[:8], name="logits"), mb.linear(x=x, weight=WEIGHT, name="scores")

    assert split(program(named), slices=2)[2].notes == ["8 entries of logits: 2 slices of 4"]


def test_sizes_that_are_not_known() -> None:
    _, after, _ = split(program(softcap, shape=(1, get_new_symbol(), 6)), slices=3, output="argmax")
    x = RNG.standard_normal((1, 4, 6)).astype(np.float32)
    logits = evaluate(program(softcap, shape=(1, 4, 6)), {"x": x})["logits"]
    np.testing.assert_array_equal(evaluate(after, {"x": x})["argmax_idx"], logits.argmax(-1))


def test_after_linear_to_conv() -> None:
    model = load(program(softcap))
    before = model.clone()
    LinearToConv().run(model)
    assert SplitHead(slices=3, output="top-k", k=24).run(model).applied == 1
    assert compare(before, model)


def test_every_function_or_none() -> None:
    model = load(program(HEADS["linear"]))
    model.program.add_function("other", program(lambda x: mb.relu(x=x, name="y")).functions["main"])
    report = SplitHead(slices=2, output="argmax").run(model)
    assert not report
    assert report.misses[-1].reason == "not every function of the program has this head"
    assert SplitHead(slices=2).run(model).applied == 1


def test_not_twice() -> None:
    _, after, _ = split(program(HEADS["linear"]), slices=2, output="slices")
    before = text(after.program)
    report = SplitHead(slices=2).run(after)
    assert [miss.reason for miss in report.misses] == ["its logits are given back otherwise already"]
    assert text(after.program) == before


def test_options() -> None:
    several: list[dict[str, Any]] = [{"slices": -1}, {"limit": 0}, {"k": 0}]
    for wrong in several:
        with pytest.raises(ValueError, match="1 or more"):
            SplitHead(**wrong)
    assert SplitHead(slices=0, limit=1, k=1)


def test_what_can_not_be_read() -> None:
    good = HeadSignature("logits", "argmax", -1, (12, 12), 1)
    assert HeadSignature.from_metadata({HEAD_KEY: good.to_json()}) == good
    for wrong in ("", "{}", good.to_json().replace("argmax", "best"), good.to_json().replace("-1", "1")):
        with pytest.raises(PackageError, match="does not describe a head"):
            HeadSignature.from_metadata({HEAD_KEY: wrong})

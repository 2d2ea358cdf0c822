"""How weights are compressed together: reports line by line, sums, order, and what stands in their places."""

# The methods of numpy arrays whose element type is not told have types that are not known either.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError, dataclass
from math import inf, log10
from typing import Any

import joblib
import numpy as np
import pytest

from milopt.building import Builder
from milopt.mil import Operation, Program, Var, constant, mb, operations, target, types, value_names
from milopt.package import Model, load
from milopt.package.weights import Packed, packed_of
from milopt.passes.compressing import (
    CompressionReport,
    Coverage,
    Encoded,
    Plan,
    compress,
    constant_of,
    put_in_place,
    snr,
    spread,
)
from milopt.passes.compression import Palettize
from milopt.passes.decompression import Decompress, compressed_weights, decoded, weights_again
from milopt.passes.quantization import Quantize
from milopt.passes.uses import Place, Weight, find_weights
from milopt.reports import NoMatch
from milopt.spool import Spool

F16: Any = np.float16


def halved(array: Any, wrong: int) -> Encoded:
    """Half of each number, as int8: what a test can tell from the number."""
    return Encoded({"data": ((array / 2).astype(np.int8), "int8", array.size)}, 4.0, 400.0, wrong)


@dataclass(frozen=True)
class Halved(Plan):
    """A weight that is stored as half of its numbers."""

    wrong: int = 0

    @property
    def form(self) -> str:
        return "halves"

    @property
    def element_bits(self) -> int:
        return 8

    @property
    def nbytes(self) -> int:
        return int(self.weight.array.size)

    def job(self) -> tuple[Callable[..., Encoded], tuple[Any, ...]]:
        return halved, (self.weight.array, self.wrong)

    def write(self, op: Builder, place: Place, tensors: dict[str, Any]) -> Var:
        shape = tuple(map(int, place.var.shape))
        scale = np.full((1,) * len(shape), 2, F16)
        made: Var = op.constexpr_blockwise_shift_scale(data=tensors["data"].reshape(shape), scale=scale)
        return made


def program() -> Program:
    """A layer of 4 by 2 numbers, called small, and one of 4 by 4, called large, twice: as a convolution's too."""
    small: Any = np.arange(8, dtype=F16).reshape(4, 2) * 2
    large: Any = np.arange(16, dtype=F16).reshape(4, 4) * 4

    @mb.program(input_specs=[mb.TensorSpec((1, 2), types.fp16)], opset_version=target.iOS18)
    def built(x: Any) -> Any:
        y = mb.linear(x=x, weight=mb.const(val=small, name="small"), name="first")
        z = mb.linear(x=y, weight=mb.const(val=large, name="large"), name="second")
        kernel = mb.const(val=large.reshape(4, 4, 1), name="kernel")
        return z, mb.conv(x=mb.expand_dims(x=y, axes=[2]), weight=kernel, name="third")

    return built


def weights_of(model: Model) -> dict[str, Weight]:
    return {weight.name: weight for weight in find_weights(model)}


def test_what_a_line_says() -> None:
    done = Coverage("w", ("main",), (4, 2), "fp16", 4096, 1024, "halves", 8, 20.04)
    assert str(done) == "w fp16[4, 2]: halves, 20.0 dB, 4,096 -> 1,024 bytes"
    left = Coverage("w", ("main",), (4, 2), "fp16", 4096, 4096, reason="too small")
    assert str(left) == "w fp16[4, 2]: left alone, 4,096 bytes: too small"
    assert (left.form, left.bits, left.snr, done.reason) == ("", None, None, "")
    report = CompressionReport("halve", coverage=[done, left])
    assert report.table() == f"{done}\n{left}"
    with pytest.raises(FrozenInstanceError):
        done.name = "v"  # type: ignore[misc]


def test_ratios() -> None:
    assert snr(400.0, 4.0) == pytest.approx(20.0)
    assert snr(4.0, 400.0) == pytest.approx(-20.0)
    assert snr(0.0, 0.0) == inf
    assert snr(5.0, 0.0) == inf


def test_weights_are_compressed_together() -> None:
    model = load(program())
    weights = weights_of(model)
    assert [each.name for place in weights["large"].places for each in [place.var]] == ["large", "kernel"]
    report = CompressionReport("halve")
    plans = [Halved(weights["small"]), Halved(weights["large"])]
    totals, done = compress(plans, model, report)
    model.program.validate()
    assert [plan.weight.name for plan in done] == ["large", "small"]  # the large ones go first
    assert report.applied == 3
    assert [str(line) for line in report.coverage] == [
        "large fp16[4, 4]: halves, 20.0 dB, 32 -> 16 bytes",
        "small fp16[4, 2]: halves, 20.0 dB, 16 -> 8 bytes",
    ]
    assert [(line.functions, line.bits) for line in report.coverage] == [(("main",), 8)] * 2
    report.sort(model)
    assert [line.name for line in report.coverage] == ["small", "large"]
    assert (totals.weights, totals.numbers, totals.before, totals.after) == (2, 24, 48, 24)
    assert (totals.error, totals.power, totals.worst[1]) == (8.0, 800.0, "large")
    assert totals.worst[0] == pytest.approx(20.0)
    assert totals.snr == pytest.approx(10 * log10(800 / 8))
    made = [op for op in operations(model.function()) if op.op_type.startswith("constexpr")]
    assert [(op.name, op.outputs[0].name) for op in made] == [(name, name) for name in ("small", "large", "kernel")]
    for op, count in zip(made, (8, 16, 16), strict=True):
        np.testing.assert_array_equal(constant(op.inputs["data"]).ravel(), np.arange(count) * (1 if count == 8 else 2))
    names = [op.name for op in operations(model.function())]
    assert len(names) == len(set(names))


def test_weights_that_are_not_finite_are_left() -> None:
    model = load(program())
    weights = weights_of(model)
    report = CompressionReport("halve")
    totals, done = compress([Halved(weights["small"], wrong=3), Halved(weights["large"])], model, report)
    assert ([plan.weight.name for plan in done], totals.weights, report.applied) == (["large"], 1, 2)
    assert [(miss.reason, miss.place, miss.function) for miss in report.misses] == [
        ("holds 3 values that are not finite", "small", "main")
    ]
    assert str(report.coverage[-1]) == "small fp16[4, 2]: left alone, 16 bytes: holds 3 values that are not finite"
    kinds = [op.op_type for op in operations(model.function()) if op.op_type.startswith("constexpr")]
    assert len(kinds) == 2


def test_what_is_left_alone_and_where() -> None:
    model = load(program())
    weights = weights_of(model)
    report = CompressionReport("halve")
    report.leave(weights["large"], NoMatch("for {} reasons", 2, at=weights["small"].places[0].var))
    report.leave(weights["large"], NoMatch("for none"))
    assert [(miss.reason, miss.place) for miss in report.misses] == [("for 2 reasons", "small"), ("for none", "large")]
    line = report.coverage[0]
    assert (line.before, line.after, line.reason, line.functions) == (32, 32, "for 2 reasons", ("main",))


def test_nothing_to_compress() -> None:
    model = load(program())
    totals, done = compress(list[Plan](), model, CompressionReport("halve"))
    assert (totals.weights, totals.worst, totals.snr, done) == (0, (inf, ""), inf, [])


def test_work_is_spread_in_order() -> None:
    def jobs() -> Iterator[Any]:
        yield from ((pow, (number, 2)) for number in range(5))

    assert list(spread("powers", jobs(), [1] * 5)) == [0, 1, 4, 9, 16]
    assert list(spread("powers", iter(()), [])) == []
    with joblib.parallel_config(backend="threading", n_jobs=1):
        assert list(spread("powers", jobs(), [1] * 5)) == [0, 1, 4, 9, 16]


def test_tensors_as_ops_take_them() -> None:
    model = load(program())
    function = model.function()
    anchor = next(op for op in operations(function) if op.name == "small")
    builder = Builder(anchor, value_names(function))
    array: Any = np.arange(6, dtype=np.int8)
    assert constant_of(builder, "data", array, (2, 3)).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert builder.built == []
    spool = Spool()
    slot = spool.add(np.array([0x21, 0x43, 0x65], np.uint8), "uint4", 6)
    spool.finish()
    packed = spool.flat(slot)
    assert isinstance(packed, Packed)
    made = constant_of(builder, "data", packed, (2, 3))
    assert (made.name, tuple(made.shape)) == ("small_data", (2, 3))
    assert packed_of(made) is not None
    assert constant(made).tolist() == [[1, 2, 3], [4, 5, 6]]


def test_what_stands_in_a_weights_place_has_its_name_and_uses() -> None:
    model = load(program())
    function = model.function()
    place = weights_of(model)["large"].places[0]
    user = place.var.child_ops[0]
    new: Var = Builder(place.op, value_names(function)).const(val=np.ones((4, 4), F16), name="other")
    put_in_place(place, new)
    model.program.validate()
    assert user.inputs["weight"] is new
    assert (new.name, new.op.name if new.op else "") == ("large", "large")
    assert [op.name for op in operations(function)].count("large") == 1


def compressed() -> Program:
    """A scaled table, a mask of numbers, a plain weight, and a compressed value that is an output as well."""
    rng = np.random.default_rng(0)
    indices: Any = rng.integers(0, 4, (4, 4)).astype(np.uint8).astype(types.nptype_from_builtin(types.uint2))
    entries: Any = np.array([-2, 1, 3, 5], np.int8).reshape(1, 1, 4, 1)
    scale: Any = np.array([1, 2, 3, 4], F16).reshape(4, 1)

    @mb.program(input_specs=[mb.TensorSpec((1, 4), types.fp16)], opset_version=target.iOS18)
    def built(x: Any) -> Any:
        table = mb.constexpr_lut_to_dense(indices=indices, lut=entries, name="table")
        held = mb.constexpr_blockwise_shift_scale(data=table, scale=scale, name="scaled")
        y = mb.linear(x=x, weight=held, name="first")
        plain = mb.const(val=np.ones((4, 4), F16), name="plain")
        other = mb.constexpr_blockwise_shift_scale(data=np.ones((4, 4), np.int8), scale=scale, name="given")
        return mb.linear(x=y, weight=plain, name="second"), mb.matmul(x=y, y=other, name="third"), other

    return built


def test_which_compressed_weights_there_are() -> None:
    model = load(compressed())
    assert [weight.name for weight in compressed_weights(model)] == ["scaled", "given"]
    assert [weight.name for weight in weights_again(model)] == ["scaled", "plain", "given"]
    weight = compressed_weights(model)[0]
    assert (weight.array.shape, weight.array.dtype, [place.function for place in weight.places]) == (
        (4, 4),
        np.float16,
        ["main"],
    )


def stored(op: Operation) -> int:
    """What numpy says of the constants that a weight is made of; two bits are a quarter of a byte."""
    return {"scaled": 4 + 4 + 8, "given": 16 + 8}[op.name]


def test_they_are_numbers_again() -> None:
    model = load(compressed())
    wanted = {weight.name: np.array(weight.array) for weight in compressed_weights(model)}
    sizes = {op.name: stored(op) for op in operations(model.function()) if op.name in wanted}
    report = Decompress().run(model)
    model.program.validate()
    assert isinstance(report, CompressionReport)
    assert (report.name, report.tried, report.applied) == ("decompress", 2, 2)
    assert report.notes == ["2 weights are 64 bytes as numbers"]
    assert [str(line) for line in report.coverage] == [
        f"{name} fp16[4, 4]: numbers, decoded from constexpr_blockwise_shift_scale, inf dB, {sizes[name]} -> 32 bytes"
        for name in ("scaled", "given")
    ]
    assert [(line.bits, line.snr) for line in report.coverage] == [(16, inf), (16, inf)]
    for op in operations(model.function()):
        assert not op.op_type.startswith("constexpr")
        if op.name in wanted:
            np.testing.assert_array_equal(constant(op.outputs[0]), wanted[op.name])
    assert model.function().outputs[2].name == "given"
    again = Decompress().run(model)
    assert (again.notes, again.tried) == ([], 0)


def test_a_weight_that_is_made_twice_is_decoded_once() -> None:
    """Of the same tensors with other unit axes; not of the same tensors with scales of another axis."""
    data: Any = np.arange(16, dtype=np.int8)
    scale: Any = np.arange(1, 5, dtype=F16)

    @mb.program(input_specs=[mb.TensorSpec((1, 4), types.fp16)], opset_version=target.iOS18)
    def built(x: Any) -> Any:
        shapes = [((4, 4), (4, 1)), ((4, 4, 1), (4, 1, 1)), ((4, 4), (1, 4)), ((1, 4, 4), (1, 4, 1))]
        held = [
            mb.constexpr_blockwise_shift_scale(data=data.reshape(one), scale=scale.reshape(other))
            for one, other in shapes
        ]
        y = mb.linear(x=x, weight=held[0])
        z = mb.conv(x=mb.expand_dims(x=x, axes=[2]), weight=held[1])
        return y, z, mb.linear(x=x, weight=held[2]), mb.matmul(x=mb.expand_dims(x=x, axes=[1]), y=held[3])

    found = compressed_weights(load(built))
    assert [len(weight.places) for weight in found] == [3, 1]
    np.testing.assert_array_equal(found[0].array, data.reshape(4, 4) * scale.reshape(4, 1))
    np.testing.assert_array_equal(found[1].array, data.reshape(4, 4) * scale.reshape(1, 4))


def test_numbers_beside_the_tensors_tell_weights_apart() -> None:
    data: Any = np.arange(16, dtype=np.int8).reshape(4, 4)

    @mb.program(input_specs=[mb.TensorSpec((1, 4), types.fp16)], opset_version=target.iOS17)
    def built(x: Any) -> Any:
        made = [
            mb.constexpr_affine_dequantize(
                quantized_data=data, scale=F16(2), zero_point=np.int8(zero), axis=np.int32(0)
            )
            for zero in (0, 1, 0)
        ]
        return tuple(mb.linear(x=x, weight=each) for each in made)

    found = compressed_weights(load(built))
    assert [len(weight.places) for weight in found] == [2, 1]
    np.testing.assert_array_equal(found[1].array, (data - 1.0) * 2)
    op = found[0].places[0].op
    assert decoded(op.inputs["quantized_data"]) is constant(op.inputs["quantized_data"])


def test_forms_of_two_results_and_old_shapes() -> None:
    mask: Any = np.array([[1, 0], [1, 1]], np.uint8)
    sparse: Any = mask.astype(types.nptype_from_builtin(types.uint1))

    @mb.program(input_specs=[mb.TensorSpec((1, 2), types.fp16)], opset_version=target.iOS18)
    def built(x: Any) -> Any:
        bits, values = mb.constexpr_sparse_blockwise_shift_scale(
            data_mask=sparse, nonzero_data=np.array([1, 2, 3], np.int8), scale=np.array([[2], [4]], F16)
        )
        held = mb.constexpr_sparse_to_dense(nonzero_data=values, mask=bits, name="held")
        return mb.linear(x=x, weight=held, name="out")

    (weight,) = compressed_weights(load(built))
    assert weight.array.tolist() == [[2, 0], [8, 12]]

    @mb.program(input_specs=[mb.TensorSpec((1, 4), types.fp16)], opset_version=target.iOS16)
    def old(x: Any) -> Any:
        held = mb.constexpr_lut_to_dense(
            indices=np.array([0b11100100, 0b00011011], np.uint8),
            lut=np.array([0, 1, 2, 3], F16),
            shape=np.array([2, 4], np.uint32),
            name="held",
        )
        return mb.linear(x=x, weight=held, name="out")

    (weight,) = compressed_weights(load(old))
    assert weight.array.tolist() == [[0, 1, 2, 3], [3, 2, 1, 0]]


OPTIONS: list[tuple[type[Palettize] | type[Quantize], dict[str, Any], str]] = [
    (Palettize, {"group_size": 0}, "group_size must be at least 1, not 0"),
    (Palettize, {"cluster_dim": 0}, "cluster_dim must be at least 1, not 0"),
    (
        Palettize,
        {"cluster_dim": 2, "per_channel_scale": True},
        "per_channel_scale is for tables of numbers, cluster_dim=1",
    ),
    (Palettize, {"cluster_dim": 2, "lut_dtype": "int8"}, "lut_dtype=int8 is for tables of numbers, cluster_dim=1"),
    (
        Palettize,
        {"cluster_dim": 2, "weighting": "activation", "calibration": "c"},
        "weighting is for tables of numbers, cluster_dim=1",
    ),
    *(
        (Palettize, given, "weighting=activation goes with calibration, the file of milopt.calibration's statistics")
        for given in ({"weighting": "activation"}, {"calibration": "c"})
    ),
    (Palettize, {"feedback": True}, "feedback needs weighting=activation, and a calibration with hessian=True"),
    (Quantize, {"block_size": 0}, "block_size must be at least 1, not 0"),
]


@pytest.mark.parametrize(("kind", "given", "message"), OPTIONS)
def test_options_that_can_not_be(kind: type[Palettize] | type[Quantize], given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        kind(**given)
    assert str(error.value) == message


def test_options_at_their_least() -> None:
    assert (Palettize(group_size=1, cluster_dim=1).group_size, Quantize(block_size=1).block_size) == (1, 1)
    assert Palettize(cluster_dim=2).cluster_dim == 2
    assert Palettize(weighting="activation", calibration="c", feedback=True).feedback

"""Compressed before or after other passes, alone or merged, half of it before: the same bytes, and the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milopt.interpreter import evaluate
from milopt.mil import Operation, Program, arguments, digest, is_constexpr, mb, operations, target, types
from milopt.multifunction import merge
from milopt.package import Model, load
from milopt.package.tensors import box_of
from milopt.package.weights import Packed
from milopt.passes.compressing import CompressionReport
from milopt.passes.compression import Palettize
from milopt.passes.quantization import Quantize
from milopt.pipeline import Pipeline

from .support import decoded_by_coremltools, linear_program, loaded_by_coremltools, weights

SPECS = (
    "palettize{bits=4}",
    "palettize{bits=6,granularity=tensor}",
    "palettize{bits=4,lut_dtype=int8,per_channel_scale=true}",
    "quantize",
    "quantize{dtype=uint8,granularity=channel,symmetric=false}",
)


def network(length: int = 4) -> Program:
    """Layers as they come out of a conversion: linear, layer_norm, and a residual."""
    first, second, third = weights((128, 64)), weights((64, 128), 1), weights((96, 64), 2)

    @mb.program(input_specs=[mb.TensorSpec((1, length, 64), types.fp16)], opset_version=target.iOS18)
    def program(x: Any) -> Any:
        inner = mb.gelu(x=mb.linear(x=x, weight=mb.const(val=first, name="up")), mode="EXACT")
        x = mb.add(x=x, y=mb.linear(x=inner, weight=mb.const(val=second, name="down")))
        x = mb.layer_norm(x=x, axes=[-1], gamma=np.ones(64, np.float16), epsilon=np.float16(1e-3))
        return mb.linear(x=x, weight=mb.const(val=third, name="out_weight"), name="out")

    return program


def stored(model: Model) -> dict[str, list[bytes]]:
    """By function, the bytes that compressed weights are made of, whatever their names and shapes."""
    return {name: sorted(_parts(function)) for name, function in model.functions.items()}


def _parts(function: Any) -> set[bytes]:
    ends = [op for op in operations(function) if is_constexpr(op.op_type)]
    return {_bytes(op) for each in ends for _, var in arguments(each) if (op := var.op) and op.op_type == "const"}


def _bytes(op: Operation) -> bytes:
    box: Any = box_of(op.outputs[0])
    array: Any = box.opened() if isinstance(box, Packed) else np.asarray(box)
    return b"" if array.size <= 4 and array.dtype.kind == "i" else digest(array)  # an axis may move


@pytest.mark.parametrize("others", ["linear-to-conv", "linear-to-conv,layout-bc1s"])
@pytest.mark.parametrize("spec", SPECS)
def test_before_or_after_other_passes(spec: str, others: str) -> None:
    made = [load(network()) for _ in range(2)]
    for model, passes in zip(made, (f"{spec},{others}", f"{others},{spec}"), strict=True):
        report = Pipeline.parse(passes).run(model)
        assert any(part.name in others and part.applied for part in report.parts)
        assert any(part.name in spec and part.applied == 3 for part in report.parts)
    assert stored(made[0]) == stored(made[1])
    assert len(stored(made[0])["main"]) >= 6


@pytest.mark.parametrize("spec", SPECS)
def test_before_or_after_functions_are_merged(spec: str, tmp_path: Path) -> None:
    alone = {"one": load(network(1)), "four": load(network(4))}
    for model in alone.values():
        Pipeline.parse(spec).run(model)
    first = merge(alone, default="one")
    second = merge({"one": load(network(1)), "four": load(network(4))}, default="one")
    report = Pipeline.parse(spec).run(second)
    assert report.parts[0].applied == 6
    assert stored(first) == stored(second)
    assert stored(first)["one"] == stored(first)["four"]
    sizes = [
        next(model.save(tmp_path / f"{at}.mlpackage").rglob("weight.bin")).stat().st_size
        for at, model in enumerate((first, second))
    ]
    assert sizes[0] == sizes[1] < sum(each.nbytes for each in (weights((128, 64)),) * 3)


@pytest.mark.parametrize("spec", ["palettize{bits=4}", "quantize", "budget{size=0.45}"])
def test_functions_of_which_some_weights_are_compressed_already(spec: str, tmp_path: Path) -> None:
    """The rest is compressed, in both functions; what was is what it was, also for coremltools."""
    model = merge({"decode": load(network(1)), "prefill": load(network(4))}, default="decode")
    Quantize(dtype="int8", granularity="channel", min_elements=8192).run(model)  # up and down
    before = stored(model)
    Pipeline.parse(f"{spec}").run(model)
    report = Pipeline.parse(spec).run(model).parts[0]
    assert isinstance(report, CompressionReport)
    assert not report  # again there is nothing to do
    model.program.validate()
    after = stored(model)
    assert set(before["decode"]) < set(after["decode"]) == set(after["prefill"])
    path = model.save(tmp_path / "m.mlpackage")
    read = load(path)
    for name, length in (("decode", 1), ("prefill", 4)):
        function = loaded_by_coremltools(path, name)
        compressed = [op for op in operations(function) if is_constexpr(op.op_type)]
        users = [use.op_type for op in compressed for use in op.outputs[0].child_ops]
        assert users.count("linear") == 3
        assert all(decoded_by_coremltools(op).size for op in compressed)
        x = np.random.default_rng(0).standard_normal((1, length, 64)).astype(np.float16)
        found = evaluate(read, {"x": x}, function=name, precision="float64")["out"]
        wanted = evaluate(load(network(length)), {"x": x}, precision="float64")["out"]
        assert 10 * np.log10(np.sum(wanted**2) / np.sum((found - wanted) ** 2)) > 12


def user_of(kind: str, outputs: int, inputs: int, opset: Any) -> Program:
    weight = weights((outputs, inputs))

    @mb.program(input_specs=[mb.TensorSpec((1, inputs, 1, 3), types.fp16)], opset_version=opset)
    def program(x: Any) -> Any:
        rows = mb.transpose(x=mb.reshape(x=x, shape=(1, inputs, 3)), perm=[0, 2, 1])
        if kind == "linear":
            return mb.linear(x=rows, weight=mb.const(val=weight, name="w"))
        if kind == "matmul":
            return mb.matmul(x=rows, y=mb.const(val=np.ascontiguousarray(weight.T), name="w"))
        if kind == "matmul transposed":
            return mb.matmul(x=rows, y=mb.const(val=weight, name="w"), transpose_y=True)
        if kind == "gather":
            ids = mb.mod(x=mb.cast(x=x, dtype="int32"), y=np.int32(outputs))
            return mb.gather(x=mb.const(val=weight, name="w"), indices=ids, axis=0)
        if kind == "conv":
            return mb.conv(x=x, weight=mb.const(val=np.reshape(weight, (outputs, inputs, 1, 1)), name="w"))
        turned: Any = np.ascontiguousarray(weight.T)
        return mb.conv_transpose(x=x, weight=mb.const(val=turned.reshape(inputs, outputs, 1, 1), name="w"))

    return program


@settings(max_examples=80, deadline=None)
@given(
    kind=st.sampled_from(["linear", "matmul", "matmul transposed", "gather", "conv", "conv_transpose"]),
    outputs=st.integers(1, 24),
    inputs=st.integers(1, 24),
    opset=st.sampled_from([target.iOS16, target.iOS17, target.iOS18]),
    data=st.data(),
)
def test_every_combination_is_compressed_or_has_a_reason(
    kind: str, outputs: int, inputs: int, opset: Any, data: st.DataObject
) -> None:
    """And what is compressed decodes, in coremltools, to the error that the report has."""
    axis = data.draw(st.sampled_from([None, 0, 1, -1, -2, 2, 5]))
    made: Any
    if data.draw(st.booleans()):
        vector = data.draw(st.sampled_from([1, 1, 2, 3]))
        made = Palettize(
            bits=data.draw(st.sampled_from([1, 2, 3, 4, 6, 8])),
            granularity=data.draw(st.sampled_from(["tensor", "grouped-channel"])),
            group_size=data.draw(st.integers(1, 30)),
            axis=axis,
            cluster_dim=vector,
            per_channel_scale=vector == 1 and data.draw(st.booleans()),
            lut_dtype=data.draw(st.sampled_from(["float", "int8"])) if vector == 1 else "float",
            min_elements=1,
        )
    else:
        made = Quantize(
            dtype=data.draw(st.sampled_from(["int4", "uint4", "int8", "uint8"])),
            granularity=data.draw(st.sampled_from(["tensor", "channel", "block"])),
            block_size=data.draw(st.integers(1, 30)),
            axis=axis,
            symmetric=data.draw(st.booleans()),
            min_elements=1,
        )
    model = load(user_of(kind, outputs, inputs, opset))
    report = made.run(model)
    model.program.validate()
    assert isinstance(report, CompressionReport)
    (line,) = [each for each in report.coverage if each.name == "w"]
    assert bool(line.reason) != bool(report.applied)
    if line.reason:
        return
    (op,) = [op for op in operations(model.function()) if op.name == "w"]
    original: Any = weights((outputs, inputs)).astype(np.float64)
    if kind in ("matmul", "conv_transpose"):
        original = original.T
    lost = float(np.sum((original.reshape(-1) - decoded_by_coremltools(op).reshape(-1)) ** 2))
    assert line.snr is not None
    # 1e-9: both sums are in float64, added up in another order
    expected = float("inf") if not lost else 10 * np.log10(np.sum(original**2) / lost)
    assert line.snr == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_a_vector_that_a_matmul_takes(tmp_path: Path) -> None:
    """One channel, whose inputs are all of it; calibrated too."""
    from milopt.calibration.calibrating import calibrate

    vector = weights((4096,))

    @mb.program(input_specs=[mb.TensorSpec((4096, 5), types.fp16)], opset_version=target.iOS18)
    def program(x: Any) -> Any:
        return mb.matmul(x=mb.const(val=vector, name="w"), y=x)

    x = np.random.default_rng(0).standard_normal((4096, 5)).astype(np.float16)
    calibrate(load(program), [{"x": x}]).save(tmp_path / "s")
    model = load(program)
    made = Palettize(bits=4, weighting="activation", calibration=str(tmp_path / "s"))
    report = made.run(model)
    assert isinstance(report, CompressionReport)
    assert report.coverage[0].form == "4 bits, a table"
    assert not any("no inputs" in note for note in report.notes)


def test_a_weight_that_is_used_both_ways_round(tmp_path: Path) -> None:
    """Its inputs have two axes: moments of each are kept apart, and none of them weighs its numbers."""
    from milopt.calibration.calibrating import calibrate
    from milopt.passes.uses import Layout

    weight = weights((64, 48))

    @mb.program(
        input_specs=[mb.TensorSpec((3, 48), types.fp16), mb.TensorSpec((7, 64), types.fp16)],
        opset_version=target.iOS18,
    )
    def program(x: Any, y: Any) -> Any:
        held = mb.const(val=weight, name="w")
        return mb.linear(x=x, weight=held), mb.matmul(x=y, y=held)

    rng = np.random.default_rng(0)
    given = {"x": rng.standard_normal((3, 48)).astype(np.float16), "y": rng.standard_normal((7, 64)).astype(np.float16)}
    found = calibrate(load(program), [given], hessian=True)
    one, other = found.of(weight, Layout(64, 48, 1)), found.of(weight, Layout(1, 64, 48))
    assert one is not None
    assert other is not None
    assert (one.count, other.count, one.products.shape, other.products.shape) == (3, 7, (48, 48), (64, 64))
    found.save(tmp_path / "s")
    report = Palettize(
        bits=4, granularity="tensor", weighting="activation", feedback=True, calibration=str(tmp_path / "s")
    ).run(load(program))
    assert report.applied == 1
    assert "no inputs of w were seen: every number of it counts alike" in report.notes
    report = Quantize().run(load(linear_program(weight)))
    assert report.applied == 1

"""What is written for a program that came from no package: the same as coremltools writes."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil.mil import mil_list
from coremltools.models import MLModel

from milopt.mil import Program, Target, mb, operations, types
from milopt.package import load
from milopt.package.carried import Carried
from milopt.package.writing import write_program
from milopt.text import text

from .support import counter, linear, loop, program_of, spec_of, two_functions, weight

FILE = "weights/weight.bin"


def array_of(dtype: str, *shape: int) -> Any:
    """Random elements of that type; below a byte, of the whole range."""
    rng = np.random.default_rng(1)
    if dtype.startswith(("fp", "bool")):
        return rng.standard_normal(shape).astype({"fp16": np.float16, "fp32": np.float32}[dtype])
    bits = int(dtype.lstrip("uint"))
    low, high = (0, 1 << bits) if dtype.startswith("u") else (-(1 << bits - 1), 1 << bits - 1)
    return rng.integers(low, high, shape).astype(types.nptype_from_builtin(types.string_to_builtin(dtype)))


def constants() -> Program:
    """Every type, in the file and in the specification."""

    def build(x: Any) -> Any:
        values = [mb.cast(x=mb.const(val=array_of(t, n)), dtype="fp32")
                  for t in ("uint8", "int8", "int16", "uint16", "int32", "fp16", "fp32") for n in (5, 16)]  # fmt: skip
        total = mb.add(x=x, y=mb.reduce_sum(x=mb.concat(values=values, axis=0)))
        masked = mb.select(cond=np.array([True, False] * 2), a=total, b=x)
        return mb.reshape(x=masked, shape=(2, 2), name="y")

    inputs = [mb.TensorSpec(shape=(4,), dtype=types.fp32)]
    return program_of(mb.program(input_specs=inputs, opset_version=Target.iOS18)(build))


def compressed_ios16() -> Program:
    def build(x: Any) -> Any:
        lut = mb.constexpr_lut_to_dense(
            lut=weight(16), indices=array_of("uint8", 64), shape=np.array([8, 16], np.uint32), name="lut"
        )
        affine = mb.constexpr_affine_dequantize(
            quantized_data=array_of("int8", 8, 16), zero_point=np.int8(1), scale=np.float16(0.5), axis=0, name="affine"
        )
        sparse = mb.constexpr_sparse_to_dense(
            nonzero_data=weight(64), mask=np.full(16, 0xF0, np.uint8), shape=np.array([8, 16], np.uint32), name="sparse"
        )
        parts = [mb.linear(x=x, weight=each) for each in (lut, affine, sparse)]
        return mb.concat(values=parts, axis=1, name="y")

    inputs = [mb.TensorSpec(shape=(1, 16), dtype=types.fp16)]
    return program_of(mb.program(input_specs=inputs, opset_version=Target.iOS16)(build))


def compressed_ios18() -> Program:
    def build(x: Any) -> Any:
        parts: list[Any] = []
        for bits in (1, 2, 3, 4, 6, 8):
            lut = weight(1, 1, 1 << bits, 1)
            indices = array_of(f"uint{bits}", 9, 16)
            parts.append(mb.linear(x=x, weight=mb.constexpr_lut_to_dense(indices=indices, lut=lut)))
        data, scale = array_of("int4", 9, 16), weight(9, 1) + 2
        parts.append(mb.linear(x=x, weight=mb.constexpr_blockwise_shift_scale(data=data, scale=scale)))
        inner = mb.constexpr_blockwise_shift_scale(
            data=array_of("int8", 1, 1, 16, 1), scale=np.full((1, 1, 1, 1), np.float16(0.1))
        )
        parts.append(
            mb.linear(x=x, weight=mb.constexpr_lut_to_dense(indices=array_of("uint4", 9, 16)[::-1].copy(), lut=inner))
        )
        return mb.concat(values=parts, axis=1, name="y")

    inputs = [mb.TensorSpec(shape=(1, 16), dtype=types.fp16)]
    return program_of(mb.program(input_specs=inputs, opset_version=Target.iOS18)(build))


def classifier() -> Program:
    def build(x: Any) -> Any:
        classes = mb.const(val=mil_list([np.int64(3), np.int64(5)]))
        label, probabilities = mb.classify(probabilities=mb.softmax(x=x), classes=classes)
        label.name, probabilities.name = "label", "probabilities"
        return label, probabilities

    inputs = [mb.TensorSpec(shape=(2,), dtype=types.fp32)]
    return program_of(mb.program(input_specs=inputs, opset_version=Target.iOS16)(build))


def lists() -> Program:
    def build(x: Any) -> Any:
        ls = mb.make_list(init_length=2, dynamic_length=True, elem_shape=(4,), dtype="fp32")
        more = mb.expand_dims(x=x, axes=[0])
        ls = mb.list_scatter(ls=mb.list_write(ls=ls, index=0, value=x), indices=[1], value=more)
        return mb.list_read(ls=ls, index=1, name="y")

    inputs = [mb.TensorSpec(shape=(4,), dtype=types.fp32)]
    return program_of(mb.program(input_specs=inputs, opset_version=Target.iOS16)(build))


def literals() -> Program:
    """coremltools writes the masks of ``reshape_like`` twice: inside it, and as constants that nothing uses."""

    def build(x: Any) -> Any:
        other = mb.relu(x=x)
        return mb.reshape_like(x=x, ref_tensors=(other,), begins=[0], ends=[1], end_masks=[False], name="y")

    inputs = [mb.TensorSpec(shape=(4,), dtype=types.fp32)]
    return program_of(mb.program(input_specs=inputs, opset_version=Target.iOS16)(build))


def branches() -> Program:
    def build(x: Any) -> Any:
        chosen = mb.cond(
            pred=mb.greater(x=mb.reduce_sum(x=x), y=np.float32(0)),
            _true_fn=lambda: mb.mul(x=x, y=np.float32(2)),
            _false_fn=lambda: mb.add(x=x, y=array_of("fp32", 12)),
        )
        return mb.identity(x=chosen, name="y")

    inputs = [mb.TensorSpec(shape=(12,), dtype=types.fp32)]
    return program_of(mb.program(input_specs=inputs, opset_version=Target.iOS16)(build))


PROGRAMS = (linear, counter, loop, constants, compressed_ios16, compressed_ios18, classifier, lists, branches)


def written_by_coremltools(program: Program, version: int, folder: Path) -> Any:
    exporter: Any = importlib.import_module("coremltools.converters.mil.backend.mil.load").MILProtoExporter
    (folder / "weights").mkdir(parents=True)
    made = exporter(program, str(folder / "weights"), version)
    proto = made.export()
    made.blob_writers.clear()  # closes the files
    return proto


@pytest.mark.parametrize("build", PROGRAMS)
def test_as_coremltools_writes_it(build: Any, tmp_path: Path) -> None:
    program = build()
    version = int(program.functions["main"].opset_version)
    (tmp_path / "ours").mkdir()
    ours, paths = write_program(program, version, Carried(), tmp_path / "ours")
    theirs = written_by_coremltools(program, version, tmp_path / "theirs")
    assert ours == theirs
    file = tmp_path / "theirs" / FILE
    assert paths == ((FILE,) if file.exists() else ())
    assert not paths or (tmp_path / "ours" / FILE).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("build", [*PROGRAMS, literals, two_functions])
def test_read_again(build: Any, tmp_path: Path) -> None:
    program = build()
    package = load(program).save(tmp_path / "a.mlpackage")
    again = load(package)
    assert text(again, weights="hash") == text(program, weights="hash")
    assert spec_of(again.save(tmp_path / "b.mlpackage")) == spec_of(package)
    again.program.validate()
    kinds = [
        (type(op).__name__, [var.sym_type.__type_info__() for var in op.outputs]) for op in operations(again.function())
    ]
    expected = [(type(op).__name__, [var.sym_type.__type_info__() for var in op.outputs])
                for op in operations(load(program).function())]  # fmt: skip
    # literals follow the op they belong to, not the order of definition
    assert sorted(map(str, kinds)) == sorted(map(str, expected))


def test_conversion_of_a_torch_model(tmp_path: Path) -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 8, 3, padding=1)
            self.norm = torch.nn.BatchNorm2d(8)
            self.head = torch.nn.Linear(8 * 16, 10)

        def forward(self, x: Any) -> Any:
            x = torch.nn.functional.max_pool2d(self.norm(self.conv(x)).relu(), 2)
            return torch.softmax(self.head(x.flatten(1)), -1)

    traced: Any = torch.jit.trace(Net().eval(), torch.zeros(1, 3, 8, 8))  # type: ignore[no-untyped-call]
    mlmodel: Any = ct.convert(
        traced,
        inputs=[ct.TensorType("x", shape=(1, 3, 8, 8))],
        minimum_deployment_target=Target.iOS18,
        skip_model_load=True,
    )
    theirs = mlmodel.get_spec().mlProgram
    ours, _ = write_program(mlmodel._mil_program, 9, Carried(), tmp_path)
    theirs.ClearField("attributes")  # buildInfo: when and with what it was converted
    assert ours == theirs
    assert (tmp_path / FILE).read_bytes() == Path(mlmodel.weights_dir, "weight.bin").read_bytes()
    package = load(mlmodel).save(tmp_path / "a.mlpackage")
    expected = mlmodel.get_spec()
    assert spec_of(package) == expected
    assert MLModel(str(package), skip_model_load=True).get_spec() == expected

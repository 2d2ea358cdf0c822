"""Programs with weights, and what is asked of them after palettizing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np

from milopt.mil import Function, Operation, Program, mb, operations, target, types
from milopt.package import Model, load
from milopt.passes.compressing import CompressionReport
from milopt.passes.compression import Palettize
from milopt.pipeline import Pass
from milopt.reports import Report
from milopt.text import text

Array = Any


def weights(shape: tuple[int, ...], seed: int = 0, dtype: Any = np.float16) -> Array:
    """Normal weights, spread over a factor of 30 along axis 0: a table for a few channels fits them far better."""
    rng = np.random.default_rng(seed)
    scale = np.reshape(np.geomspace(0.01, 0.3, shape[0]), (-1, *[1] * (len(shape) - 1)))
    made: Array = (rng.standard_normal(shape) * scale).astype(dtype)
    return made


def linear_program(weight: Array, *, opset: Any = target.iOS18, length: int = 3) -> Program:
    kind = types.fp16 if weight.dtype == np.float16 else types.fp32

    @mb.program(input_specs=[mb.TensorSpec((1, length, weight.shape[1]), kind)], opset_version=opset)
    def program(x: Any) -> Any:
        return mb.linear(x=x, weight=mb.const(val=weight, name="w"), name="out")

    return program


def conv_program(weight: Array, *, opset: Any = target.iOS18) -> Program:
    kind = types.fp16 if weight.dtype == np.float16 else types.fp32

    @mb.program(input_specs=[mb.TensorSpec((1, weight.shape[1], 1, 3), kind)], opset_version=opset)
    def program(x: Any) -> Any:
        return mb.conv(x=x, weight=mb.const(val=weight, name="w"), name="out")

    return program


def two_functions(first: Program, second: Program) -> Model:
    """One model of both programs' ``main``, as ``decode`` (the default) and ``prefill``."""
    both = Program()
    both.add_function("decode", first.functions["main"])
    both.add_function("prefill", second.functions["main"])
    both.default_function_name = "decode"
    both.export_as_multifunction = True
    return load(both)


def palettized(source: Program | Model, **options: Any) -> tuple[Model, Report]:
    model = source if isinstance(source, Model) else load(source)
    report = Palettize(**options).run(model)
    model.program.validate()
    return model, report


def tables(function: Function) -> list[Operation]:
    return [op for op in operations(function) if op.op_type == "constexpr_lut_to_dense"]


def decoded_by_coremltools(op: Operation) -> Array:
    """What coremltools' own decompression makes of a constexpr op.

    Its method for tables knows none that another op makes; its function for them is told what that op makes.
    """
    if op.op_type == "constexpr_lut_to_dense" and op.lut.op.op_type != "const":
        return op.decompress(op.indices.val, decoded_by_coremltools(op.lut.op), None)
    if op.op_type == "constexpr_blockwise_shift_scale" and op.data.op.op_type != "const":
        return op.decompress(decoded_by_coremltools(op.data.op), op.scale.val, None)
    return op.materialized_val_inference()


def loaded_by_coremltools(path: Path, function: str = "main") -> Function:
    """The function as stock coremltools reads it from the package."""
    from coremltools.converters.mil.frontend.milproto.load import load as read

    model = ct.models.MLModel(str(path), skip_model_load=True)
    program: Program = read(model.get_spec(), model.get_spec().specificationVersion, model.weights_dir)
    return program.functions[function]


def compressed(made: Pass, source: Program | Model) -> tuple[Model, CompressionReport]:
    """The model that a pass compressed, and its report."""
    model = source if isinstance(source, Model) else load(source)
    report = made.run(model)
    if len({function.opset_version for function in model.functions.values()}) == 1:  # PyMIL wants no others
        model.program.validate()
    assert isinstance(report, CompressionReport)
    return model, report


def left_alone(made: Pass, source: Program | Model) -> CompressionReport:
    """The report of a pass that has a reason for every weight; the program is as it was."""
    model = source if isinstance(source, Model) else load(source)
    before = text(model, weights="hash")
    _, report = compressed(made, model)
    assert (report.applied, text(model, weights="hash")) == (0, before)
    assert [line.reason for line in report.coverage] == [miss.reason for miss in report.misses]
    return report

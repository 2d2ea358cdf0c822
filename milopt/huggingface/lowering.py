"""A trace into a milopt model, through coremltools' converter."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import coremltools as ct
import numpy as np

from milopt.errors import MiloptError
from milopt.huggingface.errors import ConversionError
from milopt.huggingface.features import Shape, Signature, Sizes
from milopt.huggingface.repairs import coremltools_repaired
from milopt.huggingface.tracing import Traced
from milopt.mil import Block, Operation, arguments
from milopt.package import Model
from milopt.package.loading import load_with

if TYPE_CHECKING:
    from milopt.huggingface.attaching import Attached
    from milopt.huggingface.standins import View

__all__ = ["Precision", "lower"]

Precision: TypeAlias = Literal["float16", "default-float16", "float32"]

# Token ids are never negative, and ids of a large vocabulary don't fit int16: both passes only add ops.
_NOT_WANTED = {"common::guard_negative_gather_indices", "common::add_int16_cast"}


def lower(traced: Traced, precision: Precision = "float16", attached: Attached | None = None) -> Model:
    """Convert ``traced`` for iOS 18 into a model with one function, ``main``.

    ``float16``: fp16 throughout, inputs and outputs included, except that the angles of rotary positions stay fp32 (in
    fp16 they are off by 0.19 rad at position 2048, and milopt's ``rope-table`` needs them exact). Norms are fp16 and
    want ``fp16-safe-norm``. ``default-float16``: what coremltools does by itself, with the same inputs and outputs.
    ``float32``: nothing is rounded.

    Weights for which there are stand-ins are attached when all else is done. ``attached`` are those that another
    function of the model has got; the same weights become the same arrays.

    On the way, when nothing is rounded yet, the program runs in milopt's interpreter on the samples of the trace:
    :class:`~milopt.huggingface.errors.SelfCheckError` when it differs, with the module in which that begins.
    :class:`~milopt.huggingface.errors.ConversionError` names the op and the module that can't be converted.
    """
    if precision not in ("float16", "default-float16", "float32"):
        raise ConversionError(f"unknown precision {precision!r}: float16, default-float16 or float32")
    from milopt.huggingface.attaching import Attached, Unattached
    from milopt.huggingface.standins import realize

    try:
        return _lowered(traced, precision, attached or Attached())
    except Unattached:
        # something was computed from a stand-in: the same again with the weights in memory
        realize(traced.wrapper)
        realize(traced.module)
        return _lowered(traced, precision, None)


def _lowered(traced: Traced, precision: Precision, attached: Attached | None) -> Model:
    """``attached=None`` where there are no stand-ins."""
    from milopt.huggingface.attaching import Unattached
    from milopt.huggingface.observing import observed

    floats = np.float32 if precision == "float32" else np.float16
    pipeline = ct.PassPipeline(list(ct.PassPipeline.DEFAULT.passes), "milopt")
    if precision != "default-float16":
        pipeline.remove_passes(_NOT_WANTED)
    signature, sizes = traced.interface, dict[str, Any]()
    # By itself coremltools keeps its package until the process ends; loaded weights outlive their file.
    with (
        coremltools_repaired(),
        TemporaryDirectory(prefix="milopt-") as folder,
        observed(traced, pipeline, stand_ins=attached is not None),
        _standing_in(attached is not None) as views,
    ):
        try:
            converted = ct.convert(
                traced.module,
                inputs=[
                    ct.TensorType(name, _sized(each.shape, sizes), dtype=np.int32 if each.integer else floats)
                    for name, each in signature.inputs.items()
                ],
                outputs=[ct.TensorType(name, dtype=floats) for name in signature.outputs],
                convert_to="mlprogram",
                minimum_deployment_target=ct.target.iOS18,
                compute_precision=_compute_precision(precision),
                pass_pipeline=pipeline,
                skip_model_load=True,
                package_dir=f"{folder}/main.mlpackage",
            )
        except (MiloptError, Unattached):
            raise
        except Exception as problem:  # coremltools raises what its converters happen to meet
            reason = next(iter(str(problem).strip().splitlines()), "")
            if "[MIL FileWriter]" in reason:  # its weights, which it writes beside its specification
                raise ConversionError(
                    f"coremltools can't write its weights to {folder}: is the disk full?"
                ) from problem
            raise ConversionError(
                f"coremltools can't convert {type(traced.wrapper.model).__name__}: {type(problem).__name__}: {reason}"
            ) from problem
        _describe(converted, signature)
        return load_with(converted, attached.attach(views) if attached is not None else {})


def _standing_in(stand_ins: bool) -> AbstractContextManager[dict[int, View]]:
    from milopt.huggingface.attaching import standing_in

    return standing_in() if stand_ins else nullcontext({})


def _sized(shape: Shape, sizes: dict[str, Any]) -> Any:
    """A shape as coremltools takes it. Inputs of one flexible size share one object, which makes it one symbol."""
    if all(isinstance(size, int) for size in shape):
        return shape
    return ct.Shape(tuple(size if isinstance(size, int) else _range(size, sizes) for size in shape))


def _range(size: Sizes, sizes: dict[str, Any]) -> Any:
    if size.name not in sizes:
        # a symbol's own name would be global to the process, and taken at the second conversion
        sizes[size.name] = ct.RangeDim(size.lower, size.upper, default=size.usual)
    return sizes[size.name]


def _compute_precision(precision: Precision) -> Any:
    if precision == "float32":
        return ct.precision.FLOAT32
    if precision == "default-float16":
        return ct.precision.FLOAT16
    return ct.transform.FP16ComputePrecision(op_selector=_AnglesStay())


class _AnglesStay:
    """coremltools' op selector: false for cosines, sines and what computes their angles, which so stay fp32."""

    def __init__(self) -> None:
        self._block: Block | None = None
        self._angles: set[Operation] = set()

    def __call__(self, op: Operation) -> bool:
        # coremltools visits a block's ops in order; those found here are the ones it leaves as they are
        if op.enclosing_block is not self._block:
            self._block = op.enclosing_block
            self._angles = _producers(each for each in self._block.operations if each.op_type in ("cos", "sin"))
        return op not in self._angles


def _producers(ops: Iterable[Operation]) -> set[Operation]:
    """``ops`` and every op their inputs are computed by."""
    found: set[Operation] = set()
    waiting = list(ops)
    while waiting:
        if (op := waiting.pop()) not in found:
            found.add(op)
            waiting.extend(value.op for _, value in arguments(op) if value.op is not None)
    return found


def _describe(converted: Any, signature: Signature) -> None:
    features = {**signature.inputs, **signature.outputs}
    for descriptions in (converted.input_description, converted.output_description):
        for name in descriptions:
            descriptions[name] = features[name].text

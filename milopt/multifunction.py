"""Several models of the same weights as the functions of one model, and a function as a model of its own."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from milopt.errors import MiloptError
from milopt.mil import Operation, Program, constant, digest, dtype_name, operations, shape_of
from milopt.package import Model
from milopt.package.carried import Carried
from milopt.package.describing import section_of
from milopt.package.making import hold
from milopt.package.weights import Packed, packed_of
from milopt.signature import METADATA_KEY, CacheSignature

__all__ = ["extract", "merge", "share_weights"]

# Below this, finding an equal array costs more than it saves; Core ML stores such constants in the specification.
_WORTH_SHARING = 64
# What a description says of a classifier's outputs.
_CLASSES = ("predictedFeatureName", "predictedProbabilitiesName")


def merge(models: Mapping[str, Model], *, default: str) -> Model:
    """One model whose function ``name`` is the default function of ``models[name]``.

    Constants with the same values, type and shape become one array, within and across the functions. Texts, metadata
    and attachments are the default function's, completed from the others. The models given are used up: their
    functions now belong to the result. :class:`~milopt.errors.MiloptError` for opset versions that differ.
    """
    if default not in models:
        raise MiloptError(f"the default function {default!r} is not among: {', '.join(models) or 'none'}")
    opsets = {name: model.function().opset_version for name, model in models.items()}
    if len(set(opsets.values())) > 1:
        raise MiloptError(
            f"functions of one model need one opset: {', '.join(f'{k} has {v}' for k, v in opsets.items())}"
        )

    program = Program()
    for name, model in models.items():
        program.add_function(name, model.function())
    program.default_function_name = default
    program.export_as_multifunction = len(models) > 1
    share_weights(program)

    first = models[default]
    merged = Model(
        program,
        max(model.spec_version for model in models.values()),
        default,
        author=first.author,
        license=first.license,
        version=first.version,
        short_description=first.short_description,
        carried=_carried(models, default),
    )
    for model in (*models.values(), first):
        merged.metadata.update(model.metadata)
        merged.attachments.update(model.attachments)
    for name, model in models.items():
        _copy_texts(model, merged, name)
    return merged


def extract(model: Model, function: str, *, name: str = "main") -> Model:
    """A model of one function of ``model``, under the name ``name``; ``model`` stays as it is, weights are shared.

    Texts, metadata and attachments come along, but not the list of query lengths. A model whose one function is called
    ``main`` is one that systems before iOS 18 read, if its ops allow it. :class:`~milopt.errors.MiloptError` for an
    unknown function.
    """
    model.function(function)
    alone = model.clone()
    graph = alone.program.functions[function]
    alone.program.functions = {name: graph}
    alone.program.default_function_name = alone.default_function = name
    alone.program.export_as_multifunction = name != "main"
    alone.metadata.pop("milopt.query_lengths", None)
    if alone.metadata.pop("milopt.contexts", None) is not None:
        _own_context(alone)
    attributes = model.carried.function_attributes
    alone.carried.function_attributes = {name: attributes[function]} if function in attributes else {}
    alone.description = _alone(model, function, name)
    return alone


def _own_context(alone: Model) -> None:
    """Of functions for several contexts the metadata tell of the longest: here is what this one's masks say."""
    signature = CacheSignature.from_metadata(alone.metadata)
    if signature is None:
        return
    inputs = alone.function().inputs
    columns = [shape_of(inputs[name])[-1] for name in signature.masks if name in inputs]
    if columns and all(isinstance(each, (int, np.integer)) for each in columns):
        context = int(max(columns))
        alone.metadata["milopt.context"] = str(context)
        alone.metadata[METADATA_KEY] = replace(signature, context=context).to_json()


def _alone(model: Model, function: str, name: str) -> Any:
    """The description of a model that has no other function."""
    section = section_of(model, function)
    if model.description is None or section is None:
        return None
    description = copy.deepcopy(model.description)
    for field in ("input", "output", "state", "functions", "defaultFunctionName", *_CLASSES):
        description.ClearField(field)
    place = description if name == "main" else description.functions.add(name=name)
    for field in ("input", "output", "state"):
        getattr(place, field).extend(getattr(section, field))
    for field in _CLASSES:
        setattr(place, field, getattr(section, field))
    return description


def share_weights(program: Program) -> int:
    """Make constants that are equal byte for byte one array in memory; the bytes that are no longer needed."""
    saved = 0
    known: dict[tuple[str, str, tuple[int, ...], bytes], np.ndarray[Any, Any]] = {}
    boxes: dict[tuple[str, tuple[int, ...], bytes], Packed] = {}
    for function in program.functions.values():
        for op in operations(function):
            if (box := _packed(op)) is not None:
                saved += _share_packed(op, box, boxes)
                continue
            array = _weight(op)
            if array is None:
                continue
            # PyMIL tells its sub-byte types, which fill whole bytes in numpy, by the dtype's metadata
            first = known.setdefault(
                (array.dtype.str, str(array.dtype.metadata), array.shape, digest(array, 32)), array
            )
            if first is not array:
                saved += 0 if np.shares_memory(first, array) else array.nbytes
                _set_value(op, first)
    return saved


def _packed(op: Operation) -> Packed | None:
    """The box of elements of less than a byte, which stay packed."""
    box = packed_of(op.outputs[0]) if op.op_type == "const" else None
    return None if box is None or box.piece is None else box


def _share_packed(op: Operation, box: Packed, known: dict[tuple[str, tuple[int, ...], bytes], Packed]) -> int:
    """Let the constant hold the box with these elements that came first; the bytes saved."""
    assert box.piece is not None
    first = known.setdefault((dtype_name(op.outputs[0]), box.shape, digest(box.piece.view(), 32)), box)
    if first.piece is None or first.piece.key == box.piece.key:
        return 0
    hold(op.outputs[0], first.reshape(*first.shape))
    return box.piece.size


def _weight(op: Operation) -> np.ndarray[Any, Any] | None:
    """The array of a constant that is worth sharing."""
    value: Any = constant(op.outputs[0]) if op.op_type == "const" else None
    array: Any = value if hasattr(value, "nbytes") else np.empty(0)
    return array if array.ndim and array.nbytes >= _WORTH_SHARING else None


def _set_value(op: Operation, array: np.ndarray[Any, Any]) -> None:
    # PyMIL holds a constant's value twice: as the op's input and as its output's inferred value.
    variables: tuple[Any, ...] = (op.val, op.outputs[0])
    for var in variables:
        var._sym_val.val = array


def _carried(models: Mapping[str, Model], default: str) -> Carried:
    first = models[default].carried
    attributes = {
        name: model.carried.function_attributes[model.default_function]
        for name, model in models.items()
        if model.default_function in model.carried.function_attributes
    }
    return Carried(items=dict(first.items), doc=first.doc, attributes=first.attributes, function_attributes=attributes)


def _copy_texts(model: Model, merged: Model, name: str) -> None:
    function = merged.function(name)
    for feature in (*function.inputs, *(output.name for output in function.outputs)):
        if text := model.text_of(None, feature):
            merged.describe(name, feature, text)

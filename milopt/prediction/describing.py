"""From the model's description, and where it says nothing from the program, to what a function takes and gives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from coremltools.converters.mil import input_types
from coremltools.proto import FeatureTypes_pb2

from milopt import mil
from milopt.interpreter.values import ValueInfo, info_of
from milopt.package import Model
from milopt.package.features import new_feature
from milopt.package.fitting import fits
from milopt.prediction.arrays import ArrayInput, ArrayOutput, Bounds, Shapes
from milopt.prediction.images import ImageInput, ImageOutput
from milopt.prediction.labels import LabelOutput, ProbabilitiesOutput
from milopt.prediction.ports import Input, Output

__all__ = ["inputs_of", "outputs_of"]

_ARRAY = FeatureTypes_pb2.ArrayFeatureType
_IMAGE = FeatureTypes_pb2.ImageFeatureType


def inputs_of(model: Model, function: str) -> dict[str, Input]:
    """The inputs of a function by name, in the description's order; a description that no longer fits is passed over.

    Whoever changes the program of a model changes its description only when the model is saved.
    """
    graph = model.functions[function]
    values = {var.name: var for var in graph.inputs.values() if not mil.is_state(var)}
    declared = {each.name: each for each in graph.input_types}
    features = _features(model, function, "input", values, declared)
    return {name: _input(values[name], feature) for name, feature in features.items()}


def outputs_of(model: Model, function: str) -> dict[str, Output]:
    graph = model.functions[function]
    values = {var.name: var for var in graph.outputs}
    declared = dict(zip(values, graph.output_types or (), strict=False))
    features = _features(model, function, "output", values, declared)
    return {name: _output(values[name], feature) for name, feature in features.items()}


def _features(
    model: Model, function: str, part: str, values: Mapping[str, mil.Var], declared: Mapping[str, Any]
) -> dict[str, Any]:
    """The ``FeatureDescription`` of each value; None for an array that isn't described, or not as it is now."""
    known = {each.name: each for each in _described(model, function, part)}
    found: dict[str, Any] = {}
    for name in [*(name for name in known if name in values), *(name for name in values if name not in known)]:
        feature, var = known.get(name), values[name]
        if feature is not None and fits(feature, var):
            found[name] = feature
        elif isinstance(declared.get(name), input_types.ImageType):
            found[name] = new_feature(var, feature, declared[name], model.spec_version, output=part == "output")
        else:
            found[name] = None
    return found


def _described(model: Model, function: str, part: str) -> Iterable[Any]:
    description = model.description
    if description is None:
        return ()
    if not description.functions:
        return getattr(description, part) if function == model.default_function else ()
    return next((getattr(each, part) for each in description.functions if each.name == function), ())


def _input(var: mil.Var, feature: Any) -> Input:
    info = info_of(var)
    rank = len(info.shape or ())
    if feature is None:
        return ArrayInput(info.name, info.dtype, rank, _declared_shapes(info))
    optional = bool(feature.type.isOptional)
    if feature.type.WhichOneof("Type") == "imageType":
        image = feature.type.imageType
        sizes = [(each.height, each.width) for each in image.enumeratedSizes.sizes] or [(image.height, image.width)]
        bounds: tuple[Bounds, ...] = ()
        if image.HasField("imageSizeRange"):
            bounds = _bounds((image.imageSizeRange.heightRange, image.imageSizeRange.widthRange))
        return ImageInput(info.name, _colors(image), rank, tuple(sizes), bounds, optional)
    array = feature.type.multiArrayType
    held = array.WhichOneof("defaultOptionalValue")
    fill = float(getattr(array, held)) if held else 0.0
    return ArrayInput(info.name, info.dtype, rank, _shapes(array, info), optional, fill)


def _shapes(array: Any, info: ValueInfo) -> Shapes:
    enumerated = tuple(tuple(map(int, each.shape)) for each in array.enumeratedShapes.shapes)
    default = tuple(map(int, array.shape))
    if array.shapeRange.sizeRanges:
        bounds = _bounds(array.shapeRange.sizeRanges)
    elif default:
        bounds = tuple((size, size) for size in default)
    else:
        return _declared_shapes(info)
    names = tuple(dim if isinstance(dim, str) else "" for dim in info.shape or ())
    return Shapes(default, bounds, enumerated, names)


def _bounds(ranges: Iterable[Any]) -> tuple[Bounds, ...]:
    """An upper bound of -1 is none."""
    return tuple((int(each.lowerBound), None if each.upperBound < 0 else int(each.upperBound)) for each in ranges)


def _declared_shapes(info: ValueInfo) -> Shapes:
    dims = info.shape or (1,)  # a number is given as one element, as in descriptions
    names = tuple(dim if isinstance(dim, str) else "" for dim in dims)
    bounds = tuple((0, None) if isinstance(dim, str) else (dim, dim) for dim in dims)
    return Shapes(tuple(1 if isinstance(dim, str) else dim for dim in dims), bounds, (), names)


def _output(var: mil.Var, feature: Any) -> Output:
    if mil.types.is_str(var.sym_type) or _is_label(var):
        return LabelOutput(var.name)
    if mil.types.is_dict(var.sym_type):
        return ProbabilitiesOutput(var.name, _classes(var))
    if feature is not None and feature.type.WhichOneof("Type") == "imageType":
        return ImageOutput(var.name, _colors(feature.type.imageType))
    double = feature is not None and feature.type.multiArrayType.dataType == _ARRAY.DOUBLE
    return ArrayOutput(var.name, double)


def _is_label(var: mil.Var) -> bool:
    return var.op is not None and var.op.op_type == "classify" and not mil.types.is_dict(var.sym_type)


def _classes(var: mil.Var) -> tuple[str | int, ...]:
    assert var.op is not None
    labels: Any = var.op.inputs["classes"].val
    return tuple(each if isinstance(each, str) else int(each) for each in getattr(labels, "ls", labels))


def _colors(image: Any) -> str:
    return str(_IMAGE.ColorSpace.Name(image.colorSpace))

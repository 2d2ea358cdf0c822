"""Whether the description of an input, output or state still fits the program's value."""

from __future__ import annotations

from typing import Any

from coremltools.proto import FeatureTypes_pb2

from milopt.mil import Target, Var, dtype_name, is_state, is_symbolic, shape_of, types

__all__ = ["ARRAYS", "fits", "is_array"]

_ARRAY = FeatureTypes_pb2.ArrayFeatureType
_IMAGE = FeatureTypes_pb2.ImageFeatureType
_CHANNELS = {_IMAGE.GRAYSCALE: 1, _IMAGE.GRAYSCALE_FLOAT16: 1, _IMAGE.RGB: 3, _IMAGE.BGR: 3}

# element type -> (multi-array type, first system that takes it as an input or output); coremltools 9.0,
# _converters_entry.py
ARRAYS: dict[str, tuple[int, Target]] = {
    "fp32": (_ARRAY.FLOAT32, Target.iOS15),
    "int32": (_ARRAY.INT32, Target.iOS15),
    "fp16": (_ARRAY.FLOAT16, Target.iOS16),
    "int8": (_ARRAY.INT8, Target.iOS26),
}
# DOUBLE: an fp32 value that is handed over as 64-bit floats.
_NAMES = {_ARRAY.DOUBLE: "fp32", **{proto: name for name, (proto, _) in ARRAYS.items()}}


def is_array(var: Var) -> bool:
    """Whether the value is a tensor, a state of one, or a number."""
    number = types.is_scalar(var.sym_type) and not types.is_str(var.sym_type)
    return bool(is_state(var) or types.is_tensor(var.sym_type) or number)


def fits(feature: Any, var: Var) -> bool:
    """Whether the ``FeatureDescription`` describes the value: kind, element type, rank, every fixed dimension."""
    kind = feature.type.WhichOneof("Type")
    if is_state(var):
        return kind == "stateType" and _fits_array(feature.type.stateType.arrayType, var)
    if kind == "multiArrayType":
        return _fits_array(feature.type.multiArrayType, var)
    if kind == "imageType":
        return _fits_image(feature.type.imageType, var)
    if kind == "dictionaryType":
        return bool(types.is_dict(var.sym_type))
    if kind == "stringType":
        return bool(types.is_str(var.sym_type))
    return kind == "int64Type" and var.sym_type in (types.int64, types.int32)


def _fits_array(array: Any, var: Var) -> bool:
    if not is_array(var) or _NAMES.get(array.dataType) != dtype_name(var):
        return False
    shape = shape_of(var) or (1,)  # a scalar is described as one element
    return (
        (not array.shape or _agree(array.shape, shape))
        and all(_agree(each.shape, shape) for each in array.enumeratedShapes.shapes)
        and (not array.shapeRange.sizeRanges or _within(array.shapeRange.sizeRanges, shape))
    )


def _fits_image(image: Any, var: Var) -> bool:
    if not types.is_tensor(var.sym_type) or not types.is_float(var.dtype) or var.rank < 3:
        return False
    shape = shape_of(var)[-3:]
    sizes = [(image.height, image.width), *((each.height, each.width) for each in image.enumeratedSizes.sizes)]
    channels = _CHANNELS.get(image.colorSpace)
    flexible = image.imageSizeRange
    return all(_agree((channels, *size), shape) for size in sizes) and (
        not image.HasField("imageSizeRange") or _within((flexible.heightRange, flexible.widthRange), shape[-2:])
    )


def _agree(described: Any, shape: tuple[Any, ...]) -> bool:
    sizes = tuple(described)
    if len(sizes) != len(shape):
        return False
    return all(is_symbolic(dim) or dim == size for size, dim in zip(sizes, shape, strict=True))


def _within(ranges: Any, shape: tuple[Any, ...]) -> bool:
    """A fixed dimension must have a range of one size; a symbolic one may have any."""
    bounds = [(each.lowerBound, each.upperBound) for each in ranges]
    if len(bounds) != len(shape):
        return False
    return all(is_symbolic(dim) or bound == (dim, dim) for bound, dim in zip(bounds, shape, strict=True))

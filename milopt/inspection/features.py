"""Inputs, outputs and states: what the program declares and what Core ML shows of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from coremltools.proto import FeatureTypes_pb2

from milopt.mil import Var, dtype_name, is_state, is_symbolic, shape_of, types

__all__ = ["Feature", "feature_of"]

_COLORS = FeatureTypes_pb2.ImageFeatureType.ColorSpace
_ARRAYS = FeatureTypes_pb2.ArrayFeatureType.ArrayDataType
_KINDS = {
    "multiArrayType": "array",
    "imageType": "image",
    "stateType": "state",
    "stringType": "string",
    "int64Type": "int64",
    "dictionaryType": "dictionary",
}

Range = tuple[int, int | None]


@dataclass(frozen=True)
class Feature:
    """One input, output or state.

    ``dtype`` and ``shape`` are the program's; a dimension known at run time is ``None``. The rest is Core ML's
    description: ``kind`` is array, image, state, string, int64 or dictionary; ``array_type`` what an array is handed
    over as; ``default_shape``, with ``ranges`` (lowest and highest size per dimension, ``None`` for no bound) or
    ``shapes`` where sizes are flexible, for images (height, width); ``color`` the layout of an image; ``default`` the
    value of an ``optional`` input that is not given.
    """

    name: str
    kind: str
    dtype: str
    shape: tuple[int | None, ...]
    array_type: str = ""
    default_shape: tuple[int, ...] = ()
    ranges: tuple[Range, ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()
    color: str = ""
    optional: bool = False
    default: float | None = None
    text: str = ""

    @property
    def is_flexible(self) -> bool:
        return None in self.shape or bool(self.ranges or self.shapes)


def feature_of(var: Var, described: Any) -> Feature:
    """The value ``var`` as its ``FeatureDescription`` presents it; ``None`` where it has none."""
    shape = tuple(None if is_symbolic(dim) else int(dim) for dim in shape_of(var))
    dtype = "dictionary" if types.is_dict(var.sym_type) else dtype_name(var)
    if described is None:
        return Feature(var.name, "state" if is_state(var) else "array", dtype, shape)
    form = described.type.WhichOneof("Type") or ""
    facts: dict[str, Any] = {"optional": bool(described.type.isOptional), "text": described.shortDescription}
    if form == "multiArrayType":
        facts |= _array(described.type.multiArrayType)
    elif form == "imageType":
        facts |= _image(described.type.imageType)
    elif form == "stateType":
        facts |= _array(described.type.stateType.arrayType)
    return Feature(var.name, _KINDS.get(form, form.removesuffix("Type")), dtype, shape, **facts)


def _array(array: Any) -> dict[str, Any]:
    known = array.dataType in _ARRAYS.values()
    held = array.WhichOneof("defaultOptionalValue")
    return {
        "array_type": _ARRAYS.Name(array.dataType).lower() if known else str(array.dataType),
        "default_shape": tuple(map(int, array.shape)),
        "ranges": tuple(map(_range, array.shapeRange.sizeRanges)),
        "shapes": tuple(tuple(map(int, each.shape)) for each in array.enumeratedShapes.shapes),
        "default": getattr(array, held) if held else None,
    }


def _image(image: Any) -> dict[str, Any]:
    sizes = image.imageSizeRange
    flexible = image.HasField("imageSizeRange")
    return {
        "color": _COLORS.Name(image.colorSpace) if image.colorSpace in _COLORS.values() else str(image.colorSpace),
        "default_shape": (int(image.height), int(image.width)),
        "ranges": tuple(map(_range, (sizes.heightRange, sizes.widthRange))) if flexible else (),
        "shapes": tuple((int(each.height), int(each.width)) for each in image.enumeratedSizes.sizes),
    }


def _range(bounds: Any) -> Range:
    return int(bounds.lowerBound), None if bounds.upperBound < 0 else int(bounds.upperBound)

"""A new description of an input, output or state, where there is none or the old one no longer fits.

Core ML's limits: a state is fp16 and of fixed shape (coremltools 9.0, ``backend/mil/load.py``); what multi-arrays
hold is in :data:`milopt.package.fitting.ARRAYS`.
"""

from __future__ import annotations

from typing import Any

from coremltools.converters.mil import input_types
from coremltools.proto import FeatureTypes_pb2, Model_pb2

from milopt.errors import PackageError
from milopt.mil import Var, dtype_name, is_state, is_symbolic, shape_of, types
from milopt.package.fitting import ARRAYS, is_array

__all__ = ["new_feature"]

_IMAGE = FeatureTypes_pb2.ImageFeatureType
_COLORS = {"G": _IMAGE.GRAYSCALE, "G_FLOAT16": _IMAGE.GRAYSCALE_FLOAT16, "RGB": _IMAGE.RGB, "BGR": _IMAGE.BGR}

Bounds = tuple[int, int]


def new_feature(var: Var, old: Any, declared: Any, spec_version: int, *, output: bool = False) -> Any:
    """A ``FeatureDescription`` for the value, with the text, optionality and ranges of ``old`` where there is one.

    ``declared`` is the coremltools ``TensorType`` or ``ImageType`` that the program's author gave for it, or ``None``.
    """
    feature = Model_pb2.FeatureDescription(name=var.name)
    if old is not None:
        feature.shortDescription = old.shortDescription
        feature.type.isOptional = old.type.isOptional
    what = "output" if output else "state" if is_state(var) else "input"
    if output and _set_class_output(feature.type, var):
        return feature
    shape = shape_of(var)
    element = _array_type(var, what, spec_version)
    if is_state(var):
        if dtype_name(var) != "fp16" or any(map(is_symbolic, shape)):
            raise PackageError(f"state {var.name!r} is {_type_text(var)}; Core ML's states are fp16 and of fixed shape")
        feature.type.stateType.arrayType.shape.extend(shape)
        feature.type.stateType.arrayType.dataType = element
        return feature
    if isinstance(declared, input_types.ImageType):
        _set_image(feature.type.imageType, declared, var)
        return feature
    array = feature.type.multiArrayType
    array.dataType = element
    _keep_default(array, old)
    if output:
        array.shape.extend(() if any(map(is_symbolic, shape)) else shape)
    elif any(map(is_symbolic, shape)):
        _set_flexible(array, var, old, declared)
    else:
        array.shape.extend(shape or (1,))
    return feature


def _set_class_output(feature_type: Any, var: Var) -> bool:
    """The outputs of ``classify``: a label, and the probability of each."""
    if types.is_str(var.sym_type):
        feature_type.stringType.SetInParent()
        return True
    if var.sym_type is types.int64:
        feature_type.int64Type.SetInParent()
        return True
    if not types.is_dict(var.sym_type):
        return False
    key = var.sym_type.T[0]
    field = feature_type.dictionaryType
    (field.stringKeyType if types.is_str(key) else field.int64KeyType).SetInParent()
    return True


def _keep_default(array: Any, old: Any) -> None:
    """The value an optional input has when it is not given."""
    if old is None or old.type.WhichOneof("Type") != "multiArrayType":
        return
    held = old.type.multiArrayType.WhichOneof("defaultOptionalValue")
    if held:
        setattr(array, held, getattr(old.type.multiArrayType, held))


def _array_type(var: Var, what: str, spec_version: int) -> int:
    name = dtype_name(var) if is_array(var) else ""
    if name not in ARRAYS:
        raise PackageError(f"{what} {var.name!r} is {_type_text(var)}; Core ML takes {', '.join(ARRAYS)} there")
    proto, first = ARRAYS[name]
    if spec_version < first:
        raise PackageError(
            f"{what} {var.name!r} is {name}, which needs {first.name} (specification version {int(first)}); "
            f"the model's is {spec_version}"
        )
    return proto


def _type_text(var: Var) -> str:
    if not is_array(var):
        return "neither a tensor nor a number"
    return f"{dtype_name(var)}[{', '.join(map(str, shape_of(var)))}]"


def _set_flexible(array: Any, var: Var, old: Any, declared: Any) -> None:
    """Sizes of an input with symbolic dimensions: as declared, else as the old description had them."""
    if isinstance(declared, input_types.TensorType) and declared.shape is not None:
        given: Any = declared.shape
        if isinstance(given, input_types.EnumeratedShapes):
            array.shape.extend(map(int, given.default))
            for each in given.shapes:
                array.enumeratedShapes.shapes.add().shape.extend(map(int, each.shape))
            return
        declared_bounds = _all_bounds(given.shape)
        if declared_bounds and len(declared_bounds) == var.rank:
            _set_ranges(array, declared_bounds, given.default)
            return
    known = old.type.multiArrayType if old is not None else FeatureTypes_pb2.ArrayFeatureType()
    ranges = [(each.lowerBound, each.upperBound) for each in known.shapeRange.sizeRanges]
    if len(ranges) != var.rank or len(known.shape) != var.rank:
        raise _unknown_size(var)
    dims = list(zip(shape_of(var), known.shape, ranges, strict=True))
    bounds = [bound if is_symbolic(dim) else (dim, dim) for dim, _, bound in dims]
    _set_ranges(array, bounds, [size if is_symbolic(dim) else dim for dim, size, _ in dims])


def _set_ranges(array: Any, bounds: list[Bounds], defaults: Any) -> None:
    array.shape.extend(map(int, defaults))
    for lower, upper in bounds:
        array.shapeRange.sizeRanges.add(lowerBound=lower, upperBound=upper)


def _all_bounds(dims: Any) -> list[Bounds] | None:
    """The range of every dimension a coremltools shape gives; ``None`` where one is left open."""
    found: list[Bounds] = []
    for dim in dims:
        if isinstance(dim, input_types.RangeDim):
            found.append((int(dim.lower_bound), int(dim.upper_bound)))
        elif is_symbolic(dim):
            return None
        else:
            found.append((int(dim), int(dim)))
    return found


def _unknown_size(var: Var) -> PackageError:
    return PackageError(
        f"input {var.name!r} has dimensions of unknown size; say which sizes it takes "
        "(Function.set_input_types with a coremltools RangeDim)"
    )


def _set_image(image: Any, declared: Any, var: Var) -> None:
    height, width = shape_of(var)[-2:]
    given: Any = declared.shape
    bounds: list[Bounds] | None
    if isinstance(given, input_types.EnumeratedShapes):
        for each in given.shapes:
            image.enumeratedSizes.sizes.add(height=int(each.shape[-2]), width=int(each.shape[-1]))
        height, width = given.default[-2:]
    elif is_symbolic(height) or is_symbolic(width):
        bounds = _all_bounds(given.shape[-2:]) if given is not None else None
        if bounds is None:
            raise _unknown_size(var)
        sizes = image.imageSizeRange
        for field, (lower, upper) in zip((sizes.heightRange, sizes.widthRange), bounds, strict=True):
            field.lowerBound, field.upperBound = lower, upper
        height, width = declared.shape.default[-2:]
    image.height, image.width = int(height), int(width)
    image.colorSpace = _COLORS[str(declared.color_layout.value)]

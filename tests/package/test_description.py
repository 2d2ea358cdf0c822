"""The description keeps what still fits the program and is rebuilt where it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import coremltools as ct
import pytest
from coremltools.converters.mil.mil import get_new_symbol
from coremltools.proto import FeatureTypes_pb2, MIL_pb2, Model_pb2

import milopt
from milopt.errors import MiloptError, PackageError
from milopt.mil import Target, Var, is_symbolic, mb, types
from milopt.package import Model, load
from milopt.package.describing import build_description
from milopt.package.fitting import fits

from .support import counter, linear, program_of, spec_of, two_functions

ARRAY = FeatureTypes_pb2.ArrayFeatureType
IMAGE = FeatureTypes_pb2.ImageFeatureType


def relu(*shape: Any, dtype: type = types.fp32, opset: Target = Target.iOS16) -> Model:
    def build(x: Any) -> Any:
        return mb.relu(x=x, name="y")

    inputs = [mb.TensorSpec(shape=shape, dtype=dtype)]
    return load(program_of(mb.program(input_specs=inputs, opset_version=opset)(build)))


def test_built_from_the_program() -> None:
    description = build_description(load(counter()))
    (x,), (y,), (total,) = description.input, description.output, description.state
    assert (x.name, list(x.type.multiArrayType.shape), x.type.multiArrayType.dataType) == ("x", [1, 4], ARRAY.FLOAT16)
    assert (y.name, list(y.type.multiArrayType.shape), y.type.multiArrayType.dataType) == ("y", [1, 4], ARRAY.FLOAT16)
    assert (total.name, list(total.type.stateType.arrayType.shape)) == ("total", [1, 4])


def test_functions_each_have_their_own() -> None:
    description = build_description(load(two_functions()))
    assert description.defaultFunctionName == "decode"
    assert [each.name for each in description.functions] == ["prefill", "decode"]
    assert [list(each.input[0].type.multiArrayType.shape) for each in description.functions] == [[4, 16], [1, 16]]
    assert not description.input


def test_changed_value_is_described_anew_and_keeps_its_text(tmp_path: Path) -> None:
    model = load(linear())
    model.describe(None, "y", "the result")
    model.describe(None, "x", "the input")
    saved = load(model.save(tmp_path / "a.mlpackage"))
    model = load(linear(rows=4))
    model.description = saved.description
    again = load(model.save(tmp_path / "b.mlpackage"))
    assert again.description.input == saved.description.input
    assert list(again.description.output[0].type.multiArrayType.shape) == [1, 4]
    assert again.text_of(None, "y") == "the result"


def test_describe_before_the_first_save_in_any_function(tmp_path: Path) -> None:
    model = load(two_functions())
    model.describe("prefill", "x", "four tokens")
    model.describe(None, "x", "one token")
    again = load(model.save(tmp_path / "a.mlpackage"))
    assert [again.text_of(name, "x") for name in ("prefill", "decode", None)] == [
        "four tokens",
        "one token",
        "one token",
    ]
    assert again.text_of("prefill", "y") == ""
    with pytest.raises(MiloptError, match="no input, output or state 'z'; it has: x, y"):
        model.describe(None, "z", "nothing")


def test_features_that_are_gone_are_not_described(tmp_path: Path) -> None:
    model = load(linear())
    model.description = Model_pb2.ModelDescription()
    model.description.input.add(name="old").type.multiArrayType.dataType = ARRAY.FLOAT32
    model.description.predictedFeatureName = "label"
    again = load(model.save(tmp_path / "a.mlpackage"))
    assert [each.name for each in again.description.input] == ["x"]
    assert again.description.predictedFeatureName == "label"


def test_symbolic_input_needs_its_range(tmp_path: Path) -> None:
    model = relu(get_new_symbol(), 16)
    with pytest.raises(PackageError, match="input 'x' has dimensions of unknown size"):
        model.save(tmp_path / "a.mlpackage")
    model.function().set_input_types((ct.TensorType("x", shape=(ct.RangeDim(1, 8, default=2), 16)),))
    array = load(model.save(tmp_path / "a.mlpackage")).description.input[0].type.multiArrayType
    assert list(array.shape) == [2, 16]
    assert [(each.lowerBound, each.upperBound) for each in array.shapeRange.sizeRanges] == [(1, 8), (16, 16)]


def test_symbolic_input_may_have_enumerated_shapes(tmp_path: Path) -> None:
    model = relu(get_new_symbol(), 16)
    model.function().set_input_types((ct.TensorType("x", shape=ct.EnumeratedShapes([(1, 16), (4, 16)])),))
    again = load(model.save(tmp_path / "a.mlpackage"))
    array = again.description.input[0].type.multiArrayType
    assert [list(each.shape) for each in array.enumeratedShapes.shapes] == [[1, 16], [4, 16]]
    assert load(again.save(tmp_path / "b.mlpackage")).description == again.description


def test_ranges_survive_a_change_of_type(tmp_path: Path) -> None:
    model = relu(get_new_symbol(), 16)
    model.function().set_input_types((ct.TensorType("x", shape=(ct.RangeDim(1, 8, default=2), 16)),))
    fp32 = load(model.save(tmp_path / "a.mlpackage"))
    fp32.description.input[0].type.isOptional = True
    fp32.description.input[0].type.multiArrayType.floatDefaultValue = 0.5
    model = relu(get_new_symbol(), 16, dtype=types.fp16)
    model.description = fp32.description
    feature = load(model.save(tmp_path / "b.mlpackage")).description.input[0]
    array = feature.type.multiArrayType
    assert array.dataType == ARRAY.FLOAT16
    assert array.shapeRange == fp32.description.input[0].type.multiArrayType.shapeRange
    assert (feature.type.isOptional, array.floatDefaultValue) == (True, 0.5)


def test_types_that_core_ml_does_not_take(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=r"input 'x' is fp16, which needs iOS16"):
        relu(1, 4, dtype=types.fp16, opset=Target.iOS15).save(tmp_path / "a.mlpackage")

    def build(x: Any) -> Any:
        return mb.greater(x=x, y=0.0, name="y")

    inputs = [mb.TensorSpec(shape=(1, 4), dtype=types.fp32)]
    model = load(program_of(mb.program(input_specs=inputs, opset_version=Target.iOS16)(build)))
    with pytest.raises(PackageError, match=r"output 'y' is bool\[1, 4\]; Core ML takes fp32, int32, fp16, int8"):
        model.save(tmp_path / "a.mlpackage")


def array_feature(dtype: int, *shape: int, ranges: tuple[tuple[int, int], ...] = ()) -> Any:
    feature = Model_pb2.FeatureDescription(name="x")
    feature.type.multiArrayType.dataType = dtype
    feature.type.multiArrayType.shape.extend(shape)
    for lower, upper in ranges:
        feature.type.multiArrayType.shapeRange.sizeRanges.add(lowerBound=lower, upperBound=upper)
    return feature


def image_feature(height: int, width: int, color: int) -> Any:
    feature = Model_pb2.FeatureDescription(name="x")
    feature.type.imageType.height, feature.type.imageType.width = height, width
    feature.type.imageType.colorSpace = color
    return feature


def value(*shape: Any, dtype: type = types.fp32) -> Var:
    return relu(*shape, dtype=dtype).function().inputs["x"]


@pytest.mark.parametrize(
    ("feature", "expected"),
    [
        (array_feature(ARRAY.FLOAT32, 1, 3, 8, 6), True),
        (array_feature(ARRAY.DOUBLE, 1, 3, 8, 6), True),
        (array_feature(ARRAY.FLOAT32), True),
        (array_feature(ARRAY.FLOAT16, 1, 3, 8, 6), False),
        (array_feature(ARRAY.FLOAT32, 3, 8, 6), False),
        (array_feature(ARRAY.FLOAT32, 1, 3, 8, 7), False),
        (array_feature(ARRAY.FLOAT32, 1, 3, 8, 6, ranges=((1, 1), (3, 3), (8, 8), (6, 6))), True),
        (array_feature(ARRAY.FLOAT32, 1, 3, 8, 6, ranges=((1, 1), (3, 3), (8, 8), (1, 6))), False),
        (image_feature(8, 6, IMAGE.RGB), True),
        (image_feature(8, 6, IMAGE.GRAYSCALE), False),
        (image_feature(6, 8, IMAGE.BGR), False),
        (Model_pb2.FeatureDescription(name="x"), False),
    ],
)
def test_what_fits_a_fixed_value(feature: Any, expected: bool) -> None:
    assert fits(feature, value(1, 3, 8, 6)) is expected


def test_what_fits_a_symbolic_value() -> None:
    flexible = value(get_new_symbol(), 16)
    assert fits(array_feature(ARRAY.FLOAT32, 3, 16, ranges=((1, -1), (16, 16))), flexible)
    assert not fits(array_feature(ARRAY.FLOAT32, 3, 8), flexible)


def test_inputs_that_share_a_symbol(tmp_path: Path) -> None:
    """The format has no name for a dimension: in the process nothing is lost, in a package the sizes are kept."""
    symbol = get_new_symbol()

    def build(x: Any, y: Any) -> Any:
        return mb.matmul(x=x, y=y, name="z")

    inputs = [mb.TensorSpec(shape=(4, symbol), dtype=types.fp32), mb.TensorSpec(shape=(symbol, 4), dtype=types.fp32)]
    program = program_of(mb.program(input_specs=inputs, opset_version=Target.iOS16)(build))
    sizes = ct.RangeDim(1, 8, default=2)
    program.functions["main"].set_input_types(
        (ct.TensorType(name="x", shape=(4, sizes)), ct.TensorType(name="y", shape=(sizes, 4)))
    )
    assert [each.name for each in MIL_pb2.Dimension.UnknownDimension.DESCRIPTOR.fields] == ["variadic"]
    model = load(program)
    package = model.save(tmp_path / "a.mlpackage")
    for each in (model, model.clone()):
        x, y = each.function().inputs.values()
        assert x.shape[1] is y.shape[0] is symbol
    x, y = load(package).function().inputs.values()
    assert is_symbolic(x.shape[1])
    assert is_symbolic(y.shape[0])
    assert x.shape[1] != y.shape[0]
    described = [each.type.multiArrayType for each in spec_of(package).description.input]
    bounds = [[(each.lowerBound, each.upperBound) for each in one.shapeRange.sizeRanges] for one in described]
    assert bounds == [[(4, 4), (1, 8)], [(1, 8), (4, 4)]]
    assert milopt.diff(package, load(package)).identical

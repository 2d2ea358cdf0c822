"""Loading and saving changes nothing: every feature a package can have, and every real package at hand."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from coremltools.converters.mil.frontend.milproto.load import load as milproto_load
from coremltools.converters.mil.mil import get_new_symbol, mil_list
from coremltools.models import MLModel
from coremltools.proto import FeatureTypes_pb2, MIL_pb2, Model_pb2

from milopt import interpreter
from milopt.errors import UnsupportedOps
from milopt.mil import Program, Target, mb, types
from milopt.package import load
from milopt.package.container import open_container
from milopt.text import text

from .packages import block_of, edited, op_named, text_value
from .support import counter, linear, loop, program_of, tree, two_functions
from .test_writing import branches, compressed_ios16, compressed_ios18, constants, lists

ARRAY = FeatureTypes_pb2.ArrayFeatureType
IMAGE = FeatureTypes_pb2.ImageFeatureType


def relu(*shape: Any, outputs: int = 1, dtype: type = types.fp32) -> Program:
    def build(x: Any) -> Any:
        made = tuple(mb.relu(x=x, name=name) for name in ("y", "z")[:outputs])
        return made if outputs > 1 else made[0]

    inputs = [mb.TensorSpec(shape=shape, dtype=dtype)]
    return program_of(mb.program(input_specs=inputs, opset_version=Target.iOS17)(build))


def classifier() -> Program:
    def build(x: Any) -> Any:
        label, probabilities = mb.classify(
            probabilities=mb.softmax(x=x), classes=mb.const(val=mil_list(["a", "b", "ü"]))
        )
        label.name, probabilities.name = "label", "probabilities"
        return label, probabilities

    inputs = [mb.TensorSpec(shape=(3,), dtype=types.fp32)]
    return program_of(mb.program(input_specs=inputs, opset_version=Target.iOS16)(build))


def open_dimension(
    spec: Any, *, ranges: tuple[tuple[int, int], ...] = (), shapes: tuple[tuple[int, ...], ...] = ()
) -> None:
    """Let the first dimension of everything be flexible, described by ranges or enumerated shapes."""
    block = block_of(spec)
    tensors = [spec.mlProgram.functions["main"].inputs[0].type.tensorType]
    tensors += [each.type.tensorType for op in block.operations if op.type == "relu" for each in op.outputs]
    for tensor in tensors:
        tensor.dimensions[0].unknown.variadic = False
    for feature in (*spec.description.input, *spec.description.output):
        array = feature.type.multiArrayType
        for lower, upper in ranges:
            array.shapeRange.sizeRanges.add(lowerBound=lower, upperBound=upper)
        for shape in shapes:
            array.enumeratedShapes.shapes.add().shape.extend(shape)


def ranged(spec: Any) -> None:
    open_dimension(spec, ranges=((1, 4096), (8, 8)))


def open_ended(spec: Any) -> None:
    open_dimension(spec, ranges=((2, -1), (8, 8)))


def enumerated(spec: Any) -> None:
    open_dimension(spec, shapes=((4, 8), (1, 8), (16, 8)))


def without_output_shape(spec: Any) -> None:
    ranged(spec)
    spec.description.output[0].type.multiArrayType.ClearField("shape")


def images(spec: Any) -> None:
    for feature, color in zip((*spec.description.input, *spec.description.output), (IMAGE.BGR, IMAGE.RGB), strict=True):
        feature.type.imageType.height, feature.type.imageType.width = 8, 6
        feature.type.imageType.colorSpace = color
        feature.type.imageType.imageSizeRange.heightRange.lowerBound = 8
        feature.type.imageType.imageSizeRange.heightRange.upperBound = 8
        feature.type.imageType.imageSizeRange.widthRange.lowerBound = 6
        feature.type.imageType.imageSizeRange.widthRange.upperBound = 6


def odd_description(spec: Any) -> None:
    """A description that does not match the program, as other converters write it."""
    spec.description.input[0].type.multiArrayType.dataType = ARRAY.DOUBLE
    spec.description.input[0].type.multiArrayType.shape[:] = [32]
    spec.description.output[0].type.int64Type.SetInParent()


def optional_with_default(spec: Any) -> None:
    feature = spec.description.input[0]
    feature.type.isOptional = True
    feature.type.multiArrayType.floatDefaultValue = -2.5


def described(spec: Any) -> None:
    description = spec.description
    description.input[0].shortDescription, description.output[0].shortDescription = "the input", "the output: é"
    metadata = description.metadata
    metadata.author, metadata.license, metadata.versionString = "an author", "MIT", "1.0"
    metadata.shortDescription = "several\nlines"
    metadata.userDefined["key"], metadata.userDefined["com.github.apple.coremltools.version"] = "", "8.0"


def class_outputs(spec: Any) -> None:
    spec.description.predictedFeatureName = "label"
    spec.description.predictedProbabilitiesName = "probabilities"


def attributes(spec: Any) -> None:
    program = spec.mlProgram
    program.docString = "of the program"
    info = program.attributes["buildInfo"]
    info.type.dictionaryType.keyType.tensorType.dataType = MIL_pb2.DataType.STRING
    info.type.dictionaryType.valueType.tensorType.dataType = MIL_pb2.DataType.STRING
    pair = info.immediateValue.dictionary.values.add()
    pair.key.CopyFrom(text_value("coremlc-version"))
    pair.value.CopyFrom(text_value("3304.5.2"))
    program.functions["main"].attributes["a"].CopyFrom(text_value("b"))
    program.functions["main"].inputs[0].type.tensorType.attributes["c"].CopyFrom(text_value("d"))
    block = block_of(spec)
    block.attributes["e"].CopyFrom(text_value("f"))
    for op in block.operations:
        op.attributes["g"].CopyFrom(text_value(op.type))
        op.outputs[0].type.tensorType.attributes["h"].CopyFrom(text_value("i"))
        if op.type == "const":
            op.attributes["val"].docString = "why this value"


def unnamed(spec: Any) -> None:
    for op in block_of(spec).operations:
        if op.type != "const":
            del op.attributes["name"]


def same_names(spec: Any) -> None:
    for op in block_of(spec).operations:
        op.attributes["name"].immediateValue.tensor.strings.values[0] = "all/called.this"


def custom_layer(spec: Any) -> None:
    op = op_named(block_of(spec), "y")
    op.type = "custom_layer"
    for name in ("class_name", "description"):
        op.attributes[name].CopyFrom(text_value(name))


def literals(spec: Any) -> None:
    """Inputs that are written inside the op which takes them, where coremltools never writes them so."""
    block = block_of(spec)
    held = {op.outputs[0].name: op for op in block.operations if op.type == "const"}
    for op in block.operations:
        for argument in op.inputs.values():
            for binding in argument.arguments:
                if binding.name in held:
                    value = held[binding.name].attributes["val"]
                    binding.value.CopyFrom(value)
    for op in held.values():
        block.operations.remove(op)


def other_encodings(spec: Any) -> None:
    """Values that PyMIL would write otherwise: an fp16 number as a float, an integer as a long one."""
    for op in block_of(spec).operations:
        if op.type == "const" and op.attributes["val"].HasField("immediateValue"):
            tensor = op.attributes["val"].immediateValue.tensor
            if tensor.HasField("bytes"):
                tensor.floats.values.extend(np.frombuffer(tensor.bytes.values, np.float16).tolist())
            elif tensor.HasField("ints"):
                tensor.longInts.values.extend(list(tensor.ints.values))


def nothing(spec: Any) -> None:
    del spec


def updatable(spec: Any) -> None:
    spec.isUpdatable = True
    spec.description.trainingInput.add(name="x").type.multiArrayType.dataType = ARRAY.FLOAT32


FEATURES: dict[str, tuple[Callable[[], Program], Callable[[Any], None]]] = {
    "weights": (linear, nothing),
    "state": (counter, nothing),
    "functions and a default one": (two_functions, nothing),
    "blocks": (loop, nothing),
    "branches": (branches, nothing),
    "constants of all types": (constants, nothing),
    "lists": (lists, nothing),
    "compression of iOS 16": (compressed_ios16, nothing),
    "compression of iOS 18": (compressed_ios18, nothing),
    "ranges": (lambda: relu(4, 8), ranged),
    "an open end": (lambda: relu(4, 8), open_ended),
    "enumerated shapes": (lambda: relu(4, 8), enumerated),
    "an output without a shape": (lambda: relu(4, 8), without_output_shape),
    "images": (lambda: relu(1, 3, 8, 6), images),
    "a description that does not fit": (linear, odd_description),
    "an optional input": (lambda: relu(4, 8), optional_with_default),
    "texts and metadata": (linear, described),
    "a classifier": (classifier, class_outputs),
    "attributes and doc strings": (linear, attributes),
    "ops without names": (loop, unnamed),
    "ops of one name": (linear, same_names),
    "a custom layer": (linear, custom_layer),
    "literals": (linear, literals),
    "literals of compressed weights": (compressed_ios18, literals),
    "other encodings": (counter, other_encodings),
    "training": (linear, updatable),
}


def spec_at(package: Path) -> Any:
    spec = Model_pb2.Model()
    spec.ParseFromString((package / "Data" / open_container(package).spec.path).read_bytes())
    return spec


def weights_at(package: Path) -> dict[str, bytes]:
    return {name: content for name, content in tree(package).items() if name.endswith(".bin")}


def evaluated(package: Path) -> Any:
    """What the default function gives on fixed inputs; ``None`` where it has ops that milopt can't evaluate."""
    try:
        model = load(package)
        plan = interpreter.compile(model)
    except UnsupportedOps:
        return None
    rng = np.random.default_rng(0)

    def draw(info: Any) -> Any:
        shape = [size if isinstance(size, int) else 2 for size in info.shape]
        return rng.integers(0, 2, shape) if info.dtype.startswith(("int", "uint", "bool")) else rng.random(shape)

    state = interpreter.make_state(model) if plan.states else None
    return plan.run({name: draw(info) for name, info in plan.inputs.items()}, state=state)


def stock_text(package: Path) -> str | None:
    """The program as coremltools' own loader reads it; ``None`` where it doesn't."""
    model = MLModel(str(package), skip_model_load=True)
    spec = model.get_spec()
    try:
        program = milproto_load(spec, spec.specificationVersion, model.weights_dir)
    except (ValueError, NotImplementedError, AssertionError, TypeError):
        return None
    program.functions = dict(sorted(program.functions.items()))  # they come in protobuf's order, another every time
    return text(program, weights="hash")


def same_package(package: Path, folder: Path, *, run: bool = True) -> None:
    saved = load(package).save(folder / "saved.mlpackage", overwrite=True)
    assert spec_at(saved) == spec_at(package)
    assert weights_at(saved) == weights_at(package)
    clone = load(package).clone().save(folder / "clone.mlpackage", overwrite=True)
    assert tree(clone) == tree(saved)
    if run:
        one, other = evaluated(package), evaluated(saved)
        assert (one is None) == (other is None)
        for name in one or ():
            assert str(one[name]) == str(other[name])
            assert not isinstance(one[name], np.ndarray) or one[name].tobytes() == other[name].tobytes()


@pytest.mark.parametrize("feature", FEATURES)
def test_every_feature(feature: str, tmp_path: Path) -> None:
    build, change = FEATURES[feature]
    package = edited(tmp_path, change, build())
    same_package(package, tmp_path, run=feature != "a classifier")
    assert stock_text(tmp_path / "saved.mlpackage") == stock_text(package)


def test_specification_elsewhere_and_unknown_files(tmp_path: Path) -> None:
    package = edited(tmp_path, nothing, linear())
    data = package / "Data"
    (data / "com.apple.CoreML").rename(data / "com.someone.Model")
    (data / "com.someone.Model/weights/notes.txt").write_text("theirs")
    (data / "more").mkdir()
    (data / "more/file.json").write_text("{}")
    items = {
        "A": {
            "path": "com.someone.Model/model.mlmodel",
            "name": "model.mlmodel",
            "author": "someone",
            "description": "d",
        },
        "B": {"path": "com.someone.Model/weights", "name": "weights", "author": "someone", "description": "e"},
        "C": {"path": "more", "name": "more", "author": "them", "description": "f"},
    }
    manifest = {"fileFormatVersion": "1.0.0", "itemInfoEntries": items, "rootModelIdentifier": "A"}
    (package / "Manifest.json").write_text(json.dumps(manifest))
    same_package(package, tmp_path)
    saved = json.loads((tmp_path / "saved.mlpackage/Manifest.json").read_text())
    assert sorted(map(str, saved["itemInfoEntries"].values())) == sorted(
        str(dict(sorted(item.items()))) for item in items.values()
    )
    before, after = tree(package), tree(tmp_path / "saved.mlpackage")
    rewritten = {"Manifest.json": b"", "Data/com.someone.Model/model.mlmodel": b""}
    assert {**before, **rewritten} == {**after, **rewritten}


def test_no_weights_folder(tmp_path: Path) -> None:
    package = edited(tmp_path, nothing, relu(4, 8))
    assert not list(package.rglob("weights"))
    same_package(package, tmp_path)


@pytest.mark.parametrize("run", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_real_packages(run: bool, shared: Path, tmp_path: Path) -> None:
    packages = [each for folder in ("real", "stories260K") for each in (shared / "models" / folder).glob("*.mlpackage")]
    assert len(packages) > 20
    for package in sorted(packages):
        same_package(package, tmp_path, run=run)


@pytest.mark.slow
def test_published_graphs(shared: Path, tmp_path: Path) -> None:
    """With made-up weights, of a file that ends with bytes which belong to no tensor."""
    for package in sorted((shared / "models/graphs").glob("*.mlpackage")):
        filled = tmp_path / package.name
        with patch.object(sys, "argv", ["refill", str(package), str(filled)]):
            runpy.run_path(str(shared / "tools/refill.py"))
        saved = load(filled).save(tmp_path / "saved.mlpackage", overwrite=True)
        assert spec_at(saved) == spec_at(filled)
        for name, content in weights_at(saved).items():
            assert (filled / name).read_bytes().rstrip(b"\0") == content.rstrip(b"\0")
        shutil.rmtree(filled)


def test_symbols_of_two_inputs_stay_apart(tmp_path: Path) -> None:
    def build(x: Any, y: Any) -> Any:
        return mb.relu(x=x, name="a"), mb.relu(x=y, name="b")

    inputs = [mb.TensorSpec(shape=(get_new_symbol(), 8), dtype=types.fp32) for _ in range(2)]
    program = program_of(mb.program(input_specs=inputs, opset_version=Target.iOS17)(build))
    model = load(program)
    model.description = Model_pb2.ModelDescription()
    for name in ("x", "y"):
        array = model.description.input.add(name=name).type.multiArrayType
        array.dataType = ARRAY.FLOAT32
        array.shape.extend((4, 8))
        for bounds in ((1, 4), (8, 8)):
            array.shapeRange.sizeRanges.add(lowerBound=bounds[0], upperBound=bounds[1])
    again = load(model.save(tmp_path / "a.mlpackage"))
    assert "(%x: fp32[s0, 8], %y: fp32[s1, 8])" in text(again)
    assert "%0: fp32[s0, 8] = relu(x=%x)" in text(again)
    same_package(tmp_path / "a.mlpackage", tmp_path)

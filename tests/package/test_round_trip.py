"""What goes in comes out: programs, weights, descriptions, metadata, attachments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
from coremltools.converters.mil.frontend.milproto.load import load as milproto_load
from coremltools.converters.mil.mil import get_new_symbol, mil_list
from coremltools.models import MLModel
from coremltools.proto import FeatureTypes_pb2, MIL_pb2

from milopt.errors import MiloptError, PackageError
from milopt.mil import Program, Target, mb, operations, types
from milopt.package import Model, load
from milopt.text import text

from .support import SPEC, counter, entries, linear, loop, program_of, spec_of, tree, two_functions, weight, write_spec


def same(a: Model, b: Model) -> bool:
    return text(a, weights="hash") == text(b, weights="hash")


@pytest.mark.parametrize("build", [linear, counter, two_functions, loop])
def test_program_and_weights_survive(build: Any, tmp_path: Path) -> None:
    model = load(build())
    saved = model.save(tmp_path / "a.mlpackage")
    again = load(saved)
    assert same(model, again)
    assert (again.spec_version, again.default_function) == (model.spec_version, model.default_function)
    assert list(again.functions) == list(model.functions)


def test_load_returns_a_model_as_it_is() -> None:
    model = load(linear())
    assert load(model) is model


def test_stock_coremltools_reads_what_was_saved(tmp_path: Path) -> None:
    saved = load(counter()).save(tmp_path / "a.mlpackage")
    mlmodel = MLModel(str(saved), skip_model_load=True)
    program = milproto_load(mlmodel.get_spec(), 9, mlmodel.weights_dir)
    assert text(program, weights="hash") == text(load(saved), weights="hash")


def test_weights_are_views_of_the_file(tmp_path: Path) -> None:
    saved = load(linear()).save(tmp_path / "a.mlpackage")
    array = next(op for op in operations(load(saved).function()) if op.op_type == "linear").inputs["weight"].val
    assert not array.flags.owndata
    assert not array.flags.writeable
    np.testing.assert_array_equal(array, weight(8, 16))


def test_same_bytes_in_two_functions_are_stored_once(tmp_path: Path) -> None:
    saved = load(two_functions()).save(tmp_path / "a.mlpackage")
    assert len(entries(saved)) == 2  # the weight and linear's default bias, 32 zeros
    weights = [
        op.inputs["weight"].val
        for function in load(saved).functions.values()
        for op in operations(function)
        if op.op_type == "linear"
    ]
    assert np.shares_memory(*weights)


def test_tied_weight_of_two_shapes_is_stored_once(tmp_path: Path) -> None:
    table = weight(24, 16)

    def build(x: Any) -> Any:
        row = mb.gather(x=table, indices=x, axis=0)
        column = mb.reshape(x=row, shape=(1, 16, 1, 1))
        return mb.conv(x=column, weight=table.reshape(24, 16, 1, 1).copy(), name="y")

    inputs = [mb.TensorSpec(shape=(1,), dtype=types.int32)]
    saved = load(program_of(mb.program(input_specs=inputs, opset_version=Target.iOS18)(build))).save(
        tmp_path / "a.mlpackage"
    )
    assert len(entries(saved)) == 1
    assert "weight=w0 as [24, 16, 1, 1]" in text(load(saved))


def test_same_bytes_of_another_type_are_another_entry(tmp_path: Path) -> None:
    bits = weight(8, 16)

    def build(x: Any) -> Any:
        first = mb.linear(x=x, weight=bits, name="y")
        return first, mb.cast(x=mb.const(val=bits.view(np.int16)), dtype="fp32", name="z")

    inputs = [mb.TensorSpec(shape=(1, 16), dtype=types.fp16)]
    model = load(program_of(mb.program(input_specs=inputs, opset_version=Target.iOS18)(build)))
    assert same(model, load(model.save(tmp_path / "a.mlpackage")))


def test_saving_twice_gives_identical_bytes(tmp_path: Path) -> None:
    model = load(two_functions())
    model.metadata = {f"key {k}": str(k) for k in range(20)}
    first, second = model.save(tmp_path / "a.mlpackage"), model.save(tmp_path / "b.mlpackage")
    assert tree(first) == tree(second)
    assert tree(load(first).save(tmp_path / "c.mlpackage")) == tree(first)


def test_metadata_and_attachments_survive(tmp_path: Path) -> None:
    model = load(linear())
    model.author, model.license, model.version, model.short_description = "an author", "MIT", "1.2", "what it is"
    model.metadata = {"key": "value"}
    model.attachments = {"milopt/tokenizer.json": b"{}", "notes.txt": b"\x00\xff"}
    again = load(model.save(tmp_path / "a.mlpackage"))
    for name in ("author", "license", "version", "short_description", "metadata", "attachments"):
        assert getattr(again, name) == getattr(model, name)
    again.metadata, again.author = {}, ""
    assert load(again.save(tmp_path / "b.mlpackage")).metadata == {}


def test_attached_folder_and_its_entry_survive(tmp_path: Path) -> None:
    saved = load(linear()).save(tmp_path / "a.mlpackage")
    manifest = json.loads((saved / "Manifest.json").read_text())
    entry = {"author": "them", "description": "of theirs", "name": "extra", "path": "com.them/extra"}
    manifest["itemInfoEntries"]["X"] = entry
    (saved / "Manifest.json").write_text(json.dumps(manifest))
    (saved / "Data/com.them/extra/deep").mkdir(parents=True)
    (saved / "Data/com.them/extra/deep/file.bin").write_bytes(b"theirs")
    model = load(saved)
    assert model.attachments == {"com.them/extra/deep/file.bin": b"theirs"}
    again = load(saved).save(tmp_path / "b.mlpackage")
    assert entry in json.loads((again / "Manifest.json").read_text())["itemInfoEntries"].values()
    assert (again / "Data/com.them/extra/deep/file.bin").read_bytes() == b"theirs"


def test_specification_may_lie_elsewhere_and_have_no_weights(tmp_path: Path) -> None:
    saved = load(counter()).save(tmp_path / "a.mlpackage")
    manifest = json.loads((saved / "Manifest.json").read_text())
    (item,) = manifest["itemInfoEntries"].values()  # no weights, no second item
    item["path"] = "com.someone.else/their.mlmodel"
    (saved / "Manifest.json").write_text(json.dumps(manifest))
    (saved / "Data/com.apple.CoreML").rename(saved / "Data/com.someone.else")
    (saved / "Data/com.someone.else/model.mlmodel").rename(saved / "Data/com.someone.else/their.mlmodel")
    again = load(saved).save(tmp_path / "b.mlpackage")
    assert (again / "Data/com.someone.else/their.mlmodel").is_file()
    assert same(load(saved), load(again))


def test_attributes_that_pymil_has_no_place_for_survive(tmp_path: Path) -> None:
    saved = load(linear()).save(tmp_path / "a.mlpackage")
    spec = spec_of(saved)
    value = MIL_pb2.Value()
    value.type.tensorType.dataType = MIL_pb2.DataType.STRING
    value.immediateValue.tensor.strings.values.append("kept")
    spec.mlProgram.docString = "a text"
    spec.mlProgram.attributes["buildInfo"].CopyFrom(value)
    spec.mlProgram.attributes["other"].CopyFrom(value)
    spec.mlProgram.functions["main"].attributes["mine"].CopyFrom(value)
    spec.isUpdatable = True
    write_spec(saved, spec)
    assert spec_of(load(saved).save(tmp_path / "b.mlpackage")) == spec


def test_optional_ranged_and_described_inputs_survive(tmp_path: Path) -> None:
    symbol = get_new_symbol()

    def build(x: Any) -> Any:
        return mb.relu(x=x, name="y")

    program = mb.program(input_specs=[mb.TensorSpec(shape=(symbol, 16), dtype=types.fp32)], opset_version=Target.iOS16)(
        build
    )
    mlmodel = ct.convert(
        program,
        source="milinternal",
        convert_to="mlprogram",
        inputs=[ct.TensorType("x", shape=(ct.RangeDim(1, 4096, default=4), 16))],
        minimum_deployment_target=Target.iOS16,
        skip_model_load=True,
    )
    mlmodel.input_description["x"] = "the frames"
    feature = mlmodel._spec.description.input[0]
    feature.type.isOptional = True
    feature.type.multiArrayType.floatDefaultValue = 1.5
    model = load(mlmodel)
    again = load(model.save(tmp_path / "a.mlpackage"))
    assert again.description == mlmodel.get_spec().description
    assert same(model, again)


def test_image_input_survives(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        return mb.relu(x=x, name="y")

    inputs = [mb.TensorSpec(shape=(1, 3, 8, 6), dtype=types.fp32)]
    model = load(program_of(mb.program(input_specs=inputs, opset_version=Target.iOS16)(build)))
    model.function().set_input_types((ct.ImageType("x", shape=(1, 3, 8, 6), color_layout="BGR"),))
    again = load(model.save(tmp_path / "a.mlpackage"))
    image = again.description.input[0].type.imageType
    assert (image.height, image.width, image.colorSpace) == (8, 6, FeatureTypes_pb2.ImageFeatureType.BGR)
    third = load(again.save(tmp_path / "b.mlpackage"))
    assert third.description == again.description


def test_classifier_survives(tmp_path: Path) -> None:
    """coremltools 9.0 reads a ``classify`` op but can't write its string and dictionary outputs."""

    def build(x: Any) -> Any:
        label, probabilities = mb.classify(probabilities=mb.softmax(x=x), classes=mb.const(val=mil_list(["a", "b"])))
        label.name, probabilities.name = "label", "probabilities"
        return label, probabilities

    inputs = [mb.TensorSpec(shape=(2,), dtype=types.fp32)]
    model = load(program_of(mb.program(input_specs=inputs, opset_version=Target.iOS16)(build)))
    model.describe(None, "label", "what it is")
    model.description.predictedFeatureName = "label"
    model.description.predictedProbabilitiesName = "probabilities"
    again = load(model.save(tmp_path / "a.mlpackage"))
    assert same(model, again)
    label, probabilities = again.description.output
    assert (label.type.WhichOneof("Type"), label.shortDescription) == ("stringType", "what it is")
    assert probabilities.type.dictionaryType.WhichOneof("KeyType") == "stringKeyType"
    assert load(again.save(tmp_path / "b.mlpackage")).description == again.description


def test_mlmodel_outlives_its_folder(tmp_path: Path) -> None:
    saved = load(linear()).save(tmp_path / "a.mlpackage")
    model = load(MLModel(str(saved), skip_model_load=True))
    before = text(model, weights="hash")
    for each in sorted(saved.rglob("*"), reverse=True):
        each.unlink() if each.is_file() else each.rmdir()
    assert text(model, weights="hash") == before
    assert same(model, load(model.save(tmp_path / "b.mlpackage")))


def test_inner_names_become_unique_and_outer_ones_stay(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        for name in ("same/name.1", "same/name.1", "same/name.1", "3", "state"):
            x = mb.relu(x=x, name=name)
        return mb.tanh(x=x, name="x_1")

    inputs = [mb.TensorSpec(shape=(1, 16), dtype=types.fp16)]
    model = load(program_of(mb.program(input_specs=inputs, opset_version=Target.iOS16)(build)))
    names = [op.name for op in operations(model.function())]
    saved = model.save(tmp_path / "a.mlpackage")
    assert [op.name for op in operations(model.function())] == names  # the program in memory keeps its own
    block = spec_of(saved).mlProgram.functions["main"].block_specializations["CoreML6"]
    written = [op.outputs[0].name for op in block.operations]
    assert written == ["same_name_1", "same_name_1_1", "same_name_1_2", "_3", "_state", "x_1"]
    assert same(model, load(saved))


def test_load_order_does_not_matter(shared: Path, tmp_path: Path) -> None:
    """The strings of dtln's list ops look like PyMIL's symbols and used to poison every later load."""
    package = shared / "models/real/dtln128_fp16_part2.mlpackage"
    first = load(package)
    assert "is58" in text(first)
    for _ in range(3):
        assert same(load(package), first)
    load(shared / "models/real/crepe_tiny.mlpackage").save(tmp_path / "a.mlpackage")


def test_unknown_function_lists_the_known_ones() -> None:
    with pytest.raises(MiloptError, match="no function 'x'; this model has: prefill, decode"):
        load(two_functions()).function("x")


def test_op_newer_than_the_specification_is_named(tmp_path: Path) -> None:
    model = load(counter())
    model.spec_version = 7
    with pytest.raises(PackageError, match=r"read_state.* needs iOS18, the model is for iOS16"):
        model.save(tmp_path / "a.mlpackage")
    assert not list(tmp_path.iterdir())


def test_functions_with_other_names_need_ios18(tmp_path: Path) -> None:
    program = Program()

    def build(x: Any) -> Any:
        return mb.relu(x=x, name="y")

    inputs = [mb.TensorSpec(shape=(1, 4), dtype=types.fp32)]
    program.add_function("other", mb.function(input_specs=inputs, opset_version=Target.iOS16)(build))
    model = load(program)
    assert model.default_function == "other"
    with pytest.raises(PackageError, match="functions 'other' need iOS18"):
        model.save(tmp_path / "a.mlpackage")
    model.spec_version = 9
    assert load(model.save(tmp_path / "a.mlpackage")).default_function == "other"


def test_program_of_a_newer_specification_keeps_its_opset(tmp_path: Path) -> None:
    model = load(linear(opset=Target.iOS16))
    model.spec_version = 9
    again = load(model.save(tmp_path / "a.mlpackage"))
    assert again.spec_version == 9
    assert again.function().opset_version == Target.iOS16
    assert SPEC in tree(tmp_path / "a.mlpackage")

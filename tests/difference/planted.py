"""One change for every kind of thing a package holds, and the sections that are to name it."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from coremltools.proto import MIL_pb2

from milopt.mil import Program, Target, mb, types
from tests.package import test_identity as identity
from tests.package.packages import block_of, op_named, text_value
from tests.package.support import WEIGHTS, counter, linear, loop, program_of, spec_of, two_functions, write_spec
from tests.package.test_writing import compressed_ios16, compressed_ios18

__all__ = ["PLANTED", "Planted"]

Build = Callable[[], Program]
Change = Callable[[Any], None]


@dataclass(frozen=True)
class Planted:
    """``change`` of the specification, ``touch`` of the package, or another program ``instead``.

    ``base`` is applied to both packages. ``sections`` are all that must be found; ``says`` must appear in the text.
    """

    sections: set[str]
    says: str
    change: Change = identity.nothing
    build: Build = linear
    base: Change = identity.nothing
    touch: Callable[[Path], None] | None = None
    instead: Build | None = field(default=None)


def relu() -> Program:
    return identity.relu(4, 8)


def two_inputs() -> Program:
    inputs = [mb.TensorSpec(shape=(4, 8), dtype=types.fp32) for _ in range(2)]

    def build(a: Any, b: Any) -> Any:
        return mb.sub(x=mb.relu(x=a), y=mb.relu(x=b), name="y")

    return program_of(mb.program(input_specs=inputs, opset_version=Target.iOS17)(build))


def main_inputs(spec: Any) -> Any:
    return spec.mlProgram.functions["main"].inputs


def rename_output(spec: Any) -> None:
    spec.description.output[0].name = "z"
    block = block_of(spec)
    op_named(block, "y").outputs[0].name = "z"
    block.outputs[0] = "z"


def rename_input(spec: Any) -> None:
    spec.description.input[0].name = "first"
    main_inputs(spec)[0].name = "first"
    for op in block_of(spec).operations:
        for argument in op.inputs.values():
            for binding in argument.arguments:
                binding.name = "first" if binding.name == "x" else binding.name


def swap_described_inputs(spec: Any) -> None:
    first, second = spec.description.input
    first.name, second.name = second.name, first.name


def swap_program_inputs(spec: Any) -> None:
    inputs = main_inputs(spec)
    first, second = inputs
    first.name, second.name = second.name, first.name


def add_output(spec: Any) -> None:
    block_of(spec).outputs.append("hidden")
    added = spec.description.output.add()
    added.CopyFrom(spec.description.output[0])
    added.name = "hidden"


def rename_state(spec: Any) -> None:
    spec.description.state[0].name = "sum"
    for each in main_inputs(spec):
        each.name = "sum" if each.name == "total" else each.name
    for op in block_of(spec).operations:
        for argument in op.inputs.values():
            for binding in argument.arguments:
                binding.name = "sum" if binding.name == "total" else binding.name


def dtype(spec: Any) -> None:
    spec.description.input[0].type.multiArrayType.dataType = identity.ARRAY.DOUBLE


def default_shape(spec: Any) -> None:
    spec.description.input[0].type.multiArrayType.shape[:] = [2, 8]


def upper_bound(spec: Any) -> None:
    spec.description.input[0].type.multiArrayType.shapeRange.sizeRanges[0].upperBound = 512


def enumeration(spec: Any) -> None:
    spec.description.input[0].type.multiArrayType.enumeratedShapes.shapes[1].shape[0] = 3


def declared_dimension(spec: Any) -> None:
    main_inputs(spec)[0].type.tensorType.dimensions[0].constant.size = 4


def optional(spec: Any) -> None:
    spec.description.input[0].type.isOptional = False


def default_value(spec: Any) -> None:
    spec.description.input[0].type.multiArrayType.floatDefaultValue = -2.25


def image_layout(spec: Any) -> None:
    spec.description.input[0].type.imageType.colorSpace = identity.IMAGE.RGB


def image_size(spec: Any) -> None:
    spec.description.input[0].type.imageType.imageSizeRange.widthRange.upperBound = 12


def image_to_array(spec: Any) -> None:
    array = spec.description.output[0].type.multiArrayType
    array.dataType = identity.ARRAY.FLOAT32
    array.shape.extend([1, 3, 8, 6])


def description_of(kind: str) -> Change:
    def change(spec: Any) -> None:
        getattr(spec.description, kind)[0].shortDescription = "another"

    return change


def label(spec: Any) -> None:
    (classify,) = (op for op in block_of(spec).operations if op.type == "classify")
    values = classify.inputs["classes"].arguments[0].value.immediateValue.list.values
    values[1].immediateValue.tensor.strings.values[0] = "cat"


def described_as(name: str, value: str) -> Change:
    def change(spec: Any) -> None:
        setattr(spec.description, name, value)

    return change


def metadata(name: str) -> Change:
    def change(spec: Any) -> None:
        setattr(spec.description.metadata, name, "another")

    return change


def user_defined(spec: Any) -> None:
    spec.description.metadata.userDefined["key"] = "value"


def opset(name: str) -> Change:
    def change(spec: Any) -> None:
        function = spec.mlProgram.functions[name]
        old = function.opset
        function.opset = "CoreML8"
        function.block_specializations["CoreML8"].CopyFrom(function.block_specializations[old])
        del function.block_specializations[old]

    return change


def version(spec: Any) -> None:
    spec.specificationVersion = 8


def drop_function(spec: Any) -> None:
    del spec.mlProgram.functions["prefill"]
    kept = [each for each in spec.description.functions if each.name != "prefill"]
    del spec.description.functions[:]
    spec.description.functions.extend(kept)


def build_info(spec: Any) -> None:
    spec.mlProgram.attributes["buildInfo"].immediateValue.dictionary.values[0].value.CopyFrom(text_value("4"))


def function_attribute(spec: Any) -> None:
    spec.mlProgram.functions["main"].attributes["a"].CopyFrom(text_value("c"))


def block_attribute(spec: Any) -> None:
    del block_of(spec).attributes["e"]


def type_attribute(spec: Any) -> None:
    op_named(block_of(spec), "hidden").outputs[0].type.tensorType.attributes["h"].CopyFrom(text_value("j"))


def op_attribute(spec: Any) -> None:
    op_named(block_of(spec), "hidden").attributes["g"].CopyFrom(text_value("j"))


def program_doc(spec: Any) -> None:
    spec.mlProgram.docString = "another"


def value_doc(spec: Any) -> None:
    next(op for op in block_of(spec).operations if op.type == "const").attributes["val"].docString = "no reason"


def another_op(spec: Any) -> None:
    op_named(block_of(spec), "y").type = "tanh"


def inserted_op(spec: Any) -> None:
    operations = block_of(spec).operations
    old = list(operations)
    added = MIL_pb2.Operation()
    added.CopyFrom(op_named(block_of(spec), "y"))
    added.type = "sigmoid"
    added.outputs[0].name = "gate"
    added.attributes["name"].CopyFrom(text_value("gate"))
    old[-1].inputs["x"].arguments[0].name = "gate"
    del operations[:]
    operations.extend([*old[:-1], added, old[-1]])


def scalar(spec: Any) -> None:
    name = op_named(block_of(spec), "y").inputs["y"].arguments[0].name
    value = op_named(block_of(spec), name).attributes["val"]
    value.immediateValue.tensor.bytes.values = np.float16(3).tobytes()


def rewired(spec: Any) -> None:
    op = op_named(block_of(spec), "y")
    op.inputs["x"].CopyFrom(op.inputs["y"])


def in_a_block(spec: Any) -> None:
    op = next(op for op in block_of(spec).operations if op.blocks)
    inner = next(each for each in op.blocks[1].operations if each.type == "add")
    inner.type = "sub"


def op_name(spec: Any) -> None:
    op_named(block_of(spec), "hidden").attributes["name"].CopyFrom(text_value("model/layer0/hidden"))


def value_name(spec: Any) -> None:
    block = block_of(spec)
    op_named(block, "hidden").outputs[0].name = "inner"
    op_named(block, "y").inputs["x"].arguments[0].name = "inner"


def reordered(spec: Any) -> None:
    operations = block_of(spec).operations
    first, second = (index for index, op in enumerate(operations) if op.type in ("sqrt", "exp"))
    old = list(operations)
    old[first], old[second] = old[second], old[first]
    del operations[:]
    operations.extend(old)


def two_branches() -> Program:
    def build(x: Any) -> Any:
        return mb.add(x=mb.sqrt(x=x), y=mb.exp(x=x), name="y")

    inputs = [mb.TensorSpec(shape=(4, 8), dtype=types.fp32)]
    return program_of(mb.program(input_specs=inputs, opset_version=Target.iOS17)(build))


def one_weight(package: Path) -> None:
    """Another number in the middle of the first tensor."""
    file = package / WEIGHTS
    content = bytearray(file.read_bytes())
    (start,) = struct.unpack_from("<Q", content, 64 + 16)
    content[start + 8 : start + 10] = np.float16(100).tobytes()
    file.write_bytes(content)


def stored_twice(package: Path) -> None:
    """The tensor of one function, once more at the end of the file."""
    file = package / WEIGHTS
    content = file.read_bytes()
    content += bytes(-len(content) % 64)
    spec = spec_of(package)
    held = next(
        op.attributes["val"].blobFileValue
        for op in block_of(spec, "prefill").operations
        if op.type == "const" and op.attributes["val"].HasField("blobFileValue")
    )
    sentinel, code, size, start, padding = struct.unpack_from("<IIQQQ", content, held.offset)
    held.offset = len(content)
    entry = struct.pack("<IIQQQ", sentinel, code, size, len(content) + 64, padding)
    file.write_bytes(content + entry.ljust(64, b"\0") + content[start : start + size])
    write_spec(package, spec)


def another_file(package: Path) -> None:
    file = package / WEIGHTS
    file.with_name("other.bin").write_bytes(file.read_bytes())
    spec = spec_of(package)
    for op in block_of(spec).operations:
        if op.type == "const" and op.attributes["val"].HasField("blobFileValue"):
            op.attributes["val"].blobFileValue.fileName = "@model_path/weights/other.bin"
    write_spec(package, spec)


def add_file(package: Path) -> None:
    (package / "Data/notes").mkdir()
    (package / "Data/notes/a.txt").write_text("a")
    manifest = json.loads((package / "Manifest.json").read_text())
    manifest["itemInfoEntries"]["N"] = {"path": "notes", "name": "notes", "author": "me", "description": ""}
    (package / "Manifest.json").write_text(json.dumps(manifest))


def rename_specification(package: Path) -> None:
    manifest = json.loads((package / "Manifest.json").read_text())
    item = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]
    data = package / "Data/com.apple.CoreML"
    (data / "model.mlmodel").rename(data / "other.mlmodel")
    item["path"] = "com.apple.CoreML/other.mlmodel"
    (package / "Manifest.json").write_text(json.dumps(manifest))


def compressed(bits: int) -> Build:
    def build() -> Program:
        def body(x: Any) -> Any:
            lut: Any = np.arange(1 << bits, dtype=np.float16)
            dtype = types.nptype_from_builtin(types.string_to_builtin(f"uint{bits}"))
            indices: Any = (np.arange(128) % 16).astype(dtype)
            lut, indices = lut.reshape(1, 1, -1, 1), indices.reshape(8, 16)
            return mb.linear(x=x, weight=mb.constexpr_lut_to_dense(indices=indices, lut=lut), name="y")

        inputs = [mb.TensorSpec(shape=(1, 16), dtype=types.fp16)]
        return program_of(mb.program(input_specs=inputs, opset_version=Target.iOS18)(body))

    return build


def classes(spec: Any) -> None:
    identity.class_outputs(spec)


PLANTED: dict[str, Planted] = {
    "the name of an input": Planted({"interface"}, '"first"', rename_input),
    "the name of an output": Planted({"interface"}, '"z"', rename_output),
    "the name of a state": Planted({"interface"}, '"sum"', rename_state, counter),
    "the order of inputs": Planted({"interface"}, "order of inputs", swap_described_inputs, two_inputs),
    "the order of the program's inputs": Planted(
        {"interface"}, "order of the program", swap_program_inputs, two_inputs
    ),
    "another output": Planted({"interface", "ops"}, 'added output "hidden"', add_output),
    "an input's type": Planted({"interface"}, "FLOAT16 -> DOUBLE", dtype),
    "a default shape": Planted({"interface"}, "[4, 8] -> [2, 8]", default_shape, relu, identity.ranged),
    "a range": Planted({"interface"}, "4096", upper_bound, relu, identity.ranged),
    "an open end": Planted({"interface"}, "upperBound: -1", upper_bound, relu, identity.open_ended),
    "enumerated shapes": Planted({"interface"}, "shape: 3", enumeration, relu, identity.enumerated),
    "an input's dimension": Planted({"interface"}, "fp32[?, 8]", declared_dimension, relu, identity.ranged),
    "optional": Planted({"interface"}, "isOptional", optional, relu, identity.optional_with_default),
    "a default value": Planted({"interface"}, "-2.5 -> -2.25", default_value, relu, identity.optional_with_default),
    "a colour layout": Planted(
        {"interface"}, "BGR -> RGB", image_layout, lambda: identity.relu(1, 3, 8, 6), identity.images
    ),
    "an image size": Planted({"interface"}, "6 -> 12", image_size, lambda: identity.relu(1, 3, 8, 6), identity.images),
    "an image that turns into an array": Planted(
        {"interface"}, "multiArrayType", image_to_array, lambda: identity.relu(1, 3, 8, 6), identity.images
    ),
    "the text of an input": Planted({"interface"}, "another", description_of("input"), base=identity.described),
    "the text of an output": Planted({"interface"}, "another", description_of("output"), base=identity.described),
    "the text of a state": Planted({"interface"}, "another", description_of("state"), counter),
    "a class label": Planted({"classifier"}, "label 1: b -> cat", label, identity.classifier, classes),
    "the name of the probabilities": Planted(
        {"classifier"},
        "predictedProbabilitiesName",
        described_as("predictedProbabilitiesName", ""),
        identity.classifier,
        classes,
    ),
    "the name of the label": Planted(
        {"classifier"}, "predictedFeatureName", described_as("predictedFeatureName", ""), identity.classifier, classes
    ),
    "the default function": Planted(
        {"functions"}, '"decode" -> "prefill"', described_as("defaultFunctionName", "prefill"), two_functions
    ),
    "a function": Planted({"functions"}, 'removed function "prefill"', drop_function, two_functions),
    "an opset": Planted(
        {"opsets"}, "CoreML7 -> CoreML8", opset("main"), base=version, build=lambda: linear(opset=Target.iOS17)
    ),
    "the specification's version": Planted({"specification"}, "7 -> 8", version),
    "the author": Planted({"metadata"}, "author", metadata("author"), base=identity.described),
    "the licence": Planted({"metadata"}, "license", metadata("license"), base=identity.described),
    "the version": Planted({"metadata"}, "versionString", metadata("versionString"), base=identity.described),
    "the short description": Planted(
        {"metadata"}, "shortDescription", metadata("shortDescription"), base=identity.described
    ),
    "a key of the user": Planted({"metadata"}, "userDefined[key]", user_defined, base=identity.described),
    "training": Planted({"interface", "specification"}, "updatable", identity.updatable),
    "build info": Planted({"attributes"}, "buildInfo", build_info, base=identity.attributes),
    "an attribute of a function": Planted(
        {"attributes"}, "function main: a", function_attribute, base=identity.attributes
    ),
    "an attribute of a block": Planted({"attributes"}, "block of main: e", block_attribute, base=identity.attributes),
    "an attribute of a type": Planted({"attributes"}, 'type of "hidden"', type_attribute, base=identity.attributes),
    "an attribute of an op": Planted({"ops"}, 'g=string("j")', op_attribute, base=identity.attributes),
    "the program's doc string": Planted({"docs"}, "of the program", program_doc, base=identity.attributes),
    "a value's doc string": Planted({"docs"}, "why this value", value_doc, base=identity.attributes),
    "a further file": Planted({"files"}, "notes/a.txt", touch=add_file),
    "the specification's file": Planted({"files"}, "other.mlmodel", touch=rename_specification),
    "another op": Planted({"ops"}, "relu(x=%hidden) -> %y: fp16[1, 8] = tanh(x=%hidden)", another_op),
    "a new op": Planted({"ops"}, 'added main: sigmoid "gate"', inserted_op),
    "a scalar": Planted({"ops"}, "y=fp16(3.0)", scalar, counter),
    "other inputs of an op": Planted({"ops"}, "sub(", rewired, two_inputs),
    "an op in a block": Planted({"ops"}, "add 1 -> 0, sub 0 -> 1", in_a_block, loop),
    "an op's name": Planted({"names"}, "model/layer0/hidden", op_name),
    "a value's name": Planted({"names"}, "hidden -> inner", value_name),
    "the order of ops": Planted({"order"}, "place of", reordered, two_branches),
    "a weight": Planted({"weights"}, "weight of", touch=one_weight),
    "a compressed weight of iOS 16": Planted({"weights"}, "", touch=one_weight, build=compressed_ios16),
    "a compressed weight of iOS 18": Planted({"weights"}, "", touch=one_weight, build=compressed_ios18),
    "the bits of a compressed weight": Planted(
        {"ops", "compression", "weights", "names"}, "uint4", build=compressed(4), instead=compressed(6)
    ),
    "sharing": Planted({"sharing"}, "stored once -> stored 2 times", touch=stored_twice, build=two_functions),
    "the weight file": Planted({"storage"}, "weights/other.bin", touch=another_file),
    "another encoding": Planted({"encoding"}, "the specification", identity.other_encodings, counter),
    "constants inside ops": Planted({"encoding"}, "written inside the op", identity.literals),
}

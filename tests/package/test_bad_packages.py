"""Bad input: one line that says what is wrong, nothing followed out of the package, and the next load works."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coremltools.proto import MIL_pb2

from milopt.errors import MiloptError, PackageError
from milopt.mil import Target, mb, operations, types
from milopt.package import load

from .packages import block_of, op_named, text_value
from .support import SPEC, WEIGHTS, counter, edit_manifest, entries, linear, program_of, spec_of, weight, write_spec
from .test_storing import table


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return load(linear()).save(tmp_path / "a.mlpackage")


def refused(source: Any) -> str:
    with pytest.raises(PackageError) as caught:
        load(source)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


def patch_weights(package: Path, at: int, content: bytes) -> None:
    file = bytearray((package / WEIGHTS).read_bytes())
    file[at : at + len(content)] = content
    (package / WEIGHTS).write_bytes(file)


def set_manifest(package: Path, content: object) -> None:
    (package / "Manifest.json").write_text(json.dumps(content))


def first_blob(spec: Any) -> Any:
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    return next(op.attributes["val"] for op in block.operations if op.attributes["val"].HasField("blobFileValue"))


def test_things_that_are_no_package(tmp_path: Path) -> None:
    (tmp_path / "file.mlpackage").write_bytes(random.Random(0).randbytes(1000))
    (tmp_path / "empty.mlpackage").mkdir()
    (tmp_path / "network.mlmodel").write_bytes(b"\x08\x04")
    (tmp_path / "compiled.mlmodelc").mkdir()
    assert "is a model of no type" in refused(tmp_path / "network.mlmodel")
    assert "is a compiled model" in refused(tmp_path / "compiled.mlmodelc")
    assert "no such file" in refused(tmp_path / "absent.mlpackage")
    assert "can't be read" in refused(tmp_path / ("a" * 300))
    assert "a .mlpackage is a folder" in refused(tmp_path / "file.mlpackage")
    assert "has no Manifest.json" in refused(str(tmp_path / "empty.mlpackage"))
    with pytest.raises(MiloptError, match="can't load a int"):
        load(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\x00", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "holds no object"),
        (b"{}", "has no itemInfoEntries"),
        (b'{"itemInfoEntries": {"a": 1}}', "an item is not an object"),
        (b'{"itemInfoEntries": {}, "rootModelIdentifier": "a"}', "rootModelIdentifier names no item"),
        (b'{"itemInfoEntries": {}, "rootModelIdentifier": ["a"]}', "rootModelIdentifier names no item"),
    ],
)
def test_manifest_that_says_nothing(package: Path, content: bytes, message: str) -> None:
    (package / "Manifest.json").write_bytes(content)
    assert message in refused(package)


@pytest.mark.parametrize("path", ["../../secret", "/etc/passwd", "a\\..\\b", "", ".", 3, "a\0b"])
def test_manifest_that_leads_out(package: Path, path: object) -> None:
    edit_manifest(package, path=path)
    assert "Manifest.json" in refused(package)


def test_a_message_is_no_longer_than_a_line() -> None:
    assert len(str(PackageError("x" * 10_000))) < 2000
    assert str(PackageError("short")) == "short"


@pytest.mark.parametrize("length", [300, 5000])
def test_manifest_with_a_path_that_no_disk_has(package: Path, length: int) -> None:
    edit_manifest(package, path="x" * length)
    assert len(refused(package)) < 1500


@pytest.mark.parametrize("what", [SPEC, WEIGHTS, "Manifest.json"])
def test_link_that_leads_out(package: Path, tmp_path: Path, what: str) -> None:
    (package / what).rename(tmp_path / "elsewhere")
    (package / what).symlink_to(tmp_path / "elsewhere")
    assert "is a link that leaves the package" in refused(package)


def test_link_that_stays_inside(package: Path) -> None:
    (package / SPEC).rename(package / "Data/real.mlmodel")
    (package / SPEC).symlink_to("../real.mlmodel")
    assert load(package).functions


def test_link_to_itself(package: Path) -> None:
    (package / SPEC).unlink()
    (package / SPEC).symlink_to("model.mlmodel")
    refused(package)


def test_missing_files(package: Path) -> None:
    (package / WEIGHTS).unlink()
    assert "weights/weight.bin is missing" in refused(package)
    (package / SPEC).unlink()
    assert "model.mlmodel is missing" in refused(package)


def test_specification_cut_anywhere(package: Path) -> None:
    content = (package / SPEC).read_bytes()
    for length in range(0, len(content), 97):
        (package / SPEC).write_bytes(content[:length])
        refused(package)


def test_weight_file_cut_short(package: Path) -> None:
    content = (package / WEIGHTS).read_bytes()
    cut = entries(package)[0] + 64 + 100
    (package / WEIGHTS).write_bytes(content[:cut])
    start = entries(package)[0] + 64
    assert f"weights/weight.bin: tensor at offset 64 needs 256 bytes at {start}, the file has {cut}" in refused(package)
    (package / WEIGHTS).write_bytes(content[:70])
    assert "lies past the end of the file, which has 70 bytes" in refused(package)
    for length in (0, 10):
        (package / WEIGHTS).write_bytes(content[:length])
        assert "weight.bin" in refused(package)


@pytest.mark.parametrize(
    ("field", "content", "message"),
    [
        (0, struct.pack("<I", 0xDEADBEAF), "has no entry there"),
        (4, struct.pack("<I", 2), "holds element code 2, the specification says fp16"),
        (8, struct.pack("<Q", 2**60), "its shape needs 256"),
        (16, struct.pack("<Q", 2**63), "needs 256 bytes at"),
        (16, struct.pack("<Q", 0), "says its data is at 0"),
        (16, struct.pack("<Q", 130), "says its data is at 130"),
    ],
)
def test_weight_entry_that_lies(package: Path, field: int, content: bytes, message: str) -> None:
    patch_weights(package, entries(package)[0] + field, content)
    assert message in refused(package)


def set_name(name: str) -> Callable[[Any], None]:
    return lambda value: setattr(value.blobFileValue, "fileName", name)


def set_offset(offset: int) -> Callable[[Any], None]:
    return lambda value: setattr(value.blobFileValue, "offset", offset)


def set_size(value: Any) -> None:
    for dim in value.type.tensorType.dimensions:
        dim.constant.size = 2**40


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_name("@model_path/../../../secret"), "leads out of the package"),
        (set_name("/etc/passwd"), "does not start with @model_path/"),
        (set_name("@model_path//etc/passwd"), "leads out of the package"),
        (set_name("@model_path/weights/other.bin"), "weights/other.bin is missing"),
        (set_offset(65), "is not on a multiple of 64"),
        (set_offset(2**62), "lies past the end of the file"),
        (set_size, "its shape needs"),
    ],
)
def test_blob_reference_that_lies(package: Path, change: Callable[[Any], None], message: str) -> None:
    spec = spec_of(package)
    change(first_blob(spec))
    write_spec(package, spec)
    assert message in refused(package)


def test_broken_programs(package: Path) -> None:
    def with_change(change: Callable[[Any], None]) -> str:
        spec = spec_of(package)
        change(spec.mlProgram.functions["main"])
        shutil.rmtree(package.parent / "b.mlpackage", ignore_errors=True)
        shutil.copytree(package, package.parent / "b.mlpackage")
        write_spec(package.parent / "b.mlpackage", spec)
        return refused(package.parent / "b.mlpackage")

    def block(function: Any) -> Any:
        return function.block_specializations["CoreML6"]

    def undefined(function: Any) -> None:
        block(function).operations[-1].inputs["x"].arguments[0].name = "nothing"

    def cyclic(function: Any) -> None:
        block(function).operations[-2].inputs["x"].arguments[0].name = "y"

    assert "unknown opset 'CoreML99'" in with_change(lambda function: setattr(function, "opset", "CoreML99"))
    assert "op 'y': the value 'nothing' is used and not defined before" in with_change(undefined)
    assert "the value 'y' is used and not defined before" in with_change(cyclic)
    assert "default function 'main' is not among" in with_rename(package)
    assert load(package).functions  # none of this left a trace in the process


def with_rename(package: Path) -> str:
    spec = spec_of(package)
    spec.mlProgram.functions["other"].CopyFrom(spec.mlProgram.functions["main"])
    del spec.mlProgram.functions["main"]
    target = package.parent / "c.mlpackage"
    shutil.copytree(package, target)
    write_spec(target, spec)
    return refused(target)


def changed(package: Path, change: Callable[[Any], None]) -> str:
    """What is said of the package with a changed block."""
    spec = spec_of(package)
    change(block_of(spec))
    write_spec(package, spec)
    return refused(package)


def value_of(block: Any, output: str) -> Any:
    return op_named(block, output).attributes["val"]


def linear_with_scale(folder: Path) -> Path:
    """A linear layer whose result is scaled by a constant in the specification."""

    def build(x: Any) -> Any:
        scale = mb.const(val=np.arange(4, dtype=np.float32), name="scale")
        return mb.mul(x=x, y=scale, name="y")

    inputs = [mb.TensorSpec(shape=(4,), dtype=types.fp32)]
    return load(program_of(mb.program(input_specs=inputs, opset_version=Target.iOS16)(build))).save(
        folder / "s.mlpackage"
    )


def test_tensors_that_overlap(package: Path) -> None:
    """Two entries with the same data, and an entry inside another tensor's data."""
    content = (package / WEIGHTS).read_bytes()
    (first, second) = entries(load(table(weight(16, 16), weight(16, 16) + 1)).save(package.parent / "two.mlpackage"))
    two = package.parent / "two.mlpackage"
    start = struct.unpack_from("<Q", (two / WEIGHTS).read_bytes(), second + 16)[0]
    patch_weights(two, first + 16, struct.pack("<Q", start))
    assert f"the tensors at offsets {first} and {second} overlap" in refused(two)
    patch_weights(package, 128, content[64:128])  # an entry in the middle of the data, with data behind it
    patch_weights(package, 128 + 16, struct.pack("<Q", 192))
    (package / WEIGHTS).write_bytes((package / WEIGHTS).read_bytes() + bytes(64))

    def use_both(block: Any) -> None:
        other = block.operations.add()
        other.CopyFrom(next(op for op in block.operations if op.attributes["val"].HasField("blobFileValue")))
        other.outputs[0].name = "other"
        other.attributes["val"].blobFileValue.offset = 128

    assert "overlap" in changed(package, use_both)


def one_less(tensor: Any) -> None:
    tensor.floats.values.pop()


def none_at_all(tensor: Any) -> None:
    tensor.ClearField("floats")


def a_string(tensor: Any) -> None:
    tensor.strings.values.append("x")


def three_bytes(tensor: Any) -> None:
    tensor.bytes.values = b"abc"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (one_less, "holds 3 elements, its shape needs 4"),
        (none_at_all, "holds no value"),
        (a_string, "is declared fp32 and holds strings"),
        (three_bytes, "holds 3 bytes, which is no whole number of elements"),
    ],
)
def test_values_that_are_not_what_they_say(change: Any, message: str, tmp_path: Path) -> None:
    package = linear_with_scale(tmp_path)
    assert message in changed(package, lambda block: change(value_of(block, "scale").immediateValue.tensor))


def test_gigantic_shapes_with_little_data(tmp_path: Path) -> None:
    def grow(block: Any) -> None:
        op = op_named(block, "scale")
        for kind in (op.outputs[0].type, op.attributes["val"].type):
            kind.tensorType.dimensions[0].constant.size = 2**60

    package = linear_with_scale(tmp_path)
    assert f"its shape needs {2**60}" in changed(package, grow)


def test_gigantic_result_costs_nothing(tmp_path: Path) -> None:
    package = linear_with_scale(tmp_path)
    spec = spec_of(package)
    op_named(block_of(spec), "y").outputs[0].type.tensorType.dimensions[0].constant.size = 2**62
    write_spec(package, spec)
    assert load(package).function().outputs[0].shape == (2**62,)

    def beyond(block: Any) -> None:
        op_named(block, "y").outputs[0].type.tensorType.dimensions[0].constant.size = 2**63

    assert f"has a dimension of {2**63}" in changed(package, beyond)


def test_strings_that_would_fill_the_memory(tmp_path: Path) -> None:
    def grow(block: Any) -> None:
        op = op_named(block, "scale")
        for kind in (op.outputs[0].type, op.attributes["val"].type):
            kind.tensorType.dataType = MIL_pb2.DataType.STRING
            kind.tensorType.dimensions[0].constant.size = 100_001
        strings = op.attributes["val"].immediateValue.tensor.strings.values
        strings.extend(["x" * 1_000_000, *([""] * 100_000)])

    assert "strings of up to 1000000 characters" in changed(linear_with_scale(tmp_path), grow)


def duplicate(block: Any) -> None:
    block.operations.add().CopyFrom(op_named(block, "scale"))


def no_value(block: Any) -> None:
    del op_named(block, "scale").attributes["val"]


def unbound(block: Any) -> None:
    op_named(block, "y").inputs["x"].arguments[0].Clear()


def in_a_list(block: Any) -> None:
    value = op_named(block, "scale").attributes["val"]
    value.type.Clear()
    value.type.listType.type.tensorType.dataType = MIL_pb2.DataType.FLOAT32
    inner = value.immediateValue.list.values.add()
    inner.type.tensorType.dataType = MIL_pb2.DataType.FLOAT32
    inner.blobFileValue.fileName = "@model_path/weights/weight.bin"


def strange_type(block: Any) -> None:
    op_named(block, "y").outputs[0].type.tensorType.dataType = MIL_pb2.DataType.BFLOAT16


def untyped(block: Any) -> None:
    op_named(block, "y").outputs[0].type.Clear()


def wrong_rank(block: Any) -> None:
    op_named(block, "y").outputs[0].type.tensorType.rank = 3


def blob_attribute(block: Any) -> None:
    block.attributes["x"].blobFileValue.fileName = "@model_path/weights/weight.bin"


def other_type(block: Any) -> None:
    op_named(block, "scale").outputs[0].type.tensorType.dataType = MIL_pb2.DataType.INT32


def no_output(block: Any) -> None:
    block.outputs[0] = "nowhere"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (duplicate, "the value 'scale' is defined twice"),
        (no_value, "is a const that does not consist of one value and one output"),
        (unbound, "its input 'x' is bound to nothing"),
        (in_a_list, "weights/weight.bin is missing"),
        (strange_type, "has element type BFLOAT16, which coremltools has no counterpart of"),
        (untyped, "has no type"),
        (wrong_rank, "has rank 3 and 1 dimensions"),
        (blob_attribute, "has an attribute whose value lies in a weight file"),
        (other_type, "has a value of another type than its output"),
        (no_output, "a block's output: the value 'nowhere' is used and not defined before"),
    ],
)
def test_programs_that_make_no_sense(change: Any, message: str, tmp_path: Path) -> None:
    assert message in changed(linear_with_scale(tmp_path), change)


def test_many_things_of_one_name(package: Path) -> None:
    """Finding new names for them takes no time that grows with the square of their number."""
    spec = spec_of(package)
    block = block_of(spec)
    for index in range(5000):
        op = block.operations.add(type="unknown")
        op.attributes["name"].CopyFrom(text_value("same"))
        if index % 2:
            op.outputs.add(name=f"value{index}", type=op_named(block, "y").outputs[0].type)
    write_spec(package, spec)
    start = time.process_time()
    names = [op.name for op in operations(load(package).function()) if op.op_type == "unknown"]
    assert (len(names), len(set(names))) == (5000, 5000)
    assert time.process_time() - start < 10  # about one second; it was a minute


def test_state_of_no_tensor(tmp_path: Path) -> None:
    package = load(counter()).save(tmp_path / "a.mlpackage")
    spec = spec_of(package)
    (state,) = (each for each in spec.mlProgram.functions["main"].inputs if each.type.HasField("stateType"))
    state.type.stateType.wrappedType.tensorType.ClearField("dimensions")
    state.type.stateType.wrappedType.tensorType.rank = 0
    write_spec(package, spec)
    assert "is a state of something that is no tensor" in refused(package)


def test_program_of_another_version(package: Path) -> None:
    spec = spec_of(package)
    spec.mlProgram.version = 2
    write_spec(package, spec)
    assert "has a program of version 2; 1 is known" in refused(package)


@pytest.mark.parametrize("what", ["Manifest.json", SPEC, WEIGHTS])
def test_files_that_are_none(package: Path, what: str) -> None:
    """Reading a pipe would wait for ever."""
    (package / what).unlink()
    os.mkfifo(package / what)
    refused(package)


@pytest.mark.parametrize("what", ["Manifest.json", SPEC])
def test_files_that_are_too_large(package: Path, what: str) -> None:
    with (package / what).open("r+b") as file:
        file.truncate(1 << 40)  # with a hole: it takes no room
    assert f"has {1 << 40} bytes" in refused(package)


def test_attachment_that_is_too_large(package: Path) -> None:
    with (package / "Data/com.apple.CoreML/weights/more.bin").open("wb") as file:
        file.truncate(1 << 40)
    assert f"more.bin has {1 << 40} bytes" in refused(package)


def test_flipped_bytes_load_or_are_refused(package: Path) -> None:
    """No other exception, whatever bytes are changed in the files that are parsed."""
    dice = random.Random(0)
    for name in (SPEC, WEIGHTS, "Manifest.json"):
        content = (package / name).read_bytes()
        for _ in range(60):
            changed = bytearray(content)
            for _ in range(dice.randint(1, 4)):
                changed[dice.randrange(min(len(changed), 2048))] = dice.randrange(256)
            (package / name).write_bytes(changed)
            with contextlib.suppress(PackageError):
                load(package)
        (package / name).write_bytes(content)

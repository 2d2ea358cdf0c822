"""Bad input: one line that says what is wrong, nothing followed out of the package, and the next load works."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from coremltools.proto import Model_pb2

from milopt.errors import MiloptError, PackageError
from milopt.package import load

from .support import SPEC, WEIGHTS, edit_manifest, entries, linear, spec_of, write_spec


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


def test_only_ml_programs(package: Path) -> None:
    spec = Model_pb2.Model(specificationVersion=4)
    spec.neuralNetwork.SetInParent()
    write_spec(package, spec)
    assert "is a neuralNetwork; milopt reads ML Programs only" in refused(package)
    spec.pipeline.SetInParent()
    write_spec(package, spec)
    assert "is a pipeline; milopt reads ML Programs only" in refused(package)


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

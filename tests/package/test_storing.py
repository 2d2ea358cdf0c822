"""Weight files: what is copied, what is stored once, what is packed, and where."""

from __future__ import annotations

import errno
import importlib
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from milopt.errors import PackageError
from milopt.mil import Operation, Program, Target, mb, operations, replace_uses, types
from milopt.package import Model, load
from milopt.package.blobs import ELEMENTS
from milopt.package.packing import pack, unpack
from milopt.package.weights import Mapping, piece_of
from milopt.text import text

from .packages import block_of
from .support import WEIGHTS, entries, linear, program_of, spec_of, weight, write_spec
from .test_writing import array_of, compressed_ios18

WRITERS = {"fp16": "write_fp16_data", "fp32": "write_float_data"}


def table(*arrays: Any) -> Program:
    """Constants that nothing uses."""

    def build(x: Any) -> Any:
        for index, each in enumerate(arrays):
            mb.const(val=each, name=f"w{index}")
        return mb.relu(x=x, name="y")

    inputs = [mb.TensorSpec(shape=(4,), dtype=types.fp32)]
    return program_of(mb.program(input_specs=inputs, opset_version=Target.iOS18)(build))


def constant_named(model: Model, name: str) -> Operation:
    return next(op for op in operations(model.function()) if op.outputs[0].name == name)


@pytest.mark.parametrize("element", ELEMENTS.values(), ids=lambda element: element.name)
def test_as_coremltools_stores_it(element: Any, tmp_path: Path) -> None:
    """Every element type, with a count that leaves bits over."""
    values = array_of(element.name, 1, 1003)
    storage: Any = importlib.import_module("coremltools.libmilstoragepython")
    writer = storage._BlobStorageWriter(str(tmp_path / "theirs.bin"))
    theirs = values.reshape(-1).view(np.uint16) if element.name == "fp16" else values.reshape(-1)
    getattr(writer, WRITERS.get(element.name, f"write_{element.name}_data"))(theirs)
    del writer
    package = load(table(values)).save(tmp_path / "a.mlpackage")
    assert (package / WEIGHTS).read_bytes() == (tmp_path / "theirs.bin").read_bytes()
    np.testing.assert_array_equal(constant_named(load(package), "w0").outputs[0].val, values)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 1000])
def test_packing(bits: int, count: int) -> None:
    values = np.random.default_rng(0).integers(0, 1 << bits, count).astype(np.uint8)
    packed = pack(values, bits)
    assert len(packed) == (count * bits + 7) // 8
    np.testing.assert_array_equal(unpack(packed, bits, count, signed=False), values)
    if count:
        with pytest.raises(ValueError, match=f"a value of {bits} bits is {1 << bits}"):
            pack(np.full(count, 1 << bits, np.uint8), bits)


def test_untouched_weights_are_bytes_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is unpacked, and nothing hashed but what begins alike."""
    package = load(compressed_ios18()).save(tmp_path / "a.mlpackage")
    weights: Any = importlib.import_module("milopt.package.weights")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a weight was unpacked")

    monkeypatch.setattr(weights, "unpack", refuse)
    again = load(package).save(tmp_path / "b.mlpackage")
    assert (again / WEIGHTS).read_bytes() == (package / WEIGHTS).read_bytes()


def test_entry_is_copied_with_what_it_holds(tmp_path: Path) -> None:
    """Older writers leave bytes in fields that mean nothing for them."""
    package = load(linear()).save(tmp_path / "a.mlpackage")
    content = bytearray((package / WEIGHTS).read_bytes())
    at = entries(package)[0]
    content[at + 24 : at + 64] = bytes(range(40))
    (package / WEIGHTS).write_bytes(content)
    again = load(package).save(tmp_path / "b.mlpackage")
    assert (again / WEIGHTS).read_bytes() == bytes(content)


def test_stored_once_in_a_package_that_has_it_twice(tmp_path: Path) -> None:
    """Large tensors; small ones stay as they are, so that the file does."""
    large, small = weight(32, 16), weight(2, 16)
    package = load(table(large, large + 1, small, small + 1)).save(tmp_path / "a.mlpackage")
    content = bytearray((package / WEIGHTS).read_bytes())
    offsets = entries(package)
    starts = [struct.unpack_from("<Q", content, at + 16)[0] for at in offsets]
    for one, other, array in ((0, 1, large), (2, 3, small)):
        content[starts[other] : starts[other] + array.nbytes] = content[starts[one] : starts[one] + array.nbytes]
    (package / WEIGHTS).write_bytes(content)
    model = load(package)
    again = model.save(tmp_path / "b.mlpackage")
    assert (len(offsets), len(entries(again))) == (4, 3)
    assert text(load(again), weights="hash") == text(model, weights="hash")


def test_new_tensor_equal_to_an_old_one_is_stored_once(tmp_path: Path) -> None:
    package = load(table(weight(8, 16))).save(tmp_path / "a.mlpackage")
    model = load(package)
    old = constant_named(model, "w0")
    with model.function():
        new = mb.const(val=np.array(old.outputs[0].val), before_op=old, name="new")
        view = mb.const(val=old.outputs[0].val.reshape(16, 8), before_op=old, name="view")
        part = mb.const(val=old.outputs[0].val[4:], before_op=old, name="part")
        turned = mb.const(val=old.outputs[0].val.T, before_op=old, name="turned")
    again = load(model.save(tmp_path / "b.mlpackage"))
    assert len(entries(tmp_path / "b.mlpackage")) == 3  # itself, a part of it, it in another order
    for var in (new, view, part, turned):
        np.testing.assert_array_equal(constant_named(again, var.name).outputs[0].val, var.val)


@pytest.mark.parametrize("dtype", ["fp16", "uint4", "int4", "uint3"])
def test_large_arrays_in_any_order(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written in parts, which must fit together."""
    storing: Any = importlib.import_module("milopt.package.storing")
    monkeypatch.setattr(storing, "_CHUNK", 256)
    array = array_of(dtype, 40, 24, 3)
    arrays = [array, array.transpose(2, 0, 1), array[::2], array[:, :8].transpose(1, 0, 2), array[..., 0]]
    package = load(table(*arrays)).save(tmp_path / "a.mlpackage")
    for index, each in enumerate(arrays):
        np.testing.assert_array_equal(constant_named(load(package), f"w{index}").outputs[0].val, each)


@pytest.mark.parametrize("number", [errno.EXDEV, None])
def test_large_weights_are_copied_by_the_system(
    number: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it can; between two file systems it may refuse."""
    package = load(table(weight(600, 1000), weight(4))).save(tmp_path / "a.mlpackage")
    copied: list[int] = []
    copy: Any = getattr(os, "copy_file_range", None)
    if copy is None:
        pytest.skip("this system has no copy_file_range")

    def counted(*arguments: int) -> int:
        if number is not None:
            raise OSError(number, "no")
        copied.append(copy(arguments[0], arguments[1], min(arguments[2], 500_000), arguments[3]))
        return copied[-1]

    monkeypatch.setattr(os, "copy_file_range", counted)
    again = load(package).save(tmp_path / "b.mlpackage")
    assert copied == ([] if number is not None else [500_000, 500_000, 200_000])
    assert (again / WEIGHTS).read_bytes() == (package / WEIGHTS).read_bytes()


CUT = r"^a\.mlpackage: weights/weight\.bin was cut to 300000 bytes since it was loaded, when it had \d+$"


def cut(package: Path) -> None:
    with (package / WEIGHTS).open("r+b") as file:
        file.truncate(300_000)


def nothing(_: Mapping) -> None:
    pass


def refuses_to_save(model: Model, folder: Path) -> None:
    with pytest.raises(PackageError, match=CUT):
        model.save(folder / "b.mlpackage")
    assert [each.name for each in folder.iterdir()] == ["a.mlpackage"]


@pytest.mark.parametrize("noticed", [True, False], ids=["before", "while it is read"])
@pytest.mark.parametrize("copies", [True, False], ids=["by the system", "by hand"])
@pytest.mark.parametrize("several", [True, False])
def test_weight_file_that_was_cut_since(
    noticed: bool, copies: bool, several: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, where looking at the mapping would end the process; ``several`` of a size are compared first."""
    arrays = [weight(600, 1000), weight(1000, 600)] if several else [weight(600, 1000)]
    package = load(table(*arrays)).save(tmp_path / "a.mlpackage")
    model = load(package)
    cut(package)
    if not noticed:
        monkeypatch.setattr(Mapping, "check", nothing)
    if not copies:
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    refuses_to_save(model, tmp_path)


def test_a_view_of_a_weight_file_that_was_cut_since(tmp_path: Path) -> None:
    """An array that views the mapping in another order can't be copied as bytes."""
    package = load(table(weight(600, 1000))).save(tmp_path / "a.mlpackage")
    model = load(package)
    old = constant_named(model, "w0")
    var: Any = old.outputs[0]
    var._sym_val.val = var.val[::-1]
    assert piece_of(var.val) is None
    cut(package)
    refuses_to_save(model, tmp_path)


def test_packed_elements_of_a_weight_file_that_was_cut_since(tmp_path: Path) -> None:
    package = load(table(array_of("int4", 1000, 1003))).save(tmp_path / "a.mlpackage")
    model = load(package)
    cut(package)
    with pytest.raises(PackageError, match=CUT):
        _ = constant_named(model, "w0").outputs[0].val
    refuses_to_save(model, tmp_path)


def test_several_files(tmp_path: Path) -> None:
    """Each constant stays in its file; what is new goes to the usual one."""
    package = load(table(weight(8, 16), weight(4, 16))).save(tmp_path / "a.mlpackage")
    spec = spec_of(package)
    blobs = [op.attributes["val"].blobFileValue for op in block_of(spec).operations if op.type == "const"]
    place = (package / WEIGHTS).parent
    (place / "deep").mkdir()
    (place / "deep/0-weight.bin").write_bytes((package / WEIGHTS).read_bytes())
    (place.parent / "beside.bin").write_bytes((package / WEIGHTS).read_bytes())
    blobs[0].fileName = "@model_path/weights/deep/0-weight.bin"
    blobs[1].fileName = "@model_path/beside.bin"
    (package / WEIGHTS).unlink()
    write_spec(package, spec)
    model = load(package)
    assert model.attachments == {}
    function = model.function()
    with function:
        mb.const(val=weight(16, 16), before_op=constant_named(model, "w0"), name="new")
    again = load(model.save(tmp_path / "b.mlpackage"))
    files = sorted(str(each.relative_to(tmp_path / "b.mlpackage/Data/com.apple.CoreML"))
                   for each in (tmp_path / "b.mlpackage/Data").rglob("*.bin"))  # fmt: skip
    assert files == ["beside.bin", "weights/deep/0-weight.bin", "weights/weight.bin"]
    for name in ("w0", "w1", "new"):
        np.testing.assert_array_equal(
            constant_named(again, name).outputs[0].val, constant_named(model, name).outputs[0].val
        )
    written = block_of(spec_of(tmp_path / "b.mlpackage")).operations
    names = [op.attributes["val"].blobFileValue.fileName for op in written if op.type == "const"]
    assert names == ["@model_path/weights/weight.bin", *(blob.fileName for blob in blobs)]


def test_place_of_a_constant_is_kept(tmp_path: Path) -> None:
    """A large one in the specification and a small one in the file stay there."""
    package = load(table(weight(8, 16), weight(3))).save(tmp_path / "a.mlpackage")
    spec = spec_of(package)
    large, small = (op.attributes["val"] for op in block_of(spec).operations if op.type == "const")
    offset = large.blobFileValue.offset
    large.immediateValue.tensor.bytes.values = weight(8, 16).tobytes()
    small.blobFileValue.fileName, small.blobFileValue.offset = "@model_path/weights/weight.bin", offset
    for dims in (
        small.type,
        next(op for op in block_of(spec).operations if op.outputs[0].name == "w1").outputs[0].type,
    ):
        dims.tensorType.dimensions[0].constant.size = 128
    write_spec(package, spec)
    assert spec_of(load(package).save(tmp_path / "b.mlpackage")) == spec


def test_replaced_weight_goes(tmp_path: Path) -> None:
    package = load(linear()).save(tmp_path / "a.mlpackage")
    model = load(package)
    function = model.function()
    op = next(op for op in function.operations if op.op_type == "linear")
    old: Any = op.inputs["weight"]
    with function:
        new = mb.const(val=weight(8, 16) * 2, before_op=op, name="new")
    replace_uses(old, new)
    function.remove_ops([old.op])
    again = model.save(tmp_path / "b.mlpackage")
    held = [len((each / WEIGHTS).read_bytes()) for each in (package, again)]
    assert held[0] == held[1]
    assert piece_of(constant_named(load(again), "new").outputs[0].val) is not None
    np.testing.assert_array_equal(constant_named(load(again), "new").outputs[0].val, weight(8, 16) * 2)

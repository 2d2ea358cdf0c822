"""``inspect`` knows all that a package has."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import milopt
from milopt.census import census
from milopt.inspection import Feature, Inspection
from milopt.interpreter import compile
from milopt.mil import Program, Target, mb, operations, types
from milopt.package import Model, load
from milopt.package.weights import Mapping, _Packing  # pyright: ignore[reportPrivateUsage]
from milopt.pipeline import Pipeline
from tests.package.packages import block_of, edited
from tests.package.support import WEIGHTS, counter, linear, loop, program_of, spec_of, two_functions, weight, write_spec
from tests.package.test_identity import FEATURES
from tests.package.test_writing import array_of, compressed_ios16, compressed_ios18


def feature(name: str, folder: Path, part: str = "inputs") -> Feature:
    """The first input or output of a package with that feature."""
    found: Feature = getattr(inspected(name, folder).functions[0], part)[0]
    return found


def inspected(name: str, folder: Path) -> Inspection:
    build, change = FEATURES[name]
    folder.mkdir(exist_ok=True)
    return milopt.inspect(edited(folder, change, build()))


@pytest.mark.parametrize("name", FEATURES)
def test_every_feature_of_a_package_can_be_told(name: str, tmp_path: Path) -> None:
    found = inspected(name, tmp_path)
    facts = json.loads(json.dumps(found.as_dict()))
    assert facts["bytes"] == sum(each.stat().st_size for each in tmp_path.rglob("*") if each.is_file())
    assert facts["specification_version"] == found.specification_version
    assert list(facts["functions"]) == [each.name for each in found.functions]
    assert facts["weight_bytes"] == sum(each["bytes"] for each in facts["weights"])


def test_sizes_of_inputs(tmp_path: Path) -> None:
    found = {name: feature(name, tmp_path / name) for name in ("ranges", "an open end", "enumerated shapes")}
    assert (found["ranges"].shape, found["ranges"].ranges) == ((None, 8), ((1, 4096), (8, 8)))
    assert found["an open end"].ranges == ((2, None), (8, 8))
    assert found["enumerated shapes"].shapes == ((4, 8), (1, 8), (16, 8))
    assert all(each.is_flexible for each in found.values())
    assert not milopt.inspect(linear()).functions[0].inputs[0].is_flexible


def test_images_defaults_states_and_labels(tmp_path: Path) -> None:
    image = feature("images", tmp_path / "images")
    assert (image.kind, image.color, image.default_shape, image.dtype) == ("image", "BGR", (8, 6), "fp32")
    optional = feature("an optional input", tmp_path / "optional")
    assert (optional.optional, optional.default) == (True, -2.5)
    (state,) = milopt.inspect(load(counter()).save(tmp_path / "a.mlpackage")).functions[0].states
    assert (state.kind, state.dtype, state.shape, state.default_shape) == ("state", "fp16", (1, 4), (1, 4))
    classifier = inspected("a classifier", tmp_path / "classifier").functions[0].classifier
    assert classifier is not None
    assert classifier.labels == ("a", "b", "ü")
    assert (classifier.label_output, classifier.probabilities_output) == ("label", "probabilities")


def test_texts_and_build_info(tmp_path: Path) -> None:
    found = inspected("texts and metadata", tmp_path / "texts")
    assert (found.author, found.license, found.version, found.description) == (
        "an author", "MIT", "1.0", "several\nlines"
    )  # fmt: skip
    assert found.metadata["com.github.apple.coremltools.version"] == "8.0"
    assert found.functions[0].inputs[0].text == "the input"
    assert inspected("attributes and doc strings", tmp_path / "attributes").build_info == {
        "buildInfo": {"coremlc-version": "3304.5.2"}
    }
    assert inspected("training", tmp_path / "updatable").updatable


def test_opsets_and_targets(tmp_path: Path) -> None:
    model = load(linear(opset=Target.iOS16))
    model.spec_version = 9
    found = milopt.inspect(model.save(tmp_path / "a.mlpackage"))
    assert found.functions[0].opset == "iOS16"
    assert (found.specification_version, found.targets) == (9, ("iOS18", "macOS15", "watchOS11", "tvOS18"))


def test_blocks_nested_in_ops() -> None:
    (function,) = milopt.inspect(loop()).functions
    (nested,) = function.nested
    assert (nested.type, [each.ops for each in nested.blocks]) == (
        "while_loop",
        [{"reduce_sum": 1, "greater": 1, "squeeze": 1}, {"mul": 2, "add": 1}],
    )
    assert [(each.inputs, each.outputs) for each in nested.blocks] == [(1, 1), (1, 1)]
    assert function.ops["mul"] == 3


def test_functions_share_weights(tmp_path: Path) -> None:
    found = milopt.inspect(load(two_functions()).save(tmp_path / "a.mlpackage"))
    assert found.default_function == "decode"
    tensor, bias = found.weights
    assert (bias.bytes, bias.used_by) == (32 * 2, ("linear.bias",))
    assert (tensor.functions, tensor.constants, tensor.used_by) == (("prefill", "decode"), 2, ("linear.weight",))
    assert (tensor.bytes, tensor.saved, found.saved, found.shared) == (1024, 1024, 1024 + 64, (tensor, bias))
    assert found.duplicates == ()
    assert found.weight_files == {"weights/weight.bin": 1024 + 64}


def test_one_function_of_several(tmp_path: Path) -> None:
    program = two_functions()
    model = load(program)
    package = model.save(tmp_path / "a.mlpackage")
    whole = milopt.inspect(package)
    found = milopt.inspect(package, functions=["decode"])
    assert [each.name for each in found.functions] == ["decode"]
    assert found.weights == whole.weights  # it still says who else uses them
    with pytest.raises(milopt.MiloptError, match="no function 'absent'; this model has: prefill, decode"):
        milopt.inspect(package, functions=["absent"])


def of_constants(*arrays: Any) -> Program:
    def build(x: Any) -> Any:
        kept = [mb.matmul(x=x, y=each, transpose_y=True, name=f"of_{index}") for index, each in enumerate(arrays)]
        return mb.concat(values=kept, axis=1, name="y")

    inputs = [mb.TensorSpec(shape=(1, 16), dtype=types.fp16)]
    return program_of(mb.program(input_specs=inputs, opset_version=Target.iOS18)(build))


def unmerged(folder: Path, program: Program) -> Path:
    """A package whose equal tensors lie apart, as other writers leave them: one of each pair is written as another."""
    package = load(program).save(folder / "a.mlpackage")
    content = bytearray((package / WEIGHTS).read_bytes())
    offsets = [
        op.attributes["val"].blobFileValue.offset
        for op in block_of(spec_of(package)).operations
        if op.attributes["val"].HasField("blobFileValue")
    ]
    first, second = offsets[:2]
    size = int.from_bytes(content[first + 8 : first + 16], "little")
    content[second + 64 : second + 64 + size] = content[first + 64 : first + 64 + size]
    (package / WEIGHTS).write_bytes(content)
    return package


def test_what_is_stored_twice_is_told_and_saving_ends_it(tmp_path: Path) -> None:
    package = unmerged(tmp_path, of_constants(weight(32, 16), weight(32, 16) + 1, weight(32, 16) + 2))
    found = milopt.inspect(package)
    (duplicate,) = found.duplicates
    assert (len(duplicate.names), duplicate.bytes, duplicate.wasted) == (2, 1024, 1024)
    again = milopt.inspect(load(package).save(tmp_path / "b.mlpackage"))
    assert again.duplicates == ()
    assert again.weight_bytes == found.weight_bytes - duplicate.wasted


def test_only_what_may_be_equal_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of tensors of one size the first 4096 bytes; the whole only of those that agree there."""
    same = weight(1000, 16)
    other = same.copy()
    other[-1, -1] += 1
    package = load(of_constants(same, other, weight(1000, 16) + 1, weight(999, 16))).save(tmp_path / "a.mlpackage")
    read: list[int] = []
    bytes_at: Callable[[Mapping, int, int], bytes] = Mapping.bytes_at

    def noted(self: Mapping, start: int, size: int) -> bytes:
        read.append(size)
        return bytes_at(self, start, size)

    monkeypatch.setattr(Mapping, "bytes_at", noted)
    assert milopt.inspect(package).duplicates == ()
    assert sorted(read) == [4096, 4096, 4096, 32000, 32000]


def test_several_weight_files(tmp_path: Path) -> None:
    package = load(of_constants(weight(32, 16), weight(33, 16))).save(tmp_path / "a.mlpackage")
    spec = spec_of(package)
    shutil.copy(package / WEIGHTS, (package / WEIGHTS).with_name("more.bin"))
    blob = next(op for op in block_of(spec).operations if op.attributes["val"].HasField("blobFileValue"))
    blob.attributes["val"].blobFileValue.fileName = "@model_path/weights/more.bin"
    write_spec(package, spec)
    found = milopt.inspect(package)
    assert sorted(found.weight_files.items(), key=str) == [("weights/more.bin", 1024), ("weights/weight.bin", 1056)]
    assert {each.file for each in found.weights} == {"weights/more.bin", "weights/weight.bin"}


# --- compressed weights


def test_palettes_blocks_and_what_is_made_of_others(tmp_path: Path) -> None:
    found = milopt.inspect(load(compressed_ios18()).save(tmp_path / "a.mlpackage"))
    assert len(found.compressed) == 8
    assert all(each.dense_bytes == 9 * 16 * 2 for each in found.compressed)
    told = {str(each): each for each in found.compressed}
    for bits in (1, 2, 3, 4, 6, 8):
        one = told[f"palettized {bits} bits, per tensor"]
        assert one.bytes == -(-9 * 16 * bits // 8) + (2 << bits)  # indices, and an fp16 table
        assert one.steps[0].bits == bits
    assert told["quantized 4 bits, per channel of axis 0"].bytes == 9 * 16 // 2 + 9 * 2
    joint = told["palettized 4 bits, per tensor of quantized 8 bits, per tensor"]
    assert [each.op for each in joint.steps] == ["constexpr_lut_to_dense", "constexpr_blockwise_shift_scale"]
    assert joint.bytes == 9 * 16 // 2 + 16 + 2


def test_older_forms(tmp_path: Path) -> None:
    found = milopt.inspect(load(compressed_ios16()).save(tmp_path / "a.mlpackage"))
    assert {each.steps[0].op for each in found.compressed} >= {
        "constexpr_lut_to_dense",
        "constexpr_affine_dequantize",
        "constexpr_sparse_to_dense",
    }
    for each in found.compressed:
        dense = 2 if each.dtype == "fp16" else 4
        assert each.dense_bytes == int(np.prod(each.shape)) * dense
        step = each.steps[0]
        if step.op == "constexpr_sparse_to_dense":
            assert step.density is not None
            assert f"{step.density:.0%} stored" in str(each)


@pytest.mark.parametrize(
    ("shape", "scale", "told"),
    [
        ((8, 64), (8, 1), "per channel of axis 0"),
        ((8, 64), (4, 1), "per 2 channels of axis 0"),
        ((8, 64), (8, 2), "per block of 1x32"),
        ((8, 64), (1, 1), "per tensor"),
        ((8, 64), (1, 64), "per channel of axis 1"),
    ],
)
def test_granularity(shape: tuple[int, ...], scale: tuple[int, ...], told: str) -> None:
    def build(x: Any) -> Any:
        made = mb.constexpr_blockwise_shift_scale(data=array_of("int4", *shape), scale=weight(*scale) + 2)
        return mb.linear(x=x, weight=made, name="y")

    inputs = [mb.TensorSpec(shape=(1, shape[1]), dtype=types.fp16)]
    program = program_of(mb.program(input_specs=inputs, opset_version=Target.iOS18)(build))
    (found,) = milopt.inspect(program).compressed
    assert str(found) == f"quantized 4 bits, {told}"
    assert found.steps[0].blocks == int(np.prod(scale))
    assert np.prod(found.steps[0].block) * found.steps[0].blocks == np.prod(shape)


def test_vectors_and_sparse_palettes() -> None:
    def build(x: Any) -> Any:
        vectors = mb.constexpr_lut_to_dense(
            indices=array_of("uint4", 4, 16), lut=weight(2, 1, 16, 2), vector_axis=np.int32(0)
        )
        count: Any = np.arange(8 * 16)
        mask = (count.reshape(8, 16) % 4 == 0).astype(np.uint8)
        sparse_mask, nonzero = mb.constexpr_lut_to_sparse(
            indices_mask=mask.view(types.np_uint1_dtype),
            indices_nonzero_data=array_of("uint2", 32),
            lut=weight(1, 1, 4, 1),
        )
        sparse = mb.constexpr_sparse_to_dense(nonzero_data=nonzero, mask=sparse_mask)
        parts = [mb.linear(x=x, weight=each) for each in (vectors, sparse)]
        return mb.concat(values=parts, axis=1, name="y")

    inputs = [mb.TensorSpec(shape=(1, 16), dtype=types.fp16)]
    program = program_of(mb.program(input_specs=inputs, opset_version=Target.iOS18)(build))
    told = {str(each): each for each in milopt.inspect(program).compressed}
    vectors = told["palettized 4 bits, per 4 channels of axis 0, vectors of 2"]
    assert (vectors.shape, vectors.bytes) == ((8, 16), 4 * 16 // 2 + 2 * 16 * 2 * 2)
    sparse = told["sparse, 25% stored of palettized 2 bits, per tensor, 25% stored"]
    assert (sparse.shape, sparse.bytes, sparse.dense_bytes) == ((8, 16), 8 * 16 // 8 + 32 // 4 + 4 * 2, 8 * 16 * 2)


PASSES = ("canonicalize", "fuse-sdpa", "linear-to-conv", "palettize", "quantize")


@pytest.mark.parametrize("what", ["inspect", "census", "plan", "clone", "save", *PASSES])
def test_nothing_is_unpacked_to_be_looked_at(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = load(compressed_ios18()).save(tmp_path / "a.mlpackage")
    opened: list[int] = []
    unpacked: Callable[[Any], Any] = _Packing.unpacked

    def noted(self: Any) -> Any:
        opened.append(self.count)
        return unpacked(self)

    monkeypatch.setattr(_Packing, "unpacked", noted)
    looks: dict[str, Callable[[Model], object]] = {
        "inspect": milopt.inspect,
        "census": census,
        "plan": compile,
        "clone": Model.clone,
        "save": lambda model: model.save(tmp_path / "b.mlpackage"),
        **{name: Pipeline.parse(name).run for name in PASSES},
    }
    model = load(package)
    done = looks[what](model)
    assert opened == []
    if what == "linear-to-conv":
        assert done
        model.save(tmp_path / "b.mlpackage")
        assert opened == []
        assert not milopt.inspect(model).duplicates
        assert milopt.compare(load(package), model)
        opened.clear()
    compile(load(package)).run({"x": np.ones((1, 16), np.float16)})
    assert len(opened) == 7  # five palettes, int4 data, and the palette of quantized values


def test_sizes_agree_with_the_file(shared: Path) -> None:
    """Every byte of a weight file is a header, an entry, padding or told."""
    for package in sorted((shared / "models/stories260K").glob("*.mlpackage")):
        found = milopt.inspect(package)
        (file,) = (size for name, size in found.files.items() if name.endswith("weight.bin"))
        told = sum(each.bytes for each in found.weights if each.file)
        count = sum(1 for each in found.weights if each.file)
        assert told + 64 + 64 * count <= file <= told + 64 + 128 * count
        ops = sum(op.op_type.startswith("constexpr_") for op in operations(load(package).function()))
        assert len(found.compressed) == ops

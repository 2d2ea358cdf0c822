"""Packages of other people's for older systems: upgraded they say the same, and coremltools opens them as before."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coremltools.models import MLModel
from coremltools.proto import FeatureTypes_pb2

import milopt
from milopt.interpreter import compile_all
from milopt.mil import Program, Target, mb, operations, target, types
from milopt.package import load
from milopt.text import text
from milopt.verify.freezing import freeze
from tests.models.packages import PACKAGES, Package, inputs_of, refill, shapes_of
from tests.package.support import linear, spec_of, two_functions, weight

_stock: Any = importlib.import_module("coremltools.converters.mil.frontend.milproto.load")
_symbols: Any = importlib.import_module("coremltools.converters.mil.mil.program")

_OLD = [each for each in PACKAGES if "ios18" not in each.name]
# One of each kind; the others take more than two seconds each, or need weights to be made up.
_FAST = {
    *("SAM2TinyPromptEncoderFLOAT16", "crepe_tiny", "silero_v6_encoder", "silero_unified_int8"),
    *("silero_unified_palette_4bit", "silero_unified_pruned_int8"),
}
PARAMS = [
    pytest.param(each, id=each.name, marks=[] if each.name in _FAST else [pytest.mark.slow]) for each in _OLD
] or [pytest.param(None, marks=pytest.mark.skip("../shared, the folder of reference models, is absent"))]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """For large packages: it is removed after the test."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("package", PARAMS)
def test_a_package_says_the_same(package: Package, folder: Path) -> None:
    source = refill(package.path, folder) if package.refilled else package.path
    before, model = load(source), load(source)
    report = milopt.upgrade(model, "iOS18")
    assert report.notes[0].startswith(f"specification version {before.spec_version} -> 9 ")
    new = model.save(folder / "new.mlpackage")
    after = load(new)
    assert text(after, weights="hash") == text(model, weights="hash")
    assert spec_of(new).description == MLModel(str(source), skip_model_load=True).get_spec().description
    assert loads_in_coremltools(new) == loads_in_coremltools(source)
    frozen = freeze(before)
    for precision in ("float64", "declared"):
        plans = [compile_all(each, precision=precision) for each in (before, after)]
        for name, plan in plans[0].items():
            for shapes in list(shapes_of(frozen, plan))[:2]:
                inputs = inputs_of(frozen, plan, shapes)
                results = [each[name].run(inputs) for each in plans]
                assert results[0].keys() == results[1].keys()
                for key, value in results[0].items():
                    np.testing.assert_array_equal(results[1][key], value)


def loads_in_coremltools(package: Path) -> bool:
    """Whether coremltools' own loader makes a program of the package."""
    # a list op of dtln's names a symbol as coremltools counts its own, and stops it for good once it gets there
    _symbols.k_num_internal_syms = max(_symbols.k_num_internal_syms, 10**6)
    model = MLModel(str(package), skip_model_load=True)
    try:
        program = _stock.load(model.get_spec(), model.get_spec().specificationVersion, model.weights_dir)
    except Exception:  # whatever it dislikes about the original
        return False
    return isinstance(program, Program)


@pytest.mark.slow
def test_most_packages_load_in_coremltools(shared: Path) -> None:
    """So that the test above compares something."""
    assert shared.is_dir()
    loaded = [loads_in_coremltools(each.path) for each in _OLD if not each.refilled and not each.slow]
    assert sum(loaded) >= 12


def test_compressed_weights_stay_compressed(shared: Path, tmp_path: Path) -> None:
    for name in ("silero_unified_int8", "silero_unified_palette_4bit", "silero_unified_pruned_int8"):
        source = shared / "models" / "real" / f"{name}.mlpackage"
        model = load(source)
        milopt.upgrade(model, "iOS18")
        new = model.save(tmp_path / source.name)
        sizes = [next(each.glob("Data/*/weights/weight.bin")).stat().st_size for each in (source, new)]
        assert sizes[0] == sizes[1]
        kinds = {op.op_type for op in operations(load(new).function()) if op.op_type.startswith("constexpr_")}
        assert kinds
        assert "constexpr_affine_dequantize" not in kinds


def test_diff_shows_an_upgrade(tmp_path: Path) -> None:
    source = load(linear()).save(tmp_path / "old.mlpackage")
    model = load(source)
    milopt.upgrade(model, "iOS18")
    difference = str(milopt.diff(source, model.save(tmp_path / "new.mlpackage")))
    assert "specification version: 7 -> 9" in difference
    assert "main: CoreML6 -> CoreML8" in difference


def test_functions_keep_what_they_share(tmp_path: Path) -> None:
    model = load(load(two_functions()).save(tmp_path / "old.mlpackage"))
    report = milopt.upgrade(model, "iOS26")
    assert report.applied == 3
    assert [function.opset_version for function in model.functions.values()] == [Target.iOS26] * 2
    new = model.save(tmp_path / "new.mlpackage")
    files = [each / "Data/com.apple.CoreML/weights/weight.bin" for each in (tmp_path / "old.mlpackage", new)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert load(new).default_function == "decode"
    message = "all functions are upgraded, and 'decode' are set aside"
    with load(two_functions()).only(["prefill"]) as part, pytest.raises(milopt.MiloptError, match=message):
        milopt.upgrade(part, "iOS26")


def test_a_table_used_twice_is_stored_once(tmp_path: Path) -> None:
    indices, lut = np.arange(128, dtype=np.uint8), weight(4)

    @mb.program(input_specs=[mb.TensorSpec((1, 32), dtype=types.fp16)], opset_version=target.iOS16)
    def program(x: Any) -> Any:
        dense = [
            mb.constexpr_lut_to_dense(indices=indices, lut=lut, shape=np.array([16, 32], np.uint32)) for _ in range(2)
        ]
        return tuple(mb.linear(x=x, weight=each) for each in dense)

    old = load(program).save(tmp_path / "old.mlpackage")
    model = load(old)
    milopt.upgrade(model, "iOS18")
    new = model.save(tmp_path / "new.mlpackage")
    sizes = [(each / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size for each in (old, new)]
    assert sizes[0] == sizes[1] < 2 * 128 + 4 * 64


def test_inputs_of_half_precision_from_ios16_on(tmp_path: Path) -> None:
    """What Core ML takes as an input is looked up for the new version."""

    @mb.program(input_specs=[mb.TensorSpec((1, 4), dtype=types.fp16)], opset_version=target.iOS15)
    def program(x: Any) -> Any:
        return mb.relu(x=x)

    model = load(program)
    with pytest.raises(milopt.MiloptError, match="is fp16, which needs iOS16"):
        model.save(tmp_path / "old.mlpackage")
    milopt.upgrade(model, "iOS16")
    spec = spec_of(model.save(tmp_path / "new.mlpackage"))
    assert spec.specificationVersion == 7
    features = (*spec.description.input, *spec.description.output)
    assert {each.type.multiArrayType.dataType for each in features} == {FeatureTypes_pb2.ArrayFeatureType.FLOAT16}

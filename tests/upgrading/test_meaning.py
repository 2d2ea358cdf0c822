"""Every op that changed computes after the upgrade what it did before, and not if it were only given a new class."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import milopt
from milopt.errors import EvaluationError, MiloptError
from milopt.mil import Operation, Target, mb, operations
from milopt.opaque import Opaque
from milopt.package import Model, load
from milopt.package.arguments import op_class
from milopt.text import text
from milopt.upgrading import CHANGES, target_named, translating
from milopt.upgrading.editing import Edit
from tests.package.support import spec_of
from tests.upgrading.cases import CASES, Case, ints, numbers
from tests.upgrading.compressed import COMPRESSED

PRECISIONS = ("float64", "declared")


def results(model: Any, case: Case, precision: Any) -> list[Any]:
    return [np.asarray(each) for each in milopt.evaluate(model, case.inputs, precision=precision).values()]


def assert_same(before: Any, after: Any, case: Case) -> None:
    for precision in PRECISIONS:
        for old, new in zip(results(before, case, precision), results(after, case, precision), strict=True):
            np.testing.assert_array_equal(new, old)


def assert_of(model: Model, target: Target) -> None:
    """Every op is of the class that its type has in the opset."""
    for function in model.functions.values():
        assert function.opset_version == target
        for op in operations(function):
            assert type(op) is op_class(op.op_type, target), op.name


def by_name(name: str) -> Case:
    (found,) = (each for each in [*CASES, *COMPRESSED] if each.name == name)
    return found


@pytest.mark.parametrize("case", [*CASES, *COMPRESSED], ids=lambda case: case.name)
def test_an_op_computes_what_it_did(case: Case) -> None:
    program = case.program()
    model = load(program).clone()
    report = milopt.upgrade(model, "iOS18")
    assert_of(model, Target.iOS18)
    assert model.spec_version == 9
    assert report.applied == 2 + len(case.translated)
    counts = Counter(case.translated)
    texts = {op_type: row.text for row in CHANGES if row.kind.translated for op_type in row.op_types}
    assert [note for note in report.notes if note[0].isdigit()] == [
        f"{count} {op_type}: {texts[op_type]}" for op_type, count in sorted(counts.items())
    ]
    assert [var.name for var in model.function().outputs] == [var.name for var in program.functions["main"].outputs]
    assert_same(program, model, case)


@pytest.mark.parametrize("case", [each for each in CASES if each.translated], ids=lambda case: case.name)
def test_target_by_target(case: Case) -> None:
    model = load(case.program())
    before = model.clone()
    for name in ("iOS16", "iOS17", "iOS18"):
        if target_named(name) > case.opset:
            milopt.upgrade(model, name)
            assert_of(model, target_named(name))
            assert_same(before, model, case)


@pytest.mark.parametrize("case", COMPRESSED, ids=lambda case: case.name)
def test_compressed_constants_from_a_package(case: Case, tmp_path: Path) -> None:
    """Their bytes are those of the file, and a package of the result holds the same program."""
    before = load(load(case.program()).save(tmp_path / "old.mlpackage"))
    model = before.clone()
    assert milopt.upgrade(model, "macOS15")
    again = load(model.save(tmp_path / "new.mlpackage"))
    assert text(again, weights="hash") == text(model, weights="hash")
    assert_of(again, Target.iOS18)
    assert_same(before, again, case)
    (op,) = (each for each in again.function().operations if each.op_type.startswith("constexpr_"))
    assert op.op_type != "constexpr_affine_dequantize"
    proto = spec_of(tmp_path / "new.mlpackage").mlProgram.functions["main"].block_specializations["CoreML8"]
    (written,) = (each for each in proto.operations if each.type.startswith("constexpr_"))
    assert set(written.attributes) == {"name"}
    assert set(written.inputs) == set(op.inputs)


def test_a_table_keeps_its_bytes(tmp_path: Path) -> None:
    """The indices are not unpacked, and the file of weights grows by nothing."""
    case = by_name("constexpr_lut_to_dense of 6 bits, 105 elements")
    old = load(case.program()).save(tmp_path / "old.mlpackage")
    model = load(old)
    milopt.upgrade(model, "iOS18")
    new = model.save(tmp_path / "new.mlpackage")
    sizes = [(each / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size for each in (old, new)]
    assert sizes[0] == sizes[1]


@pytest.fixture
def relabelled(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Upgrades that translate nothing."""

    def run(case: Case) -> Model:
        model = load(case.program())
        milopt.upgrade(model, "iOS18")
        return model

    def nothing(op: Operation, edit: Edit) -> bool:
        del op, edit
        return False

    monkeypatch.setattr(translating, "TRANSLATIONS", dict.fromkeys(translating.TRANSLATIONS, nothing))
    return run


@pytest.mark.parametrize("name", ["scatter add", "scatter update", "scatter_along_axis", "scatter_nd"])
def test_relabelled_scatters_lose_updates(name: str, relabelled: Any) -> None:
    case = by_name(name)
    with pytest.raises(AssertionError):
        assert_same(case.program(), relabelled(case), case)


@pytest.mark.parametrize("name", ["gather along 0", "gather of constant places", "gather_along_axis", "gather_nd"])
def test_relabelled_gathers_are_out_of_bounds(name: str, relabelled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they then give is open; asked to, they say so, and those that were translated don't."""
    case = by_name(name)
    model = relabelled(case)
    _validate(model)
    with pytest.raises(EvaluationError, match="out of bounds"):
        results(model, case, "float64")
    monkeypatch.undo()
    translated = load(case.program())
    milopt.upgrade(translated, "iOS18")
    _validate(translated)
    assert_same(case.program(), translated, case)


def _validate(model: Model) -> None:
    for op in list(operations(model.function())):
        if op.op_type.startswith("gather"):
            flag: Any = op.inputs["validate_indices"]
            flag._sym_val.val = True


def test_a_relabelled_clip_is_refused_by_coremltools(relabelled: Any) -> None:
    model = relabelled(by_name("clip to 0.5..-0.5"))
    (op,) = (each for each in operations(model.function()) if each.op_type == "clip")
    with pytest.raises(ValueError, match="should be smaller than"):
        op.type_inference()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("crop_resize numbered, ALIGN_CORNERS, iOS15", "it has an input roi, which crop_resize does not"),
        ("non_maximum_suppression above 0.45, of all", "it has an input score_threshold"),
        ("constexpr_lut_to_dense of 4 bits, 128 elements", "it has an input shape"),
        ("constexpr_sparse_to_dense of float16, 128 elements", "it has an input shape"),
    ],
)
def test_what_has_other_inputs_can_not_be_relabelled(name: str, reason: str, relabelled: Any) -> None:
    with pytest.raises(MiloptError, match=reason):
        relabelled(by_name(name))


def test_a_zero_that_keeps_a_dimension_from_the_front() -> None:
    """Not allowed where ranks differ, and yet such packages declare what they mean by it."""
    model = load(Case("", Target.iOS16, {"x": numbers(4, 3, 2)}, lambda v: mb.reshape(x=v.x, shape=[4, -1])).program())
    (op,) = (each for each in model.function().operations if each.op_type == "reshape")
    constant: Any = op.inputs["shape"]
    constant._sym_val.val = ints([0, -1])
    milopt.upgrade(model, "iOS17")
    (op,) = (each for each in model.function().operations if each.op_type == "reshape")
    assert op.shape.val.tolist() == [4, -1]
    case = Case("", Target.iOS17, {"x": numbers(4, 3, 2)}, lambda v: mb.reshape(x=v.x, shape=[4, 6]))
    assert_same(case.program(), model, case)


def test_no_op_becomes_opaque() -> None:
    for case in CASES:
        model = load(case.program())
        milopt.upgrade(model, "iOS18")
        assert not any(isinstance(op, Opaque) for op in operations(model.function()))

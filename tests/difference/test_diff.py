"""Saving changes nothing that ``diff`` sees, and ``diff`` sees every kind of change."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import milopt
from milopt.cli import main
from milopt.difference.excerpts import excerpts
from milopt.difference.result import SECTIONS, WEAK
from milopt.mil import Program, Target, mb, operations
from milopt.package import load
from tests.package.packages import edited
from tests.package.support import linear, loop, program_of, spec_of, write_spec
from tests.package.test_identity import FEATURES

from .planted import PLANTED, one_weight


def pair(name: str, folder: Path) -> tuple[Path, Path]:
    case = PLANTED[name]
    before, after = edited(folder, case.base, case.build()), folder / "after.mlpackage"
    if case.instead is None:
        shutil.copytree(before, after)
    else:
        load(case.instead()).save(after)
    spec = spec_of(after)
    case.change(spec)
    write_spec(after, spec)
    if case.touch is not None:
        case.touch(after)
    return before, after


@pytest.mark.parametrize("feature", FEATURES)
def test_saving_changes_nothing(feature: str, tmp_path: Path) -> None:
    build, change = FEATURES[feature]
    package = edited(tmp_path, change, build())
    found = milopt.diff(package, load(package).save(tmp_path / "saved.mlpackage"))
    assert found.identical, str(found)
    assert not found
    assert str(found) == "edited.mlpackage and saved.mlpackage are identical"


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_change_is_seen_and_named(name: str, tmp_path: Path) -> None:
    before, after = pair(name, tmp_path)
    found = milopt.diff(before, after)
    assert set(found.sections) == PLANTED[name].sections, str(found)
    assert PLANTED[name].says in str(found)
    assert found.only_weak == (PLANTED[name].sections <= WEAK)
    back = milopt.diff(after, before)
    assert set(back.sections) == PLANTED[name].sections, str(back)


def test_every_section_has_a_planted_change() -> None:
    assert set().union(*(case.sections for case in PLANTED.values())) == set(SECTIONS)


def test_other_names_for_everything_inside(tmp_path: Path) -> None:
    """Nested blocks included: what the ops do is told by no name."""
    model = load(edited(tmp_path, lambda spec: None, loop()))
    renamed = model.clone()
    kept = {*renamed.function().inputs, *(var.name for var in renamed.function().outputs)}
    for index, op in enumerate(operations(renamed.function())):
        for var in op.outputs:
            var.name = var.name if var.name in kept else f"v{index}"
        op.name = f"op{index}"
    found = milopt.diff(model, renamed)
    assert list(found.sections) == ["names"], str(found)
    assert found.only_weak


def test_how_far_weights_are_apart(tmp_path: Path) -> None:
    package = edited(tmp_path, lambda spec: None, linear())
    other = tmp_path / "other.mlpackage"
    load(package).save(other)
    one_weight(other)
    (change,) = milopt.diff(package, other).sections["weights"]
    old: Any = next(op for op in load(package).function().operations if op.op_type == "linear").inputs["weight"].val
    gap = abs(100 - float(old.reshape(-1)[4]))
    signal = float(np.square(old.astype(np.float64)).sum())
    assert change.facts == {
        "bytes": old.nbytes,
        "elements": 1,
        "max_abs": gap,
        "snr_db": round(10 * np.log10(signal / gap**2), 2),
    }


def test_models_in_memory(tmp_path: Path) -> None:
    package = edited(tmp_path, lambda spec: None, linear())
    model = load(package)
    assert milopt.diff(package, model).identical
    assert milopt.diff(model, model.clone()).identical
    built_again = milopt.diff(linear(), model)
    assert list(built_again.sections) == ["names"]  # PyMIL numbers the names that it makes up through the process
    assert built_again.only_weak
    model.author = "someone"
    assert list(milopt.diff(package, model).sections) == ["metadata"]


def test_real_packages(shared: Path, tmp_path: Path) -> None:
    packages = [each for folder in ("real", "stories260K") for each in (shared / "models" / folder).glob("*.mlpackage")]
    assert len(packages) > 20
    for package in sorted(packages):
        found = milopt.diff(package, load(package).save(tmp_path / package.name))
        assert found.identical, str(found)


@pytest.mark.slow
def test_published_graphs(shared: Path, tmp_path: Path) -> None:
    """With made-up weights, of a file that ends with bytes which belong to no tensor: only its size shows them."""
    for package in sorted((shared / "models/graphs").glob("*.mlpackage")):
        filled = tmp_path / package.name
        with patch.object(sys, "argv", ["refill", str(package), str(filled)]):
            runpy.run_path(str(shared / "tools/refill.py"))
        found = milopt.diff(filled, load(filled).save(tmp_path / "saved.mlpackage", overwrite=True))
        assert found.identical, str(found)
        shutil.rmtree(filled)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = map(str, pair("another op", tmp_path))
    assert main(["diff", before, before]) == 0
    assert capsys.readouterr().out == "edited.mlpackage and edited.mlpackage are identical\n"
    assert main(["diff", before, after]) == 1
    told = capsys.readouterr().out
    assert "tanh" in told
    assert "weights/weight.bin" in told
    assert main(["diff", before, after, "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert facts == milopt.diff(before, after).as_dict()
    assert list(facts) == ["before", "after", "identical", "only_weak", "sections", "op_counts", "bytes"]
    assert facts["op_counts"] == {"main": {"relu": [1, 0], "tanh": [0, 1]}}
    assert facts["sections"]["ops"][0]["what"] == 'main: "y"'


def test_long_lists_are_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = map(str, pair("another output", tmp_path))
    assert main(["diff", before, after, "--most", "1"]) == 1
    assert "more\n" in capsys.readouterr().out


def wide(changed: int | None = None) -> Program:
    """A concat of forty values of the same type; one of them may be another."""

    def build(x: Any) -> Any:
        pieces = [mb.mul(x=x, y=np.float32(index + 2), name=f"piece_{index}") for index in range(40)]
        if changed is not None:
            pieces[changed] = pieces[0]
        return mb.concat(values=pieces, axis=0, name="joined")

    return program_of(mb.program(input_specs=[mb.TensorSpec(shape=(4,))], opset_version=Target.iOS16)(build))


@pytest.mark.parametrize("changed", [7, 30, 39])
def test_what_changed_in_a_long_op_is_told(changed: int) -> None:
    (found,) = [each for each in milopt.diff(wide(), wide(changed)).sections["ops"] if "joined" in each.what]
    told = str(found)
    assert len(found.before) > 600
    assert len(told) < 2 * 160 + 40
    before, _, after = told.partition(" -> ")
    assert f"values[{changed}]=%piece_{changed}" in before
    assert f"values[{changed}]=%piece_0" in after
    assert all(each.count("%joined: fp32[160] = concat(") == 1 for each in (before, after))


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("short", "shorter", ("short", "shorter")),
        ("a b", "a c", ("a b", "a c")),
        ("x" * 300 + "y", "x" * 300 + "z", (f"{'x' * 48}... {'x' * 24}y", f"{'x' * 48}... {'x' * 24}z")),
        ("word " * 100, "word " * 100 + "more", (f"{'word ' * 9}wor... word ", f"{'word ' * 9}wor... word more")),
        ("y" + "x" * 300, "z" + "x" * 300, ("y" + "x" * 156 + "...", "z" + "x" * 156 + "...")),
        ("a\nb", "a b", ("a b", "a b")),
        ("", "x" * 200, ("", "x" * 157 + "...")),
    ],
)
def test_excerpts(before: str, after: str, told: tuple[str, str]) -> None:
    assert excerpts(before, after, 160) == told


@given(st.text("ab ,", max_size=400), st.text("ab ,", max_size=400))
@settings(max_examples=100, deadline=None)
def test_excerpts_differ_where_the_texts_do(before: str, after: str) -> None:
    old, new = excerpts(before, after, 160)
    assert max(len(old), len(new)) <= 160
    assert (old == new) == (before == after)


def test_what_is_no_package() -> None:
    with pytest.raises(milopt.MiloptError, match="can't load a int"):
        milopt.diff(linear(), 3)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", ["absent", "truncated"])
def test_bad_input(bad: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = edited(tmp_path, lambda spec: None, linear())
    other = tmp_path / "other.mlpackage"
    if bad == "truncated":
        load(package).save(other)
        file = next(other.rglob("*.mlmodel"))
        file.write_bytes(file.read_bytes()[:-7])
    assert main(["diff", str(package), str(other)]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1

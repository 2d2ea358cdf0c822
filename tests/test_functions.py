"""Passes on models with several functions: on all of them, or on some."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

import milopt
from milopt.census import op_counts
from milopt.cli import main
from milopt.errors import MiloptError
from milopt.package import Model, load
from milopt.pipeline import Pass, Pipeline
from milopt.registry import names
from milopt.reports import Report
from tests.package.support import linear
from tests.verify.decoders import Decoder

COMPRESSING = ("palettize{min_elements=64,bits=4}", "quantize{min_elements=64}")
# a budget has no default: it is given what to keep to
SPECS = (
    *(f"{each}{{size=0.25}}" if each == "budget" else each for each in names()),
    *COMPRESSING,
    *(f"linear-to-conv,{each}" for each in COMPRESSING),
)
# Each function has a few numbers of its own: shapes, axes, slots.
OWN = 200


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``decode`` and ``prefill4``, which share all their weights."""
    return Decoder(context=24).stateless().save(tmp_path_factory.mktemp("functions") / "in.mlpackage")


def stored(model: Model, folder: Path) -> int:
    """Bytes of the weights in the saved package; nothing in it is stored twice."""
    found = milopt.inspect(model.save(folder / "out.mlpackage", overwrite=True))
    assert not found.duplicates
    (file,) = (size for name, size in found.files.items() if name.endswith("weight.bin"))
    # 64 bytes of header, and for each tensor an entry of 64 and as much before it at most
    assert file <= found.weight_files["weights/weight.bin"] + 64 + 128 * len(found.weights)
    return found.weight_bytes


@pytest.mark.parametrize("spec", SPECS)
def test_shared_weights_stay_shared(spec: str, package: Path, tmp_path: Path) -> None:
    """Two functions take no more room than one, whatever was done to both."""
    both, one = load(package), load(package)
    del one.program.functions["prefill4"]
    Pipeline.parse(spec).run(both)
    Pipeline.parse(spec).run(one)
    alone = stored(one, tmp_path)
    assert alone > 1000
    assert alone <= stored(both, tmp_path) <= alone + OWN


@pytest.mark.parametrize("spec", COMPRESSING)
def test_one_function_after_the_other_is_as_both_at_once(spec: str, package: Path, tmp_path: Path) -> None:
    together, apart = load(package), load(package)
    Pipeline.parse(spec).run(together)
    for name in ("prefill4", "decode"):
        Pipeline.parse(spec).run(apart, functions=[name])
    assert stored(apart, tmp_path) == stored(together, tmp_path)
    assert not milopt.diff(together, apart)


@pytest.mark.parametrize("spec", COMPRESSING)
def test_what_one_function_no_longer_shares_is_stored_beside(spec: str, package: Path, tmp_path: Path) -> None:
    before, model = stored(load(package), tmp_path), load(package)
    report = Pipeline.parse(spec).run(model, functions=["decode"])
    assert (count := op_counts(model.function("decode"))["linear"]) == 9
    assert op_counts(model.function("prefill4")) == op_counts(load(package).function("prefill4"))
    weights = milopt.inspect(model)
    assert sum(each.functions == ("prefill4",) for each in weights.weights) >= count
    assert all(each.functions == ("decode",) for each in weights.compressed)
    (note,) = (each for each in report.parts[0].notes if "in common" in each)
    assert note.startswith("weights that decode had in common with other functions and now has not: 10 of 4,928 bytes")
    added = sum(each.bytes for each in weights.compressed)
    # scales of fewer than 10 numbers are written in the specification, and are no weights
    assert before + added - 4 * 16 <= stored(model, tmp_path) <= before + added


def test_a_rewrite_that_keeps_the_weights_keeps_them_shared(package: Path, tmp_path: Path) -> None:
    model = load(package)
    before = stored(load(package), tmp_path)
    report = Pipeline.parse("fuse-sdpa").run(model, functions=["prefill4"])
    assert op_counts(model.function("prefill4"))["scaled_dot_product_attention"] == 2
    assert op_counts(model.function("decode"))["scaled_dot_product_attention"] == 0
    assert report.parts[0].applied == 2
    assert not report.parts[0].notes
    assert stored(model, tmp_path) == before


def test_a_pass_that_needs_all_functions_declines(package: Path) -> None:
    model = load(package)
    report = Pipeline.parse("kv-to-state").run(model, functions=["decode"])
    assert not report
    assert "the pass runs on some functions only" in str(report)
    assert not milopt.diff(load(package), model)
    assert Pipeline.parse("kv-to-state").run(model, functions=["decode", "prefill4"])


def test_what_is_compared_is_the_whole_model(package: Path) -> None:
    report = Pipeline.parse("fuse-sdpa").run(load(package), functions=["decode"], verify="each")
    assert [bool(each) for each in report.verdicts] == [True]


@dataclass(frozen=True)
class Renaming(Pass):
    """Replaces one function, and fails in the middle if it is told to."""

    name: ClassVar[str] = "renaming"
    fails: bool = False

    def run(self, model: Model) -> Report:
        assert list(model.functions) == ["prefill4"]
        assert list(model.aside) == ["decode"]
        with pytest.raises(MiloptError, match="no function 'decode'"):
            model.function()
        model.program.functions["extra"] = model.program.functions.pop("prefill4")
        if self.fails:
            raise MiloptError("no")
        return Report(self.name, applied=1)


@pytest.mark.parametrize("fails", [False, True])
def test_the_others_come_back_whatever_happens(fails: bool, package: Path) -> None:
    model = load(package)
    decode, prefill = model.function("decode"), model.function("prefill4")
    try:
        Pipeline((Renaming(fails),)).run(model, functions=["prefill4"])
    except MiloptError:
        assert fails
    assert model.functions == {"decode": decode, "extra": prefill}
    assert not model.aside


def test_functions_keep_their_order(package: Path) -> None:
    model = load(package)
    order = list(model.functions)
    for name in order:
        with model.only([name]):
            assert list(model.functions) == [name]
            with model.only([name]):
                assert set(model.aside) == set(order) - {name}
    assert list(model.functions) == order


@pytest.mark.parametrize(("functions", "says"), [(["absent"], "no function 'absent'"), ([], "at least one")])
def test_unknown_functions(functions: list[str], says: str, package: Path) -> None:
    with pytest.raises(MiloptError, match=says):
        Pipeline.parse("fuse-sdpa").run(load(package), functions=functions)


def test_a_model_of_one_function(tmp_path: Path) -> None:
    model = load(linear())
    report = Pipeline.parse("linear-to-conv").run(model, functions=["main"])
    assert report
    assert not report.parts[0].notes


def test_the_command(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.mlpackage"
    spec = ["--passes", "fuse-sdpa,palettize{min_elements=64}", "--function", "prefill4"]
    assert main(["optimize", str(package), "-o", str(out), *spec]) == 0
    assert "palettize: weights that prefill4 had in common" in capsys.readouterr().out
    changed: dict[str, Any] = milopt.diff(package, out).op_counts
    assert list(changed) == ["prefill4"]
    assert main(["optimize", str(package), "-o", str(tmp_path / "no.mlpackage"), "--function", "absent"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == "error: no function 'absent'; this model has: decode, prefill4\n"
    assert not (tmp_path / "no.mlpackage").exists()

"""milopt optimize: what it prints and writes, and what it says and leaves alone when something is wrong."""

from __future__ import annotations

import json
import os
import shutil
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from milopt.census import op_counts
from milopt.cli import main
from milopt.cli.tables import print_coverage
from milopt.mil import mb, target, types
from milopt.package import load
from milopt.passes.compressing import Coverage
from milopt.pipeline import Pipeline
from milopt.registry import names
from milopt.text import text
from milopt.verify import compare
from tests.cli.support import contents

PASSES = "canonicalize,fuse-sdpa,linear-to-conv"

Capture = pytest.CaptureFixture[str]


def refused(capsys: Capture, *arguments: object, status: int = 2) -> str:
    """The one line on stderr; nothing is printed besides."""
    assert main(list(map(str, arguments))) == status
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert told.err.startswith("error: ")
    assert "Traceback" not in told.err
    return told.err.removeprefix("error: ").rstrip("\n")


def test_a_package_is_rewritten_verified_and_saved(package: Path, tmp_path: Path, capsys: Capture) -> None:
    before = contents(package)
    out = tmp_path / "out.mlpackage"
    assert main(["optimize", str(package), "-o", str(out), "--passes", PASSES, "--verify", "stage"]) == 0
    told = capsys.readouterr()
    assert told.err == ""  # progress goes to terminals only
    lines = {line.split()[0]: line.split()[1:] for line in told.out.splitlines() if len(line.split()) > 1}
    assert lines["linear"] == ["9", "0", "9", "0"]  # two functions, before and after
    assert lines["scaled_dot_product_attention"] == ["0", "2", "0", "2"]
    assert lines["fuse-sdpa"][:2] == ["4", "0"]
    assert lines["linear-to-conv"][:2] == ["18", "0"]
    assert "fuse-sdpa, linear-to-conv: no difference in 3 trials" in told.out
    assert told.out.splitlines()[-1].startswith(f"{out}: ")

    assert contents(package) == before
    assert [each.name for each in tmp_path.iterdir()] == ["out.mlpackage"]
    original, made = load(package), load(out)
    assert compare(original, made)
    assert op_counts(made.function("decode"))["conv"] == 9
    assert made.attachments == original.attachments


@pytest.mark.parametrize("verify", ["each", "end", "none"])
def test_verification_each_at_the_end_or_none(verify: str, package: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out.mlpackage"
    assert main(["optimize", str(package), "-o", str(out), "--passes", PASSES, "--verify", verify]) == 0
    assert capsys.readouterr().out.count("no difference in 3 trials") == {"each": 2, "end": 1, "none": 0}[verify]


def test_verbose_tells_the_steps_and_the_reasons(package: Path, tmp_path: Path, capsys: Capture) -> None:
    arguments = ["optimize", package, "-o", tmp_path / "o.mlpackage", "--passes", "palettize", "-v", "--verify", "none"]
    assert main(list(map(str, arguments))) == 0
    told = capsys.readouterr()
    assert told.err.splitlines() == ["palettize ...", "save o.mlpackage ..."]
    assert "too small: " in told.out
    assert "softmax" in told.out


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a package with a wrong pass were installed."""
    entry = EntryPoint("wrong", "tests.cli.support:WrongPass", "milopt.passes")
    monkeypatch.setattr("milopt.registry._others", lambda: {"wrong": entry})
    assert "wrong" in names()


@pytest.mark.usefixtures("offered")
def test_a_wrong_pass_is_found_and_nothing_is_written(package: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out.mlpackage"
    assert main(["optimize", str(package), "-o", str(out), "--passes", "fuse-sdpa,wrong", "--verify", "each"]) == 0
    shutil.rmtree(out)  # after the fusion there is no such factor; before it there is
    capsys.readouterr()
    assert main(["optimize", str(package), "-o", str(out), "--passes", "wrong,fuse-sdpa", "--verify", "each"]) == 1
    told = capsys.readouterr()
    assert told.err.startswith("error: wrong: differs: output ")
    assert "first value that differs: scaled_0" in told.err
    assert "Traceback" not in told.err
    assert list(tmp_path.iterdir()) == []


# --- what can be seen of a run


def test_everything_as_json(package: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out.mlpackage"
    assert main(["optimize", str(package), "-o", str(out), "--passes", f"{PASSES},palettize", "--json"]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    found = json.loads(told.out)
    assert (found["source"], found["destination"], found["equal"]) == (str(package), str(out), True)
    assert found["ops"]["decode"]["before"]["linear"] == found["ops"]["decode"]["after"]["conv"] == 9
    assert found["package_bytes"]["after"] == sum(each.stat().st_size for each in out.rglob("*") if each.is_file())
    passes = {each["name"]: each for each in found["report"]["passes"]}
    assert list(passes) == ["canonicalize", "fuse-sdpa", "linear-to-conv", "palettize"]
    rule = passes["fuse-sdpa"]["rules"]["FuseAttention"]
    assert (rule["applied"], rule["matched"]) == (4, 4)
    assert rule["tried"] >= 4
    assert rule["seconds"] > 0
    miss = passes["palettize"]["misses"][0]
    assert miss["reason"].startswith("too small: ")
    assert (miss["declined"], miss["near"], miss["function"]) == (True, True, "decode")
    assert miss["place"]
    assert "compression.py:" in miss["source"]
    (verdict,) = found["report"]["verdicts"]
    assert verdict["holds"]
    assert verdict["subject"] == "fuse-sdpa, linear-to-conv"
    assert {each["name"] for each in verdict["measured"]} >= {"logits"}


TEXTS = ["00-input.mil", "01-fuse-sdpa.mil", "02-ct-common-noop_elimination.mil", "03-linear-to-conv.mil"]
SPEC = "fuse-sdpa,ct:common::noop_elimination,linear-to-conv"


def test_the_text_after_each_pass(package: Path, tmp_path: Path, capsys: Capture) -> None:
    folder, out = tmp_path / "texts", tmp_path / "out.mlpackage"
    command = ["optimize", str(package), "--passes", SPEC, "--verify", "none", "--dump-dir", str(folder), "-o"]
    assert main([*command, str(out), "--print-after", "fuse-sdpa"]) == 0
    told = capsys.readouterr().out
    assert sorted(each.name for each in folder.iterdir()) == TEXTS
    texts = [(folder / name).read_text() for name in TEXTS]
    assert texts[0] == text(load(package), weights="hash")
    assert texts[-1] == text(load(out), weights="hash")
    assert "softmax" in texts[0]
    assert texts[1] == texts[2] != texts[3]  # the pass of coremltools changed nothing
    model = load(package)
    Pipeline.parse("fuse-sdpa").run(model)
    assert told.startswith(f"# after fuse-sdpa: applied 4, missed 0\n{text(model)}")
    assert "# after linear-to-conv" not in told

    assert main([*command, str(tmp_path / "all.mlpackage"), "--print-after", "all", "--force"]) == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("# after ")]
    assert len(printed) == 3
    assert sorted(each.name for each in folder.iterdir()) == TEXTS


def test_texts_are_not_overwritten_by_surprise(package: Path, tmp_path: Path, capsys: Capture) -> None:
    folder, out = tmp_path / "texts", tmp_path / "out.mlpackage"
    folder.mkdir()
    (folder / "07-older.mil").write_text("of an earlier run")
    (folder / "notes.mil").write_text("mine")
    command = ("optimize", package, "-o", out, "--passes", "fuse-sdpa", "--dump-dir", folder)
    told = refused(capsys, *command)
    assert told == f"{folder / '07-older.mil'} exists; give --force to replace what an earlier run wrote"
    assert not out.exists()
    assert main([*map(str, command), "--force", "--verify", "none"]) == 0
    assert sorted(each.name for each in folder.iterdir()) == ["00-input.mil", "01-fuse-sdpa.mil", "notes.mil"]
    file = tmp_path / "file"
    file.write_text("")
    capsys.readouterr()
    other = ("optimize", package, "-o", tmp_path / "other.mlpackage", "--dump-dir", file)
    assert refused(capsys, *other) == f"{file} is no folder"


@pytest.mark.usefixtures("no_work")
def test_options_that_exclude_each_other(package: Path, tmp_path: Path, capsys: Capture) -> None:
    command = ("optimize", package, "-o", tmp_path / "out.mlpackage", "--passes", "fuse-sdpa")
    told = refused(capsys, *command, "--print-after", "palettize")
    assert told == "there is no palettize in the pipeline to print after: fuse-sdpa"
    assert refused(capsys, *command, "--json", "--print-after", "all").startswith("--json prints nothing else: ")
    assert refused(capsys, *command, "--bisect", "--verify", "none").startswith("--bisect needs comparisons: ")
    (tmp_path / "out.bisect").mkdir()
    (tmp_path / "out.bisect" / "mine.txt").write_text("")
    assert "out.bisect is not empty" in refused(capsys, *command, "--bisect")
    assert "out.bisect holds mine.txt" in refused(capsys, *command, "--bisect", "--force")


@pytest.mark.usefixtures("offered")
def test_what_breaks_equality_is_found_and_written(package: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out.mlpackage"
    command = ["optimize", str(package), "-o", str(out), "--passes", "canonicalize,wrong,fuse-sdpa", "--bisect"]
    assert main(command) == 1
    told = capsys.readouterr()
    assert told.err.startswith("error: wrong, fuse-sdpa: differs: ")
    lines = told.out.splitlines()
    assert lines[0].startswith("wrong (pass 2 of 3) breaks equality with rewrite 1 of 4: Rescale at scaled_0 in decode")
    folder = tmp_path / "out.bisect"
    assert lines[-1] == f"reproduction: {folder}/reproduce.py"
    assert not out.exists()
    small = load(folder / "before.mlpackage")
    assert sum(op_counts(each).total() for each in small.functions.values()) == 1
    assert not compare(small, load(folder / "after.mlpackage"))
    assert "milopt.Pipeline.parse('wrong').passes[0].run(after)" in (folder / "reproduce.py").read_text()

    assert main([*command, "--json", "--force"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["equal"] is False
    assert found["destination"] is None
    assert (found["bisection"]["pass"], found["bisection"]["rule"]) == ("wrong", "Rescale")
    assert found["bisection"]["ops"]["after"] == 1
    assert not found["report"]["verdicts"][-1]["holds"]
    assert found["report"]["verdicts"][-1]["difference"]["where"]["output"]


def test_where_all_is_well_nothing_is_bisected(package: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mlpackage"
    assert main(["optimize", str(package), "-o", str(out), "--passes", "fuse-sdpa", "--bisect"]) == 0
    assert [each.name for each in tmp_path.iterdir()] == ["out.mlpackage"]


# --- what is refused


def test_a_file_that_is_no_package(package: Path, tmp_path: Path, capsys: Capture) -> None:
    text, empty, out = tmp_path / "text.txt", tmp_path / "empty.mlpackage", tmp_path / "out.mlpackage"
    text.write_text("hello")
    empty.mkdir()
    assert refused(capsys, "optimize", text, "-o", out).startswith(f"{text} is not a package")
    assert str(empty) in refused(capsys, "optimize", empty, "-o", out)
    assert str(tmp_path / "absent.mlpackage") in refused(capsys, "optimize", tmp_path / "absent.mlpackage", "-o", out)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["empty.mlpackage", "text.txt"]


def test_a_truncated_weight_file(package: Path, tmp_path: Path, capsys: Capture) -> None:
    broken, out = tmp_path / "broken.mlpackage", tmp_path / "out.mlpackage"
    shutil.copytree(package, broken)
    (weights,) = broken.rglob("weight.bin")
    os.truncate(weights, weights.stat().st_size // 2)
    before = contents(broken)
    told = refused(capsys, "optimize", broken, "-o", out)
    assert "broken.mlpackage" in told
    assert "weight.bin" in told
    assert contents(tmp_path) == {f"broken.mlpackage/{name}": digest for name, digest in before.items()}


def test_passes_that_are_wrong(package: Path, tmp_path: Path, capsys: Capture) -> None:
    command = ("optimize", package, "-o", tmp_path / "out.mlpackage", "--passes")
    unknown = "there is no pass named 'fuse-spda'; did you mean fuse-sdpa?"
    assert refused(capsys, *command, "fuse-spda") == unknown
    assert refused(capsys, *command, "palettize{bits=5}").startswith("palettize: bits is one of 1, 2, 3, 4, 6, 8")
    assert refused(capsys, *command, "palettize{bit=4}").startswith("palettize has no option 'bit'; its options are: ")
    assert refused(capsys, *command, "palettize{bits=4") == (
        "can't read 'palettize{bits=4' in pipeline 'palettize{bits=4': expected name{option=value,...},name,..."
    )
    assert refused(capsys, *command, "palettize,fuse-sdpa") == "palettize must come after fuse-sdpa"
    assert refused(capsys, *command, "") == "the pipeline is empty"
    assert list(tmp_path.iterdir()) == []


def test_arguments_that_are_wrong(package: Path, tmp_path: Path, capsys: Capture) -> None:
    assert refused(capsys, "optimize", package).startswith("Missing option '--output'")
    assert refused(capsys, "optimise").startswith("No such command 'optimise'")
    told = refused(capsys, "optimize", package, "-o", tmp_path / "o.mlpackage", "--verify", "maybe")
    assert "'maybe' is not one of 'each', 'stage', 'end', 'none'" in told


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refusals must come before the model is even read."""

    def load(source: object) -> object:
        raise AssertionError(f"{source} was read")

    monkeypatch.setattr("milopt.package.load", load)


@pytest.mark.usefixtures("no_work")
def test_places_that_can_not_be_written(package: Path, tmp_path: Path, capsys: Capture) -> None:
    def told(out: Path, *more: str) -> str:
        return refused(capsys, "optimize", package, "-o", out, *more)

    file, taken, other = tmp_path / "file", tmp_path / "taken.mlpackage", tmp_path / "other.mlpackage"
    file.write_text("")
    shutil.copytree(package, taken)
    other.mkdir()
    before = contents(tmp_path)
    assert told(tmp_path / "absent" / "o.mlpackage").endswith(f"the folder {tmp_path / 'absent'} does not exist")
    assert told(file / "o.mlpackage").endswith(f"the folder {file} does not exist")
    assert told(tmp_path / "o.zip").endswith("the output's name must end in .mlpackage")
    assert told(taken) == f"{taken} exists; give --force to replace it"
    assert told(other, "--force") == f"{other} is no package; it is not replaced even with --force"
    assert contents(tmp_path) == before


@pytest.mark.usefixtures("no_work")
def test_a_read_only_folder(package: Path, tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o555)
    out = folder / "o.mlpackage"
    assert refused(capsys, "optimize", package, "-o", out) == f"{out}: the folder {folder} is read-only"


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_that_turns_read_only(
    package: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check_nothing(path: Path, *, force: bool) -> None:
        return None

    monkeypatch.setattr("milopt.cli.optimize.check_output", check_nothing)
    tmp_path.chmod(0o555)
    try:
        arguments = ("optimize", package, "-o", tmp_path / "o.mlpackage", "--passes", PASSES, "--verify", "none")
        assert "Permission denied" in refused(capsys, *arguments)
    finally:
        tmp_path.chmod(0o755)


def test_a_full_disk(package: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("milopt.package.saving.write_program", full)
    out = tmp_path / "o.mlpackage"
    arguments = ("optimize", package, "-o", out, "--passes", PASSES, "--verify", "none")
    assert refused(capsys, *arguments) == f"can't write {out}: No space left on device"
    assert list(tmp_path.iterdir()) == []


def test_force_replaces_a_package(package: Path, stateful: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mlpackage"
    shutil.copytree(stateful, out)
    arguments = ["optimize", package, "-o", out, "--passes", PASSES, "--verify", "none", "--force"]
    assert main(list(map(str, arguments))) == 0
    assert "past_key_0" in load(out).function().inputs
    assert [each.name for each in tmp_path.iterdir()] == ["out.mlpackage"]


# --- faults of milopt itself


def test_a_fault_is_one_line_or_a_traceback(
    package: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("milopt.cli.work.census", broken)
    arguments = ["optimize", str(package), "-o", str(tmp_path / "o.mlpackage")]
    told = refused(capsys, *arguments, status=70)
    assert told == "ZeroDivisionError: division by zero; this is a fault of milopt: --debug shows where"
    with pytest.raises(ZeroDivisionError):
        main([*arguments, "--debug"])


def test_what_became_of_each_weight_is_told(tmp_path: Path, capsys: Capture) -> None:
    weight = np.reshape(np.arange(64 * 64, dtype=np.float16), (64, 64)) / 4096

    @mb.program(input_specs=[mb.TensorSpec((1, 64), types.fp16)], opset_version=target.iOS18)
    def program(x: Any) -> Any:
        x = mb.linear(x=x, weight=mb.const(val=weight, name="big"))
        return mb.linear(x=x, weight=mb.const(val=weight[:2], name="small"), name="y")

    package = load(program).save(tmp_path / "in.mlpackage")
    given = ["optimize", package, "--passes", "palettize{bits=4},decompress", "--verify", "none", "-o"]
    assert main(list(map(str, [*given, tmp_path / "a.mlpackage", "--json"]))) == 0
    made, back = json.loads(capsys.readouterr().out)["report"]["passes"]
    assert [(each["name"], each["bits"], each["reason"]) for each in made["coverage"]] == [
        ("big", 4, ""),
        ("small", None, "too small: 128 of 2048 numbers"),
    ]
    (line,) = back["coverage"]
    assert (line["snr"], line["before"], line["after"]) == ("inf", made["coverage"][0]["after"], 8192)

    assert main(list(map(str, [*given, tmp_path / "b.mlpackage"]))) == 0
    told = [" ".join(each.split()) for each in capsys.readouterr().out.splitlines()]
    assert any(each.startswith("1 4 bits, a table per 16 channels") for each in told)
    assert "1 left alone: too small: 128 of 2048 numbers 256 bytes 256 bytes" in told
    assert main(list(map(str, [*given, tmp_path / "c.mlpackage", "-v"]))) == 0
    assert "big fp16[64, 64]" in capsys.readouterr().out


def test_many_kinds_of_weights_are_shortened(capsys: Capture) -> None:
    lines = [Coverage(f"w{at}", ("main",), (at,), "fp16", at, at, reason=f"number {at}") for at in range(1, 14)]
    print_coverage(Console(width=120), "palettize", lines)
    told = [" ".join(each.split()) for each in capsys.readouterr().out.splitlines() if each.strip()]
    assert told[3] == "1 left alone: number 13 13 bytes 13 bytes"
    assert told[-1] == "3 others; -v shows all 6 bytes 6 bytes"

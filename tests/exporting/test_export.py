"""``milopt export`` of a small model: the set runs, says what it is made of, and is made once."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from milopt.cli import main
from milopt.exporting import ExportError, Options, export
from milopt.exporting.compressing import PalettizeParts
from milopt.mil import is_constexpr, operations, shape_of
from milopt.package import Model, load
from milopt.session import Session
from milopt.sets import chunk
from milopt.sets import load as load_set
from tests.exporting.counting import tree
from tests.exporting.tiny import MODEL, OPTIONS, write

Capture = pytest.CaptureFixture[str]
STEPS = ["1-convert", "2-rewrite", "3-compress", "4-chunk", "5-verify", "set"]
_WORDS = {"--context": "32", "--batch-size": "4", "--chunks": "1", "--lut-embeddings": "none", "--lut": "4"}
COMMAND = [word for pair in {**_WORDS, "--lut-head": "6"}.items() for word in pair]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, and beside it ``out``, its export."""
    pytest.importorskip("transformers", reason="milopt[huggingface] is not installed")
    made = tmp_path_factory.mktemp("export")
    outcomes = export(write(made), made / "out", OPTIONS)
    assert [each.done for each in outcomes[:6]] == [True] * 6
    return made


@pytest.fixture
def out(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder / "out", tmp_path / "out"))


def _told(folder: Path, out: Path, options: Options = OPTIONS, **how: Any) -> list[str]:
    return [each.reason if each.done else "kept" for each in export(folder / MODEL, out, options, **how)[:6]]


def test_what_is_in_the_folder(folder: Path) -> None:
    assert sorted(each.name for each in (folder / "out").iterdir()) == sorted([*STEPS, "export.json"])
    assert sorted(each.name for each in (folder / "out" / "set").iterdir()) == [
        "chunk_01of01.mlpackage",
        "embeddings.mlpackage",
        "head.mlpackage",
        "milopt",
        "set.json",
    ]
    assert tree(folder / "out" / "set") == tree(folder / "out" / "4-chunk" / "set")


def test_the_set_runs_as_the_package(folder: Path) -> None:
    whole = Session(load(folder / "out" / "3-compress" / "model.mlpackage"))
    made = Session(load_set(folder / "out" / "set"))
    tokens = [3, 1, 4, 1, 5, 9, 2, 6]
    assert (whole.feed(tokens) == made.feed(tokens)).all()


def test_every_part_has_its_bits(folder: Path) -> None:
    made = load_set(folder / "out" / "set")
    assert _sizes(made.files["embeddings.mlpackage"]) == set()
    assert _sizes(made.files["chunk_01of01.mlpackage"]) == {4}
    assert _sizes(made.files["head.mlpackage"]) == {6}


def _sizes(model: Any) -> set[int]:
    assert isinstance(model, Model)
    ops = [op for each in model.functions.values() for op in operations(each) if is_constexpr(op.op_type)]
    return {shape_of(op.inputs["lut"])[-2].bit_length() - 1 for op in ops}


def test_a_second_run_keeps_everything(folder: Path, out: Path) -> None:
    before = tree(out)
    assert _told(folder, out) == ["kept"] * 6
    assert tree(out) == before


def test_nothing_tells_of_the_machine_or_the_day(folder: Path) -> None:
    for path, content in tree(folder / "out").items():
        assert str(folder).encode() not in content, path
        assert b"conversion_date" not in content, path


@pytest.mark.slow
def test_another_process_makes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "milopt", "export", str(folder / MODEL), "-o", str(tmp_path / "out"), *COMMAND]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": "7"}, capture_output=True)
    assert tree(tmp_path / "out") == tree(folder / "out")


def test_what_depends_on_an_option_is_done_again(folder: Path, out: Path) -> None:
    changed = replace(OPTIONS, embedding="table")
    with pytest.raises(ExportError, match="finished set made otherwise: embedding was package, is table; --force"):
        export(folder / MODEL, out, changed)
    told = _told(folder, out, changed, force=True)
    assert told[:4] == ["kept", "kept", "kept", "embedding was package, is table"]
    assert all(each.startswith("4-chunk/set/") for each in told[4:])
    assert (out / "set" / "embeddings.npy").is_file()
    load_set(out / "set")


def test_a_head_in_slices(folder: Path, out: Path) -> None:
    told = _told(folder, out, replace(OPTIONS, split_head=200, verify=False), force=True)
    assert told[0] == "kept"
    assert told[1].endswith("layout-bc1s,split-head{limit=200}")
    head = load_set(out / "set").files["head.mlpackage"]
    assert isinstance(head, Model)
    shapes = [shape_of(op.inputs["weight"])[0] for op in operations(head.function("decode")) if op.op_type == "conv"]
    assert sum(shapes) == 512
    assert max(shapes) <= 200


def test_as_few_chunks_as_the_target_allows(folder: Path, out: Path) -> None:
    outcomes = export(folder / MODEL, out, replace(OPTIONS, chunks=None, target="mac"), force=True)
    assert outcomes[3].reason == "target was iphone, is mac"
    why, source = outcomes[3].notes[:2]
    assert why.startswith("1 chunk, the fewest of which none stores more than 1,999,999,999 bytes; the largest stores ")
    assert source == "a weight file above 2 GB does not load: apple/coremltools#1807, smpanaro"


def test_a_set_that_computes_something_else_does_not_get_its_place(
    folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    before = tree(out / "set")

    def wrong(_: Model, **options: Any) -> Any:
        return chunk(load(out / "2-rewrite" / "model.mlpackage"), **options)  # which has no look-up tables yet

    monkeypatch.setattr("milopt.exporting.steps.chunk", wrong)
    assert main(["export", str(folder / MODEL), "-o", str(out), *COMMAND, "--restart", "4"]) == 1
    assert "the set computes something else than the package" in capsys.readouterr().err
    assert tree(out / "set") == before
    assert main(["export", str(folder / MODEL), "-o", str(out), *COMMAND]) == 1  # it is not taken for verified
    monkeypatch.undo()
    assert main(["export", str(folder / MODEL), "-o", str(out), *COMMAND, "--restart", "4"]) == 0
    assert tree(out) == tree(folder / "out")


def test_another_checkpoint_is_seen(folder: Path, out: Path, tmp_path: Path) -> None:
    made = Path(shutil.copytree(folder / MODEL, tmp_path / MODEL))
    (made / "README.md").write_text("Nobody reads this.")
    assert export(made, out, OPTIONS)[0].done is False
    (made / "generation_config.json").write_text("{}")
    with pytest.raises(ExportError, match=r"generation_config\.json is (new|another than it was); --force"):
        export(made, out, OPTIONS)


def test_the_last_step_needs_a_mac(folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(
        ExportError, match=r"step 7 \(compile\): Core ML's compiler runs on macOS alone: copy"
    ) as caught:
        export(folder / MODEL, out, OPTIONS, only=7)
    assert "\n" not in str(caught.value)
    assert not (out / "compiled").exists()


def test_on_a_mac_it_compiles_with_coremltools(folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    utils: Any = importlib.import_module("coremltools.models.utils")

    def compile_model(model: str, destination: str) -> str:
        Path(destination).mkdir()
        (Path(destination) / "of").write_text(Path(model).name)
        return destination

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(utils, "compile_model", compile_model)
    outcomes = export("no such folder", out, OPTIONS, only=7)  # on the Mac there need not be the checkpoint
    assert [each.done for each in outcomes] == [True]
    assert (out / "compiled" / "head.mlmodelc" / "of").read_text() == "head.mlpackage"
    assert (out / "compiled" / "milopt" / "tokenizer.json").read_bytes()

    def fails(model: str, destination: str) -> str:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(utils, "compile_model", fails)
    with pytest.raises(ExportError, match=r"Core ML can't compile .*: no compiler"):
        export("no such folder", out, OPTIONS, only=7)


def test_the_command_says_what_it_did(folder: Path, out: Path, capsys: Capture) -> None:
    assert main(["export", str(folder / MODEL), "-o", str(out), *COMMAND]) == 0
    told = capsys.readouterr().out
    assert told.count("kept: nothing changed") == 6
    assert "verify: no difference in 3 trials (exact in float64, rtol=0)" in told
    assert "embeddings: as they are, layers: 4 bits, head: 6 bits" in told
    assert "head.mlpackage" in told
    assert told.rstrip().endswith(str(out / "set"))
    assert main(["export", str(folder / MODEL), "-o", str(out), *COMMAND, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in document["steps"]][:3] == ["convert", "rewrite", "compress"]
    assert document["sizes"]["set.json"] == (out / "set" / "set.json").stat().st_size


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--chunks", "many"], "--chunks takes a number, or auto"),
        (["--chunks", "0"], "there is at least one chunk, not 0"),
        (["--lut", "5"], "look-up tables have 1, 2, 3, 4, 6, 8 bits, not 5 (layers)"),
        (["--lut-head", "x"], "--lut-head takes a number of bits, or none"),
        (["--batch-size", "32"], "less than the context, 32"),
        (["--architecture", "qwen2"], "the checkpoint's architecture is LlamaForCausalLM, not qwen2"),
        (["--only", "9"], "there are steps 1 to 7"),
        (["--chunks", "2"], "finished set made otherwise: chunks was 1, is 2"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    words: list[str], says: str, folder: Path, out: Path, capsys: Capture
) -> None:
    before = tree(out)
    assert main(["export", str(folder / MODEL), "-o", str(out), *COMMAND, *words]) == 2
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert says in told.err
    assert tree(out) == before


@pytest.mark.parametrize(
    ("made", "says"), [("nothing", "no such file or directory"), ("folder", "holds neither config")]
)
def test_without_a_checkpoint_no_folder_is_made(made: str, says: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "folder").mkdir()
    assert main(["export", str(tmp_path / made), "-o", str(tmp_path / "out")]) == 2
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert says in told.err
    assert not (tmp_path / "out").exists()


def test_too_many_chunks(folder: Path, out: Path) -> None:
    with pytest.raises(ValueError, match="2 chunks are too many: the program has 1 layers"):
        export(folder / MODEL, out, replace(OPTIONS, chunks=2), force=True)
    assert _told(folder, out)[3] == ""  # and the export goes on as before


@pytest.mark.parametrize("wanted", ["llama", "Llama", "LlamaForCausalLM", "auto"])
def test_the_architecture_may_be_named(wanted: str, folder: Path, out: Path) -> None:
    assert _told(folder, out, replace(OPTIONS, architecture=wanted)) == ["kept"] * 6


def test_a_tied_weight_has_one_size(folder: Path) -> None:
    from tests.sets.programs import Transformer

    model = Transformer(tied=True).model()
    with pytest.raises(ExportError, match=r"is one weight, and can't have 4 bits in the embeddings and 6 bits in the"):
        PalettizeParts.of(model, {"embeddings": 4, "layers": 4, "head": 6}).run(model)

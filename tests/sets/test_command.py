"""``milopt chunk``, and ``milopt generate`` on what it made."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import milopt.sets
from milopt.cli import main
from milopt.sets import chunk, load
from tests.cli.support import contents, with_tokenizer
from tests.verify.decoders import Decoder

Capture = pytest.CaptureFixture[str]
ENDS = ("--embedding", "package", "--head", "package")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_tokenizer(Decoder(context=24).stateful()).save(tmp_path_factory.mktemp("package") / "in.mlpackage")


@pytest.fixture(scope="module")
def made(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets") / "set"
    assert main(["chunk", str(package), "-o", str(folder), "--count", "2", *ENDS, "--no-verify"]) == 0
    return folder


def _printed(capsys: Capture, *arguments: object) -> str:
    status = main([str(each) for each in arguments])
    told = capsys.readouterr()
    assert (status, told.err) == (0, "")
    return told.out


def _refused(capsys: Capture, *arguments: object) -> str:
    status = main([str(each) for each in arguments])
    told = capsys.readouterr()
    assert (status, told.out) == (2, "")
    assert told.err.count("\n") == 1
    return told.err.removeprefix("error: ").rstrip("\n")


def test_what_is_told(package: Path, tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "set"
    told = _printed(capsys, "chunk", package, "-o", folder, "--count", "2", *ENDS, "--target", "iphone")
    for name in ("embeddings", "chunk_01of02", "chunk_02of02", "head"):
        assert name in told
    assert "2 chunks, as many as wanted; the largest stores" in told
    assert "no difference in 3 trials (exact in float64, rtol=0)" in told
    assert "warning: chunk_01of02.mlpackage: a state whose sizes are no multiples of 32 may not load" in told
    assert told.rstrip().endswith(str(folder))
    assert [part.name for part in load(folder).parts] == ["embeddings", "chunk_01of02", "chunk_02of02", "head"]


def test_what_is_told_as_json(package: Path, tmp_path: Path, capsys: Capture) -> None:
    told = json.loads(_printed(capsys, "chunk", package, "-o", tmp_path / "set", "--at", "0", "--no-verify", "--json"))
    assert told["equal"] is None
    assert [each["name"] for each in told["parts"]] == ["chunk_01of02", "chunk_02of02"]
    assert told["parts"][1]["functions"]["decode"]["takes"]["hidden_states"] == "chunk_01of02/output_hidden_states"
    assert told["weight_bytes"]["after"] == load(tmp_path / "set").sizes()


def test_a_target_decides_how_many(package: Path, tmp_path: Path, capsys: Capture) -> None:
    told = _printed(capsys, "chunk", package, "-o", tmp_path / "set", "--target", "mac", "--no-verify")
    assert "1 chunk, the fewest of which none stores more than 1,999,999,999 bytes" in told


def test_a_set_answers_as_the_package_does(package: Path, made: Path, capsys: Capture) -> None:
    for options in (("-p", "word1 word2"), ("-p", "word3", "--temperature", "1.2", "--seed", "4")):
        wanted = _printed(capsys, "generate", package, *options, "--max-tokens", "6")
        assert _printed(capsys, "generate", made, *options, "--max-tokens", "6") == wanted
        assert wanted.strip()


def test_a_conversation_with_a_set(package: Path, made: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[list[str]] = []
    for each in (package, made):
        monkeypatch.setattr("sys.stdin", io.StringIO("word1 word2\nword1 word2\n/reset\nword1 word2\n"))
        told.append(_printed(capsys, "generate", each, "--max-tokens", "3").splitlines())
    assert told[0] == told[1]
    assert told[1][0] == told[1][2] != told[1][1]


def test_a_set_that_is_not_whole_does_not_answer(made: Path, tmp_path: Path, capsys: Capture) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "set"))
    shutil.rmtree(folder / "chunk_02of02.mlpackage")
    said = _refused(capsys, "generate", folder, "-p", "word1")
    assert said.startswith(f"{folder}/chunk_02of02.mlpackage/")
    assert said.endswith("is missing from the set")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--count", "3"), "3 chunks are too many: the program has 2 layers that can be cut apart"),
        ((), "say one of: the number of chunks, the most bytes of one, or the layers to cut behind"),
        (("--max-bytes", "1kB"), "no cut between layers keeps every chunk within 1,000 bytes: layer"),
        (("--max-bytes", "many"), "'many' is no size: give bytes, or a number with kB, MB or GB"),
        (("--max-bytes", "-1GB"), "'-1GB' is no size"),
        (("--at", "1.5"), "--at takes numbers of layers with commas between, such as 7,15, not '1.5'"),
        (("--at", "5"), "no cut can be made behind layer 5: there are 0"),
        (("--count", "2", "--after", "attention"), "no layer has a place between its attention and what follows"),
    ],
)
def test_wrong_input(options: Any, message: str, package: Path, tmp_path: Path, capsys: Capture) -> None:
    assert message in _refused(capsys, "chunk", package, "-o", tmp_path / "set", *options)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_replaced_without_force(package: Path, tmp_path: Path, capsys: Capture) -> None:
    folder, options = tmp_path / "set", ("--count", "1", "--no-verify")
    _printed(capsys, "chunk", package, "-o", folder, *options)
    before = contents(folder)
    assert _refused(capsys, "chunk", package, "-o", folder, *options) == f"{folder} exists; give --force to replace it"
    assert "behind layer 9" in _refused(capsys, "chunk", package, "-o", folder, "--at", "9", "--force")
    assert contents(folder) == before
    _printed(capsys, "chunk", package, "-o", folder, "--count", "2", "--no-verify", "--force")
    assert len(load(folder).parts) == 2
    other = tmp_path / "other"
    other.mkdir()
    said = _refused(capsys, "chunk", package, "-o", other, *options, "--force")
    assert said == f"{other} is no deployment set; it is not replaced even with --force"
    missing = tmp_path / "no" / "set"
    assert "does not exist" in _refused(capsys, "chunk", package, "-o", missing, *options)


def test_a_set_that_computes_something_else_is_not_written(
    package: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(_: Any, **options: Any) -> Any:
        return chunk(Decoder(context=24, mistake="scale").stateful(), **options)

    monkeypatch.setattr(milopt.sets, "chunk", wrong)
    assert main(["chunk", str(package), "-o", str(tmp_path / "set"), "--count", "2"]) == 1
    assert "differs" in capsys.readouterr().out
    assert not (tmp_path / "set").exists()

"""``milopt check-contract``, and what else the command line does with a package that keeps a contract."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from milopt.cli import main
from milopt.errors import MiloptError
from tests.cli.support import WORDS, with_tokenizer
from tests.contracts.planting import DEFECTS, kept
from tests.passes.contract_programs import VOCABULARY, model


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kept().save(tmp_path_factory.mktemp("contract") / "good.mlpackage")


def test_a_good_package(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-contract", str(package), "--style", "apple", "--tokens", "3"]) == 0
    out = capsys.readouterr().out
    assert "good.mlpackage keeps the apple contract: 17 checks passed" in out
    assert "FAILS" not in out


def test_a_broken_package(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = DEFECTS["a state of another name"][0](kept()).save(tmp_path / "bad.mlpackage")
    assert main(["check-contract", str(path)]) == 1
    out = capsys.readouterr().out
    assert "bad.mlpackage breaks the apple contract: 2 of" in out
    assert "stateful only with both keyCache and valueCache" in " ".join(out.split())


def test_json(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-contract", str(package), "--json", "--tokens", "2", "--seed", "4"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["package"], told["style"], told["passed"]) == ("good.mlpackage", "apple", True)


@pytest.mark.parametrize(
    "arguments", [["absent.mlpackage"], ["{}", "--style", "pear"], ["{}", "--reference", "absent"]]
)
def test_bad_input(package: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-contract", *(each.format(package) for each in arguments)]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_pickles_have_to_be_allowed_and_are_read(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[bool] = []

    def opened(source: object, *, pickles: bool = False, **_: object) -> object:
        told.append(pickles)
        raise MiloptError(f"{source} is looked at")

    monkeypatch.setattr("milopt.contracts.reference.open_source", opened)
    for options in ([], ["--pickles"]):
        assert main(["check-contract", str(package), "--reference", str(tmp_path), *options]) == 2
        assert "is looked at" in capsys.readouterr().err
    assert told == [False, True]
    assert main(["check-contract", str(package), "--pickles"]) == 2
    assert "--pickles is for the weights of a --reference" in capsys.readouterr().err


def test_optimize_makes_one(tmp_path: Path) -> None:
    before, after = tmp_path / "in.mlpackage", tmp_path / "out.mlpackage"
    with_ranges(before)
    passes = "canonicalize,fuse-sdpa,contract{style=apple,hub=org/name}"
    assert main(["optimize", str(before), "-o", str(after), "--passes", passes]) == 0
    assert main(["check-contract", str(after)]) == 0
    # what the packages say of themselves explains the names that changed
    assert main(["verify", str(before), str(after)]) == 0


def with_ranges(path: Path) -> None:
    """A package as ``milopt convert --shapes ranged`` writes it."""
    from milopt.mil import is_symbolic, set_ranges, shape_of

    made = model()
    function = made.function()
    for name, var in function.inputs.items():
        if any(map(is_symbolic, shape_of(var))):
            bounds = [(1, 16) if is_symbolic(dim) else (dim, dim) for dim in shape_of(var)]
            set_ranges(function, name, bounds, default=4)
    made.save(path)


def test_generate_runs_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(WORDS) > VOCABULARY
    path = with_tokenizer(kept()).save(tmp_path / "chat.mlpackage")
    assert main(["generate", str(path), "--prompt", "word1 word2 word3", "--max-tokens", "4", "--raw"]) == 0
    first = capsys.readouterr().out
    assert first.strip()
    assert main(["generate", str(path), "--prompt", "word1 word2 word3", "--max-tokens", "4", "--raw"]) == 0
    assert capsys.readouterr().out == first

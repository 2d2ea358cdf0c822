"""``milopt generate`` and ``milopt verify`` on folders for clients, and on sets."""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from milopt.cli import main
from milopt.package import Model, load
from milopt.sets import chunk
from milopt.sets.anemll import anemll_set
from milopt.sets.coreml_llm import monolith
from tests.cli.support import WORDS, with_tokenizer
from tests.sets.programs import WIDTH, Transformer


def _decoder(*mlp: int) -> Model:
    """As many words as the tokenizer has; the one that ends an answer, the first, is never the likeliest."""
    rng = np.random.default_rng(0)
    rows = {name: rng.standard_normal((len(WORDS), WIDTH)).astype(np.float16) for name in ("embedding", "head")}
    rows["head"][0] = 0
    return with_tokenizer(Transformer(states="unified", mlp=mlp, weights=rows).model())


FORMS = ("anemll", "argmax", "monolith")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clients")
    model = _decoder(24, 24)
    model.save(root / "whole.mlpackage")
    anemll_set(model, count=2, slices=4).save(root / "anemll")
    anemll_set(model, count=2, slices=4, argmax=True).save(root / "argmax")
    monolith(model).save(root / "monolith")
    return root


def _said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(["generate", *arguments])
    got = capsys.readouterr()
    return status, got.out, got.err


@pytest.mark.parametrize("form", FORMS)
def test_answers_and_turns_are_the_packages(
    form: str, root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = ["-p", "word1 word2 word3", "--max-tokens", "4"]
    wanted = _said(capsys, str(root / "whole.mlpackage"), *alone)
    assert wanted[0] == 0
    assert wanted[1].strip()
    assert _said(capsys, str(root / form), *alone) == wanted
    turns = "word1\nword2\n/reset\nword3 word4\n" + " ".join(9 * ["word1"]) + "\nword2\n"
    told: list[tuple[int, str, str]] = []
    for name in ("whole.mlpackage", form):
        monkeypatch.setattr(sys, "stdin", io.StringIO(turns))
        told.append(_said(capsys, str(root / name), "--max-tokens", "2"))
    assert told[0] == told[1]
    assert "error: the conversation has" in told[1][2]


def test_draws_where_the_logits_are_given(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = ["-p", "word1 word2", "--max-tokens", "4", "--temperature", "1.5", "--top-p", "0.9", "--seed", "3"]
    wanted = _said(capsys, str(root / "whole.mlpackage"), *drawn)
    assert wanted[0] == 0
    assert _said(capsys, str(root / "anemll"), *drawn) == wanted
    for form in ("argmax", "monolith"):
        status, _, said = _said(capsys, str(root / form), "-p", "word1", "--temperature", "1")
        assert (status, said) == (2, "error: the package gives the likeliest token alone: take --temperature 0\n")
        for option, value in (("--top-k", "4"), ("--top-p", "0.5")):
            status, _, said = _said(capsys, str(root / form), "-p", "word1", option, value)
            assert status == 2
            assert said.startswith("error: the program gives the likeliest token alone: --top-k and --top-p have")


def test_a_full_context_is_said_in_a_line(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for form in FORMS:
        status, _, said = _said(capsys, str(root / form), "-p", "word1 word2 word3", "--raw", "--max-tokens", "99")
        assert (status, said) == (0, "(the context of 12 tokens is full)\n")
        status, _, said = _said(capsys, str(root / form), "-p", " ".join(13 * ["word1"]), "--raw")
        assert status == 2
        assert said.startswith("error: the conversation has 13 tokens, but the model's context is 12")


def test_a_folder_without_a_tokenizer(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(root / "anemll", tmp_path / "set"))
    (folder / "tokenizer.json").unlink()
    status, _, said = _said(capsys, str(folder), "-p", "word1")
    assert (status, said) == (2, "error: the folder has no tokenizer.json: name one that has with --tokenizer\n")


def test_verify(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = str(root / "whole.mlpackage")
    same = chunk(load(package), count=2).save(tmp_path / "same")
    other = chunk(_decoder(24, 23), count=2).save(tmp_path / "b")
    assert main(["verify", package, str(same), "--trials", "1"]) == 0
    assert main(["verify", package, str(other), "--trials", "1"]) == 1
    capsys.readouterr()
    assert main(["verify", package, str(same), "--function", "decode"]) == 2
    assert "of which all functions are compared" in capsys.readouterr().err
    assert main(["verify", package, str(root / "anemll")]) == 2
    assert f"milopt check-contract {root / 'anemll'} --style anemll --reference {package}" in capsys.readouterr().err

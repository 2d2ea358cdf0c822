"""Packages whose logits were taken apart by split-head, in sessions and in ``milopt generate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from milopt.cli import main
from milopt.package import Model
from milopt.pipeline import Pipeline
from milopt.session import Session
from tests.cli.support import with_tokenizer
from tests.verify.decoders import Decoder

TOKENS = [3, 1, 4, 1, 5, 9]
K = 4
KINDS = ("slices", "argmax", "top-k")


def apart(kind: str, *, layout: str = "") -> Model:
    model = with_tokenizer(Decoder(context=40).stateful())
    Pipeline.parse(f"{layout}split-head{{slices=3,output={kind},k={K}}}").run(model, verify="each")
    assert "logits" not in {var.name for var in model.function("decode").outputs}
    return model


def whole() -> Any:
    return Session(Decoder(context=40).stateful()).feed(TOKENS)


@pytest.mark.parametrize("layout", ["", "linear-to-conv,layout-bc1s,"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_session_sees_logits(kind: str, layout: str) -> None:
    session = Session(apart(kind, layout=layout))
    given, wanted = session.feed(TOKENS), whole()
    assert given.shape == wanted.shape
    known = np.isfinite(given)
    count = {"slices": wanted.shape[1], "argmax": 1, "top-k": K}[kind]
    assert session.plans.candidates == count
    assert known.sum(axis=1).tolist() == [count] * len(TOKENS)
    # the same sums, in fp16 as declared: at most in another order
    np.testing.assert_allclose(given[known], wanted[known], rtol=2e-3, atol=2e-3)
    assert given.argmax(axis=1).tolist() == wanted.argmax(axis=1).tolist()
    lowest = np.where(known, given, np.inf).min(axis=1)
    others = np.where(known, -np.inf, wanted).max(axis=1)
    assert np.all(lowest >= others - 2e-3)


def answer(model: Model, path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str, str]:
    package = path / "model.mlpackage"
    model.save(package, overwrite=True)
    status = main(["generate", str(package), "--raw", "--prompt", "a b", "--max-tokens", "6", *options])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = answer(with_tokenizer(Decoder(context=40).stateful()), tmp_path, capsys)
    assert (plain[0], bool(plain[1].strip())) == (0, True)
    for kind in KINDS:
        assert answer(apart(kind), tmp_path, capsys)[:2] == plain[:2]


def test_what_is_not_given_back_is_not_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    warm = ("--temperature", "1", "--seed", "3")
    status, _, said = answer(apart("argmax"), tmp_path, capsys, *warm)
    assert (status, "the package gives the likeliest token alone (split-head): take --temperature 0" in said) == (
        2,
        True,
    )
    status, _, said = answer(apart("top-k"), tmp_path, capsys, *warm)
    assert (status, "the package gives the 4 likeliest tokens (split-head): take --top-k 4 or fewer" in said) == (
        2,
        True,
    )
    few = answer(apart("top-k"), tmp_path, capsys, *warm, "--top-k", "4")
    assert few[0] == 0
    plain = with_tokenizer(Decoder(context=40).stateful())
    assert few[1] == answer(plain, tmp_path, capsys, *warm, "--top-k", "4")[1]
    assert answer(apart("slices"), tmp_path, capsys, *warm)[0] == 0


def test_other_layouts_come_first() -> None:
    model = Decoder(context=40).stateful()
    Pipeline.parse("linear-to-conv,layout-bc1s{io=free}").run(model)
    report = Pipeline.parse("split-head{slices=3,output=argmax}").run(model)
    assert not report
    assert [miss.reason for miss in report.all_misses()] == [
        "its outputs have other layouts: split-head knows public ones"
    ]
    assert Pipeline.parse("split-head{slices=3}").run(model, verify="each")

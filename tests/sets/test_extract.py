"""One function of a model as a model of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import milopt
from milopt.cli import main
from milopt.errors import MiloptError
from milopt.multifunction import extract
from milopt.package import Model
from milopt.session import Session
from milopt.text import text
from tests.sets.programs import Transformer

PROMPT = [3, 60, 0, 7]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = Transformer(mlp=(24,)).model()
    model.metadata |= {"by": "hand", "milopt.query_lengths": "1,4"}
    model.describe("decode", "input_ids", "one token")
    model.describe("prefill4", "input_ids", "four tokens")
    model.attachments["milopt/tokenizer.json"] = b"{}"
    return model.save(tmp_path_factory.mktemp("package") / "in.mlpackage")


@pytest.mark.parametrize("name", ["main", "prefill"])
def test_a_function_alone(name: str, package: Path, tmp_path: Path) -> None:
    whole = milopt.load(package)
    before = text(whole, weights="hash")
    again = milopt.load(extract(whole, "prefill4", name=name).save(tmp_path / "out.mlpackage"))
    assert text(whole, weights="hash") == before
    assert list(again.functions) == [again.default_function] == [name]
    body = before[before.index("prefill4") :].removeprefix("prefill4")
    assert text(again, weights="hash").split("{")[1].split("}")[0] == body.split("{")[1].split("}")[0]
    assert again.text_of(None, "input_ids") == "four tokens"
    assert again.metadata == {key: value for key, value in whole.metadata.items() if key != "milopt.query_lengths"}
    assert again.attachments == whole.attachments
    assert bool(again.description.functions) == (name != "main")
    np.testing.assert_array_equal(
        Session(again, precision="float64").feed(PROMPT), Session(whole, precision="float64").feed(PROMPT)
    )


def test_weights_are_not_copied(package: Path) -> None:
    whole = milopt.load(package)
    kept = {id(op.outputs[0].val) for op in whole.function("decode").operations if op.op_type == "const"}
    alone = extract(whole, "decode")
    assert {id(op.outputs[0].val) for op in alone.function().operations if op.op_type == "const"} == kept


def test_a_model_without_a_description() -> None:
    model = Transformer(mlp=(24,)).model()
    assert isinstance(alone := extract(model, "decode"), Model)
    assert list(alone.functions) == ["main"]
    assert alone.description is None


def test_an_unknown_function(package: Path) -> None:
    with pytest.raises(MiloptError, match="no function 'other'; this model has: decode, prefill4"):
        extract(milopt.load(package), "other")


def test_the_command(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    destination = tmp_path / "out.mlpackage"
    asked = ["extract-function", str(package), "-o", str(destination), "--function", "decode"]
    assert main(asked) == 0
    assert "function 'main'" in capsys.readouterr().out
    assert list(milopt.load(destination).functions) == ["main"]
    assert main(asked) == 2
    assert capsys.readouterr().err == f"error: {destination} exists; give --force to replace it\n"
    assert main([*asked[:-1], "other", "--force"]) == 2
    assert capsys.readouterr().err == "error: no function 'other'; this model has: decode, prefill4\n"
    assert main([*asked, "--name", "one", "--force"]) == 0
    assert list(milopt.load(destination).functions) == ["one"]

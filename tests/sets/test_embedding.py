"""The embedding by itself, as a package and as rows that are mapped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import milopt
from milopt.cli import main
from milopt.interpreter import compile_all
from milopt.mil import constant
from milopt.package import Model
from milopt.passes.compression import Palettize
from milopt.sets import SetError
from milopt.sets.extracting import embedding_of, embedding_table, save_table
from milopt.text import text
from tests.sets.programs import VOCABULARY, WIDTH, Transformer

Capture = pytest.CaptureFixture[str]
TOKENS = np.array([[3, 60, 0, 7]], np.int32)


@pytest.fixture(scope="module", params=[False, True], ids=["own", "tied"])
def model(request: pytest.FixtureRequest) -> Model:
    return Transformer(mlp=(24, 24), tied=request.param).model()


@pytest.fixture
def package(model: Model, tmp_path: Path) -> Path:
    return model.save(tmp_path / "in.mlpackage")


def _rows(model: Model) -> np.ndarray[tuple[int, ...], np.dtype[np.float16]]:
    """The array of the program's first look-up."""
    gather = next(op for op in model.function("decode").operations if op.op_type == "gather")
    return np.asarray(constant(gather.inputs["x"]), np.float16)


def test_a_package_of_its_own(model: Model, tmp_path: Path) -> None:
    before = text(model, weights="hash")
    again = milopt.load(embedding_of(model).save(tmp_path / "out.mlpackage"))
    assert text(model, weights="hash") == before
    assert list(again.functions) == ["decode", "prefill4"]
    assert "milopt.part" not in again.metadata
    (found,) = compile_all(again)["prefill4"].run({"input_ids": TOKENS}).values()
    np.testing.assert_array_equal(found.numpy()[0], _rows(model)[TOKENS[0]])


def test_a_table_is_mapped(model: Model, tmp_path: Path) -> None:
    table = embedding_table(model)
    file = save_table(table, tmp_path / "rows.npy")
    found: Any = np.load(file, mmap_mode="r")
    assert type(found) is np.memmap
    assert (found.dtype, found.shape) == (np.float16, (VOCABULARY, WIDTH))
    np.testing.assert_array_equal(found, _rows(model))
    assert list(tmp_path.iterdir()) == [file]


def test_rows_of_look_up_tables_are_decoded(tmp_path: Path) -> None:
    model = Transformer(mlp=(24,)).model()
    Palettize(bits=4, min_elements=64).run(model)
    array = embedding_table(model).array
    assert array.shape == (VOCABULARY, WIDTH)
    assert len(np.unique(array[:16])) <= 16  # a table of 16 numbers for 16 rows
    (rows,) = compile_all(embedding_of(model))["prefill4"].run({"input_ids": TOKENS}).values()
    np.testing.assert_array_equal(rows.numpy()[0], array[TOKENS[0]])


def test_the_command(package: Path, model: Model, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "rows.npy"
    assert main(["extract-embedding", str(package), "-o", str(file), "--table"]) == 0
    assert capsys.readouterr().out.strip() == f"{file}: 64 rows, fp16 [64, 16], 2.0 kB"
    np.testing.assert_array_equal(np.load(file), _rows(model))
    assert main(["extract-embedding", str(package), "-o", str(file), "--table", "--json", "--force"]) == 0
    assert json.loads(capsys.readouterr().out) == {"dtype": "fp16", "shape": [64, 16], "bytes": 2048}
    out = tmp_path / "out.mlpackage"
    assert main(["extract-embedding", str(package), "-o", str(out)]) == 0
    assert capsys.readouterr().out.startswith(f"{out}: decode, prefill4, ")
    assert list(milopt.load(out).functions) == ["decode", "prefill4"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["rows.bin", "--table"], "the name of a table ends in .npy"),
        (["there.npy", "--table"], "there.npy exists; give --force to replace it"),
        (["rows.npy"], "the output's name must end in .mlpackage"),
        (["in.mlpackage"], "in.mlpackage exists; give --force to replace it"),
    ],
)
def test_what_is_refused(words: list[str], says: str, package: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "there.npy").write_text("mine")
    given = ["extract-embedding", str(package), "-o", str(tmp_path / words[0]), *words[1:]]
    assert main(given) == 2
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert says in told.err
    assert (tmp_path / "there.npy").read_text() == "mine"


def test_a_table_has_a_suffix(model: Model, tmp_path: Path) -> None:
    with pytest.raises(SetError, match=r"ends in \.npy"):
        save_table(embedding_table(model), tmp_path / "rows.bin")

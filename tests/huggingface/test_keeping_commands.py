"""`milopt convert` and `milopt export` on quantized checkpoints: what they keep, and what they tell of it."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import milopt.exporting
import milopt.huggingface
from milopt.cli import main
from milopt.errors import MiloptError
from milopt.exporting import Options, export
from milopt.exporting.errors import ExportError
from milopt.exporting.steps import Work
from milopt.huggingface.attaching import Attached, Unattached
from milopt.huggingface.kept import Kept
from milopt.package import load
from milopt.passes.decompression import compressed_weights
from tests.huggingface.gguf_files import write
from tests.huggingface.quantized_files import gptq_folder
from tests.huggingface.support import llama

pytest.importorskip("gguf", reason="milopt[huggingface] is not installed")

_SMALL = {"num_hidden_layers": 1, "tie_word_embeddings": True}


@pytest.mark.parametrize(
    ("options", "quantized"),
    [
        ([], "keep"),
        (["--precision", "lut4"], "floats"),
        (["--precision", "float16"], "floats"),
        (["--precision", "lut4", "--quantized", "keep"], "keep"),
        (["--quantized", "floats"], "floats"),
    ],
)
def test_what_convert_is_told(
    options: list[str], quantized: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def convert(_: Path, **others: Any) -> None:
        given.update(others)
        raise MiloptError("enough")

    monkeypatch.setattr(milopt.huggingface, "convert", convert)
    assert main(["convert", str(tmp_path), "-o", str(tmp_path / "a.mlpackage"), *options]) == 2
    assert given["quantized"] == quantized


@pytest.mark.parametrize(
    ("options", "quantized"),
    [
        ([], "keep"),
        (["--lut", "4"], "keep"),
        (["--quantized", "floats", "--lut", "4"], "floats"),
    ],
)
def test_what_export_is_told(
    options: list[str], quantized: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Options] = []

    def run(_: str, __: Path, told: Options, **others: Any) -> None:
        given.append(told)
        raise MiloptError("enough")

    monkeypatch.setattr(milopt.exporting, "export", run)
    assert main(["export", str(tmp_path), "-o", str(tmp_path / "out"), *options]) == 2
    assert given[0].quantized == quantized


def test_an_unknown_treatment() -> None:
    with pytest.raises(ExportError, match="quantized weights are kept, or become floats: not 'int4'"):
        Options(quantized="int4")


def test_convert_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, made = write(tmp_path / "a.gguf", llama(**_SMALL), kind="Q8_0"), tmp_path / "a.mlpackage"
    sizes = ["--context", "16", "--query-lengths", "2", "--no-passes", "--verify", "none", "--verbose"]
    assert main(["convert", str(file), "-o", str(made), *sizes]) == 0
    told = capsys.readouterr().out
    assert "Quantized weights" in told
    assert "8 of 8 quantized tensors keep their integers" in told
    assert (
        "blk.0.ffn_down.weight: Q8_0: int8, a scale for 1 x 32; 6,528 bytes in the file, 6,528 in the package" in told
    )
    assert len(compressed_weights(load(made))) == 8


def test_export_notes_it(tmp_path: Path) -> None:
    file = write(tmp_path / "a.gguf", llama(**_SMALL), kind="Q4_0")
    (outcome,) = export(file, tmp_path / "out", Options(context=16, batch_size=2), only=1)
    assert "8 of 8 quantized tensors keep their integers" in outcome.notes
    recorded = json.loads((tmp_path / "out" / "export.json").read_text())["steps"]["1-convert"]
    assert recorded["key"]["quantized"] == "keep"
    (row,) = [each for each in outcome.notes if each.startswith("Q4_0")]
    assert row == "Q4_0: 8 tensors, int4, a scale for 1 x 32, 35,712 bytes in the file, 35,712 in the package"
    assert outcome.notes[-1] == "look-up tables are for floats: --quantized floats makes them of these weights too"


def test_only_exports_of_quantized_checkpoints_depend_on_it(tmp_path: Path) -> None:
    llama(**_SMALL).save_pretrained(tmp_path / "plain")
    keys = [Work(tmp_path / "plain", tmp_path, Options(quantized=each)).convert_key() for each in ("keep", "floats")]
    assert keys[0] == keys[1]
    folder, _ = gptq_folder(tmp_path / "a")
    keys = [Work(folder, tmp_path, Options(quantized=each)).convert_key() for each in ("keep", "floats")]
    assert [each["quantized"] for each in keys] == ["keep", "floats"]


@pytest.mark.slow
def test_a_set_of_what_is_kept(tmp_path: Path) -> None:
    """From the file to the set, whose table of rows has the numbers that the integers stand for."""
    file = write(tmp_path / "a.gguf", llama(**_SMALL), kind="Q8_0")
    options = Options(context=32, batch_size=4, chunks=1, embedding="table")
    outcomes = export(file, tmp_path / "out", options)
    assert [each.step.name for each in outcomes if each.done] == [
        *("convert", "rewrite", "compress", "chunk", "verify", "save"),
    ]
    rows = np.load(tmp_path / "out" / "set" / "embeddings.npy")
    stored = {each.name: each for each in importlib.import_module("gguf").GGUFReader(str(file)).tensors}
    words = stored["token_embd.weight"]
    wanted: Any = importlib.import_module("gguf").dequantize(words.data, words.tensor_type)
    assert np.array_equal(rows, wanted.astype(np.float16))
    kept = compressed_weights(load(tmp_path / "out" / "3-compress" / "model.mlpackage"))
    assert {each.places[0].op.op_type for each in kept} == {"constexpr_blockwise_shift_scale"}


def test_a_conversion_that_computes_with_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that are not told from constants stay floats, and that is said."""

    def attach(*_: Any) -> None:
        raise Unattached("computed")

    monkeypatch.setattr(Attached, "attach", attach)
    told: list[Kept] = []
    file = write(tmp_path / "a.gguf", llama(**_SMALL), kind="Q4_0")
    model = milopt.huggingface.convert(file, context=16, query_lengths=(2,), kept=told.append)
    assert not compressed_weights(model)
    assert {each.reason for each in told[0].fates} == {"the program has no weight of its elements alone"}

"""`milopt convert` on checkpoints: what is wrong with one is said in one line, and the exit status is 2."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import milopt
from milopt.cli import main
from tests.huggingface.support import library, llama


def _short_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 50) + b"{}")


def _cut(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])


def _leading_out(folder: Path) -> None:
    places = {"lm_head.weight": "../model.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def _missing_shard(folder: Path) -> None:
    places = {"lm_head.weight": "model-2.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(llama().state_dict(), folder / "pytorch_model.bin")


def _other_method(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "hqq"}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_short_header, "its header has"),
        (_cut, "bytes"),
        (_leading_out, "is not the name of a file"),
        (_missing_shard, "which is missing"),
        (_pickled, "are read with --pickles"),
        (_other_method, "quantized by 'hqq', which milopt does not decode"),
    ],
)
def test_one_line(
    damage: Callable[[Path], None], words: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder, tmp_path / "model")
    damage(tmp_path / "model")
    out = tmp_path / "out.mlpackage"
    assert main(["convert", str(tmp_path / "model"), "-o", str(out), "--context", "16"]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert [line for line in told if line.startswith("error: ")] == told[-1:]
    assert words in told[-1]
    assert not out.exists()


def test_pickles_are_converted(folder: Path, tmp_path: Path) -> None:
    library("transformers")
    shutil.copytree(folder, tmp_path / "model")
    _pickled(tmp_path / "model")
    out = tmp_path / "out.mlpackage"
    options = ["--pickles", "--no-passes", "--context", "16", "--query-lengths", "2"]
    assert main(["convert", str(tmp_path / "model"), "-o", str(out), *options]) == 0
    assert milopt.load(out).metadata["milopt.architecture"] == "LlamaForCausalLM"

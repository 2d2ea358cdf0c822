"""Models that can't be converted: one line each."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from milopt.huggingface import ConversionError, convert
from tests.huggingface.support import library, llama

_FITTING: dict[str, Any] = {"context": 16, "query_lengths": (1, 4)}


def _refused(source: Any, words: str, **options: Any) -> None:
    with pytest.raises(ConversionError, match=words) as caught:
        convert(source, **(_FITTING | options))
    assert "\n" not in str(caught.value)


def test_a_path_that_does_not_exist(tmp_path: Path) -> None:
    _refused(tmp_path / "absent", "absent: no such file or directory")


def test_an_empty_folder(tmp_path: Path) -> None:
    _refused(str(tmp_path), "holds neither config.json nor a .gguf file")


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.txt").write_text("text")
    _refused(tmp_path / "model.txt", "neither a directory nor a .gguf file")


def test_two_gguf_files(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    _refused(tmp_path, r"holds 2 \.gguf files, name one: a\.gguf, b\.gguf")


def test_a_damaged_gguf_file(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="milopt[huggingface] is not installed")
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + bytes(4))
    _refused(tmp_path, r"a\.gguf: not a readable GGUF file")


def test_an_unsupported_architecture_in_a_folder(tmp_path: Path) -> None:
    library("transformers").GPT2Config(architectures=["GPT2LMHeadModel"]).save_pretrained(tmp_path)
    _refused(tmp_path, "GPT2LMHeadModel is not supported: only LlamaForCausalLM")


def test_an_unsupported_architecture_in_memory() -> None:
    transformers = library("transformers")
    config = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=8)
    _refused(transformers.GPT2LMHeadModel(config), "GPT2LMHeadModel is not supported")


def test_something_that_is_no_model() -> None:
    _refused(3, "a int is neither a path nor a transformers model")


def test_rope_that_depends_on_the_length() -> None:
    parameters = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    _refused(llama(rope_parameters=parameters), "RoPE of type 'dynamic' is not supported")


def test_a_context_beyond_the_positions() -> None:
    _refused(llama(), "context 65 is more than the 64 positions", context=65)


@pytest.mark.parametrize(
    ("lengths", "words"),
    [
        ((), "at least one is needed"),
        ((0, 4), "each must be 1 or more"),
        ((4, 1), "must be ascending"),
        ((4, 4), "must be ascending"),
        ((1, 16), "query length 16 leaves no past in a context of 16"),
    ],
)
def test_query_lengths_that_do_not_fit(lengths: tuple[int, ...], words: str) -> None:
    _refused(llama(), words, query_lengths=lengths)


def test_an_unknown_dtype() -> None:
    _refused(llama(), "unknown dtype 'int4'", dtype="int4")


def test_a_folder_without_weights(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "config.json", tmp_path)
    _refused(tmp_path, r"holds no \.safetensors")


def test_truncated_weights(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "config.json", tmp_path)
    weights = (folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    _refused(tmp_path, "transformers can't load it")


def test_weights_that_do_not_fill_the_model(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    shutil.copy(folder / "model.safetensors", tmp_path)
    _refused(tmp_path, r"the checkpoint does not fit the model, missing: model\.layers\.2\.")

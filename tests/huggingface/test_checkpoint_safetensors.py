"""Checkpoints of safetensors: one file and several, tied heads, and what hostile ones say."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from milopt.huggingface import ConversionError, safetensors
from milopt.huggingface.safetensors import read_checkpoint, read_file
from milopt.huggingface.sources import open_source
from milopt.huggingface.standins import is_stand_in, real_weights
from tests.huggingface.support import library, llama

_save: Callable[..., None] = library("safetensors.torch").save_file


def _weights(model: Any) -> dict[str, torch.Tensor]:
    with real_weights():
        return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_saved_is_read(dtype: torch.dtype, tmp_path: Path) -> None:
    # large enough for stand-ins
    model = llama(vocab_size=2048).to(dtype)
    model.save_pretrained(tmp_path)
    source = open_source(tmp_path, context=16, stand_ins=True)
    got, wanted = _weights(source.model), model.state_dict()
    assert list(got) == list(wanted)
    assert all(torch.equal(got[name], value.float()) for name, value in wanted.items())
    assert is_stand_in(source.model.lm_head.weight)
    assert not is_stand_in(source.model.model.norm.weight)


def test_without_stand_ins_the_weights_are_there(tmp_path: Path) -> None:
    model = llama(vocab_size=2048)
    model.save_pretrained(tmp_path)
    got = open_source(tmp_path, context=16).model
    assert not any(map(is_stand_in, got.parameters()))
    tokens = torch.tensor([[1, 5, 9]])
    assert torch.equal(got(tokens).logits, model.eval()(tokens).logits)


def test_shards(tmp_path: Path) -> None:
    model = llama(vocab_size=2048)
    model.save_pretrained(tmp_path, max_shard_size="200kB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    got = _weights(open_source(tmp_path, context=16, stand_ins=True).model)
    assert all(torch.equal(got[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("vocabulary", [320, 2048])
def test_tied_heads(vocabulary: int, tmp_path: Path) -> None:
    llama(vocab_size=vocabulary, tie_word_embeddings=True).save_pretrained(tmp_path)
    model = open_source(tmp_path, context=16).model
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("same", [True, False])
def test_a_tied_config_with_both_in_the_file(same: bool, tmp_path: Path) -> None:
    model = llama(vocab_size=2048, tie_word_embeddings=True)
    model.config.architectures = ["LlamaForCausalLM"]
    model.config.save_pretrained(tmp_path)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    if not same:
        # the first elements tell nothing
        state["lm_head.weight"][-1] += 1
    _save(state, tmp_path / "model.safetensors")
    got = _weights(open_source(tmp_path, context=16).model)
    assert torch.equal(got["lm_head.weight"], state["lm_head.weight"])
    assert torch.equal(got["model.embed_tokens.weight"], state["model.embed_tokens.weight"])


def test_settings_of_generation_are_kept(tmp_path: Path) -> None:
    model = llama()
    model.generation_config.eos_token_id = [7, 8]
    model.save_pretrained(tmp_path)
    assert open_source(tmp_path, context=16).model.generation_config.eos_token_id == [7, 8]


def _written(path: Path, header: Any, data: bytes = bytes(64)) -> Path:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(content)) + content + data)
    return path


def _entry(**changes: Any) -> dict[str, Any]:
    return {"x": {"dtype": "F32", "shape": [2, 8], "data_offsets": [0, 64], **changes}}


def test_a_plain_file(tmp_path: Path) -> None:
    tensors = read_file(_written(tmp_path / "a", {**_entry(), "__metadata__": {"format": "pt"}}))
    assert torch.equal(tensors["x"](), torch.zeros(2, 8))
    assert read_file(_written(tmp_path / "b", _entry(shape=[0], data_offsets=[0, 0])))["x"]().shape == (0,)


@pytest.mark.parametrize("spaces", range(8))
def test_data_may_begin_anywhere(spaces: int, tmp_path: Path) -> None:
    entries = _entry() | {"h": {"dtype": "F16", "shape": [4], "data_offsets": [65, 73]}}
    data = torch.arange(16.0).numpy().tobytes() + b"!" + torch.arange(4).half().numpy().tobytes()
    tensors = read_file(_written(tmp_path / "a", json.dumps(entries).encode() + b" " * spaces, data))
    assert torch.equal(tensors["x"](), torch.arange(16.0).reshape(2, 8))
    assert torch.equal(tensors["h"]().float(), torch.arange(4.0))


def test_an_adapter_is_no_model(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "config.json", tmp_path)
    _written(tmp_path / "adapter_model.safetensors", _entry())
    (tmp_path / "adapter_config.json").write_text("{}")
    _refused(lambda: open_source(tmp_path, context=16), "holds an adapter and no model")


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (_entry(data_offsets=[0, 128]), "is at 0 to 128 of 64 bytes"),
        (_entry(data_offsets=[64, 0]), "is at 64 to 0"),
        (_entry(data_offsets=[-64, 0]), "no place in the file"),
        (_entry(data_offsets=[0, 1 << 70]), "no place in the file"),
        (_entry(data_offsets=[0]), "no place in the file"),
        (_entry(data_offsets="0"), "no place in the file"),
        (_entry(shape=[3, 8]), "has 64 bytes, its shape needs 96"),
        (_entry(shape=[-2, -8]), "has no shape"),
        (_entry(shape=[True, 16]), "has no shape"),
        (_entry(shape=None), "has no shape"),
        (_entry(shape=[0, 1 << 61, 1 << 61], data_offsets=[0, 0]), "has no shape that fits a file"),
        (_entry(shape=[(1 << 62) - 1] * 5000), "has no shape"),
        (_entry(dtype="F4"), "is of type 'F4'"),
        (_entry(dtype=["F32"]), "is of type"),
        ({"x": 3}, "has no shape"),
        ([], "is no JSON object"),
        (b"{", "is not readable as JSON"),
        (b"\xff{}", "is not readable as JSON"),
        (b"[" * 100_000, "is not readable as JSON"),
        (_entry() | {"y": {"dtype": "U8", "shape": [4], "data_offsets": [60, 64]}}, "'x' and 'y' overlap"),
    ],
)
def test_headers_that_lie(header: Any, words: str, tmp_path: Path) -> None:
    _refused(lambda: read_file(_written(tmp_path / "a.safetensors", header)), words)


@pytest.mark.parametrize("content", [b"", b"1234", struct.pack("<Q", 1 << 40) + b"{}", struct.pack("<Q", 3) + b"{}"])
def test_files_that_are_too_short(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(content)
    _refused(lambda: read_file(tmp_path / "a"), "can't be read|which is no safetensors file|its header has")


def _sharded(folder: Path, places: Any) -> Path:
    _written(folder / "one.safetensors", _entry())
    (folder / safetensors.INDEX).write_text(json.dumps({"weight_map": places}))
    return folder


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ({"x": "../one.safetensors"}, "is not the name of a file"),
        ({"x": "/etc/passwd"}, "is not the name of a file"),
        ({"x": "..\\one.safetensors"}, "is not the name of a file"),
        ({"x": ".."}, "is not the name of a file|which is missing"),
        ({"x": 3}, "is not the name of a file"),
        ({"x": "x" * 5000}, "is not the name of a file"),
        ({"x": "one\0.safetensors"}, "is not the name of a file"),
        ({"x": "two.safetensors"}, "names 'two.safetensors', which is missing"),
        ({"y": "one.safetensors"}, "has no tensor 'y'"),
        ({}, "has no weight_map"),
        ([], "has no weight_map"),
    ],
)
def test_indices_that_lie(places: Any, words: str, tmp_path: Path) -> None:
    _refused(lambda: read_checkpoint(_sharded(tmp_path, places)), words)


def test_a_tensor_that_the_index_leaves_out(tmp_path: Path) -> None:
    _sharded(tmp_path, {"x": "one.safetensors"})
    more = {"y": {"dtype": "U8", "shape": [4], "data_offsets": [64, 68]}}
    _written(tmp_path / "one.safetensors", _entry() | more, bytes(68))
    _refused(lambda: read_checkpoint(tmp_path), "'y' is in a file where .* does not have it")


def test_two_files_without_an_index(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        _written(tmp_path / name, _entry())
    _refused(lambda: read_checkpoint(tmp_path), "holds 2 .safetensors files, of which none is model.safetensors")


def test_the_whole_way_says_one_line(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "config.json", tmp_path)
    _written(tmp_path / "model.safetensors", _entry(data_offsets=[0, 128]))
    _refused(lambda: open_source(tmp_path, context=16), "is at 0 to 128")


def _refused(act: Callable[[], object], words: str) -> None:
    with pytest.raises(ConversionError, match=words) as caught:
        act()
    assert "\n" not in str(caught.value)

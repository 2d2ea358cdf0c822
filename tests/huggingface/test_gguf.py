"""A GGUF file, written here as llama.cpp's converter writes one, is the model it was made of."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from milopt.huggingface import ConversionError, Tokenizer, convert
from milopt.huggingface.sources import open_source
from tests.huggingface.support import CONTEXT, HEADS, KV_HEADS, LAYERS, TEMPLATE, VOCABULARY, bpe_tokenizer, llama

gguf: Any = pytest.importorskip("gguf", reason="milopt[huggingface] is not installed")
Array = np.ndarray[Any, Any]
_CONTROL, _NORMAL = 3, 1  # gguf.TokenType


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write(tmp_path_factory.mktemp("gguf") / "tiny.gguf", "llama")


def test_weights_are_those_it_was_made_of(file: Path) -> None:
    source = open_source(file.parent, context=CONTEXT)
    wanted = llama().state_dict()
    assert source.name == "tiny"
    assert all(torch.equal(value, wanted[name]) for name, value in source.model.state_dict().items())
    assert len(source.model.state_dict()) == len(wanted)


def test_conversion_needs_no_network_and_keeps_the_tokenizer(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    model = convert(file, context=CONTEXT, query_lengths=(2,))
    assert list(model.functions) == ["main"]
    tokenizer, theirs = Tokenizer.of(model), bpe_tokenizer()
    assert tokenizer.encode("the quick Füchse 日本") == theirs("the quick Füchse 日本")["input_ids"]
    assert (tokenizer.chat_template, tokenizer.bos_id) == (TEMPLATE, theirs.bos_token_id)
    assert theirs.eos_token_id in tokenizer.eos_ids


def test_an_architecture_without_its_tensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"the checkpoint does not fit the model, missing: .*_proj\.bias"):
        convert(_write(tmp_path / "other.gguf", "qwen2"), context=CONTEXT, query_lengths=(2,))


def _write(path: Path, architecture: str) -> Path:
    model, tokenizer = llama(), bpe_tokenizer()
    writer = gguf.GGUFWriter(path, architecture)
    _add_config(writer, model.config)
    _add_tokenizer(writer, tokenizer)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
    for name, value in model.state_dict().items():
        stem, suffix = name.rsplit(".", 1)
        writer.add_tensor(f"{names.get_name(stem)}.{suffix}", _in_gguf_order(name, value.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_config(writer: Any, config: Any) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(VOCABULARY)


def _add_tokenizer(writer: Any, tokenizer: Any) -> None:
    ids = tokenizer.get_vocab()
    tokens = [*sorted(ids, key=lambda token: ids[token]), *(f"<unused{i}>" for i in range(VOCABULARY - len(ids)))]
    control = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([_CONTROL if token in control else _NORMAL for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_chat_template(TEMPLATE)


def _in_gguf_order(name: str, value: Any) -> Array:
    """llama.cpp rotates neighbours where transformers rotates halves, so the rows of q and k are interleaved."""
    heads = HEADS if "q_proj" in name else KV_HEADS if "k_proj" in name else None
    if heads is None:
        return np.asarray(value)
    halves = value.reshape(heads, 2, value.shape[0] // heads // 2, value.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(value.shape))

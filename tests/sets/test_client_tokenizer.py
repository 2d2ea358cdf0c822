"""The tokenizer of a client's folder, as packages carry it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from milopt.huggingface import Tokenizer
from milopt.sets import SetError
from milopt.sets.client_tokenizer import carried_tokenizer

WORDS = {"<s>": 0, "</s>": 1, "a": 2, "b": 3}
WHOLE: dict[str, Any] = {
    "version": "1.0",
    "added_tokens": [
        {
            "id": 4,
            "content": "<|end|>",
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
    ],
    "normalizer": None,
    "pre_tokenizer": {"type": "WhitespaceSplit"},
    "post_processor": None,
    "decoder": None,
    "model": {"type": "WordLevel", "vocab": WORDS, "unk_token": "a"},
}


def _files(**said: Any) -> dict[str, bytes]:
    """Files by name, with ``_json`` for the dot."""
    named = {"tokenizer.json": WHOLE, **{name.replace("_json", ".json"): each for name, each in said.items()}}
    return {name: json.dumps(each).encode() for name, each in named.items()}


def _read(files: dict[str, bytes]) -> Tokenizer:
    return Tokenizer.from_attachments(carried_tokenizer(files))


def test_what_ends_an_answer() -> None:
    own = {"eos_token": {"content": "</s>"}, "bos_token": "<s>"}
    assert _read(_files(tokenizer_config_json=own)).eos_ids == (1,)
    assert _read(_files(tokenizer_config_json=own)).bos_id == 0
    assert _read(_files(tokenizer_config_json={"eos_token": "<|end|>"})).eos_ids == (4,)
    several = _files(
        generation_config_json={"eos_token_id": [3, 4]}, config_json={"eos_token_id": 4}, tokenizer_config_json=own
    )
    assert _read(several).eos_ids == (3, 4, 1)
    assert _read(_files(special_tokens_map_json={"eos_token": "</s>"})).eos_ids == (1,)
    assert _read(_files()).eos_ids == ()


def test_the_template_for_chats() -> None:
    messages = [{"role": "user", "content": "a"}]
    own = {"chat_template": "{{ bos_token }} {{ messages[0].content }}", "bos_token": "<s>"}
    assert _read(_files(tokenizer_config_json=own)).render_chat(messages) == "<s> a"
    assert _read(_files(tokenizer_config_json=own)).encode_chat(messages) == [0, 2]
    beside = {**_files(tokenizer_config_json=own), "chat_template.jinja": b"b"}
    assert _read(beside).render_chat(messages) == "b"
    named = [{"name": "tools", "template": "x"}, {"name": "default", "template": "y"}]
    assert _read(_files(tokenizer_config_json={"chat_template": named})).render_chat(messages) == "y"
    assert _read(_files()).chat_template is None


def test_files_that_can_not_be_read() -> None:
    assert carried_tokenizer({"config.json": b"{}"}) == {}
    for name in ("tokenizer_config.json", "generation_config.json", "tokenizer.json"):
        for content in (b"{", b"[]", b"\xff"):
            with pytest.raises(SetError, match=rf"^{name} [^\n]*$"):
                carried_tokenizer({**_files(), name: content})
    with pytest.raises(SetError, match=r"chat_template\.jinja is not UTF-8 text"):
        carried_tokenizer({**_files(), "chat_template.jinja": b"\xff"})

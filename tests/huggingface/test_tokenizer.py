"""The tokenizer that travels with a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import milopt
from milopt.huggingface import Tokenizer, TokenizerError
from milopt.huggingface.chat import render
from milopt.huggingface.tokenizer import TOKENIZER, TOKENIZER_CONFIG
from milopt.package import Model
from tests.huggingface.support import CHAT, bpe_tokenizer

TEXT = "the quick Füchse 日本語 jump 🙂🙃 over\nthe dog"


@pytest.fixture(scope="module")
def tokenizer(converted: Model) -> Tokenizer:
    return Tokenizer.of(converted)


def test_a_saved_package_carries_it(converted: Model, tmp_path: Path) -> None:
    again = milopt.load(converted.save(tmp_path / "tiny.mlpackage"))
    assert list(again.functions) == list(converted.functions)
    assert again.attachments == converted.attachments
    assert {TOKENIZER, TOKENIZER_CONFIG} <= set(again.attachments)
    assert Tokenizer.of(again).encode(TEXT) == Tokenizer.of(converted).encode(TEXT)


def test_text_becomes_the_same_tokens_as_in_transformers(tokenizer: Tokenizer) -> None:
    theirs = bpe_tokenizer()
    ids = tokenizer.encode(TEXT)
    assert ids == theirs(TEXT)["input_ids"]
    assert tokenizer.decode(ids) == TEXT
    assert tokenizer.vocabulary == len(theirs)


def test_special_tokens_are_known(tokenizer: Tokenizer) -> None:
    theirs = bpe_tokenizer()
    assert tokenizer.bos_id == theirs.bos_token_id
    assert theirs.eos_token_id in tokenizer.eos_ids
    assert tokenizer.decode([theirs.eos_token_id]) == ""
    assert tokenizer.decode([theirs.eos_token_id], skip_special_tokens=False) == "<|im_end|>"


def test_a_stream_never_breaks_a_character(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT)
    assert sum(tokenizer.decode([token]) == "\N{REPLACEMENT CHARACTER}" for token in ids) > 5  # parts of characters
    stream = tokenizer.stream()
    pieces = [*(stream.push(token) for token in ids), stream.flush()]
    assert "".join(pieces) == TEXT
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    assert sum(map(bool, pieces)) > 3  # it does not wait for the end


def test_a_stream_that_ends_inside_a_character_says_so(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("dog 🙂")[:-1]
    stream = tokenizer.stream()
    pieces = [stream.push(token) for token in ids]
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)
    assert "".join(pieces) + stream.flush() == tokenizer.decode(ids)


@pytest.mark.parametrize("prompt", [True, False])
def test_chats_render_as_in_transformers(tokenizer: Tokenizer, prompt: bool) -> None:
    theirs = bpe_tokenizer()
    wanted = theirs.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=prompt)
    assert tokenizer.render_chat(CHAT, add_generation_prompt=prompt) == wanted
    assert (
        tokenizer.encode_chat(CHAT, add_generation_prompt=prompt) == theirs(wanted, add_special_tokens=False).input_ids
    )


@pytest.mark.parametrize(
    "template",
    [
        "{{ ().__class__.__bases__[0].__subclasses__() }}",
        "{{ raise_exception.__globals__['__builtins__'] }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.mro() }}",
        "{{ raise_exception('not\nlike this') }}",
        "{% for message in",
    ],
)
def test_a_hostile_template_reaches_nothing(template: str) -> None:
    with pytest.raises(TokenizerError, match="the chat template refuses these messages") as caught:
        render(template, CHAT, add_generation_prompt=True, variables={})
    assert "\n" not in str(caught.value)


def test_a_template_does_not_change_the_messages() -> None:
    messages = [dict(message) for message in CHAT]
    text = render(
        "{% for m in messages %}{% set x = m %}{{ x.role }}{% endfor %}",
        messages,
        add_generation_prompt=True,
        variables={},
    )
    assert text == "systemuser"
    assert messages == CHAT


@pytest.mark.parametrize("messages", [[{"role": "user"}], ["text"], [{"role": "user", "content": {1, 2}}]])
def test_messages_that_are_none(tokenizer: Tokenizer, messages: list[Any]) -> None:
    with pytest.raises(TokenizerError):
        tokenizer.render_chat(messages)


def test_a_model_without_template_says_so(converted: Model) -> None:
    config = {**json.loads(converted.attachments[TOKENIZER_CONFIG]), "chat_template": None}
    plain = Tokenizer.from_attachments({**converted.attachments, TOKENIZER_CONFIG: json.dumps(config).encode()})
    with pytest.raises(TokenizerError, match="carries no chat template"):
        plain.render_chat(CHAT)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "carries no tokenizer"),
        ({TOKENIZER: b"{"}, "can't be read"),
        ({TOKENIZER: b"\xff"}, "not UTF-8"),
        ({TOKENIZER: b"{}", TOKENIZER_CONFIG: b"{"}, "can't be read"),
        ({TOKENIZER: b"{}", TOKENIZER_CONFIG: b"[]"}, "not a mapping whose eos_token_id"),
        ({TOKENIZER: b"{}", TOKENIZER_CONFIG: b'{"eos_token_id": ["x"]}'}, "not a mapping whose eos_token_id"),
    ],
)
def test_damaged_attachments(files: dict[str, bytes], words: str) -> None:
    with pytest.raises(TokenizerError, match=words) as caught:
        Tokenizer.from_attachments(files)
    assert "\n" not in str(caught.value)

"""The tokenizer of a model's folder in the form that packages carry, read without transformers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, cast

from milopt.huggingface.tokenizer import TOKENIZER, TOKENIZER_CONFIG
from milopt.mil import flat
from milopt.sets.anemll_files import settings_of
from milopt.sets.errors import SetError

__all__ = ["carried_tokenizer"]

_SPECIAL_TOKENS = "special_tokens_map.json"


def carried_tokenizer(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """What a package carries (:mod:`milopt.huggingface.tokenizer`), of a folder's ``files``; empty without any.

    Ids that end an answer are those of ``generation_config.json``, ``config.json`` and the tokenizer's own settings. A
    ``chat_template.jinja`` goes before a template among those. SetError for a file that can't be read.
    """
    if "tokenizer.json" not in files:
        return {}
    said = {name: settings_of(files.get(name), name) for name in ("tokenizer.json", "tokenizer_config.json")}
    whole, own = said.values()
    special = dict(_tokens(settings_of(files.get(_SPECIAL_TOKENS), _SPECIAL_TOKENS)))
    special |= dict(_tokens(own))
    ids = _ids(whole)
    ends: list[int] = []
    for name in ("generation_config.json", "config.json"):
        ends += _numbers(settings_of(files.get(name), name).get("eos_token_id"))
    ends += _numbers(own.get("eos_token_id"))
    ends += _numbers(ids.get(special.get("eos_token", "")))
    starts = [*_numbers(own.get("bos_token_id")), *_numbers(ids.get(special.get("bos_token", "")))]
    config = {
        **special,
        "bos_token_id": next(iter(starts), None),
        "eos_token_id": list(dict.fromkeys(ends)),
        "chat_template": _template(files, own.get("chat_template")),
    }
    text = json.dumps(config, ensure_ascii=False, indent=2)
    return {TOKENIZER: files["tokenizer.json"], TOKENIZER_CONFIG: text.encode()}


def _tokens(said: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Special tokens by what they are for; some files describe each by a mapping."""
    for name, token in said.items():
        text: Any = cast("dict[str, Any]", token).get("content") if isinstance(token, dict) else token
        if name.endswith("_token") and isinstance(text, str):
            yield name, text


def _ids(whole: Mapping[str, Any]) -> dict[str, int]:
    """Every token's id that ``tokenizer.json`` tells by name."""
    model: Any = whole.get("model")
    words: Any = cast("dict[str, Any]", model).get("vocab") if isinstance(model, dict) else None
    found = dict(cast("dict[str, int]", words)) if isinstance(words, dict) else {}
    added: Any = whole.get("added_tokens")
    for each in flat(added) if isinstance(added, list) else ():
        if isinstance(each, dict):
            token = cast("dict[str, Any]", each)
            found[str(token.get("content"))] = cast("int", token.get("id"))
    return found


def _numbers(ids: Any) -> list[int]:
    return [each for each in flat([] if ids is None else ids) if isinstance(each, int) and not isinstance(each, bool)]


def _template(files: Mapping[str, bytes], said: Any) -> str | None:
    """The template for chats: the file's, or that of the settings, which may have several for several uses."""
    if (text := files.get("chat_template.jinja")) is not None:
        try:
            return text.decode()
        except UnicodeDecodeError as error:
            raise SetError(f"chat_template.jinja is not UTF-8 text: {error}") from error
    if isinstance(said, list):
        several: list[dict[str, Any]] = [each for each in cast("Any", said) if isinstance(each, dict)]
        said = next((each.get("template") for each in several if each.get("name") == "default"), None)
    return said if isinstance(said, str) else None

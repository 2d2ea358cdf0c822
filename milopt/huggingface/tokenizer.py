"""A model's tokenizer inside its package, and read back with the ``tokenizers`` library alone.

``milopt/tokenizer.json`` is that library's own file. ``milopt/tokenizer_config.json`` holds ``bos_token`` and the
other special tokens, ``chat_template`` if there is one, and the ids ``bos_token_id`` and ``eos_token_id``: all the ids
that end an answer, the generation settings' first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from milopt.huggingface.chat import render
from milopt.huggingface.errors import TokenizerError
from milopt.huggingface.extras import extra
from milopt.huggingface.streaming import TextStream
from milopt.mil import flat
from milopt.package import Model

if TYPE_CHECKING:
    from milopt.sets import ClientSet, DeploymentSet

__all__ = ["TOKENIZER", "TOKENIZER_CONFIG", "Tokenizer", "attach_tokenizer"]

TOKENIZER = "milopt/tokenizer.json"
TOKENIZER_CONFIG = "milopt/tokenizer_config.json"


class Tokenizer:
    """Text to token ids and back, and chats to text, as the model's own tokenizer does it."""

    def __init__(self, tokenizer_json: str, config: Mapping[str, Any]) -> None:
        library = extra("tokenizers", error=TokenizerError)
        try:
            self._tokenizer = library.Tokenizer.from_str(tokenizer_json)
        except Exception as problem:  # the library raises plain Exception for every damage
            raise TokenizerError(f"{TOKENIZER} can't be read: {problem}") from problem
        # A file may say to cut or pad every text, which transformers also ignores unless told to
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        template = config.get("chat_template")
        self.chat_template: str | None = str(template) if template else None
        self.bos_id: int | None = config.get("bos_token_id")
        self.eos_ids: tuple[int, ...] = tuple(config.get("eos_token_id") or ())
        self._special = {key: value for key, value in config.items() if key.endswith("_token") and value is not None}

    @classmethod
    def of(cls, model: Model) -> Tokenizer:
        """The tokenizer that ``model`` carries; :class:`TokenizerError` when it carries none."""
        return cls.from_attachments(model.attachments)

    @classmethod
    def from_attachments(cls, attachments: Mapping[str, bytes]) -> Tokenizer:
        """The tokenizer among a package's files, given by their path inside ``Data``."""
        if TOKENIZER not in attachments:
            raise TokenizerError(f"the model carries no tokenizer ({TOKENIZER} is missing)")
        try:
            config = json.loads(attachments.get(TOKENIZER_CONFIG, b"{}"))
            return cls(attachments[TOKENIZER].decode(), _checked(config))
        except UnicodeDecodeError as problem:
            raise TokenizerError(f"the model's tokenizer is not UTF-8 text: {problem}") from problem
        except json.JSONDecodeError as problem:
            raise TokenizerError(f"{TOKENIZER_CONFIG} can't be read: {problem}") from problem

    @property
    def vocabulary(self) -> int:
        """The number of ids, added tokens included."""
        return int(self._tokenizer.get_vocab_size())

    def encode(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """Token ids of ``text``; ``special_tokens`` adds what the model expects around a text (usually a start)."""
        return list(self._tokenizer.encode(text, add_special_tokens=special_tokens).ids)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of ``ids``; ids that are no tokens are left out, bytes that are no characters become U+FFFD."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def stream(self) -> TextStream:
        """A fresh incremental decoder: tokens in, whole words out."""
        return TextStream(self.decode)

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The text that the model was trained to see for ``messages`` (mappings of ``role`` and ``content``).

        ``add_generation_prompt`` ends it where the model is to answer. ``variables`` are passed to the template.
        :class:`TokenizerError` without a template, or when it refuses the messages.
        """
        if self.chat_template is None:
            raise TokenizerError("the model carries no chat template: give it plain text")
        return render(
            self.chat_template,
            messages,
            add_generation_prompt=add_generation_prompt,
            variables={**self._special, **variables},
        )

    def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> list[int]:
        """Token ids of :meth:`render_chat`, which writes the start of text itself."""
        text = self.render_chat(messages, add_generation_prompt=add_generation_prompt, **variables)
        return self.encode(text, special_tokens=False)


def _checked(config: Any) -> Mapping[str, Any]:
    mapping = cast("dict[str, Any]", config if isinstance(config, dict) else {"eos_token_id": None})
    ids: Any = mapping.get("eos_token_id", [])
    if not isinstance(ids, list) or not all(isinstance(each, int) for each in flat(ids)):
        raise TokenizerError(f"{TOKENIZER_CONFIG} is not a mapping whose eos_token_id is a list of ids")
    return mapping


def attach_tokenizer(model: Model | DeploymentSet | ClientSet, tokenizer: Any, source: Any) -> None:
    """Put a transformers ``tokenizer`` into ``model``; the transformers model ``source`` knows what ends an answer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise TokenizerError(f"a {type(tokenizer).__name__} has no form that the tokenizers library reads")
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    config = {
        **special,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": _answer_ends(tokenizer, source),
        "chat_template": _default_template(tokenizer.chat_template),
    }
    model.attachments[TOKENIZER] = backend.to_str().encode()
    model.attachments[TOKENIZER_CONFIG] = json.dumps(config, ensure_ascii=False, indent=2).encode()


def _answer_ends(tokenizer: Any, source: Any) -> list[int]:
    """Ids that end an answer, without repetition: the generation settings', the model's, the tokenizer's."""
    settings = getattr(source, "generation_config", None)
    found: list[int] = []
    for ids in (getattr(settings, "eos_token_id", None), source.config.eos_token_id, tokenizer.eos_token_id):
        found.extend(int(each) for each in flat([] if ids is None else ids) if each not in found)
    return found


def _default_template(template: Any) -> str | None:
    """Tokenizers with templates for several uses name them; ``default`` is for chats."""
    return cast("dict[str, str]", template).get("default") if isinstance(template, dict) else template

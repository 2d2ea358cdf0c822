"""Chat templates: a model's own Jinja text, which comes with a download and is not to be trusted.

Rendered in Jinja's immutable sandbox with the names that transformers gives to templates (its
``utils/chat_template_utils.py``): a template sees plain JSON values only, can't reach Python's internals, and can't
change what it is given. How long it runs and how much it writes is not bounded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from milopt.huggingface.errors import TokenizerError
from milopt.huggingface.extras import extra

__all__ = ["render"]

# Earlier versions have known ways out of the sandbox (CVE-2025-27516).
_SAFE_JINJA = (3, 1, 6)


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool,
    variables: Mapping[str, Any],
) -> str:
    """The text that ``template`` makes of ``messages``.

    A message is a mapping with ``role`` and ``content``. :class:`TokenizerError` when a message is none, and with the
    template's own words when it refuses the conversation.
    """
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or "role" not in message or "content" not in message:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TokenizerError(f"message {index} of the chat is not a mapping with 'role' and 'content'")
    try:
        values = json.loads(json.dumps({**variables, "messages": list(map(dict, messages))}))
    except (TypeError, ValueError) as problem:
        raise TokenizerError(
            f"a chat message holds more than text, numbers, lists and mappings: {problem}"
        ) from problem
    compiled = _environment()
    try:
        return str(
            compiled.from_string(template).render(
                **{"tools": None, "documents": None, **values}, add_generation_prompt=add_generation_prompt
            )
        )
    except Exception as problem:  # a template is foreign code: it raises what it likes
        reason = " ".join(str(problem).split()) or type(problem).__name__
        raise TokenizerError(f"the chat template refuses these messages: {reason}") from problem


def _environment() -> Any:
    jinja2 = extra("jinja2", error=TokenizerError)
    sandbox = extra("jinja2.sandbox", error=TokenizerError)
    version = tuple(int(part) for part in jinja2.__version__.split(".")[:3] if part.isdigit())
    if version < _SAFE_JINJA:
        raise TokenizerError(
            f"jinja2 {jinja2.__version__} does not contain templates safely: pip install 'jinja2>=3.1.6'"
        )
    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _generation_tag(jinja2)]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(raise_exception=_raiser(jinja2), strftime_now=_now)
    return environment


def _raiser(jinja2: Any) -> Any:
    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    return raise_exception


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """Jinja's own filter escapes HTML, which templates written for transformers do not expect."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _generation_tag(jinja2: Any) -> Any:
    """``{% generation %}`` … ``{% endgeneration %}`` marks what a model said, for training; its body is text as any."""
    extension = extra("jinja2.ext").Extension

    class GenerationTag(extension):  # type: ignore[misc, valid-type]
        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(["name:endgeneration"], drop_needle=True)

    return GenerationTag

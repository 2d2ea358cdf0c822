"""Passes as text: ``fuse-sdpa,palettize{bits=6,group_size=16}``."""

from __future__ import annotations

import ast
import dataclasses
import re
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from milopt.errors import PassError

__all__ = ["format_spec", "parse_options", "split_spec"]

_STEP = re.compile(r"\s*(?P<name>[A-Za-z][\w:.-]*)\s*(?:\{(?P<options>[^{}]*)\})?\s*(?:,|$)")


def split_spec(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """``(pass name, options as text)`` for each step of a pipeline's text."""
    if not text.strip():
        raise PassError("the pipeline is empty")
    at = 0
    while at < len(text):
        step = _STEP.match(text, at)
        if step is None:
            raise PassError(
                f"can't read {text[at:]!r} in pipeline {text!r}: expected name{{option=value,...}},name,..."
            )
        at = step.end()
        yield step["name"], dict(_options(step["name"], step["options"] or ""))


def _options(name: str, text: str) -> Iterator[tuple[str, str]]:
    for part in re.split(r",(?![^(\[]*[)\]])", text):
        if not part.strip():
            continue
        key, separator, value = part.partition("=")
        if not separator:
            raise PassError(f"{name}: option {part.strip()!r} has no value; write option=value")
        yield key.strip().replace("-", "_"), value.strip()


def parse_options(cls: type[Any], name: str, options: dict[str, str]) -> dict[str, Any]:
    """Texts turned into values of the types that the dataclass ``cls`` declares."""
    hints = get_type_hints(cls)
    known = [each.name for each in dataclasses.fields(cls)]
    for key in options:
        if key not in known:
            choices = ", ".join(known) or "none"
            raise PassError(f"{name} has no option {key!r}; its options are: {choices}")
    return {key: _value(name, key, hints[key], text) for key, text in options.items()}


def _value(name: str, key: str, hint: Any, text: str) -> Any:
    origin, choices = get_origin(hint), get_args(hint)
    if origin is Literal:
        for choice in choices:
            if str(choice) == text:
                return choice
        raise PassError(f"{name}: {key} is one of {', '.join(map(str, choices))}, not {text!r}")
    if origin in (Union, types.UnionType):
        if text == "None" and type(None) in choices:
            return None
        return _value(name, key, next(each for each in choices if each is not type(None)), text)
    if hint is str:
        return text
    if hint is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        if hint in (int, float):
            return hint(text)
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = None
    if not isinstance(value, origin or hint):
        raise PassError(f"{name}: {key} is of type {getattr(hint, '__name__', hint)}, not {text!r}")
    return value


def format_spec(name: str, instance: Any) -> str:
    """The text that parses into ``instance``; options at their default are left out."""
    parts: list[str] = []
    for each in dataclasses.fields(instance):
        default = each.default if each.default is not dataclasses.MISSING else None
        if (value := getattr(instance, each.name)) != default:
            parts.append(f"{each.name}={str(value).replace(' ', '')}")
    return f"{name}{{{','.join(parts)}}}" if parts else name

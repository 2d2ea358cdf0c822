"""Passes as text: ``fuse-sdpa,palettize{bits=6,group_size=16}``.

A value is written bare (``bits=6``, ``name=key_cache``), in quotes where it holds commas, braces, blanks or quotes, or
reads as something else (``name="a, b"``), or as a Python literal (``sizes=(1,2)``, ``bits={'down':8}``).
"""

from __future__ import annotations

import ast
import dataclasses
import math
import re
import types
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from milopt.errors import PassError

__all__ = ["format_spec", "parse_options", "split_spec", "value_text"]

_NAME = re.compile(r"\s*(?P<name>[A-Za-z][\w:.-]*)\s*")
_OPENING, _CLOSING = "([{", ")]}"
# what a text may hold to be written without quotes, and what would then be read as something else
_BARE = re.compile(r"[A-Za-z_][\w./:@+-]*")
_WORDS = {"none", "true", "false", "inf", "infinity", "nan"}


def split_spec(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """``(pass name, options as text)`` for each step of a pipeline's text."""
    if not text.strip():
        raise PassError("the pipeline is empty")
    at = 0
    while at < len(text):
        step = _NAME.match(text, at)
        if step is None:
            raise _unreadable(text, at)
        end, options = step.end(), ""
        if text[end : end + 1] == "{":
            close = _end(text, end + 1, "}")
            if close is None:
                raise _unreadable(text, at)
            options, end = text[end + 1 : close], close + 1
        rest = re.compile(r"\s*(,|$)").match(text, end)
        if rest is None:
            raise _unreadable(text, at)
        yield step["name"], dict(_options(step["name"], options))
        at = rest.end()


def _unreadable(text: str, at: int) -> PassError:
    return PassError(f"can't read {text[at:]!r} in pipeline {text!r}: expected name{{option=value,...}},name,...")


def _end(text: str, at: int, stops: str) -> int | None:
    """Where the first of ``stops`` is that lies in no quotes and no brackets opened since ``at``."""
    opened: list[str] = []
    while at < len(text):
        character = text[at]
        if not opened and character in stops:
            return at
        if character in "'\"":
            closing = _closing_quote(text, at)
            if closing is None:
                return None
            at = closing
        elif character in _OPENING:
            opened.append(_CLOSING[_OPENING.index(character)])
        elif character in _CLOSING and (not opened or opened.pop() != character):
            return None
        at += 1
    return None


def _closing_quote(text: str, at: int) -> int | None:
    quote, at = text[at], at + 1
    while at < len(text) and text[at] != quote:
        at += 2 if text[at] == "\\" else 1
    return at if at < len(text) else None


def _options(name: str, text: str) -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    at = 0
    while at < len(text):
        end = _end(text, at, ",")
        part, at = (text[at:], len(text)) if end is None else (text[at:end], end + 1)
        if not part.strip():
            continue
        key, separator, value = part.partition("=")
        if not separator:
            raise PassError(f"{name}: option {part.strip()!r} has no value; write option=value")
        key = key.strip().replace("-", "_")
        if key in seen:
            raise PassError(f"{name}: option {key!r} is there twice")
        seen.add(key)
        yield key, value.strip()


def parse_options(cls: type[Any], name: str, options: Mapping[str, str]) -> dict[str, Any]:
    """Texts turned into values of the types that the dataclass ``cls`` declares."""
    hints = get_type_hints(cls)
    known = [each.name for each in dataclasses.fields(cls) if each.init]
    for key in options:
        if key not in known:
            choices = ", ".join(known) or "none"
            raise PassError(f"{name} has no option {key!r}; its options are: {choices}")
    return {key: _value(name, key, hints[key], text) for key, text in options.items()}


def _value(name: str, key: str, hint: Any, text: str) -> Any:
    try:
        return _read(hint, text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        pass
    choices = get_args(hint)
    if get_origin(hint) is Literal:
        raise PassError(f"{name}: {key} is one of {', '.join(map(str, choices))}, not {text!r}")
    raise PassError(f"{name}: {key} is of type {getattr(hint, '__name__', hint)}, not {text!r}".replace("typing.", ""))


def _read(hint: Any, text: str) -> Any:
    """The value of type ``hint`` that ``text`` says; ValueError, TypeError or SyntaxError where it says none."""
    quoted = text[:1] in ("'", '"')
    if get_origin(hint) is Literal:
        wanted = ast.literal_eval(text) if quoted else text
        for choice in sorted(get_args(hint), key=lambda choice: isinstance(choice, str) is not quoted):
            if choice == wanted or (not quoted and str(choice) == text):
                return choice
        raise ValueError(text)
    if get_origin(hint) in (Union, types.UnionType):
        return _one_of(get_args(hint), text, quoted)
    if hint is Any:
        with suppress(ValueError, SyntaxError, TypeError):
            return ast.literal_eval(text)
        return text
    if hint is str:
        return _checked(hint, ast.literal_eval(text)) if quoted else text
    if hint is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if hint is float:
        return float(text)
    return _checked(hint, None if text == "None" else ast.literal_eval(text))


def _one_of(hints: tuple[Any, ...], text: str, quoted: bool) -> Any:
    """What a quoted text means is a string if it can be one; a bare one anything else, if it can be that."""
    ordered = sorted(hints, key=lambda hint: (hint is str) is not quoted)
    for hint in ordered:
        with suppress(ValueError, SyntaxError, TypeError):
            return _read(hint, text)
    raise ValueError(text)


def _checked(hint: Any, value: Any) -> Any:
    """``value`` if it is of type ``hint``, inside too; lists and tuples stand for one another."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any or (hint is type(None) and value is None):
        return value
    if origin is Literal and any(value == choice and type(value) is type(choice) for choice in inner):
        return value
    if origin in (Union, types.UnionType):
        return _first(inner, value)
    kind: Any = origin or hint
    if kind in (list, tuple) and isinstance(value, (list, tuple)):
        return _several(kind, inner, list(cast("list[Any]", value)))
    if kind is float and type(value) is int:
        return float(value)
    if not isinstance(kind, type) or type(value) is not kind:
        raise ValueError(value)
    if kind is dict and inner:
        entries: Any = value
        return {_checked(inner[0], key): _checked(inner[1], each) for key, each in entries.items()}
    return value


def _first(hints: tuple[Any, ...], value: Any) -> Any:
    for hint in hints:
        with suppress(ValueError, TypeError):
            return _checked(hint, value)
    raise ValueError(value)


def _several(kind: Any, inner: tuple[Any, ...], values: list[Any]) -> Any:
    if kind is tuple and inner and inner[-1] is not ...:
        if len(inner) != len(values):
            raise ValueError(values)
        return tuple(_checked(hint, value) for hint, value in zip(inner, values, strict=True))
    read = [_checked(inner[0] if inner else Any, value) for value in values]
    return read if kind is list else tuple(read)


def format_spec(name: str, instance: Any) -> str:
    """The text that parses into ``instance``; options at their default are left out."""
    parts: list[str] = []
    for each in dataclasses.fields(instance):
        value = getattr(instance, each.name)
        if each.init and not _same(value, _default(each)):
            try:
                parts.append(f"{each.name}={value_text(value)}")
            except TypeError as error:
                raise PassError(f"{name}: {each.name} can't be written as text: {error}") from None
    return f"{name}{{{','.join(parts)}}}" if parts else name


def _default(each: dataclasses.Field[Any]) -> Any:
    if each.default_factory is not dataclasses.MISSING:
        return each.default_factory()
    return each.default


def _same(one: Any, other: Any) -> bool:
    """Whether a value need not be written: ``1``, ``1.0`` and ``True`` are equal, but of different types."""
    return type(one) is type(other) and bool(one == other)


def value_text(value: Any) -> str:
    """One value as :func:`split_spec` and :func:`parse_options` read it. TypeError for what no text can say."""
    if isinstance(value, str) and _BARE.fullmatch(value) and value.lower() not in _WORDS:
        return value
    if isinstance(value, float) and math.isnan(value):
        return "nan"
    return _literal(value)


def _literal(value: Any) -> str:
    if value is None or isinstance(value, (bool, int, str)):
        return repr(value)
    if isinstance(value, float):
        if math.isnan(value):
            raise TypeError("it holds NaN")
        return repr(value) if math.isfinite(value) else f"{'-' if value < 0 else ''}1e999"
    if isinstance(value, dict):
        entries: Any = cast("Any", value)
        return f"{{{','.join(f'{_literal(key)}:{_literal(each)}' for key, each in entries.items())}}}"
    if isinstance(value, (list, tuple)):
        parts = [_literal(each) for each in cast("list[Any]", value)]
        if isinstance(value, list):
            return f"[{','.join(parts)}]"
        return f"({','.join(parts)}{',' if len(parts) == 1 else ''})"
    raise TypeError(f"its type is {type(value).__name__}")

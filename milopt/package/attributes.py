"""Attributes that a package carries, as Python's own values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from milopt.errors import PackageError
from milopt.package.symbols import Symbols
from milopt.package.values import ValueReader
from milopt.package.weights import Weights

__all__ = ["plain_attributes"]


def plain_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """``MIL.Value`` protos as numbers, strings, lists and dictionaries; ``None`` for one of no type that is known."""
    reader = ValueReader(Weights(_no_file, "an attribute"))
    return {name: _plain(reader, value) for name, value in attributes.items()}


def _no_file(path: str) -> Path:
    raise PackageError(f"an attribute lies in the weight file {path}")


def _plain(reader: ValueReader, proto: Any) -> Any:
    try:
        return _python(reader.read(proto, Symbols(), "an attribute").value)
    except PackageError:
        return None


def _python(value: Any) -> Any:
    kind: Any = value.__class__
    if kind is dict:
        return {str(key): _python(value[key]) for key in value}
    if kind is list:
        return [_python(each) for each in value]
    return value.tolist() if hasattr(value, "tolist") else value

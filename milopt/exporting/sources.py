"""What an export is made of: the files of a checkpoint by their content, and the versions of what reads them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from milopt.exporting.errors import ExportError
from milopt.huggingface.errors import ConversionError
from milopt.huggingface.sources import locate
from milopt.sets.saving import digest_of

__all__ = ["check_architecture", "fingerprint", "may_be_quantized", "same_architecture", "versions"]

_LIBRARIES = ("milopt", "coremltools", "torch", "transformers", "numpy")
# What lies beside the weights and is not read.
_UNREAD = frozenset({".md", ".onnx", ".h5", ".msgpack", ".pth", ".ot", ".pdf", ".png", ".jpg", ".gguf", ".mlpackage"})
_PICKLES = frozenset({".bin", ".pt"})


def fingerprint(source: str | Path, *, pickles: bool) -> dict[str, str]:
    """The SHA-256 of every file that a conversion of ``source`` may read, by its name, read or not."""
    place = locate(source)
    return {each.name: digest_of(each) for each in _files(place, pickles)}


def _files(place: Path, pickles: bool) -> Iterator[Path]:
    if place.is_file():
        yield place
        return
    unread = _UNREAD if pickles else _UNREAD | _PICKLES
    for each in sorted(place.iterdir()):
        if each.is_file() and not each.name.startswith(".") and each.suffix.lower() not in unread:
            yield each


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Of what a set's bytes may depend on."""
    return {name: _version(name) for name in _LIBRARIES}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def check_architecture(source: str | Path, wanted: str) -> None:
    """ExportError where a folder's ``config.json`` names another architecture than ``wanted``; any is "auto"."""
    config = locate(source) / "config.json"
    if wanted == "auto" or not config.is_file():
        return
    try:
        told: Any = json.loads(config.read_text(encoding="utf-8"))
        found = [str(each) for each in (*(told.get("architectures") or ()), told.get("model_type") or "")]
    except (ValueError, TypeError, AttributeError) as error:
        raise ConversionError(f"{config} can't be read: {error}") from error
    if not any(same_architecture(each, wanted) for each in found):
        raise ExportError(f"the checkpoint's architecture is {found[0]}, not {wanted}: leave out --architecture")


def may_be_quantized(source: str | Path) -> bool:
    """Whether a checkpoint may hold integers with scales: a GGUF file, or a folder whose ``config.json`` says so."""
    place = locate(source)
    if place.is_file():
        return True
    try:
        told: Any = json.loads((place / "config.json").read_text(encoding="utf-8"))
        return bool(told.get("quantization_config"))
    except (OSError, ValueError, AttributeError):
        return False  # what is wrong with it is said where it is read


def same_architecture(one: str, other: str) -> bool:
    """Whether ``LlamaForCausalLM`` and ``llama`` are meant to be the same."""
    return _stem(one) == _stem(other)


def _stem(name: str) -> str:
    lower = name.casefold().replace("_", "").replace("-", "")
    return lower.removesuffix("forcausallm").removesuffix("lmheadmodel")

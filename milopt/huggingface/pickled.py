"""PyTorch's ``.bin`` checkpoints: pickles, which can run code, read only where they name tensors and nothing else.

``torch.load`` with ``weights_only`` refuses more than that itself; here every pickle is looked at before it is read.
Both have to agree. Older files, which are no zip archives, are refused: their tensors can't be mapped.

Importing this module imports torch; milopt does so only while it converts.
"""

from __future__ import annotations

import io
import json
import pickletools
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from milopt.huggingface.errors import ConversionError
from milopt.huggingface.safetensors import is_file_name

__all__ = ["read_pickled"]

SINGLE = "pytorch_model.bin"
INDEX = "pytorch_model.bin.index.json"
_MOST = 1 << 28  # bytes of a pickle; one of 10,000 tensors has 2 MB
_KINDS = ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Short", "Char", "Byte", "Bool")
_STORAGES = frozenset(f"torch.{kind}Storage" for kind in _KINDS)
_HARMLESS = _STORAGES | {
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
}

_NAMING = frozenset({"GLOBAL", "STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"})


def read_pickled(directory: Path) -> dict[str, Callable[[], torch.Tensor]]:
    """The tensors of a directory's ``.bin`` checkpoint by name, views of the mapped files.

    ConversionError where a file is missing or damaged, or its pickle names anything that is not part of a tensor.
    """
    tensors: dict[str, Callable[[], torch.Tensor]] = {}
    for path in _files(directory):
        for name, tensor in _read(path).items():
            if name in tensors:
                raise ConversionError(f"{directory}: {name[:200]!r} is in two files, {path.name} and one before it")
            tensors[name] = partial(_itself, tensor)
    return tensors


def _itself(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _files(directory: Path) -> list[Path]:
    if (directory / SINGLE).is_file():
        return [directory / SINGLE]
    if not (directory / INDEX).is_file():
        raise ConversionError(f"{directory}: holds neither {SINGLE} nor {INDEX}")
    try:
        content: Any = json.loads((directory / INDEX).read_text(encoding="utf-8"))
        names = sorted({str(each) for each in content["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise ConversionError(f"{directory / INDEX}: not readable: {problem}") from problem
    for name in names:
        if not is_file_name(name) or not (directory / name).is_file():
            raise ConversionError(f"{directory}: {INDEX} names {name[:200]!r}, which is no file there")
    return [directory / name for name in names]


def _read(path: Path) -> dict[str, torch.Tensor]:
    for content in _pickles(path):
        _require_harmless(content, path)
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as problem:  # torch raises whatever the damaged file makes its reader raise
        reason = next(iter(str(problem).strip().splitlines()), type(problem).__name__)
        raise ConversionError(f"{path}: torch can't read it: {reason}") from problem
    held: dict[Any, Any] = loaded
    if not isinstance(loaded, dict):
        raise ConversionError(f"{path}: holds a {type(loaded).__name__}, and no tensors by name")
    size = path.stat().st_size
    for name, value in held.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise ConversionError(f"{path}: holds {type(value).__name__} {str(name)[:100]!r}, which is no tensor")
        if value.numel() * value.element_size() > size:
            raise ConversionError(f"{path}: {name[:100]!r} of {tuple(value.shape)} is larger than the file")
    return {name: value.detach().resolve_neg() for name, value in held.items()}


def _pickles(path: Path) -> Iterator[bytes]:
    """The pickles in a zip archive as torch writes it."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [each for each in archive.infolist() if each.filename.endswith(".pkl")]
            if len(names) != 1:
                raise ConversionError(f"{path}: holds {len(names)} pickles, a checkpoint has one")
            if any(each.compress_type != zipfile.ZIP_STORED for each in archive.infolist()):
                raise ConversionError(f"{path}: is compressed, as torch writes no checkpoint")
            if names[0].file_size > _MOST:
                raise ConversionError(f"{path}: its pickle has {names[0].file_size} bytes")
            yield archive.read(names[0])
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as problem:
        raise ConversionError(
            f"{path}: not a zip archive of tensors ({problem}); load it with torch and save it as safetensors"
        ) from problem


def _require_harmless(content: bytes, path: Path) -> None:
    """ConversionError for a pickle that names a function or class beyond those that make tensors."""
    try:
        for op, argument, _ in pickletools.genops(io.BytesIO(content)):
            if op.name not in _NAMING:
                continue
            # only GLOBAL says the name itself; torch writes nothing else
            name = str(argument).replace(" ", ".", 1) if op.name == "GLOBAL" else f"something by {op.name}"
            if name not in _HARMLESS:
                raise ConversionError(
                    f"{path}: its pickle names {name[:200]}, which is no part of a tensor; such a file can run code"
                )
    except ConversionError:
        raise
    except Exception as problem:  # pickletools meets damage with ValueError, struct's error and others
        raise ConversionError(f"{path}: its pickle can't be read: {problem}") from problem

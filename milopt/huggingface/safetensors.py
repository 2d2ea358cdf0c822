"""Safetensors files: mapped, checked before they are believed, and read without copying.

Layout: the header's size (uint64, little endian), the header (JSON: name -> dtype, shape, and where the bytes begin
and end behind the header), and the bytes of all tensors without gaps. A checkpoint is one such file, or several and
``model.safetensors.index.json``, which says in which of them each tensor is.

Importing this module imports torch; milopt does so only while it converts.
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path, PurePath
from typing import Any, cast

import torch

from milopt.huggingface.errors import ConversionError

__all__ = ["Stored", "is_file_name", "read_checkpoint", "read_file"]

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_MOST_HEADER = 100_000_000  # bytes, as the safetensors library has it
_MOST_AXES = 64  # as numpy has it
_MOST_NAME = 255  # bytes of a file's name, on Linux and macOS
_DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Stored:
    """A tensor of a mapped file; calling it gives a view of the mapping."""

    memory: mmap.mmap
    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    def __call__(self) -> torch.Tensor:
        count = prod(self.shape)
        if not count:
            return torch.empty(self.shape, dtype=self.dtype)
        return torch.frombuffer(self.memory, dtype=self.dtype, count=count, offset=self.start).reshape(self.shape)


def read_checkpoint(directory: Path) -> dict[str, Stored]:
    """The tensors of a directory's checkpoint by name; ConversionError where a file is missing or damaged.

    One file, or those that the index names; every tensor of the index has to be in the file that it says.
    """
    if not (directory / INDEX).is_file():
        return read_file(_single(directory))
    places = _index(directory / INDEX)
    files: dict[str, dict[str, Stored]] = {}
    for file in sorted(set(places.values())):
        path = directory / file
        if not path.is_file():
            raise ConversionError(f"{directory}: {INDEX} names {file!r}, which is missing")
        files[file] = read_file(path)
    for name, file in places.items():
        if name not in files[file]:
            raise ConversionError(f"{directory}: {file} has no tensor {name!r}, though {INDEX} says so")
    held = [(name, file) for file, tensors in files.items() for name in tensors]
    if left := sorted(name for name, file in held if places.get(name) != file):
        raise ConversionError(f"{directory}: {left[0]!r} is in a file where {INDEX} does not have it")
    return {name: files[file][name] for name, file in places.items()}


def _single(directory: Path) -> Path:
    if (directory / SINGLE).is_file():
        return directory / SINGLE
    found = sorted(directory.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    raise ConversionError(
        f"{directory}: holds {len(found)} .safetensors files, of which none is {SINGLE}, and no {INDEX}"
    )


def _index(path: Path) -> dict[str, str]:
    """Tensor -> the file it is in, which is a name and never a path."""
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        raise ConversionError(f"{path}: not readable as JSON: {problem}") from problem
    places: Any = cast("dict[str, Any]", content).get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places:
        raise ConversionError(f"{path}: has no weight_map")
    for name, file in cast("dict[str, Any]", places).items():
        if not is_file_name(file) or "\\" in file:
            raise ConversionError(f"{path}: {name!r} is in {str(file)[:200]!r}, which is not the name of a file")
    return cast("dict[str, str]", places)


def is_file_name(name: object) -> bool:
    """Whether it is the name of a file that there may be, and never a path."""
    if not isinstance(name, str) or "\0" in name or len(name.encode("utf-8", "replace")) > _MOST_NAME:
        return False
    return PurePath(name).name == name


def read_file(path: Path) -> dict[str, Stored]:
    """The tensors of one file by name; ConversionError unless everything that its header says fits the file."""
    try:
        with path.open("rb") as file:
            # private: torch wants to be able to write
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError) as problem:  # ValueError: an empty file can't be mapped
        raise ConversionError(f"{path}: can't be read: {problem}") from problem
    if len(memory) < 8:
        raise ConversionError(f"{path}: has {len(memory)} bytes, which is no safetensors file")
    (size,) = struct.unpack_from("<Q", memory)
    if size > min(_MOST_HEADER, len(memory) - 8):
        raise ConversionError(f"{path}: its header has {size} bytes, the file {len(memory)}")
    try:
        header: Any = json.loads(memory[8 : 8 + size].decode("utf-8"))
    except (ValueError, RecursionError) as problem:
        raise ConversionError(f"{path}: its header is not readable as JSON: {problem}") from problem
    if not isinstance(header, dict):
        raise ConversionError(f"{path}: its header is no JSON object")
    entries = {name: each for name, each in cast("dict[str, Any]", header).items() if name != "__metadata__"}
    tensors = {name: _stored(memory, 8 + size, each, f"{path}: tensor {name!r}") for name, each in entries.items()}
    _require_apart(tensors, str(path))
    return tensors


def _stored(memory: mmap.mmap, data: int, entry: Any, where: str) -> Stored:
    fields = cast("dict[str, Any]", entry) if isinstance(entry, dict) else {}
    shape, place = _sizes(fields.get("shape")), _sizes(fields.get("data_offsets"))
    if shape is None or place is None or len(place) != 2:
        raise ConversionError(f"{where} has no shape or no place in the file")
    if prod(each for each in shape if each) >= 1 << 62:
        raise ConversionError(f"{where} has no shape that fits a file: {str(shape)[:200]}")
    dtype = _DTYPES.get(str(fields.get("dtype")))
    if dtype is None:
        raise ConversionError(f"{where} is of type {str(fields.get('dtype'))[:50]!r}; {', '.join(_DTYPES)} are read")
    start, end = place
    if not start <= end <= len(memory) - data:
        raise ConversionError(f"{where} is at {start} to {end} of {len(memory) - data} bytes")
    wanted = prod(shape) * dtype.itemsize
    if end - start != wanted:
        raise ConversionError(f"{where} has {end - start} bytes, its shape needs {wanted}")
    return Stored(memory, data + start, dtype, shape)


def _sizes(value: Any) -> tuple[int, ...] | None:
    """The numbers in a list of sizes; ``None`` for anything else."""
    if not isinstance(value, list):
        return None
    numbers: list[Any] = cast("Any", value)
    if len(numbers) > _MOST_AXES:
        return None
    fits = all(isinstance(each, int) and not isinstance(each, bool) and 0 <= each < 1 << 62 for each in numbers)
    return tuple(numbers) if fits else None


def _require_apart(tensors: Mapping[str, Stored], where: str) -> None:
    taken = sorted(
        (each.start, each.start + prod(each.shape) * each.dtype.itemsize, name)
        for name, each in tensors.items()
        if prod(each.shape)
    )
    for (_, end, one), (start, _, other) in pairwise(taken):
        if start < end:
            raise ConversionError(f"{where}: the tensors {one!r} and {other!r} overlap")

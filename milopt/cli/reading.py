"""The values of ``--input``: from files, or written out. Nothing in a file is executed, and no size in it believed."""

from __future__ import annotations

import importlib
import json
import math
import os
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np

from milopt.errors import MiloptError

__all__ = ["SUFFIXES", "Given", "given", "read_arrays"]

Array: TypeAlias = np.ndarray[Any, Any]
Given: TypeAlias = dict[str, Any]
"""Arrays and PIL images by input name."""

_IMAGES = (".png", ".jpg", ".jpeg")
SUFFIXES = (".npy", ".npz", ".json", *_IMAGES)

# What a damaged or hostile file makes numpy's and Python's own readers raise.
_DAMAGE = (ValueError, EOFError, RecursionError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error)


def given(values: Iterable[str]) -> Given:
    """What ``NAME=VALUE`` gives, and ``FILE`` alone where the file names what it holds (``.npz``, ``.json``).

    MiloptError, in one line, for a file that can't be read and for a name that comes twice.
    """
    found: Given = {}
    for text in values:
        name, equals, value = text.partition("=")
        several: Mapping[str, Any] = {name: _value(name, value)} if equals and name else _several(text)
        for each, array in several.items():
            if each in found:
                raise MiloptError(f"input {each!r} is given twice")
            found[each] = array
    return found


def read_arrays(path: Path) -> dict[str, Array]:
    """All arrays of an ``.npz`` file by name."""
    _require_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = [each for each in archive.infolist() if not each.is_dir()]
            return {each.filename.removesuffix(".npy"): _member(archive, each) for each in members}
    except _DAMAGE as error:
        raise _unreadable(path, error) from error


def _several(text: str) -> Mapping[str, Any]:
    path = Path(text)
    if path.suffix == ".npz":
        return read_arrays(path)
    if path.suffix == ".json":
        content = _json(path)
        if hasattr(content, "items"):
            return {name: _numbers(name, value) for name, value in content.items()}
        raise MiloptError(f"{path} holds no object of inputs by name; write NAME={path}")
    raise MiloptError(f"--input is NAME=VALUE, or a .npz or .json file that names its values, not {text!r}")


def _value(name: str, text: str) -> Any:
    path = Path(text)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        return _numbers(name, _literal(name, text))
    if suffix == ".npz":
        arrays = read_arrays(path)
        if name not in arrays and len(arrays) != 1:
            raise MiloptError(f"{path} has no array {name!r}; it has {', '.join(arrays) or 'none'}")
        return arrays[name] if name in arrays else next(iter(arrays.values()))
    if suffix == ".json":
        return _numbers(name, _json(path))
    return _image(path) if suffix in _IMAGES else _npy(path)


def _literal(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise MiloptError(
            f"--input {name}: {_short(text)} is neither a number or list in JSON nor a file "
            f"({', '.join(each.removeprefix('.') for each in SUFFIXES)})"
        ) from None


def _json(path: Path) -> Any:
    _require_file(path)
    try:
        return json.loads(path.read_bytes())
    except _DAMAGE as error:
        raise _unreadable(path, error) from error


def _numbers(name: str, value: Any) -> Array:
    """Nested lists as an array."""
    try:
        array: Array = np.asarray(value)
    except ValueError:
        array = np.asarray(None)
    if array.dtype.kind not in "fiub":
        raise MiloptError(f"input {name!r}: {_short(json.dumps(value))} is no array of numbers with rows of one length")
    return array


def _npy(path: Path) -> Array:
    _require_file(path)
    try:
        with path.open("rb") as stream:
            return _array(stream, path.stat().st_size)
    except _DAMAGE as error:
        raise _unreadable(path, error) from error


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Array:
    with archive.open(member) as stream:
        return _array(stream, member.file_size)


def _array(stream: IO[bytes], size: int) -> Array:
    """The array that an ``.npy`` stream of ``size`` bytes holds; read only if it is as long as its header says."""
    shape, fortran, dtype = _header(stream)
    if dtype.hasobject:
        raise ValueError("it holds Python objects (a pickle), which are not loaded")
    if dtype.kind not in "fiub" or dtype.itemsize > 8:
        raise ValueError(f"it holds {dtype}, not numbers")
    bytes_ = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or bytes_ != size - stream.tell():
        raise ValueError(f"its header says {dtype}{list(shape)}, but {size - stream.tell()} bytes follow")
    if bytes_ > _memory():
        raise ValueError(f"{dtype}{list(shape)} is more than this machine's memory")
    numbers: Any = np.frombuffer(stream.read(bytes_), dtype)
    array: Array = numbers.reshape(shape, order="F" if fortran else "C").astype(dtype.newbyteorder("="), order="C")
    return array


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, Any]:
    """Shape, order and dtype; numpy reads them as literals, of a text of 10,000 characters at most."""
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"format version {version} is not one of plain arrays")
    read: Any = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, fortran, dtype = read(stream)
    except Exception as error:  # whatever the header's damage makes numpy raise
        raise ValueError(f"its header is damaged: {error}") from error
    return shape, fortran, dtype


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _image(path: Path) -> Any:
    _require_file(path)
    try:
        pillow: Any = importlib.import_module("PIL.Image")
    except ImportError as error:
        raise MiloptError("reading images needs Pillow: pip install pillow") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # an image of so many pixels that Pillow warns is meant to fill the memory
            image = pillow.open(path, formats=("PNG", "JPEG"))
            image.load()
            return image
    except Exception as error:  # whatever the file's damage makes Pillow raise
        raise _unreadable(path, error) from error


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise MiloptError(f"{path}: no such file")


def _unreadable(path: Path, error: Exception) -> MiloptError:
    reason = str(error).strip().split("\n")[0] or type(error).__name__
    return MiloptError(f"{path} can't be read: {reason}")


def _short(text: str) -> str:
    return repr(text) if len(text) <= 40 else f"{text[:37]!r}..."

"""The file of a calibration: safetensors, checked before it is believed.

Its tensors are ``moments/KEY/squares`` (float64), ``moments/KEY/count`` (int64), ``moments/KEY/products`` (float32),
where they were collected, and ``sensitivities/KEY`` (float64). Weights with the same inputs have one set of them: the
metadata's ``shared`` is an object, as JSON, that says of which other KEY the moments of a KEY are.
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Iterator
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np

from milopt.calibration.statistics import Moments, Statistics
from milopt.errors import MiloptError
from milopt.files import whole_file

__all__ = ["read", "write"]

Array: TypeAlias = Any  # numpy.ndarray; its generic form is more than pyright strict can follow

_FORMAT = "milopt calibration 3"
_MOST_HEADER = 100_000_000  # bytes, as the safetensors library has it
_TYPES: dict[str, np.dtype[Any]] = {"F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "I64": np.dtype("<i8")}


def write(statistics: Statistics, path: Path) -> None:
    """The tensors with the widest elements first, so that all are aligned. The file appears whole or not at all."""
    arrays = sorted(_arrays(statistics), key=lambda each: -each[1].itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": _FORMAT, "shared": json.dumps(_shared(statistics))}}
    end = 0
    for name, array in arrays:
        code = next(code for code, dtype in _TYPES.items() if dtype == array.dtype)
        header[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with whole_file(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, array in arrays:
            elements: Any = np.ascontiguousarray(array)
            file.write(elements.reshape(-1).view(np.uint8))


def _shared(statistics: Statistics) -> dict[str, str]:
    """The weights that have the moments of another one, and which."""
    firsts: dict[int, str] = {}
    found = {key: firsts.setdefault(id(each), key) for key, each in statistics.moments.items()}
    return {key: first for key, first in found.items() if key != first}


def _arrays(statistics: Statistics) -> Iterator[tuple[str, Array]]:
    shared = _shared(statistics)
    for key, each in statistics.moments.items():
        if key in shared:
            continue
        yield f"moments/{key}/squares", np.asarray(each.squares, _TYPES["F64"])
        yield f"moments/{key}/count", np.asarray(each.count, _TYPES["I64"])
        if each.products is not None:
            yield f"moments/{key}/products", np.asarray(each.products, _TYPES["F32"])
    for key, value in statistics.sensitivities.items():
        yield f"sensitivities/{key}", np.asarray(value, _TYPES["F64"])


def read(path: Path) -> Statistics:
    """The statistics of a file; MiloptError, in one line, for a file of another kind or a damaged one."""
    try:
        return _statistics(*_tensors(path))
    except OSError as error:
        raise MiloptError(f"{path} can't be read as statistics of a calibration: {error.strerror or error}") from None
    except (ValueError, TypeError, KeyError, RecursionError, MemoryError) as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise MiloptError(f"{path} can't be read as statistics of a calibration: {said}") from None


def _tensors(path: Path) -> tuple[dict[str, Array], dict[str, Any]]:
    """The tensors by name, and who shares the moments of whom."""
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8:
            raise ValueError("it is too short")
        (length,) = struct.unpack("<Q", start)
        size = path.stat().st_size
        if length > min(size - 8, _MOST_HEADER):
            raise ValueError("it is no safetensors file")
        header: Any = json.loads(file.read(length))
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if not isinstance(header, dict):
        raise ValueError("its header is no object")
    entries = cast("dict[str, Any]", header)
    metadata: Any = entries.pop("__metadata__", None)
    if not isinstance(metadata, dict) or cast("dict[str, Any]", metadata).get("format") != _FORMAT:
        raise ValueError(f"it does not say that it is {_FORMAT!r}")
    shared: Any = json.loads(cast("dict[str, Any]", metadata)["shared"])
    if not isinstance(shared, dict):
        raise ValueError("what it says of shared moments is no object")
    found, places = dict[str, Array](), list[tuple[int, int]]()
    for name, entry in entries.items():
        dtype, shape, (begin, end) = _TYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
        if not all(type(each) is int and each >= 0 for each in (*shape, begin, end)):
            raise ValueError(f"{name[:100]!r} has a wrong shape or place")
        if end - begin != prod(shape) * dtype.itemsize or 8 + length + end > size:
            raise ValueError(f"{name[:100]!r} is not where its header says")
        elements: Any = np.frombuffer(memory, dtype, prod(shape), 8 + length + begin)
        found[name] = elements.reshape(shape)
        places.append((begin, end))
    if any(one[1] > other[0] for one, other in pairwise(sorted(places))):
        raise ValueError("two of its tensors lie in one place")
    return found, cast("dict[str, Any]", shared)


def _statistics(arrays: dict[str, Array], shared: dict[str, Any]) -> Statistics:
    found = Statistics()
    for name, array in arrays.items():
        kind, key, part = (*name.split("/"), "", "")[:3]
        if kind == "sensitivities" and array.shape == () and np.isfinite(array) and array >= 0:
            found.sensitivities[key] = float(array)
        elif kind == "moments" and part == "squares":
            found.moments[key] = _moments(f"moments/{key}", array, arrays)
        elif kind != "moments" or part not in ("count", "products") or f"moments/{key}/squares" not in arrays:
            raise ValueError(f"it has {name[:100]!r}, which means nothing here")
    owners = dict(found.moments)
    for key, first in shared.items():
        if key in owners or first not in owners:
            raise ValueError(f"it has no moments for {key[:100]!r}, or two")
        found.moments[key] = owners[first]
    return found


def _moments(name: str, squares: Array, arrays: dict[str, Array]) -> Moments:
    count, products = arrays[f"{name}/count"], arrays.get(f"{name}/products")
    if squares.ndim != 1 or squares.dtype != np.float64 or not np.all(squares >= 0):  # nor NaN
        raise ValueError(f"{name[:100]!r} has squares that are no sums of squares")
    if count.shape != () or count.dtype != np.int64 or count < 0:
        raise ValueError(f"{name[:100]!r} has no count")
    if products is not None and (products.shape != (len(squares),) * 2 or products.dtype != np.float32):
        raise ValueError(f"{name[:100]!r} has products of the wrong shape")
    return Moments(squares, int(count), products)

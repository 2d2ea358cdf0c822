"""Files for the outputs and states of a run. Each appears whole or not at all."""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from milopt.errors import MiloptError
from milopt.files import remove_folder, whole_file

__all__ = ["Files", "check_file", "plain", "write_arrays"]

# Longer names are cut: file systems take 255 bytes, of which the suffix and a number need some.
_LONGEST = 200


class Files:
    """The files of a folder, one per output. Made before the run, it refuses what could not be written after it.

    ``suffixes`` are by output name. A name that is none for a file (``a/b``) is spelt differently. MiloptError where
    the folder can't be made or written, or has one of the files and ``force`` is not given.
    """

    def __init__(self, folder: Path, suffixes: Mapping[str, str], *, force: bool) -> None:
        self.paths = {name: folder / file for name, file in _file_names(suffixes).items()}
        self._folder = folder
        _require_writable(folder if folder.exists() else _nearest(folder), folder)
        for path in self.paths.values():
            check_file(path, force=force, folder=False)

    def write(self, values: Mapping[str, Any]) -> None:
        """Write each value as its suffix says: an array, a PIL image, or plain values for JSON."""
        made = [each for each in (self._folder, *self._folder.parents) if not each.exists()]
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._fill(values)
        except BaseException as error:
            for each in made:
                with suppress(OSError):  # one that holds something stays
                    each.rmdir()
            if isinstance(error, OSError):
                raise MiloptError(f"can't write {self._folder}: {error.strerror or error}") from error
            raise

    def _fill(self, values: Mapping[str, Any]) -> None:
        hidden = Path(tempfile.mkdtemp(prefix=".milopt-", dir=self._folder))
        try:
            for name, path in self.paths.items():
                _WRITERS[path.suffix](hidden / path.name, values[name])
            for path in self.paths.values():
                os.replace(hidden / path.name, path)
        finally:
            remove_folder(hidden)


def check_file(path: Path, *, force: bool, folder: bool = True) -> None:
    """Refuse a file that exists, unless ``force``, or whose folder can't be written to."""
    if path.is_dir():
        raise MiloptError(f"{path} is a folder")
    if (path.exists() or path.is_symlink()) and not force:
        raise MiloptError(f"{path} exists; give --force to replace it")
    if folder:
        parent = path.absolute().parent
        if not parent.is_dir():
            raise MiloptError(f"{path}: the folder {parent} does not exist")
        _require_writable(parent, path)


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """An ``.npz`` file with these arrays, whole or not at all."""
    with whole_file(path) as file, zipfile.ZipFile(file, "w") as archive:
        for each, array in arrays.items():
            with archive.open(f"{each}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, np.asarray(array), allow_pickle=False)


def _nearest(folder: Path) -> Path:
    """The closest folder above that exists."""
    return next(each for each in folder.absolute().parents if each.exists())


def _require_writable(folder: Path, what: Path) -> None:
    # a folder without a single write bit is meant to stay as it is, though the superuser could write there
    if folder.is_dir() and (not folder.stat().st_mode & 0o222 or not os.access(folder, os.W_OK | os.X_OK)):
        raise MiloptError(f"{what}: the folder {folder} is read-only")
    if not folder.is_dir():
        raise MiloptError(f"{what}: {folder} is no folder")


def _file_names(suffixes: Mapping[str, str]) -> dict[str, str]:
    taken: set[str] = set()
    names: dict[str, str] = {}
    for name, suffix in suffixes.items():
        stem = re.sub(r"[^\w.-]", "_", name, flags=re.ASCII).lstrip(".")[:_LONGEST] or "output"
        choices: Iterable[str] = (stem, *(f"{stem}_{number}" for number in range(2, len(suffixes) + 2)))
        # not all file systems tell capitals from small letters
        names[name] = next(each for each in choices if each.casefold() not in taken) + suffix
        taken.add(names[name].removesuffix(suffix).casefold())
    return names


def _write_array(path: Path, value: Any) -> None:
    np.save(path, value, allow_pickle=False)


def _write_image(path: Path, value: Any) -> None:
    value.save(path)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(plain(value), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def plain(value: Any) -> Any:
    """A label or probabilities, NaN and Inf as strings: JSON has no numbers for them."""
    if hasattr(value, "items"):
        return {label: plain(each) for label, each in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


_WRITERS: dict[str, Callable[[Path, Any], None]] = {".npy": _write_array, ".png": _write_image, ".json": _write_json}

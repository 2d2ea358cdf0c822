"""The ``.mlpackage`` folder: Manifest.json, the files it names, and nothing outside the folder.

A package is ``Manifest.json`` plus a ``Data`` folder. The manifest lists items (author, name, description, and a path
inside ``Data``) and says which of them is the model's specification; weight files lie where the specification says,
relative to its own folder.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

from milopt.errors import PackageError
from milopt.package.kinds import refuse_single_file
from milopt.package.parts import quoted

__all__ = ["MANIFEST", "SPEC", "Container", "Item", "inside", "open_container", "relative_path"]

MANIFEST = "Manifest.json"
_LONGEST = 1000  # characters of a path inside a package; a name may have 255 on the disk
_MOST = 1 << 26  # bytes of a manifest


@dataclass(frozen=True)
class Item:
    """One entry of the manifest: a file or a folder at ``path``, inside ``Data``."""

    path: str
    name: str
    author: str
    description: str


SPEC = Item("com.apple.CoreML/model.mlmodel", "model.mlmodel", "com.apple.CoreML", "CoreML Model Specification")


@dataclass(frozen=True)
class Container:
    """An opened package: its folder, its specification's item, and the other items."""

    root: Path
    spec: Item
    items: tuple[Item, ...]

    @property
    def name(self) -> str:
        return self.root.name

    def file(self, path: str) -> Path:
        """The existing file at ``path`` inside ``Data``; refused where it is missing or lies elsewhere."""
        found = inside(self.root, f"Data/{path}", self.name)
        if not found.is_file():
            raise PackageError(f"{self.name}: {path} is missing")
        return found


def relative_path(path: object, where: str) -> PurePosixPath:
    """``path`` as a path below a folder; absolute ones, ``..`` and backslashes are refused."""
    if not isinstance(path, str) or not path or "\0" in path:
        raise PackageError(f"{where}: {path!r} is not a path")
    if len(path) > _LONGEST:
        raise PackageError(f"{where}: the path {quoted(path)} is longer than {_LONGEST} characters")
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\\" in path or not pure.parts:
        raise PackageError(f"{where}: the path {quoted(path)} leads out of the package")
    return pure


def inside(root: Path, path: str, where: str) -> Path:
    """The real path of ``root/path``, which need not exist; refused when a link leads out of ``root``."""
    pure = relative_path(path, where)
    try:
        folder, real = root.resolve(), (root / pure).resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise PackageError(f"{where}: {path} can't be followed: {error}") from error
    if folder not in real.parents:
        raise PackageError(f"{where}: {path} is a link that leaves the package; copy it with links resolved (cp -RL)")
    return real


def open_container(root: Path) -> Container:
    """Read and check the manifest of the package at ``root``."""
    try:
        exists = root.exists()
    except OSError as error:
        raise PackageError(f"{root} can't be read: {error.strerror}") from error
    if not exists:
        raise PackageError(f"{root}: no such file or folder")
    if root.suffix == ".mlmodel" and root.is_file():
        refuse_single_file(root)
    if root.suffix == ".mlmodelc":
        raise PackageError(f"{root} is a compiled model; milopt reads the .mlpackage that it was made from")
    if not root.is_dir():
        raise PackageError(f"{root} is not a package: a .mlpackage is a folder")
    manifest = _manifest(root)
    where = f"{root.name}: {MANIFEST}"
    entries = manifest.get("itemInfoEntries")
    if not isinstance(entries, dict):
        raise PackageError(f"{where} has no itemInfoEntries")
    items = {key: _item(entry, where) for key, entry in cast("dict[str, Any]", entries).items()}
    spec = items.pop(str(manifest.get("rootModelIdentifier")), None)
    if spec is None:
        raise PackageError(f"{where}: rootModelIdentifier names no item")
    return Container(root, spec, tuple(items.values()))


def _manifest(root: Path) -> dict[str, Any]:
    file = inside(root, MANIFEST, root.name)
    try:
        if not file.is_file():
            raise PackageError(f"{root} is not a package: it has no {MANIFEST}")
        if file.stat().st_size > _MOST:
            raise PackageError(f"{root.name}: {MANIFEST} has {file.stat().st_size} bytes; at most {_MOST} are read")
        content = json.loads(file.read_bytes())
    except PackageError:
        raise
    except OSError as error:
        raise PackageError(f"{root.name}: {MANIFEST} can't be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise PackageError(f"{root.name}: {MANIFEST} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise PackageError(f"{root.name}: {MANIFEST} holds no object")
    return cast("dict[str, Any]", content)


def _item(entry: Any, where: str) -> Item:
    if not isinstance(entry, dict):
        raise PackageError(f"{where}: an item is not an object")
    fields = cast("dict[str, Any]", entry)
    path = str(relative_path(fields.get("path"), where))
    return Item(path, *(str(fields.get(key, "")) for key in ("name", "author", "description")))

"""A set is read: only whole, with the very files that were written, each with the interface it had."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import numpy as np

from milopt.errors import PackageError
from milopt.package import Model
from milopt.package import load as load_package
from milopt.package.container import relative_path
from milopt.package.publishing import recover
from milopt.sets.deployment import DeploymentSet, Part, Step, Table, interface
from milopt.sets.errors import SetError
from milopt.sets.saving import FORMAT, MANIFEST, VERSION, digest_of
from milopt.sets.wiring import row_type, wired

__all__ = ["is_set", "load"]

# What macOS leaves in every folder that was looked at.
_FINDER = ".DS_Store"


def is_set(path: str | os.PathLike[str]) -> bool:
    """Whether a folder looks like a set: it has a ``set.json``."""
    return (Path(path) / MANIFEST).is_file()


def load(folder: str | os.PathLike[str], *, check: bool = True) -> DeploymentSet:
    """The set that :meth:`DeploymentSet.save` wrote to ``folder``. Weights and tables are mapped, not read.

    :class:`~milopt.sets.SetError` names the file that is missing, is not the set's, or was changed since; ``check``
    set to False leaves out the hashes, for which every byte is read. Parts that don't fit each other are refused too.
    """
    root = Path(folder)
    with suppress(OSError):  # nothing is there to be put back, or it can't be; what is wrong is said below
        recover(root)
    manifest = _manifest(root)
    try:
        _check_files(root, manifest["files"], check)
        made = _read(root, manifest)
        for name in made.functions:
            if wired(made, name).states != manifest["functions"][name]["states"]:
                raise SetError(f"{root}: the states of function {name!r} are not those of {MANIFEST}")
    except (KeyError, TypeError, AttributeError) as error:
        raise SetError(f"{root / MANIFEST} is not one that milopt wrote: {type(error).__name__} {error}") from error
    return made


def _manifest(root: Path) -> dict[str, Any]:
    if not root.is_dir():
        raise SetError(f"{root}: there is no such folder")
    file = root / MANIFEST
    if not file.is_file():
        from milopt.sets.client import client_style

        more = ", but a client's folder: milopt.sets.load_client reads it" if client_style(root) is not None else ""
        raise SetError(f"{root} is no deployment set: it has no {MANIFEST}{more}")
    try:
        manifest: Any = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SetError(f"{file} can't be read: {error}") from error
    if not isinstance(manifest, dict) or cast("dict[str, Any]", manifest).get("format") != FORMAT:
        raise SetError(f"{file} does not describe a deployment set")
    found = cast("dict[str, Any]", manifest)
    if found.get("version") != VERSION:
        raise SetError(f"{file} is of version {found.get('version')}; this milopt reads version {VERSION}")
    return found


def _check_files(root: Path, listed: Mapping[str, Any], hashes: bool) -> None:
    for path, told in listed.items():
        file = root / relative_path(path, str(root / MANIFEST))
        if not file.is_file() or _is_link(root, file):
            raise SetError(f"{file} is missing from the set")
        if file.stat().st_size != told["bytes"]:
            raise SetError(f"{file} was changed: it has {file.stat().st_size:,} bytes, the set's had {told['bytes']:,}")
    here = {each.relative_to(root).as_posix() for each in root.rglob("*") if not each.is_dir()} - {MANIFEST}
    here = {each for each in here if each.rpartition("/")[2] != _FINDER}
    if foreign := sorted(here - set(listed)):
        raise SetError(f"{root / foreign[0]} is not part of the set: {MANIFEST} does not name it")
    if hashes:
        for path, told in listed.items():
            if digest_of(root / path) != told["sha256"]:
                raise SetError(f"{root / path} was changed: its SHA-256 is another than in {MANIFEST}")


def _is_link(root: Path, file: Path) -> bool:
    """Whether the file, or a folder on the way to it, is a link."""
    return any(each.is_symlink() for each in (file, *file.parents) if root in each.parents)


def _read(root: Path, manifest: Mapping[str, Any]) -> DeploymentSet:
    files: dict[str, Model | Table] = {}
    for name, told in manifest["packages"].items():
        relative_path(name, str(root / MANIFEST))
        files[name] = _table(root / name, told["table"]) if "table" in told else _package(root / name, told)
    functions: Mapping[str, Any] = manifest["functions"]
    parts = [
        Part(
            str(part["name"]),
            str(part["file"]),
            {
                str(name): Step(str(step["function"]), dict(step["takes"]), dict(step["gives"]))
                for name, step in part["functions"].items()
            },
        )
        for part in manifest["parts"]
    ]
    for part in parts:
        if part.file not in files:
            raise SetError(f"{root / MANIFEST}: part {part.name} is in {part.file}, which is no package of the set")
        if list(part.steps) != list(functions):
            raise SetError(f"{root / MANIFEST}: part {part.name} has functions {', '.join(part.steps)}")
    if manifest["default_function"] not in functions:
        raise SetError(f"{root / MANIFEST}: there is no function {manifest['default_function']!r}")
    return DeploymentSet(
        tuple(parts),
        files,
        {str(name): dict(each["inputs"]) for name, each in functions.items()},
        {str(name): tuple(each["outputs"]) for name, each in functions.items()},
        str(manifest["default_function"]),
        dict(manifest["metadata"]),
        {str(path): (root / path).read_bytes() for path in manifest["attachments"]},
        list(manifest["notes"]),
    )


def _package(path: Path, told: Mapping[str, Any]) -> Model:
    model = load_package(path)
    for name, wanted in told["functions"].items():
        if name not in model.functions or interface(model, name) != wanted:
            raise SetError(f"{path} has another interface than {MANIFEST} says: function {name!r}")
    return model


def _table(path: Path, told: Mapping[str, Any]) -> Table:
    try:
        array: Any = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise PackageError(f"{path} is not an array that can be read: {error}") from error
    table = Table(array)
    if [row_type(table, str(path)), *array.shape] != [told["dtype"], *told["shape"]]:
        raise SetError(f"{path} is {array.dtype} {list(array.shape)}, {MANIFEST} says {told['dtype']} {told['shape']}")
    return table

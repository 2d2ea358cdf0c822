"""A set on the disk: its packages and tables, the tokenizer's files, and ``set.json``, which names them all."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from milopt.enclosing import enclosing
from milopt.package import Model
from milopt.package.container import relative_path
from milopt.package.publishing import published
from milopt.sets.deployment import DeploymentSet, Table, interface
from milopt.sets.errors import SetError
from milopt.sets.manifests import check_replaceable
from milopt.sets.wiring import row_type, wired

__all__ = ["FORMAT", "MANIFEST", "VERSION", "check_destination", "digest_of", "save"]

MANIFEST = "set.json"
FORMAT = "milopt deployment set"
VERSION = 1

_CHUNK = 1 << 22


def save(made: DeploymentSet, folder: Path, *, overwrite: bool) -> Path:
    """See :meth:`DeploymentSet.save`."""
    interfaces = {name: wired(made, name) for name in made.functions}
    for path in made.attachments:
        relative_path(path, "attachment")
        if Path(path).parts[0] in (*made.files, MANIFEST):
            raise SetError(f"an attachment can't be called {path!r}: that is a file of the set's own")
    if overwrite:
        check_replaceable(folder, MANIFEST, "deployment set")
    with published(folder, overwrite=overwrite, marker=MANIFEST, suffix="", what="deployment set") as fresh:
        for name, each in made.files.items():
            if isinstance(each, Table):
                np.save(fresh / name, each.array, allow_pickle=False)
            else:
                each.save(fresh / name)
        for path, content in made.attachments.items():
            file = fresh / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        described = {
            name: {"inputs": each.inputs, "outputs": each.outputs, "states": each.states}
            for name, each in interfaces.items()
        }
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "default_function": made.default_function,
            "functions": described,
            "parts": [
                {
                    "name": part.name,
                    "file": part.file,
                    "functions": {
                        name: {"function": step.function, "takes": dict(step.takes), "gives": dict(step.gives)}
                        for name, step in part.steps.items()
                    },
                }
                for part in made.parts
            ],
            "packages": {name: _described(each, name) for name, each in made.files.items()},
            "files": _files(fresh),
            "attachments": sorted(made.attachments),
            "metadata": dict(sorted(made.metadata.items())),  # a package's are in no order
            "notes": made.notes,
        }
        text = json.dumps(manifest, indent=1, ensure_ascii=False, sort_keys=False)
        (fresh / MANIFEST).write_text(text + "\n", encoding="utf-8")
    return folder


def check_destination(folder: Path, *, force: bool, marker: str = MANIFEST, what: str = "deployment set") -> None:
    """Refuse a folder that could not become a set in the end, before the long work begins.

    Only a folder with a file ``marker`` is one that may be replaced, and only if milopt wrote every file in it.
    """
    if folder.is_symlink() or folder.exists():
        if not force:
            raise SetError(f"{folder} exists; give --force to replace it")
        if not (folder / marker).is_file():
            raise SetError(f"{folder} is no {what}; it is not replaced even with --force")
        check_replaceable(folder, marker, what)
    parent = folder.absolute().parent
    if not parent.is_dir():
        raise SetError(f"{folder}: the folder {parent} does not exist")
    if (whole := enclosing(folder)) is not None:
        raise SetError(f"{folder} is inside {whole}, which another file would break")
    # a folder without a single write bit is meant to stay as it is, though the superuser could write there
    if not parent.stat().st_mode & 0o222 or not os.access(parent, os.W_OK | os.X_OK):
        raise SetError(f"{folder}: the folder {parent} is read-only")


def _described(each: Model | Table, name: str) -> dict[str, Any]:
    if isinstance(each, Table):
        return {"table": {"dtype": row_type(each, name), "shape": list(each.array.shape)}}
    return {"functions": {function: interface(each, function) for function in each.functions}}


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    """Every file below the folder, with its size and hash."""
    found = sorted(each for each in folder.rglob("*") if each.is_file())
    return {
        each.relative_to(folder).as_posix(): {"bytes": each.stat().st_size, "sha256": digest_of(each)} for each in found
    }


def digest_of(file: Path) -> str:
    """The SHA-256 of a file's bytes."""
    content = hashlib.sha256()
    with file.open("rb") as stream:
        while part := stream.read(_CHUNK):
            content.update(part)
    return content.hexdigest()

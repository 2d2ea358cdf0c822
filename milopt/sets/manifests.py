"""``milopt.json``: which files of a client's folder are milopt's own, so that nobody else's are ever replaced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from milopt.sets.errors import SetError

__all__ = ["MANIFEST", "check_replaceable", "write_manifest"]

MANIFEST = "milopt.json"
_SET = "set.json"
# What macOS leaves in every folder that was looked at.
_FINDER = ".DS_Store"


def write_manifest(folder: Path) -> None:
    """List the files that are in ``folder``, and say who made them."""
    import milopt

    content = {"made_by": f"milopt {milopt.__version__}", "files": sorted(_files(folder))}
    (folder / MANIFEST).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def check_replaceable(folder: Path, marker: str, what: str) -> None:
    """SetError where ``folder`` has a ``marker`` and is not wholly milopt's: it has no list of its files, or one that
    is not in the list.
    """
    if not (folder / marker).is_file():
        return
    name = next((each for each in (_SET, MANIFEST) if (folder / each).is_file()), None)
    listed = None if name is None else _listed(folder / name)
    if name is None or listed is None:
        raise SetError(f"{folder} is no {what} that milopt wrote; it is not replaced even with --force")
    if foreign := sorted(_files(folder) - {*listed, name}):
        raise SetError(f"{folder} has {foreign[0]}, which milopt did not write; it is not replaced even with --force")


def _files(folder: Path) -> set[str]:
    """All files below the folder, and links whatever they lead to."""
    found = (each for each in folder.rglob("*") if (each.is_symlink() or not each.is_dir()) and each.name != _FINDER)
    return {each.relative_to(folder).as_posix() for each in found}


def _listed(file: Path) -> set[str] | None:
    """The paths in a list, or in a set's, which maps them to their hashes; None where it is no list of milopt's."""
    try:
        said: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    files: Any = cast("dict[str, Any]", said).get("files") if isinstance(said, dict) else None
    return set(map(str, cast("Any", files))) if isinstance(files, (list, dict)) else None

"""Is a place to write to inside something that is whole as it is?"""

from __future__ import annotations

from pathlib import Path

__all__ = ["enclosing"]

_MARKERS = ("set.json", "milopt.json")


def enclosing(path: Path) -> Path | None:
    """The package, or the folder that milopt wrote, that ``path`` is inside of: another file there would break it."""
    for each in path.absolute().parents:
        if each.suffix == ".mlpackage" and (each / "Manifest.json").is_file():
            return each
        if any((each / name).is_file() for name in _MARKERS):
            return each
    return None

"""Texts kept in files: what a program is after a rule, as a reader should see it."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

__all__ = ["UPDATE", "golden"]

UPDATE = "MILOPT_UPDATE_GOLDEN"
"""Set this environment variable to 1 to write the files anew; then read what changed before you keep it."""


def golden(text: str, path: str | os.PathLike[str], *, update: bool | None = None) -> None:
    """Assert that ``text`` is what the file at ``path`` holds; the difference is the message.

    ``update`` writes the file instead; ``None`` leaves that to the environment variable ``MILOPT_UPDATE_GOLDEN``.
    """
    file = Path(path)
    if update if update is not None else os.environ.get(UPDATE) == "1":
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        return
    if not file.is_file():
        raise AssertionError(f"there is no {file}: run once with {UPDATE}=1, and read what it writes")
    wanted = file.read_text(encoding="utf-8")
    if text == wanted:
        return
    lines = difflib.unified_diff(wanted.splitlines(), text.splitlines(), str(file), "now", lineterm="", n=2)
    raise AssertionError("\n".join([f"not what {file.name} holds ({UPDATE}=1 writes it anew)", *lines]))

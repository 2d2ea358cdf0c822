"""Steps that take no time: each writes two files that follow from its option and from what the one before wrote."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from milopt.exporting.running import Outcome, Step, Tell, run_steps

FOLDERS = ("1-one", "2-two", "set", "last")


def steps(root: Path, options: Sequence[str], calls: list[str] | None = None) -> tuple[Step, ...]:
    def work_of(number: int) -> Callable[[Path, Tell], list[str]]:
        def work(fresh: Path, tell: Tell) -> list[str]:
            tell("write")
            if calls is not None:
                calls.append(FOLDERS[number])
            before = (root / FOLDERS[number - 1] / "inner" / "text").read_bytes() if number else b""
            made = hashlib.sha256(before + options[number].encode()).hexdigest()
            (fresh / "inner").mkdir()
            (fresh / "inner" / "text").write_text(made * 200)
            (fresh / f"of-{options[number]}").write_text(made)
            return [f"option {options[number]}"]

        return work

    def key_of(number: int) -> Callable[[], dict[str, Any]]:
        return lambda: {"option": options[number]}

    return tuple(
        Step(number + 1, each, each, work_of(number), key_of(number), (FOLDERS[number - 1],) if number else ())
        for number, each in enumerate(FOLDERS)
    )


def quietly(_: str) -> None:
    """Say nothing of what is going on."""


def run(
    root: Path,
    options: Sequence[str] = "abcd",
    *,
    calls: list[str] | None = None,
    restart: int | None = None,
    only: int | None = None,
    force: bool = False,
    tell: Tell = quietly,
) -> list[Outcome]:
    made = steps(root, options, calls)
    return run_steps(root, made, result="set", restart=restart, only=only, force=force, tell=tell)


def tree(root: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too, by its path."""
    return {each.relative_to(root).as_posix(): each.read_bytes() for each in root.rglob("*") if each.is_file()}

"""The whole way from a Hugging Face folder to the set that a device loads, in numbered steps that can be resumed.

outcomes = milopt.exporting.export("Llama-3.2-1B/", "llama", Options(target="iphone", lut=4))
session = milopt.Session(milopt.sets.load("llama/set"))
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from milopt.exporting.errors import ExportError
from milopt.exporting.journal import JOURNAL, Journal, Record
from milopt.exporting.options import Options
from milopt.exporting.running import Outcome, Step, Tell, run_steps
from milopt.exporting.steps import RESULT, steps_of

__all__ = [
    "JOURNAL",
    "RESULT",
    "ExportError",
    "Journal",
    "Options",
    "Outcome",
    "Record",
    "Step",
    "export",
    "run_steps",
    "steps_of",
]


def export(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    options: Options | None = None,
    *,
    restart: int | None = None,
    only: int | None = None,
    force: bool = False,
    progress: Tell | None = None,
) -> Sequence[Outcome]:
    """Make ``out/set`` of the causal language model ``source``, a folder, a ``.gguf`` file, or a name in the cache.

    Every finished step is recorded in ``out/export.json`` with the SHA-256 of what it wrote: a call with the same
    arguments goes on with the first step that is not done, or whose files are not those recorded, and ends with the
    same bytes however often it was killed. A step is done again where its options or inputs differ, but a finished set
    is replaced only with ``force``. ``restart`` does that step and all later ones again, ``only`` that one alone.

    :class:`ExportError`, or another MiloptError of a step, says in one line what stands in the way;
    :class:`~milopt.errors.VerificationError` that what was made computes something else.
    """
    root, given = Path(out), options or Options()
    named = source if isinstance(source, str) else Path(source)
    steps, tell = steps_of(named, root, given), progress or _say_nothing
    if only in (None, 1):
        tell("read the checkpoint's files")
        steps[0].key()  # what can't be read is refused before a folder is made
    return run_steps(
        root,
        steps,
        result=RESULT,
        restart=restart,
        only=only,
        force=force,
        tell=tell,
    )


def _say_nothing(_: str) -> None:
    pass

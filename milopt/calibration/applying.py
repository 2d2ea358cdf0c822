"""A calibration given to the passes of a pipeline that take one."""

from __future__ import annotations

from pathlib import Path

from milopt.calibration.statistics import Statistics
from milopt.errors import PassError
from milopt.pipeline import Pipeline
from milopt.registry import create
from milopt.spec import split_spec, value_text

__all__ = ["with_calibration"]

# pass -> what it is told besides the file
_TAKES: dict[str, dict[str, str]] = {"palettize": {"weighting": "activation"}, "budget": {}}


def with_calibration(text: str, path: Path) -> Pipeline:
    """The pipeline of ``text``, whose ``palettize`` and ``budget`` go by the statistics in the file ``path``.

    MiloptError where the file can't be read, PassError where no pass takes it.
    """
    Statistics.load(path)  # refused now, and not after the passes before
    given = {"calibration": value_text(str(path))}
    steps = [
        (name, {**options, **_TAKES[name], **given} if name in _TAKES else options)
        for name, options in split_spec(text)
    ]
    if not any(name in _TAKES for name, _ in steps):
        raise PassError(f"no pass of {text!r} goes by a calibration: {' and '.join(_TAKES)} do")
    return Pipeline(tuple(create(name, options) for name, options in steps))

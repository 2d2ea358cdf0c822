"""Reports and verdicts as plain data, for JSON."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from milopt.reports import Miss, Report

if TYPE_CHECKING:
    from milopt.verify.verdict import Verdict

__all__ = ["miss_dict", "plain", "report_dict", "verdict_dict"]


def plain(value: Any) -> Any:
    """``value`` as JSON can hold it: numbers that are not finite and anything unknown become texts."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]  # pyright: ignore[reportUnknownVariableType]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    return str(value)


def miss_dict(miss: Miss) -> dict[str, Any]:
    """A place left alone: rule, function, op, how far the pattern came, and why."""
    return {
        "rule": miss.rule,
        "function": miss.function,
        "place": miss.place,
        "root": miss.root,
        "depth": miss.depth,
        "declined": miss.declined,
        "near": miss.near,
        "reason": miss.reason,
        "source": miss.source,
        "matched": list(miss.matched),
    }


def report_dict(report: Report) -> dict[str, Any]:
    """Everything a report holds, those of its passes inside, every reason included."""
    return {
        "name": report.name,
        "changed": bool(report),
        "applied": report.applied,
        "tried": report.tried,
        "missed": report.missed,
        "seconds": report.seconds,
        "rules": plain(report.rules),
        "misses": [miss_dict(miss) for miss in report.misses],
        "coverage": plain(getattr(report, "coverage", [])),  # a line for each weight, of passes that compress
        "notes": [*report.too_old(), *report.notes],
        "metric": None if report.metric is None else str(report.metric),
        "signature": plain(report.signature),
        "verdicts": [verdict_dict(verdict) for verdict in report.verdicts],
        "passes": [report_dict(part) for part in report.parts],
    }


def verdict_dict(verdict: Verdict) -> dict[str, Any]:
    """What was compared, on what, and what was measured."""
    return {
        "subject": verdict.subject,
        "holds": bool(verdict),
        "text": str(verdict),
        "metric": str(verdict.metric),
        "trials": verdict.trials,
        "tried": list(verdict.tried),
        "seed": verdict.recipe.seed,
        "seconds": verdict.seconds,
        "measured": plain(verdict.measured),
        "safety": plain(verdict.safety),
        "difference": plain(verdict.difference),
    }

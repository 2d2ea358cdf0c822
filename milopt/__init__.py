"""milopt: an optimizing middle-end for Core ML's MIL.

    model = milopt.load("in.mlpackage")
    report = milopt.Pipeline.default().run(model, verify="stage")
    model.save("out.mlpackage")

Names are imported when they are first used, so that ``import milopt`` itself is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from milopt._quiet import silence_start_up

if TYPE_CHECKING:
    from milopt.bisecting import Bisection, bisect
    from milopt.building import Builder
    from milopt.coremltools_passes import coremltools_pipeline
    from milopt.difference import Difference, diff
    from milopt.errors import MiloptError
    from milopt.explaining import Explanation, explain
    from milopt.inspection import Inspection, inspect
    from milopt.interpreter.evaluate import evaluate
    from milopt.interpreter.state import make_state
    from milopt.matching import Match
    from milopt.metrics import Exact, Lossy
    from milopt.package import Model, load
    from milopt.pattern import Const, Ops, Scalar, Value, Values, Weight
    from milopt.pipeline import Pass, Pipeline, RulePass
    from milopt.prediction import Predictor, predict
    from milopt.reports import NoMatch, Report, require
    from milopt.rules import Rule, apply
    from milopt.session import Session
    from milopt.upgrading import upgrade
    from milopt.verify import Verdict, compare, freeze

__all__ = [
    "Bisection",
    "Builder",
    "Const",
    "Difference",
    "Exact",
    "Explanation",
    "Inspection",
    "Lossy",
    "Match",
    "MiloptError",
    "Model",
    "NoMatch",
    "Ops",
    "Pass",
    "Pipeline",
    "Predictor",
    "Report",
    "Rule",
    "RulePass",
    "Scalar",
    "Session",
    "Value",
    "Values",
    "Verdict",
    "Weight",
    "apply",
    "bisect",
    "compare",
    "coremltools_pipeline",
    "diff",
    "evaluate",
    "explain",
    "freeze",
    "inspect",
    "load",
    "make_state",
    "predict",
    "require",
    "upgrade",
]

__version__ = "0.1.0"

_HOMES = {
    "bisecting": ("Bisection", "bisect"),
    "building": ("Builder",),
    "coremltools_passes": ("coremltools_pipeline",),
    "difference": ("Difference", "diff"),
    "errors": ("MiloptError",),
    "explaining": ("Explanation", "explain"),
    "inspection": ("Inspection", "inspect"),
    "interpreter": ("evaluate", "make_state"),
    "matching": ("Match",),
    "metrics": ("Exact", "Lossy"),
    "package": ("Model", "load"),
    "pattern": ("Const", "Ops", "Scalar", "Value", "Values", "Weight"),
    "pipeline": ("Pass", "Pipeline", "RulePass"),
    "prediction": ("Predictor", "predict"),
    "reports": ("NoMatch", "Report", "require"),
    "rules": ("Rule", "apply"),
    "session": ("Session",),
    "upgrading": ("upgrade",),
    "verify": ("Verdict", "compare", "freeze"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}
# Parts with names of their own: milopt.huggingface.convert, milopt.testing.check_rule
_PARTS = ("contracts", "exporting", "huggingface", "observation", "sets", "testing")

silence_start_up()


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"milopt.{_HOME[name]}"), name)
    elif name in _PARTS:
        value = importlib.import_module(f"milopt.{name}")
    else:
        raise AttributeError(f"module 'milopt' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME, *_PARTS])

"""One pass of coremltools on one program: does the program still compute the same?"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from milopt.metrics import Exact
from milopt.mil import Program
from milopt.package import load
from milopt.text import text
from milopt.verify import compare

__all__ = ["LEFT_OUT", "Outcome", "passes", "run_original", "run_pass"]

_CT: Any = importlib.import_module("coremltools")
_REGISTRY: Any = importlib.import_module("coremltools.converters.mil.mil.passes.pass_registry").PASS_REGISTRY

_NAMES = "changes names only, which a comparison goes by"
_NUMBERS = "changes numbers or types on purpose"
LEFT_OUT = {
    "common::add_fp16_cast": _NUMBERS,
    "common::add_int16_cast": _NUMBERS,
    "common::sanitize_input_output_names": _NAMES,
    "common::dedup_op_and_var_names": _NAMES,
    "common::image_input_preprocess": "for programs with image inputs that a converter has marked",
    "common::lower_complex_dialect_ops": "for complex numbers, which no MIL program that is saved has",
    "common::update_output_dtypes": "for output types that a caller of the converter has asked for",
}
"""Passes of the default pipeline that are not tried, and why."""


def passes() -> tuple[str, ...]:
    """The passes of coremltools' default pipeline that must keep every number, each once, in order."""
    return tuple(name for name in dict.fromkeys(_CT.PassPipeline.DEFAULT.passes) if name not in LEFT_OUT)


@dataclass(frozen=True)
class Outcome:
    """What a pass made of a program: ``kind`` is same, rewritten, differs, crashes or invalid."""

    kind: str
    message: str = ""
    after: str = ""

    @property
    def wrong(self) -> bool:
        return self.kind in ("differs", "crashes", "invalid")


def run_original(name: str, program: Program) -> None:
    """Run the pass as coremltools does, in place."""
    _REGISTRY[name](program)


def run_pass(name: str, program: Program, *, rtol: float = 1e-6) -> Outcome:
    """Run the pass on a copy, and compare in float64. EvaluationError where the program can't be run at all."""
    original = load(program)
    model = original.clone()
    before = text(model, weights="hash")
    try:
        run_original(name, model.program)
    except Exception as error:
        return Outcome("crashes", f"{type(error).__name__}: {error}".splitlines()[0])
    try:
        model.program.validate()
        after = text(model, weights="hash")
    except Exception as error:
        return Outcome("invalid", f"{type(error).__name__}: {error}".splitlines()[0])
    if after == before:
        return Outcome("same")
    # fp32 constants hold 7 digits, and a pass may fold two of them: 1e-6, as for milopt's own exact passes
    verdict = compare(original, model, trials=2, metric=Exact(rtol))
    if not verdict:
        return Outcome("differs", str(verdict), after)
    return Outcome("rewritten", "", after)

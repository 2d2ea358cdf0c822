"""coremltools' passes as steps of a milopt pipeline: ``ct:common::const_elimination``.

The name is coremltools' own behind ``ct:``, the options are those that the pass has a setter for. A step is verified
and reported like milopt's own passes. It works on the model's program itself, weights are not copied; where the pass
raises, or leaves what is no valid program, the model is put back as it was and PassError says so. coremltools visits
every function of the program.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, cast

import numpy as np
from coremltools.converters.mil.mil.passes.graph_pass import AbstractGraphPass, PassOption
from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY

from milopt.errors import PassError
from milopt.metrics import Exact, Lossy, Metric
from milopt.mil import Program, arguments, constant, operations, weight_key
from milopt.opaque import Opaque
from milopt.package import Model
from milopt.package.cloning import clone_program
from milopt.package.naming import make_names_unique
from milopt.pipeline import Pass
from milopt.reports import Report
from milopt.text import text

__all__ = ["PREFIX", "CoremltoolsPass", "coremltools_names", "step_class"]

PREFIX = "ct:"
_OURS = "milopt::"
# Passes that change numbers on purpose. A program of many fp16 layers lies at 30 to 60 dB from its float64 run.
_METRICS: dict[str, Metric] = {"common::add_fp16_cast": Lossy(min_snr_db=30)}
# Constants below are axes, scales and the like, which the canonical text writes out.
_LARGE = 16


@dataclass(frozen=True)
class CoremltoolsPass(Pass):
    """A pass of coremltools as a pass of milopt. Subclasses, made by :func:`step_class`, have its options as fields.

    coremltools does not count rewrites: ``applied`` is the number of ops that came or went, constants aside, or 1 where
    only their inputs, constants or weights changed. An op that PyMIL does not know is left to the pass like any other,
    but one that the pass removes makes the step fail: what such an op does is not known.
    """

    name: ClassVar[str] = PREFIX
    pass_id: ClassVar[str] = ""

    def __post_init__(self) -> None:
        state = dict(vars(PASS_REGISTRY.passes[self.pass_id]))
        try:
            self._made()  # a wrong option is told at once
        finally:
            _put_back(PASS_REGISTRY.passes[self.pass_id], state)

    def run(self, model: Model) -> Report:
        report = Report(self.name)
        program, backup = model.program, clone_program(model.program)
        before = _Census(program)
        state = dict(vars(PASS_REGISTRY.passes[self.pass_id]))
        try:
            self._made()(program)
            self._check(program, before, backup)
        except BaseException as error:
            program.functions = backup.functions
            if isinstance(error, Exception) and not isinstance(error, PassError):
                what = " ".join(str(error).split())
                raise PassError(f"{self.name}: coremltools raises {type(error).__name__}: {what}") from error
            raise
        finally:
            _put_back(PASS_REGISTRY.passes[self.pass_id], state)
        make_names_unique(program)
        before.report(_Census(program), report, changed=_differ(backup, program))
        return report

    def _made(self) -> AbstractGraphPass:
        """coremltools' pass with its options set. PassError where coremltools refuses one of them."""
        made = PASS_REGISTRY[self.pass_id]
        given = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        options = [PassOption(name, value) for name, value in given.items() if value is not None]
        try:
            made.set_options(options)
        except Exception as error:
            raise PassError(f"{self.name}: {' '.join(str(error).split())}") from error
        return made

    def _check(self, program: Program, before: _Census, backup: Program) -> None:
        left = {op for function in program.functions.values() for op in operations(function)}
        if gone := [op for op in before.ops if isinstance(op, Opaque) and op not in left]:
            raise PassError(f"{self.name} removed {gone[0].name}, a {gone[0].op_type}, which PyMIL does not know")
        try:
            program.validate()
        except Exception as error:
            if _is_valid(backup):
                raise PassError(
                    f"{self.name} leaves what is no valid program: {' '.join(str(error).split())}"
                ) from error


def _is_valid(program: Program) -> bool:
    try:
        program.validate()
    except Exception:
        return False
    return True


def _put_back(cls: type[Any], state: dict[str, Any]) -> None:
    """Take back what options changed on the class itself, where coremltools keeps some of them."""
    for name, value in state.items():
        if not name.startswith("__") and vars(cls).get(name) is not value:
            setattr(cls, name, value)


class _Census:
    """The ops of a program, to be told apart later."""

    def __init__(self, program: Program) -> None:
        every = [op for function in program.functions.values() for op in operations(function)]
        self.ops = dict.fromkeys(op for op in every if op.op_type != "const")
        self.names = {op: op.name for op in self.ops}
        self.functions = set(program.functions)

    def report(self, after: _Census, report: Report, *, changed: bool) -> None:
        gone = Counter(op.op_type for op in self.ops if op not in after.ops)
        new = Counter(op.op_type for op in after.ops if op not in self.ops)
        report.tried = len(self.ops)
        renamed = sum(name != after.names.get(op, name) for op, name in self.names.items())
        if changed:
            report.applied = gone.total() + new.total() or 1
            moves = [*_counted("-", gone - new), *_counted("+", new - gone)]
            report.notes.append(f"ops: {', '.join(moves)}" if moves else "as many ops of every type as before")
        if added := sorted(after.functions - self.functions):
            report.notes.append(f"new functions: {', '.join(added)}")
        if renamed:
            report.notes.append(f"{renamed} ops renamed")


def _counted(sign: str, counts: Counter[str]) -> Iterator[str]:
    return (f"{sign}{count} {kind}" for kind, count in sorted(counts.items()))


def _differ(before: Program, after: Program) -> bool:
    """Whether the canonical text or any weight is another; only weights that lie elsewhere now are read."""
    if text(before) != text(after):
        return True
    if list(_weights(before)) == list(_weights(after)):
        return False
    return text(before, weights="hash") != text(after, weights="hash")


def _weights(program: Program) -> Iterator[tuple[object, ...]]:
    """Where every large constant lies, in order of use."""
    for function in program.functions.values():
        for op in operations(function):
            for _, var in arguments(op):
                value: Any = constant(var)
                if np.size(value) > _LARGE and hasattr(value, "__array_interface__"):
                    yield weight_key(value)


def coremltools_names() -> tuple[str, ...]:
    """Every pass that coremltools knows, with ``ct:`` in front; milopt's own are not among them."""
    return tuple(f"{PREFIX}{each}" for each in sorted(PASS_REGISTRY.passes) if not each.startswith(_OURS))


@cache
def step_class(name: str) -> type[CoremltoolsPass]:
    """The class of the step ``name`` (``ct:common::...``). PassError, with near names, where there is no such pass."""
    pass_id = name.removeprefix(PREFIX)
    if pass_id.startswith(_OURS):
        raise PassError(f"{name} is milopt's own pass: write {pass_id.removeprefix(_OURS)}")
    known = coremltools_names()
    if name not in known:
        same = [each for each in known if each.rpartition(":")[2] == name.rpartition(":")[2]]
        near = same or difflib.get_close_matches(name, known, n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else "`milopt passes ct:` lists them"
        raise PassError(f"coremltools has no pass named {pass_id!r}; {hint}")
    theirs = PASS_REGISTRY.passes[pass_id]
    if not inspect.isclass(theirs) or _needs_arguments(theirs):
        raise PassError(f"{name} can't be a step: coremltools makes it only with arguments that no text can say")
    if "config" in _options(theirs):
        raise PassError(f"{name} can't be a step: it needs a configuration object; call coremltools.optimize.coreml")
    made = dataclasses.make_dataclass(
        f"coremltools_{pass_id.replace('::', '_')}",
        [(option, Any, dataclasses.field(default=None)) for option in _options(theirs)],
        bases=(CoremltoolsPass,),
        namespace={
            "name": name,
            "pass_id": pass_id,
            "metric": _METRICS.get(pass_id, Exact()),
            "__doc__": inspect.cleandoc(theirs.__doc__ or f"coremltools' {pass_id}."),
            "__module__": __name__,
        },
        frozen=True,
    )
    return cast("type[CoremltoolsPass]", made)


def _needs_arguments(theirs: type[Any]) -> bool:
    parameters = inspect.signature(theirs).parameters.values()
    return any(
        each.default is each.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD) for each in parameters
    )


def _options(theirs: type[Any]) -> list[str]:
    """The properties with a setter, which is how coremltools' passes declare options."""
    found = {name: getattr(theirs, name, None) for name in dir(theirs)}
    return [name for name, each in found.items() if isinstance(each, property) and each.fset is not None]

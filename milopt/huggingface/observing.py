"""Does the converted program compute what the model computes? Asked while nothing of it is rounded to fp16 yet.

coremltools rounds in one of its passes. Just before it, the program is run in milopt's interpreter in float64, so that
what a converter got wrong is not lost among roundings; and its ops still know the modules they came from.
"""

from __future__ import annotations

import importlib
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from milopt.huggingface.attaching import require_attributable
from milopt.huggingface.nodewise import first_parting_node
from milopt.huggingface.recording import Calls, called_path, first_parting
from milopt.huggingface.selfcheck import named, parts, require_same
from milopt.huggingface.standins import real_weights
from milopt.interpreter import Step, compile
from milopt.mil import Program, operations

if TYPE_CHECKING:
    from milopt.huggingface.samples import Sample
    from milopt.huggingface.tracing import Traced

__all__ = ["observed"]

_PASS = "milopt::observe"
_ROUNDING = "common::add_fp16_cast"


@contextmanager
def observed(traced: Traced, pipeline: Any, *, stand_ins: bool = False) -> Generator[None]:
    """Put the check into ``pipeline``, a coremltools one, for the length of a conversion.

    coremltools keeps its passes in a registry for the whole process, which does not know this one otherwise. Where
    there are ``stand_ins`` for weights, nothing may have been computed from them.
    """
    registry = importlib.import_module("coremltools.converters.mil.mil.passes.pass_registry").PASS_REGISTRY
    graph_pass = importlib.import_module("coremltools.converters.mil.mil.passes.graph_pass").AbstractGraphPass

    class Observe(graph_pass):  # type: ignore[misc, valid-type]
        def apply(self, prog: Program) -> None:
            if stand_ins:
                require_attributable(prog)
            with real_weights():
                _require_same(traced, prog)

    place = pipeline.passes.index(_ROUNDING) if _ROUNDING in pipeline.passes else len(pipeline.passes)
    registry.passes[_PASS] = Observe
    try:
        pipeline.insert_pass(place, _PASS)
        yield
    finally:
        del registry.passes[_PASS]


def _require_same(traced: Traced, program: Program) -> None:
    # weights are prepared at each use: a float64 copy of them all would be four times the package
    plan = compile(program, precision="float64", keep_weights=False)
    for sample in traced.samples:
        feeds = {name: sample.feeds[name].numpy() for name in plan.inputs}
        got = {name: value.float() for name, value in plan.run(feeds).items()}
        require_same(
            "the converted program",
            sample.wanted,
            got,
            where=lambda sample=sample: _where(traced, program, sample),  # type: ignore[misc]
        )


def _where(traced: Traced, program: Program, sample: Sample) -> str | None:
    """Where the program first parts from torch: the line of an exported model, the module of a traced one, if known."""
    if traced.route == "export" and (place := first_parting_node(traced.module, sample.feeds, program)) is not None:
        return place
    model = traced.wrapper.model
    expected = traced.calls(sample)
    watch = _Watch(model, program, expected)
    plan = compile(program, precision="float64", keep_weights=False)
    plan.run({name: sample.feeds[name].numpy() for name in plan.inputs}, listeners=[watch])
    return named(model, first_parting(expected, watch.given.parted, watch.taken.parted))


class _Found:
    """Of each module: was one of the program's values what the module gave (or took), or was none of them?"""

    def __init__(self) -> None:
        self.same: dict[str, bool] = {}

    def compare(self, path: str, wanted: torch.Tensor | None, value: torch.Tensor) -> None:
        if wanted is None or self.same.get(path) or not value.is_floating_point() or wanted.numel() != value.numel():
            return
        if (differs := parts(wanted, value.float())) is not None:
            self.same[path] = not differs

    def parted(self, path: str) -> bool:
        return self.same.get(path) is False


class _Watch:
    """Listens to a run and compares the values of each module's ops with what the module took and gave."""

    def __init__(self, model: Any, program: Program, expected: Calls) -> None:
        self.given, self.taken = _Found(), _Found()
        self._expected = expected
        self._modules: dict[str, list[str]] = {}
        paths = {called_path(model, path): path for path in expected}
        for function in program.functions.values():
            for op in operations(function):
                scope = _scope(op)
                inside = [scope[:length] for length in range(1, len(scope) + 1)]
                self._modules[op.name] = [paths[each] for each in inside if each in paths]

    def before(self, step: Step, values: Mapping[str, Any]) -> None:
        self._each(step, values, self.taken, "taken")

    def after(self, step: Step, outputs: Mapping[str, torch.Tensor]) -> None:
        self._each(step, outputs, self.given, "given")

    def _each(self, step: Step, values: Mapping[str, Any], found: _Found, what: str) -> None:
        for path in self._modules.get(step.name, ()):
            for value in values.values():
                if isinstance(value, torch.Tensor):
                    found.compare(path, getattr(self._expected[path], what), value)


def _scope(op: Any) -> tuple[str, ...]:
    """The called modules inside the model that an op came from, outermost first. The wrapper's name for it is left out.

    torch's tracer does not name lists of modules, torch.export does so in front of their items.
    """
    for source, names in getattr(op, "scopes", {}).items():
        if source.name == "TORCHSCRIPT_MODULE_NAME":
            return tuple(str(name).rpartition(".")[2] for name in names[1:])
    return ()

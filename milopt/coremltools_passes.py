"""milopt's passes inside a coremltools conversion: ``milopt::fuse-sdpa`` in a ``ct.PassPipeline``.

Nothing is registered before :func:`register` or :func:`coremltools_pipeline` is called, and only under ``milopt::``.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from coremltools.converters.mil.mil.passes.graph_pass import AbstractGraphPass, PassOption
from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY

from milopt.coremltools_steps import CoremltoolsPass
from milopt.errors import PassError
from milopt.mil import Program
from milopt.package import load
from milopt.pipeline import Pass, Pipeline
from milopt.registry import create, names
from milopt.reports import Report
from milopt.spec import split_spec, value_text

__all__ = ["coremltools_pipeline", "register"]

NAMESPACE = "milopt"


class _Adapter(AbstractGraphPass):
    """A milopt pass as coremltools runs it: on a bare program, its options as the texts of a pipeline spec."""

    name: ClassVar[str]

    def __init__(self) -> None:
        self._pass: Pass | None = None

    def set_options(self, pass_options: list[PassOption] | None = None) -> None:
        options = {option.option_name: _text(option.option_val) for option in pass_options or ()}
        self._pass = create(self.name, options)

    def apply(self, prog: Program) -> None:
        model = load(prog)
        metadata = dict(model.metadata)
        report: Report = (self._pass or create(self.name)).run(model)
        if report.signature is not None or model.metadata != metadata:
            raise PassError(
                f"{self.name} changes what the package says of itself, which a conversion does not carry over; "
                "load the converted model with milopt.load and run the pass there"
            )


def _text(value: Any) -> str:
    """An option as a pipeline's text has it; a text is taken for that already."""
    return value if isinstance(value, str) else value_text(value)


def register() -> tuple[str, ...]:
    """Make every pass known to coremltools as ``milopt::<name>``; returns these names. Calling it again is harmless."""
    for name in names():
        if f"{NAMESPACE}::{name}" not in PASS_REGISTRY:
            adapter = type(f"milopt_{name.replace('-', '_')}", (_Adapter,), {"name": name})
            PASS_REGISTRY.add(NAMESPACE, adapter, override=False, name=name)
    return tuple(f"{NAMESPACE}::{name}" for name in names())


def coremltools_pipeline(passes: str | Pipeline, *, base: Any = None) -> Any:
    """A ``ct.PassPipeline``: ``base`` (coremltools' default pipeline), then milopt's ``passes``.

        ct.convert(traced, ..., pass_pipeline=milopt.coremltools_pipeline("fuse-sdpa,linear-to-conv"))

    ``passes`` is a pipeline or its text; a step ``ct:common::...`` becomes coremltools' pass itself. Raises PassError
    where the text is wrong, or where one pass is there twice with different options: coremltools keeps one set of
    options per pass. ``base`` itself is left as it is.
    """
    import coremltools

    steps = (passes if isinstance(passes, Pipeline) else Pipeline.parse(passes)).passes
    register()
    original = coremltools.PassPipeline.DEFAULT if base is None else base
    pipeline = coremltools.PassPipeline(list(original.passes), f"{original.pipeline_name} + milopt")
    pipeline.set_options_by_another_pipeline(original)
    chosen: dict[str, dict[str, Any]] = {}
    for each in steps:
        name, options = _step(each)
        earlier = {option.option_name: option.option_val for option in original.get_options(name) or ()}
        if chosen.setdefault(name, options) != options or (earlier and options != earlier):
            raise PassError(f"{each.name} is there twice with different options, of which coremltools keeps one")
        pipeline.append_pass(name)
    for name, options in chosen.items():
        if options:
            pipeline.set_options(name, options, override=True)
    return pipeline


def _step(each: Pass) -> tuple[str, dict[str, Any]]:
    """The name and the options that coremltools knows a pass by."""
    if isinstance(each, CoremltoolsPass):
        given = {field.name: getattr(each, field.name) for field in dataclasses.fields(each)}
        return each.pass_id, {name: value for name, value in given.items() if value is not None}
    if each.name not in names():
        raise PassError(f"{each.name} has no name that coremltools could call it by: it is not among `milopt passes`")
    ((_, options),) = split_spec(str(each))
    return f"{NAMESPACE}::{each.name}", dict(options)

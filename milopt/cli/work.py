"""What ``optimize`` and ``convert`` have in common: run a pipeline, save, report."""

from __future__ import annotations

from pathlib import Path

from milopt.census import census, package_bytes
from milopt.cli.console import Steps, output, steps
from milopt.cli.options import Verify
from milopt.cli.tables import print_census, print_passes, size
from milopt.package import Model
from milopt.pipeline import Pipeline
from milopt.reports import Report

__all__ = ["optimize_and_save", "pipeline_of", "run_pipeline"]


def pipeline_of(passes: str | None) -> Pipeline:
    """The pipeline that ``--passes`` spells; the default one for ``None``."""
    return Pipeline.default() if passes is None else Pipeline.parse(passes)


def run_pipeline(model: Model, pipeline: Pipeline, *, verify: Verify, tell: Steps) -> Report:
    """Run and verify, telling each step. Raises VerificationError where a verdict does not hold."""
    return pipeline.run(
        model,
        verify=None if verify is Verify.none else verify.value,
        before=lambda each: tell(f"{each}"),
        callbacks=[] if verify is Verify.none else [lambda each, _report, _model: tell(f"{each}, then compare")],
    )


def optimize_and_save(
    model: Model,
    pipeline: Pipeline,
    destination: Path,
    *,
    source: Path | None = None,
    verify: Verify,
    force: bool,
    verbose: bool,
) -> None:
    """The whole of ``milopt optimize`` once the input is read: passes, verdicts, tables, and the saved package."""
    console = output()
    before = census(model)
    with steps(verbose=verbose) as tell:
        report = run_pipeline(model, pipeline, verify=verify, tell=tell)
        tell(f"save {destination.name}")
        model.save(destination, overwrite=force)
    print_census(console, before, census(model), everything=verbose)
    print_passes(console, report, reasons=verbose)
    for verdict in report.verdicts:
        console.print(str(verdict), markup=False)
    was = f" (before: {size(package_bytes(source))})" if source is not None else ""
    console.print(f"{destination}: {size(package_bytes(destination))}{was}", markup=False)

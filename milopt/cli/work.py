"""What ``optimize`` and ``convert`` have in common: run a pipeline, save, report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from milopt.bisecting import bisect, check_folder
from milopt.calibration.applying import with_calibration
from milopt.census import Census, census, package_bytes
from milopt.cli.console import Steps, output, steps
from milopt.cli.options import Verify
from milopt.cli.tables import print_census, print_passes, size
from milopt.dumping import Dump, printer
from milopt.errors import MiloptError, VerificationError
from milopt.package import Model
from milopt.pipeline import DEFAULT, Callback, Pipeline
from milopt.reporting import report_dict
from milopt.reports import Report
from milopt.upgrading import Upgrade

__all__ = ["Watching", "optimize_and_save", "pipeline_of", "run_pipeline"]


def pipeline_of(passes: str | None, upgrade_to: str | None = None, calibration: Path | None = None) -> Pipeline:
    """The pipeline that ``--passes`` spells, the default one for ``None``; before it an upgrade to a newer target.

    ``calibration`` is a file that the passes which take one are given.
    """
    text = DEFAULT if passes is None else passes
    pipeline = Pipeline.parse(text) if calibration is None else with_calibration(text, calibration)
    return pipeline if upgrade_to is None else Pipeline((Upgrade(upgrade_to), *pipeline.passes))


@dataclass(frozen=True)
class Watching:
    """What ``optimize`` does besides: ``callbacks`` told of every pass, a search for what breaks equality."""

    callbacks: tuple[Callback, ...] = ()
    dump: Dump | None = None
    bisect: Path | None = None
    json: bool = False

    @classmethod
    def of(
        cls,
        pipeline: Pipeline,
        destination: Path,
        *,
        verify: Verify,
        bisect: bool,
        print_after: Sequence[str],
        dump_dir: Path | None,
        json: bool,
        force: bool,
    ) -> Watching:
        """From the options. MiloptError where they exclude each other, or name what can't be written."""
        if bisect and verify is Verify.none:
            raise MiloptError("--bisect needs comparisons: leave out --verify none")
        if json and print_after:
            raise MiloptError("--json prints nothing else: write the texts to files with --dump-dir")
        folder = destination.with_suffix(".bisect") if bisect else None
        if folder is not None:
            check_folder(folder, overwrite=force)
        dump = None if dump_dir is None else Dump(dump_dir, overwrite=force)
        shown = [printer(print_after, pipeline, print)] if print_after else []
        return cls((*shown, *([] if dump is None else [dump])), dump, folder, json)


def run_pipeline(
    model: Model,
    pipeline: Pipeline,
    *,
    functions: Sequence[str] | None = None,
    verify: Verify,
    tell: Steps,
    callbacks: Sequence[Callback] = (),
) -> Report:
    """Run and verify, telling each step. Raises VerificationError where a verdict does not hold."""
    telling: list[Callback] = [lambda each, _report, _model: tell(f"{each}, then compare")]
    return pipeline.run(
        model,
        functions=functions or None,
        verify=None if verify is Verify.none else verify.value,
        before=lambda each: tell(f"{each}"),
        callbacks=[*callbacks, *(telling if verify is not Verify.none else [])],
    )


def optimize_and_save(
    model: Model,
    pipeline: Pipeline,
    destination: Path,
    *,
    source: Path | None = None,
    functions: Sequence[str] | None = None,
    verify: Verify,
    force: bool,
    verbose: bool,
    watching: Watching | None = None,
) -> None:
    """The whole of ``milopt optimize`` once the input is read: passes, verdicts, tables, and the saved package."""
    watching = watching or Watching()
    console = output()
    before, original = census(model), model.clone() if watching.bisect is not None else None
    if watching.dump is not None:
        watching.dump.start(model)
    with steps(verbose=verbose) as tell:
        try:
            report = run_pipeline(
                model, pipeline, functions=functions, verify=verify, tell=tell, callbacks=watching.callbacks
            )
        except VerificationError as error:
            tell("bisect")
            told = None if original is None else _bisected(original, pipeline, functions, watching, force)
            if watching.json and isinstance(error.report, Report):
                _print_json(_document(error.report, before, census(model), source, None, told))
            elif told is not None:
                console.print(told["text"], markup=False, soft_wrap=True)
            raise
        tell(f"save {destination.name}")
        model.save(destination, overwrite=force)
    if watching.json:
        _print_json(_document(report, before, census(model), source, destination, None))
        return
    print_census(console, before, census(model), everything=verbose)
    print_passes(console, report, reasons=verbose)
    for verdict in report.verdicts:
        console.print(str(verdict), markup=False)
    was = f" (before: {size(package_bytes(source))})" if source is not None else ""
    console.print(f"{destination}: {size(package_bytes(destination))}{was}", markup=False)


def _bisected(
    original: Model, pipeline: Pipeline, functions: Sequence[str] | None, watching: Watching, force: bool
) -> dict[str, Any]:
    """Find what breaks equality, write the reproduction, and say both; as it is told, and as JSON has it."""
    assert watching.bisect is not None
    found = bisect(original, pipeline, functions=functions or None)
    if found is None:
        return {"text": "bisect: every pass by itself keeps to its metric; they break equality together"}
    folder = found.save(watching.bisect, overwrite=force)
    return {**found.as_dict(), "folder": str(folder), "text": f"{found}\nreproduction: {folder}/reproduce.py"}


def _document(
    report: Report,
    before: Census,
    after: Census,
    source: Path | None,
    destination: Path | None,
    bisection: dict[str, Any] | None,
) -> dict[str, Any]:
    """All there is to say of a run."""
    return {
        "source": None if source is None else str(source),
        "destination": None if destination is None else str(destination),
        "passes": report.name,
        "equal": all(report.verdicts) if report.verdicts else None,
        "report": report_dict(report),
        "ops": {name: {"before": before.ops.get(name), "after": after.ops[name]} for name in after.functions},
        "states": {"before": before.states, "after": after.states},
        "weight_bytes": {"before": before.weight_bytes, "after": after.weight_bytes},
        "package_bytes": {
            "before": None if source is None else package_bytes(source),
            "after": None if destination is None else package_bytes(destination),
        },
        "bisection": bisection,
    }


def _print_json(document: dict[str, Any]) -> None:
    print(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))

"""A pass on some functions of a model, and what becomes of the weights that these share with the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from milopt.package.tensors import Stored, stored_tensors
from milopt.reports import Report

if TYPE_CHECKING:
    from milopt.package import Model
    from milopt.pipeline import Pass

__all__ = ["run_on"]


def run_on(each: Pass, model: Model, functions: Sequence[str] | None) -> Report:
    """Run the pass on the named functions, or on all for ``None`` and where it is one for ``all_functions``.

    The report notes which weights the named functions have no longer in common with the others: those are stored
    twice from then on. :class:`~milopt.errors.MiloptError` for an unknown function.
    """
    for name in functions or ():
        model.function(name)
    if functions is None or each.all_functions:
        return each.run(model)
    before = _shared(model, functions)
    with model.only(functions):
        report = each.run(model)
    if report and (parted := before.keys() - _shared(model, functions).keys()):
        size = sum(before[key].bytes for key in parted)
        report.notes.append(
            f"weights that {', '.join(dict.fromkeys(functions))} had in common with other functions and now has not: "
            f"{len(parted)} of {size:,} bytes, which are stored beside the new ones"
        )
    return report


def _shared(model: Model, functions: Sequence[str]) -> dict[object, Stored]:
    """The tensors that some of ``functions`` and some others have in common, by key."""
    named = set(functions)
    return {each.key: each for each in stored_tensors(model) if (used := set(each.functions)) & named and used - named}

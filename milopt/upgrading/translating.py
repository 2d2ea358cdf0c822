"""A model for an older system becomes one for a newer one: the same ops in a newer opset, and they mean the same."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

from milopt.errors import MiloptError
from milopt.mil import Function, Operation, Target, is_removed, operations, value_names
from milopt.opaque import Opaque
from milopt.package.arguments import op_class
from milopt.package.cloning import clone_program
from milopt.reports import NoMatch, Report, require
from milopt.upgrading.changes import Change, changes_of
from milopt.upgrading.compressed import as_blocks, as_inputs, as_mask, as_table
from milopt.upgrading.crops import crop_by_boxes
from milopt.upgrading.editing import Edit, Translation
from milopt.upgrading.indices import count_from_start
from milopt.upgrading.plain import clip_in_two, say_sizes, suppress_boxes
from milopt.upgrading.relabeling import relabel
from milopt.upgrading.targets import target_named

if TYPE_CHECKING:
    from milopt.package import Model

__all__ = ["TRANSLATIONS", "upgrade"]

TRANSLATIONS: dict[tuple[str, Target], Translation] = {
    ("clip", Target.iOS17): clip_in_two,
    ("constexpr_affine_dequantize", Target.iOS18): as_blocks,
    ("constexpr_cast", Target.iOS18): as_inputs,
    ("constexpr_lut_to_dense", Target.iOS18): as_table,
    ("constexpr_sparse_to_dense", Target.iOS18): as_mask,
    ("crop_resize", Target.iOS17): crop_by_boxes,
    ("gather", Target.iOS17): count_from_start,
    ("gather_along_axis", Target.iOS17): count_from_start,
    ("gather_nd", Target.iOS17): count_from_start,
    ("non_maximum_suppression", Target.iOS17): suppress_boxes,
    ("reshape", Target.iOS17): say_sizes,
    ("scatter", Target.iOS17): count_from_start,
    ("scatter_along_axis", Target.iOS17): count_from_start,
    ("scatter_nd", Target.iOS17): count_from_start,
}
"""How the ops are translated that the table of changes says must be, by op type and the opset that changed it."""


def upgrade(model: Model, target: str) -> Report:
    """Make ``model`` one for ``target`` ("iOS18", "macOS15"), in place: its specification and every function's opset.

    Ops whose meaning or form changed between the opsets (:data:`milopt.upgrading.CHANGES`) are translated, so that the
    model computes what it did. The report is true if anything changed, and its notes say what was translated.

    :class:`~milopt.errors.MiloptError` for an unknown target, one older than the model, and an op that is not known to
    mean the same; the model is then as it was. An op that coremltools knows and whose inputs it refuses is carried
    where no row of the table would translate it: it is refused for types of its inputs, and opsets only add to those.
    One of a type that coremltools does not know is refused: nobody can tell what a newer opset makes of it.
    """
    wanted = target_named(target)
    functions = {**model.functions, **model.aside}
    newest = max([model.spec_version, *(_opset(each) for each in functions.values())])
    if newest > wanted:
        raise MiloptError(
            f"the model is for {Target(newest).name} (specification version {newest}); "
            f"{wanted.name} is older, and milopt only upgrades"
        )
    if model.aside:
        raise MiloptError(f"all functions are upgraded, and {', '.join(map(repr, model.aside))} are set aside")
    report = Report("upgrade")
    clone = clone_program(model.program)
    for name, function in clone.functions.items():
        _upgrade_function(name, function, wanted, report)
    if model.spec_version < wanted:
        report.applied += 1
        report.notes.insert(0, f"specification version {model.spec_version} -> {int(wanted)} ({wanted.name})")
    if not report:
        report.notes.append(f"the model is for {wanted.name} already")
        return report
    model.program.functions.update(clone.functions)
    model.spec_version = int(wanted)
    return report


def _opset(function: Function) -> int:
    return max(int(Target.iOS15), int(function.opset_version))


def _upgrade_function(name: str, function: Function, wanted: Target, report: Report) -> None:
    before = _opset(function)
    if before == wanted:
        return
    function.opset_version = wanted  # what is built from here on is built for it
    edit = Edit(value_names(function))
    translated: Counter[str] = Counter()
    reasons: dict[str, str] = {}
    ops = [op for op in operations(function) if op.op_type != "const" or isinstance(op, Opaque)]
    for op in ops:
        change = _upgrade_op(op, before, wanted, edit, name)
        if change is not None:
            translated[op.op_type] += 1
            reasons[op.op_type] = change.text
    report.tried += len(ops)
    report.applied += 1 + translated.total()
    report.notes.append(
        f"function {name!r}: {Target(before).name} -> {wanted.name}, {translated.total()} of {len(ops)} ops translated"
    )
    for op_type, count in sorted(translated.items()):
        report.notes.append(f"{count} {op_type}: {reasons[op_type]}")


def _upgrade_op(op: Operation, before: int, wanted: Target, edit: Edit, function: str) -> Change | None:
    """Translate the op if it needs that, and say why it did; MiloptError where it can't be."""
    done: Change | None = None
    try:
        changes = _changes(op, before, wanted)
        for change in changes:
            if change.kind.translated and TRANSLATIONS[op.op_type, change.since](op, edit):
                done = change
        if changes and not is_removed(op) and not isinstance(op, Opaque):
            relabel(op, op_class(op.op_type, wanted), edit)
    except NoMatch as why:
        raise MiloptError(
            f"function {function!r}: {op.op_type} {op.name!r} can't be upgraded from {Target(before).name} to "
            f"{wanted.name}: {why}"
        ) from why
    return done


def _changes(op: Operation, before: int, wanted: Target) -> list[Change]:
    """What changed for the op since its opset; NoMatch where that is not known."""
    known = op.op_type in SSAOpRegistry.core_ops
    if not isinstance(op, Opaque) and not known:
        return []  # a dialect's op, or one that a user registered: of no opset
    require(known, "coremltools does not know it")
    require(op_class(op.op_type, wanted) is not None, "{} has no such op", wanted.name)
    opset: Any = op.opset_version
    first = before if opset is None else max(before, int(opset))
    changes = list(changes_of(op.op_type, first, wanted))
    explained = {change.since for change in changes}
    for each in Target:
        if first < each <= wanted and each not in explained:
            same = op_class(op.op_type, each) is op_class(op.op_type, Target(each - 1))
            require(same, "it is not known how {} changed it", each.name)
    if isinstance(op, Opaque):
        translated = [change.text for change in changes if change.kind.translated]
        require(not translated, "coremltools refuses its inputs, so it is not translated: {}", "; ".join(translated))
    return changes

"""The table of changes says of every op that coremltools has several classes of what became of it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

from milopt.mil import Target, operations
from milopt.package.arguments import op_class
from milopt.upgrading import CHANGES, Change
from milopt.upgrading.translating import TRANSLATIONS
from tests.upgrading.cases import CASES
from tests.upgrading.compressed import COMPRESSED

OPSETS = (Target.iOS15, Target.iOS16, Target.iOS17, Target.iOS18, Target.iOS26)
STEPS = [
    (op_type, later)
    for op_type in sorted(SSAOpRegistry.core_ops)
    for before, later in pairwise(OPSETS)
    if op_class(op_type, before) is not None and op_class(op_type, later) is not op_class(op_type, before)
]
TABLE = {(op_type, row.since) for row in CHANGES for op_type in row.op_types}
# It has no class of its own in iOS18, but a successor.
SUCCEEDED = {("constexpr_affine_dequantize", Target.iOS18)}


def test_the_table_has_every_op_that_changed_and_no_other() -> None:
    assert len(STEPS) >= 59
    assert set(STEPS) | SUCCEEDED == TABLE


def test_what_has_to_be_translated_is() -> None:
    needed = {(op_type, row.since) for row in CHANGES if row.kind.translated for op_type in row.op_types}
    assert set(TRANSLATIONS) == needed


@pytest.mark.parametrize("row", CHANGES, ids=lambda row: f"{row.since.name} {row.op_types[0]}")
def test_a_row_tells_what_its_source_does(row: Change) -> None:
    """Ops of a row are defined in the file it names, and only the kinds that say so have other inputs or defaults."""
    for op_type in row.op_types:
        new, old = op_class(op_type, row.since), op_class(op_type, Target(row.since - 1))
        if (op_type, row.since) in SUCCEEDED:
            continue
        assert new.__module__.endswith(row.source.removesuffix(".py").replace("/", "."))
        before, after = set(old.input_spec.input_types), set(new.input_spec.input_types)
        kinds = {each.kind.name for each in CHANGES if op_type in each.op_types and each.since == row.since}
        if kinds & {"INTERFACE"}:
            assert before - after
        else:
            assert before <= after
            assert bool(after - before) == ("INPUTS" in kinds)


def _defaults(kind: Any, op: Any) -> dict[str, Any]:
    made: Any = object.__new__(kind)
    made.__dict__ = op.__dict__
    return dict(made.default_inputs().items())


def test_defaults_stay_what_they_were() -> None:
    """An input that was there before has the default that it had, in every case of the tests."""
    seen: set[str] = set()
    for case in CASES:
        for op in operations(case.program().functions["main"]):
            if op.op_type in {each for row in CHANGES for each in row.op_types} and op.op_type != "crop_resize":
                new = op_class(op.op_type, Target.iOS18)
                old, now = _defaults(type(op), op), _defaults(new, _with_inputs(op, new))
                assert {name: repr(now[name]) for name in old} == {name: repr(value) for name, value in old.items()}
                seen.add(op.op_type)
    assert len(seen) > 40


def _with_inputs(op: Any, kind: Any) -> Any:
    for name in kind.input_spec.input_types:
        if not hasattr(op, name):
            op.__dict__[name] = None
    return op


def test_the_cases_have_every_op_that_changed() -> None:
    """Each row is met by a program of an opset before it."""
    met: set[tuple[str, Target]] = set()
    for case in [*CASES, *COMPRESSED]:
        kinds = {op.op_type for op in operations(case.program().functions["main"])}
        met |= {(op_type, since) for op_type, since in TABLE if op_type in kinds and case.opset < since}
    assert met == TABLE

"""Every rule and pass of milopt, on programs of its own pattern and on ones that miss it by a detail.

``make fuzz`` runs the same on thousands of programs.
"""

from __future__ import annotations

import pytest

from milopt.pipeline import Pass
from milopt.testing import check_pass, check_rule
from tests.testing.subjects import SUBJECTS, Subject, pass_names, rule_classes

# coremltools computes with NaN and infinity as well, while it builds
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

every_subject = pytest.mark.parametrize("subject", SUBJECTS, ids=[each.name for each in SUBJECTS])


def test_none_is_left_out() -> None:
    assert {type(each.of) for each in SUBJECTS} >= set(rule_classes())
    assert {each.of.name for each in SUBJECTS if isinstance(each.of, Pass)} == set(pass_names())


@every_subject
def test_programs_of_its_pattern(subject: Subject) -> None:
    if isinstance(subject.of, Pass):
        check_pass(subject.of, subject.matching, max_examples=5)
    else:
        check_rule(subject.of, subject.matching, max_examples=20, metric=subject.metric)


@every_subject
def test_near_misses(subject: Subject) -> None:
    if isinstance(subject.of, Pass):
        check_pass(subject.of, subject.near, max_examples=3, must_fire=False)
    else:
        check_rule(subject.of, subject.near, max_examples=5, metric=subject.metric, must_fire=False)

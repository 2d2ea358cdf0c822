"""Every op gives what an independent oracle says, and what coremltools infers."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from milopt.testing.ops.families import CASES
from milopt.testing.ops.framework import Case

# coremltools computes with NaN and infinity as well, while it builds
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

# derandomized: a failure on one machine is a failure on all; without a deadline: machines are shared
settings.register_profile(
    "properties",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
PROFILE = settings.get_profile("properties")
FEW = settings(PROFILE, max_examples=12)
MANY = settings(PROFILE, max_examples=20 * FEW.max_examples)

every_case = pytest.mark.parametrize("case", CASES, ids=str)
inferred_cases = pytest.mark.parametrize("case", [each for each in CASES if not each.not_inferred], ids=str)


@every_case
@FEW
@given(data=st.data())
def test_the_op_is_its_oracle(case: Case, data: st.DataObject) -> None:
    case.check(data)


@pytest.mark.slow
@every_case
@MANY
@given(data=st.data())
def test_the_op_is_its_oracle_in_many_examples(case: Case, data: st.DataObject) -> None:
    case.check(data)


@inferred_cases
@FEW
@given(data=st.data())
def test_the_op_is_what_coremltools_infers(case: Case, data: st.DataObject) -> None:
    case.check_inference(data)


@pytest.mark.slow
@inferred_cases
@MANY
@given(data=st.data())
def test_the_op_is_what_coremltools_infers_in_many_examples(case: Case, data: st.DataObject) -> None:
    case.check_inference(data)

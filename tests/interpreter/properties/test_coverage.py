"""No op without a property, or a reason; and properties that can fail."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from milopt.interpreter.ops import core
from milopt.testing.ops.comparing import EXACT, Oracle, Within, agree
from milopt.testing.ops.drawing import Draw
from milopt.testing.ops.families import CASES
from milopt.testing.ops.framework import Call, Case
from milopt.testing.ops.untyped import np
from tests.interpreter.properties.test_properties import PROFILE

# coremltools computes with NaN and infinity as well, while it builds
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

RANDOM = "its values are open; test_selection checks their distribution and that a seed repeats them"
STATE = "reads and writes a state: test_state"
BLOCKS = "runs nested blocks, and works on lists: test_control_and_recurrence"
RECURRENT = "a loop over time, checked against torch's modules: test_control_and_recurrence"

ELSEWHERE = {
    "classify": "makes a label and a dictionary: test_control_and_recurrence",
    "cond": BLOCKS,
    "coreml_update_state": STATE,
    "gru": RECURRENT,
    "list_gather": BLOCKS,
    "list_length": BLOCKS,
    "list_read": BLOCKS,
    "list_scatter": BLOCKS,
    "list_write": BLOCKS,
    "lstm": RECURRENT,
    "make_list": BLOCKS,
    "non_maximum_suppression": "selects boxes one after another: test_selection",
    "random_bernoulli": RANDOM,
    "random_categorical": RANDOM,
    "random_normal": RANDOM,
    "random_uniform": RANDOM,
    "read_state": STATE,
    "rnn": RECURRENT,
    "while_loop": BLOCKS,
}


def test_every_op_has_a_property_or_a_reason() -> None:
    covered = {case.op_type for case in CASES}
    assert set(core) - covered == set(ELSEWHERE)
    assert covered <= set(core)


def test_the_names_of_cases_are_distinct() -> None:
    names = [str(case) for case in CASES]
    assert len(set(names)) == len(names)


def _broken(case: Case) -> Case:
    """The case with an oracle that is off by 2 per cent, or by 1 for integers, in the last element."""

    def draws(d: Draw) -> Call:
        call = case.draws(d)
        return replace(call, oracle=_off(call.oracle))

    return replace(case, draws=draws)


def _off(oracle: Oracle) -> Oracle:
    def wrong(given: Any) -> Any:
        results = oracle(given)
        first = np.array(results[0] if isinstance(results, tuple) else results)
        if first.size:
            last = first.reshape(-1)[-1]
            changed = ~last if first.dtype.kind == "b" else last + 1 if first.dtype.kind != "f" else last * 1.02 + 1.0
            first.reshape(-1)[-1] = changed
        return (first, *results[1:]) if isinstance(results, tuple) else first

    return wrong


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_wrong_oracle_is_noticed(case: Case) -> None:
    """Of few examples, one at least shows a difference that small."""
    wrong = _broken(case)

    @settings(PROFILE, max_examples=20, phases=[Phase.generate], report_multiple_bugs=False)
    @given(data=st.data())
    def attempt(data: st.DataObject) -> None:
        wrong.check(data)

    with pytest.raises(AssertionError):
        attempt()


@pytest.mark.parametrize(
    ("got", "want", "within"),
    [
        (np.float32(1), np.float64(1.001), Within(4)),
        (np.float32(np.nan), np.float64(1), Within(4)),
        (np.float32(1), np.float64(np.nan), Within(4)),
        (np.float32(np.inf), np.float64(1), Within(4)),
        (np.float32(3.4e38), np.float64(np.inf), Within(4)),
        (np.float32(-np.inf), np.float64(np.inf), Within(4)),
        (np.float32(0.0), np.float64(-0.0), EXACT),
        (np.float16(1), np.float64(1.01), Within(4)),
        (np.zeros((2, 1), np.float32), np.zeros((1, 2)), EXACT),
        (np.int32(1), np.float64(1), EXACT),
        (np.int32(1), np.int64(2), EXACT),
        (np.bool_(True), np.bool_(False), EXACT),
    ],
)
def test_results_disagree(got: Any, want: Any, within: Within) -> None:
    with pytest.raises(AssertionError):
        agree(np.asarray(got), want, within.ulps * 2.0**-24, None, "it")


@pytest.mark.parametrize(
    ("got", "want", "within"),
    [
        (np.float32(1), np.float64(1 + 2.0**-24), EXACT),
        (np.float32(np.nan), np.float64(np.nan), EXACT),
        (np.float16(np.inf), np.float64(65519.9), Within(4)),  # on the verge of overflow
        (np.float16(65504), np.float64(65520.1), Within(4)),
        (np.int32(-(2**31)), np.int64(2**31), EXACT),
        (np.float32(0.0), np.float64(-0.0), Within(1)),
    ],
)
def test_results_agree(got: Any, want: Any, within: Within) -> None:
    agree(np.asarray(got), want, within.ulps * 2.0**-24, None, "it")

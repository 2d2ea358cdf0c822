"""Programs drawn over the whole opset."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from milopt.errors import EvaluationError, MiloptError
from milopt.mil import Program, dtype_name, is_state, is_symbolic, operations, shape_of, target
from milopt.testing import strategies as mil
from milopt.testing.makers import MAKERS
from milopt.testing.sourcing import IMPORTS, source_of
from milopt.text import text
from milopt.verify import compare

# coremltools computes with NaN and infinity as well, while it builds
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

OPEN = "its values are open: two runs of one program differ"
NOT_DRAWN = {
    "_const_symbolic": "made by coremltools while it converts, in no program that is saved",
    "classify": "makes a label and a dictionary, which no op takes",
    "const": "not computed: the constants of all other ops",
    "random_bernoulli": OPEN,
    "random_categorical": OPEN,
    "random_normal": OPEN,
    "random_uniform": OPEN,
}
EVERYTHING: dict[str, Any] = {
    "ops": mil.ALL,
    "max_ops": 10,
    "dtypes": ["fp32", "fp16", "int32", "bool"],
    "states": 1,
    "nested": True,
}


def each_of(programs: st.SearchStrategy[Program], look: Callable[[Program], None], count: int = 60) -> None:
    @settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )
    @given(programs)
    def check(program: Program) -> None:
        look(program)

    check()


def seen_in(programs: st.SearchStrategy[Program], count: int = 60) -> Counter[str]:
    seen: Counter[str] = Counter()
    each_of(programs, lambda program: seen.update(op.op_type for op in operations(program.functions["main"])), count)
    return seen


def test_every_op_has_a_maker_or_a_reason() -> None:
    registry: Any = importlib.import_module("coremltools.converters.mil.mil.ops.registry").SSAOpRegistry
    known = {
        name for name, versions in registry.core_ops.items() if any(version <= target.iOS18 for version in versions)
    }
    known |= {"coreml_update_state"}
    assert known - set(MAKERS) == set(NOT_DRAWN)
    assert set(MAKERS) <= known


@pytest.mark.parametrize("opset", [target.iOS15, target.iOS16, target.iOS17, target.iOS18], ids=lambda each: each.name)
def test_programs_of_every_opset_validate(opset: target) -> None:
    def look(program: Program) -> None:
        program.validate()
        assert program.functions["main"].opset_version == opset

    each_of(mil.programs(ops=mil.ALL, max_ops=8, opset=opset, dtypes=["fp32", "fp16"], nested=True), look)


@pytest.mark.parametrize("op_type", sorted(set(MAKERS) - {"coreml_update_state", "read_state", "cond", "while_loop"}))
def test_every_maker_makes_its_op(op_type: str) -> None:
    opset = target.iOS16 if op_type == "pixel_unshuffle" else target.iOS18
    seen = seen_in(mil.programs(ops={op_type}, dtypes=["fp32", "fp32", "int32", "bool"], opset=opset, max_inputs=3), 25)
    assert seen[op_type], seen


def test_all_there_is_together() -> None:
    seen = seen_in(mil.programs(**EVERYTHING), 120)
    assert {"cond", "while_loop", "read_state", "coreml_update_state", "slice_update"} <= set(seen)
    assert len(seen) > 50, sorted(seen)


def test_programs_run_and_equal_themselves() -> None:
    ran = Counter[bool]()

    def look(program: Program) -> None:
        try:
            verdict = compare(program, program, trials=1)
        except EvaluationError:
            ran[False] += 1
            return
        assert verdict, str(verdict)
        ran[True] += 1

    each_of(mil.programs(**EVERYTHING), look, 40)
    assert ran[False] <= 0.2 * ran[True], ran


def test_symbols() -> None:
    several = Counter[bool]()

    def look(program: Program) -> None:
        dims = [dim for var in program.functions["main"].inputs.values() for dim in shape_of(var) if is_symbolic(dim)]
        several[len(dims) > len(set(dims))] += 1
        several[not dims] += 0

    each_of(mil.programs(symbolic=True, ops=mil.ELEMENTWISE | mil.MOVEMENT | mil.REDUCTION), look)
    assert several[True] > 0  # one symbol at two places


def test_states_are_there_and_used() -> None:
    def look(program: Program) -> None:
        states = [var for var in program.functions["main"].inputs.values() if is_state(var)]
        assert len(states) == 2
        assert all(var.child_ops for var in states)

    each_of(mil.programs(states=2), look, 20)


def test_types_of_inputs() -> None:
    seen: set[str] = set()
    each_of(
        mil.programs(dtypes=["int32", "bool", "fp16"]),
        lambda program: seen.update(dtype_name(var) for var in program.functions["main"].inputs.values()),
    )
    assert seen == {"int32", "bool", "fp16"}


def test_constants_are_shared() -> None:
    shared = Counter[bool]()

    def look(program: Program) -> None:
        ops = program.functions["main"].operations
        shared[any(len(op.outputs[0].child_ops) > 1 for op in ops if op.op_type == "const")] += 1

    each_of(mil.programs(ops=mil.ELEMENTWISE | mil.LINEAR, min_ops=4, max_ops=8), look)
    assert shared[True] > 3


def test_bad_requests() -> None:
    with pytest.raises(MiloptError, match="states need iOS18, not iOS17"):
        mil.programs(states=1, opset=target.iOS17)
    with pytest.raises(MiloptError, match="at least one op"):
        mil.programs(min_ops=3, max_ops=2)


def test_the_source_of_a_program_makes_it_again() -> None:
    def look(program: Program) -> None:
        names: dict[str, Any] = {}
        exec(IMPORTS + source_of(program), names)
        assert text(names["build"](), weights="hash") == text(program, weights="hash")

    each_of(mil.programs(**EVERYTHING), look)
    each_of(mil.programs(symbolic=True, nested=True), look, 20)

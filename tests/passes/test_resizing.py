"""Other sizes for an axis: what is written down of the old size changes, and what can't is refused."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from milopt.interpreter import evaluate
from milopt.mil import Function, Program, Var, mb, shape_of, target, value_names
from milopt.passes.resizing import require_resizable, resize
from milopt.reports import NoMatch

# the axis that gets another size is the second one of the input
OLD, NEW = 4, 7


def program_of(build: Callable[[Any, Any], Any], second: tuple[int, ...] = (1,)) -> Program:
    specs = [mb.TensorSpec((2, OLD, 3)), mb.TensorSpec(second)]

    @mb.program(input_specs=specs, opset_version=target.iOS17)
    def program(x: Any, other: Any) -> Any:
        return build(x, other)

    return program


def axes_of(function: Function, **axes: int) -> dict[Var, int]:
    values = {name: var for op in function.operations for name, var in ((out.name, out) for out in op.outputs)}
    return {function.inputs["x"]: 1, **{values[name]: axis for name, axis in axes.items()}}


def resized(build: Callable[[Any, Any], Any], second: tuple[int, ...] = (1,), **axes: int) -> Program:
    program = program_of(build, second)
    function = program.functions["main"]
    found = axes_of(function, **axes)
    require_resizable(found)
    resize(function, found, NEW, value_names(function))
    program.validate()
    for var, axis in found.items():
        assert shape_of(var)[axis] == NEW
    return program


def same_as(program: Program, meant: Callable[[Any], Any]) -> None:
    x: Any = np.linspace(0, 5, 2 * NEW * 3, dtype=np.float32)
    x = x.reshape(2, NEW, 3)
    (found,) = evaluate(program, {"x": x, "other": np.ones(1, np.float32)}, precision="float64").values()
    np.testing.assert_allclose(found, meant(x))


def test_values_that_follow_their_input() -> None:
    program = resized(lambda x, _: mb.transpose(x=mb.tanh(x=x, name="a"), perm=[1, 0, 2], name="b"), a=1, b=0)
    same_as(program, lambda x: np.tanh(x.astype(np.float64)).transpose(1, 0, 2))
    assert shape_of(program.functions["main"].inputs["other"]) == (1,)


@pytest.mark.parametrize("shape", [[2, OLD, 1, 3], [2, -1, 1, 3], [-1, OLD, 1, 3]])
def test_reshapes_to_the_old_size(shape: list[int]) -> None:
    program = resized(lambda x, _: mb.exp(x=mb.reshape(x=x, shape=shape, name="a"), name="b"), a=1, b=1)
    same_as(program, lambda x: np.exp(x.astype(np.float64)).reshape(2, NEW, 1, 3))
    (op,) = (op for op in program.functions["main"].operations if op.op_type == "reshape")
    assert op.shape.val.tolist() == [NEW if each == OLD else each for each in shape]


def test_slices_up_to_the_old_end() -> None:
    """Along the axis itself, and along another; behind an axis that the slice takes away."""

    def build(x: Any, _: Any) -> Any:
        whole = mb.slice_by_index(x=x, begin=[0, 0, 1], end=[2, OLD, 3], name="a")
        masked = mb.slice_by_index(x=whole, begin=[0] * 3, end=[2, 0, 2], end_mask=[False, True, False], name="b")
        return mb.slice_by_index(
            x=masked, begin=[1, 0, 0], end=[2, OLD, 2], squeeze_mask=[True, False, False], name="c"
        )

    program = resized(build, a=1, b=1, c=0)
    same_as(program, lambda x: x[1, :, 1:3])
    ends = [op.end.val.tolist() for op in program.functions["main"].operations if op.op_type == "slice_by_index"]
    assert ends == [[2, NEW, 3], [2, 0, 2], [2, NEW, 2]]


def test_new_constants_get_names_of_their_own() -> None:
    program = resized(lambda x, _: mb.reshape(x=x, shape=[2, OLD, 1, 3], name="a"), a=1)
    names = [op.name for op in program.functions["main"].operations]
    assert len(names) == len(set(names))
    assert "a_shape" in names


def test_an_input_is_declared_anew() -> None:
    program = program_of(lambda x, _: mb.tanh(x=x, name="a"))
    function = program.functions["main"]
    declared: Any = [types.SimpleNamespace(name=name) for name in ("x", "other")]
    function.input_types = declared
    resize(function, axes_of(function, a=1), NEW, value_names(function))
    assert function.placeholder_inputs["x"].sym_shape == (2, NEW, 3)
    assert function.placeholder_inputs["other"].sym_shape == (1,)
    # what the author said of it was of the old size
    assert [each.name for each in function.input_types] == ["other"]


def test_an_op_of_which_only_one_result_has_the_axis() -> None:
    def build(x: Any, _: Any) -> Any:
        first, second = mb.split(x=x, split_sizes=[1, 2], axis=2, name="parts")
        return mb.concat(values=[second, first], axis=2, name="a")

    program = resized(build, parts_1=1, a=1)
    same_as(program, lambda x: np.concatenate([x[..., 1:], x[..., :1]], 2))


def test_a_table_of_which_the_first_rows_are_used() -> None:
    table: Any = np.random.default_rng(0).standard_normal((2, 9, 3)).astype(np.float32)

    def build(x: Any, _: Any) -> Any:
        rows = mb.slice_by_index(x=table, begin=[0, 0, 0], end=[2, OLD, 3], name="rows")
        return mb.add(x=x, y=rows, name="a")

    same_as(resized(build, rows=1, a=1), lambda x: x + table[:, :NEW])


def moved_by_a_shape(x: Any, other: Any) -> Any:
    return mb.reshape(x=x, shape=mb.cast(x=other, dtype="int32"), name="a")


def cut_by_an_end(x: Any, other: Any) -> Any:
    return mb.slice_by_index(x=x, begin=[0, 0, 0], end=mb.cast(x=other, dtype="int32"), name="a")


def sized(x: Any, _: Any) -> Any:
    return mb.cast(x=mb.shape(x=x, name="size"), dtype="fp32")


REFUSALS: dict[str, tuple[Callable[[Any, Any], Any], dict[str, int], str, str]] = {
    "a size": (sized, {}, "size", "its size is computed with, and another is wanted"),
    "a shape": (moved_by_a_shape, {"a": 1}, "a", "its shape is computed, and another is wanted"),
    "an end": (cut_by_an_end, {"a": 1}, "a", "its end is computed, and another is wanted"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_is_computed_is_refused(case: str) -> None:
    build, axes, place, reason = REFUSALS[case]
    program = program_of(build, (3,))
    with pytest.raises(NoMatch) as raised:
        require_resizable(axes_of(program.functions["main"], **axes))
    assert str(raised.value) == reason
    at: Any = raised.value.at
    assert at.outputs[0].name == place


def test_what_mil_refuses_is_refused() -> None:
    program = program_of(lambda x, _: mb.add(x=x, y=np.ones((2, OLD, 3), np.float32), name="a"))
    function = program.functions["main"]
    with pytest.raises(NoMatch, match=r"^MIL refuses 7 slots here: .+") as raised:
        resize(function, axes_of(function, a=1), NEW, value_names(function))
    at: Any = raised.value.at
    assert at.op_type == "add"
    assert str(raised.value).endswith(str(raised.value.__cause__).strip())

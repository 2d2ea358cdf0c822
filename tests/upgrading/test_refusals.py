"""What can't be upgraded is refused by its name, in one line, and the model stays as it was."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest

import milopt
from milopt.errors import MiloptError
from milopt.mil import Program, Target, get_new_symbol, mb, operations, target, types
from milopt.opaque import Opaque, opaque_class
from milopt.package import Model, load
from milopt.text import text
from milopt.upgrading import target_named
from tests.package.support import linear
from tests.upgrading.cases import Case, ints, numbers


def assert_refused(model: Model, name: str, message: str) -> None:
    before, version, functions = text(model, weights="hash"), model.spec_version, dict(model.functions)
    with pytest.raises(MiloptError, match=message) as error:
        milopt.upgrade(model, name)
    assert "\n" not in str(error.value)
    assert (text(model, weights="hash"), model.spec_version) == (before, version)
    assert all(model.functions[key] is each for key, each in functions.items())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("iOS19", "there is no deployment target 'iOS19'; did you mean iOS18 or iOS17?"),
        ("macos15", "there is no deployment target 'macos15'; did you mean macOS15?"),
        ("CoreML8", "there are iOS13, iOS14, iOS15, iOS16, iOS17, iOS18, iOS26"),
        ("", "there are iOS13, iOS14, iOS15, iOS16, iOS17, iOS18, iOS26"),
        ("iOS15", "the model is for iOS16 (specification version 7); iOS15 is older, and milopt only upgrades"),
        ("tvOS14", "the model is for iOS16 (specification version 7); iOS14 is older, and milopt only upgrades"),
    ],
)
def test_targets(name: str, message: str) -> None:
    if message.startswith("there are"):
        message = f"there is no deployment target {name!r}; {message}"
    assert_refused(load(linear()), name, f"^{re.escape(message)}$")


def test_spellings_of_one_target() -> None:
    for name in ("iOS18", "macOS15", "watchOS11", "tvOS18"):
        assert target_named(name) is Target.iOS18


def test_an_upgrade_to_where_a_model_is_does_nothing() -> None:
    model = load(linear())
    before = text(model)
    report = milopt.upgrade(model, "macOS13")
    assert not report
    assert report.notes == ["the model is for iOS16 already"]
    assert text(model) == before


def test_a_function_of_an_older_opset_than_its_package() -> None:
    model = load(linear())
    model.spec_version = 9
    assert_refused(model, "iOS17", "the model is for iOS18")
    assert milopt.upgrade(model, "iOS18").applied == 1
    assert model.function().opset_version == Target.iOS18


def made_opaque(model: Model, op_type: str, name: str | None = None) -> Any:
    """One op of the type is of a class that PyMIL knows nothing of, and of the type ``name`` if one is given."""
    op = next(each for each in operations(model.function()) if each.op_type == op_type)
    op.__class__ = opaque_class(op_type if name is None else name)
    changed = cast("Any", op)
    changed._input_vars = {key: value for key, value in changed._input_vars.items() if value is not None}
    changed.name_inputs(changed._input_vars)
    return op


def gathering(also: Callable[[Any], Any]) -> Model:
    """A gather that is translated, then the op in question."""
    return load(
        Case(
            "",
            target.iOS16,
            {"x": numbers(4, 3), "i": ints([-1, 0])},
            lambda v: also(mb.gather(x=v.x, indices=v.i)),
        ).program()
    )


def test_an_unknown_op() -> None:
    model = gathering(lambda y: mb.relu(x=y, name="mine"))
    made_opaque(model, "relu", "my_relu")
    assert_refused(
        model, "iOS18", "^function 'main': my_relu 'mine' can't be upgraded from iOS16 to iOS18: coremltools does not"
    )


def test_a_refused_op_that_would_be_translated() -> None:
    model = gathering(lambda y: mb.relu(x=y))
    made_opaque(model, "gather")
    assert_refused(model, "iOS17", "gather 'gather_.*' can't be upgraded from iOS16 to iOS17: coremltools refuses")


def test_a_refused_op_that_stays_what_it_is_is_carried() -> None:
    """Its type is known, and all that changed is what its inputs may be."""
    model = gathering(lambda y: mb.squeeze(x=mb.expand_dims(x=y, axes=[0]), axes=[0]))
    before = model.clone()
    op = made_opaque(model, "squeeze")
    assert milopt.upgrade(model, "iOS18")
    (carried,) = (each for each in operations(model.function()) if isinstance(each, Opaque))
    assert (carried.op_type, carried.name) == ("squeeze", op.name)
    inputs = {"x": numbers(4, 3), "i": ints([-1, 0])}
    for old, new in zip(*(milopt.evaluate(each, inputs).values() for each in (before, model)), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_custom_layer_of_the_package_is_refused() -> None:
    model = gathering(lambda y: mb.relu(x=y, name="layer"))
    made_opaque(model, "relu", "custom_layer")
    assert_refused(model, "iOS17", "custom_layer 'layer' can't be upgraded")


def test_an_unknown_number_of_boxes() -> None:
    @mb.program(input_specs=[mb.TensorSpec((2, 1, 4, 5)), mb.TensorSpec((get_new_symbol(), 1, 5, 1, 1))])
    def program(x: Any, roi: Any) -> Any:
        return mb.crop_resize(x=x, roi=roi, target_height=2)

    assert_refused(load(_program(program)), "iOS17", "crop_resize .*: the number of its boxes is not known")
    assert milopt.upgrade(load(_program(program)), "iOS16")


def test_boxes_of_a_type_that_can_not_be() -> None:
    """coremltools 9.0 infers crops of numbered boxes as if each was cut from all images; the program has it wrong."""

    @mb.program(input_specs=[mb.TensorSpec((2, 1, 4, 5)), mb.TensorSpec((3, 1, 5, 1, 1))])
    def program(x: Any, roi: Any) -> Any:
        return mb.crop_resize(x=x, roi=roi, target_height=2)

    message = r"crop_resize .*: its result .* would be fp32\[3, 1, 1, 2, 1\], not fp32\[3, 2, 1, 2, 1\]"
    assert_refused(load(_program(program)), "iOS17", message)


def test_zero_points_that_fp16_does_not_hold() -> None:
    @mb.program(input_specs=[mb.TensorSpec((1,), dtype=types.fp16)], opset_version=target.iOS16)
    def program(x: Any) -> Any:
        weight = mb.constexpr_affine_dequantize(
            quantized_data=np.arange(6, dtype=np.int8), scale=np.float16(0.3), zero_point=np.float32(1 / 3), axis=0
        )
        return mb.add(x=weight, y=x)

    assert_refused(load(_program(program)), "iOS18", "its zero points have fractions that float16 does not hold")


def test_a_zero_of_an_unknown_dimension() -> None:
    @mb.program(input_specs=[mb.TensorSpec((get_new_symbol(), 3, 2))])
    def program(x: Any) -> Any:
        return mb.reshape(x=x, shape=[0, -1])

    assert_refused(load(_program(program)), "iOS17", "its shape keeps a dimension of x, and it is not known which")


def _program(program: Any) -> Program:
    assert isinstance(program, Program)
    return program

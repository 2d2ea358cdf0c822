"""The registry of implementations, and that it knows every op of coremltools."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from milopt.interpreter import Impls, compile, core
from milopt.interpreter.impls import Ints, Kind, Tensor
from milopt.mil import mb, target
from tests.interpreter.support import normals, program


def relu(x: Tensor) -> Tensor:
    return x.clamp(min=0)


def test_a_second_registration_is_refused_unless_written_out() -> None:
    mine = Impls("mine")
    mine("relu")(relu)
    with pytest.raises(ValueError, match="mine already has an implementation of relu; say override=True to replace"):
        mine("relu")(relu)
    mine("relu", override=True)(relu)
    with pytest.raises(ValueError, match=r"one \| two already has an implementation of relu"):
        _merged(False)
    assert _merged(True)["relu"].function is relu


def _merged(override: bool) -> Impls:
    one, two = Impls("one"), Impls("two")
    one("relu")(relu)
    two("relu", override=override)(relu)
    return one | two


def test_annotations_say_how_inputs_are_delivered() -> None:
    mine = Impls("mine")

    @mine("op")
    def _(x: Tensor, axes: Ints | None = None, keep: bool = False, mode: str = "a") -> Tensor:
        return x

    assert [(each.name, each.kind, each.optional) for each in mine["op"].parameters] == [
        ("x", Kind.TENSOR, False),
        ("axes", Kind.INTS, True),
        ("keep", Kind.NUMBER, True),
        ("mode", Kind.TEXT, True),
    ]
    with pytest.raises(TypeError, match="parameter 'x' has the annotation <class 'dict'>, which is no delivery"):

        @mine("other")
        def _(x: dict) -> Tensor:  # type: ignore[type-arg]
            return Tensor(x)


def test_ones_own_op_replaces_that_of_the_core() -> None:
    mine = Impls("mine")

    @mine("relu", override=True)
    def _(x: Tensor) -> Tensor:
        return x * 0 + 7

    plan = compile(program(lambda x: mb.relu(x=x, name="out"), {"x": normals(2)}), impls=core | mine)
    np.testing.assert_array_equal(plan.run({"x": normals(2)})["out"].numpy(), [7, 7])


def _ops() -> dict[str, dict[target, Any]]:
    registry: Any = importlib.import_module("coremltools.converters.mil.mil.ops.registry")
    found: dict[str, dict[target, Any]] = registry.SSAOpRegistry.core_ops
    return found


def test_every_op_of_coremltools_has_an_implementation() -> None:
    """``const`` is no step of a plan; ``_const_symbolic`` exists in coremltools' own tests alone."""
    assert set(_ops()) - set(core) == {"const", "_const_symbolic"}


def test_every_input_of_every_version_is_known() -> None:
    """Inputs with an underscore are Python functions, which become nested blocks."""
    for op_type, versions in _ops().items():
        if op_type not in core:
            continue
        known = {parameter.name for parameter in core[op_type].parameters}
        for version, definition in versions.items():
            inputs = {name for name in definition.input_spec.input_types if not name.startswith("_")}
            assert inputs <= known, f"{op_type} of {version}"


def test_optional_inputs_may_be_left_out() -> None:
    """What coremltools calls optional has a default here."""
    for op_type, versions in _ops().items():
        if op_type not in core:
            continue
        optional = {parameter.name for parameter in core[op_type].parameters if parameter.optional}
        for version, definition in versions.items():
            spec = definition.input_spec.input_types
            names = {name for name, kind in spec.items() if kind.optional and not name.startswith("_")}
            assert names <= optional, f"{op_type} of {version}"

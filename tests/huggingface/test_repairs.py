"""What milopt puts right in coremltools: right, only in its own thread, and only while it converts."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, TypeAlias

import coremltools as ct
import numpy as np
import pytest
import torch

from milopt.huggingface.errors import ConversionError
from milopt.huggingface.exporting import export
from milopt.huggingface.features import Feature, Sizes
from milopt.huggingface.quiet import coremltools_quiet
from milopt.huggingface.repairs import coremltools_repaired, registry
from milopt.interpreter import compile
from milopt.mil import Program, operations
from milopt.package import load

Function: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

X = torch.linspace(-2, 2, 12).reshape(3, 4)
Y = torch.cos(torch.arange(12.0)).reshape(3, 4)


class Calls(torch.nn.Module):
    """A module that is a function of tensors, inside another module as in milopt's wrappers."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.model = _Inner(function)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.model(x, y)
        return result


class _Inner(torch.nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.function(x, y)


def captured(function: Function, route: str, signature: Any = None) -> Any:
    module = Calls(function).eval()
    if route == "export":
        return export(module, (X, Y), signature)
    jit: Any = torch.jit
    return jit.trace(module, (X, Y))


def program_of(form: Any, shape: Any = X.shape) -> Program:
    """What coremltools converts ``form`` to, without any of its passes."""
    program: Program = ct.convert(
        form,
        inputs=[ct.TensorType("x", shape), ct.TensorType("y", shape)],
        convert_to="milinternal",
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT32,
        pass_pipeline=ct.PassPipeline.EMPTY,
    )
    return program


def both(route: str, function: Function) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The value of ``function`` by torch, and by the program that coremltools, repaired, makes of it."""
    form = captured(function, route)
    with coremltools_repaired():
        program = program_of(form)
    (got,) = compile(load(program), precision="float64").run({"x": X.numpy(), "y": Y.numpy()}).values()
    return function(X.double(), Y.double()).numpy(), got.numpy()


REPAIRED: dict[str, Function] = {
    "diff": lambda x, y: torch.diff(x) + 0 * y[:, :3],
    "diff-prepend": lambda x, y: torch.diff(x, 2, 0, prepend=y[:2]),
    "diff-append": lambda x, y: torch.diff(x, dim=-2, append=y[1:]),
    "diff-bool": lambda x, y: torch.diff(x > y).float(),
    "new_ones": lambda x, y: x.new_ones(3, 4) + y,
    "new_ones-scalar-bool": lambda x, y: (x.new_ones((), dtype=torch.bool) & (x > y)).float(),
    "where-and": lambda x, y: torch.where((x > y) & (y > 0), x, 0.5),
    "gelu-tanh": lambda x, y: torch.nn.functional.gelu(x, approximate="tanh") + torch.tanh(y),
    "gelu-none": lambda x, y: torch.nn.functional.gelu(x, approximate="none") + torch.tanh(y),
    "gelu": lambda x, y: torch.nn.functional.gelu(x) + y,
    "scatter-integer": lambda x, y: torch.zeros_like(x).scatter(1, (y > 0).long()[:, :1] + 2, 1) * x + y,
    "scatter-of-its-type": lambda x, y: x.scatter(0, (y > 0).long(), y),
    "int-of-size": lambda x, y: x.reshape(x.shape[0] * 2, -1) @ y.reshape(2, -1),
}


@pytest.mark.parametrize("route", ["trace", "export"])
@pytest.mark.parametrize("name", REPAIRED)
def test_what_is_repaired_computes_what_torch_does(route: str, name: str) -> None:
    wanted, got = both(route, REPAIRED[name])
    # both compute in float64 with float32 constants; the two kinds of gelu differ by 4e-4 here
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6)


def _heads(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """As heads of keys are repeated: a new axis of several, beside one of open size."""
    return x[:, None].expand(x.shape[0], 5, x.shape[1]) + y[:, None]


@pytest.mark.parametrize("route", ["trace", "export"])
def test_repeating_along_one_axis_computes_no_sizes(route: str) -> None:
    feature = Feature((3, Sizes("length", 1, 9, 4)), "")
    signature = SimpleNamespace(inputs={"x": feature, "y": feature}, outputs={}, is_flexible=True)
    form, length = captured(_heads, route, signature), ct.RangeDim(1, 9, default=4)
    with coremltools_repaired():
        program = program_of(form, ct.Shape((3, length)))
    (tile,) = [op for op in operations(program.functions["main"]) if op.op_type == "tile"]
    assert list(tile.reps.val) == [1, 5, 1]
    x, y = torch.randn(3, 7), torch.randn(3, 7)
    (got,) = compile(load(program), precision="float64").run({"x": x.numpy(), "y": y.numpy()}).values()
    np.testing.assert_array_equal(got.numpy(), _heads(x.double(), y.double()).numpy())


def _apart(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """As heads of queries are told apart: a number that is left, beside an open size that another input has."""
    rows = torch.cat([x, y]).T[:, 1:5]
    return rows.view(y.shape[1], -1, 2).sum(1)


def test_what_is_left_beside_an_open_size_is_a_number() -> None:
    feature = Feature((3, Sizes("length", 1, 9, 4)), "")
    signature = SimpleNamespace(inputs={"x": feature, "y": feature}, outputs={}, is_flexible=True)
    form, length = captured(_apart, "export", signature), ct.RangeDim(1, 9, default=4)
    with coremltools_repaired():
        program = program_of(form, ct.Shape((3, length)))
    (view,) = [op for op in operations(program.functions["main"]) if op.op_type == "reshape"]
    assert list(view.shape.val) == [-1, 2, 2]
    assert "shape" not in [op.op_type for op in operations(program.functions["main"])]
    x, y = torch.randn(3, 7), torch.randn(3, 7)
    (got,) = compile(load(program), precision="float64").run({"x": x.numpy(), "y": y.numpy()}).values()
    np.testing.assert_allclose(got.numpy(), _apart(x.double(), y.double()).numpy(), rtol=1e-12)  # one sum in float64


def _alias(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    untyped: Any = torch
    result: torch.Tensor = untyped.ops.aten.alias(x) + y
    return result


def test_alias_is_the_value_itself() -> None:
    wanted, got = both("export", _alias)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6)


def _tanh_gelu(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.gelu(x, approximate="tanh") + y


def _gelu_mode(program: Program) -> str:
    (gelu,) = [op for op in operations(program.functions["main"]) if op.op_type == "gelu"]
    return "EXACT" if gelu.mode is None else str(gelu.mode.val)


def test_coremltools_itself_still_takes_one_gelu_for_the_other() -> None:
    """When this fails, coremltools has learned to read the keyword, and the repair can go."""
    form = captured(_tanh_gelu, "export")
    with coremltools_quiet():
        assert _gelu_mode(program_of(form)) == "EXACT"


def test_other_threads_convert_as_if_nothing_was_repaired() -> None:
    form, modes = captured(_tanh_gelu, "export"), list[str]()
    refusals: list[BaseException] = []

    def convert_elsewhere() -> None:
        modes.append(_gelu_mode(program_of(form)))
        try:
            registry()["diff"](None, None)
        except NotImplementedError as refusal:
            refusals.append(refusal)

    with coremltools_repaired():
        thread = threading.Thread(target=convert_elsewhere)
        thread.start()
        thread.join()
        assert _gelu_mode(program_of(form)) == "TANH_APPROXIMATION"
    assert modes == ["EXACT"]
    assert "'diff' not implemented" in str(refusals[0])


def _frontend() -> list[object]:
    ops: Any = importlib.import_module("coremltools.converters.mil.frontend.torch.ops")
    return [*registry().items(), registry(), ops._cast, ops.convert_single_node]


def _fail_inside() -> None:
    with coremltools_repaired(), coremltools_repaired():
        assert {"diff", "new_ones", "alias", "where.scalarother", "__and__"} <= set(registry())
        raise KeyError


def test_the_registry_is_as_before_after_an_exception() -> None:
    before = _frontend()
    with pytest.raises(KeyError):
        _fail_inside()
    assert all(one is other for one, other in zip(before[-3:], _frontend()[-3:], strict=True))
    assert _frontend() == before


def test_a_converter_that_coremltools_has_or_gets_meanwhile_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def theirs(*_: object) -> None:
        raise AssertionError

    monkeypatch.setitem(registry(), "diff", theirs)
    with coremltools_repaired():
        assert registry()["diff"] is theirs
        registry()["alias"] = theirs
    assert registry().pop("alias") is theirs
    assert registry()["diff"] is theirs


def test_a_keyword_that_a_converter_does_not_read_is_no_silent_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    stock, form = registry()["gelu"], captured(_tanh_gelu, "export")
    with coremltools_repaired():
        monkeypatch.setitem(registry(), "gelu", stock)
        with pytest.raises(ConversionError, match=r"gelu ignores approximate at test_repairs\.py:\d+"):
            program_of(form)


def _tanh(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x) + y


def test_a_failing_converter_is_told_with_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError("no\nsuch luck")

    forms = {route: captured(_tanh, route) for route in ("trace", "export")}
    monkeypatch.setitem(registry(), "tanh", fail)
    with coremltools_repaired():
        with pytest.raises(ConversionError, match=r"can't convert torch's tanh at test_repairs\.py:\d+: no$"):
            program_of(forms["export"])
        with pytest.raises(ConversionError, match=r"can't convert torch's tanh at \w+: no$"):
            program_of(forms["trace"])

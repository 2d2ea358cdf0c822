"""Programs whose own types disagree about a size: layout-bc1s and the passes beside it say so in a line, and go on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from milopt.mil import Program, Var, get_new_symbol, mb, operations, shape_of, target, types
from milopt.package import Model, load
from milopt.passes.convolution import LinearToConv
from milopt.passes.layout import LayoutBc1s
from milopt.pipeline import Pipeline
from milopt.reports import Report
from milopt.text import text
from tests.testing.layouts import attentions, weight

Middle = Callable[[Any, Any], Any]

CHECKS = tuple(cast("Any", HealthCheck))


def declare(var: Var, shape: Sequence[Any]) -> None:
    """Give a value a type that its op would not."""
    cast("Any", var)._sym_type = types.tensor(var.dtype, tuple(shape))


def single(middle: Middle) -> Model:
    """``middle`` of two values of (1, 6, 8) between linear layers, which are convolutions."""
    half = np.float16
    specs = [mb.TensorSpec((1, 6, 8), types.fp16) for _ in range(2)]

    @mb.program(input_specs=specs, opset_version=target.iOS18)
    def program(x: Any, y: Any) -> Any:
        x, y = (mb.linear(x=each, weight=weight(8, 8).astype(half)) for each in (x, y))
        return mb.linear(x=middle(x, y), weight=weight(4, 8).astype(half), name="y")

    model = load(program)
    LinearToConv().run(model)
    return model


def result_of(model: Model, name: str) -> Var:
    """The result of the last op of that name or type."""
    ops = [*operations(model.function("main"))]
    return next(op.outputs[0] for op in reversed(ops) if name in (op.name, op.op_type))


def reasons(report: Report) -> list[str]:
    return [str(miss) for miss in report.all_misses() if miss.declined and miss.rule != "move"]


S = get_new_symbol()
KEEPS = "its types disagree, so it keeps its layouts: "
CASES: dict[str, tuple[Middle, str, tuple[Any, ...], str]] = {
    "two numbers": (
        lambda x, y: mb.add(x=x, y=y, name="sum"),
        "sum",
        (5, 6, 8),
        "sum has 5 on axis 0, where the others have 1",
    ),
    "a symbol and a number": (
        lambda x, y: mb.softmax(x=mb.mul(x=x, y=y, name="product"), axis=-1, name="shares"),
        "shares",
        (1, S, 8),
        f"product has 6 on axis 1 where shares has {S} on axis 1",
    ),
    "a row that is gone": (
        lambda x, y: mb.matmul(x=mb.matmul(x=x, y=y, transpose_y=True, name="scores"), y=y),
        "scores",
        (1, 1, 6),
        "{x} has 6 on axis 1, where the others have 1",
    ),
    "an axis that is longer than its sources": (
        lambda x, y: mb.concat(values=[mb.relu(x=x, name="one"), y], axis=1, name="both"),
        "both",
        (1, 12, 9),
        "one has 8 on axis 2 where both has 9 on axis 2",
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("io", ["public", "free"])
def test_an_op_keeps_its_layouts(name: str, io: Any) -> None:
    middle, changed, shape, reason = CASES[name]
    model = single(middle)
    var = result_of(model, changed)
    declare(var, shape)
    assert var.op is not None
    expected = f"{changed}: {KEEPS}{reason.format(x=var.op.inputs['x'].name if 'x' in var.op.inputs else '')}"
    report = LayoutBc1s(io=io).run(model)
    assert expected in reasons(report)


def test_a_transpose_of_another_shape() -> None:
    """It is no move then, but an op like any other."""

    def middle(x: Any, y: Any) -> Any:
        turned = mb.transpose(x=mb.exp(x=mb.add(x=x, y=y), name="before"), perm=[0, 2, 1])
        return mb.transpose(x=mb.tanh(x=turned, name="behind"), perm=[0, 2, 1])

    model = single(middle)
    turned = result_of(model, "before").child_ops[0].outputs[0]
    declare(turned, (1, 8, 7))
    before, behind = turned.op, turned.child_ops[0]
    assert LayoutBc1s().run(model)
    kept = [*operations(model.function("main"))]
    assert before in kept
    assert behind in kept
    assert turned.shape == (1, 8, 7)


def test_what_mil_makes_of_it_is_another_shape() -> None:
    """Nothing says that a slice of all of an axis gives all of it, until it is built in another layout."""
    model = single(lambda x, y: mb.concat(values=[x, y], axis=1, name="both"))
    declare(result_of(model, "both"), (1, 11, 8))
    before = text(model, weights="hash")
    report = LayoutBc1s().run(model)
    assert not report
    (why,) = reasons(report)
    assert why.startswith("both: its types disagree: MIL makes (1, 8, 1, 12) of it, not (1, 8, 1, 11)")
    assert text(model, weights="hash") == before


def test_a_state_is_as_large_as_what_is_written_to_it() -> None:
    state = mb.StateTensorSpec((1, 4, 6), types.fp16)

    @mb.program(input_specs=[mb.TensorSpec((1, 4, 3), types.fp16), state], opset_version=target.iOS18)
    def program(x: Any, held: Any) -> Any:
        half = np.float16
        y = mb.add(x=mb.linear(x=x, weight=weight(6, 3).astype(half)), y=mb.read_state(input=held))
        y = mb.coreml_update_state(state=held, value=y)
        return mb.linear(x=y, weight=weight(2, 6).astype(half), name="y")

    for wrong in (False, True):
        model = load(program).clone()
        LinearToConv().run(model)
        if wrong:
            declare(result_of(model, "add"), (1, 4, 7))
        report = LayoutBc1s(io="free").run(model)
        # the layout that it gets where all is well
        assert shape_of(model.function("main").inputs["held"]) == ((1, 4, 6) if wrong else (1, 6, 4))
        assert any(KEEPS in each for each in reasons(report)) == wrong


def mutated(model: Model, picks: Sequence[tuple[int, int, Any]]) -> None:
    values = [
        var
        for op in operations(model.function("main"))
        if op.op_type != "const"
        for var in op.outputs
        if var.rank and types.is_tensor(var.sym_type)
    ]
    for which, axis, dim in picks:
        var = values[which % len(values)]
        shape = list(shape_of(var))
        shape[axis % len(shape)] = dim
        declare(var, shape)


DIMS = st.sampled_from([1, 2, 3, 4, 5, 6, 8, S, S * 2, get_new_symbol()])
PICKS = st.lists(st.tuples(st.integers(0, 99), st.integers(0, 4), DIMS), min_size=1, max_size=3)


def test_any_type_that_is_wrong_is_refused_in_a_line() -> None:
    told: set[str] = set()

    @settings(max_examples=30, deadline=None, phases=(Phase.explicit, Phase.generate), suppress_health_check=CHECKS)
    @given(attentions(), PICKS, st.sampled_from(["public", "free"]), st.booleans())
    def run(program: Program, picks: list[tuple[int, int, Any]], io: Any, later: bool) -> None:
        model = load(program)
        if later:
            LinearToConv().run(model)
        mutated(model, picks)
        for each in ("linear-to-conv", f"layout-bc1s{{io={io}}}", "conv1x1-to-linear"):
            report = Pipeline.parse(each).run(model)
            told.update(reasons(report))

    run()
    assert all("\n" not in each for each in told)
    assert any(KEEPS in each for each in told)

"""Every entry of layout-bc1s's table: an op written in other layouts computes the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from milopt.errors import EvaluationError
from milopt.layout.forms import Layout
from milopt.layout.relations import Mode
from milopt.mil import Program, Var, is_dead, mb, operations, shape_of, target, types
from milopt.package import Model, load
from milopt.passes.layout_ops import ENTRIES
from milopt.passes.layout_reading import Reading, read
from milopt.passes.layout_writing import Writing
from milopt.reports import NoMatch
from milopt.testing import strategies as mil
from milopt.text import text
from milopt.verify import compare

# coremltools computes with NaN and infinity as well, while it builds
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

Draw = Any
# how many programs, until some have the op in another layout; of most op types four in ten have
EXAMPLES = (15, 75)
COREMLTOOLS_REFUSES = (
    "must have the same data type",  # no value of such an op can be replaced: its fp32 default stands beside x of fp16
    "Types should have zero-rank ndarray input",  # a constant of one element, squeezed to a scalar
)


@st.composite
def layouts(draw: Draw, pieces: int) -> Layout:
    """Some layout of so many pieces: any order, neighbours joined at will, unit axes anywhere, at most five axes."""
    order = draw(st.permutations(range(pieces)))
    axes: list[tuple[int, ...]] = []
    for piece in order:
        if axes and draw(st.integers(0, 4)) == 0:
            axes[-1] = (*axes[-1], piece)
        else:
            axes.append((piece,))
    while len(axes) < 5 and draw(st.integers(0, 2)) == 0:
        axes.insert(draw(st.integers(0, len(axes))), ())
    return tuple(axes)


def forced(draw: Draw, model: Model) -> Counter[str]:
    """Rewrite ``main`` in modes drawn at random; how often each op type has got another than its own."""
    reading = read(model.function("main"), 64)
    graph = reading.graph
    also = [
        (number, draw(layouts(len(tensor.sizes))))
        for number, tensor in enumerate(graph.tensors)
        for _ in range(2 if tensor.sizes else 1)
    ]
    chosen = [draw(st.sampled_from(each[1:] or each)) for each in graph.modes(also)]
    changed: Counter[str] = Counter()
    for node, mode, relation in zip(reading.nodes, chosen, graph.relations, strict=True):
        if node.op is not None and mode != relation.original:
            changed[node.op.op_type] += 1
    write(reading, chosen)
    return changed


def write(reading: Reading, modes: list[Mode]) -> None:
    Writing(reading, modes, set(range(len(reading.graph.tensors)))).write()


def check(draw: Draw, program: Program) -> Counter[str]:
    before = load(program)
    after = before.clone()
    try:
        changed = forced(draw, after)
    except (ValueError, NoMatch) as error:
        if not any(each in str(error) for each in COREMLTOOLS_REFUSES):
            raise
        reject()
    after.program.validate()
    try:
        verdict = compare(before, after, trials=1)
    except EvaluationError:  # the program itself can't be run
        reject()
    assert verdict, f"{verdict}\n{text(before)}became\n{text(after)}"
    assert dead(after) <= dead(before), text(after)
    return changed


def whole_update(draw: Draw, values: Sequence[Var]) -> Var | None:
    """``slice_update`` of values, with nothing said but begin and end: what can take other layouts."""
    if not (some := [each for each in values if each.rank and each.val is None]):
        return None
    x = draw(st.sampled_from(some))
    begin = [draw(st.integers(0, dim - 1)) for dim in shape_of(x)]
    end = [draw(st.integers(low + 1, dim)) for low, dim in zip(begin, shape_of(x), strict=True)]
    update = mb.slice_by_index(x=mb.exp(x=x), begin=begin, end=end)
    written: Var = mb.slice_update(x=x, update=update, begin=begin, end=end)
    return written


def dead(model: Model) -> int:
    """How many ops nothing uses: drawn programs have some."""
    return sum(op.op_type != "const" and is_dead(op) for op in operations(model.function("main")))


@pytest.mark.parametrize("op_type", sorted(set(ENTRIES) - {"conv", "linear", "matmul"}))
def test_an_op_in_any_layout(op_type: str) -> None:
    changed: Counter[str] = Counter()
    kinds = ["fp32", "int32", "bool"] if op_type in ("select", "cast", "identity") or "logical" in op_type else ["fp32"]

    makers = {"slice_update": whole_update} if op_type == "slice_update" else {}
    programs = mil.programs(ops={op_type, "transpose", "reshape"}, max_ops=4, max_side=3, dtypes=kinds, makers=makers)
    for count in EXAMPLES:

        @settings(max_examples=count, suppress_health_check=tuple(cast("Any", HealthCheck)))
        @given(programs, st.data())
        def run(program: Program, data: Any) -> None:
            changed.update(check(data.draw, program))

        run()
        if changed[op_type]:
            return
    raise AssertionError(f"{op_type} was never in another layout")


SIDES = st.integers(1, 3)


@st.composite
def products(draw: Draw) -> Program:
    """``matmul`` of two inputs with any batch axes that broadcast, transposed or not."""
    rows, inner, columns = draw(SIDES), draw(SIDES), draw(SIDES)
    batch = draw(st.lists(SIDES, max_size=2))
    turned = [draw(st.booleans()) for _ in range(2)]
    shapes: list[tuple[int, ...]] = []
    for pair, turn in (((rows, inner), turned[0]), ((inner, columns), turned[1])):
        own = [1 if draw(st.integers(0, 3)) == 0 else dim for dim in batch]
        shapes.append((*own[draw(st.integers(0, len(own))) :], *(pair[::-1] if turn else pair)))

    @mb.program(input_specs=[mb.TensorSpec(shape, types.fp32) for shape in shapes], opset_version=target.iOS18)
    def program(x: Any, y: Any) -> Any:
        made = mb.matmul(x=mb.relu(x=x), y=mb.abs(x=y), transpose_x=turned[0], transpose_y=turned[1])
        return mb.exp(x=made)

    return program


@st.composite
def convolutions(draw: Draw) -> Program:
    """A 1x1 convolution over rows or an area, with a bias or without."""
    shape = tuple(draw(st.lists(SIDES, min_size=3, max_size=4)))
    outputs = draw(SIDES)
    weight: Any = np.resize(np.array([0.5, -1, 2, 0.25, -3], np.float32), (outputs, shape[1], *[1] * (len(shape) - 2)))
    bias = {"bias": np.arange(outputs, dtype=np.float32)} if draw(st.booleans()) else {}

    @mb.program(input_specs=[mb.TensorSpec(shape, types.fp32)], opset_version=target.iOS18)
    def program(x: Any) -> Any:
        return mb.exp(x=mb.conv(x=mb.relu(x=x), weight=weight, **bias))

    return program


@st.composite
def linears(draw: Draw) -> Program:
    """A linear layer on rows, with a bias or without."""
    shape = tuple(draw(st.lists(SIDES, min_size=2, max_size=3)))
    outputs = draw(SIDES)
    weight: Any = np.resize(np.array([0.5, -1, 2, 0.25, -3], np.float32), (outputs, shape[-1]))
    bias = {"bias": np.arange(outputs, dtype=np.float32)} if draw(st.booleans()) else {}

    @mb.program(input_specs=[mb.TensorSpec(shape, types.fp32)], opset_version=target.iOS18)
    def program(x: Any) -> Any:
        return mb.exp(x=mb.linear(x=mb.relu(x=x), weight=weight, **bias))

    return program


@pytest.mark.parametrize(
    ("op_type", "programs", "least"),
    [("matmul", products(), 10), ("conv", convolutions(), 3), ("linear", linears(), 10)],
)
def test_products_in_any_layout(op_type: str, programs: Any, least: int) -> None:
    changed: Counter[str] = Counter()

    @settings(max_examples=60, suppress_health_check=tuple(cast("Any", HealthCheck)))
    @given(programs, st.data())
    def run(program: Program, data: Any) -> None:
        changed.update(check(data.draw, program))

    run()
    assert changed[op_type] >= least

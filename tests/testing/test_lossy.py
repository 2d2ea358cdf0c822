"""The bound that a lossy pass declares accepts what it does, and not the mistakes it could make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from milopt.metrics import Lossy, Metric
from milopt.mil import Function, Operation, Program, mb, operations, target, types
from milopt.package import Model, load
from milopt.passes.attention import FuseSdpa
from milopt.passes.budget import Budget
from milopt.passes.compression import Palettize
from milopt.passes.quantization import Quantize
from milopt.passes.rope import RopeTable
from milopt.pipeline import Pass
from milopt.registry import create
from milopt.verify import compare
from tests.testing.subjects import pass_names


def program(build: Callable[..., Any], **inputs: Any) -> Program:
    made = Program()
    specs = {name: mb.placeholder(shape=shape, dtype=kind) for name, (shape, kind) in inputs.items()}
    with Function(specs, opset_version=target.iOS18) as function:
        function.set_outputs([build(**function.inputs)])
    made.add_function("main", function)
    return made


def layers() -> Program:
    source = np.random.default_rng(3)
    weights = [(source.standard_normal((64, 64)) / 8).astype(np.float16) for _ in range(2)]

    def build(x: Any) -> Any:
        return mb.linear(x=mb.tanh(x=mb.linear(x=x, weight=weights[0])), weight=weights[1])

    return program(build, x=((4, 64), types.fp16))


def rotary() -> Program:
    frequencies = (1e4 ** (-np.arange(8) / 8)).astype(np.float16)

    def build(p: Any) -> Any:
        floats = mb.cast(x=mb.expand_dims(x=p, axes=[-1]), dtype="fp16")
        return mb.cos(x=mb.mul(x=floats, y=frequencies))

    return program(build, p=((1, 6), types.int32))


def attention() -> Program:
    def build(q: Any, k: Any, v: Any) -> Any:
        scores = mb.mul(x=mb.matmul(x=q, y=k, transpose_y=True), y=np.float16(3**-0.5))
        return mb.matmul(x=mb.softmax(x=scores, axis=-1), y=v)

    shape = ((1, 2, 4, 3), types.fp16)
    return program(build, q=shape, k=shape, v=shape)


@dataclass(frozen=True)
class Planted:
    """A mistake: what is put in the place of an input of the ops that the pass has written.

    ``wrong`` is a function of the constant there; ``None`` multiplies what is computed by 1.25.
    """

    of: Pass
    build: Callable[[], Program]
    op_type: str
    name: str
    wrong: Callable[[Any], Any] | None
    label: str

    def put_in(self, model: Model) -> None:
        for op in list(operations(model.function())):
            if op.op_type == self.op_type:
                _replace(op, self.name, self.wrong)


def _replace(op: Operation, name: str, wrong: Callable[[Any], Any] | None) -> None:
    var = op.inputs[name]
    with op.enclosing_block:
        if wrong is None:
            made = mb.mul(x=var, y=np.float16(1.25), before_op=op)
        else:
            made = mb.const(val=wrong(var.val), before_op=op)
        op.set_inputs(**{name: made}, type_inference=False)


def _next_of(table: Any) -> Any:
    return np.roll(table, 1, 0)


PLANTED = [
    Planted(Palettize(), layers, "constexpr_lut_to_dense", "indices", lambda a: a[::-1].copy(), "rows in reverse"),
    Planted(Palettize(), layers, "constexpr_lut_to_dense", "lut", lambda a: a * 2, "twice the values"),
    Planted(Palettize(bits=1), layers, "constexpr_lut_to_dense", "lut", np.zeros_like, "zeros, of one bit"),
    Planted(Budget(size=0.3), layers, "constexpr_lut_to_dense", "indices", lambda a: a[::-1].copy(), "rows in reverse"),
    Planted(Budget(size=0.3), layers, "constexpr_lut_to_dense", "lut", lambda a: a * 2, "twice the values"),
    Planted(Quantize(), layers, "constexpr_blockwise_shift_scale", "scale", lambda a: a * 3, "scale"),
    Planted(Quantize(), layers, "constexpr_blockwise_shift_scale", "data", lambda a: a[:, ::-1].copy(), "columns"),
    Planted(Quantize(dtype="int8"), layers, "constexpr_blockwise_shift_scale", "data", np.zeros_like, "zeros"),
    Planted(RopeTable(context=16), rotary, "gather", "x", _next_of, "the next position's row"),
    Planted(FuseSdpa(), attention, "scaled_dot_product_attention", "query", None, "scale of the scores"),
]


def judged(planted: Planted, *, wrong: bool) -> tuple[bool, Metric]:
    original = load(planted.build())
    model = original.clone()
    report = planted.of.run(model)
    assert report, f"{planted.of} did nothing"
    metric = report.metric or planted.of.metric
    if wrong:
        planted.put_in(model)
    return bool(compare(original, model, metric=metric)), metric


@pytest.mark.parametrize("planted", PLANTED, ids=lambda each: f"{each.of.name}: {each.label}")
def test_a_planted_mistake_is_rejected(planted: Planted) -> None:
    accepted, metric = judged(planted, wrong=False)
    assert accepted
    assert isinstance(metric, Lossy)
    assert not judged(planted, wrong=True)[0]


def test_every_lossy_pass_is_here() -> None:
    """Those whose metric is lossy as declared; ``fuse-sdpa`` says so in its report."""
    lossy = {name for name in pass_names() if isinstance(create(name).metric, Lossy)}
    assert lossy <= {each.of.name for each in PLANTED}

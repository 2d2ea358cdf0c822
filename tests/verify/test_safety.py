"""Metrics that call precisions safe: what a rewrite loses or repairs when every step is rounded."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import numpy as np
import pytest

from milopt.errors import MiloptError, VerificationError
from milopt.interpreter import evaluate
from milopt.metrics import Exact, Lossy
from milopt.mil import Program, mb, target, types
from milopt.package import Model, load
from milopt.passes.norms import Fp16SafeNorm
from milopt.pipeline import Pass, Pipeline
from milopt.reports import Report
from milopt.verify import compare, freeze

F16: Any = np.float16
BOTH = Exact(safe_in=("declared", "declared-strict"))
EPS = 1e-5


def program(build: Callable[[Any], Any], *shape: int) -> Program:
    @mb.program(input_specs=[mb.TensorSpec(shape or (1, 2, 4, 8), types.fp16)], opset_version=target.iOS17)
    def built(x: Any) -> Any:
        return mb.identity(x=build(x), name="out")

    made: Program = built
    return made


def fused(x: Any) -> Any:
    return mb.l2_norm(x=x, epsilon=F16(EPS))


def scaled(x: Any) -> Any:
    """The same, of numbers scaled to at most 4: ``x i / sqrt(sum((x i)²) + eps i²)``."""
    axes = [-3, -2, -1]
    largest = mb.reduce_max(x=mb.abs(x=x), axes=axes, keep_dims=True)
    scale = mb.real_div(x=F16(4), y=mb.maximum(x=largest, y=F16(2**-8)))
    rows = mb.mul(x=x, y=scale)
    total = mb.reduce_sum(x=mb.mul(x=rows, y=rows), axes=axes, keep_dims=True)
    floor = mb.mul(x=mb.mul(x=scale, y=F16(EPS)), y=scale)
    return mb.mul(x=rows, y=mb.rsqrt(x=mb.add(x=total, y=floor), epsilon=F16(0)))


def spelled(x: Any) -> Any:
    mean = mb.reduce_mean(x=mb.square(x=x), axes=[-1], keep_dims=True)
    return mb.mul(x=x, y=mb.rsqrt(x=mb.add(x=mean, y=F16(EPS)), epsilon=F16(0)))


def test_an_overflow_that_a_rewrite_brings_in_is_found_where_it_is() -> None:
    """Inside one op: no other precision knows it."""
    before, after = program(scaled), program(fused)
    assert compare(before, after)
    assert compare(before, after, metric=Exact(safe_in=("declared",)))
    verdict = compare(before, after, metric=BOTH)
    assert not verdict
    assert verdict.difference is not None
    assert verdict.difference.reason.startswith("in declared-strict it has 0.0 dB against the original in float64, 6")
    assert verdict.difference.label == "large random inputs for main"
    assert verdict.difference.first is not None
    assert verdict.difference.first.op_type == "l2_norm"
    assert "(by l2_norm)" in str(verdict)
    where = verdict.difference.where
    assert where is not None
    assert (where.output, where.after) == ("out", 0)


def test_an_overflow_that_a_rewrite_takes_away_is_told() -> None:
    verdict = compare(program(fused), program(scaled), metric=BOTH)
    assert verdict
    told = {(each.precision, each.label.split()[0]): (each.before_db, each.after_db) for each in verdict.safety}
    assert told.keys() == {(p, k) for p in ("declared", "declared-strict") for k in ("ordinary", "large")}
    for (precision, kind), (before, after) in told.items():
        assert (before == 0) == ((precision, kind) == ("declared-strict", "large"))
        assert after > 60
    assert str(verdict).splitlines()[0].endswith("rtol=1e-06, safe in declared and declared-strict)")
    assert "declared-strict: out 0.0 dB before, " in str(verdict)


def test_a_program_may_stay_as_bad_as_it_was() -> None:
    """What other passes leave of an overflow is not this one's fault."""
    assert compare(program(fused), program(lambda x: mb.identity(x=fused(x))), metric=BOTH)


def test_lost_bits_count_like_an_overflow() -> None:
    def rough(x: Any) -> Any:  # the same in float64, but x passes numbers where fp16 steps by 8
        return mb.sub(x=mb.add(x=x, y=F16(8192)), y=F16(8192))

    verdict = compare(program(lambda x: mb.mul(x=x, y=F16(1))), program(rough), metric=BOTH)
    assert verdict.difference is not None
    assert verdict.difference.reason.startswith("in declared it has ")
    assert verdict.safety[-1].before_db == inf


def test_integers_are_not_judged() -> None:
    def build(x: Any) -> Any:
        return mb.reduce_argmax(x=fused(x), axis=-1)

    verdict = compare(program(build), program(build), metric=BOTH)
    assert verdict
    assert verdict.safety == ()


def test_a_snapshot_must_hold_the_precisions() -> None:
    before, after = load(program(fused)), load(program(scaled))
    with pytest.raises(MiloptError, match="frozen without declared can't be compared as exact in float64"):
        compare(freeze(before), after, metric=BOTH)
    assert compare(freeze(before, also=BOTH.safe_in), freeze(after, also=BOTH.safe_in), metric=BOTH).safety


def test_the_chosen_function_alone_is_judged() -> None:
    assert compare(program(fused), program(scaled), metric=BOTH, function="main").safety


class _Fuse(Pass):
    """``scaled`` -> ``fused``, a rewrite the wrong way round."""

    name = "fuse-l2-norm"
    metric = BOTH

    def run(self, model: Model) -> Report:
        model.program.functions["main"] = program(fused).functions["main"]
        return Report(self.name, applied=1)


@pytest.mark.parametrize("mode", ["each", "stage"])
def test_a_pipeline_judges_what_its_passes_declare(mode: str) -> None:
    with pytest.raises(
        VerificationError, match=r"fuse-l2-norm: differs: output out .*in declared-strict it has 0\.0 dB"
    ):
        Pipeline((_Fuse(),)).run(load(program(scaled)), verify=mode)


@pytest.mark.parametrize("mode", ["each", "stage"])
def test_safe_norms_are_judged_in_both(mode: str) -> None:
    report = Pipeline.parse("canonicalize,fp16-safe-norm").run(load(program(spelled)), verify=mode)
    verdict = report.verdicts[-1]
    assert verdict.metric == BOTH
    repaired = [each for each in verdict.safety if each.label.startswith("large")]
    assert [each.precision for each in repaired] == list(BOTH.safe_in)
    assert all(each.before_db < 20 and each.after_db > 60 for each in repaired)


def test_safe_norms_hold_where_only_the_sum_of_squares_is_large() -> None:
    """Squares of 40 fit fp16, their sum over 64 does not: only ``declared-strict`` sees that the norm was not safe."""
    x = np.full((1, 64), 40, F16)
    before, after = program(spelled, *x.shape), program(spelled, *x.shape)
    assert Fp16SafeNorm().run(load(after)).applied == 1
    assert (evaluate(before, {"x": x})["out"] == 1).all()
    assert not evaluate(before, {"x": x}, precision="declared-strict")["out"].any()
    assert (evaluate(after, {"x": x}, precision="declared-strict")["out"] == 1).all()


def test_other_metrics_say_nothing_of_it() -> None:
    assert str(Exact()) == "exact in float64, rtol=1e-06"
    assert compare(program(scaled), program(scaled), metric=Lossy(30)).safety == ()

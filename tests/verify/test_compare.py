"""Planted wrong rewrites are found, right ones pass, and the verdict says what was done."""

from __future__ import annotations

import contextlib
import io
import runpy
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from milopt.errors import EvaluationError, MiloptError
from milopt.metrics import Lossy
from milopt.mil import Program, Var, get_new_symbol, mb, target, types
from milopt.package import load
from milopt.verify import compare, freeze
from tests.verify.decoders import Decoder
from tests.verify.programs import accumulator, attention, two_layers, unary


def test_equal_programs() -> None:
    verdict = compare(attention(), attention())
    assert verdict
    assert str(verdict) == "no difference in 3 trials (exact in float64, rtol=1e-06)"
    assert (verdict.trials, verdict.max_relative, verdict.snr_db) == (3, 0.0, float("inf"))


def test_one_trial_is_singular() -> None:
    assert str(compare(attention(), attention(), trials=1)).startswith("no difference in 1 trial (")


@pytest.mark.parametrize(
    "wrong",
    [
        attention(scale=0.2501),
        attention(masked=False),
        attention(axis=-2),
    ],
    ids=["scale", "mask dropped", "axis"],
)
def test_wrong_attention(wrong: Program) -> None:
    assert not compare(attention(), wrong)


def test_transposed_weight_is_located() -> None:
    verdict = compare(two_layers(), two_layers(flip=True))
    assert not verdict
    assert verdict.difference is not None
    assert verdict.difference.where is not None
    assert verdict.difference.where.output == "out"
    assert verdict.difference.first is not None
    assert verdict.difference.first.name == "out"


def test_first_value_is_the_earliest() -> None:
    """Both outputs differ, and with them everything after the first linear."""
    verdict = compare(two_layers(), two_layers(bias=0.5))
    assert verdict.difference is not None
    first, where = verdict.difference.first, verdict.difference.where
    assert first is not None
    assert where is not None
    assert (first.name, first.op_type) == ("hidden", "linear")
    assert isinstance(first.before, float)
    assert isinstance(first.after, float)
    assert first.after - first.before == pytest.approx(0.5)
    assert where.trial == 0


def test_message() -> None:
    lines = str(compare(attention(), attention(scale=0.3), seed=4)).splitlines()
    assert lines[0].startswith("differs: output out in trial 1 of 3 (seed 4; ordinary random inputs for main): ")
    assert " before, " in lines[1]
    assert lines[2].startswith("  first value that differs: scaled (by mul) at (")
    assert lines[3:] == [
        "before:  main[CoreML8](%q, %k, %v, %mask) matmul, mul, add, softmax, matmul",
        "after:   main[CoreML8](%q, %k, %v, %mask) matmul, mul, add, softmax, matmul",
    ]


def test_inner_values_on_their_own_need_not_agree() -> None:
    """The scale moved in front of the product: ``scores`` changes, and what comes out does not."""

    @mb.program(
        input_specs=[mb.TensorSpec(s) for s in ((1, 2, 3, 8), (1, 2, 5, 8), (1, 2, 5, 8), (1, 1, 3, 5))],
        opset_version=target.iOS18,
    )
    def moved(q: Var, k: Var, v: Var, mask: Var) -> Var:
        scores = mb.matmul(x=mb.mul(x=q, y=np.float32(0.25)), y=k, transpose_y=True, name="scores")
        shares = mb.softmax(x=mb.add(x=scores, y=mask), axis=-1)
        out: Var = mb.matmul(x=shares, y=v, name="out")
        return out

    assert compare(attention(), moved)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (attention(output="other"), "output 'out' of function 'main' is gone"),
        (
            attention(dtype=types.fp16),
            "input 'q' of function 'main' is fp32[1, 2, 3, 8] before, fp16[1, 2, 3, 8] after",
        ),
        (attention(heads=1), "input 'q' of function 'main' is fp32[1, 2, 3, 8] before, fp32[1, 1, 3, 8] after"),
    ],
)
def test_signatures_come_first(wrong: Program, reason: str) -> None:
    verdict = compare(attention(), wrong)
    assert not verdict
    assert str(verdict) == f"differs: {reason}"
    assert verdict.trials == 0


def doubled(size: int | None) -> Program:
    """``x`` of 3 entries twice; MIL thinks that the result has ``size`` entries, or doesn't know."""

    @mb.program(input_specs=[mb.TensorSpec((3,))], opset_version=target.iOS18)
    def program(x: Var) -> Var:
        out: Any = mb.concat(values=[x, x], axis=0, name="out")
        out._sym_type = types.tensor(types.fp32, (get_new_symbol() if size is None else size,))
        made: Var = out
        return made

    return program


def test_an_output_may_be_told_a_size_that_was_open() -> None:
    assert compare(doubled(None), doubled(6))
    assert str(compare(doubled(6), doubled(None))) == (
        "differs: output 'out' of function 'main' is fp32[6] before, fp32[?] after"
    )
    assert "gave shape (6,) for 'out', declared fp32[5]" in str(compare(doubled(None), doubled(5)))


def test_states_are_compared() -> None:
    """Only the state shows it at first, and later outputs do."""
    assert compare(accumulator(), accumulator())
    verdict = compare(accumulator(), accumulator(forgets=True))
    assert verdict.difference is not None
    assert verdict.difference.where is not None
    assert verdict.difference.where.output == "state total"


def test_nan_equals_nan_only_at_its_place() -> None:
    inputs = [{"x": np.array([[-1.0, 2, 3, 4, 5, 6]] * 2, np.float32)}]
    verdict = compare(unary("sqrt"), unary("sqrt"), inputs=inputs, trials=0)
    assert verdict
    assert "16.7% of an output is NaN in both" in str(verdict)
    assert not compare(unary("sqrt"), unary("relu"), inputs=inputs, trials=0)
    assert not compare(unary("relu"), unary("sqrt"), inputs=inputs, trials=0)


def test_logarithms_get_numbers_they_take() -> None:
    verdict = compare(unary("rsqrt", shape=(1,)), unary("rsqrt", shape=(1,)), trials=8)
    assert verdict.nan < 1


def test_infinities_must_have_their_sign() -> None:
    inputs = [{"x": np.zeros((2, 6), np.float32)}]
    plus, minus = unary("inverse", epsilon=np.float32(0)), unary("log", epsilon=np.float32(0))
    assert compare(plus, plus, inputs=inputs, trials=0)
    assert not compare(plus, minus, inputs=inputs, trials=0)


def test_an_output_of_zeros_must_stay_zero() -> None:
    """Relative to the larger of both: a difference at zero is no small difference."""
    zero, small = unary("mul", y=np.float32(0)), unary("mul", y=np.float32(1e-12))
    assert compare(zero, zero)
    assert not compare(zero, small)


def test_lossy_bounds() -> None:
    """Noise of 1e-3 on weights of size 1 is 60 dB, of 3e-2 about 30 dB."""
    metric = Lossy(min_snr_db=45)
    good = compare(two_layers(), two_layers(noise=1e-3), metric=metric)
    assert good
    assert good.snr_db == pytest.approx(60, abs=5)  # the noise is random: 256 weights, three draws of inputs
    assert "within bounds in 3 trials (at least 45 dB against the original in float64): " in str(good)
    bad = compare(two_layers(), two_layers(noise=3e-2), metric=metric)
    assert not bad
    assert bad.difference is not None
    assert bad.difference.reason.endswith(" dB")
    assert not compare(two_layers(), two_layers(flip=True), metric=metric)


def test_lossy_runs_the_second_as_declared() -> None:
    """fp16 overflows at 65504: float64 would not show it."""

    def squares(factor: float) -> Program:
        @mb.program(input_specs=[mb.TensorSpec((4,), types.fp16)], opset_version=target.iOS18)
        def program(x: Var) -> Var:
            big = mb.mul(x=mb.mul(x=x, y=np.float16(factor)), y=np.float16(factor))
            out: Var = mb.mul(x=mb.mul(x=big, y=np.float16(1 / factor)), y=np.float16(1 / factor), name="out")
            return out

        result: Program = program
        return result

    assert compare(squares(1), squares(2048))
    assert compare(squares(1), squares(8), metric=Lossy(60))
    assert not compare(squares(1), squares(2048), metric=Lossy(60))


def test_top1_of_logits() -> None:
    def head(shift: float) -> Program:
        @mb.program(input_specs=[mb.TensorSpec((64, 4))], opset_version=target.iOS18)
        def program(x: Var) -> Var:
            out: Var = mb.add(x=x, y=np.array([shift, 0, 0, 0], np.float32), name="logits")
            return out

        result: Program = program
        return result

    verdict = compare(head(0), head(0.5), metric=Lossy(0, min_top1=0.99))
    assert not verdict
    assert verdict.top1 is not None
    assert 0.5 < verdict.top1 < 0.99
    assert "top-1 kept in" in str(verdict)
    assert compare(head(0), head(0.5), metric=Lossy(0, min_top1=0.5))


def test_integers_are_exact_but_argmax_may_lose_ties() -> None:
    def largest(noise: float) -> Program:
        @mb.program(input_specs=[mb.TensorSpec((64, 8))], opset_version=target.iOS18)
        def program(x: Var) -> Var:
            y = mb.add(x=x, y=np.linspace(0, noise, 8).astype(np.float32))
            out: Var = mb.reduce_argmax(x=y, axis=-1, name="best")
            return out

        result: Program = program
        return result

    assert not compare(largest(0), largest(0.5))
    verdict = compare(largest(0), largest(0.5), metric=Lossy(0))
    assert verdict
    (measured,) = verdict.measured
    assert measured.agreement is not None
    assert 0.5 < measured.agreement < 1
    assert not compare(largest(0), largest(0.5), metric=Lossy(0, min_top1=0.999))


def test_a_frozen_model_is_the_model_as_it_was() -> None:
    model = load(attention())
    frozen = freeze(model)
    op = next(op for op in model.function().operations if op.op_type == "softmax")
    op.enclosing_block.replace_uses_of_var_after_op(op, op.outputs[0], op.inputs["x"])
    assert not compare(frozen, model)
    assert compare(frozen, attention())


def test_same_seed_same_trials() -> None:
    def digits(seed: int) -> str:
        return str(compare(attention(), attention(scale=0.3), seed=seed))

    assert digits(1) == digits(1)
    assert digits(1) != digits(2)


def test_inputs_given() -> None:
    """The two differ where x is negative only."""
    negative, positive = ({"x": sign * np.ones((2, 6), np.float32)} for sign in (-1, 1))
    assert compare(unary("abs"), unary("relu"), inputs=[positive], trials=0)
    assert not compare(unary("abs"), unary("relu"), inputs=[positive, negative], trials=0)


def test_nothing_to_try() -> None:
    with pytest.raises(MiloptError, match="nothing to compare on"):
        compare(attention(), attention(), trials=0)


def test_unknown_function() -> None:
    with pytest.raises(MiloptError, match="no function 'prefill'; this model has: main"):
        compare(attention(), attention(), function="prefill")


def test_inputs_that_do_not_fit() -> None:
    with pytest.raises(EvaluationError, match="lacks 'x'"):
        compare(unary("relu"), unary("relu"), inputs=[{"y": np.ones(3, np.float32)}], trials=0)


def _run(script: str, folder: Path, *arguments: str) -> tuple[object, str]:
    """Exit status and output of a script, run as if it were a program of its own."""
    (folder / "reproduce.py").write_text(script)
    printed = io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["reproduce.py", *arguments]),
        contextlib.redirect_stdout(printed),
        pytest.raises(SystemExit) as ended,
    ):
        runpy.run_path(str(folder / "reproduce.py"), run_name="__main__")
    return ended.value.code, printed.getvalue().strip()


def test_script_repeats_the_comparison(tmp_path: Path) -> None:
    paths = [
        str(load(each).save(tmp_path / f"{name}.mlpackage"))
        for name, each in (("before", two_layers()), ("after", two_layers(flip=True)))
    ]
    verdict = compare(*paths, seed=3)
    assert _run(verdict.script(), tmp_path, *paths) == (1, str(verdict))
    assert _run(verdict.script(), tmp_path, paths[0], paths[0])[0] == 0


def test_script_with_inputs_of_the_caller(tmp_path: Path) -> None:
    arrays = {"x": -np.ones((2, 6), np.float32)}
    paths = [str(load(unary(op)).save(tmp_path / f"{op}.mlpackage")) for op in ("abs", "relu")]
    verdict = compare(*paths, inputs=[arrays], trials=0)
    given = tmp_path / "inputs.npz"
    np.savez(given, allow_pickle=False, **arrays)
    assert _run(verdict.script(), tmp_path, *paths, str(given)) == (1, str(verdict))


def test_script_with_prompts() -> None:
    verdict = compare(Decoder().stateless(), Decoder().stateful(), inputs=[[1, 2, 3]], trials=1)
    assert "inputs=[[1, 2, 3]],\n" in verdict.script()
    compile(verdict.script(), "reproduce.py", "exec")

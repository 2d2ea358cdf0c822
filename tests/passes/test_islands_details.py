"""fp32-islands in detail: what is written for each spelling, for each place of the positions, and what is told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from milopt.metrics import Lossy
from milopt.mil import Program, mb, target, types
from milopt.package import load
from milopt.passes.islands import Fp32Islands, WidenAngles, WidenNorm
from milopt.passes.rope import Made

from .refusals import body, refusals
from .test_islands import EXACT, norm, rotation, run

F16: Any = np.float16
HALVES: Any = (2.0 ** -np.arange(4)).astype(F16)


def lines(program: Program) -> list[str]:
    return [line.partition(": ")[2] for line in body(program)]


HEAD = [
    'fp32[1, 3, 16] = cast(x=%x, dtype="fp32")',
    "fp32[1, 3, 16] = mul(x=%0, y=%0)",
    "fp32[1, 3, 1] = reduce_mean(x=%1, axes=[-1], keep_dims=true)",
]
NORMS = {
    "floor": [
        *HEAD,
        "fp32[1, 3, 1] = rsqrt(x=%2, epsilon=0.0009765625)",
        "fp32[1, 3, 16] = mul(x=%0, y=%3)",
        'fp16[1, 3, 16] = cast(x=%4, dtype="fp16")',
    ],
    "inverse": [
        *HEAD,
        "fp32[1, 3, 1] = add(x=%2, y=0.0009765625)",
        "fp32[1, 3, 1] = sqrt(x=%3)",
        "fp32[1, 3, 1] = add(x=%4, y=0.25)",
        "fp32[1, 3, 16] = real_div(x=%0, y=%5)",
        'fp16[1, 3, 16] = cast(x=%6, dtype="fp16")',
    ],
    "division": [
        *HEAD,
        "fp32[1, 3, 1] = add(x=%2, y=0.0009765625)",
        "fp32[1, 3, 1] = rsqrt(x=%3, epsilon=0.0)",
        "fp32[1, 3, 16] = mul(x=%0, y=%4)",
        'fp16[1, 3, 16] = cast(x=%5, dtype="fp16")',
    ],
}


@pytest.mark.parametrize("kind", NORMS)
def test_what_is_written_for_a_norm(kind: str) -> None:
    program = norm(kind, eps=2.0**-10)
    assert run(program).applied == 1
    assert lines(program)[:-1] == NORMS[kind]


def test_a_norm_that_is_fp32_already() -> None:
    @mb.program(input_specs=[mb.TensorSpec((1, 3, 16), types.fp32)], opset_version=target.iOS17)
    def wide(x: Any) -> Any:
        mean = mb.reduce_mean(x=mb.mul(x=x, y=x), axes=[-1], keep_dims=True)
        return mb.mul(x=x, y=mb.rsqrt(x=mean, epsilon=np.float32(1e-5)), name="out")

    assert refusals(WidenNorm(), wide) == [("it is fp32 already", "x")]

    @mb.program(input_specs=[mb.TensorSpec((1, 3, 16), types.fp16)], opset_version=target.iOS17)
    def inside(x: Any) -> Any:
        y = mb.cast(x=x, dtype="fp32")
        mean = mb.reduce_mean(x=mb.mul(x=y, y=y), axes=[-1], keep_dims=True)
        root = mb.cast(x=mb.rsqrt(x=mean, epsilon=np.float32(1e-5)), dtype="fp16")
        return mb.mul(x=x, y=root, name="out")

    assert {*refusals(WidenNorm(), inside)} <= {("it is fp32 already", "x")}
    report = run(inside)
    assert (report.applied, report.misses, report.name) == (0, [], "fp32-islands")


def test_what_is_written_for_angles() -> None:
    program = rotation(HALVES)
    assert run(program).applied == 2
    assert lines(program)[:5] == [
        'fp32[1, 5] = cast(x=%position_ids, dtype="fp32")',
        "fp32[1, 5, 1] = expand_dims(x=%0, axes=[2])",
        "fp32[1, 5, 4] = mul(x=%1, y=[[[1.0, 0.5, 0.25, 0.125]]])",
        "fp32[1, 5, 4] = cos(x=%2)",
        'fp16[1, 5, 4] = cast(x=%3, dtype="fp16")',
    ]
    assert any(" = sin(" in line for line in lines(program))


def test_what_is_written_for_angles_with_a_phase_in_another_order() -> None:
    program = rotation(HALVES, 0.5, [2, 1, 0])
    assert run(program).applied == 2
    assert lines(program)[:6] == [
        'fp32[1, 5] = cast(x=%position_ids, dtype="fp32")',
        "fp32[5, 1] = transpose(x=%0, perm=[1, 0])",
        "fp32[1, 5, 1] = expand_dims(x=%1, axes=[0])",
        "fp32[4, 5, 1] = mul(x=%2, y=[[[1.0]], [[0.5]], [[0.25]], [[0.125]]])",
        "fp32[4, 5, 1] = add(x=%3, y=[[[0.5]], [[0.5]], [[0.5]], [[0.5]]])",
        "fp32[4, 5, 1] = cos(x=%4)",
    ]


def test_positions_that_are_the_angles() -> None:
    """Nothing is transposed, widened or shifted where the positions are as they must be."""

    @mb.program(input_specs=[mb.TensorSpec((1, 5), types.int32)], opset_version=target.iOS17)
    def built(position_ids: Any) -> Any:
        return mb.sin(x=mb.mul(x=mb.cast(x=position_ids, dtype="fp16"), y=F16(0.5)), name="s")

    assert run(built).applied == 1
    found = lines(built)
    assert found[0] == 'fp32[1, 5] = cast(x=%position_ids, dtype="fp32")'
    assert [line.partition(" = ")[2].partition("(")[0] for line in found] == ["cast", "mul", "sin", "cast"]


def test_angles_that_are_fp32_or_constant_and_where() -> None:
    @mb.program(input_specs=[mb.TensorSpec((1, 5), types.int32)], opset_version=target.iOS17)
    def wide(position_ids: Any) -> Any:
        angles = mb.mul(x=mb.cast(x=position_ids, dtype="fp32"), y=np.float32(0.5), name="angles")
        return mb.cos(x=angles, name="c")

    assert refusals(WidenAngles(), wide) == [("it is fp32 already", "angles")]


def test_what_is_measured() -> None:
    """Frequencies that fp16 holds leave nothing to tell; others the noise of the original, at as many positions."""
    made = Made()
    model = load(rotation(EXACT.astype(F16)))
    report = Fp32Islands().run(model)
    assert report.notes == ["inverse frequencies that fp16 had rounded were restored: theta 100000"]
    assert isinstance(report.metric, Lossy)
    assert report.metric.min_snr_db <= 35.0
    assert made.original_db == np.inf
    assert run(rotation(HALVES)).metric is None


def test_rules_are_compared_by_what_they_say() -> None:
    assert WidenAngles(64, Made()) == WidenAngles(64, Made())
    assert WidenAngles(64) != WidenAngles()
    assert WidenAngles().rows == 4096
    assert Fp32Islands() == Fp32Islands()


def test_phases_of_some_angles_are_added_to_all() -> None:
    @mb.program(input_specs=[mb.TensorSpec((1, 5), types.int32)], opset_version=target.iOS17)
    def built(position_ids: Any) -> Any:
        column = mb.cast(x=mb.expand_dims(x=position_ids, axes=[2]), dtype="fp16")
        angles = mb.add(x=mb.mul(x=column, y=HALVES.reshape(1, 1, -1)), y=np.array([[[0, 0.5, 0, 0.25]]], F16))
        return mb.cos(x=angles, name="c")

    assert run(built).applied == 1
    assert "fp32[1, 5, 4] = add(x=%2, y=[[[0.0, 0.5, 0.0, 0.25]]])" in lines(built)


def test_frequencies_of_no_known_form_are_taken_as_they_are() -> None:
    odd: Any = np.array([0.7, 0.31, 0.112, 0.0043], F16)
    program = rotation(odd)
    assert run(program).applied == 2
    told = ", ".join(str(value) for value in odd.astype(np.float32))
    assert lines(program)[2] == f"fp32[1, 5, 4] = mul(x=%1, y=[[[{told}]]])"

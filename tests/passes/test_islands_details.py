"""fp32-islands in detail: what is written for each spelling, for each place of the positions, and what is told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from milopt.metrics import Exact, Lossy
from milopt.mil import Program, constant, mb, target, types
from milopt.package import load
from milopt.passes.angles import Tabulated, tabulate
from milopt.passes.islands import Fp32Islands, WidenAngles, WidenNorm
from milopt.passes.rope import CONTEXT_KEY, Made
from milopt.passes.rotary_forms import Dynamic

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


def least(rows: int) -> float:
    """The signal-to-noise ratio of the original's cosines and sines, at the position where it is worst."""
    made = Made()
    for var in rotation(EXACT.astype(F16)).functions["main"].outputs:
        exact, stored = (tabulate(var, rows, as_stored=as_stored).table for as_stored in (False, True))
        made.compare(exact, stored)
    return made.original_db


def test_what_restored_frequencies_may_change() -> None:
    """As many positions count as the model says it has, or 4096; beyond 45 dB the rest of the program tells."""
    assert Fp32Islands.metric == Exact(safe_in=("declared",))
    assert WidenAngles().rows == 4096
    for rows, wanted in ((None, least(4096) - 10), (300, least(300) - 10), (1, 35.0)):
        model = load(rotation(EXACT.astype(F16)))
        if rows is not None:
            model.metadata[CONTEXT_KEY] = str(rows)
        assert Fp32Islands().run(model).metric == Lossy(wanted)
    assert least(4096) < least(300) < 45 < least(3)


@pytest.mark.parametrize(("rows", "last"), [(None, 4095), (300, 299), (1, 2)])
def test_frequencies_that_nothing_explains_are_taken_as_they_are(rows: int | None, last: int) -> None:
    row = np.array([1, -0.3, 0.171, 0.0913], F16)
    program = rotation(row)
    model = load(program)
    if rows is not None:
        model.metadata[CONTEXT_KEY] = str(rows)
    report = Fp32Islands().run(model)
    assert (report.applied, report.metric, len(report.notes)) == (2, None, 1)
    error = last * 2.0**-10 / 2  # half a unit in the last place of 1
    assert report.notes[0] == (
        f"the angles keep the fp16 rounding of the inverse frequencies, and may be {error:.2g} rad off at position "
        f"{last}: they are no inverse frequencies: some are negative, or not finite"
    )
    assert slopes(program) == row.tolist()


@pytest.mark.parametrize("kind", ["cos", "sin"])
def test_cosines_and_sines_are_compared_each_with_its_own(kind: str) -> None:
    """Without the other: the metric is that of the wave that is there."""
    rounded: Any = EXACT.astype(F16)

    @mb.program(input_specs=[mb.TensorSpec((1, 5), types.int32)], opset_version=target.iOS17)
    def program(position_ids: Any) -> Any:
        column = mb.cast(x=mb.expand_dims(x=position_ids, axes=[2]), dtype="fp16")
        return getattr(mb, kind)(x=mb.mul(x=column, y=rounded.reshape(1, 1, -1)), name="out")

    made = Made()
    exact, stored = (np.arange(4096)[:, None] * row for row in (EXACT, rounded.astype(float)))
    made.compare(getattr(np, kind)(exact), getattr(np, kind)(stored))
    found = run(program).metric
    assert isinstance(found, Lossy)
    assert found.min_snr_db == pytest.approx(made.original_db - 10, rel=1e-9)  # float64


def slopes(program: Program) -> list[float]:
    """What the positions are multiplied with first."""
    product = next(op for op in program.functions["main"].operations if op.op_type == "mul")
    found: list[float] = constant(product.inputs["y"]).ravel().tolist()
    return found


def test_frequencies_that_several_forms_explain_are_taken_as_they_are() -> None:
    """Forms whose angles are the same for the first positions, and not for the last, are not told apart by those."""
    row = Dynamic(1e6, ratio=12.0).frequencies(8).astype(F16)
    few, many = rotation(row), rotation(row)
    assert (
        run(many)
        .notes[0]
        .endswith("several closed forms explain them: theta 1000000, dynamic: 12; theta 500000, dynamic: 22")
    )
    assert slopes(many) == row.tolist()
    model = load(few)
    model.metadata[CONTEXT_KEY] = "3"
    assert "restored" in Fp32Islands().run(model).notes[0]
    assert slopes(few) == Dynamic(1e6, ratio=12.0).frequencies(8).astype(np.float32).tolist()


@pytest.mark.parametrize(
    ("steps", "fits"),
    [
        ((1.0, 1.0), True),
        ((1.0, 1.0 + 2.8e-12), True),
        ((1.0, 1.0 + 3.2e-12), False),
        ((1.0, 1.0 - 3.2e-12), False),
        ((0.0, 1e-12), True),
        ((0.0, 1.5e-12), False),
        ((-1.0, -1.0 - 2.8e-12), True),
        ((-1e3, -1e3 - 5e-10), True),
        ((1e3, 1e3 + 3e-9), False),
    ],
)
def test_steps_are_equal_as_far_as_float64_tells(
    steps: tuple[float, float], fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = rotation(HALVES)
    wave = next(op for op in program.functions["main"].operations if op.op_type == "cos")
    real = tabulate(wave.inputs["x"], 3)
    numbers: Any = np.zeros((3, 1, 1, 4))
    numbers[:, 0, 0, 1] = np.cumsum([0.0, *steps])

    def made(*_: Any, **__: Any) -> Tabulated:
        return Tabulated(real.positions, real.axes, numbers)

    monkeypatch.setattr("milopt.passes.islands.tabulate", made)
    report = run(program)
    told = [(miss.reason, miss.place) for miss in report.misses]
    reason = ("its angles are no multiples of the positions", wave.inputs["x"].name)
    assert (report.applied, told) == ((2, []) if fits else (0, [reason] * 2))


def test_angles_that_are_constant_stay() -> None:
    @mb.program(input_specs=[mb.TensorSpec((1, 4), types.fp16)], opset_version=target.iOS17)
    def built(x: Any) -> Any:
        return mb.add(x=x, y=mb.cos(x=mb.add(x=HALVES, y=HALVES, name="angles")), name="out")

    assert refusals(Fp32Islands(), built) == [("its angles are constant", "angles")]


def test_rules_with_other_results_are_the_same_rule() -> None:
    """What a run has made is no part of what the rule is."""
    one, other = WidenAngles(5, Made()), WidenAngles(5, Made(original_db=3.0))
    assert (one == other, hash(one) == hash(other), one == WidenAngles(6)) == (True, True, False)
    assert WidenAngles().made is not WidenAngles().made

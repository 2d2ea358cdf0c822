"""budget in detail: each refused option, each line of its report, and what it asks of those that choose for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from milopt.calibration.sensitivity import FORM
from milopt.calibration.statistics import Statistics
from milopt.choosing import Choice, choose
from milopt.errors import MiloptError
from milopt.estimating import Form, losses
from milopt.mil import Program, digest, mb, target, types
from milopt.package import Model, load
from milopt.passes import budget
from milopt.passes.budget import Budget
from milopt.passes.compressing import CompressionReport
from milopt.passes.compression import Palettize
from milopt.reports import NoMatch

from .support import compressed, left_alone, weights

SIZE = 32
BYTES = SIZE * SIZE * 2
TABLE = "4 bits, a table per 16 channels"
ALIKE = "no sensitivities were measured: the relative errors of all weights count alike"


def chain(count: int = 2, *, opset: Any = target.iOS18) -> Program:
    """As many layers, one behind another: w0, w1..."""

    @mb.program(input_specs=[mb.TensorSpec((1, 8, SIZE), types.fp16)], opset_version=opset)
    def program(x: Any) -> Any:
        for number in range(count):
            x = mb.linear(x=x, weight=mb.const(val=weights((SIZE, SIZE), number), name=f"w{number}"))
        return x

    return program


def budgeted(program: Program, **options: Any) -> CompressionReport:
    return compressed(Budget(min_elements=256, **options), program)[1]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"size": 0}, "size is a share of the weights' bytes, above 0 and at most 1, not 0"),
        ({"size": 1.01}, "size is a share of the weights' bytes, above 0 and at most 1, not 1.01"),
        ({"loss": -0.5}, "loss must be at least 0, not -0.5"),
        ({"size": 0.5, "loss": 0.5}, "give size or loss, not both"),
        ({"bits": (4, 5)}, "bits are some of 1, 2, 3, 4, 6, 8, not (4, 5)"),
        ({"groups": (0, -1)}, "groups are numbers of channels, or 0 for one table, not (0, -1)"),
        ({"feedback": True}, "feedback needs calibration, the file of a calibration with --hessian"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        Budget(**options)
    assert str(error.value) == says


def test_a_target_is_needed() -> None:
    with pytest.raises(MiloptError) as error:
        Budget().run(load(chain(1)))
    assert str(error.value) == "budget needs a target: budget{size=0.25}, or budget{loss=0.05} with a calibration"


def test_a_size_that_can_not_be_met() -> None:
    with pytest.raises(MiloptError) as error:
        budgeted(chain(), size=0.05)
    # a byte for four numbers, and a table of four
    share = (SIZE * SIZE // 4 + 8) / BYTES
    assert str(error.value) == (
        f"budget: size=0.05 can't be met: with 2 bits and more the weights keep {share:.3f} of their bytes"
    )


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"size": 0.3, "bits": (2, 4)}, "lost, the least for size=0.3"),
        ({"loss": 0.02, "bits": (4, 8)}, "bytes, the fewest for loss=0.02"),
    ],
)
def test_what_is_told(options: dict[str, Any], what: str) -> None:
    report = budgeted(chain(), **options)
    bytes_of_one = SIZE * SIZE // 2 + 2 * 16 * 2
    alike, choice, form, *rest = report.notes
    assert (report.tried, report.applied, report.misses) == (2, 2, [])
    assert (alike, form) == (ALIKE, f"{TABLE}: 2 weights")
    found, _, said = choice.partition(" lost by estimate; ")
    assert found.startswith(f"{2 * bytes_of_one:,} bytes, 0.01")
    assert said == f"{what}: the best choice of all"
    assert rest[0] == f"2,048 numbers in 2 weights: {2 * BYTES:,} -> {2 * bytes_of_one:,} bytes"
    assert report.metric is not None
    assert [(each.name, each.form, each.after) for each in report.coverage] == [
        ("w0", TABLE, bytes_of_one),
        ("w1", TABLE, bytes_of_one),
    ]


@pytest.mark.parametrize("options", [{"size": 1}, {"loss": 0}])
def test_weights_that_are_worth_their_bytes(options: dict[str, Any]) -> None:
    report = left_alone(Budget(min_elements=256, **options), chain())
    assert [(miss.place, miss.reason) for miss in report.misses] == [
        ("w0", "worth its bytes: sensitivity 1"),
        ("w1", "worth its bytes: sensitivity 1"),
    ]
    assert report.notes[0] == ALIKE
    assert report.notes[1].startswith(f"{2 * BYTES:,} bytes, 0 lost by estimate; ")
    assert report.notes[2:] == ["as they are: 2 weights"]
    assert report.metric is None


def test_some_are_compressed_and_some_are_not() -> None:
    report = budgeted(chain(3), size=0.6, bits=(4,))
    kept = [miss.place for miss in report.misses]
    assert (report.tried, report.applied, len(kept)) == (3, 2, 1)
    assert [f"{TABLE}: 2 weights", "as they are: 1 weights"] == report.notes[2:4]
    assert [each.name for each in report.coverage if each.reason] == kept


def test_weights_that_no_form_is_for() -> None:
    """No note of sensitivities then; of several reasons the first is told."""
    report = left_alone(Budget(size=0.5, min_elements=2000), chain())
    assert report.notes == []
    assert [miss.reason for miss in report.misses] == ["too small: 1024 of 2000 numbers"] * 2

    def plan(form: Palettize, *_: Any) -> Any:
        raise NoMatch("{} bits are none for it", form.bits)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Palettize, "plan", plan)
        report = left_alone(Budget(size=0.5, bits=(4, 2), groups=(0,)), chain(1))
    assert [miss.reason for miss in report.misses] == ["2 bits are none for it"]


def test_the_forms_in_order() -> None:
    plain = Budget(size=0.5, bits=(4, 2, 4), groups=(16, 0), min_elements=7)
    assert plain._forms() == [  # pyright: ignore[reportPrivateUsage]
        Palettize(bits=2, granularity="tensor", group_size=1, min_elements=7),
        Palettize(bits=2, group_size=16, min_elements=7),
        Palettize(bits=4, granularity="tensor", group_size=1, min_elements=7),
        Palettize(bits=4, group_size=16, min_elements=7),
    ]
    fed = Budget(size=0.5, bits=(4,), groups=(8,), feedback=True, calibration="file")
    assert fed._forms() == [  # pyright: ignore[reportPrivateUsage]
        Palettize(bits=4, group_size=8, feedback=True, weighting="activation", calibration="file")
    ]


def test_forms_that_are_one_are_tried_once() -> None:
    """Functions of iOS16 have one table for a weight, whatever groups are asked for."""
    seen = measured(chain(1, opset=target.iOS16), size=0.6, bits=(4,), groups=(0, 8, 16))
    assert [len(forms) for _, forms in seen] == [1]


def measured(program: Program, **options: Any) -> list[tuple[Form, Sequence[Form]]]:
    """What the errors of each weight are measured for."""
    seen = list[tuple[Form, Sequence[Form]]]()

    def watched(plain: Form, forms: Sequence[Form], products: Any) -> Any:
        seen.append((plain, forms))
        return losses(plain, forms, products)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budget, "losses", watched)
        budgeted(program, **options)
    return seen


def test_errors_are_told_from_the_form_that_sensitivities_are_of() -> None:
    """One table for the weight, of the bits of all sensitivities, whatever forms are asked for."""
    ((plain, forms),) = measured(chain(1), size=0.5, bits=(2, 4), groups=(16,))
    assert (plain.bits, plain.rows.shape[0]) == (FORM.bits, 1)
    assert [(form.bits, form.rows.shape[0]) for form in forms] == [(2, 2), (4, 2)]


def limits(program: Program, **options: Any) -> list[float]:
    """The limits within which a choice is made, and the notes' last words of one that may not be the best."""
    seen = list[float]()

    def watched(costs: Any, gains: Any, limit: float) -> Choice:
        seen.append(limit)
        found = choose(costs, gains, limit)
        return Choice(found.options, found.cost, found.loss, found.loss / 2)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budget, "choose", watched)
        report = budgeted(program, **options)
    (note,) = [note for note in report.notes if " lost by estimate; " in note]
    reached = note.partition(" bytes")[0] if "loss" in options else note.partition(", ")[2].partition(" ")[0]
    least = float(note.rpartition(": the best is at least ")[2])
    # 1e-3: the note has four digits of what is lost
    assert least == pytest.approx(float(reached.replace(",", "")) / 2, rel=1e-3)
    return seen


def test_limits() -> None:
    assert limits(chain(), size=0.3) == [0.3 * 2 * BYTES]
    assert limits(chain(), loss=0.02) == [0.02]
    assert limits(chain(), size=0.3, recompress=True) == [0.3 * 2 * BYTES]


def test_what_was_not_measured_has_the_middle_sensitivity(tmp_path: Path) -> None:
    """Of four the third; each note stands there once, however many forms are tried."""
    statistics = Statistics()
    arrays = [weights((SIZE, SIZE), number) for number in range(5)]
    for array, sensitivity in zip(arrays[:4], (4.0, 1.0, 8.0, 2.0), strict=True):
        statistics.sensitivities[digest(array).hex()] = sensitivity
    statistics.save(tmp_path / "stats.safetensors")
    report = left_alone(
        Budget(loss=0, bits=(2, 4), calibration=str(tmp_path / "stats.safetensors"), min_elements=256), chain(5)
    )
    assert [miss.reason.rpartition(" ")[2] for miss in report.misses] == ["4", "1", "8", "2", "4"]
    told = [note for note in report.notes if "sensitivity" in note]
    assert told == ["the sensitivity of w4 was not measured: it has the middle one"]
    assert len(set(report.notes)) == len(report.notes)


def test_numbers_that_are_not_finite_are_left() -> None:
    wrong = weights((SIZE, SIZE))
    wrong[3, 4] = np.inf

    @mb.program(input_specs=[mb.TensorSpec((1, 8, SIZE), types.fp16)], opset_version=target.iOS18)
    def program(x: Any) -> Any:
        return mb.linear(x=x, weight=mb.const(val=wrong, name="wrong"))

    report = left_alone(Budget(size=0.5, min_elements=256), program)
    assert [miss.reason for miss in report.misses] == ["holds values that are not finite"]


def partly_compressed() -> Model:
    """The larger one of two layers has a byte for each number, and a table of 256."""

    @mb.program(input_specs=[mb.TensorSpec((1, 8, SIZE), types.fp16)], opset_version=target.iOS18)
    def program(x: Any) -> Any:
        x = mb.linear(x=x, weight=mb.const(val=weights((2 * SIZE, SIZE)), name="large"))
        return mb.linear(x=x, weight=mb.const(val=weights((8, 2 * SIZE)), name="small"))

    model = load(program)
    report = Palettize(bits=8, granularity="tensor", min_elements=2 * SIZE * SIZE).run(model)
    assert report.applied == 1
    return model


TAKEN, HELD, SMALL = 2 * SIZE * SIZE + 512, 2 * BYTES, 8 * 2 * SIZE * 2


def test_what_is_compressed_counts() -> None:
    share = (TAKEN + SMALL / 2) / (HELD + SMALL)
    _, report = compressed(Budget(size=share, min_elements=256), partly_compressed())
    assert f"{TAKEN:,} bytes of other weights are compressed already, of {HELD:,} as numbers" in report.notes
    assert [(each.name, each.reason == "") for each in report.coverage] == [("large", False), ("small", True)]
    assert max(each.after for each in report.coverage if each.name == "small") <= SMALL / 2


def test_what_is_compressed_takes_more_than_there_is() -> None:
    with pytest.raises(MiloptError) as error:
        Budget(size=0.4, min_elements=256).run(partly_compressed())
    share = (TAKEN + 8 * 2 * SIZE // 4 + 8) / (HELD + SMALL)
    assert str(error.value) == (
        "budget: size=0.4 can't be met: with 2 bits and more and what is compressed as it is, the weights keep "
        f"{share:.3f} of their bytes"
    )

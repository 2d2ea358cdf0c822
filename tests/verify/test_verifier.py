"""Verification while a pipeline runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from milopt.building import Builder
from milopt.errors import MiloptError, VerificationError
from milopt.metrics import Exact, Lossy, Metric
from milopt.mil import replace_uses
from milopt.package import Model, load
from milopt.pipeline import Pass, Pipeline
from milopt.reports import Report
from tests.verify.programs import attention


@dataclass(frozen=True)
class Scale(Pass):
    """Multiplies what comes out of the first op of ``op_type`` by ``factor``."""

    name: ClassVar[str] = "scale"

    factor: float = 1.0
    op_type: str = "matmul"
    honest: bool = True

    def run(self, model: Model) -> Report:
        report = Report(self.name)
        op = next(op for op in model.function().operations if op.op_type == self.op_type)
        behind = list(model.function().operations)[list(model.function().operations).index(op) + 1]
        scaled = Builder(behind, {each.name for each in model.function().operations}).mul(
            x=op.outputs[0], y=np.float32(self.factor)
        )
        users = [user for user in op.outputs[0].child_ops if user is not scaled.op]
        assert users
        for user in users:
            user.set_inputs(**{name: scaled for name, var in user.inputs.items() if var is op.outputs[0]})
        report.applied = int(self.honest)
        return report


@dataclass(frozen=True)
class Rough(Scale):
    """The same, and says that it may lose precision."""

    name: ClassVar[str] = "rough"
    metric: ClassVar[Metric] = Lossy(min_snr_db=40)


@dataclass(frozen=True)
class TurnsOutRough(Scale):
    """Says so only when it has run."""

    name: ClassVar[str] = "turns-out-rough"

    def run(self, model: Model) -> Report:
        report = super().run(model)
        report.metric = Lossy(min_snr_db=40)
        return report


def _run(*passes: Pass, verify: str | None = "stage") -> Report:
    return Pipeline(passes).run(load(attention()), verify=verify)


def _names(report: Report) -> list[str]:
    return [verdict.subject for verdict in report.verdicts]


def test_no_verification() -> None:
    assert _run(Scale(2.0), verify=None).verdicts == []


def test_each() -> None:
    report = _run(Scale(), Scale(1.0), Rough(1.0005), verify="each")
    assert _names(report) == ["scale", "scale", "rough{factor=1.0005}"]
    assert [len(part.verdicts) for part in report.parts] == [1, 1, 1]
    assert isinstance(report.verdicts[0].metric, Exact)


def test_stages() -> None:
    report = _run(Scale(), Scale(), Rough(1.0005), Rough(1.0005), Scale())
    assert _names(report) == ["scale, scale", "rough{factor=1.0005}, rough{factor=1.0005}", "scale"]
    assert [len(part.verdicts) for part in report.parts] == [0, 1, 0, 1, 1]


def test_a_metric_known_only_after_the_pass_ends_the_stage_before_it() -> None:
    report = _run(Scale(), TurnsOutRough(1.0005), Scale())
    assert _names(report) == ["scale", "turns-out-rough{factor=1.0005}", "scale"]
    assert isinstance(report.verdicts[1].metric, Lossy)


@pytest.mark.parametrize("verify", ["each", "stage"])
def test_failure(verify: str) -> None:
    with pytest.raises(
        VerificationError, match=r"scale\{factor=1.0005\}: differs: output out in trial 1 of 3"
    ) as raised:
        _run(Rough(1.0005), Scale(1.0005), verify=verify)
    assert not raised.value.verdict


def test_two_errors_that_cancel_pass_as_a_stage_only() -> None:
    passes = (Scale(2.0), Scale(0.5))
    assert _names(_run(*passes)) == ["scale{factor=2.0}, scale{factor=0.5}"]
    with pytest.raises(VerificationError):
        _run(*passes, verify="each")


def test_a_pass_that_changed_nothing_is_not_compared() -> None:
    assert _names(_run(Scale(1.0, honest=False), Scale(), verify="each")) == ["scale"]


def test_a_pass_that_denies_its_change_is_found_out_by_the_next() -> None:
    with pytest.raises(VerificationError):
        _run(Scale(2.0, honest=False), Scale(), verify="each")


def test_unknown_mode() -> None:
    with pytest.raises(MiloptError, match="verify is 'each', 'stage', 'end' or None, not 'last'"):
        _run(Scale(), verify="last")


def test_a_dropped_mask_is_located() -> None:
    """A rewrite that drops the mask is caught with the place named."""

    @dataclass(frozen=True)
    class DropMask(Pass):
        name: ClassVar[str] = "drop-mask"

        def run(self, model: Model) -> Report:
            op = next(op for op in model.function().operations if op.op_type == "add")
            replace_uses(op.outputs[0], op.inputs["x"])
            return Report(self.name, applied=1)

    with pytest.raises(VerificationError, match=r"first value that differs: shares \(by softmax\)"):
        _run(DropMask())

"""decompress in detail: which ops are weights, what their arguments are, and who is asked to work."""

# The methods of numpy arrays whose element type is not told have types that are not known either.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from typing import Any

import joblib
import numpy as np
import pytest

from milopt.mil import Program, mb, operations, target, types
from milopt.opaque import opaque_class
from milopt.package import load
from milopt.passes.compressing import spread
from milopt.passes.decompression import Decompress, _argument, compressed_weights  # pyright: ignore[reportPrivateUsage]
from milopt.progress import listening

F16: Any = np.float16


def program() -> Program:
    """Two compressed weights, of which a test makes one an op of a kind that is not known."""
    scale: Any = np.array([[1], [2]], F16)

    @mb.program(input_specs=[mb.TensorSpec((1, 2), types.fp16)], opset_version=target.iOS18)
    def built(x: Any) -> Any:
        held = [
            mb.constexpr_blockwise_shift_scale(data=np.full((2, 2), at, np.int8), scale=scale, name=f"w{at}")
            for at in (3, 5)
        ]
        return tuple(mb.linear(x=x, weight=each) for each in held)

    return built


def test_ops_of_which_nothing_is_known_stay() -> None:
    model = load(program())
    assert [weight.name for weight in compressed_weights(model)] == ["w3", "w5"]
    (op,) = [op for op in operations(model.function()) if op.name == "w3"]
    op.__class__ = opaque_class("constexpr_of_tomorrow")
    (weight,) = compressed_weights(model)
    assert (weight.name, weight.array.tolist()) == ("w5", [[5, 5], [10, 10]])
    assert Decompress().run(model).applied == 1


def test_arguments_are_plain_numbers() -> None:
    found = _argument("shape", np.array([2, 3], np.uint32))
    assert found == (2, 3)
    assert [type(each) for each in found] == [int, int]
    for name in ("axis", "vector_axis"):
        assert type(_argument(name, np.int32(1))) is int
    array: Any = np.arange(3)
    assert _argument("data", array) is array


def test_all_cores_or_as_many_workers_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    real = joblib.Parallel

    def parallel(**given: Any) -> Any:
        asked.append(given)
        return real(**given)

    monkeypatch.setattr(joblib, "Parallel", parallel)
    assert list(spread("powers", ((pow, (number, 2)) for number in range(3)), [1] * 3)) == [0, 1, 4]
    with joblib.parallel_config(backend="threading", n_jobs=3):
        assert list(spread("powers", ((pow, (number, 2)) for number in range(3)), [1] * 3)) == [0, 1, 4]
    assert asked == [{"n_jobs": workers, "prefer": "threads", "return_as": "generator"} for workers in (-1, 3)]


def test_who_listens_hears_of_work_alone() -> None:
    heard: list[tuple[str, float, float]] = []
    with listening(lambda what, done, total: heard.append((what, done, total))):
        assert list(spread("nothing", iter(()), [])) == []
        assert list(spread("powers", ((pow, (number, 2)) for number in range(2)), [3, 4])) == [0, 1]
    assert heard == [("powers", 0.0, 7), ("powers", 3.0, 7), ("powers", 7.0, 7)]

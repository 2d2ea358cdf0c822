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
from milopt.passes.decompression import (
    Decompress,
    _argument,  # pyright: ignore[reportPrivateUsage]
    compressed_bytes,
    compressed_places,
    compressed_weights,
)
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


def test_which_ops_are_weights_of_layers() -> None:
    """One that an addition holds too is a weight as well; one that nothing uses is only decoded."""
    scale: Any = np.array([[1], [2]], F16)

    def held(at: int) -> Any:
        data = np.full((2, 2), at, np.int8)
        return mb.constexpr_blockwise_shift_scale(data=data, scale=scale, name=f"w{at}")

    @mb.program(input_specs=[mb.TensorSpec((1, 2), types.fp16)], opset_version=target.iOS18)
    def built(x: Any) -> Any:
        weight, added, _ = held(1), held(2), held(3)
        return mb.linear(x=mb.add(x=x, y=added), weight=weight), mb.add(x=x, y=weight)

    model = load(built)
    assert [weight.name for weight in compressed_weights(model)] == ["w1", "w2", "w3"]
    assert [[place.op.name for place in places] for places in compressed_places(model)] == [["w1"]]
    assert compressed_bytes(model) == (4 + 4, 8)


def test_a_mask_that_nothing_uses_is_no_weight() -> None:
    """Of an op with two results, the values alone are read, with the mask that was there before."""
    mask: Any = np.array([[1, 0], [1, 1]], np.uint8).astype(types.nptype_from_builtin(types.uint1))

    @mb.program(input_specs=[mb.TensorSpec((1, 2), types.fp16)], opset_version=target.iOS18)
    def built(x: Any) -> Any:
        _, values = mb.constexpr_sparse_blockwise_shift_scale(
            data_mask=mask, nonzero_data=np.array([1, 2, 3], np.int8), scale=np.array([[2], [4]], F16)
        )
        held = mb.constexpr_sparse_to_dense(nonzero_data=values, mask=mask, name="held")
        return mb.linear(x=x, weight=held)

    assert [weight.name for weight in compressed_weights(load(built))] == ["held"]


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

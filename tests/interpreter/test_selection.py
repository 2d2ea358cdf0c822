"""Gathering and scattering, where coremltools infers no value to compare with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from milopt.errors import EvaluationError
from milopt.mil import mb, target
from tests.interpreter.support import normals, run

X = normals(2, 3, 4)


def ints(*values: Any) -> Any:
    return np.array(values, np.int32)


def test_gather_nd_takes_rows_of_indices() -> None:
    places = ints([0, 2], [1, 0])

    def build(x: Any) -> Any:
        batched = mb.gather_nd(x=x, indices=ints([[2], [0]], [[1], [1]]), batch_dims=1)
        return mb.gather_nd(x=x, indices=places), batched

    plain, batched = run(build, {"x": X})
    np.testing.assert_array_equal(plain, X[[0, 1], [2, 0]])
    np.testing.assert_array_equal(batched, np.stack([X[0, [2, 0]], X[1, [1, 1]]]))


def test_indices_below_zero_count_from_the_end_before_ios17() -> None:
    def build(x: Any, i: Any) -> Any:
        return mb.gather(x=x, indices=i, axis=2), mb.gather_along_axis(x=x, indices=np.full((2, 3, 1), -1), axis=2)

    rows, along = run(build, {"x": X, "i": ints(-1, 1)}, opset=target.iOS15)
    np.testing.assert_array_equal(rows, X[:, :, [-1, 1]])
    np.testing.assert_array_equal(along, X[:, :, -1:])


@pytest.mark.parametrize("op_type", ["gather", "gather_along_axis", "gather_nd", "scatter", "scatter_nd"])
def test_validated_indices_must_lie_within(op_type: str) -> None:
    def build(x: Any, i: Any) -> Any:
        more = {"updates": np.zeros((2, 4), np.float32)} if op_type.startswith("scatter") else {}
        data = "data" if more else "x"
        return getattr(mb, op_type)(**{data: x}, indices=i, validate_indices=True, **more)

    indices = ints([-1], [0]) if op_type.endswith("nd") else ints([-1] * 4) if "along" in op_type else ints(-1, 0)
    with pytest.raises(EvaluationError, match=rf"^{op_type} .*IndexError: index -1 is out of bounds"):
        run(build, {"x": X[0], "i": indices})


COMBINED: dict[str, Callable[[Any, Any], Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "max": np.maximum,
    "min": np.minimum,
    "update": lambda old, new: new,
}


@pytest.mark.parametrize("op_type", ["scatter", "scatter_along_axis", "scatter_nd"])
def test_where_scattering_leaves_the_data_depends_on_the_version(op_type: str) -> None:
    def build(x: Any, i: Any, u: Any, **options: Any) -> Any:
        if op_type == "scatter_nd":
            return mb.scatter_nd(data=x, indices=mb.expand_dims(x=i, axes=[1]), updates=u, mode="add", **options)
        return getattr(mb, op_type)(data=x, indices=i, updates=u, axis=0, mode="add", **options)

    values = {"x": np.zeros(3, np.float32), "u": np.ones(2, np.float32)}

    def scattered(places: Any, opset: Any, **options: Any) -> list[float]:
        def with_options(x: Any, i: Any, u: Any) -> Any:
            return build(x, i, u, **options)

        (found,) = run(with_options, {**values, "i": places}, opset=opset)
        return list(found)

    assert scattered(ints(-1, 0), target.iOS16) == [1, 0, 1]
    assert scattered(ints(-1, 0), target.iOS17) == [1, 0, 0]
    assert scattered(ints(3, 1), target.iOS17) == [0, 1, 0]
    with pytest.raises(EvaluationError, match="index 3 is out of bounds for 3 elements"):
        scattered(ints(3, 0), target.iOS16)
    for places in (ints(-1, 0), ints(3, 0)):
        with pytest.raises(EvaluationError, match="is out of bounds"):
            scattered(places, target.iOS17, validate_indices=True)


@pytest.mark.parametrize("mode", COMBINED)
def test_scatter_combines_with_what_is_there(mode: str) -> None:
    def build(x: Any, u: Any) -> Any:
        return mb.scatter(data=x, indices=ints(3, 1), updates=u, axis=-1, mode=mode)

    updates = normals(2, 3, 2, seed=1)
    want: Any = X.astype(np.float64)
    want[..., [3, 1]] = COMBINED[mode](want[..., [3, 1]], updates.astype(np.float64))
    np.testing.assert_allclose(run(build, {"x": X, "u": updates})[0], want, rtol=1e-12)


@pytest.mark.parametrize("mode", ["add", "mul", "max"])
def test_scatter_counts_an_index_as_often_as_it_comes(mode: str) -> None:
    updates = normals(3, 3, 4, seed=1)

    def build(x: Any) -> Any:
        return mb.scatter(data=x, indices=ints(1, 1, 0), updates=updates, axis=0, mode=mode)

    want: Any = X.astype(np.float64)
    for place, update in zip((1, 1, 0), updates, strict=True):
        want[place] = COMBINED[mode](want[place], update.astype(np.float64))
    np.testing.assert_allclose(run(build, {"x": X})[0], want, rtol=1e-12)


def test_scatter_along_axis_and_nd() -> None:
    along, updates = ints([[1], [2], [0]], [[3], [3], [1]]), normals(2, 3, 1, seed=1)

    def build(x: Any) -> Any:
        return (
            mb.scatter_along_axis(data=x, indices=along, updates=updates, axis=2, mode="update"),
            mb.scatter_nd(data=x, indices=ints([0, 2], [1, 1]), updates=updates[0, :2, :] * np.ones(4, np.float32)),
        )

    first, second = run(build, {"x": X})
    want = X.copy()
    np.put_along_axis(want, along, updates, 2)
    np.testing.assert_array_equal(first, want)
    want = X.astype(np.float64)
    want[[0, 1], [2, 1]] += updates[0, :2]
    np.testing.assert_allclose(second, want, rtol=1e-12)


def test_one_hot_puts_its_axis_anywhere() -> None:
    def build(i: Any) -> Any:
        return (
            mb.one_hot(indices=i, one_hot_vector_size=3),
            mb.one_hot(indices=i, one_hot_vector_size=3, axis=0, on_value=2.5, off_value=-1.0),
        )

    last, first = run(build, {"i": ints(2, 0, 3)})
    np.testing.assert_array_equal(last, ints([0, 0, 1], [1, 0, 0], [0, 0, 0]))
    np.testing.assert_array_equal(first, np.where(last.T, 2.5, -1))


def test_reverse_sequence_reverses_beginnings() -> None:
    x = normals(3, 5, 2)

    def build(x: Any) -> Any:
        swapped = mb.transpose(x=x, perm=[1, 0, 2])
        return (
            mb.reverse_sequence(x=x, lengths=ints(1, 3, 5), seq_axis=1, batch_axis=0),
            mb.reverse_sequence(x=swapped, lengths=ints(1, 3, 5), seq_axis=0, batch_axis=1),
        )

    want = x.copy()
    for row, length in zip(want, (1, 3, 5), strict=True):
        row[:length] = row[:length][::-1].copy()
    first, second = run(build, {"x": x})
    np.testing.assert_array_equal(first, want)
    np.testing.assert_array_equal(second, want.swapaxes(0, 1))


def test_sliding_windows_and_interleaved_concat() -> None:
    def build(x: Any) -> Any:
        return (
            mb.sliding_windows(x=x, axis=-1, size=2, stride=2),
            mb.concat(values=(x, mb.mul(x=x, y=np.float32(2))), axis=1, interleave=True),
        )

    windows, mixed = run(build, {"x": X})
    np.testing.assert_array_equal(windows, X.reshape(2, 3, 2, 2))
    np.testing.assert_array_equal(mixed[:, ::2], X)
    np.testing.assert_array_equal(mixed[:, 1::2], 2.0 * X)


def test_exclusive_cumsum_and_sums_of_equal_values() -> None:
    """coremltools' own inference of an exclusive cumsum fails; of equal values topk takes the first."""

    def build(x: Any) -> Any:
        ties = np.array([[1, 3, 3, 2]], np.float32)
        return mb.cumsum(x=x, axis=1, exclusive=True), mb.topk(x=ties, k=2)[1], mb.argsort(x=ties)

    sums, top, order = run(build, {"x": X})
    want = np.concatenate([np.zeros((2, 1, 4)), np.cumsum(X.astype(np.float64), 1)[:, :-1]], 1)
    np.testing.assert_allclose(sums, want, atol=1e-12)
    assert top.tolist() == [[1, 2]]
    assert order.tolist() == [[1, 2, 3, 0]]


def test_non_maximum_suppression_keeps_the_best_of_overlapping_boxes() -> None:
    boxes = np.array([[[0, 0, 2, 2], [0.1, 0, 2, 2], [5, 5, 1, 1], [9, 9, 1, 1]]], np.float32)
    scores = np.array([[[0.6, 0.1], [0.1, 0.9], [0.3, 0.2], [0.1, 0.2]]], np.float32)

    def older(boxes: Any, scores: Any) -> Any:
        given: dict[str, Any] = {"iou_threshold": 0.5, "score_threshold": 0.25, "max_boxes": 3}
        return (
            mb.non_maximum_suppression(boxes=boxes, scores=scores, **given)[2:]
            + mb.non_maximum_suppression(boxes=boxes, scores=scores, per_class_suppression=True, **given)[2:]
        )

    inputs = {"boxes": boxes, "scores": scores}
    got = [each.tolist() for each in run(older, inputs, opset=target.iOS15)]
    assert got == [[[1, 2, -1]], [2], [[1, 0, 2]], [3]]

    def newer(boxes: Any, scores: Any) -> Any:
        turned = (mb.transpose(x=each, perm=[0, 2, 1]) for each in (boxes, scores))
        return mb.non_maximum_suppression(
            **dict(zip(("boxes", "scores"), turned, strict=True)), iou_threshold=0.5, max_boxes=3
        )

    kept, values, indices = run(newer, inputs)
    assert indices.tolist() == [[1, 2, 3]]
    np.testing.assert_allclose(kept[0].T, boxes[0, [1, 2, 3]])
    np.testing.assert_allclose(values[0].T, scores[0, [1, 2, 3]])


def test_random_values_repeat_with_a_seed_and_have_their_distribution() -> None:
    def build(x: Any) -> Any:
        shape = ints(200, 50)
        return (
            mb.random_normal(shape=shape, mean=2.0, stddev=3.0, seed=1),
            mb.random_uniform(shape=shape, low=-1.0, high=3.0, seed=2),
            mb.random_bernoulli(shape=shape, prob=0.3, seed=3),
            mb.random_categorical(x=x, mode="probs", size=10000, seed=4),
        )

    inputs = {"x": np.array([[0.2, 0.8]], np.float32)}
    first, second = run(build, inputs), run(build, inputs)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)
    # 10,000 samples: the standard error of each mean is below 0.03
    means = [float(each.mean()) for each in first]
    np.testing.assert_allclose(means, np.array([2, 1, 0.3, 0.8]), atol=0.15)
    assert abs(float(first[0].std()) - 3) < 0.15


def test_dequantize_and_quantized_convolution() -> None:
    data, weight = np.array([[0, 1, 2], [3, 4, 5]], np.int8), np.full((2, 3, 1), 7, np.uint8)

    def build(x: Any) -> Any:
        return (
            mb.dequantize(
                input=data, scale=np.array([0.5, 2], np.float32), zero_point=np.array([1, -1], np.int8), axis=0
            ),
            mb.conv_quantized(
                x=x,
                weight=weight,
                quantization_type="linear",
                nbits=8,
                quant_scale=np.float32(0.5),
                quant_bias=np.float32(-1),
            ),
        )

    x = normals(1, 3, 4)
    dense, product = run(build, {"x": x})
    np.testing.assert_allclose(dense, np.array([[-0.5, 0, 0.5], [8, 10, 12]]))
    np.testing.assert_allclose(product[0, 1], (x[0] * 2.5).sum(0), rtol=1e-5)


@pytest.mark.parametrize("parts", [{"num_splits": 1}, {"split_sizes": [2]}])
def test_a_split_into_one_part(parts: dict[str, Any]) -> None:
    (found,) = run(lambda x: (mb.relu(x=mb.split(x=x, axis=0, **parts)),), {"x": X})
    np.testing.assert_array_equal(found, np.maximum(X, 0))

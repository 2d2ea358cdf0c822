"""Convolutions, pooling and resizing against torch, whose conventions are translated by hand here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from milopt.interpreter.ops.convolution import conv
from milopt.interpreter.values import Array
from milopt.mil import mb, target
from tests.interpreter.support import normals, run

F: Any = torch.nn.functional


def agree(got: Array, want: torch.Tensor) -> None:
    assert got.shape == tuple(want.shape)
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-9, atol=1e-9)  # both in float64; sums of a few hundred terms


def doubled(*arrays: Array) -> list[Any]:
    return [torch.as_tensor(array).double() for array in arrays]


@pytest.mark.parametrize("shape", [(1, 5, 1, 1), (1, 5, 1, 7), (3, 5, 2, 4), (2, 5, 6), (2, 5, 2, 3, 4)])
@pytest.mark.parametrize("biased", [False, True])
def test_a_pointwise_convolution_is_a_matrix_product(shape: tuple[int, ...], biased: bool) -> None:
    x, weight = normals(*shape), normals(4, 5, *[1] * (len(shape) - 2))
    bias = normals(4, seed=2) if biased else None

    def build(x: Any) -> Any:
        return mb.conv(x=x, weight=weight, bias=bias)

    reference = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[len(shape)]
    exact = reference(*doubled(x, weight), None if bias is None else doubled(bias)[0])
    agree(run(build, {"x": x})[0], exact)


def test_the_pointwise_path_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: Any) -> None:
        raise AssertionError("torch's convolution was called")

    monkeypatch.setitem(conv.__globals__["_CONV"], 2, refused)
    x, weight = torch.ones(1, 3, 1, 4), torch.ones(2, 3, 1, 1)
    assert torch.equal(conv(x, weight, pad_type="same"), torch.full((1, 2, 1, 4), 3.0))
    for slow in ({"strides": (1, 2)}, {"pad_type": "custom", "pad": (0, 0, 0, 1)}):
        given: dict[str, Any] = slow
        with pytest.raises(AssertionError, match="torch's convolution"):
            conv(x, weight, **given)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("pad", ["valid", "custom", "same", "same_lower"])
def test_conv_pads_as_declared(groups: int, stride: int, dilation: int, pad: str) -> None:
    """``same`` makes ceil(size / stride) outputs, an odd element going after; ``same_lower`` puts it before."""
    x, weight, bias = normals(2, 4, 7, 8), normals(8, 4 // groups, 3, 2), normals(8)
    around = [1, 0, 2, 1] if pad == "custom" else [0, 0, 0, 0]

    def build(x: Any) -> Any:
        return mb.conv(
            x=x,
            weight=weight,
            bias=bias,
            strides=[stride, stride],
            dilations=[dilation, dilation],
            groups=groups,
            pad_type=pad,
            **({"pad": around} if pad == "custom" else {}),
        )

    if pad.startswith("same"):
        around.clear()
        for size, taps in ((7, 3), (8, 2)):
            total = max(0, (-(-size // stride) - 1) * stride + (taps - 1) * dilation + 1 - size)
            halves = [total // 2, total - total // 2]
            around += halves if pad == "same" else halves[::-1]
    top, bottom, left, right = around
    padded = F.pad(doubled(x)[0], (left, right, top, bottom))
    agree(run(build, {"x": x})[0], F.conv2d(padded, *doubled(weight, bias), stride, 0, dilation, groups))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("pad", [[0, 0, 0, 0], [1, 0, 2, 1]])
def test_conv_transpose_cuts_the_full_result(groups: int, stride: int, dilation: int, pad: list[int]) -> None:
    x, weight, bias = normals(2, 4, 4, 5), normals(4, 6 // groups, 3, 4), normals(6)

    def build(x: Any) -> Any:
        return mb.conv_transpose(
            x=x,
            weight=weight,
            bias=bias,
            strides=[stride, stride],
            dilations=[dilation, dilation],
            groups=groups,
            pad_type="custom",
            pad=pad,
        )

    full = F.conv_transpose2d(*doubled(x, weight, bias), stride, 0, 0, groups, dilation)
    top, bottom, left, right = pad
    agree(run(build, {"x": x})[0], full[:, :, top : full.shape[2] - bottom, left : full.shape[3] - right])


@pytest.mark.parametrize("taps", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_conv_transpose_same_is_the_gradient_of_conv_same(taps: int, stride: int) -> None:
    """The sizes are those of TensorFlow: ``stride`` times the input's."""
    x, weight = normals(1, 2, 5), normals(2, 3, taps)

    def build(x: Any) -> Any:
        return mb.conv_transpose(x=x, weight=weight, strides=[stride], pad_type="same")

    total = max(0, taps - stride)
    image = torch.zeros(1, 3, 5 * stride, dtype=torch.float64, requires_grad=True)
    padded = F.pad(image, (total // 2, total - total // 2))
    y = F.conv1d(padded, doubled(weight)[0], stride=stride)
    assert y.shape == x.shape
    (gradient,) = torch.autograd.grad(y, image, doubled(x)[0])
    agree(run(build, {"x": x})[0], gradient)


def test_conv_transpose_takes_an_output_shape() -> None:
    x, weight = normals(1, 2, 4, 4), normals(2, 3, 3, 3)

    def build(x: Any) -> Any:
        return mb.conv_transpose(
            x=x,
            weight=weight,
            strides=[2, 2],
            pad_type="custom",
            pad=[1, 1, 1, 1],
            output_shape=[1, 3, 8, 8],
        )

    agree(run(build, {"x": x})[0], F.conv_transpose2d(*doubled(x, weight), stride=2, padding=1, output_padding=1))


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("kernel", [(2, 3), (3, 3)])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("pad", [0, 1])
def test_pooling_is_torchs(kernel: tuple[int, int], stride: int, pad: int, ceil_mode: bool) -> None:
    x = normals(2, 3, 8, 7)
    given: dict[str, Any] = {
        "kernel_sizes": list(kernel),
        "strides": [stride, stride],
        "pad_type": "custom",
        "pad": [pad] * 4,
        "ceil_mode": ceil_mode,
    }

    def build(x: Any) -> Any:
        return (
            mb.max_pool(x=x, **given),
            mb.avg_pool(x=x, **given),
            mb.avg_pool(x=x, exclude_padding_from_average=True, **given),
        )

    largest, mean, inner = run(build, {"x": x})
    (wide,) = doubled(x)
    agree(largest, F.max_pool2d(wide, kernel, stride, pad, ceil_mode=ceil_mode))
    agree(mean, F.avg_pool2d(wide, kernel, stride, pad, ceil_mode, count_include_pad=True))
    agree(inner, F.avg_pool2d(wide, kernel, stride, pad, ceil_mode, count_include_pad=False))


def test_pooling_in_one_and_three_dimensions_and_same() -> None:
    x, y = normals(1, 2, 7), normals(1, 2, 4, 5, 6)

    def build(x: Any, y: Any) -> Any:
        return (
            mb.max_pool(x=x, kernel_sizes=[3], strides=[2], pad_type="same"),
            mb.avg_pool(x=y, kernel_sizes=[2, 2, 2], strides=[2, 1, 2], pad_type="valid"),
            mb.l2_pool(x=x, kernel_sizes=[2], strides=[1], pad_type="valid"),
        )

    largest, mean, norm = run(build, {"x": x, "y": y})
    wide, deep = doubled(x, y)
    agree(largest, F.max_pool1d(wide, 3, 2, 1))
    agree(mean, F.avg_pool3d(deep, 2, (2, 1, 2)))
    agree(norm, (wide[..., :-1].square() + wide[..., 1:].square()).sqrt())


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("scale", [(2, 3), (1.5, 0.7), (1, 1)])
def test_upsample_bilinear_is_torchs(scale: tuple[float, float], align: bool) -> None:
    x = normals(2, 3, 6, 10)

    def build(x: Any) -> Any:
        return mb.upsample_bilinear(x=x, scale_factor_height=scale[0], scale_factor_width=scale[1], align_corners=align)

    size = [int(np.float32(s * d)) for s, d in zip(scale, (6, 10), strict=True)]
    agree(run(build, {"x": x})[0], F.interpolate(doubled(x)[0], size, mode="bilinear", align_corners=align))


MODES: dict[
    tuple[str, int], list[float]
] = {  # the examples in coremltools' documentation of resize_bilinear, for an input [0, 1]
    ("UNALIGN_CORNERS", 5): [0, 0.1, 0.5, 0.9, 1],
    ("STRICT_ALIGN_CORNERS", 5): [0, 0.25, 0.5, 0.75, 1],
    ("ALIGN_CORNERS", 5): [0, 0.25, 0.5, 0.75, 1],
    ("DEFAULT", 5): [0, 0.4, 0.8, 1, 1],
    ("OFFSET_CORNERS", 5): [0.1, 0.3, 0.5, 0.7, 0.9],
    ("DEFAULT", 6): [0, 1 / 3, 2 / 3, 1, 1, 1],
    ("OFFSET_CORNERS", 6): [1 / 12, 3 / 12, 5 / 12, 7 / 12, 9 / 12, 11 / 12],
    ("ALIGN_CORNERS", 1): [0.5],
    ("STRICT_ALIGN_CORNERS", 1): [0],
}


@pytest.mark.parametrize(("mode", "count"), MODES)
def test_sampling_modes_are_the_documented_ones(mode: str, count: int) -> None:
    x = np.array([[[0, 1]]], np.float32)

    def build(x: Any) -> Any:
        return (
            mb.resize_bilinear(x=x, target_size_height=1, target_size_width=count, sampling_mode=mode),
            mb.resize(x=x, shape=[count], resized_dims=np.uint32(1), sampling_mode=mode),
        )

    for got in run(build, {"x": x}):
        np.testing.assert_allclose(got[0, 0], MODES[mode, count], atol=1e-12)


def test_nearest_neighbours_repeat_elements() -> None:
    x = normals(1, 2, 3, 4)

    def build(x: Any) -> Any:
        return (
            mb.upsample_nearest_neighbor(x=x, scale_factor_height=2, scale_factor_width=3),
            mb.resize_nearest_neighbor(x=x, target_size_height=7, target_size_width=2),
        )

    bigger, odd = run(build, {"x": x})
    agree(bigger, F.interpolate(doubled(x)[0], scale_factor=(2, 3), mode="nearest"))
    agree(odd, F.interpolate(doubled(x)[0], (7, 2), mode="nearest"))


@pytest.mark.parametrize("padding", ["constant", "border", "reflection"])
@pytest.mark.parametrize("sampling", ["bilinear", "nearest"])
@pytest.mark.parametrize("align", [False, True])
def test_resample_is_torchs_grid_sample(padding: str, sampling: str, align: bool) -> None:
    # without aligned corners torch reflects at the edges of pixels, which is MIL's symmetric
    mode = "symmetric" if padding == "reflection" and not align else padding
    x, places = normals(2, 3, 5, 6), normals(2, 4, 3, 2) * 1.5

    def build(x: Any, places: Any) -> Any:
        return mb.resample(
            x=x,
            coordinates=places,
            sampling_mode=sampling,
            padding_mode=mode,
            padding_value=0.0,
            coordinates_mode="normalized_minus_one_to_one",
            align_corners=align,
        )

    names = {"constant": "zeros", "border": "border", "reflection": "reflection"}
    want = F.grid_sample(*doubled(x, places), sampling, names[padding], align_corners=align)
    agree(run(build, {"x": x, "places": places})[0], want)


def test_crop_resize_reads_boxes() -> None:
    """The numbers are those of coremltools' tests."""
    x = np.reshape(np.arange(1, 17, dtype=np.float32), (1, 1, 4, 4))
    boxes = np.array([[0.1, 0.3, 1.3, 1.0], [0.5, 1.8, 1.0, 0.3], [0.0, 0.4, 0.6, 0.7]], np.float32)
    given: dict[str, Any] = {"target_width": 2, "target_height": 2, "sampling_mode": "ALIGN_CORNERS"}

    def newer(x: Any) -> Any:
        return mb.crop_resize(
            x=x,
            boxes=boxes,
            box_indices=np.zeros(3, np.int32),
            normalized_coordinates=True,
            pad_value=10.0,
            **given,
        )

    want = [3.1, 5.2, 10.0, 10.0, 10.0, 7.9, 10.0, 13.9, 2.2, 3.1, 9.4, 10.3]
    np.testing.assert_allclose(run(newer, {"x": x})[0].reshape(-1), want, atol=1e-5)

    def older(x: Any) -> Any:
        return mb.crop_resize(x=x, roi=np.reshape(np.array([2, 2, 1, 1], np.float32), (1, 1, 4, 1, 1)), **given)

    np.testing.assert_allclose(run(older, {"x": x}, opset=target.iOS15)[0].reshape(-1), [11, 10, 7, 6])


def test_blocks_move_between_channels_batch_and_space() -> None:
    x, y = normals(2, 8, 3, 4), normals(2, 3, 4, 6)

    def build(x: Any, y: Any) -> Any:
        return (
            mb.pixel_shuffle(x=x, upscale_factor=2),
            mb.pixel_unshuffle(x=y, downscale_factor=np.uint32(2)),
            mb.space_to_depth(x=mb.depth_to_space(x=x, block_size=2), block_size=2),
            mb.depth_to_space(x=x, block_size=2),
            mb.batch_to_space(
                x=mb.space_to_batch(x=y, block_shape=[2, 3], paddings=[[0, 2], [1, 2]]),
                block_shape=[2, 3],
                crops=[[0, 2], [1, 2]],
            ),
            mb.space_to_batch(x=y, block_shape=[2, 3], paddings=[[0, 0], [0, 0]]),
        )

    shuffled, unshuffled, round_trip, deep, again, batches = run(build, {"x": x, "y": y})
    agree(shuffled, F.pixel_shuffle(doubled(x)[0], 2))
    agree(unshuffled, F.pixel_unshuffle(doubled(y)[0], 2))
    np.testing.assert_array_equal(round_trip, x)
    np.testing.assert_array_equal(
        deep[:, 0, 1::2, ::2], x[:, 4]
    )  # channel = (row 1 of 2, column 0 of 2, channel 0 of 2)
    np.testing.assert_array_equal(again, y)
    np.testing.assert_array_equal(batches[2:4], y[:, :, ::2, 1::3])  # block (0, 1) of both images

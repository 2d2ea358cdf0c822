"""Predictions by the model's description: images, casts, defaults, classes, states, and what is refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
from PIL import Image

from milopt import MiloptError, Predictor, load, predict
from milopt.mil import Function, Program, get_new_symbol, mb, target, types
from tests.interpreter.support import Build, program

PIXELS: Any = np.reshape(np.arange(2 * 4 * 3, dtype=np.uint8), (2, 4, 3))


def convert(build: Build, placeholders: dict[str, Any], **options: Any) -> Any:
    """A coremltools model of the program that ``build`` makes."""
    source = program(build, placeholders, target.iOS17)
    if outputs := options.pop("outputs", None):
        source.functions["main"].output_types = outputs
    return ct.convert(
        source,
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS17,
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
        **options,
    )


def floats(*shape: Any) -> Any:
    return mb.placeholder(shape=shape, dtype=types.fp32)


def image_model(colors: str, channels: int, **options: Any) -> Any:
    layout = {"RGB": ct.colorlayout.RGB, "BGR": ct.colorlayout.BGR, "G": ct.colorlayout.GRAYSCALE}.get(
        colors, ct.colorlayout.GRAYSCALE_FLOAT16
    )
    shape = options.pop("shape", (1, channels, 2, 4))
    symbolic = [dim if isinstance(dim, int) else get_new_symbol() for dim in options.pop("program_shape", shape)]
    image = ct.ImageType(name="x", shape=shape, color_layout=layout, **options)
    return convert(lambda x: mb.identity(x=x, name="y"), {"x": floats(*symbolic)}, inputs=[image])


@pytest.mark.parametrize(("colors", "order"), [("RGB", [0, 1, 2]), ("BGR", [2, 1, 0])])
def test_colour_images_arrive_in_the_described_layout(colors: str, order: list[int]) -> None:
    y = predict(image_model(colors, 3), {"x": Image.fromarray(PIXELS)})["y"]
    np.testing.assert_array_equal(y, np.moveaxis(PIXELS[..., order], -1, 0)[None])


def test_scale_and_bias_of_the_converted_image_are_applied() -> None:
    model = image_model("RGB", 3, scale=0.5, bias=[1.0, 2.0, 3.0])
    y = predict(model, {"x": Image.fromarray(PIXELS)})["y"]
    np.testing.assert_allclose(y[0], np.moveaxis(PIXELS * 0.5 + [1, 2, 3], -1, 0), rtol=1e-6)


def test_grey_images() -> None:
    grey = PIXELS[..., 1]
    y = predict(image_model("G", 1), {"x": Image.fromarray(grey)})["y"]
    np.testing.assert_array_equal(y[0, 0], grey)
    y = predict(image_model("G16", 1), {"x": Image.fromarray(grey.astype(np.float32) / 16)})["y"]
    np.testing.assert_array_equal(y[0, 0], grey / np.float32(16))


def test_images_must_have_the_described_mode_and_size() -> None:
    predictor = Predictor(image_model("RGB", 3))
    for wrong in (Image.fromarray(PIXELS[..., 0]), Image.fromarray(PIXELS[:, :3].copy()), PIXELS):
        with pytest.raises(MiloptError, match=r"'x' must be a PIL image in mode RGB, 4x2 \(width x height\)") as caught:
            predictor.predict({"x": wrong})
        assert "\n" not in str(caught.value)


def test_image_sizes_in_a_range_and_enumerated() -> None:
    ranged = image_model("RGB", 3, shape=(1, 3, 2, ct.RangeDim(4, 6)), program_shape=(1, 3, 2, None))
    enumerated = ct.EnumeratedShapes([(1, 3, 2, 4), (1, 3, 2, 6)])
    listed = image_model("RGB", 3, shape=enumerated, program_shape=(1, 3, 2, None))
    for model, taken, refused in ((ranged, (4, 5, 6), 7), (listed, (4, 6), 5)):
        predictor = Predictor(model)
        for width in taken:
            assert predictor.predict({"x": Image.new("RGB", (width, 2))})["y"].shape == (1, 3, 2, width)
        with pytest.raises(MiloptError, match="must be a PIL image"):
            predictor.predict({"x": Image.new("RGB", (refused, 2))})


@pytest.mark.parametrize("layout", [ct.colorlayout.RGB, ct.colorlayout.BGR])
def test_image_outputs_are_rounded_and_kept_in_range(layout: Any) -> None:
    model = convert(
        lambda x: mb.mul(x=x, y=np.float32(20), name="y"),
        {"x": floats(1, 3, 2, 4)},
        outputs=[ct.ImageType(name="y", color_layout=layout)],
    )
    planes: Any = np.moveaxis(PIXELS.astype(np.float32), -1, 0)
    planes[0, 0, 0] = -1
    picture = predict(model, {"x": planes[None] + 0.04})["y"]
    order = [0, 1, 2] if layout == ct.colorlayout.RGB else [2, 1, 0]
    expected = np.moveaxis(np.minimum(np.maximum(np.rint(planes * 20 + 0.8), 0), 255), 0, -1)[..., order]
    assert picture.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(picture), expected)


def test_grey_image_outputs() -> None:
    for layout, mode in ((ct.colorlayout.GRAYSCALE, "L"), (ct.colorlayout.GRAYSCALE_FLOAT16, "F")):
        model = convert(
            lambda x: mb.mul(x=x, y=np.float32(1), name="y"),
            {"x": floats(1, 1, 2, 4)},
            outputs=[ct.ImageType(name="y", color_layout=layout)],
        )
        picture = predict(model, {"x": np.full((1, 1, 2, 4), 2.75)})["y"]
        assert picture.mode == mode
        assert np.asarray(picture)[0, 0] == (3 if mode == "L" else 2.75)


def test_numbers_are_cast_to_the_described_type() -> None:
    placeholders = {"x": floats(3), "n": mb.placeholder(shape=(3,), dtype=types.int32)}
    model = convert(lambda x, n: (mb.add(x=x, y=1.0, name="y"), mb.add(x=n, y=1, name="m")), placeholders)
    predictor = Predictor(model)
    for kind in (np.float16, np.float64, np.int8, np.int64, np.uint8, np.bool_):
        found = predictor.predict({"x": np.ones(3, kind), "n": np.ones(3, kind)})
        assert (found["y"].dtype, found["m"].dtype) == (np.float32, np.int32)
        assert found["y"].tolist() == [2, 2, 2]
        assert found["m"].tolist() == [2, 2, 2]
    cut = predictor.predict({"x": [1, 2, 3], "n": np.array([1.9, -1.9, 0.5])})
    assert cut["m"].tolist() == [2, 0, 1]
    with pytest.raises(MiloptError, match="holds NaN or Inf"):
        predictor.predict({"x": np.ones(3), "n": np.array([np.nan, 0, 0])})
    with pytest.raises(MiloptError, match="beyond int32"):
        predictor.predict({"x": np.ones(3), "n": np.array([2**40, 0, 0])})


def test_half_precision_comes_as_declared() -> None:
    source = program(lambda x: mb.add(x=x, y=np.float16(1), name="y"), {"x": np.ones(2, np.float16)})
    y = predict(source, {"x": np.array([1.0, 1e-4])})["y"]
    assert y.dtype == np.float16
    assert predict(source, {"x": [1.0, 1e-4]}, precision="float64")["y"][1] == 1.0001


def test_optional_inputs_have_their_default() -> None:
    model = convert(lambda x, z: mb.add(x=x, y=z, name="y"), {"x": floats(2), "z": floats(2)})
    loaded = load(model)
    feature = next(each for each in loaded.description.input if each.name == "z")
    feature.type.isOptional = True
    assert predict(loaded, {"x": [1, 2]})["y"].tolist() == [1, 2]
    feature.type.multiArrayType.floatDefaultValue = 0.5
    assert predict(loaded, {"x": [1, 2]})["y"].tolist() == [1.5, 2.5]
    assert predict(loaded, {"x": [1, 2], "z": [1, 1]})["y"].tolist() == [2, 3]


@pytest.mark.parametrize("labels", [["cat", "dog", "hen"], [7, 8, 9]])
def test_classifiers_give_a_label_and_probabilities(labels: list[Any]) -> None:
    model = convert(
        lambda x: mb.softmax(x=x, axis=-1, name="p"),
        {"x": floats(1, 3)},
        classifier_config=ct.ClassifierConfig(labels),
    )
    found = predict(model, {"x": [[0.0, 2.0, 1.0]]})
    assert found["classLabel"] == labels[1]
    probabilities = next(value for name, value in found.items() if name != "classLabel")
    assert list(probabilities) == labels
    np.testing.assert_allclose(list(probabilities.values()), np.exp([0, 2, 1]) / np.exp([0, 2, 1]).sum(), rtol=1e-6)


def test_flexible_shapes_are_checked() -> None:
    symbol = get_new_symbol()

    def build(x: Any) -> Any:
        return mb.relu(x=x, name="y")

    ranged = convert(build, {"x": floats(1, symbol)}, inputs=[ct.TensorType(name="x", shape=(1, ct.RangeDim(2, 4)))])
    listed = convert(
        build,
        {"x": floats(1, get_new_symbol())},
        inputs=[ct.TensorType(name="x", shape=ct.EnumeratedShapes([(1, 2), (1, 4)]))],
    )
    assert predict(ranged, {"x": np.ones((1, 3))})["y"].shape == (1, 3)
    with pytest.raises(MiloptError, match=r"'x' must be fp32\[1, \w+=2..4\], got float64\[1, 5\]"):
        predict(ranged, {"x": np.ones((1, 5))})
    with pytest.raises(MiloptError, match=r"'x' must be fp32\[1, 2\] or \[1, 4\], got float64\[1, 3\]"):
        predict(listed, {"x": np.ones((1, 3))})


def test_numbers_are_arrays_of_one_element() -> None:
    model = convert(lambda x: mb.reduce_sum(x=mb.squeeze(x=x), name="y"), {"x": floats(1)})
    for value in (1, 1.0, np.ones(1), np.float32(1)):
        y = predict(model, {"x": value})["y"]
        assert (y.shape, y.tolist()) == ((1,), [1.0])


def test_names_are_checked() -> None:
    predictor = Predictor(convert(lambda x, z: mb.add(x=x, y=z, name="y"), {"x": floats(2), "z": floats(2)}))
    with pytest.raises(MiloptError, match=r"^input 'z' is missing; function 'main' takes x fp32\[2\], z fp32\[2\]$"):
        predictor.predict({"x": [1, 2]})
    with pytest.raises(MiloptError, match=r"^there is no input 'w'; function 'main' takes x fp32\[2\], z fp32\[2\]$"):
        predictor.predict({"x": [1, 2], "z": [1, 2], "w": 1})
    refused: list[Any] = ["text", {}, [[1], [2, 3]], np.array([1j, 2j])]
    for wrong in refused:
        with pytest.raises(MiloptError, match=r"^input 'x' must be fp32\[2\], got "):
            predictor.predict({"x": wrong, "z": [1, 2]})


def test_states_last_from_call_to_call() -> None:
    def build(x: Any, s: Any) -> Any:
        total = mb.add(x=mb.read_state(input=s), y=x)
        return mb.identity(x=mb.coreml_update_state(state=s, value=total), name="y")

    cell = mb.state_tensor_placeholder(shape=(2,), dtype=types.fp16)
    predictor = Predictor(program(build, {"x": np.ones(2, np.float16), "s": cell}))
    state = predictor.make_state()
    assert [predictor.predict({"x": [1, 2]}, state)["y"].tolist() for _ in range(3)] == [[1, 2], [2, 4], [3, 6]]
    assert state["s"].tolist() == [3, 6]
    with pytest.raises(MiloptError, match="has states"):
        predictor.predict({"x": [1, 2]})


def test_functions_are_chosen_by_name() -> None:
    both = Program()
    for name, step in (("up", 1.0), ("down", -1.0)):
        with Function({"x": floats(2)}, opset_version=target.iOS18) as made:
            made.set_outputs([mb.add(x=made.inputs["x"], y=step, name="y")])
            both.add_function(name, made)
    both.default_function_name = "up"
    assert predict(both, {"x": [0, 0]})["y"].tolist() == [1, 1]
    assert predict(both, {"x": [0, 0]}, function="down")["y"].tolist() == [-1, -1]
    with pytest.raises(MiloptError, match="no function 'left'"):
        predict(both, {"x": [0, 0]}, function="left")


def test_a_package_from_the_disk_and_an_image_from_a_file(tmp_path: Path) -> None:
    path = load(image_model("RGB", 3)).save(tmp_path / "m.mlpackage")
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "png")
    y = predict(path, {"x": Image.open(file)})["y"]
    np.testing.assert_array_equal(y[0], np.moveaxis(PIXELS, -1, 0))

"""``milopt run``: inputs of every kind, answers on the disk, what is asked about the way, and what is refused."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.proto import Model_pb2
from PIL import Image

from milopt import evaluate, load
from milopt.cli import main
from milopt.cli.writing import Files
from milopt.mil import Program, get_new_symbol, mb, target, types
from tests.cli.support import contents
from tests.cli.test_commands import printed
from tests.cli.test_optimize import refused
from tests.interpreter.support import function, program, state

Capture = pytest.CaptureFixture[str]
SPEC = "Data/com.apple.CoreML/model.mlmodel"
X = np.array([[1, -2, 3]], np.float32)


def saved(made: Any, path: Path) -> Path:
    return load(made).save(path)


def mixed() -> Program:
    """Inputs of three types: ``y = x * 2 + n`` where ``on``, else 0."""

    def build(x: Any, n: Any, on: Any) -> Any:
        total = mb.add(x=mb.mul(x=x, y=np.float16(2), name="twice"), y=mb.cast(x=n, dtype="fp16"), name="total")
        return mb.mul(x=total, y=mb.cast(x=mb.greater(x=on, y=np.int32(0)), dtype="fp16"), name="y")

    return program(build, {"x": X.astype(np.float16), "n": np.ones(1, np.int32), "on": np.ones(1, np.int32)})


@pytest.fixture(scope="module")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(mixed(), tmp_path_factory.mktemp("arrays") / "arrays.mlpackage")


@pytest.fixture(scope="module")
def square(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``y = 1 / sqrt(x * x)``, which overflows in fp16 beyond 255."""

    def build(x: Any) -> Any:
        return mb.mul(x=mb.mul(x=x, y=x, name="square"), y=np.float16(0.5), name="y")

    return saved(program(build, {"x": X.astype(np.float16)}), tmp_path_factory.mktemp("square") / "square.mlpackage")


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A colour image 4 wide and 2 high in, its negative out."""
    pixels = mb.placeholder(shape=(1, 3, 2, 4), dtype=types.fp32)
    made = program(lambda x: mb.sub(x=np.float32(255), y=x, name="y"), {"x": pixels}, target.iOS17)
    made.functions["main"].output_types = [ct.ImageType(name="y", color_layout=ct.colorlayout.RGB)]
    model = ct.convert(
        made,
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS17,
        inputs=[ct.ImageType(name="x", shape=(1, 3, 2, 4), color_layout=ct.colorlayout.RGB)],
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    )
    return saved(model, tmp_path_factory.mktemp("picture") / "picture.mlpackage")


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adds ``x`` to a state of that shape."""

    def build(x: Any, file: Any) -> Any:
        total = mb.coreml_update_state(state=file, value=mb.add(x=mb.read_state(input=file), y=x))
        return mb.mul(x=total, y=np.float16(1), name="y")

    made = program(build, {"x": X.astype(np.float16), "file": state(1, 3)})
    return saved(made, tmp_path_factory.mktemp("counter") / "counter.mlpackage")


# --- inputs


GIVEN: dict[str, Any] = {"x": X, "n": np.array([5], np.int32), "on": np.array([1], np.int32)}
ANSWER = [[7, 1, 11]]


def given(folder: Path, how: str) -> list[str]:
    """The inputs of ``mixed`` as arguments."""
    if how == "npy":
        for name, array in GIVEN.items():
            np.save(folder / f"{name}.npy", array)
        return [f"--input={name}={folder / name}.npy" for name in GIVEN]
    if how == "npz":
        np.savez_compressed(folder / "all.npz", **GIVEN)
        return ["--input", str(folder / "all.npz")]
    if how == "npz one by one":
        np.savez(folder / "all.npz", **GIVEN)
        np.savez(folder / "single.npz", whatever=GIVEN["n"])
        single = {"n": "single"}
        return [f"--input={name}={folder / single.get(name, 'all')}.npz" for name in GIVEN]
    if how == "json":
        (folder / "all.json").write_text(json.dumps({name: array.tolist() for name, array in GIVEN.items()}))
        return ["-i", str(folder / "all.json")]
    if how == "json one by one":
        for name, array in GIVEN.items():
            (folder / f"{name}.json").write_text(json.dumps(array.tolist()))
        return [f"--input={name}={folder / name}.json" for name in GIVEN]
    return ["--input", "x=[[1, -2, 3.0]]", "--input", "n=5", "--input", "on=true"]


@pytest.mark.parametrize("how", ["npy", "npz", "npz one by one", "json", "json one by one", "text"])
def test_inputs_of_every_kind(arrays: Path, tmp_path: Path, capsys: Capture, how: str) -> None:
    arguments = given(tmp_path, how)
    if how == "text":
        arguments[-1] = "on=1"
    printed(capsys, "run", arrays, *arguments, "--output", tmp_path / "out")
    y = np.load(tmp_path / "out" / "y.npy")
    assert y.dtype == np.float16
    assert y.tolist() == ANSWER


def test_arrays_in_every_order_of_bytes_and_axes(arrays: Path, tmp_path: Path, capsys: Capture) -> None:
    np.save(tmp_path / "x.npy", np.asfortranarray(X.astype(">f8")))
    np.save(tmp_path / "n.npy", np.array([5], ">i2"))
    arguments = [f"--input=x={tmp_path / 'x.npy'}", f"--input=n={tmp_path / 'n.npy'}", "--input=on=1"]
    printed(capsys, "run", arrays, *arguments, "--output", tmp_path / "out")
    assert np.load(tmp_path / "out" / "y.npy").tolist() == ANSWER


def pixels_of(path: Path) -> Any:
    image: Any = Image.open(path)
    return np.asarray(image)


def test_images_come_in_and_go_out(picture: Path, tmp_path: Path, capsys: Capture) -> None:
    pixels: Any = np.reshape(np.arange(24, dtype=np.uint8), (2, 4, 3))
    colours = Image.fromarray(pixels)
    grey = Image.fromarray(pixels[..., 0])
    opaque = colours.copy()
    opaque.putalpha(255)
    shades: Any = pixels[..., :1].repeat(3, -1)
    for name, image, want in (("rgb", colours, pixels), ("grey", grey, shades), ("opaque", opaque, pixels)):
        image.save(tmp_path / f"{name}.png")
        printed(capsys, "run", picture, "--input", f"x={tmp_path / name}.png", "-o", tmp_path / f"out {name}")
        np.testing.assert_array_equal(pixels_of(tmp_path / f"out {name}" / "y.png"), 255 - want)
    colours.save(tmp_path / "x.jpg")
    assert "y" in printed(capsys, "run", picture, "--input", f"x={tmp_path / 'x.jpg'}")


def test_images_that_do_not_fit(picture: Path, arrays: Path, tmp_path: Path, capsys: Capture) -> None:
    Image.new("RGB", (5, 2)).save(tmp_path / "large.png")
    Image.new("RGBA", (4, 2), (1, 2, 3, 100)).save(tmp_path / "clear.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "large.png").read_bytes()[:40])
    np.save(tmp_path / "x.npy", X)

    def told(package: Path, name: str) -> str:
        return refused(capsys, "run", package, "--input", f"x={tmp_path / name}")

    assert "4x2 (width x height); got mode RGB, 5x2" in told(picture, "large.png")
    assert "transparent" in told(picture, "clear.png")
    assert "cut.png can't be read" in told(picture, "cut.png")
    assert "must be a .png or .jpg file, RGB image 4x2 (width x height); got float32[1, 3]" in told(picture, "x.npy")
    assert "input 'x' must be fp16[1, 3], got an image" in told(arrays, "large.png")


def test_random_inputs_are_repeatable(arrays: Path, picture: Path, tmp_path: Path, capsys: Capture) -> None:
    def answer(seed: int, folder: str) -> list[Any]:
        arguments = ("--input", "on=1", "--random", "--seed", seed, "-o", tmp_path / folder)
        printed(capsys, "run", arrays, *arguments)
        numbers: list[Any] = np.load(tmp_path / folder / "y.npy").tolist()
        return numbers

    assert answer(1, "a") == answer(1, "b") != answer(2, "c")
    assert "y" in printed(capsys, "run", picture, "--random")


def test_random_sizes_follow_the_inputs_given(tmp_path: Path, capsys: Capture) -> None:
    rows = get_new_symbol()
    inputs = {name: mb.placeholder(shape=(rows, 2), dtype=types.fp32) for name in ("x", "z")}
    made = program(lambda x, z: mb.add(x=x, y=z, name="y"), inputs)
    made.functions["main"].input_types = [
        ct.TensorType(name=name, shape=ct.Shape((ct.RangeDim(1, 9, default=1), 2))) for name in inputs
    ]
    package = saved(made, tmp_path / "ranged.mlpackage")
    printed(capsys, "run", package, "--random", "--input", "x=[[1,2],[3,4],[5,6]]", "-o", tmp_path / "out")
    assert np.load(tmp_path / "out" / "y.npy").shape == (3, 2)


# --- outputs


def test_the_answer_is_printed(arrays: Path, tmp_path: Path, capsys: Capture) -> None:
    told = printed(capsys, "run", arrays, *given(tmp_path, "npz"))
    assert "Function main, declared" in told
    (row,) = (line for line in told.splitlines() if line.split()[:1] == ["y"])
    assert row.split() == ["y", "fp16", "1x3", "1", "11"]


def test_precisions(tmp_path: Path, capsys: Capture) -> None:
    made = program(lambda x: mb.add(x=x, y=np.float16(1), name="y"), {"x": X.astype(np.float16)})
    package = saved(made, tmp_path / "add.mlpackage")
    for precision, dtype, first in (("declared", "f2", 1), ("declared-strict", "f2", 1), ("float64", "f8", 1.0001)):
        folder = tmp_path / precision
        printed(capsys, "run", package, "--input", "x=[[0.0001,0,0]]", "--precision", precision, "-o", folder)
        y = np.load(folder / "y.npy")
        assert (y.dtype, y[0, 0]) == (dtype, first)
    assert "half" in refused(capsys, "run", package, "--precision", "half")


def test_a_classifier(tmp_path: Path, capsys: Capture) -> None:
    model = ct.convert(
        program(lambda x: mb.softmax(x=x, axis=-1, name="chance"), {"x": X}, target.iOS16),
        convert_to="mlprogram",
        classifier_config=ct.ClassifierConfig(["cat", "dog", "eel"], predicted_feature_name="kind"),
        compute_precision=ct.precision.FLOAT32,
        minimum_deployment_target=ct.target.iOS16,
        skip_model_load=True,
    )
    package = saved(model, tmp_path / "classifier.mlpackage")
    capsys.readouterr()  # coremltools' progress
    told = printed(capsys, "run", package, "--input", "x=[[0, 2, 1]]", "-o", tmp_path / "out")
    assert "'dog'" in told
    assert json.loads((tmp_path / "out" / "kind.json").read_text()) == "dog"
    (other,) = (each for each in (tmp_path / "out").iterdir() if each.name != "kind.json")
    chances = json.loads(other.read_text())
    assert list(chances) == ["cat", "dog", "eel"]
    assert chances["dog"] == pytest.approx(np.exp(2) / np.exp([0, 2, 1]).sum(), rel=1e-6)  # fp32
    facts = json.loads(printed(capsys, "run", package, "--input", "x=[[0, 2, 1]]", "--json"))
    assert facts["outputs"]["kind"]["value"] == "dog"


def test_everything_as_json(square: Path, capsys: Capture) -> None:
    arguments = ("--trace", "--profile", "--repeat", 2, "--json")
    facts = json.loads(printed(capsys, "run", square, "--input", "x=[[1,2,300]]", *arguments))
    assert facts["outputs"]["y"]["inf"] == 1
    assert [each["name"] for each in facts["trace"]] == ["square", "y"]
    assert facts["profile"]["runs"] == 2
    assert facts["overflow"]["overflows"][0]["op"] == "square"
    assert len(facts["seconds"]) == 1  # the traced run is not timed


def test_trace_profile_and_repeat(arrays: Path, tmp_path: Path, capsys: Capture) -> None:
    told = printed(capsys, "run", arrays, *given(tmp_path, "npz"), "--trace", "--profile", "--repeat", 3)
    for part in ("Trace", "twice", "Time by type", "a whole run", "2 runs: the first"):
        assert part in told


def test_names_that_are_no_file_names(tmp_path: Path, capsys: Capture) -> None:
    names = ("../up", "a/b", "a_b", "A_b", ".hidden", "n" * 300)

    def build(x: Any) -> Any:
        return tuple(mb.add(x=x, y=np.float32(index), name=f"out{index}") for index in range(len(names)))

    made = program(build, {"x": X})
    for var, name in zip(made.functions["main"].outputs, names, strict=True):
        var.name = name
    expected = evaluate(made, {"x": X})
    files = Files(tmp_path / "out", dict.fromkeys(expected, ".npy"), force=False)
    files.write(expected)
    assert sorted(contents(tmp_path)) == sorted(f"out/{path.name}" for path in files.paths.values())
    assert len({path.name.casefold() for path in files.paths.values()}) == len(names)
    for name, path in files.paths.items():
        np.testing.assert_array_equal(np.load(path), expected[name])


def test_nothing_is_replaced_without_force(arrays: Path, tmp_path: Path, capsys: Capture) -> None:
    arguments = ["run", arrays, *given(tmp_path, "npz"), "--output", tmp_path / "out"]
    printed(capsys, *arguments)
    (tmp_path / "out" / "mine.txt").write_text("kept")
    np.save(tmp_path / "out" / "y.npy", np.zeros(1))
    before = contents(tmp_path)
    assert "y.npy exists; give --force to replace it" in refused(capsys, *arguments)
    assert contents(tmp_path) == before
    printed(capsys, *arguments, "--force")
    assert np.load(tmp_path / "out" / "y.npy").tolist() == ANSWER
    assert set(contents(tmp_path)) == set(before)


def test_places_that_can_not_be_written(arrays: Path, counter: Path, tmp_path: Path, capsys: Capture) -> None:
    inputs = given(tmp_path, "npz")
    (tmp_path / "file").write_text("")
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked").chmod(0o555)
    for folder in ("file", "locked", "locked/below"):
        assert folder.split("/")[0] in refused(capsys, "run", arrays, *inputs, "--output", tmp_path / folder)
    ones = ("--input", "x=[[1,1,1]]")
    assert "read-only" in refused(capsys, "run", counter, *ones, "--state-out", tmp_path / "locked" / "s.npz")
    assert "ends in .npz" in refused(capsys, "run", counter, *ones, "--state-out", tmp_path / "s.npy")
    assert "does not exist" in refused(capsys, "run", counter, *ones, "--state-out", tmp_path / "no" / "s.npz")
    assert (tmp_path / "file").read_text() == ""


# --- states and functions


def test_states_go_from_run_to_run(counter: Path, tmp_path: Path, capsys: Capture) -> None:
    ones, one, two = ("--input", "x=[[1,1,1]]"), tmp_path / "one.npz", tmp_path / "two.npz"
    told = printed(capsys, "run", counter, *ones, "--state-out", one, "--repeat", 3)
    assert "States after the run" in told
    printed(capsys, "run", counter, *ones, "--state-in", one, "--state-out", two, "-o", tmp_path / "out")
    assert np.load(tmp_path / "out" / "y.npy").tolist() == [[2, 2, 2]]
    with np.load(two) as states:  # every one of the three runs began with zeros
        assert states["file"].dtype == np.float16
        assert states["file"].tolist() == [[2, 2, 2]]
    assert "exists" in refused(capsys, "run", counter, *ones, "--state-out", two)


def test_states_that_do_not_fit(counter: Path, square: Path, tmp_path: Path, capsys: Capture) -> None:
    ones, path = ("--input", "x=[[1,1,1]]"), tmp_path / "s.npz"
    for arrays, message in (
        ({"other": np.zeros((1, 3))}, "lacks the state 'file', which is fp16[1, 3]"),
        ({"file": np.zeros((1, 3)), "other": np.zeros(1)}, "there is no state 'other'"),
        ({"file": np.zeros((1, 4))}, "state 'file' must be fp16[1, 3], got float64[1, 4]"),
        ({"file": np.zeros((1, 3), np.int32)}, "state 'file' must be fp16[1, 3], got int32[1, 3]"),
    ):
        with zipfile.ZipFile(path, "w") as archive:
            for name, array in arrays.items():
                buffer = io.BytesIO()
                np.save(buffer, array)
                archive.writestr(f"{name}.npy", buffer.getvalue())
        assert message in refused(capsys, "run", counter, *ones, "--state-in", path)
    assert "has no states" in refused(capsys, "run", square, *ones, "--state-in", path)


def multiplied(factor: int, x: Any) -> Any:
    return mb.mul(x=x, y=np.float32(factor), name="y")


def test_a_function_by_name(tmp_path: Path, capsys: Capture) -> None:
    factors = {"double": 2, "triple": 3}
    made = Program()
    for name in factors:
        made.add_function(name, function(partial(multiplied, factors[name]), {"x": X}))
    made.default_function_name = "double"
    made.export_as_multifunction = True
    package = saved(made, tmp_path / "two.mlpackage")
    for name, factor in factors.items():
        printed(capsys, "run", package, "--input", "x=[[1,2,3]]", "--function", name, "-o", tmp_path / name)
        assert np.load(tmp_path / name / "y.npy").tolist() == [[factor, 2 * factor, 3 * factor]]
    assert "no function 'none'; the program has double, triple" in refused(capsys, "run", package, "--function", "none")


# --- overflow


def test_an_overflow_is_explained_where_an_output_shows_it(square: Path, capsys: Capture) -> None:
    told = printed(capsys, "run", square, "--input", "x=[[1,2,300]]")
    assert "mul 'square': square is inf as fp16 at (0, 2), 90000 in float64" in told
    assert "it reaches y (1 places)" in told
    assert "float64" not in printed(capsys, "run", square, "--input", "x=[[1,2,300]]", "--no-check-overflow")
    assert "float64" not in printed(capsys, "run", square, "--input", "x=[[1,2,3]]")


def test_an_overflow_in_a_state_is_explained(counter: Path, tmp_path: Path, capsys: Capture) -> None:
    start = tmp_path / "s.npz"
    with zipfile.ZipFile(start, "w") as archive, archive.open("file.npy", "w") as stream:
        np.save(stream, np.full((1, 3), 60000, np.float16))
    told = printed(capsys, "run", counter, "--input", "x=[[1,2,60000]]", "--state-in", start)
    assert "is inf as fp16 at (0, 2), 120000 in float64" in told


def test_check_overflow_decides_the_exit_status(square: Path, capsys: Capture) -> None:
    assert "no NaN or Inf" in printed(capsys, "run", square, "--input", "x=[[1,2,3]]", "--check-overflow")
    assert "'square'" in printed(capsys, "run", square, "--input", "x=[[1,2,300]]", "--check-overflow", status=1)
    arguments = ("--input", "x=[[1,2,3]]", "--check-overflow", "--precision", "float64")
    assert "choose another --precision" in refused(capsys, "run", square, *arguments)


def test_an_overflow_that_stops_the_run(tmp_path: Path, capsys: Capture) -> None:
    def build(x: Any) -> Any:
        place = mb.cast(x=mb.mul(x=mb.mul(x=x, y=x, name="square"), y=np.float16(1e-5)), dtype="int32")
        return mb.gather(x=np.arange(9, dtype=np.float16), indices=place, axis=0, name="row")

    package = saved(program(build, {"x": X.astype(np.float16)}), tmp_path / "p.mlpackage")
    assert "gather 'row'" in refused(capsys, "run", package, "--input", "x=[[300,1,1]]")
    told = printed(capsys, "run", package, "--input", "x=[[300,1,1]]", "--check-overflow", status=1)
    assert "mul 'square'" in told
    assert "the run stopped: gather 'row'" in told


# --- what is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "input 'x' is missing; function 'main' takes x fp16[1, 3], n int32[1], on int32[1]"),
        (("x=[[1,2,3]]", "n=1"), "input 'on' is missing"),
        (("x=[[1,2,3]]", "n=1", "on=1", "z=1"), "there is no input 'z'; function 'main' takes x fp16[1, 3]"),
        (("x=[1,2,3]", "n=1", "on=1"), "input 'x' must be fp16[1, 3], got int64[3]"),
        (("x=[[1,2,3,4]]", "n=1", "on=1"), "input 'x' must be fp16[1, 3], got int64[1, 4]"),
        (("x=[[1,2,3]]", "n=1.5", "on=1"), "input 'n' must be int32[1], got float64[]"),
        (("x=[[1,2,3]]", "n=true", "on=1"), "input 'n' must be int32[1], got bool[]"),
        (("x=[[1,2,3]]", "n=3000000000", "on=1"), "beyond int32"),
        (("x=[[1,2,3]]", "n=1e999", "on=1"), "input 'n' must be int32[1], got float64"),
        (("x=[[1,2],[3]]", "n=1", "on=1"), "no array of numbers"),
        (('x=["a"]', "n=1", "on=1"), "no array of numbers"),
        (("x=null", "n=1", "on=1"), "no array of numbers"),
        (("x=cat", "n=1", "on=1"), "neither a number or list in JSON nor a file"),
        (("x=" + "[" * 100000,), "neither a number or list in JSON nor a file"),
        (("x=1", "x=2"), "input 'x' is given twice"),
        (("x",), "--input is NAME=VALUE"),
        (("=1",), "--input is NAME=VALUE"),
        (("x=absent.npy",), "absent.npy: no such file"),
        (("absent.npz",), "absent.npz: no such file"),
        (("x=.npy",), "neither"),
    ],
)  # fmt: skip
def test_inputs_that_do_not_fit(arrays: Path, capsys: Capture, arguments: tuple[str, ...], message: str) -> None:
    told = refused(capsys, "run", arrays, *(f"--input={each}" for each in arguments))
    assert message in told
    assert len(told) < 400


def test_random_does_not_hide_a_wrong_name(arrays: Path, capsys: Capture) -> None:
    assert "no input 'z'" in refused(capsys, "run", arrays, "--random", "--input", "z=1")


def npy(header: str, content: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version == (1, 0) else "<I", len(text)) + text + content


def pickled() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}, None], object), allow_pickle=True)
    return buffer.getvalue()


HUGE = "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 1000), }"
HOSTILE = {
    "pickle": (pickled(), "Python objects (a pickle), which are not loaded"),
    "huge": (npy(HUGE, b"1234"), "but 4 bytes follow"),
    "overflowing": (npy(HUGE.replace("1000)", "2**62)"), b"1234"), "can't be read"),
    "negative": (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -1), }", b"1234"), "header says"),
    "code": (npy("__import__('os').system('true')", b""), "can't be read"),
    "deep": (npy("(" * 5000), "can't be read"),
    "long header": (npy("{" + " " * 60000 + "}"), "can't be read"),
    "text": (npy("{'descr': '<U3', 'fortran_order': False, 'shape': (1,), }", b"a" * 12), "not numbers"),
    "records": (npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }", b"1234"), "not numbers"),
    "version": (npy("{}", version=(9, 0)), "can't be read"),
    "empty": (b"", "can't be read"),
    "no array": (b"hello", "can't be read"),
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("packed", [False, True])
def test_hostile_arrays(arrays: Path, tmp_path: Path, capsys: Capture, kind: str, packed: bool) -> None:
    content, message = HOSTILE[kind]
    path = tmp_path / ("x.npz" if packed else "x.npy")
    if packed:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x.npy", content)
    else:
        path.write_bytes(content)
    assert message in refused(capsys, "run", arrays, "--input", f"x={path}")


def test_flipped_bytes_are_read_or_refused(arrays: Path, tmp_path: Path, capsys: Capture) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", X)
    np.savez_compressed(tmp_path / "x.npz", x=X)
    for name in ("x.npy", "x.npz"):
        whole = (tmp_path / name).read_bytes()
        for place in rng.choice(len(whole), 40, replace=False):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << int(rng.integers(8))
            (tmp_path / name).write_bytes(damaged)
            status = main(["run", str(arrays), "--random", "--no-check-overflow", f"--input=x={tmp_path / name}"])
            told = capsys.readouterr()
            assert status in (0, 2)
            assert told.err.count("\n") == (status == 2)


def test_truncated_arrays(arrays: Path, tmp_path: Path, capsys: Capture) -> None:
    np.save(tmp_path / "x.npy", X)
    np.savez_compressed(tmp_path / "x.npz", x=np.arange(1000.0), n=X)
    for name in ("x.npy", "x.npz"):
        whole = (tmp_path / name).read_bytes()
        for length in (0, 1, 7, 40, len(whole) // 2, len(whole) - 1):
            (tmp_path / name).write_bytes(whole[:length])
            assert name in refused(capsys, "run", arrays, "--input", f"x={tmp_path / name}")


def test_an_archive_that_lies_about_sizes(arrays: Path, tmp_path: Path, capsys: Capture) -> None:
    """The entry says that it unpacks to 4 TB, as the array's header does; there are a few bytes."""
    content = npy(HUGE.replace("1000)", ")"), b"1234")
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        info = zipfile.ZipInfo("x.npy")
        info.compress_type = zipfile.ZIP_DEFLATED
        archive.writestr(info, content)
        info.file_size = len(content) - 4 + 4 * 10**12
    told = refused(capsys, "run", arrays, "--input", f"x={tmp_path / 'x.npz'}")
    assert "x.npz can't be read" in told


def test_damaged_json_and_an_archive_with_a_wrong_checksum(arrays: Path, tmp_path: Path, capsys: Capture) -> None:
    for content in (b"", b"[1, 2", b"\xff\xfe", b"[" * 100000, b"[1] [2]"):
        (tmp_path / "x.json").write_bytes(content)
        assert "x.json can't be read" in refused(capsys, "run", arrays, "--input", f"x={tmp_path / 'x.json'}")
    (tmp_path / "x.json").write_text("[[1,2,3]]")
    assert "holds no object of inputs by name" in refused(capsys, "run", arrays, "--input", tmp_path / "x.json")
    np.savez(tmp_path / "x.npz", x=X)
    damaged = bytearray((tmp_path / "x.npz").read_bytes())
    damaged[damaged.index(X.tobytes())] ^= 1
    (tmp_path / "x.npz").write_bytes(damaged)
    assert "Bad CRC" in refused(capsys, "run", arrays, "--input", f"x={tmp_path / 'x.npz'}")


def test_unsupported_ops_are_listed_at_once(tmp_path: Path, capsys: Capture) -> None:
    def build(x: Any) -> Any:
        nested = mb.cond(
            pred=mb.greater(x=mb.reduce_max(x=x, axes=[0, 1]), y=np.float32(0)),
            _true_fn=lambda: mb.sin(x=x, name="nested"),
            _false_fn=lambda: mb.identity(x=x, name="plain"),
        )
        return mb.sin(x=mb.cos(x=mb.sin(x=nested, name="first"), name="second"), name="third")

    package = saved(program(build, {"x": X}), tmp_path / "p.mlpackage")
    spec = Model_pb2.Model()
    spec.ParseFromString((package / SPEC).read_bytes())
    replace_types(spec.mlProgram.functions["main"].block_specializations, {"sin": "custom_swish", "cos": "later_op"})
    (package / SPEC).write_bytes(spec.SerializeToString())
    listed = "custom_swish (3x, e.g. 'nested'), later_op (1x, e.g. 'second')"
    for arguments in (
        ("run", package, "--random"),
        ("verify", package, package),
        ("optimize", package, "-o", tmp_path / "o.mlpackage"),
    ):
        assert listed in refused(capsys, *arguments)
    assert not (tmp_path / "o.mlpackage").exists()
    # what isn't run is carried as it is, and written back
    assert main(["inspect", str(package)]) == 0
    assert main(["optimize", str(package), "-o", str(tmp_path / "o.mlpackage"), "--verify", "none"]) == 0
    capsys.readouterr()
    assert listed in refused(capsys, "run", tmp_path / "o.mlpackage", "--random")


def replace_types(blocks: Any, names: dict[str, str]) -> None:
    for block in blocks.values() if hasattr(blocks, "values") else blocks:
        for op in block.operations:
            op.type = names.get(op.type, op.type)
            replace_types(op.blocks, names)


def test_a_run_is_stopped_by_what_the_program_refuses(tmp_path: Path, capsys: Capture) -> None:
    made = program(
        lambda i: mb.gather(x=np.arange(3.0, dtype=np.float32), indices=i, axis=0, name="row"),
        {"i": np.ones(1, np.int32)},
    )
    package = saved(made, tmp_path / "p.mlpackage")
    assert "gather 'row'" in refused(capsys, "run", package, "--input", "i=7", "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_devices(square: Path, capsys: Capture) -> None:
    assert "fp16" in printed(capsys, "run", square, "--random", "--device", "cpu")
    for device in ("tpu", "meta", ""):
        assert f"no device {device!r}; choose cpu, cuda, mps" in refused(capsys, "run", square, "--device", device)
    for device, present in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available())):
        if not present:
            told = refused(capsys, "run", square, "--random", "--device", device)
            assert f"device {device!r} is not available" in told


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_run_on_an_accelerator(square: Path, counter: Path, tmp_path: Path, capsys: Capture) -> None:
    arguments = ("--device", "cuda", "--trace", "--profile", "--check-overflow")
    told = printed(capsys, "run", square, "--input", "x=[[1,2,300]]", *arguments, status=1)
    assert "mul 'square': square is inf as fp16 at (0, 2), 90000 in float64" in told
    ones, out = ("--input", "x=[[1,1,1]]", "--device", "cuda"), tmp_path / "s.npz"
    printed(capsys, "run", counter, *ones, "--state-out", out, "-o", tmp_path / "out")
    assert np.load(tmp_path / "out" / "y.npy").tolist() == [[1, 1, 1]]


def test_help_does_not_need_a_package(capsys: Capture) -> None:
    assert main(["run"]) == 2
    assert "PKG" in capsys.readouterr().err

"""The file of a calibration is what was written, or a refusal in one line."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from milopt.calibration.statistics import Moments, Statistics
from milopt.errors import MiloptError

Header = dict[str, Any]


def written(path: Path) -> Path:
    products = np.array([[2, 1], [1, 3]], np.float32)
    made = Statistics({"k.1x2x1": Moments(np.array([2.0, 3.0]), 5, products), "l.3x1x1": Moments(np.array([1.0]), 1)})
    made.sensitivities["k"] = 0.5
    made.save(path)
    return path


def test_what_is_written_is_read_by_others(tmp_path: Path) -> None:
    numpy: Any = pytest.importorskip("safetensors.numpy")
    read = numpy.load_file(written(tmp_path / "s.safetensors"))
    assert sorted(read) == [
        "moments/k.1x2x1/count",
        "moments/k.1x2x1/products",
        "moments/k.1x2x1/squares",
        "moments/l.3x1x1/count",
        "moments/l.3x1x1/squares",
        "sensitivities/k",
    ]
    np.testing.assert_array_equal(read["moments/k.1x2x1/products"], [[2, 1], [1, 3]])


def test_products_are_a_view_of_the_file(tmp_path: Path) -> None:
    products = Statistics.load(written(tmp_path / "s.safetensors")).moments["k.1x2x1"].products
    assert not products.flags.owndata
    assert not products.flags.writeable


def place(header: Header, name: str, **change: Any) -> None:
    header[name].update(change)


DAMAGES: dict[str, tuple[Callable[[Header], Any], str]] = {
    "another format": (lambda header: header["__metadata__"].update(format="else"), "does not say that it is"),
    "no metadata": (lambda header: header.pop("__metadata__"), "does not say that it is"),
    "nothing of what is shared": (lambda header: header["__metadata__"].pop("shared"), "shared"),
    "shared, but no object": (lambda header: header["__metadata__"].update(shared="[1]"), "is no object"),
    "shared, but no JSON": (lambda header: header["__metadata__"].update(shared="{"), "can't be read as statistics"),
    "shared with a list": (lambda header: header["__metadata__"].update(shared='{"m":[]}'), "unhashable"),
    "shared with none": (
        lambda header: header["__metadata__"].update(shared='{"m":"n"}'),
        "no moments for 'm', or two",
    ),
    "shared and its own": (
        lambda header: header["__metadata__"].update(shared='{"k.1x2x1":"l.3x1x1"}'),
        "no moments for 'k.1x2x1', or two",
    ),
    "past the end": (
        lambda header: place(header, "sensitivities/k", data_offsets=[80, 88]),
        "not where its header says",
    ),
    "too few bytes": (lambda header: place(header, "sensitivities/k", data_offsets=[0, 4]), "not where its header"),
    "one place": (lambda header: place(header, "sensitivities/k", data_offsets=[0, 8]), "lie in one place"),
    "a negative place": (lambda header: place(header, "sensitivities/k", data_offsets=[-8, 0]), "wrong shape or place"),
    "a huge shape": (lambda header: place(header, "sensitivities/k", shape=[1 << 62, 4]), "not where its header"),
    "no places": (lambda header: header["sensitivities/k"].pop("data_offsets"), "data_offsets"),
    "another type": (lambda header: place(header, "sensitivities/k", dtype="F16"), "F16"),
    "true as a size": (lambda header: place(header, "sensitivities/k", shape=[True]), "wrong shape or place"),
    "an unknown name": (lambda header: header.update(other=header.pop("sensitivities/k")), "means nothing here"),
    "no count": (lambda header: header.pop("moments/l.3x1x1/count"), "moments/l.3x1x1/count"),
    "a count alone": (lambda header: header.pop("moments/l.3x1x1/squares"), "means nothing here"),
    "products of another shape": (
        lambda header: place(header, "moments/k.1x2x1/products", shape=[4, 1]),
        "products of the wrong shape",
    ),
    "a count of floats": (lambda header: place(header, "moments/l.3x1x1/count", dtype="F64"), "has no count"),
    "squares of integers": (lambda header: place(header, "moments/l.3x1x1/squares", dtype="I64"), "no sums of squares"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damaged_headers_are_refused(case: str, tmp_path: Path) -> None:
    path = written(tmp_path / "s.safetensors")
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    change, says = DAMAGES[case]
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    with pytest.raises(MiloptError, match=r"s\.safetensors can't be read as statistics of a calibration: ") as raised:
        Statistics.load(path)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"no", b"\xff" * 64, struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 9) + b"[" * 9, b"\0" * 8],
    ids=["empty", "short", "long header", "no object", "no JSON", "no header"],
)
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    path.write_bytes(content)
    with pytest.raises(MiloptError, match="can't be read as statistics of a calibration") as raised:
        Statistics.load(path)
    assert "\n" not in str(raised.value)


def test_numbers_that_are_no_moments_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    for squares in ([-1.0], [np.nan]):
        Statistics({"k.1x1x1": Moments(np.array(squares), 1)}).save(path)
        with pytest.raises(MiloptError, match="no sums of squares"):
            Statistics.load(path)
    for sensitivity in (-1.0, np.nan, np.inf):
        Statistics(sensitivities={"k": sensitivity}).save(path)
        with pytest.raises(MiloptError, match="sensitivities/k"):
            Statistics.load(path)
    Statistics({"k.1x1x1": Moments(np.array([1.0]), -1)}).save(path)
    with pytest.raises(MiloptError, match="has no count"):
        Statistics.load(path)


def test_what_is_not_there_or_can_not_be_written(tmp_path: Path) -> None:
    with pytest.raises(MiloptError, match="none can't be read as statistics of a calibration: No such file"):
        Statistics.load(tmp_path / "none")
    with pytest.raises(MiloptError, match="can't be read as statistics"):
        Statistics.load(tmp_path)
    with pytest.raises(MiloptError, match=r"can't write .*s\.safetensors: No such file"):
        Statistics().save(tmp_path / "none" / "s.safetensors")


def test_weights_of_equal_inputs_have_one_set_of_moments(tmp_path: Path) -> None:
    one, other = (Moments(np.array([2.0, 3.0]), 5, np.full((2, 2), each, np.float32)) for each in (1, 2))
    made = Statistics({"k.1x2x1": one, "l.3x2x1": other, "m.1x2x1": one})
    made.save(tmp_path / "s.safetensors")
    with (tmp_path / "s.safetensors").open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    assert "moments/m.1x2x1/squares" not in header
    assert json.loads(header["__metadata__"]["shared"]) == {"m.1x2x1": "k.1x2x1"}
    read = Statistics.load(tmp_path / "s.safetensors").moments
    assert read["m.1x2x1"] is read["k.1x2x1"]
    assert read["l.3x2x1"].products[0, 0] == 2
    assert read.keys() == made.moments.keys()

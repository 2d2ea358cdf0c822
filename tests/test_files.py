"""A file appears whole or not at all, whoever writes it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from milopt import files
from milopt.calibration.statistics import Moments, Statistics
from milopt.cli.writing import Files, write_arrays
from milopt.dumping import Dump
from milopt.errors import MiloptError
from milopt.files import remove_folder, whole_file
from milopt.package import load
from milopt.sets.deployment import Table
from milopt.sets.extracting import save_table
from tests.compression.support import linear_program, weights

ROWS = np.ones((64, 64), np.float32)


def _statistics(path: Path) -> None:
    Statistics(moments={"of": Moments(np.ones(4096), 1, None)}).save(path)


def _table(path: Path) -> None:
    save_table(Table(ROWS), path)


def _states(path: Path) -> None:
    write_arrays(path, {"rows": ROWS})


WRITERS = {"stats.safetensors": _statistics, "rows.npy": _table, "states.npz": _states}


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written to a whole file goes to a device that has no room."""
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")

    def opened(handle: int, mode: str) -> Any:
        os.dup2(os.open("/dev/full", os.O_WRONLY), handle)
        return os.fdopen(handle, mode)

    class Os:
        fdopen = staticmethod(opened)

        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

    monkeypatch.setattr(files, "os", Os())


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("there", [False, True], ids=["new", "replaced"])
@pytest.mark.usefixtures("full_disk")
def test_a_full_disk(name: str, there: bool, tmp_path: Path) -> None:
    path = tmp_path / name
    if there:
        path.write_text("the old one")
    with pytest.raises(MiloptError, match=rf"can't write .*{name}: \w.*") as told:
        WRITERS[name](path)
    assert "\n" not in str(told.value)
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [(name, "the old one")] * there


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_while_texts_are_dumped(tmp_path: Path) -> None:
    dump = Dump(tmp_path / "dump")
    with pytest.raises(MiloptError, match=r"can't write .*00-input\.mil: No space left"):
        dump.start(load(linear_program(weights((8, 8)))))
    assert [*dump.folder.iterdir()] == []


@pytest.mark.parametrize("kind", [KeyboardInterrupt, MemoryError])
def test_an_interruption_leaves_the_old_one(kind: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("the old one")

    def write() -> None:
        with whole_file(path) as file:
            file.write(b"half of")
            raise kind

    with pytest.raises(kind):
        write()
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("file", "the old one")]


def test_a_file_is_replaced_and_has_the_usual_rights(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("")
    for content in (b"one", b"two"):
        with whole_file(tmp_path / "file") as file:
            file.write(content)
            assert not file.closed
        assert (tmp_path / "file").read_bytes() == content
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "other").stat().st_mode
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "other"]


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with (
        pytest.raises(MiloptError, match=r"can't write .*/none/file: No such file"),
        whole_file(tmp_path / "none/file"),
    ):
        pytest.fail("there is nothing to fill")


def _interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def _refused(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(("fault", "kind"), [(_interrupted, KeyboardInterrupt), (_refused, MiloptError)])
@pytest.mark.parametrize("there", [False, True], ids=["new", "there"])
def test_a_folder_of_outputs_that_comes_to_nothing(
    there: bool,
    fault: Callable[..., None],
    kind: type[BaseException],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "made" / "outputs"
    if there:
        folder.mkdir(parents=True)
        (folder / "mine").write_text("")
    answers = Files(folder, {"y": ".npy"}, force=False)
    monkeypatch.setattr(np, "save", fault)
    with pytest.raises(kind):
        answers.write({"y": ROWS})
    left = sorted(each.name for each in tmp_path.rglob("*"))
    assert left == (["made", "mine", "outputs"] if there else [])


def test_a_folder_is_removed_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        (tmp_path / "folder" / name).mkdir(parents=True)
    rmdir, calls = os.rmdir, list[Any]()

    def interrupted(path: Any, **options: Any) -> None:
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        rmdir(path, **options)

    monkeypatch.setattr(os, "rmdir", interrupted)
    with pytest.raises(KeyboardInterrupt):
        remove_folder(tmp_path / "folder")
    assert [*tmp_path.iterdir()] == []

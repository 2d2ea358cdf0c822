"""A save that is killed, at whatever moment, leaves the old package or the new one."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from milopt.package import exchanging, load, publishing, storing
from milopt.package.exchanging import exchange
from milopt.text import text

from .support import linear, tree

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def saved_and_killed(model: Any, path: Path, moment: int, *, by_renames: bool) -> bool:
    """Save in a forked process that kills itself at its ``moment``-th touch of the disk; whether it got that far."""
    child = os.fork()
    if child == 0:
        count = 0

        def touch(event: str = "", arguments: tuple[Any, ...] = ()) -> None:
            nonlocal count
            if event and not (event.startswith(("os.", "shutil.")) or event == "open"):
                return
            if event and not any(str(path.parent) in str(each) for each in arguments):
                return
            if count == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1

        modules: Any = (storing, exchanging)
        put = modules[0]._put

        def counted(file: Any, content: Any) -> None:
            touch()
            put(file, content)

        def never(*_: Path) -> bool:
            return False

        def swapped(one: Path, other: Path) -> bool:
            touch()
            done = exchange(one, other)
            touch()
            return done

        modules[0]._put = counted
        modules[1].exchange = never if by_renames else swapped
        sys.addaudithook(touch)
        model.save(path, overwrite=True)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0


@pytest.mark.parametrize("by_renames", [False, True])
def test_killed_at_any_moment(by_renames: bool, tmp_path: Path) -> None:
    old, new = load(linear()), load(linear(rows=4))
    texts = [text(model, weights="hash") for model in (old, new)]
    path = tmp_path / "a.mlpackage"
    new_tree = tree(new.save(tmp_path / "b.mlpackage"))
    seen: set[int] = set()
    moment = 0
    while True:
        old.save(path, overwrite=True)
        assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".")] == []
        if not saved_and_killed(new, path, moment, by_renames=by_renames):
            break
        seen.add(texts.index(text(load(path), weights="hash")))
        moment += 1
    assert moment > 20
    assert seen == {0, 1}
    assert tree(path) == new_tree


def test_killed_before_there_was_an_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.mlpackage"
    moment = 0
    while saved_and_killed(load(linear()), path, moment, by_renames=False):
        assert not path.exists() or text(load(path)) == text(linear())
        if path.exists():
            load(path)
            break
        moment += 1
    assert moment > 10


def test_a_folder_that_is_being_filled_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.mlpackage"
    model = load(linear())
    with publishing.published(path, overwrite=False) as folder:
        (folder / "Manifest.json").write_text("{}")
        model.save(path)
        assert folder.is_dir()
        path.rename(tmp_path / "moved.mlpackage")
    assert [each.name for each in sorted(tmp_path.iterdir())] == ["a.mlpackage", "moved.mlpackage"]
    assert (path / "Manifest.json").read_text() == "{}"


def test_folders_swap_names(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for each in (one, other):
        each.mkdir()
        (each / each.name).write_text("")
    if not exchange(one, other):
        pytest.skip("this file system can't exchange two folders")
    assert [next(each.iterdir()).name for each in (one, other)] == ["other", "one"]
    with pytest.raises(OSError, match="No such file"):
        exchange(one, tmp_path / "absent")

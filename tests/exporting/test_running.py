"""Steps are done once, in order, and again where something changed; a killed process leaves nothing wrong behind."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from milopt.exporting import ExportError, durable
from milopt.exporting.durable import locked
from milopt.exporting.running import Outcome, Tell
from milopt.package import exchanging
from milopt.package.exchanging import exchange
from tests.exporting.counting import FOLDERS, quietly, run, steps, tree
from tests.exporting.killing import Killer

KILLS = 12


@pytest.fixture
def root(tmp_path: Path) -> Path:
    run(tmp_path / "out")
    return tmp_path / "out"


def _told(outcomes: list[Outcome]) -> list[str]:
    return [each.reason if each.done else "kept" for each in outcomes]


def test_steps_run_in_order_and_once(tmp_path: Path) -> None:
    calls: list[str] = []
    outcomes = run(tmp_path / "out", calls=calls)
    assert calls == list(FOLDERS)
    assert _told(outcomes) == ["", "", "", ""]
    assert [each.notes for each in outcomes] == [["option a"], ["option b"], ["option c"], ["option d"]]
    before = tree(tmp_path / "out")
    assert _told(run(tmp_path / "out", calls=calls)) == ["kept"] * 4
    assert calls == list(FOLDERS)
    assert tree(tmp_path / "out") == before


def test_the_journal_names_every_file_and_nothing_of_the_machine(root: Path) -> None:
    journal = json.loads((root / "export.json").read_text())
    files = {path for each in journal["steps"].values() for path in each["files"]}
    assert files == set(tree(root)) - {"export.json"}
    assert str(root.parent) not in (root / "export.json").read_text()


def test_two_folders_get_the_same_bytes(root: Path, tmp_path: Path) -> None:
    run(tmp_path / "other")
    assert tree(tmp_path / "other") == tree(root)


def test_an_option_that_changed_is_said(tmp_path: Path) -> None:
    root, calls = tmp_path / "out", list[str]()
    with pytest.raises(ZeroDivisionError):
        run(root, tell=_stop_at("3/4 set"))
    assert _told(run(root, "aBcd", calls=calls)) == ["kept", "option was b, is B", "", ""]
    assert calls == ["2-two", "set", "last"]
    run(tmp_path / "other", "aBcd")
    assert tree(root) == tree(tmp_path / "other")


def _stop_at(start: str) -> Tell:
    def tell(text: str) -> None:
        if text.startswith(start):
            raise ZeroDivisionError

    return tell


def test_a_step_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "out", tell=_stop_at("2/4 2-two: write"))
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == ["1-one", "export.json"]


def test_a_finished_set_is_replaced_only_if_asked_to(root: Path, tmp_path: Path) -> None:
    before = tree(root)
    with pytest.raises(ExportError, match=r"finished set made otherwise: option was b, is B; --force replaces"):
        run(root, "aBcd")
    assert tree(root) == before
    told = _told(run(root, "aBcd", force=True))
    assert told[:2] == ["kept", "option was b, is B"]
    assert told[2] == "2-two/inner/text is another than it was"
    run(tmp_path / "other", "aBcd")
    assert tree(root) == tree(tmp_path / "other")


@pytest.mark.parametrize("exchanged", [True, False], ids=["exchanged", "renamed"])
def test_a_finished_set_stays_until_the_new_one_is_there(
    exchanged: bool, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, rename = tree(root / "set"), Path.rename

    def renamed(one: Path, other: Path) -> Path:
        if one.name == ".set.new":
            raise KeyboardInterrupt
        return rename(one, other)

    def swapped(one: Path, other: Path) -> bool:
        if exchanged and other.name == "set":
            raise KeyboardInterrupt
        return exchanged and exchange(one, other)

    with monkeypatch.context() as patched:
        patched.setattr(exchanging, "exchange", swapped)
        patched.setattr(Path, "rename", renamed)
        with pytest.raises(KeyboardInterrupt):
            run(root, "aBcd", force=True)
    assert tree(root / "set") == before
    assert [each.name for each in root.iterdir() if each.name.startswith(".")] == []
    run(root, "aBcd", force=True)
    run(tmp_path / "other", "aBcd")
    assert tree(root) == tree(tmp_path / "other")


def test_a_journal_that_finds_no_room_leaves_the_old_one(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tree(root)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        durable.write_atomically(root / "export.json", "{}")
    assert tree(root) == before


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_restart_does_a_step_and_all_later_ones_again(root: Path, number: int) -> None:
    before = tree(root)
    asked = f"--restart {number}"
    assert _told(run(root, restart=number)) == ["kept"] * (number - 1) + [asked] * (5 - number)
    assert tree(root) == before


def test_only_does_one_step(root: Path) -> None:
    before, calls = tree(root), list[str]()
    (root / "2-two" / "inner" / "text").write_text("damaged")
    assert _told(run(root, only=2, calls=calls)) == ["--only 2"]
    assert calls == ["2-two"]
    assert tree(root) == before


def test_only_needs_what_comes_before(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"step 2 \(2-two\) needs step 1 \(1-one\), which is not done"):
        run(tmp_path / "new", only=2)
    (root / "1-one" / "of-a").write_text("other")
    with pytest.raises(ExportError, match=r"step 2 \(2-two\) needs .*, but 1-one/of-a was changed"):
        run(root, only=2)


@pytest.mark.parametrize(("number", "reason"), [(0, "step"), (5, "steps 1 to 4")])
def test_there_is_no_such_step(root: Path, number: int, reason: str) -> None:
    with pytest.raises(ExportError, match=reason):
        run(root, restart=number)
    with pytest.raises(ExportError, match=reason):
        run(root, only=number)
    with pytest.raises(ExportError, match="exclude each other"):
        run(root, restart=1, only=1)


def test_damage_is_mended_by_the_step_that_wrote_it(root: Path) -> None:
    before, calls = tree(root), list[str]()
    (root / "2-two" / "inner" / "text").write_text("x" * 64 * 200)  # as long as it was
    (root / "set" / "of-c").unlink()
    told = _told(run(root, calls=calls))
    assert told == ["kept", "2-two/inner/text was changed", "set/of-c is missing", "kept"]
    assert calls == ["2-two", "set"]
    assert tree(root) == before


def test_folders_on_the_way_may_be_removed(root: Path) -> None:
    before, calls = tree(root), list[str]()
    shutil.rmtree(root / "1-one")
    shutil.rmtree(root / "2-two")
    assert _told(run(root, calls=calls)) == ["kept"] * 4
    assert calls == []
    shutil.rmtree(root / "set")
    run(root, calls=calls)
    assert calls == ["1-one", "2-two", "set"]
    assert tree(root) == before


@pytest.mark.parametrize("place", ["notes.txt", "1-one/notes.txt", "set/inner/notes.txt", ".3-three.new"])
def test_a_foreign_file_is_refused(root: Path, place: str) -> None:
    (root / place).write_text("mine")
    with pytest.raises(ExportError, match=r"notes.txt is not of the export|.3-three.new is not of the export"):
        run(root)
    assert (root / place).read_text() == "mine"


def test_what_macos_leaves_is_no_foreign_file(root: Path) -> None:
    for place in (".DS_Store", "set/.DS_Store"):
        (root / place).write_text("Finder's")
    assert _told(run(root)) == ["kept"] * 4


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "thesis"
    (folder / "set").mkdir(parents=True)
    (folder / "set" / "chapter").write_text("mine")
    with pytest.raises(ExportError, match="is not of the export: move it away, or name another folder"):
        run(folder, force=True)
    assert tree(folder) == {"set/chapter": b"mine"}
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ExportError, match="is no folder"):
        run(tmp_path / "file")
    with pytest.raises(ExportError, match="does not exist"):
        run(tmp_path / "a" / "b")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "other", "version": 1}', '{"format": "milopt export"}'])
def test_a_journal_that_is_none_is_refused(root: Path, text: str) -> None:
    (root / "export.json").write_text(text)
    with pytest.raises(ExportError, match=r"export\.json is") as caught:
        run(root)
    assert "\n" not in str(caught.value)


def test_temporary_files_are_the_folders_own(tmp_path: Path) -> None:
    found: list[Path] = []

    def tell(text: str) -> None:
        if text.endswith(": write") and len(found) < 1:
            with tempfile.NamedTemporaryFile(delete=False) as file:
                found.append(Path(file.name))

    before = tempfile.gettempdir()
    run(tmp_path / "out", tell=tell)
    assert found[0].parent == tmp_path / "out" / ".temporary"
    assert not found[0].parent.exists()
    assert tempfile.gettempdir() == before
    found[0].parent.mkdir()
    found[0].write_text("left behind by a process that was killed")
    run(tmp_path / "out")
    assert not found[0].parent.exists()


def test_what_killed_processes_left_is_removed(root: Path) -> None:
    before = tree(root)
    (root / ".export.json.new").write_text('{"format": "mil')
    for name in (".2-two.new", ".2-two.old", ".set.new"):
        (root / name).mkdir()
        (root / name / "half").write_text("a file")
    assert _told(run(root)) == ["kept"] * 4
    assert tree(root) == before
    assert sorted(each.name for each in root.iterdir()) == sorted([*FOLDERS, "export.json"])


def test_two_exports_do_not_meet(root: Path) -> None:
    with locked(root), pytest.raises(ExportError, match="another export is at work there"):
        run(root)


def test_what_is_impossible_here_is_said(root: Path) -> None:
    from dataclasses import replace

    from milopt.exporting import run_steps

    made = (*steps(root, "abcd")[:3], replace(steps(root, "abcd")[3], impossible="it needs macOS"))
    outcomes = run_steps(root, made, result="set", tell=quietly)
    assert [(each.done, each.reason) for each in outcomes] == [(False, "")] * 3 + [(False, "it needs macOS")]
    with pytest.raises(ExportError, match=r"step 4 \(last\): it needs macOS"):
        run_steps(root, made, result="set", only=4, tell=quietly)


def test_killed_at_any_moment_it_ends_with_the_same_bytes(root: Path, tmp_path: Path) -> None:
    killer, wanted, number = Killer(run, preload=["tests.exporting.counting"]), tree(root), 0
    killer.run(tmp_path / "first")  # which waits for the imports
    whole = killer.run(tmp_path / "timed")
    while killer.kills < KILLS:
        number += 1
        out = tmp_path / f"out{number}"
        while killer.killed(out, whole) and killer.kills < KILLS:
            pass
        run(out)
        assert tree(out) == wanted
        assert not [each for each in out.iterdir() if each.name.startswith(".")]

"""A package appears whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from milopt.errors import PackageError
from milopt.package import exchanging, load, publishing, saving, storing
from milopt.text import text

from .support import linear, tree


def refused(model: Any, path: Path, **options: Any) -> str:
    before = tree(path.parent) if path.parent.is_dir() else {}
    with pytest.raises(PackageError) as caught:
        model.save(path, **options)
    assert (tree(path.parent) if path.parent.is_dir() else {}) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_existing_package_is_kept_unless_asked(tmp_path: Path) -> None:
    saved = load(linear()).save(tmp_path / "a.mlpackage")
    other = load(linear(rows=4))
    assert "exists; it is replaced only on request" in refused(other, saved)
    assert other.save(saved, overwrite=True) == saved
    assert text(load(saved), weights="hash") == text(other, weights="hash")
    assert [each.name for each in tmp_path.iterdir()] == ["a.mlpackage"]


def test_places_that_can_not_be_written(tmp_path: Path) -> None:
    model = load(linear())
    (tmp_path / "file").write_text("")
    (tmp_path / "in-the-way.mlpackage").write_text("a file")
    (tmp_path / "folder.mlpackage").mkdir()
    (tmp_path / "folder.mlpackage/mine.txt").write_text("not a package")
    assert "ends in .mlpackage" in refused(model, tmp_path / "a.mlmodel")
    assert "its folder does not exist" in refused(model, tmp_path / "no/a.mlpackage")
    assert "its folder does not exist" in refused(model, tmp_path / "file/a.mlpackage")
    for name in ("in-the-way.mlpackage", "folder.mlpackage"):
        assert "exists and is no package" in refused(model, tmp_path / name, overwrite=True)
    assert "can't write" in refused(model, tmp_path / ("a" * 300 + ".mlpackage"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        assert "Permission denied" in refused(load(linear()), tmp_path / "a.mlpackage")
    finally:
        tmp_path.chmod(0o700)


def test_folder_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert "Permission denied" in refused(load(linear()), tmp_path / "a.mlpackage")


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError(28, "No space left on device")])
@pytest.mark.parametrize("place", ["weights", "files", "sync"])
def test_interrupted_while_writing(
    place: str, error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = load(linear()).save(tmp_path / "a.mlpackage")
    model = load(saved)
    before = tree(tmp_path)

    def fail(*_: object) -> None:
        raise error

    owner, name = {
        "weights": (storing, "_put"),
        "files": (saving, "_manifest"),
        "sync": (publishing, "_sync"),
    }[place]
    monkeypatch.setattr(owner, name, fail)
    # only a package that is given up waits for the new one to be on the disk
    for target in (saved, *([] if place == "sync" else [tmp_path / "b.mlpackage"])):
        with pytest.raises((KeyboardInterrupt, MemoryError, PackageError)):
            model.save(target, overwrite=True)
        assert tree(tmp_path) == before
    monkeypatch.undo()
    assert tree(model.save(tmp_path / "b.mlpackage")) == tree(saved)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(5, "Input/output error")])
def test_old_package_comes_back_when_the_last_step_fails(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = load(linear()).save(tmp_path / "a.mlpackage")
    before = tree(tmp_path)
    rename = Path.rename

    def never(one: Path, other: Path) -> bool:
        del one, other
        return False

    monkeypatch.setattr(exchanging, "exchange", never)

    def fail_on_the_new_one(self: Path, target: Path) -> Path:
        if self.suffix == ".new":
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_on_the_new_one)
    with pytest.raises((KeyboardInterrupt, PackageError)):
        load(linear(rows=4)).save(saved, overwrite=True)
    assert tree(tmp_path) == before


def test_saving_onto_the_package_that_was_loaded(tmp_path: Path) -> None:
    saved = load(linear()).save(tmp_path / "a.mlpackage")
    model, before = load(saved), tree(saved)
    for _ in range(2):  # the weights are mapped from a file that has lost its name
        model.save(saved, overwrite=True)
        assert tree(saved) == before


def test_saving_through_a_link_keeps_the_link(tmp_path: Path) -> None:
    saved = load(linear()).save(tmp_path / "real.mlpackage")
    link = tmp_path / "link.mlpackage"
    link.symlink_to(saved)
    load(linear(rows=4)).save(link, overwrite=True)
    assert link.is_symlink()
    assert text(load(saved)) == text(load(linear(rows=4)))


def test_attachments_can_not_replace_the_model(tmp_path: Path) -> None:
    model = load(linear())
    for path in ("com.apple.CoreML/model.mlmodel", "com.apple.CoreML/weights/weight.bin", "../out", "/out"):
        model.attachments = {path: b""}
        assert "attachment" in refused(model, tmp_path / "a.mlpackage")


def test_outputs_of_one_name(tmp_path: Path) -> None:
    model = load(linear())
    model.function().outputs[0].name = "x"
    assert "two different inputs or outputs of one name: x, x" in refused(model, tmp_path / "a.mlpackage")


def test_program_that_is_no_core_ml(tmp_path: Path) -> None:
    model = load(linear())
    model.default_function = "gone"
    assert "default function 'gone' is not among: main" in refused(model, tmp_path / "a.mlpackage")
    model = load(linear())
    model.spec_version = 5
    assert "iOS16" in refused(model, tmp_path / "a.mlpackage")
    model.spec_version = 77
    assert "no specification version 77" in refused(model, tmp_path / "a.mlpackage")

"""Sets on the disk: written whole or not at all, and read only as they were written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import milopt
from milopt.errors import MiloptError
from milopt.package import Model
from milopt.sets import DeploymentSet, SetError, Table, chunk, load, verify
from milopt.sets.saving import digest_of
from tests.sets.programs import Transformer

ENDS: dict[str, Any] = {"embedding": "package", "head": "package"}


@pytest.fixture(scope="module")
def model() -> Model:
    made = Transformer(mlp=(24, 24)).model()
    made.attachments["milopt/tokenizer.json"] = b"{}"
    made.metadata["by"] = "hand"
    return made


@pytest.fixture(scope="module")
def saved(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chunk(model, count=2, **ENDS).save(tmp_path_factory.mktemp("sets") / "whole")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "set"))


def test_what_was_saved_is_loaded(model: Model, saved: Path) -> None:
    made, again = chunk(model, count=2, **ENDS), load(saved)
    assert again.parts == made.parts
    assert (again.inputs, again.outputs, again.default_function) == (made.inputs, made.outputs, "decode")
    assert again.metadata == model.metadata
    assert again.attachments == {"milopt/tokenizer.json": b"{}"}
    assert again.notes == made.notes
    assert (verdict := verify(model, again, trials=1)), verdict


def test_the_same_set_gives_the_same_bytes(model: Model, saved: Path, tmp_path: Path) -> None:
    again = chunk(model, count=2, **ENDS).save(tmp_path / "again")
    files = sorted(each.relative_to(saved) for each in saved.rglob("*") if each.is_file())
    assert files == sorted(each.relative_to(again) for each in again.rglob("*") if each.is_file())
    assert all((saved / each).read_bytes() == (again / each).read_bytes() for each in files)


def test_every_file_is_listed_with_its_hash(saved: Path) -> None:
    manifest = json.loads((saved / "set.json").read_text())
    files = {each.relative_to(saved).as_posix() for each in saved.rglob("*") if each.is_file()}
    assert set(manifest["files"]) == files - {"set.json"}
    for name, told in manifest["files"].items():
        assert told == {"bytes": (saved / name).stat().st_size, "sha256": digest_of(saved / name)}
    assert manifest["packages"]["head.mlpackage"]["functions"]["decode"]["outputs"] == {"logits": ["fp16", 1, 1, 64]}


def test_a_table_is_mapped(tmp_path: Path) -> None:
    model = Transformer(mlp=(24,)).model()
    again = load(chunk(model, count=1, embedding="table").save(tmp_path / "set"))
    table = again.files["embeddings.npy"]
    assert isinstance(table, Table)
    assert isinstance(table.array, np.memmap)
    assert json.loads((tmp_path / "set" / "set.json").read_text())["packages"]["embeddings.npy"] == {
        "table": {"dtype": "fp16", "shape": [64, 16]}
    }
    assert (verdict := verify(model, again, trials=1)), verdict


def _remove(folder: Path) -> None:
    (folder / "head.mlpackage" / "Data" / "com.apple.CoreML" / "weights" / "weight.bin").unlink()


def _add(folder: Path) -> None:
    (folder / "notes.txt").write_text("hello")


def _change(folder: Path) -> None:
    file = folder / "chunk_01of02.mlpackage" / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def _cut(folder: Path) -> None:
    file = folder / "chunk_01of02.mlpackage" / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    file.write_bytes(file.read_bytes()[:-64])


def _link(folder: Path) -> None:
    file = folder / "head.mlpackage" / "Manifest.json"
    shutil.move(file, folder.parent / "elsewhere.json")
    file.symlink_to(folder.parent / "elsewhere.json")


def _edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / "set.json").read_text())
    change(manifest)
    (folder / "set.json").write_text(json.dumps(manifest))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (_remove, r"head\.mlpackage/Data/com\.apple\.CoreML/weights/weight\.bin is missing from the set"),
    "foreign": (_add, r"notes\.txt is not part of the set: set\.json does not name it"),
    "changed": (_change, r"chunk_01of02.*weight\.bin was changed: its SHA-256 is another than in set\.json"),
    "cut": (_cut, r"weight\.bin was changed: it has [\d,]+ bytes, the set's had [\d,]+"),
    "link": (_link, r"Manifest\.json is missing from the set"),
    "no manifest": (lambda each: (each / "set.json").unlink(), r"is no deployment set: it has no set\.json"),
    "no json": (lambda each: (each / "set.json").write_text("{"), r"set\.json can't be read: "),
    "other json": (lambda each: (each / "set.json").write_text("[1]"), "does not describe a deployment set"),
    "version": (
        lambda each: _edit(each, lambda m: m.update(version=2)),
        "is of version 2; this milopt reads version 1",
    ),
    "no parts": (lambda each: _edit(each, lambda m: m.pop("parts")), r"is not one that milopt wrote: KeyError 'parts'"),
    "odd parts": (lambda each: _edit(each, lambda m: m.update(parts=[1])), "is not one that milopt wrote: TypeError"),
    "path": (
        lambda each: _edit(each, lambda m: m["files"].update({"../x": {"bytes": 1, "sha256": ""}})),
        r"the path '\.\./x' leads out of the package",
    ),
    "interface": (
        lambda each: _edit(each, lambda m: m["packages"]["head.mlpackage"]["functions"]["decode"]["inputs"].clear()),
        r"head\.mlpackage has another interface than set\.json says: function 'decode'",
    ),
    "wiring": (
        lambda each: _edit(each, lambda m: m["parts"].reverse()),
        "head takes 'chunk_02of02/output_hidden_states', which no part before it makes",
    ),
    "state": (
        lambda each: _edit(each, lambda m: m["functions"]["decode"]["states"].pop("key_cache")),
        r"the states of function 'decode' are not those of set\.json",
    ),
    "function": (
        lambda each: _edit(each, lambda m: m.update(default_function="other")),
        "there is no function 'other'",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_not_whole_is_refused_in_one_line(damage: str, folder: Path) -> None:
    harm, message = DAMAGES[damage]
    harm(folder)
    with pytest.raises(MiloptError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_hashes_are_left_out_on_request(folder: Path) -> None:
    _change(folder)
    assert load(folder, check=False).functions == ("decode", "prefill4")


def test_what_the_finder_leaves_is_no_foreign_file(folder: Path) -> None:
    (folder / ".DS_Store").write_bytes(b"Bud1")
    (folder / "head.mlpackage" / ".DS_Store").write_bytes(b"Bud1")
    assert load(folder).functions == ("decode", "prefill4")


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(SetError, match="there is no such folder"):
        load(tmp_path / "nothing")


def _with_other_part(model: Model, other: Transformer) -> DeploymentSet:
    made, file = chunk(model, count=2, shared="recompute", **ENDS), "chunk_02of02.mlpackage"
    made.files[file] = chunk(other.model(), count=2, shared="recompute", **ENDS).files[file]
    return made


def test_a_part_whose_state_is_of_another_shape_is_refused(model: Model, tmp_path: Path) -> None:
    made = _with_other_part(model, Transformer(mlp=(24, 24, 24)))
    message = r"chunk_02of02 has state 'key_cache' as fp16 \[3, 2, 12, 8\], a part before it as fp16 \[2, 2, 12, 8\]"
    for act in (lambda: made.save(tmp_path / "set"), lambda: milopt.Session(made)):
        with pytest.raises(SetError, match=message):
            act()
    assert not (tmp_path / "set").exists()


def test_a_set_is_replaced_only_on_request_and_nothing_else_is(model: Model, folder: Path, tmp_path: Path) -> None:
    made = chunk(model, count=1)
    with pytest.raises(MiloptError, match="exists; it is replaced only on request"):
        made.save(folder)
    assert len(load(folder).parts) == 4
    made.save(folder, overwrite=True)
    assert len(load(folder).parts) == 1
    other = tmp_path / "letters"
    other.mkdir()
    (other / "a.txt").write_text("dear")
    with pytest.raises(MiloptError, match="exists and is no deployment set; it is not replaced"):
        made.save(other, overwrite=True)
    assert (other / "a.txt").read_text() == "dear"
    with pytest.raises(MiloptError, match="its folder does not exist"):
        made.save(tmp_path / "no" / "set")


def test_a_save_that_fails_leaves_nothing(model: Model, tmp_path: Path) -> None:
    made = chunk(model, count=2)
    last = made.files["chunk_02of02.mlpackage"]
    assert isinstance(last, Model)
    last.spec_version = 99
    with pytest.raises(MiloptError, match="there is no specification version 99"):
        made.save(tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_attachments_do_not_take_the_place_of_parts(model: Model, tmp_path: Path) -> None:
    made = chunk(model, count=1)
    made.attachments["set.json"] = b"{}"
    with pytest.raises(SetError, match=r"an attachment can't be called 'set\.json'"):
        made.save(tmp_path / "set")

"""``--force`` replaces folders that milopt wrote, and nobody else's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from milopt.cli import main
from milopt.errors import MiloptError
from milopt.package import load
from milopt.sets import chunk
from milopt.sets.anemll import anemll_set
from milopt.sets.coreml_llm import monolith
from tests.cli.support import contents, with_tokenizer
from tests.sets.programs import Transformer

DECODER = Transformer(states="unified", mlp=(24, 24))
COMMANDS = {
    "set": ["chunk", "--count", "2"],
    "anemll": ["contract", "--style", "anemll", "--count", "2", "--slices", "4"],
    "coreml-llm": ["contract", "--style", "coreml-llm"],
}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_tokenizer(DECODER.model()).save(tmp_path_factory.mktemp("whole") / "whole.mlpackage")


@pytest.fixture
def written(package: Path, tmp_path: Path) -> dict[str, Path]:
    """A folder of each form, with what macOS leaves there."""
    made = {form: Path(_made(form, package).save(tmp_path / form)) for form in COMMANDS}
    for folder in made.values():
        (folder / ".DS_Store").write_text("")
    return made


def _made(form: str, package: Path) -> Any:
    model = load(package)
    if form == "set":
        return chunk(model, count=2)
    return anemll_set(model, count=1, slices=4) if form == "anemll" else monolith(model)


def _command(form: str, package: Path, folder: Path) -> list[str]:
    name, *options = COMMANDS[form]
    return [name, str(package), "-o", str(folder), *options, "--no-verify", "--force"]


@pytest.mark.parametrize("form", COMMANDS)
def test_its_own_and_no_other(
    form: str, written: dict[str, Path], package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = written[form]
    assert main(_command(form, package, folder)) == 0
    assert not (folder / ".DS_Store").exists()
    capsys.readouterr()
    (folder / "sub").mkdir()
    (folder / "sub" / "notes.txt").write_text("mine")
    before = contents(folder)
    assert main(_command(form, package, folder)) == 2
    said = f"error: {folder} has sub/notes.txt, which milopt did not write; it is not replaced even with --force\n"
    assert capsys.readouterr().err == said
    with pytest.raises(MiloptError, match=r"has sub/notes\.txt, which milopt did not write"):
        _made(form, package).save(folder, overwrite=True)
    assert contents(folder) == before
    assert not [each for each in tmp_path.iterdir() if each.name.startswith(".")]


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"files": 3}'])
def test_a_folder_of_the_clients_own_converter(
    content: str | None, written: dict[str, Path], package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = written["anemll"]
    (folder / "milopt.json").unlink()
    if content is not None:
        (folder / "milopt.json").write_text(content)
    assert main(_command("anemll", package, folder)) == 2
    said = f"error: {folder} is no ANEMLL set that milopt wrote; it is not replaced even with --force\n"
    assert capsys.readouterr().err == said
    assert (folder / "meta.yaml").exists()


def test_what_is_listed(written: dict[str, Path]) -> None:
    folder = written["coreml-llm"]
    said = json.loads((folder / "milopt.json").read_text())
    assert said["made_by"].startswith("milopt ")
    assert {*said["files"], "milopt.json", ".DS_Store"} == set(contents(folder))


@pytest.mark.parametrize("form", COMMANDS)
def test_places_that_can_not_be_written(
    form: str, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    closed, link = tmp_path / "closed", tmp_path / "link"
    closed.mkdir()
    closed.chmod(0o555)
    try:
        assert main(_command(form, package, closed / "out")) == 2
    finally:
        closed.chmod(0o755)
    assert capsys.readouterr().err.endswith(f"the folder {closed} is read-only\n")
    assert main(_command(form, package, tmp_path / "absent" / "out")) == 2
    assert capsys.readouterr().err.endswith(f"the folder {tmp_path / 'absent'} does not exist\n")
    link.symlink_to(closed, target_is_directory=True)
    assert main(_command(form, package, link / "out")) == 0
    assert (closed / "out").is_dir()
    assert not (closed / "out").is_symlink()


def test_places_inside_of_others(written: dict[str, Path], package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wholes = [package, package / "Data", *written.values()]
    for whole in wholes:
        before = contents(whole)
        for command in (
            [*_command("set", package, whole / "out")],
            [*_command("anemll", package, whole / "out")],
            ["extract-function", str(package), "-o", str(whole / "out.mlpackage"), "--function", "decode"],
        ):
            assert main(command) == 2
            assert "which another file would break" in capsys.readouterr().err
        assert contents(whole) == before


@pytest.mark.parametrize("form", COMMANDS)
def test_a_link_to_a_folder_stays_one(form: str, written: dict[str, Path], package: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(written[form], target_is_directory=True)
    assert main(_command(form, package, link)) == 0
    assert link.is_symlink()
    assert not (written[form] / ".DS_Store").exists()

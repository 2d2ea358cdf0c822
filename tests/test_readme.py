"""What the README shows runs, and says nothing that is not there."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest

from milopt.cli import main
from milopt.registry import names

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)
PYTHON = [body for language, body in BLOCKS if language == "python"]
CONSOLE = [line[2:] for language, body in BLOCKS if language == "console" for line in body.splitlines()]
# These need a model of hundreds of megabytes: the demo runs what they run.
NEED_A_MODEL = (
    "milopt convert SmolLM2",
    "milopt chunk smollm2",
    "milopt generate smollm2",
    "milopt export Llama",
    "milopt generate llama",
    "milopt check-contract apple",
    "milopt convert Llama",
    "milopt multifunction ranged",
    "milopt contract llama",
    "milopt check-contract anemll",
    "milopt generate anemll",
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("index", range(len(PYTHON)))
def test_python(index: int, folder: Path) -> None:
    code = compile(PYTHON[index], f"README.md, python block {index}", "exec")
    exec(code, {"__name__": "readme"})


def test_commands(folder: Path) -> None:
    exec(compile(PYTHON[0], "README.md", "exec"), {"__name__": "readme"})
    commands = [line.split("#")[0].strip() for line in CONSOLE if line.startswith("milopt ")]
    assert len(commands) >= 6
    for line in commands:
        program, *arguments = shlex.split(line)
        assert program == "milopt"
        if line.startswith(NEED_A_MODEL):
            arguments = [arguments[0], "--help"]
        assert main(arguments) == (1 if arguments[0] == "diff" else 0), line  # the passes left a difference


def test_make_targets_exist() -> None:
    targets = [line.split()[1] for line in CONSOLE if line.startswith("make ")]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets == ["demo", "test"]
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


def test_every_pass_is_in_the_table() -> None:
    listed = re.findall(r"^\| `([\w-]+)` \|", README, flags=re.MULTILINE)
    assert set(listed) == set(names())


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).exists(), link


def test_no_path_of_a_machine() -> None:
    assert os.path.expanduser("~") not in README

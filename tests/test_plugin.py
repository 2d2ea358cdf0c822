"""A package of someone else's, installed: its pass is listed, explained, run, and known to coremltools."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest

from milopt.cli import main
from milopt.mil import Function, Program, mb, target, types
from milopt.package import load

_SOURCE = Path(__file__).parent / "plugin"
_ROOT = Path(__file__).parents[1]


def _by_pip(source: Path, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    options = ["--no-deps", "--no-build-isolation", "--target", str(folder), str(source)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _by_hand(source: Path, folder: Path) -> None:
    """What an installer leaves: the modules, and the description with its entry points."""
    shutil.copytree(source / "milopt_silu", folder / "milopt_silu")
    project = (source / "pyproject.toml").read_text()
    (entry,) = re.findall(r'^(\S+) = "(milopt_silu:\w+)"$', project, re.MULTILINE)
    info = folder / "milopt_silu-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: milopt-silu\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(f"[milopt.passes]\n{entry[0]} = {entry[1]}\n")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the plugin, installed without a network: by pip where the build backend is here."""
    base = tmp_path_factory.mktemp("plugin")
    source, folder = base / "source", base / "site"
    shutil.copytree(_SOURCE, source)  # builds write beside the source
    folder.mkdir()
    has_tools = all(importlib.util.find_spec(each) is not None for each in ("pip", "hatchling"))
    (_by_pip if has_tools else _by_hand)(source, folder)
    return folder


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = Program()
    spec = {"x": mb.placeholder(shape=(2, 3), dtype=types.fp32)}
    with Function(spec, opset_version=target.iOS16) as function:
        x = function.inputs["x"]
        function.set_outputs([mb.mul(x=mb.sigmoid(x=x, name="gate"), y=x, name="y")])
    program.add_function("main", function)
    return load(program).save(tmp_path_factory.mktemp("package") / "in.mlpackage")


def test_by_hand_it_is_installed_as_by_pip(installed: Path, tmp_path: Path) -> None:
    _by_hand(_SOURCE, tmp_path)

    def offered(folder: Path) -> list[tuple[str, str, str]]:
        (found,) = distributions(name="milopt-silu", path=[str(folder)])
        return [(each.group, each.name, each.value) for each in found.entry_points]

    assert offered(tmp_path) == offered(installed) == [("milopt.passes", "fuse-silu", "milopt_silu:FuseSilu")]


_USE = """
import sys
import milopt
from milopt.cli import main

package, out = sys.argv[1:]
assert main(["passes"]) == 0
assert main(["passes", "fuse-silu"]) == 0
assert main(["explain", "fuse-silu", package, "--op", "gate"]) == 0
assert main(["optimize", package, "-o", out, "--passes", "canonicalize,fuse-silu{label='a, b'}"]) == 0
made = milopt.coremltools_pipeline("fuse-silu{label=seven}")
assert made.passes[-1] == "milopt::fuse-silu"
assert [each.option_val for each in made.get_options("milopt::fuse-silu")] == ["seven"]
"""


def test_it_is_listed_described_explained_and_run(installed: Path, package: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mlpackage"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (installed, _ROOT)))}
    command = [sys.executable, "-c", _USE, str(package), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"fuse-silu .*``x \* sigmoid\(x\)``", done.stdout)
    assert "comes after: canonicalize" in done.stdout
    assert "main: y: would be rewritten" in done.stdout
    assert "fuse-silu{label='a, b'}: no difference in 3 trials" in done.stdout
    assert [op.op_type for op in load(out).function().operations] == ["silu"]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of packages, empty at first, that this process looks into too."""
    registry: Any = importlib.import_module("milopt.registry")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    registry._others.cache_clear()
    yield tmp_path
    monkeypatch.undo()
    registry._others.cache_clear()


def offer(site: Path, distribution: str, entry: str) -> None:
    info = site / f"{distribution}-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[milopt.passes]\n{entry}\n")


def test_a_clash_of_names_is_one_line(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    offer(site, "one", "fuse-silu = milopt_silu:FuseSilu")
    offer(site, "other", "fuse-silu = other:Mine")
    assert main(["passes"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    offers = ["milopt_silu:FuseSilu of one", "other:Mine of other"]  # in the order in which the folder lists them
    assert told.err.rstrip("\n") in [
        f"error: two packages offer a pass named 'fuse-silu': {' and '.join(each)}" for each in (offers, offers[::-1])
    ]


def test_one_that_can_not_be_imported_hides_no_other(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    offer(site, "broken", "broken = nowhere:Mine")
    assert main(["passes"]) == 0
    told = capsys.readouterr().out
    assert "can't be imported from nowhere:Mine of broken" in " ".join(told.split())
    assert "palettize" in told
    assert main(["passes", "broken"]) == 2
    assert capsys.readouterr().err.startswith("error: the pass 'broken' can't be imported from nowhere:Mine of broken")

"""Names of passes: known, near, foreign and clashing ones; nothing is imported before it is asked for."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from milopt.errors import PassError
from milopt.pipeline import Pass, Pipeline
from milopt.registry import create, names, pass_class
from tests.cli.support import WrongPass

_registry: Any = importlib.import_module("milopt.registry")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Give the entry points that other packages have."""

    def offer(*points: tuple[str, str]) -> None:
        found = [EntryPoint(name, value, "milopt.passes") for name, value in points]

        def entry_points(*, group: str) -> list[EntryPoint]:
            return [each for each in found if each.group == group]

        monkeypatch.setattr(_registry, "entry_points", entry_points)
        _registry._others.cache_clear()

    yield offer
    monkeypatch.undo()
    _registry._others.cache_clear()


def test_every_name_is_a_pass_that_calls_itself_so() -> None:
    assert len(set(names())) == len(names())
    for name in names():
        cls = pass_class(name)
        assert issubclass(cls, Pass)
        assert cls.name == name
        assert (cls.__doc__ or "").strip()
        assert str(create(name)) == name
        for earlier in cls.after:
            assert earlier in names(), f"{name} comes after {earlier}, which there is not"


def test_the_default_pipeline_keeps_the_order() -> None:
    assert {each.name for each in Pipeline.default().passes} <= set(names())


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("fuse-sdp", "did you mean fuse-sdpa?"),
        ("linear_to_conv", "did you mean linear-to-conv?"),
        ("xyzzy", "`milopt passes` lists them"),
    ],
)
def test_near_names_are_suggested(name: str, hint: str) -> None:
    with pytest.raises(PassError) as error:
        create(name)
    assert str(error.value) == f"there is no pass named {name!r}; {hint}"


def test_passes_of_other_packages(installed: Any) -> None:
    installed(("wrong", "tests.cli.support:WrongPass"))
    assert names()[-1] == "wrong"
    assert isinstance(create("wrong"), WrongPass)


@pytest.mark.parametrize(
    ("points", "told"),
    [
        ([("fuse-sdpa", "a:B")], "two packages offer a pass named 'fuse-sdpa': milopt and a:B"),
        ([("mine", "a:B"), ("mine", "c:D")], "two packages offer a pass named 'mine': a:B and c:D"),
        ([("my pass", "a:B")], "a:B offers a pass named 'my pass', which a pipeline's text can't say"),
        ([("ct:mine", "a:B")], "a:B offers a pass named 'ct:mine', which a pipeline's text can't say"),
    ],
)
def test_names_that_clash_or_can_not_be_said(points: list[tuple[str, str]], told: str, installed: Any) -> None:
    installed(*points)
    with pytest.raises(PassError) as error:
        names()
    assert str(error.value) == told


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("mine", "nowhere:Mine", "the pass 'mine' can't be imported from nowhere:Mine: ModuleNotFoundError: "),
        ("mine", "tests.cli.support:absent", "the pass 'mine' can't be imported from tests.cli.support:absent: Attr"),
        ("mine", "tests.cli.support:WORDS", "tests.cli.support:WORDS, offered as the pass 'mine', is no subclass of"),
        ("mine", "tests.cli.support:Rescale", "tests.cli.support:Rescale, offered as the pass 'mine', is no subclass"),
        ("mine", "tests.cli.support:WrongPass", "tests.cli.support:WrongPass is offered as the pass 'mine', but calls"),
    ],
)
def test_an_entry_point_that_is_no_pass(name: str, value: str, told: str, installed: Any) -> None:
    installed((name, value))
    with pytest.raises(PassError) as error:
        create(name)
    assert str(error.value).startswith(told)
    assert "\n" not in str(error.value)


def test_nothing_is_imported_before_it_is_asked_for() -> None:
    code = (
        "import sys, milopt.registry as r\n"
        "r.names()\n"
        "passes = [m for m in sys.modules if m.startswith('milopt.passes.')]\n"
        "assert not passes, passes\n"
        "r.pass_class('fuse-sdpa')\n"
        "assert 'milopt.passes.attention' in sys.modules\n"
        "assert 'milopt.passes.compression' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")

"""The names that milopt promises, and how quietly and quickly they come."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import milopt

_PUBLIC = (
    "milopt",
    "milopt.bisecting",
    "milopt.contracts",
    "milopt.difference",
    "milopt.explaining",
    "milopt.exporting",
    "milopt.huggingface",
    "milopt.testing",
    "milopt.inspection",
    "milopt.interpreter",
    "milopt.observation",
    "milopt.sets",
    "milopt.verify",
    "milopt.package",
)


def run(code: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize("module", _PUBLIC)
def test_every_name_is_there_and_documented(module: str) -> None:
    home = importlib.import_module(module)
    assert home.__doc__
    assert sorted(set(home.__all__)) == sorted(home.__all__)
    for name in home.__all__:
        value = getattr(home, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), f"{module}.{name} has no docstring"
        assert name in dir(home)


def test_every_module_says_what_it_is_for_and_what_it_offers() -> None:
    root = Path(milopt.__file__).parent
    for found in pkgutil.walk_packages([str(root)], "milopt."):
        if found.name == "milopt.__main__":
            continue
        path = root.joinpath(*found.name.split(".")[1:])
        tree = ast.parse((path / "__init__.py" if found.ispkg else path.with_suffix(".py")).read_text())
        assert ast.get_docstring(tree), f"{found.name} has no docstring"


def test_the_list_is_sorted_and_typed_as_it_is_imported() -> None:
    assert milopt.__all__ == sorted(milopt.__all__)
    tree = ast.parse(Path(milopt.__file__).read_text())
    typed = [alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert set(milopt.__all__) <= set(typed)


def test_an_unknown_name() -> None:
    with pytest.raises(AttributeError, match="module 'milopt' has no attribute 'optimise'"):
        getattr(milopt, "optimise")  # noqa: B009  # as a plain attribute, type checkers would refuse it
    assert "load" in dir(milopt)


def test_import_milopt_is_light() -> None:
    code = (
        "import sys, milopt\n"
        "heavy = {'torch', 'coremltools', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    assert run(code) == (0, "")


def test_help_needs_no_torch() -> None:
    code = (
        "import sys\nfrom milopt.cli import main\nassert main(['--help']) == 0\nassert main(['optimize', '-h']) == 0\n"
        "assert not {'torch', 'coremltools'} & set(sys.modules)"
    )
    assert run(code) == (0, "")


def test_ctrl_c_is_heard_before_typer_is_imported() -> None:
    code = "import sys, milopt.cli\nassert not {'typer', 'rich', 'click'} & set(sys.modules)"
    assert run(code) == (0, "")


def test_coremltools_start_up_warnings_stay_away() -> None:
    code = "import milopt.package, sys; from milopt.cli import main; sys.exit(main(['passes']))"
    assert run(code) == (0, "")

"""Forked children of a process that has imported everything but the passes.

A child imports the passes, one of them changed, and the tests' modules anew; what takes seconds to import, torch and
coremltools above all, it has from its parent.
"""

from __future__ import annotations

import gc
import importlib
import importlib.abc
import importlib.machinery
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, MappingProxyType, ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings

__all__ = ["PASSES", "Loader", "hush", "in_child", "prepare", "run_pytest"]

PASSES = "milopt.passes"
_PROFILE = "mutants"
_MARKED = "not slow and not processes"


def prepare(tests: Iterable[Path]) -> None:
    """Import what the tests import, but for the passes, the tests and what imports either."""
    # the same examples each time; a failure is enough, its smallest form is not needed, nor kept
    settings.register_profile(
        _PROFILE,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.explicit, Phase.generate),
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    warnings.simplefilter("ignore", SyntaxWarning)
    for name in _modules_of(list(tests)):
        importlib.import_module(name)
        if any(map(_is_late, sys.modules)):
            raise AssertionError(f"{name} imports {next(filter(_is_late, sys.modules))}")
    gc.collect()
    gc.freeze()  # pytest collects garbage as it ends; what the parent holds is none


def run_pytest(arguments: list[str], plugins: Sequence[object] = ()) -> int:
    """The exit status of pytest with the settings of :func:`prepare`.

    Slow tests are left out, and those that start processes: nothing is changed in these, and their time is not counted.
    """
    left_out = ("cacheprovider", "xdist", "unraisableexception", "threadexception", "faulthandler")
    fixed = ["-q", "--no-header", "--capture=no", "--tb=no", "-m", _MARKED, f"--hypothesis-profile={_PROFILE}"]
    return int(pytest.main([*fixed, *(f"-pno:{each}" for each in left_out), *arguments], plugins=list(plugins)))


def in_child(work: Callable[[], Any]) -> Any:
    """What ``work`` returns in a forked process, as JSON; what it prints goes nowhere."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        code = 1
        try:
            os.close(read)
            hush()
            with os.fdopen(write, "w") as stream:
                json.dump(work(), stream)
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read) as stream:
        text = stream.read()
    if os.waitpid(child, 0)[1]:
        raise RuntimeError("a child process failed")
    return json.loads(text)


def hush() -> None:
    """Send what this process prints nowhere."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)


def _compiled(text: str, path: str, module: ModuleType) -> CodeType:
    return compile(text, path, "exec")


class Loader(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Finds the passes; ``texts`` (``passes/rows.py`` -> text) stand in the place of files.

    ``compiled`` makes code of a text and its path, and may put names into the module.
    """

    def __init__(
        self,
        texts: Mapping[str, str] = MappingProxyType({}),
        compiled: Callable[[str, str, ModuleType], CodeType] = _compiled,
    ) -> None:
        self.texts = texts
        self.compiled = compiled
        self.paths: dict[str, Path] = {}

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        spec = importlib.machinery.PathFinder.find_spec(name, path) if _is_late(name) else None
        if spec is None or spec.origin is None:
            return None
        self.paths[name], spec.loader = Path(spec.origin), self
        return spec

    def get_source(self, fullname: str) -> str:
        path = self.paths[fullname]
        return self.texts.get(f"passes/{path.name}") or path.read_text(encoding="utf-8")

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        exec(self.compiled(self.get_source(name), str(self.paths[name]), module), module.__dict__)


def _is_late(name: str) -> bool:
    return name == PASSES or name.startswith(f"{PASSES}.")


def _modules_of(tests: list[Path]) -> list[str]:
    """What a collection of the tests imports, in its order; a child does it."""

    def collect() -> list[str]:
        before = set(sys.modules)
        run_pytest([*map(str, tests), "--collect-only"])
        names = [name for name in sys.modules if name not in before and importable(name)]
        late = _late_among(names)
        return [name for name in names if name not in late]

    def importable(name: str) -> bool:
        spec = getattr(sys.modules[name], "__spec__", None)
        return spec is not None and spec.name == name and name.split(".")[0] not in ("tests", "__main__")

    return list(in_child(collect))


def _late_among(names: list[str]) -> set[str]:
    """The passes, our modules that hold something of theirs, what holds those's, and all packages' modules.

    To import a module is to import its package first.
    """
    late = set(filter(_is_late, sys.modules))
    ours = [name for name in names if name.partition(".")[0] in ("milopt", "benchmarks")]
    origins = {name: _origins(sys.modules[name]) for name in ours}
    while found := {name for name in origins if name not in late and (origins[name] | {_package(name)}) & late}:
        late |= found
    return late


def _package(name: str) -> str:
    return name.rpartition(".")[0]


def _origins(module: ModuleType) -> set[str]:
    """The modules that what a module holds comes from, but for those that are in it as in their package."""
    held = [each for name, each in vars(module).items() if not _is_part(module, name, each)]
    return {str(getattr(each, "__module__", "") or getattr(each, "__name__", "")) for each in held}


def _is_part(package: ModuleType, name: str, held: object) -> bool:
    return isinstance(held, ModuleType) and held.__name__ == f"{package.__name__}.{name}"

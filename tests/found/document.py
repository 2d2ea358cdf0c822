"""docs/found.md as data: each entry's pass, program, and what it computes before and after the pass."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from milopt.interpreter import compile
from milopt.interpreter.values import to_numpy
from milopt.mil import Function, Program, flat, get_new_symbol, mb, target, types
from milopt.package import load
from tests.found.running import run_original

__all__ = ["DOCUMENT", "Entry", "computed", "entries", "rewritten"]

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "found.md"


@dataclass(frozen=True)
class Entry:
    """One bug. ``crash`` is the error that the pass raises; otherwise ``before`` and ``after`` are what is computed.

    ``shapes`` are those of the result before and after, where what comes after can't be computed, and ``types`` its
    element types where these change.
    """

    title: str
    pass_name: str
    code: str
    crash: str = ""
    before: Any = None
    after: Any = None
    shapes: tuple[Any, ...] = ()
    types: tuple[str, ...] = ()

    def names(self) -> dict[str, Any]:
        """What the entry's code defines."""
        names: dict[str, Any] = {"np": np, "mb": mb, "types": types, "target": target}
        exec(self.code, names)
        return names

    def program(self) -> Program:
        names = self.names()
        build = names["build"]
        given = {name: names[name] for name in inspect.signature(build).parameters}
        specs = {
            name: mb.placeholder(
                shape=_with_symbols(value.shape, names.get("symbolic", {}).get(name, ())),
                dtype=types.numpy_type_to_builtin_type(value.dtype),
            )
            for name, value in given.items()
        }
        made = Program()
        with Function(specs, opset_version=names.get("opset", target.iOS16)) as function:
            function.set_outputs(list(flat(build(**function.inputs))))
        made.add_function("main", function)
        return made

    def given(self) -> dict[str, Any]:
        names = self.names()
        return {name: names[name] for name in inspect.signature(names["build"]).parameters}

    def by_hand(self, when: str) -> Any:
        """The result by numpy alone, as the entry's code writes it: ``before`` or ``after``."""
        names = self.names()
        return np.asarray(names[when](*self.given().values()))


def entries(text: str | None = None) -> Iterator[Entry]:
    """The entries of the document, in order."""
    source = DOCUMENT.read_text(encoding="utf-8") if text is None else text
    for part in re.split(r"^## ", source, flags=re.MULTILINE)[1:]:
        title, _, body = part.partition("\n")
        if (found := re.search(r"^Pass: `([^`]+)`", body, re.MULTILINE)) is None:
            continue
        code = re.search(r"```python\n(.*?)```", body, re.DOTALL)
        assert code is not None, f"{title}: it has no program"
        crash = re.search(r"^Crashes: `([^`]+)`", body, re.MULTILINE)
        yield Entry(
            title,
            found[1],
            code[1],
            "" if crash is None else crash[1],
            _numbers(body, "before"),
            _numbers(body, "after"),
            _shapes(body),
            _types(body),
        )


def _with_symbols(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[Any, ...]:
    """The shape with unknown sizes of these axes."""
    return tuple(get_new_symbol() if axis in axes else size for axis, size in enumerate(shape))


def _types(body: str) -> tuple[str, ...]:
    found = re.search(r"^Types: (\w+) before, (\w+) after$", body, re.MULTILINE)
    return () if found is None else (found[1], found[2])


def _shapes(body: str) -> tuple[Any, ...]:
    found = re.search(r"^Shapes: (\(.*\)) before, (\(.*\)) after$", body, re.MULTILINE)
    return () if found is None else (ast.literal_eval(found[1]), ast.literal_eval(found[2]))


def _numbers(body: str, when: str) -> Any:
    found = re.search(rf"^{when} +(\[.*\])$", body, re.MULTILINE)
    return None if found is None else np.array(ast.literal_eval(found[1]))


def computed(program: Any, given: dict[str, Any]) -> Any:
    """The first output of the program, in float64."""
    plan = compile(load(program), precision="float64")
    outputs = plan.run(given)
    name, info = next(iter(plan.outputs.items()))
    return to_numpy(outputs[name], info, "float64")


def rewritten(entry: Entry) -> Any:
    """The program after the pass. Raises what the pass raises."""
    model = load(entry.program()).clone()
    run_original(entry.pass_name, model.program)
    return model

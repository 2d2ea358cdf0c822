"""Value and op names as a package needs them: unique within a function, inputs and outputs untouched."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from milopt.mil import Block, Function, Program
from milopt.package.origin import function_origin

__all__ = ["make_names_unique", "temporarily_unique_names"]

# What Core ML's text form of a program doesn't accept as a name (coremltools 9.0, preprocess.py, NameSanitizer).
_INVALID = re.compile(r"[^A-Za-z0-9_]")
_RESERVED = {
    *("any", "bool", "program", "func", "tensor", "list", "dict", "tuple", "true", "false", "string", "state"),
    *("bf16", "fp16", "fp32", "fp64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
}


def make_names_unique(program: Program, *, writable: bool = False) -> list[tuple[Any, str]]:
    """Rename inner values and ops whose name is taken; returns what was renamed, and from what.

    With ``writable`` also those whose name Core ML can't read. A name may be used again in a block beside, not around,
    the first one: the condition and the body of a loop usually name their inputs alike. Function inputs and outputs
    keep theirs. Op names are counted apart from values.
    """
    renamed: list[tuple[Any, str]] = []
    for function in program.functions.values():
        _Namer(function, renamed, _writable if writable else str).run()
    return renamed


@contextmanager
def temporarily_unique_names(program: Program) -> Generator[None]:
    """Unique names that Core ML reads inside the ``with`` block, the program's own ones again after it."""
    renamed = make_names_unique(program, writable=True)
    try:
        yield
    finally:
        for thing, name in reversed(renamed):
            thing.name = name


class _Namer:
    """Names the values and ops of one function. ``everything`` holds all names there are, whatever the block."""

    def __init__(self, function: Function, renamed: list[tuple[Any, str]], spell: Callable[[str], str]) -> None:
        self.function = function
        origin = function_origin(function)
        # names that came with a package are ones that Core ML reads
        kept = frozenset[str]() if origin is None else origin.names
        self.spell: Callable[[str], str] = lambda name: name if name in kept else spell(name)
        self.renamed = renamed
        self.fixed = {*function.inputs.values(), *function.outputs}
        self.counts: dict[tuple[bool, str], int] = {}
        self.ops: set[str] = set()
        self.every_op: set[str] = set()
        self.every_value = {var.name for var in self.fixed}
        self._collect(function)

    def run(self) -> None:
        self._visit(self.function, {var.name for var in self.fixed})

    def _collect(self, block: Block) -> None:
        for op in block.operations:
            self.every_op.add(op.name)
            self.every_value.update(var.name for var in op.outputs)
            for inner in op.blocks:
                self.every_value.update(var.name for var in inner.inputs)
                self._collect(inner)

    def _visit(self, block: Block, visible: set[str]) -> None:
        for op in block.operations:
            for inner in op.blocks:
                within = set(visible)
                for var in inner.inputs:
                    self._claim(var, within, self.every_value)
                self._visit(inner, within)
            self._claim(op, self.ops, self.every_op)
            for var in op.outputs:
                if var not in self.fixed:
                    self._claim(var, visible, self.every_value)

    def _claim(self, thing: Any, taken: set[str], everything: set[str]) -> None:
        """Give ``thing`` a name that is not ``taken``: its own, or one that is new to the whole function."""
        name = self.spell(thing.name)
        if name in taken or (name != thing.name and name in everything):
            name = self._new(name, everything)
        if name != thing.name:
            self.renamed.append((thing, thing.name))
            thing.name = name
        taken.add(name)
        everything.add(name)

    def _new(self, stem: str, everything: set[str]) -> str:
        name, key = stem, (everything is self.every_op, stem)
        while name == stem or name in everything:
            self.counts[key] = self.counts.get(key, 0) + 1
            name = f"{stem}_{self.counts[key]}"
        return name


def _writable(name: str) -> str:
    clean = _INVALID.sub("_", name) or "_"
    return f"_{clean}" if clean[0].isdigit() or clean in _RESERVED else clean

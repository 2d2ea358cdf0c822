"""A model: its program, and everything else its package says about it."""

from __future__ import annotations

import copy
import os
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from milopt.errors import MiloptError
from milopt.mil import Function, Program
from milopt.package.carried import Carried

if TYPE_CHECKING:
    from milopt.rewrites import Rewrites

__all__ = ["Model"]


@dataclass
class Model:
    """What :func:`milopt.load` gives, passes change and :meth:`save` writes.

    ``program`` is PyMIL's and mutable; its weights may be views of a package's files, so treat them as read-only.
    ``spec_version`` is Core ML's (6 is iOS 15, 9 is iOS 18). ``description`` is the ``ModelDescription`` as loaded, or
    ``None``; :meth:`save` rebuilds what no longer fits the program. ``metadata`` is the user-defined part.
    ``attachments`` are further files of the package by their path inside ``Data``. ``aside`` holds the functions that
    are left out at the moment: see :meth:`only`. ``rewrites``, where set, counts and limits what rules do to the model.
    """

    program: Program
    spec_version: int
    default_function: str = "main"
    description: Any = None
    metadata: dict[str, str] = field(default_factory=dict[str, str])
    author: str = ""
    license: str = ""
    version: str = ""
    short_description: str = ""
    attachments: dict[str, bytes] = field(default_factory=dict[str, bytes])
    carried: Carried = field(default_factory=Carried, repr=False)
    aside: dict[str, Function] = field(default_factory=dict[str, Function], repr=False, init=False, compare=False)
    rewrites: Rewrites | None = field(default=None, repr=False, init=False, compare=False)

    @property
    def functions(self) -> dict[str, Function]:
        return self.program.functions

    def function(self, name: str | None = None) -> Function:
        """The function of that name; the default one for ``None``."""
        wanted = self.default_function if name is None else name
        if wanted not in self.program.functions:
            raise MiloptError(f"no function {wanted!r}; this model has: {', '.join(self.program.functions)}")
        return self.program.functions[wanted]

    @contextmanager
    def only(self, functions: Iterable[str]) -> Generator[Model]:
        """Let the model consist of these functions for a while, so that what runs on it sees and changes no others.

        The others are ``aside`` meanwhile, and come back in their places, whatever happened.
        :class:`~milopt.errors.MiloptError` for a name that no function has.
        """
        named = dict.fromkeys(functions)
        if not named:
            raise MiloptError("name at least one function")
        for name in named:
            self.function(name)
        whole, before = self.program.functions, self.aside
        self.program.functions = {name: each for name, each in whole.items() if name in named}
        self.aside = {**before, **{name: each for name, each in whole.items() if name not in named}}
        try:
            yield self
        finally:
            now, left = self.program.functions, {name for name in named if name not in self.program.functions}
            kept = {name: now.get(name, each) for name, each in whole.items() if name not in left}
            self.program.functions, self.aside = {**kept, **now}, before

    def describe(self, function: str | None, name: str, text: str) -> None:
        """Set the description that Xcode shows for the input, output or state ``name`` of a function."""
        from milopt.package.describing import describe

        self.function(function)
        describe(self, self.default_function if function is None else function, name, text)

    def text_of(self, function: str | None, name: str) -> str:
        """The description of the input, output or state ``name`` of a function; empty where there is none."""
        from milopt.package.describing import text_of

        self.function(function)
        return text_of(self, self.default_function if function is None else function, name)

    def clone(self) -> Model:
        """An independent model that shares the weights' arrays with this one."""
        from milopt.package.cloning import clone_program

        clone = copy.copy(self)
        clone.program = clone_program(self.program)
        clone.rewrites = None
        clone.description = copy.deepcopy(self.description)
        clone.metadata, clone.attachments = dict(self.metadata), dict(self.attachments)
        clone.carried = copy.deepcopy(self.carried)
        return clone

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write the package to ``path`` (``….mlpackage``) and return it.

        The package appears whole or not at all: it is written beside ``path`` and renamed, and an old one stays
        until then. :class:`~milopt.errors.PackageError` where ``path`` exists and ``overwrite`` is not set, can't be
        written, or the program has inputs or outputs that Core ML doesn't take.
        """
        from milopt.package.saving import save

        return save(self, Path(path), overwrite=overwrite)

"""What :func:`milopt.bisect` found, and its reproduction on the disk."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from milopt.bisecting.trying import Outcome
from milopt.errors import MiloptError
from milopt.mil import is_constant_like, operations
from milopt.package import Model
from milopt.package.publishing import published
from milopt.pipeline import Pass
from milopt.reporting import verdict_dict
from milopt.rewrites import Rewrite
from milopt.text import text
from milopt.verify import Verdict

__all__ = ["Bisection", "check_folder", "op_count"]

_SCRIPT_FILE = "reproduce.py"
_FILES = ("before.mlpackage", "after.mlpackage", "before.mil", "after.mil", _SCRIPT_FILE)
_LONGEST = 40  # lines of a program in a message

_SCRIPT = '''\
"""{title}

{message}

The program before:

{program}
python reproduce.py ends with status 1 as long as the fault is there.
"""

import sys
from pathlib import Path

import milopt
{imports}
here = Path(__file__).resolve().parent
before = milopt.load(here / "before.mlpackage")
{run}
verdict = milopt.compare(before, after, metric=milopt.{metric}{signature})
print(verdict)
sys.exit(0 if verdict else 1)
'''


def op_count(model: Model) -> int:
    """The number of ops, nested ones included; constants, compressed ones too, are not counted."""
    every = (op for each in model.functions.values() for op in operations(each))
    return sum(not is_constant_like(op) for op in every)


@dataclass(frozen=True)
class Bisection:
    """The pass at fault (number ``index`` of ``count``, from 1) and, of its rewrites, the one that breaks equality.

    ``rewrite`` is number ``number`` of the ``total`` that the pass makes, or ``None`` where the fault is no rule's.
    ``before`` and ``after`` differ, as ``verdict`` says. Once ``reduced``, ``after`` is what the whole pass makes of
    ``before``, a program as small as possible; else ``before`` is what the pass was given, of ``ops`` ops, and
    ``after`` has the first ``number`` rewrites. ``functions`` are those that the pass was to change; ``None`` is all.
    """

    culprit: Pass
    index: int
    count: int
    before: Model
    after: Model
    verdict: Verdict
    ops: int
    rewrite: Rewrite | None = None
    number: int = 0
    total: int = 0
    reduced: bool = False
    functions: tuple[str, ...] | None = None

    def on(self, before: Model, made: Outcome) -> Bisection:
        """The same on a smaller program."""
        assert made.verdict is not None
        return replace(self, before=before, after=made.after, verdict=made.verdict, reduced=True)

    @property
    def title(self) -> str:
        """One line: which pass, and which rewrite."""
        place = f"pass {self.index} of {self.count}"
        if self.rewrite is None:
            return f"{self.culprit} ({place}) breaks equality; no rule of it does so alone"
        return f"{self.culprit} ({place}) breaks equality with rewrite {self.number} of {self.total}: {self.rewrite}"

    def __str__(self) -> str:
        size = f"reduced from {self.ops} ops to {op_count(self.before)}" if self.reduced else f"{self.ops} ops"
        return "\n".join([self.title, str(self.verdict), f"{size}; before:", _cut(text(self.before)).rstrip("\n")])

    def as_dict(self) -> dict[str, Any]:
        """All but the programs themselves, for JSON."""
        return {
            "pass": str(self.culprit),
            "functions": None if self.functions is None else list(self.functions),
            "index": self.index,
            "passes": self.count,
            "rule": None if self.rewrite is None else self.rewrite.rule.name,
            "function": None if self.rewrite is None else self.rewrite.function,
            "place": None if self.rewrite is None else self.rewrite.place,
            "rewrite": self.number or None,
            "rewrites": self.total,
            "reduced": self.reduced,
            "ops": {"before": self.ops, "after": op_count(self.before)},
            "program": text(self.before),
            "verdict": verdict_dict(self.verdict),
        }

    def script(self) -> str:
        """A stand-alone script that runs the pass on ``before.mlpackage``, which lies beside it, and compares."""
        expression, imports = _expression(self.culprit)
        message = str(self.verdict)
        if expression is None:  # the class can't be imported: compare what it made
            run, signature = 'after = milopt.load(here / "after.mlpackage")', ""
        else:
            limit = [] if self.reduced or self.rewrite is None else [f"after.rewrites = Rewrites(limit={self.number})"]
            chosen = self._functions()
            imports = [
                *imports,
                *(["from milopt.restriction import run_on"] if chosen else []),
                *(["from milopt.rewrites import Rewrites"] if limit else []),
            ]
            made = f"run_on({expression}, after, {chosen!r})" if chosen else f"{expression}.run(after)"
            run = "\n".join(["after = before.clone()", *limit, f"report = {made}"])
            signature = ", signature=report.signature"
        return _SCRIPT.format(
            title=_quotable(self.title),
            message=_quotable(message),
            program=_quotable(_cut(text(self.before))),
            imports="".join(f"{line}\n" for line in imports),
            run=run,
            metric=repr(self.verdict.metric),
            signature=signature,
        )

    def _functions(self) -> list[str]:
        """Those of ``functions`` that the program still has, where it has others too."""
        left = [name for name in self.functions or () if name in self.before.functions]
        return left if len(left) < len(self.before.functions) else []

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write both programs, as packages and as text, and the script. The folder, which is returned, must be new.

        It appears whole or not at all. With ``overwrite`` an earlier reproduction there is replaced. MiloptError where
        there is something else.
        """
        target = Path(folder)
        check_folder(target, overwrite=overwrite)
        if target.is_dir() and not any(target.iterdir()):
            target.rmdir()
        target.parent.mkdir(parents=True, exist_ok=True)
        with published(target, overwrite=overwrite, marker=_SCRIPT_FILE, suffix="", what="reproduction") as fresh:
            for name, model in (("before", self.before), ("after", self.after)):
                model.save(fresh / f"{name}.mlpackage")
                (fresh / f"{name}.mil").write_text(text(model), encoding="utf-8")
            (fresh / _SCRIPT_FILE).write_text(self.script(), encoding="utf-8")
        return target


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder for a reproduction that holds anything, or with ``overwrite`` anything but another one."""
    if not folder.exists() and not folder.is_symlink():
        return
    if not folder.is_dir():
        raise MiloptError(f"{folder} is no folder")
    there = sorted(each.name for each in folder.iterdir())
    if there and not overwrite:
        raise MiloptError(f"{folder} is not empty; give --force to replace a reproduction there")
    if others := [name for name in there if name not in _FILES]:
        raise MiloptError(f"{folder} holds {others[0]}, which is no part of a reproduction; it is not replaced")


def _expression(culprit: Pass) -> tuple[str | None, list[str]]:
    """How a script says the pass, and what it imports; ``None`` for a class that no other process can import."""
    from milopt.registry import names, pass_class

    cls = type(culprit)
    if (culprit.name in names() or culprit.name.startswith("ct:")) and pass_class(culprit.name) is cls:
        return f"milopt.Pipeline.parse({str(culprit)!r}).passes[0]", []
    if cls.__module__ == "__main__" or getattr(sys.modules.get(cls.__module__), cls.__qualname__, None) is not cls:
        return None, []
    options = ", ".join(f"{each.name}={getattr(culprit, each.name)!r}" for each in fields(culprit) if each.init)
    return f"{cls.__qualname__}({options})", [f"from {cls.__module__} import {cls.__qualname__}"]


def _cut(program: str) -> str:
    lines = program.splitlines()
    more = [f"... {len(lines) - _LONGEST} more lines"] if len(lines) > _LONGEST else []
    return "\n".join([*lines[:_LONGEST], *more]) + "\n"


def _quotable(said: str) -> str:
    """Text that may stand in a docstring."""
    return said.replace("\\", "/").replace('"""', "'''")

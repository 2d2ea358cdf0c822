"""Rules: a pattern, a condition, a replacement; and how they are applied."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from milopt.building import Builder
from milopt.errors import PassError
from milopt.matching import Match, Matcher
from milopt.mil import (
    Block,
    Function,
    Operation,
    Program,
    Var,
    arguments,
    dtype_name,
    flat,
    is_output,
    is_removed,
    named_blocks,
    operations,
    remove_if_dead,
    remove_ops,
    replace_uses,
    shape_of,
)
from milopt.pattern import Ops, build, root_types
from milopt.reports import Miss, NoMatch, Report, place_of, require

__all__ = ["Rule", "apply"]

Facts = TypeVar("Facts")

# A rule that still fires in this many sweeps over a program undoes its own work, or another rule's.
_MOST_SWEEPS = 100


class Rule(ABC, Generic[Facts]):
    """A rewrite of a few ops: ``pattern`` says what, ``check`` says when, ``rewrite`` says into what.

    A rule holds no state between calls. See :mod:`milopt.pattern` for how patterns are written.
    """

    @property
    def name(self) -> str:
        return type(self).__name__

    @abstractmethod
    def pattern(self, op: Ops, /, *args: Any, **kwargs: Any) -> Any:
        """The ops to look for; the parameters after ``op`` are the pattern's variables."""

    @abstractmethod
    def check(self, m: Match, /) -> Facts:
        """Facts that ``rewrite`` needs; raises NoMatch, through :func:`require`, where the rule must stay away."""

    @abstractmethod
    def rewrite(self, op: Builder, m: Match, facts: Facts, /) -> Any:
        """Build the replacement with ``op`` and return what takes the place of the root's outputs."""


def apply(rules: Rule[Any] | Sequence[Rule[Any]], model: Any, *, function: str | None = None) -> Report:
    """Apply rules wherever they match, in every function and nested block, until none does.

    ``model`` is a :class:`milopt.Model` or a PyMIL program, and is changed in place. A rewrite that is refused at any
    moment leaves the program as it was. Raises PassError when the rules keep firing without end.
    """
    several: tuple[Rule[Any], ...] = flat(rules)
    program: Program = getattr(model, "program", model)
    report = Report(" + ".join(rule.name for rule in several))
    start = time.perf_counter()
    for name, block in list(named_blocks(program.functions)):
        if function in (None, name):
            _sweep(several, block, name, _names(program.functions[name]), report)
    report.seconds = time.perf_counter() - start
    return report


def _names(function: Function) -> set[str]:
    names = set(function.inputs)
    for op in operations(function):
        names.add(op.name)
        names.update(var.name for var in op.outputs)
    return names


def _sweep(rules: tuple[Rule[Any], ...], block: Block, function: str, taken: set[str], report: Report) -> None:
    """Try the rules on the ops of a block, then on the neighbourhood of what changed, until nothing does."""
    by_type: dict[str, list[tuple[Rule[Any], Matcher]]] = {}
    for rule in rules:
        root, names = build(rule.pattern)
        for op_type in dict.fromkeys(root_types(root)):
            by_type.setdefault(op_type, []).append((rule, Matcher(root, names)))
    todo = [op for op in block.operations if op.op_type in by_type]
    misses: dict[Operation, list[Miss]] = {}
    for _ in range(_MOST_SWEEPS):
        touched: dict[Operation, None] = {}
        for op in todo:
            if op.enclosing_block is not block:
                continue
            misses[op] = []
            for rule, matcher in by_type.get(op.op_type, ()):
                report.tried += 1
                if (changed := _try(rule, matcher, op, function, taken, misses[op], report)) is not None:
                    report.applied += 1
                    touched.update(dict.fromkeys(changed))
                    break
        todo = [op for op in _around(touched, block) if op.op_type in by_type]
        if not todo:
            break
    else:
        culprits = ", ".join(rule.name for rule in rules)
        raise PassError(f"{culprits}: still changing function {function!r} after {_MOST_SWEEPS} sweeps")
    report.misses += [miss for op, each in misses.items() if op.enclosing_block is block for miss in each]


def _around(touched: Iterable[Operation], block: Block) -> Iterator[Operation]:
    """The new ops, what uses them and what uses that: where a match can have come about."""
    seen: dict[Operation, None] = {}
    frontier = [op for op in touched if op.enclosing_block is block]
    for _ in range(8):
        fresh = [op for op in dict.fromkeys(frontier) if op not in seen and op.enclosing_block is block]
        seen.update(dict.fromkeys(fresh))
        frontier = [user for op in fresh for var in op.outputs for user in var.child_ops]
    return iter(seen)


def _try(
    rule: Rule[Any],
    matcher: Matcher,
    root: Operation,
    function: str,
    taken: set[str],
    misses: list[Miss],
    report: Report,
) -> list[Operation] | None:
    """Rewrite at ``root`` if the rule allows: the ops that are new or lost a user. Else note why not."""
    declined: Miss | None = None
    for match in matcher.matches(root):
        builder = Builder(root, taken)
        try:
            facts = rule.check(match)
            new = flat(rule.rewrite(builder, match, facts))
            _same_types(root, new)
        except NoMatch as why:
            builder.undo()
            place = place_of(why.at if why.at is not None else root)
            declined = declined or Miss(rule.name, function, place, len(match.ops), why.text, why.arguments, True)
            continue
        except BaseException:
            builder.undo()
            raise
        report.notes += [note for note in builder.notes if note not in report.notes]
        return _replace(builder, match, new)
    if declined is None:
        text, args = matcher.why
        declined = Miss(rule.name, function, place_of(matcher.where), max(matcher.depth, 0), text, args)
    misses.append(declined)
    return None


def _same_types(root: Operation, new: tuple[Var, ...]) -> None:
    require(len(new) == len(root.outputs), "the rule returns {} values for {}", len(new), len(root.outputs))
    for old, var in zip(root.outputs, new, strict=True):
        before = (dtype_name(old), shape_of(old))
        after = (dtype_name(var), shape_of(var))
        require(before == after, "the replacement is {}, not {}", after, before, at=old)


def _replace(builder: Builder, match: Match, new: tuple[Var, ...]) -> list[Operation]:
    """Put ``new`` in the place of the root's outputs and remove what is no longer needed."""
    root, built = match.root, set(builder.built)
    renames: list[tuple[Var, str]] = []
    for old, var in zip(root.outputs, new, strict=True):
        if var.op not in built:
            if not is_output(old):
                replace_uses(old, var)
                continue
            var = builder.identity(x=var)  # an output keeps its name, so it needs a value of its own
        renames.append((var, old.name))
        replace_uses(old, var)
    producers = [var.op for op in match.ops for _, var in arguments(op) if var.op is not None]
    remove_ops([root])
    remove_if_dead([*match.ops[1:], *producers, *builder.built])
    for var, name in renames:
        var.name = name
        if var.op is not None and len(var.op.outputs) == 1:
            var.op.name = name
    return [op for op in [*builder.built, *producers] if not is_removed(op)]

"""Puts what a rule built in the place of what it matched."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from milopt.building import Builder
from milopt.engine.placement import Placement
from milopt.errors import PassError
from milopt.matching import Match
from milopt.mil import (
    ListVar,
    Operation,
    Var,
    dtype_name,
    flat,
    is_dead,
    is_output,
    is_removed,
    is_used,
    producers,
    replace_uses,
    shape_of,
)
from milopt.nesting import needs
from milopt.reports import place_of, require

__all__ = ["Changed", "Replacement", "checked"]

Changed = list[Operation]


class Replacement:
    """Checked values for the outputs that are replaced; from here on nothing is refused any more.

    ``late`` are constants that have to come before ``builder.before`` when the program changes.
    """

    def __init__(self, builder: Builder, match: Match, new: tuple[Var, ...], late: list[Var]) -> None:
        self.builder = builder
        self.match = match
        self.new = new
        self.late = late

    def make(self, placement: Placement) -> tuple[Changed, Changed]:
        """Change the program: the ops that are new or use something else now, and those that lost a user."""
        builder, match = self.builder, self.match
        first = builder.built[0] if builder.built else builder.before
        for var in self.late:
            placement.move(var, first)
        pairs = [(old, var) for old, var in zip(match.replaced, self.new, strict=True) if old is not var]
        users = dict.fromkeys(user for old, _ in pairs for user in old.child_ops)
        built = set(builder.built)
        renames: dict[Var, tuple[str, Var, str]] = {}
        for old, var in pairs:
            if var.op in built:
                renames.setdefault(var, (old.name, old, var.name))
            replace_uses(old, var)  # coremltools gives an output's new value the old one's name
        lost = _remove(_going(match, self.new), [*match.ops, *builder.built])
        for var, (name, old, other) in renames.items():
            var.name, old.name = name, other  # the old one may be an output of an op that stays
            if var.op is not None and len(var.op.outputs) == 1:
                var.op.name = name
        return [op for op in (*builder.built, *users) if not is_removed(op)], lost


def checked(name: str, builder: Builder, match: Match, result: Any, placement: Placement) -> Replacement:
    """What the rule called ``name`` returned, if it can take the place of the matched outputs.

    Raises NoMatch where types differ or a value comes too late, and PassError where it is no value at all.
    """
    new: tuple[Any, ...] = flat(result)
    for var in new:
        if not isinstance(var, Var):
            kind, place = type(var).__name__, place_of(match.root)
            raise PassError(f"{name}: rewrite returned {kind}, not the values that replace {place}")
    require(len(new) == len(match.replaced), "the rule returns {} values for {}", len(new), len(match.replaced))
    for old, var in zip(match.replaced, new, strict=True):
        before, after = _type(old), _type(var)
        require(before == after, "the replacement is {}, not {}", after, before, at=old)
    going = _going(match, new)
    same = (_same(old, var) or not _needed(old, going) for old, var in zip(match.replaced, new, strict=True))
    require(not all(same), "the replacement is the same", at=match.root)
    new = _own_names(builder, match, _resolved(match, new))
    _require_independence(builder, match, new)
    values = [var for old, var in zip(match.replaced, new, strict=True) if old is not var]
    return Replacement(builder, match, new, placement.late_weights(match, builder.before, builder.built, values))


def _type(var: Var) -> tuple[object, ...]:
    return (str(var.sym_type),) if isinstance(var, ListVar) else (dtype_name(var), shape_of(var))


def _same(old: Var, var: Var) -> bool:
    """Whether nothing would change: an output that is an ``identity`` would only get another."""
    if old is var:
        return True
    return is_output(old) and old.op is not None and old.op.op_type == "identity" and old.op.inputs["x"] is var


def _needed(old: Var, going: list[Operation]) -> bool:
    """Whether to replace ``old`` changes anything: something uses it, or its op goes."""
    return bool(old.child_ops) or is_output(old) or old.op in going


def _resolved(match: Match, new: tuple[Var, ...]) -> tuple[Var, ...]:
    """One replaced output given for another is what that one is replaced by. Raises NoMatch where this goes round."""
    by = dict(zip(match.replaced, new, strict=True))
    resolved: list[Var] = []
    for old, var in by.items():
        seen = {old}
        while by.get(var, var) is not var:
            require(var not in seen, "the replacement of an output is that output again", at=var)
            seen.add(var)
            var = by[var]
        resolved.append(var)
    return tuple(resolved)


def _going(match: Match, new: tuple[Var, ...]) -> list[Operation]:
    """The roots that go: those that have not given an output of theirs for itself."""
    kept = {old.op for old, var in zip(match.replaced, new, strict=True) if old is var}
    return [op for op in match.roots if op not in kept]


def _require_independence(builder: Builder, match: Match, new: tuple[Var, ...]) -> None:
    """Raises NoMatch where the replacement is made of an output that it takes the place of, or that goes.

    One root's output can't be among what is there before that root; of several roots, it may be there before another.
    """
    if len(match.roots) == 1:
        return
    lost = {old for old, var in zip(match.replaced, new, strict=True) if old is not var}
    lost |= {var for op in _going(match, new) for var in op.outputs}
    built, inner = set(builder.built), set(match.ops).difference(match.roots)
    todo = [*(var for op in builder.built for var in needs(op)), *(var for var in new if var.op not in built)]
    seen: set[Var] = set()
    while todo:
        var = todo.pop()
        require(var not in lost, "its replacement needs a value that it replaces", at=var)
        if var not in seen and var.op is not None and var.op in inner:
            todo += needs(var.op)
        seen.add(var)


def _own_names(builder: Builder, match: Match, new: tuple[Var, ...]) -> tuple[Var, ...]:
    """An output keeps its name, so it needs a value of its own."""
    built, given = set(builder.built), set[Var]()
    own: list[Var] = []
    for old, var in zip(match.replaced, new, strict=True):
        value = var
        if old is not var and is_output(old) and (var.op not in built or var in given):
            value = builder.identity(x=var)
        given.add(value)
        own.append(value)
    return tuple(own)


def _remove(roots: Iterable[Operation], others: Iterable[Operation]) -> Changed:
    """Remove the roots, and of the other ops and of what all of them used whatever is dead; what lost a user stays.

    A root goes whatever else it does, once nothing that goes too uses it.
    """
    going = dict.fromkeys(roots)
    todo = [*others, *going]
    lost: dict[Operation, None] = {}
    while todo:
        op = todo.pop()
        if is_removed(op):
            continue
        if is_dead(op) or (op in going and not is_used(op)):
            todo += producers(op)
            op.enclosing_block.remove_ops([op])
        else:
            lost[op] = None
    return [op for op in lost if not is_removed(op)]

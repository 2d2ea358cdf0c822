"""Inputs, outputs and states of a function under a client's names, whatever else in it is called so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from milopt.building import Builder
from milopt.mil import (
    Function,
    add_input,
    building_in,
    mb,
    rename_input,
    replace_input,
    replace_uses,
    shape_of,
    value_names,
)
from milopt.sets.roles import FunctionRoles

__all__ = [
    "MASK",
    "PLACE",
    "POSITIONS",
    "TOKENS",
    "claim",
    "free",
    "name_inputs",
    "order_inputs",
    "unused_input",
]

TOKENS, POSITIONS, MASK, PLACE = "input_ids", "position_ids", "causal_mask", "current_pos"


def name_inputs(function: Function, roles: FunctionRoles, states: Mapping[str, str]) -> FunctionRoles:
    """Call inputs as most clients do, and ``states`` (name -> another); positions become (tokens,). The roles then."""
    olds = {TOKENS: roles.tokens, MASK: roles.mask, PLACE: roles.place, **{new: old for old, new in states.items()}}
    if roles.positions:
        olds[POSITIONS] = roles.positions
    for new, old in olds.items():
        if old != new and old in olds:  # another of them gets this name
            olds[new] = free(function, f"{old}_before")
            rename_input(function, old, olds[new])
    positions = olds.pop(POSITIONS, "")
    for new, old in olds.items():
        if old != new:
            claim(function, new)
            rename_input(function, old, new)
    if positions:
        _flat_positions(function, positions)
    return replace(roles, tokens=TOKENS, positions=POSITIONS if roles.positions else "", mask=MASK, place=PLACE)


def _flat_positions(function: Function, name: str) -> None:
    """Positions (1, T) -> (T,)."""
    old = function.inputs[name]
    if name != POSITIONS:
        claim(function, POSITIONS)
    if old.rank == 2:
        first = next(iter(function.operations))
        flat = add_input(function, free(function, f"{POSITIONS}_flat"), shape_of(old)[1:], "int32")
        row = Builder(first, value_names(function)).expand_dims(x=flat, axes=[0], name=f"{POSITIONS}_row")
        replace_uses(old, row, after=row.op)
        replace_input(function, name, flat.name)
    rename_input(function, name, POSITIONS)


def unused_input(function: Function, name: str, shape: tuple[int, ...], kind: str) -> None:
    """An input that clients give, and the program does not need: coremltools, too, has an identity take it."""
    claim(function, name)
    var = add_input(function, name, shape, kind)
    first = next(iter(function.operations))
    with building_in(function):
        mb.identity(x=var, name=free(function, f"{name}_unused"), before_op=first)


def order_inputs(function: Function, names: Sequence[str]) -> None:
    """Put these inputs first."""
    order = [*names, *(name for name in function.inputs if name not in names)]
    for held in (cast("Any", function).placeholder_inputs, cast("Any", function)._input_dict):
        entries = {name: held[name] for name in order}
        held.clear()
        held.update(entries)


def claim(function: Function, name: str) -> None:
    """Take the name from whatever value has it."""
    for op in function.operations:
        for var in op.outputs:
            if var.name == name:
                var.name = free(function, f"{name}_inner")
                if len(op.outputs) == 1:
                    op.name = var.name


def free(function: Function, stem: str) -> str:
    """A name that no value of the function has."""
    taken, found, count = value_names(function), stem, 1
    while found in taken:
        count += 1
        found = f"{stem}_{count}"
    return found

"""A function of open sizes becomes one of fixed sizes: so many new tokens, so many tokens in all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from milopt.errors import MiloptError
from milopt.inspection.functions import facts_of
from milopt.interpreter import State, compile
from milopt.mil import Var, dtype_name, is_state, is_symbolic, shape_of
from milopt.package import Model
from milopt.passes.cache_pairs import find_pairs
from milopt.retyping import RetypingError, fold, open_values, set_shapes
from milopt.verify.roles import Role, roles_of

__all__ = ["Specialised", "SpecialisingError", "call_shapes", "difference", "specialise"]

_CONVERT = "convert it with --shapes ranged"
_MOST = 2**31 - 1  # positions are int32


class SpecialisingError(MiloptError):
    """The program has no such sizes, or can't be given them."""


@dataclass(frozen=True)
class Specialised:
    """A function for ``query`` new tokens among ``context`` in all, 0 where nothing remembers others."""

    model: Model
    query: int
    context: int


def specialise(model: Model, query: int, context: int | None = None, *, function: str | None = None) -> Specialised:
    """The one function of a model, or ``function``, with fixed sizes: ``query`` new tokens, ``context`` with the past.

    Open sizes of inputs are those of the new tokens, but for the slots of a past (an input that a ``concat`` with
    something new makes an output of), which are ``context - query``, and the last axis of a mask, which is ``context``.
    Without a past there is no context to give but ``query``. ``model`` stays as it is, and weights are shared.

    :class:`SpecialisingError` where the program has no open sizes, or not these; where sizes stay open; where it keeps
    a cache in states whose slots are read up to a call's own (``state-to-kv`` gives it inputs and outputs again).
    """
    from milopt.multifunction import extract

    name = model.default_function if function is None else function
    shapes, context = call_shapes(model, name, query, context)
    alone = extract(model, name) if len(model.functions) > 1 or name != "main" else model.clone()
    graph = alone.function()
    try:
        set_shapes(graph, shapes)
    except RetypingError as error:
        raise SpecialisingError(f"{query} tokens of {context}: {error}") from error
    fold(graph)
    for var in open_values(graph):
        op = var.op.op_type if var.op is not None else "an input"
        raise SpecialisingError(f"{var.name} ({op}) still has an open size with {query} tokens: what it is made of is")
    alone.metadata.pop("milopt.query_lengths", None)
    if context:
        alone.metadata["milopt.context"] = str(context)
    return Specialised(alone, query, context)


def call_shapes(model: Model, function: str, query: int, context: int | None) -> tuple[dict[str, tuple[int, ...]], int]:
    """The shapes of all inputs of open sizes in a call, and how many tokens there are in all, 0 where none tells."""
    if query < 1:
        raise SpecialisingError(f"a call takes one token at least, not {query}")
    if context is not None and context > _MOST:
        raise SpecialisingError(f"a context of {context} is more than an axis can be long, {_MOST}")
    graph = model.function(function)
    inputs = [var for var in graph.inputs.values() if not is_state(var)]
    opened = [var for var in inputs if any(map(is_symbolic, shape_of(var)))]
    if not opened:
        raise SpecialisingError(f"function {function!r} has fixed sizes, which can't be others: {_CONVERT}")
    pasts = {pair.input: pair.axis for pair in find_pairs(graph)}
    if unknown := [pair.input for pair in find_pairs(graph) if pair.whole is not None]:
        raise SpecialisingError(f"input {unknown[0]!r} holds the pasts of several tensors, whose sizes are not known")
    roles = roles_of(graph)
    masks = [var for var in opened if var.name not in pasts and _is_mask(var, roles[var.name])]
    if masks and any(is_state(var) for var in graph.inputs.values()):
        raise SpecialisingError(
            "its cache is in states, of which a call reads as many slots as its mask has columns: run state-to-kv "
            "first, and kv-to-state afterwards"
        )
    total = _context(function, inputs, masks, pasts, query, context)
    shapes: dict[str, tuple[int, ...]] = {}
    for var in opened:
        shape = [dim if not is_symbolic(dim) else query for dim in shape_of(var)]
        if var.name in pasts:
            shape[pasts[var.name]] = total - query
        elif var in masks:
            shape[-1] = total
        shapes[var.name] = tuple(map(int, shape))
    _check_ranges(model, function, shapes)
    return shapes, total


def _is_mask(var: Var, role: Role) -> bool:
    """Whether its last axis counts the tokens in all: (..., new tokens, tokens), or (batch, tokens) of 0 and 1."""
    shape, kind = shape_of(var), dtype_name(var)
    if var.rank < 2 or not is_symbolic(shape[-1]):
        return False
    return role.kind in ("mask", "keep") or (kind != "int32" and var.rank == 4 and shape[1] == 1)


def _context(
    function: str, inputs: Sequence[Var], masks: Sequence[Var], pasts: dict[str, int], query: int, context: int | None
) -> int:
    if not masks and not pasts:
        if context is not None:
            raise SpecialisingError(f"function {function!r} remembers no other tokens: there is no context to give it")
        return 0
    fixed = {
        int(shape_of(var)[axis])
        for var in inputs
        if (axis := pasts.get(var.name)) is not None and not is_symbolic(shape_of(var)[axis])
    }
    if fixed:
        raise SpecialisingError(f"the past of function {function!r} has {fixed.pop()} slots, and no other number")
    if not pasts:
        if context not in (None, query):
            raise SpecialisingError(
                f"no input of function {function!r} is a past: its context is its {query} tokens, not {context}"
            )
        return query
    if context is None:
        raise SpecialisingError(f"function {function!r} takes any number of tokens in all: give a context")
    if context <= query:
        raise SpecialisingError(f"a context of {context} has no room for {query} new tokens and one before them")
    return context


def _check_ranges(model: Model, function: str, shapes: dict[str, tuple[int, ...]]) -> None:
    """Sizes must be among those that the package says it takes."""
    for feature in facts_of(model, function).inputs:
        if (shape := shapes.get(feature.name)) is None:
            continue
        if feature.shapes and shape not in feature.shapes:
            known = ", ".join(map(str, feature.shapes))
            raise SpecialisingError(f"input {feature.name!r} takes {known}, not {shape}")
        for axis, (low, high) in enumerate(feature.ranges):
            if shape[axis] < low or (high is not None and shape[axis] > high):
                said = f"{low} to {'any' if high is None else high}"
                raise SpecialisingError(f"axis {axis} of input {feature.name!r} is {said} long, not {shape[axis]}")


def difference(model: Model, made: Specialised, *, function: str | None = None, seed: int = 0) -> float:
    """How far, in float64, the fixed function is from the open one on random inputs, as a share of the largest value.

    All outputs, and what is left in states, are compared; NaN and infinite values must be at the same places, or the
    difference is infinite.
    """
    from milopt.verify.drawing import Style, draw

    open_one = compile(model, function, precision="float64")
    fixed = compile(made.model, precision="float64")
    roles = roles_of(made.model.function())
    rng = np.random.default_rng(seed)
    inputs = {
        name: draw(info, _sizes(info.shape), roles[name], rng, Style(ordinary=True), made.context or None)
        for name, info in fixed.inputs.items()
    }
    states = [State(plan.states) if plan.states else None for plan in (open_one, fixed)]
    given = [plan.run(inputs, state) for plan, state in zip((open_one, fixed), states, strict=True)]
    pairs: list[tuple[Any, Any]] = [(given[0][name].cpu().numpy(), given[1][name].cpu().numpy()) for name in given[0]]
    if states[0] is not None and states[1] is not None:
        pairs += [(states[0].numpy(name), states[1].numpy(name)) for name in fixed.states]
    return max((_apart(one, other) for one, other in pairs), default=0.0)


def _sizes(shape: Sequence[int | str] | None) -> tuple[int, ...]:
    return tuple(dim for dim in shape or () if isinstance(dim, int))


def _apart(one: Any, other: Any) -> float:
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    if one.shape != other.shape or not np.array_equal(np.isfinite(one), np.isfinite(other)):
        return float("inf")
    both = np.isfinite(one)
    largest = float(np.abs(one[both]).max(initial=0.0))
    off = float(np.abs(one[both] - other[both]).max(initial=0.0))
    return off / largest if largest else off

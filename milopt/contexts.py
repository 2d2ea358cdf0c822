"""One program of open sizes becomes functions for several numbers of tokens and several contexts, on one cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

from milopt.errors import MiloptError, VerificationError
from milopt.mil import is_symbolic, shape_of
from milopt.multifunction import merge
from milopt.package import Model
from milopt.pipeline import Pipeline
from milopt.sets.deployment import interface
from milopt.signature import CacheSignature
from milopt.specialising import Specialised, call_shapes, difference, specialise
from milopt.widening import slots_of, widen

__all__ = ["CONTEXTS_KEY", "joined", "multifunction", "names_of"]

CONTEXTS_KEY = "milopt.contexts"
"""Metadata: the contexts of a package's functions, where they are several."""
Tell: TypeAlias = Callable[[str], None]
# The fixed function does the ops of the open one: what differs are sums in another order.
_SAME = 1e-9


def multifunction(
    model: Model,
    query_lengths: Sequence[int],
    contexts: Sequence[int] = (),
    *,
    passes: Pipeline | None = None,
    verify: bool = True,
    tell: Tell | None = None,
) -> Model:
    """A model with a function for every number of new tokens and every context, made of one with open sizes.

    Each function is :func:`milopt.specialising.specialise`'s, and must be the open one in float64. ``passes`` then run
    on the functions of each context by themselves, before all become one model: ``kv-to-state`` is one of them where
    there is a cache to be kept. States get the slots of the longest context in all functions, under one name, so that
    one state object serves them; a function reads those of its own context. Weights are stored once.

    Functions are called as :func:`names_of` says; the first of the longest context is the default. ``model`` stays as
    it is. :class:`~milopt.errors.MiloptError` where sizes are given twice, or can't be;
    :class:`~milopt.errors.VerificationError` where a function computes something else than the open one.
    """
    say = tell or _say_nothing
    for what, numbers in (("query lengths", query_lengths), ("contexts", contexts)):
        if len(set(numbers)) < len(numbers):
            raise MiloptError(f"{what} are given once each, not {', '.join(map(str, numbers))}")
    if not query_lengths:
        raise MiloptError("give at least one query length")
    if len(model.functions) > 1:
        several = ", ".join(model.functions)
        raise MiloptError(f"the model has functions {several}: milopt extract-function makes a model of the one meant")
    wanted: list[int | None] = [*sorted(contexts, reverse=True)] or [None]
    lengths = sorted(query_lengths)
    for context in wanted:
        for length in lengths:
            call_shapes(model, model.default_function, length, context)
    parts: dict[str, Model] = {}
    names = names_of(lengths, [each for each in wanted if each is not None])
    for context in wanted:
        group: dict[str, Model] = {}
        for length in lengths:
            name = names[length, context]
            say(f"make {name}")
            made = specialise(model, length, context)
            if verify:
                _verify(model, made, name)
            group[name] = made.model
        together = merge(group, default=next(iter(group)))
        if passes is not None:
            say(f"run {passes} on the functions {', '.join(group)}")
            passes.run(together, verify=None)
        parts |= {name: _only(together, name) for name in group}
    say("merge")
    whole = joined(parts)
    whole.metadata["milopt.query_lengths"] = ",".join(map(str, lengths))
    return whole


def joined(models: dict[str, Model]) -> Model:
    """One model of several, each the function of its name: states of one name get the slots of the longest, and the
    default function is the first of those that look at all of them. The models given are used up.

    MiloptError where states of one name differ in anything but their slots.
    """
    kinds = {name: interface(model, model.default_function)["states"] for name, model in models.items()}
    stateful = {name: models[name] for name, states in kinds.items() if states}
    _widen(stateful)
    _check_states(models)
    seen = {name: _context(model) for name, model in stateful.items()}
    several = sorted({*seen.values()} - {0})
    full = [name for name in models if not several or seen.get(name) == several[-1]]
    whole = merge(models, default=full[0])
    if len(several) > 1:
        whole.metadata[CONTEXTS_KEY] = ",".join(map(str, several))
    return whole


def _widen(models: dict[str, Model]) -> None:
    """Where functions have states of different numbers of slots, all get as many as the longest."""
    shapes: dict[str, set[str]] = {}
    for model in models.values():
        for state, kind in interface(model, model.default_function)["states"].items():
            shapes.setdefault(state, set()).add(str(kind))
    if all(len(each) == 1 for each in shapes.values()):
        return
    found = {name: slots_of(model.function()) for name, model in models.items()}
    counts = {count for known in found.values() for count in known.values()}
    for name, known in found.items():
        if len(set(known.values())) > 1:
            raise MiloptError(f"the states of {name} have different numbers of slots: {_listed(known)}")
        widen(models[name].function(), max(counts))
        models[name].metadata["milopt.context"] = str(next(iter(known.values())))


def _context(model: Model) -> int:
    """How many slots a function looks at, which its masks tell; else what its model says, 0 for nothing."""
    inputs, signature = model.function().inputs, CacheSignature.from_metadata(model.metadata)
    masks = [inputs[name] for name in (signature.masks if signature is not None else ()) if name in inputs]
    columns = [int(shape_of(var)[-1]) for var in masks if not is_symbolic(shape_of(var)[-1])]
    if columns:
        return max(columns)
    said = model.metadata.get("milopt.context", "")
    return int(said) if said.isdecimal() else 0


def _listed(numbers: dict[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in numbers.items())


def names_of(lengths: Sequence[int], contexts: Sequence[int]) -> dict[tuple[int, int | None], str]:
    """Function names by new tokens and context: ``decode`` and ``prefill``, or ``q8``; of several contexts with
    ``_ctx512`` behind it, else without.
    """
    from milopt.huggingface.interface import function_names

    stems = function_names(sorted(lengths))
    if len(contexts) < 2:
        alone: int | None = contexts[0] if contexts else None
        return {(length, alone): stems[length] for length in lengths}
    return {(length, context): f"{stems[length]}_ctx{context}" for context in contexts for length in lengths}


def _verify(model: Model, made: Specialised, name: str) -> None:
    apart = difference(model, made)
    if not apart <= _SAME:
        raise VerificationError(
            f"{name} computes something else than the program of open sizes: off by {apart:.2g}", apart
        )


def _only(model: Model, name: str) -> Model:
    """The model with that function alone, not copied."""
    alone = replace(model)
    alone.program = type(model.program)()
    alone.program.add_function(name, model.program.functions[name])
    alone.program.default_function_name = alone.default_function = name
    return alone


def _check_states(models: dict[str, Model]) -> None:
    seen: dict[str, tuple[str, list[object]]] = {}
    for name, model in models.items():
        for state, kind in interface(model, model.default_function)["states"].items():
            first, known = seen.setdefault(state, (name, kind))
            if known != kind:
                raise MiloptError(
                    f"state {state!r} is {kind} in {name} and {known} in {first}: one state can't serve both"
                )


def _say_nothing(_: str) -> None:
    pass

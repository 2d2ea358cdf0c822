"""Which functions and states a set in ANEMLL's form has: the client makes one object of states, and hands it to all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from milopt.contracts.anemll_reading import AnemllFolder
from milopt.contracts.findings import Finding
from milopt.sets.anemll_windows import GLOBAL, LOCAL, ROTATING, STATE
from milopt.sets.deployment import interface

__all__ = ["function_names", "state_findings"]

_Kind: TypeAlias = "list[Any]"
# coremltools writes a buffer like model.model.kv_cache_0 with underscores, since a dot is no part of an identifier.
_KNOWN = (frozenset({STATE}), frozenset({LOCAL}), frozenset({LOCAL, GLOBAL}))


def function_names(folder: AnemllFolder) -> tuple[str, ...]:
    """What the client calls in each chunk: also the functions for beyond the window, where there is one and any has
    such.
    """
    any_rotates = any(title in chunk.functions for chunk in folder.chunks for title in ROTATING.values())
    return (*ROTATING, *(ROTATING.values() if folder.parameters.window and any_rotates else ()))


def state_findings(folder: AnemllFolder, names: list[str]) -> Iterator[Finding]:
    """Whether all functions have the states of the first chunk's ``prefill``, and whether it is one of those known."""
    first: dict[str, _Kind] = {}
    for name, model in zip(names, folder.chunks, strict=True):
        for function in function_names(folder):
            if function not in model.functions:
                continue
            check, states = f"state of {function} of {name}", interface(model, function)["states"]
            if not first:
                first = states
                yield Finding(check, *_judged(folder, states))
            elif states != first:
                text = f"{_texts(states)}, and {names[0]} has {_texts(first)}: the client"
                yield Finding(check, False, f"{text} makes one state, of the first chunk's, for all")
            else:
                yield Finding(check, True, "as the first chunk's")


def _judged(folder: AnemllFolder, states: Mapping[str, _Kind]) -> tuple[bool, str]:
    context, window = folder.parameters.context, folder.parameters.window
    plain = {name.replace(".", "_"): name for name in states}
    if not states:
        return False, "it has no state: the client makes one for all chunks"
    for name, (kind, *shape) in states.items():
        if kind != "fp16" or len(shape) != 4 or shape[0] % 2:
            return False, f"{name} is {kind} {shape}, not fp16 (2 layers, heads, context, size)"
        needed = window if name == plain.get(LOCAL) else context
        if shape[2] < needed:
            return False, f"{name} has {shape[2]} slots, and the client goes on up to {needed}"
    if frozenset(plain) not in _KNOWN:
        text = f"it is called {', '.join(states)}, and some clients look for {STATE}"
        return False, f"{text}, or {LOCAL} and {GLOBAL}"
    return True, "; ".join(f"{name} {kind} {shape}: {shape[0] // 2} layers" for name, (kind, *shape) in states.items())


def _texts(states: Mapping[str, _Kind]) -> str:
    each = (f"{name} {kind[0]} ({', '.join(map(str, kind[1:]))})" for name, kind in states.items())
    return ", ".join(each) or "no state"

"""What is known of a function's cache before it is decided where it goes: keys and values, and which go together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from milopt.mil import Function, Var, dtype_name, is_symbolic, shape_of
from milopt.passes.cache_pairs import Pair, kind_of, with_casts
from milopt.passes.slots import Slots, components, follow
from milopt.reports import require
from milopt.signature import windows_of

__all__ = ["Draft", "Group", "flexible_draft", "open_masks", "static_draft"]


@dataclass(frozen=True)
class Group:
    """Cached tensors whose columns must stand in one order: those of attentions that share a mask.

    ``axes`` are all values that hold the columns, with their axis; ``window`` is the number of past tokens that is
    needed behind the new ones, where there is such a limit.
    """

    pairs: tuple[Pair, ...]
    masks: tuple[str, ...]
    axes: dict[Var, int]
    window: int | None


@dataclass(frozen=True)
class Draft:
    """What was found in one function: every cached tensor with its kind, in groups that share masks."""

    function: Function
    pairs: list[Pair]
    kinds: dict[str, str]
    groups: list[Group]
    prefix: bool = False

    @property
    def query(self) -> int:
        """How many tokens a call takes; 1 where any number."""
        return 1 if self.prefix else int(self.pairs[0].query)


def static_draft(function: Function, pairs: list[Pair], metadata: Mapping[str, str]) -> Draft:
    """The draft of a function of fixed shapes; NoMatch where something depends on the order of the columns."""
    kinds: dict[str, str] = {}
    found: list[tuple[list[Pair], Slots]] = []
    for columns in dict.fromkeys(pair.columns for pair in pairs):
        those = [pair for pair in pairs if pair.columns == columns]
        allowed = {var for pair in those for var in with_casts(pair.var) if var.name == pair.output}
        ignored = {tail for pair in those for tail in pair.tails}
        slots = follow({pair.var: pair.axis for pair in those}, function.inputs, allowed, ignored)
        require(slots.hidden and slots.masks, "no mask hides the slots that are not written yet")  # 4
        for pair in those:
            kinds[pair.past] = _kind(pair.var, slots)
        found.append((those, slots))
    for pair in pairs:
        require(kinds[pair.past], "is it a key or a value?", at=pair.var)
    windows = windows_of([mask for _, slots in found for mask in slots.masks], metadata)
    groups = [group for those, slots in found for group in _groups(function.inputs, those, slots, windows)]
    return Draft(function, pairs, kinds, groups)


def _kind(var: Var, slots: Slots) -> str:
    if var in slots.keys:
        return "kv" if var in slots.values else "key"
    return "value" if var in slots.values else ""


def _groups(inputs: Mapping[str, Var], pairs: list[Pair], slots: Slots, windows: Mapping[str, int]) -> Iterator[Group]:
    for values in components(slots):
        those = tuple(pair for pair in pairs if pair.var in values)
        names = tuple(name for name in slots.masks if inputs[name] in values)
        limits = {windows.get(name) for name in names}
        window = limits.pop() if len(limits) == 1 else None
        yield Group(those, names, {var: axis for var, axis in slots.axes.items() if var in values}, window)


def flexible_draft(function: Function, pairs: list[Pair]) -> Draft:
    """[past | new] is what the slots up to the new tokens hold, in the same order: nothing else needs to be known."""
    kinds = {pair.past: kind_of(pair.var) for pair in pairs}
    for pair in pairs:
        require(kinds[pair.past], "is it a key or a value?", at=pair.var)
    masks = tuple(open_masks(function, {pair.input for pair in pairs}))
    require(masks, "no mask tells how many columns there are")
    return Draft(function, pairs, kinds, [Group(tuple(pairs), masks, {}, None)], prefix=True)


def open_masks(function: Function, pasts: set[str]) -> Iterator[str]:
    """Inputs with one row for each token and any number of columns."""
    for name, var in function.inputs.items():
        kind = dtype_name(var)
        flags = kind == "bool" or kind.startswith("fp")
        if name in pasts or not flags or var.rank not in (2, 3, 4):
            continue
        if is_symbolic(shape_of(var)[-1]) and all(dim == 1 for dim in shape_of(var)[:-2]):
            yield name

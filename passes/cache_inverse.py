"""Key/value caches in states -> inputs and outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np

from milopt.building import Builder
from milopt.mil import (
    Function,
    Operation,
    Var,
    add_input,
    declare_range,
    dtype_name,
    get_new_symbol,
    is_output,
    is_state,
    remove_if_dead,
    remove_input,
    replace_uses,
    shape_of,
    value_names,
)
from milopt.package import Model
from milopt.passes.attention_products import with_symbols
from milopt.passes.cache_drafts import open_masks
from milopt.passes.cache_pairs import kind_of
from milopt.passes.cache_sizes import require_other_size
from milopt.passes.cache_texts import describe_pasts
from milopt.passes.cache_written import Written, find_written
from milopt.passes.resizing import resize
from milopt.passes.slots import components, follow
from milopt.pipeline import Pass
from milopt.reports import NoMatch, Report, require
from milopt.signature import METADATA_KEY, CacheSignature, CacheSlot, Combined, outer
from milopt.signature_layout import LAYOUT_KEY, LayoutSignature

__all__ = ["StateToKv"]

# The number of new tokens that milopt's own flexible programs are described with; the past is what the context leaves.
_USUAL = 64


@dataclass(frozen=True)
class StateToKv(Pass):
    """A state and ``slice_update``  ->  ``present = concat(past, new)`` with past an input and present an output.

    The way back from ``kv-to-state``, for targets where states fail: it restores the inputs, outputs and descriptions
    that the package's metadata name, rings as the pasts they were made of. A program that says nothing of itself gets
    inputs ``past_key_i``, ``past_value_i`` and outputs ``present_key_i``, ``present_value_i`` for what its states hold,
    if it writes them by ``slice_update`` at an int32 input. The columns of masks become [past | new] again. All
    functions are rewritten, or none:

    1. every state must be written and read as ``kv-to-state`` does, and be used for nothing else;
    2. nothing may depend on the order of the cache's columns, nor use the position otherwise;
    3. all functions must have the same states;
    4. all states must be read alike: whole, or up to the new tokens. Of the latter the past takes any number of slots
       from 1 to the context without one; a call of the first tokens has one that its mask hides.
    """

    name: ClassVar[str] = "state-to-kv"
    after: ClassVar[tuple[str, ...]] = ("kv-to-state",)

    def run(self, model: Model) -> Report:
        report = Report(self.name)
        plans: dict[str, _Plan] = {}
        said = CacheSignature.from_metadata(model.metadata)
        for name, function in model.functions.items():
            states = sum(map(is_state, function.inputs.values()))
            report.tried += states
            try:
                if states:
                    plans[name] = _plan(function, said)
            except NoMatch as why:
                report.decline(name, why.at, why.text, *why.arguments)
                return report
        if not plans:
            report.notes.append("there are no states")
            return report
        if model.aside:
            report.decline(next(iter(plans)), "", "the pass runs on some functions only, and the cache is of all")
            return report
        signatures = {plan.signature for plan in plans.values()}
        if len(plans) < len(model.functions) or len(signatures) > 1:
            report.decline(next(iter(plans)), "", "not every function of the program has the same cache")  # 3
            return report
        (cache,) = signatures
        for name, plan in plans.items():
            plan.rewrite()
            report.applied += len(plan.written)
            describe_pasts(model, name, cache, own=said is not None)
        if said is not None:
            del model.metadata[METADATA_KEY]
        report.signature = _handed_on(model, cache)
        return report


def _handed_on(model: Model, cache: CacheSignature) -> CacheSignature:
    """Say of the pasts what was said of the states: in which order their axes are."""
    relaid = LayoutSignature.from_metadata(model.metadata)
    if relaid is None:
        return cache
    shapes = {
        name: {var.name: tuple(shape_of(var)) for var in (*function.inputs.values(), *function.outputs)}
        for name, function in model.functions.items()
    }
    model.metadata[LAYOUT_KEY] = relaid.handed_on(cache, shapes).to_json()
    return relaid.public_cache(cache)


class _Plan(NamedTuple):
    """What to do to one function; everything was checked when it was made. ``axes`` are those that get another size."""

    function: Function
    written: list[Written]
    signature: CacheSignature
    axes: list[tuple[dict[Var, int], int]]

    def rewrite(self) -> None:
        function, signature = self.function, self.signature
        taken = {*value_names(function)}
        outputs = [*function.outputs]
        pasts: dict[str, Var] = {}
        parts: dict[Combined, dict[int, Var]] = {}
        for each, slot in zip(self.written, signature.slots, strict=True):
            op, axis, combined = Builder(each.update, taken), signature.axis_of(slot), signature.whole_of(slot.past)
            shape = list(shape_of(each.new))
            shape[axis] = get_new_symbol() if signature.prefix else slot.kept or signature.context - shape[axis]
            if combined is not None:
                held = _part(op, self._combined(combined, shape[axis], slot.dtype, pasts), combined, slot.past)
            else:
                past = self._past(slot.past, shape, axis, slot.dtype)
                held = past if slot.dtype == "fp16" else op.cast(x=past, dtype="fp16")
            inner = slot.returned == "all" and slot.dtype == "fp16" and combined is None
            whole = op.concat(values=[held, each.new], axis=axis, **({"name": slot.present} if inner else {}))
            replace_uses(each.read, with_symbols(whole, shape_of(each.read)) if signature.prefix else whole)
            if combined is not None:
                number = _number(slot.past)
                parts.setdefault(combined, {})[number] = _returned(op, slot, whole, each.new, axis)
            else:
                outputs.append(whole if inner else _present(op, slot, whole, each.new, axis))
        for combined, values in parts.items():
            outputs.append(self._together(combined, values, taken))
        function.set_outputs(outputs)
        for each in reversed(self.written):
            _forget(each.update)
        for name in [name for name, var in function.inputs.items() if is_state(var)]:
            remove_input(function, name)
        if signature.position:
            remove_input(function, signature.position)
        for axes, size in self.axes:
            resize(function, axes, size, taken)

    def _past(self, name: str, shape: Sequence[Any], axis: int, dtype: str) -> Var:
        """A new input, with the range of its slots where their number is open."""
        past = add_input(self.function, name, shape, dtype)
        if self.signature.prefix:
            most = self.signature.context - 1
            usual = self.signature.context - min(_USUAL, most)
            declare_range(self.function, name, axis, 1, most, usual)
        return past

    def _combined(self, combined: Combined, slots: Any, dtype: str, pasts: dict[str, Var]) -> Var:
        """The input that holds several cached tensors; made once."""
        if combined.past not in pasts:
            shape = [dim or slots for dim in combined.shape]
            pasts[combined.past] = self._past(combined.past, shape, combined.axis, dtype)
        return pasts[combined.past]

    def _together(self, combined: Combined, values: dict[int, Var], taken: set[str]) -> Var:
        """The output that holds what they became, by their numbers."""
        order = {op: at for at, op in enumerate(self.function.operations)}
        op = Builder(max((each.update for each in self.written), key=lambda update: order[update]), taken)
        dtype = next(slot.dtype for slot in self.signature.slots if self.signature.whole_of(slot.past) == combined)
        stacked = op.stack(values=[values[at] for at in sorted(values)], axis=0)
        shape = [dim or -1 for dim in combined.shape]
        made: Var
        if dtype == "fp16":
            made = op.reshape(x=stacked, shape=shape, name=combined.present)
        else:
            made = op.cast(x=op.reshape(x=stacked, shape=shape), dtype=dtype, name=combined.present)
        return made


def _number(name: str) -> int:
    """The place of a cached tensor among those that one input holds."""
    return int(name.removesuffix("]").partition("[")[2])


def _part(op: Builder, past: Var, combined: Combined, name: str) -> Var:
    """One of the cached tensors that an input holds, as fp16."""
    rows = op.reshape(x=past, shape=[combined.count, *(dim or -1 for dim in combined.part)])
    at = _number(name)
    rank = rows.rank
    begin = np.array([at, *[0] * (rank - 1)], np.int32)
    cut = op.slice_by_index(
        x=rows,
        begin=begin,
        end=begin + np.int32(1),
        end_mask=[False, *[True] * (rank - 1)],
        squeeze_mask=[True, *[False] * (rank - 1)],
    )
    held: Var = cut if dtype_name(cut) == "fp16" else op.cast(x=cut, dtype="fp16")
    return held


def _returned(op: Builder, slot: CacheSlot, whole: Var, new: Var, axis: int, **name: str) -> Var:
    """What a present is of all columns: these, the last of them, or the new ones."""
    if slot.returned == "new":
        return new
    if slot.returned == "all":
        return whole
    begin, end = np.zeros(whole.rank, np.int32), np.array(shape_of(whole), np.int32)
    begin[axis] = end[axis] - slot.kept
    tail: Var = op.slice_by_index(x=whole, begin=begin, end=end, **name)
    return tail


def _present(op: Builder, slot: CacheSlot, whole: Var, new: Var, axis: int) -> Var:
    """The output, where it is not just all columns."""
    final = slot.dtype == "fp16"
    value = _returned(op, slot, whole, new, axis, **({"name": slot.present} if final else {}))
    if not final:
        cast: Var = op.cast(x=value, dtype=slot.dtype, name=slot.present)
        return cast
    if value.name != slot.present:
        made: Var = op.identity(x=value, name=slot.present)
        return made
    return value


def _forget(update: Operation) -> None:
    """Take away a write to a state and what was computed for it alone."""
    remove_if_dead(list(update.outputs[0].child_ops))
    value: Var = update.inputs["value"]
    update.enclosing_block.remove_ops([update])
    if value.op is not None:
        remove_if_dead([value.op])


def _plan(function: Function, said: CacheSignature | None) -> _Plan:
    written = find_written(function)  # 1
    require(len({each.prefix for each in written}) == 1, "some states are read whole, some to the new tokens")  # 4
    signature = _found(function, written) if said is None else said
    places = {(each.state, each.row): each for each in written}
    wanted = [(slot.state, slot.row) for slot in signature.slots]
    require(set(wanted) == set(places), "the states are not those that the package's metadata name")
    ordered = [places[place] for place in wanted]
    names = value_names(function)
    axes: list[tuple[dict[Var, int], int]] = []
    for each, slot in zip(ordered, signature.slots, strict=True):
        same = (each.rows, each.axis, each.prefix) == (slot.rows, signature.axis_of(slot), signature.prefix)
        if (whole := signature.whole_of(slot.past)) is not None:
            part = [*shape_of(each.new)]
            part[each.axis] = 0
            same = same and tuple(part) == whole.part
        require(same, "is not written as the package's metadata say", at=each.update)
        for name in (outer(slot.past), outer(slot.present)):
            free = name not in names or (slot.returned == "new" and each.new.name == name)
            require(free, "there is a value named {} already", name, at=each.update)
    position = function.inputs.get(signature.position) if signature.position else None
    require(position is not None or not signature.position, "there is no input {}", signature.position)
    if position is not None:
        _check_position(position, ordered)
    if signature.prefix:  # [past | new] are the slots up to the new tokens, in their order: nothing else is to be known
        return _Plan(function, ordered, signature, axes)
    columns = {each.read: shape_of(each.read)[each.axis] for each in ordered}
    gone = {each.read for each in ordered}
    for size in dict.fromkeys(columns.values()):
        sources = {each.read: each.axis for each in ordered if columns[each.read] == size}
        slots = follow(sources, function.inputs, set())  # 2
        for values in components(slots):
            inside = [(each, slot) for each, slot in zip(ordered, signature.slots, strict=True) if each.read in values]
            sizes = {
                slot.kept + shape_of(each.new)[each.axis] if slot.kept else signature.context for each, slot in inside
            }
            require(len(sizes) == 1, "a mask is shared by pasts of different lengths", at=inside[0][0].update)
            (after,) = sizes
            if after != size:
                held = {var: axis for var, axis in slots.axes.items() if var in values}
                require_other_size(held)
                axes.append(({var: axis for var, axis in held.items() if var not in gone}, after))
    return _Plan(function, ordered, signature, axes)


# what the position passes on its way to where it is written to
_ARITHMETIC = frozenset(
    {"add", "cast", "concat", "equal", "expand_dims", "greater_equal", "less", "logical_and", "maximum", "minimum"}
    | {"mod", "reshape", "squeeze", "sub"}
)


def _check_position(position: Var, written: list[Written]) -> None:
    writers = {op for each in written for op in (*each.writers, each.read.op)}
    found = [position]
    for var in found:  # which grows
        for user in var.child_ops:
            if user not in writers:
                made: Var = user.outputs[0]
                known = user.op_type in _ARITHMETIC and not is_output(made)
                require(known, "{} also uses the position", user.op_type, at=user)
                if made not in found:
                    found.append(made)


def _found(function: Function, written: list[Written]) -> CacheSignature:
    """What a program that says nothing of itself shows: its states in the order they are written."""
    counts: dict[str, int] = {}
    slots: list[CacheSlot] = []
    axis = written[0].axis
    for each in written:
        require(each.position is not None, "it is not written at an input", at=each.update)
        kind = {"key": "key", "value": "value", "kv": "kv"}.get(kind_of(each.read))
        require(kind is not None, "is it a key or a value?", at=each.update)
        number = counts[str(kind)] = counts.get(str(kind), -1) + 1
        own = None if each.axis == axis else each.axis
        slots.append(
            CacheSlot(f"past_{kind}_{number}", f"present_{kind}_{number}", each.state, each.row, each.rows, own)
        )
    positions = {each.position for each in written}
    sizes = {shape_of(function.inputs[each.state])[each.axis] for each in written}
    require(len(positions) == 1, "its states are written at several inputs")
    require(len(sizes) == 1, "its states have different numbers of slots")
    (position,), (context,), prefix = positions, sizes, written[0].prefix
    found = CacheSignature(tuple(slots), str(position), (), int(context), axis, prefix=prefix)
    if prefix:
        return replace(found, masks=tuple(open_masks(function, set())))
    return replace(found, masks=tuple(follow({each.read: each.axis for each in written}, function.inputs, set()).masks))

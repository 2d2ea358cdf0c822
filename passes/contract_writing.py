"""Writes a client's contract into a function: what its mask leaves out, its names, its states, its ranges."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from milopt.building import Builder
from milopt.contracts.styles import Contract
from milopt.mil import (
    Function,
    Operation,
    Var,
    add_input,
    constant,
    declare_shape,
    flat,
    get_new_symbol,
    is_symbolic,
    producers,
    refine_shape,
    remove_if_dead,
    remove_input,
    remove_ops,
    rename_input,
    replace_uses,
    set_ranges,
    shape_of,
    value_names,
)
from milopt.reports import require

__all__ = ["TRACE", "Roles", "Write", "rewrite", "writes_of"]

# What a mask adds where a token may not look: finite in fp16, and exp(-1e4) is 0 in every format (constraint L10).
_HIDDEN = np.float16(-1e4)
# What a client's own mask counts for at most, -inf too: both together are finite in fp16, so that no row is NaN.
_LOWEST = np.float16(-4e4)
# The smallest number that is not 0 in fp16: in a key it moves a score by less than fp16 can tell.
TRACE = 2**-24


@dataclass(frozen=True)
class Roles:
    """What the inputs of a decoder are for; ``positions`` and ``counter``, the first new slot, may be absent.

    ``masks`` are all masks with the size of their window, 0 where they look at everything; ``mask`` is the one that the
    client gives.
    """

    tokens: str
    positions: str
    mask: str
    masks: tuple[tuple[str, int], ...]
    counter: str = ""


class Write(NamedTuple):
    """A cached tensor in a state: the op that places the new tokens, the update of the state, and what is read back."""

    place: Operation
    update: Operation
    read: Operation


def rewrite(function: Function, contract: Contract, roles: Roles, context: int) -> None:
    """Everything was checked before: the function has states ``key_cache`` and ``value_cache`` that read a prefix."""
    taken = {*value_names(function), *(each.name for each in (*contract.inputs, *contract.states, contract.logits))}
    op = Builder(function.operations[0], taken)
    keys = _stacked(op, function, "key_cache", contract.keys.name)
    values = _stacked(op, function, "value_cache", contract.values.name)
    opening = _place(op, function, roles, keys, context)
    _write(function, "key_cache", contract.keys.name, keys, taken, opening)
    _write(function, "value_cache", contract.values.name, values, taken)
    for name in (roles.positions, roles.counter, *(mask for mask, _ in roles.masks if mask != roles.mask)):
        if name:
            remove_input(function, name)
    rename_input(function, roles.tokens, contract.tokens.name)
    rename_input(function, roles.mask, contract.mask.name)
    for name in (contract.tokens.name, contract.mask.name):
        shape = shape_of(function.inputs[name])
        set_ranges(function, name, [(1, context) if is_symbolic(dim) else (dim, dim) for dim in shape], default=1)


def _place(op: Builder, function: Function, roles: Roles, keys: Var, context: int) -> Var:
    """Let the function find out where its tokens stand, and what each of them may see.

    Returns which of the new tokens opens the conversation, bool (1, 1, q, 1).
    """
    inputs = function.inputs
    # a client's mask has as many rows as it likes: no size of it is that of another input
    declare_shape(function, roles.mask, (1, 1, get_new_symbol(), get_new_symbol()))
    mask, tokens = inputs[roles.mask], inputs[roles.tokens]
    end = op.gather(x=op.shape(x=mask), indices=np.array([3], np.int32), axis=0, name="slots_end")
    count = op.gather(x=op.shape(x=tokens), indices=np.array([1], np.int32), axis=0, name="tokens_count")
    begin = op.sub(x=end, y=count, name="slots_begin")
    numbers = np.arange(context, dtype=np.int32)
    first = op.minimum(x=_first_written(op, keys, numbers), y=begin, name="slots_first")
    own = op.slice_by_index(x=numbers, begin=begin, end=end, name="slots_own")
    slots = op.slice_by_index(x=numbers, begin=np.zeros(1, np.int32), end=end, name="slots")
    row, column = op.expand_dims(x=own, axes=[1]), op.expand_dims(x=slots, axes=[0])
    seen = op.logical_and(x=op.less_equal(x=column, y=row), y=op.greater_equal(x=column, y=first), name="slots_seen")
    given = op.maximum(x=mask, y=_LOWEST, name=f"{roles.mask}_finite")
    made: dict[str, Var] = {}
    for name, window in roles.masks:
        near = seen
        if window:
            oldest = op.sub(x=row, y=np.int32(window), name=f"{name}_oldest")
            near = op.logical_and(x=seen, y=op.greater(x=column, y=oldest), name=f"{name}_seen")
        hidden = op.cast(x=op.logical_not(x=op.expand_dims(x=near, axes=[0, 1])), dtype="fp16", name=f"{name}_hidden")
        made[name] = op.add(x=op.mul(x=hidden, y=_HIDDEN, name=f"{name}_added"), y=given, name=f"{name}_and_hidden")
    if roles.positions:
        counted = op.sub(x=own, y=first, name="positions")
        made[roles.positions] = op.expand_dims(x=counted, axes=[0], name="positions_row")
    if roles.counter:
        made[roles.counter] = begin
    opening: Var = op.expand_dims(x=op.equal(x=own, y=first), axes=[0, 1, 3], name="slots_opening")
    for name, var in made.items():
        replace_uses(inputs[name], var, after=op.built[-1])
    return opening


def _first_written(op: Builder, keys: Var, numbers: Any) -> Var:
    """The first slot, int32 (1,), whose keys in the first layer are not all zero; the number of slots without one."""
    shape = shape_of(keys)
    layer = op.slice_by_index(x=keys, begin=[0] * 5, end=[1, *shape[1:]], name="slots_keys")
    largest = op.reduce_max(x=op.abs(x=layer), axes=[0, 1, 2, 4], keep_dims=False, name="slots_largest")
    written = op.greater(x=largest, y=np.float16(0), name="slots_written")
    which = op.select(cond=written, a=numbers, b=np.int32(len(numbers)))
    found: Var = op.reduce_min(x=which, axes=[0], keep_dims=True, name="slots_first_written")
    return found


def writes_of(function: Function, state: str) -> list[Write]:
    """What is written to a state and read back, in order; NoMatch where that is not what ``kv-to-state`` writes."""
    var = function.inputs.get(state)
    require(var is not None, "there is no state {}", state)
    assert var is not None
    found: list[Write] = []
    reads = [user for user in var.child_ops if user.op_type == "read_state"]
    require(len(reads) == 1, "state {} is read {} times", state, len(reads), at=var)
    current = reads[0].outputs[0]
    for update in function.operations:
        if update.op_type != "coreml_update_state" or update.state is not var:
            continue
        place = update.value.op
        sliced = place is not None and place.op_type == "slice_update" and place.x is current
        require(sliced, "state {} is not written by slice_update", state, at=update)
        current = update.outputs[0]
        read = [user for user in current.child_ops if user.op_type == "slice_by_index" and user.x is current]
        require(len(read) == 1, "state {} is read otherwise than up to the new tokens", state, at=update)
        assert place is not None
        found.append(Write(place, update, read[0]))
    require(found, "nothing is written to state {}", state, at=var)
    return found


def _stacked(op: Builder, function: Function, old: str, name: str) -> Var:
    """What a new state holds at first, of the old one's shape with an axis of one sequence behind the layers'."""
    layers, *rest = shape_of(function.inputs[old])
    state = add_input(function, name, (layers, 1, *rest), "fp16", state=True)
    held: Var = op.read_state(input=state, name=f"{name}_read")
    return held


def _write(function: Function, old: str, name: str, current: Var, taken: set[str], opening: Var | None = None) -> None:
    """Let the function write to the new state and read from it; ``opening`` tells where a trace may be needed."""
    before, state = function.inputs[old], function.inputs[name]
    writes, squeezed = writes_of(function, old), [True, *[False] * before.rank]
    for place, _, read in writes:
        op = Builder(place, taken)
        first_layer = _entries(place.begin)[0] == 0
        new = place.update if opening is None or not first_layer else _traced(op, place.update, opening)
        new = op.expand_dims(x=new, axes=[0], name=f"{new.name}_row")
        begin, end = _wider(op, place.begin, 0), _wider(op, place.end, 1)
        current = op.slice_update(x=current, update=new, begin=begin, end=end)
        current = op.coreml_update_state(state=state, value=current)
        op = Builder(read, taken)
        begin, end = _wider(op, read.begin, 0), _wider(op, read.end, 1)
        seen = op.slice_by_index(x=current, begin=begin, end=end, squeeze_mask=squeezed, name=f"{read.name}_stacked")
        replace_uses(read.outputs[0], refine_shape(seen, shape_of(read.outputs[0])))
    reading = next(user for user in before.child_ops if user.op_type == "read_state")
    chain = [op for each in writes for op in (each.place, each.update, each.read)]
    bounds = [maker for op in chain for maker in producers(op) if maker not in chain]
    remove_ops([reading, *chain])
    remove_if_dead(each for each in bounds if each is not reading)
    remove_input(function, old)


def _traced(op: Builder, new: Var, opening: Var) -> Var:
    """The keys (1, H, q, D) with a trace in those of the first token where all are zero: its slot has been written."""
    shape = shape_of(new)
    trace = np.zeros((1, shape[1], 1, shape[3]), np.float16)
    trace[0, 0, 0, 0] = TRACE
    largest = op.reduce_max(x=op.abs(x=new), axes=[1, 3], keep_dims=True, name=f"{new.name}_largest")
    silent = op.logical_and(x=op.equal(x=largest, y=np.float16(0)), y=opening, name=f"{new.name}_silent")
    marked: Var = op.select(cond=silent, a=trace, b=new, name=f"{new.name}_marked")
    return refine_shape(marked, shape)


def _wider(op: Builder, vector: Var, entry: int) -> Any:
    """The begin or end of a slice with ``entry`` for the new second axis."""
    entries = _entries(vector)
    entries.insert(1, entry)
    if all(isinstance(each, int) for each in entries):
        return np.array(entries, np.int32)
    parts: list[Any] = []
    for computed, group in groupby(entries, key=lambda each: not isinstance(each, int)):
        run = list(group)
        parts += run if computed else [np.array(run, np.int32)]
    return op.concat(values=parts, axis=0)


def _entries(vector: Var) -> list[Any]:
    """Numbers, and values of one entry where they are computed."""
    if (known := constant(vector)) is not None:
        return [int(each) for each in known]
    assert vector.op is not None
    entries: list[Any] = []
    for part in flat(vector.op.values):
        known = constant(part)
        entries += [part] if known is None else [int(each) for each in np.ravel(known)]
    return entries

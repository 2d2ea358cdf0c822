"""Writes a cache in states: reads, updates by slice, by mask or in a ring, and the slots that attention looks at."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from milopt.building import Builder
from milopt.mil import (
    Function,
    Var,
    add_input,
    is_removed,
    is_symbolic,
    refine_shape,
    remove_if_dead,
    remove_input,
    replace_uses,
    shape_of,
    value_names,
)
from milopt.passes.cache_pairs import Pair
from milopt.passes.resizing import resize
from milopt.signature import CacheSignature, CacheSlot

__all__ = ["Plan"]


@dataclass(frozen=True)
class Plan:
    """What to do to one function; everything was checked when it was made.

    With ``everywhere`` every slot is written, with what it held or a new token. ``resized`` are the axes that get
    another size: of values that hold the slots, which axis, and how many there are.
    """

    function: Function
    pairs: list[Pair]
    signature: CacheSignature
    everywhere: bool
    resized: list[tuple[dict[Var, int], int]]
    _taken: set[str] = field(default_factory=set[str])
    _bounds: dict[tuple[object, ...], tuple[Var, Var]] = field(
        default_factory=dict[tuple[object, ...], "tuple[Var, Var]"]
    )
    _fresh: dict[tuple[object, ...], tuple[Var, Var | None]] = field(
        default_factory=dict[tuple[object, ...], "tuple[Var, Var | None]"]
    )

    def rewrite(self) -> None:
        function, signature = self.function, self.signature
        self._taken.update(value_names(function))
        self._drop_presents()
        op = self._builder(self.pairs[0])
        if signature.position:
            add_input(function, signature.position, (1,), "int32")
        states = self._states()
        current: dict[str, Var] = {}
        start, end = self._extent(op)
        for pair, slot in zip(self.pairs, signature.slots, strict=True):
            op = self._builder(pair)
            name = slot.state
            if name not in current:
                current[name] = op.read_state(input=states[name], name=f"{name}_read")
            written = self._written(op, pair, slot, current[name], start, end)
            current[name] = op.coreml_update_state(state=states[name], value=written)
            replace_uses(pair.var, self._read(op, pair, slot, current[name], end))
            remove_if_dead([pair.concat])
        for name in dict.fromkeys(pair.input for pair in self.pairs):
            remove_input(function, name)
        assert end.op is not None
        remove_if_dead([end.op])
        for axes, size in self.resized:
            resize(function, {var: axis for var, axis in axes.items() if _is_there(var)}, size, self._taken)

    def _drop_presents(self) -> None:
        presents = {pair.output for pair in self.pairs}
        outputs = [*self.function.outputs]
        self.function.set_outputs([var for var in outputs if var.name not in presents])
        remove_if_dead([var.op for var in outputs if var.op is not None])

    def _builder(self, pair: Pair) -> Builder:
        return Builder(pair.concat, self._taken)

    def _states(self) -> dict[str, Var]:
        """The state inputs, by name."""
        totals: dict[str, int] = {}
        shapes: dict[str, list[Any]] = {}
        for pair, slot in zip(self.pairs, self.signature.slots, strict=True):
            totals[slot.state] = totals.get(slot.state, 0) + slot.rows
            shapes[slot.state] = self._whole(pair, slot)
        return {
            name: add_input(self.function, name, (rows, *shapes[name][1:]), "fp16", state=True)
            for name, rows in totals.items()
        }

    def _whole(self, pair: Pair, slot: CacheSlot) -> list[Any]:
        """The shape of a cached tensor with all slots of its state."""
        shape = list(shape_of(pair.var))
        shape[pair.axis] = slot.ring or self.signature.context
        return shape

    def _extent(self, op: Builder) -> tuple[Var, Var]:
        """The first new token's position, and the one behind the last, both (1,)."""
        signature, inputs = self.signature, self.function.inputs
        length = self._length(op)
        if signature.counts:
            counter = inputs[signature.counts]
            start = counter
            if shape_of(counter) != (1,):
                flat = counter if counter.rank == 1 else op.reshape(x=counter, shape=[-1])
                start = op.slice_by_index(x=flat, begin=[0], end=[1], name=f"{signature.counts}_first")
        elif signature.position:
            start = inputs[signature.position]
        else:
            mask = inputs[signature.masks[0]]
            end = op.gather(x=op.shape(x=mask), indices=np.array([mask.rank - 1], np.int32), name="slots_end")
            return op.sub(x=end, y=length, name="slots_begin"), end
        return start, op.add(x=start, y=length, name=f"{signature.counts or signature.position}_end")

    def _length(self, op: Builder) -> Any:
        pair = self.pairs[0]
        if not is_symbolic(pair.query):
            return np.array([pair.query], np.int32)
        return op.gather(x=op.shape(x=pair.new), indices=np.array([pair.axis], np.int32))

    def _written(self, op: Builder, pair: Pair, slot: CacheSlot, state: Var, start: Var, end: Var) -> Var:
        """The state with the new tokens in their slots."""
        if self.everywhere or (slot.ring and pair.query != 1):
            return self._blended(op, pair, slot, state, start)
        whole = self._whole(pair, slot)
        key = (slot.row, slot.rows, slot.ring, pair.axis, *whole)
        if key not in self._bounds:
            if slot.ring:  # slot = token mod ring
                start = op.mod(x=start, y=np.array([slot.ring], np.int32))
                end = op.add(x=start, y=np.array([1], np.int32))
            low: list[Any] = [slot.row, *[0] * (len(whole) - 1)]
            high: list[Any] = [slot.row + slot.rows, *whole[1:]]
            low[pair.axis], high[pair.axis] = start, end
            self._bounds[key] = _vector(op, low), _vector(op, high)
        first, last = self._bounds[key]
        updated: Var = op.slice_update(x=state, update=pair.new, begin=first, end=last)
        return updated

    def _blended(self, op: Builder, pair: Pair, slot: CacheSlot, state: Var, start: Var) -> Var:
        """Every slot anew: with the new token that belongs there, or with what it held."""
        rank, whole = pair.var.rank, self._whole(pair, slot)
        fresh, placing = self._placing(op, pair, slot, start)
        if placing is None:
            placed = pair.new
        elif pair.axis == rank - 1:
            placed = op.matmul(x=pair.new, y=placing, transpose_y=True, name=f"{pair.label}_placed")
        elif pair.axis == rank - 2:
            placed = op.matmul(x=placing, y=pair.new, name=f"{pair.label}_placed")
        else:
            placed = op.gather(x=pair.new, indices=placing, axis=pair.axis, name=f"{pair.label}_placed")
        first, last = _rows(slot, whole)
        alone = shape_of(state)[0] == slot.rows
        held = state if alone else op.slice_by_index(x=state, begin=first, end=last)
        blended: Var = op.select(cond=fresh, a=placed, b=held, name=f"{pair.label}_blended")
        if alone:
            return blended
        updated: Var = op.slice_update(x=state, update=blended, begin=first, end=last)
        return updated

    def _placing(self, op: Builder, pair: Pair, slot: CacheSlot, start: Var) -> tuple[Var, Var | None]:
        """Which slots get a new token, as bools along the slots; and which of the new tokens each gets.

        The latter is a matrix (slots, Q) of ones and zeros where the slots are one of the last two axes, else indices;
        ``None`` where there is one token.
        """
        size, rank, query = slot.ring or self.signature.context, pair.var.rank, pair.query
        key = (size, slot.ring, rank, pair.axis)
        if key in self._fresh:
            return self._fresh[key]
        slots = np.arange(size, dtype=np.int32)
        if slot.ring:  # the remainder of the slot's distance from the first new token
            first = op.mod(x=start, y=np.array([size], np.int32))
            offset = op.mod(x=op.sub(x=slots + np.int32(size), y=first), y=np.array([size], np.int32))
            fresh = op.less(x=offset, y=np.array([query], np.int32))
        else:
            offset = op.sub(x=slots, y=start)
            behind = op.less(x=offset, y=np.array([query], np.int32))
            fresh = op.logical_and(x=op.greater_equal(x=offset, y=np.array([0], np.int32)), y=behind)
        beside = [at for at in range(rank) if at != pair.axis]
        fresh = op.expand_dims(x=fresh, axes=beside, name=f"{pair.label}_fresh")
        placing: Var | None = None
        if query > 1 and pair.axis < rank - 2:
            placing = op.minimum(x=op.maximum(x=offset, y=np.int32(0)), y=np.int32(query - 1))
        elif query > 1:
            equal = op.equal(x=op.expand_dims(x=offset, axes=[1]), y=np.arange(query, dtype=np.int32)[None])
            placing = op.cast(x=equal, dtype="fp16")
            placing = op.expand_dims(x=placing, axes=list(range(rank - 2)), name=f"{pair.label}_placing")
        self._fresh[key] = fresh, placing
        return self._fresh[key]

    def _read(self, op: Builder, pair: Pair, slot: CacheSlot, state: Var, end: Var) -> Var:
        """The slots that attention looks at: all, or those up to the new tokens."""
        whole = self._whole(pair, slot)
        first, last = _rows(slot, whole)
        name = f"{pair.label}_slots"
        if not self.signature.prefix:
            read: Var = op.slice_by_index(x=state, begin=first, end=last, name=name)
            return read
        upto: list[Any] = [int(each) for each in last]
        upto[pair.axis] = end
        read = op.slice_by_index(x=state, begin=first, end=_vector(op, upto), name=name)
        return refine_shape(read, shape_of(pair.var))


def _is_there(var: Var) -> bool:
    return var.op is None or not is_removed(var.op)


def _rows(slot: CacheSlot, whole: list[Any]) -> tuple[Any, Any]:
    """Where the tensor's rows begin and end in its state, in every axis."""
    first = np.array([slot.row, *[0] * (len(whole) - 1)], np.int32)
    return first, np.array([slot.row + slot.rows, *whole[1:]], np.int32)


def _vector(op: Builder, entries: list[Any]) -> Any:
    """The int32 vector of the entries, of which some are values of shape (1,), known only when the program runs."""
    values: list[Any] = []
    numbers: list[int] = []
    for each in (*entries, None):
        if isinstance(each, int):
            numbers.append(each)
            continue
        if numbers:
            values.append(np.array(numbers, np.int32))
            numbers = []
        if each is not None:
            values.append(each)
    return op.concat(values=values, axis=0)

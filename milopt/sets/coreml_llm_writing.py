"""A state that is written where a mask says, and nowhere else: no index is computed, and none is needed."""

from __future__ import annotations

import numpy as np

from milopt.building import Builder
from milopt.mil import (
    Function,
    Var,
    add_input,
    building_in,
    mb,
    remove_if_dead,
    remove_input,
    replace_uses,
    value_names,
)
from milopt.passes.cache_written import Written, find_written
from milopt.reports import NoMatch
from milopt.sets.errors import SetError
from milopt.sets.renaming import PLACE, POSITIONS, claim, free
from milopt.sets.roles import Decoder
from milopt.statereads import read_once

__all__ = ["UPDATE", "write_by_mask"]

UPDATE = "update_mask"


def write_by_mask(function: Function, decoder: Decoder, place: str) -> None:
    """Select in every slot between what it holds and the new token, by ``update_mask``; the place is not needed."""
    read_once(function)
    try:
        written = find_written(function)
    except NoMatch as why:
        raise SetError(f"it is not known how the state is written: {why}") from why
    claim(function, UPDATE)
    mask = add_input(function, UPDATE, (1, 1, decoder.slots, 1), "fp16")
    first = next(iter(function.operations))
    # 0.5: the client gives 0 and 1
    fresh = Builder(first, value_names(function)).greater(x=mask, y=np.float16(0.5), name=f"{UPDATE}_fresh")
    for each in written:
        if each.prefix or each.axis != 2:
            raise SetError(f"state {each.state!r} is read up to the new tokens: kv-to-state{{read=full}}")
        _blend(function, each, fresh, decoder)
    _without_place(function, place)


def _blend(function: Function, written: Written, fresh: Var, decoder: Decoder) -> None:
    select = next((op for op in written.writers if op.op_type == "select"), None)
    if select is not None:
        before = select.inputs["cond"].op
        select.set_inputs(cond=fresh)
        remove_if_dead([before] if before is not None else [])
        return
    (place,) = written.writers
    op = Builder(place, value_names(function))
    begin, end = [written.row, 0, 0, 0], [written.row + written.rows, *decoder.shape[1:]]
    held = op.slice_by_index(x=place.inputs["x"], begin=begin, end=end, name=f"{place.name}_held")
    blended = op.select(cond=fresh, a=place.inputs["update"], b=held, name=f"{place.name}_blended")
    updated = op.slice_update(x=place.inputs["x"], update=blended, begin=begin, end=end)
    replace_uses(place.outputs[0], updated)
    remove_if_dead([place])


def _without_place(function: Function, name: str) -> None:
    """What else needs the place of the new token gets its position, which is the same number."""
    var = function.inputs[name]
    if not var.child_ops:
        remove_input(function, name)
        return
    if POSITIONS not in function.inputs:
        add_input(function, POSITIONS, (1,), "int32")
    row = function.inputs[POSITIONS]
    with building_in(function):
        same = mb.identity(x=row, before_op=next(iter(function.operations)), name=free(function, f"{PLACE}_same"))
    replace_uses(var, same, after=same.op)
    remove_input(function, name)

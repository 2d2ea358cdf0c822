"""Masks of a sliding window that the program computes itself: clients send one causal mask, and no other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from milopt.building import Builder
from milopt.mil import Function, Var, remove_input, replace_uses, value_names
from milopt.package import Model
from milopt.sets.errors import SetError
from milopt.sets.renaming import unused_input
from milopt.sets.roles import Decoder, FunctionRoles
from milopt.signature import METADATA_KEY, WINDOW_KEY, CacheSignature

__all__ = ["with_own_masks"]

# What a mask adds where a token may not look: finite in fp16, and exp(-1e4) is 0 in every format (constraint L10).
_HIDDEN = np.float16(-1e4)


def with_own_masks(model: Model, decoder: Decoder) -> tuple[Model, Decoder]:
    """A copy whose functions ``one`` and ``many`` hide by themselves what is outside the window, and its roles.

    Token ``current_pos + i`` sees itself and the ``tokens - 1`` before it. Where a slot is a token's place, that is
    taken away from the mask that is given; the slot of a ring is about the newest token that can be in it, so that
    nothing is needed but ``current_pos``, also beyond the ring's first turn. The masks that slid are inputs no more.
    SetError where a ring is too short for a call to see the window.
    """
    if decoder.window is None:
        return model, decoder
    window, many = decoder.window, decoder.many
    functions = [decoder.one, *([many] if many is not None else [])]
    longest = max(roles.length for roles in functions)
    if window.ring and window.ring < window.tokens + longest - 1:
        raise SetError(
            f"state {window.state!r} keeps {window.ring} tokens, and {longest} new ones that each see "
            f"{window.tokens} need {window.tokens + longest - 1}"
        )
    made = model.clone()
    for roles in functions:
        _write(made.function(roles.name), roles, decoder)
    _forget(made, decoder.one)
    one, *others = (replace(roles, sliding="") for roles in functions)
    return made, replace(decoder, one=one, many=others[0] if others else None)


def _write(function: Function, roles: FunctionRoles, decoder: Decoder) -> None:
    assert decoder.window is not None
    window, slots = decoder.window, decoder.slots
    op = Builder(next(iter(function.operations)), value_names(function))
    mask, place = function.inputs[roles.sliding], function.inputs[roles.place]
    if window.ring:
        near = _near_in_ring(op, place, roles.length, window.tokens, window.ring)
        given: Var | np.float16 = np.float16(0)
    else:
        near = _near(op, place, roles.length, window.tokens, slots)
        given = function.inputs[roles.mask]
    seen = op.select(cond=near, a=given, b=_HIDDEN, name=f"{roles.sliding}_computed")
    replace_uses(mask, seen, after=op.built[-1])
    if window.ring or roles.sliding != roles.mask:
        remove_input(function, roles.sliding)
    if roles.mask not in function.inputs:
        unused_input(function, roles.mask, (1, 1, roles.length, slots), "fp16")


def _near(op: Builder, place: Var, length: int, tokens: int, slots: int) -> Var:
    """bool (1, 1, length, slots): is the slot's token one of the last ``tokens`` up to the row's?"""
    behind = np.arange(length, dtype=np.int32)[:, None] - np.int32(tokens)
    oldest = op.add(x=place, y=behind, name="window_behind")
    near = op.greater(x=np.arange(slots, dtype=np.int32)[None], y=oldest, name="window_near")
    made: Var = op.expand_dims(x=near, axes=[0, 1])
    return made


def _near_in_ring(op: Builder, place: Var, length: int, tokens: int, ring: int) -> Var:
    """bool (1, 1, length, ring): is there a token in the slot, and is it one of the last ``tokens`` up to the row's?

    Of the tokens up to the newest, slot ``j`` has the last one with remainder ``j``: it is ``age`` tokens older.
    """
    newest = op.add(x=place, y=np.array([length - 1], np.int32), name="window_newest")
    distance = op.add(x=newest, y=np.int32(ring) - np.arange(ring, dtype=np.int32))
    age = op.mod(x=distance, y=np.array([ring], np.int32), name="window_age")
    written = op.less_equal(x=age, y=newest, name="window_written")
    later = np.arange(length - 1, -1, -1, dtype=np.int32)[:, None]  # of each row, how many tokens follow it
    row = op.expand_dims(x=age, axes=[0])
    near = op.logical_and(x=op.greater_equal(x=row, y=later), y=op.less(x=row, y=later + np.int32(tokens)))
    near = op.logical_and(x=near, y=op.expand_dims(x=written, axes=[0]), name="window_near")
    made: Var = op.expand_dims(x=near, axes=[0, 1])
    return made


def _forget(model: Model, roles: FunctionRoles) -> None:
    """The package says no more of masks that are not there."""
    model.metadata.pop(WINDOW_KEY, None)
    signature = CacheSignature.from_metadata(model.metadata)
    if signature is not None:
        model.metadata[METADATA_KEY] = replace(signature, masks=(roles.mask,), rings=()).to_json()

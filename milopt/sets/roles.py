"""What the inputs, states and functions of a decoder are for: clients have names of their own for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from milopt.mil import Function, Var, dtype_name, is_state, is_symbolic, shape_of
from milopt.package import Model
from milopt.sets.errors import SetError
from milopt.signature import CacheSignature, windows_of

__all__ = ["Decoder", "FunctionRoles", "decoder_of"]

_TOKENS = ("input_ids", "inputIds", "tokens")
_POSITIONS = ("position_ids", "positionIds", "positions")
_CONVERT = "convert it with --query-lengths 1,64, and run kv-to-state{layout=unified}"


@dataclass(frozen=True)
class FunctionRoles:
    """Of one function, that takes ``length`` tokens: inputs by what they are for; ``positions`` may be empty."""

    name: str
    length: int
    tokens: str
    positions: str
    mask: str
    place: str


@dataclass(frozen=True)
class Decoder:
    """A decoder of fixed shapes with one state of (2 layers, heads, ``slots``, size), keys first.

    ``one`` takes one token, ``many`` several; without such a function it is None.
    """

    one: FunctionRoles
    many: FunctionRoles | None
    state: str
    shape: tuple[int, ...]

    @property
    def layers(self) -> int:
        return self.shape[0] // 2

    @property
    def slots(self) -> int:
        return self.shape[2]


def decoder_of(model: Model, *, batch: int | None = None, several: bool = True) -> Decoder:
    """The roles of a model's functions: the one for one token, and with ``several`` the one for ``batch`` tokens.

    Without ``batch`` it is the longest there is; of functions for several contexts (:mod:`milopt.contexts`) it is those
    of the longest. SetError says in a line what the model lacks, and what makes it so.
    """
    found: dict[int, FunctionRoles] = {}
    for name, function in model.functions.items():
        roles = _roles(name, function)
        known = found.get(roles.length)
        if known is None or _columns(function, roles) > _columns(model.function(known.name), known):
            found[roles.length] = roles
    lengths = ", ".join(map(str, sorted(found)))
    if 1 not in found:
        raise SetError(f"no function takes one token: they take {lengths}; {_CONVERT}")
    longer = sorted(each for each in found if each > 1)
    if several and not longer:
        raise SetError(f"no function takes several tokens at once: {_CONVERT}")
    if batch is not None and batch < 2:
        raise SetError(f"prompts are fed in blocks of 2 tokens or more, not {batch}")
    if batch is not None and batch not in longer:
        raise SetError(f"no function takes {batch} tokens: they take {lengths}")
    one = found[1]
    many = found[batch if batch is not None else longer[-1]] if several else None
    state, shape = _state(model, one.name)
    for each in (one, many):
        if each is not None:
            _check(model, each, state, shape)
    return Decoder(one, many, state, shape)


def _roles(name: str, function: Function) -> FunctionRoles:
    tokens = positions = place = ""
    masks: list[Var] = []
    for key, var in function.inputs.items():
        if is_state(var):
            continue
        shape, kind = shape_of(var), dtype_name(var)
        if any(map(is_symbolic, shape)):
            raise SetError(f"input {key!r} of function {name!r} has an open size, and shapes are fixed: {_CONVERT}")
        if key in _TOKENS and kind == "int32" and len(shape) == 2 and shape[0] == 1:
            tokens = _only(name, "token ids", tokens, key)
        elif key in _POSITIONS and kind == "int32":
            positions = _only(name, "positions", positions, key)
        elif kind == "int32" and shape == (1,):
            place = _only(name, "the place of new tokens", place, key)
        elif kind == "fp16" and len(shape) == 4 and shape[:2] == (1, 1):
            masks.append(var)
        else:
            raise SetError(f"input {key!r} of function {name!r}, {kind} {list(shape)}, is none the client gives")
    if not tokens:
        raise SetError(f"function {name!r} takes no token ids of one sequence: {', '.join(_TOKENS)} are known")
    if len(masks) != 1:
        said = ", ".join(var.name for var in masks) or "none"
        raise SetError(f"the client gives one causal mask, fp16 (1, 1, tokens, slots), and {name!r} takes {said}")
    if not place:
        raise SetError(f"no int32 input of function {name!r} says where new tokens go: {_CONVERT}")
    return FunctionRoles(name, int(shape_of(function.inputs[tokens])[1]), tokens, positions, masks[0].name, place)


def _only(name: str, what: str, known: str, key: str) -> str:
    if known:
        raise SetError(f"function {name!r} takes {known} and {key}: the client gives {what} once")
    return key


def _columns(function: Function, roles: FunctionRoles) -> int:
    """How many slots the function looks at."""
    return int(shape_of(function.inputs[roles.mask])[3])


def _state(model: Model, name: str) -> tuple[str, tuple[int, ...]]:
    states = [var for var in model.function(name).inputs.values() if is_state(var)]
    if len(states) != 1:
        said = f"the program has {', '.join(var.name for var in states)}" if states else "the program has none"
        raise SetError(f"the client keeps one state of all keys and values, and {said}: kv-to-state{{layout=unified}}")
    (state,) = states
    shape, kind = shape_of(state), dtype_name(state)
    if len(shape) != 4 or kind != "fp16" or shape[0] % 2 or any(map(is_symbolic, shape)):
        raise SetError(
            f"state {state.name!r} is {kind} {list(shape)}, not fp16 (2 layers, heads, slots, size): "
            "kv-to-state{layout=unified}"
        )
    for why in _otherwise(model, shape[0] // 2):
        raise SetError(f"{why}, which the client does not know")
    return state.name, tuple(map(int, shape))


def _otherwise(model: Model, layers: int) -> Iterator[str]:
    """What the model says of its cache that a client of one plain state would not expect."""
    signature = CacheSignature.from_metadata(model.metadata)
    if signature is None:
        return
    if signature.rings:
        yield "some layers keep a ring of the newest tokens"
    if signature.axis != 2 or any(slot.axis not in (None, 2) for slot in signature.slots):
        yield "the slots of the cache are in another axis than the third"
    for slot in signature.slots:
        if (
            slot.rows != 1
            or ("key" in slot.past and slot.row >= layers)
            or ("value" in slot.past and slot.row < layers)
        ):
            yield f"the state has not one row for each layer, keys first ({slot.past} is in row {slot.row})"
    windows = windows_of(signature.masks, model.metadata)
    if any(window < signature.context for window in windows.values()):
        yield f"its mask slides ({next(iter(windows.values()))} tokens)"


def _check(model: Model, roles: FunctionRoles, state: str, shape: tuple[int, ...]) -> None:
    inputs = model.function(roles.name).inputs
    if state not in inputs or tuple(shape_of(inputs[state])) != shape:
        raise SetError(f"function {roles.name!r} has not the state {state!r} of {list(shape)}, which all share")
    wanted = (1, 1, roles.length, shape[2])
    if shape_of(inputs[roles.mask]) != wanted:
        raise SetError(
            f"{roles.mask!r} of function {roles.name!r} is {list(shape_of(inputs[roles.mask]))}, not {list(wanted)}"
        )
    if roles.positions and shape_of(inputs[roles.positions]) not in ((1, roles.length), (roles.length,)):
        raise SetError(f"{roles.positions!r} of function {roles.name!r} are not the positions of {roles.length} tokens")

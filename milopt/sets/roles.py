"""What the inputs, states and functions of a decoder are for: clients have names of their own for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from milopt.mil import Function, Var, dtype_name, is_state, is_symbolic, shape_of
from milopt.package import Model
from milopt.sets.errors import SetError
from milopt.signature import CacheSignature, windows_of

__all__ = ["Decoder", "FunctionRoles", "Window", "decoder_of"]

_TOKENS = ("input_ids", "inputIds", "tokens")
_POSITIONS = ("position_ids", "positionIds", "positions")
_CONVERT = "convert it with --query-lengths 1,64, and run kv-to-state{layout=unified}"


@dataclass(frozen=True)
class FunctionRoles:
    """Of one function, that takes ``length`` tokens: inputs by what they are for; ``positions`` may be empty.

    ``sliding`` is the mask of layers that see the newest tokens alone, where there are such: ``mask`` itself where all
    layers do.
    """

    name: str
    length: int
    tokens: str
    positions: str
    mask: str
    place: str
    sliding: str = ""


@dataclass(frozen=True)
class Window:
    """What layers that see the last ``tokens`` alone keep: a ring in a ``state`` of their own, unless it is empty.

    Token ``t`` is in slot ``t mod ring`` of its ``shape``, (2 layers, heads, ring, size), keys first.
    """

    tokens: int
    state: str = ""
    shape: tuple[int, ...] = (0, 0, 0, 0)

    @property
    def ring(self) -> int:
        return self.shape[2]


@dataclass(frozen=True)
class Decoder:
    """A decoder of fixed shapes with one state of (2 layers, heads, ``slots``, size), keys first.

    ``one`` takes one token, ``many`` several; without such a function it is None. Where every layer keeps a ring, the
    name of the state is empty, and its shape has no layers.
    """

    one: FunctionRoles
    many: FunctionRoles | None
    state: str
    shape: tuple[int, ...]
    window: Window | None = None

    @property
    def layers(self) -> int:
        return (self.shape[0] + (self.window.shape[0] if self.window else 0)) // 2

    @property
    def slots(self) -> int:
        return self.shape[2]


def decoder_of(model: Model, *, batch: int | None = None, several: bool = True, windows: bool = False) -> Decoder:
    """The roles of a model's functions: the one for one token, and with ``several`` the one for ``batch`` tokens.

    Without ``batch`` it is the longest there is; of functions for several contexts (:mod:`milopt.contexts`) it is those
    of the longest. With ``windows`` layers may see the newest tokens alone, by a mask of their own, and keep a ring of
    them in a state of their own. SetError says in a line what the model lacks, and what makes it so.
    """
    found: dict[int, FunctionRoles] = {}
    for name, function in model.functions.items():
        roles = _roles(name, function, model if windows else None)
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
    sliding = windows and one.sliding
    made = _windowed(model, one, many) if sliding else Decoder(one, many, *_state(model, one.name))
    for each in (one, many):
        if each is not None:
            _check(model, each, made)
    return made


def _roles(name: str, function: Function, windowed: Model | None) -> FunctionRoles:
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
    sliding = list(_limits([var.name for var in masks], windowed)) if windowed is not None else []
    full = [var.name for var in masks if var.name not in sliding] or sliding
    if len(full) != 1 or len(sliding) > 1:
        said = ", ".join(var.name for var in masks) or "none"
        raise SetError(f"the client gives one causal mask, fp16 (1, 1, tokens, slots), and {name!r} takes {said}")
    if not place:
        raise SetError(f"no int32 input of function {name!r} says where new tokens go: {_CONVERT}")
    length = int(shape_of(function.inputs[tokens])[1])
    return FunctionRoles(name, length, tokens, positions, full[0], place, sliding[0] if sliding else "")


def _limits(masks: Sequence[str], model: Model) -> dict[str, int]:
    """The masks that slide, and how many tokens they show; those that show the whole context do not."""
    signature = CacheSignature.from_metadata(model.metadata)
    context = signature.context if signature is not None else None
    found = windows_of(masks, model.metadata)
    return {mask: window for mask, window in found.items() if context is None or window < context}


def _only(name: str, what: str, known: str, key: str) -> str:
    if known:
        raise SetError(f"function {name!r} takes {known} and {key}: the client gives {what} once")
    return key


def _columns(function: Function, roles: FunctionRoles) -> int:
    """How many slots the function looks at."""
    return int(shape_of(function.inputs[roles.mask])[3])


def _state(model: Model, name: str, *, windows: bool = False) -> tuple[str, tuple[int, ...]]:
    states = _states(model, name)
    if len(states) != 1:
        said = f"the program has {', '.join(states)}" if states else "the program has none"
        raise SetError(f"the client keeps one state of all keys and values, and {said}: kv-to-state{{layout=unified}}")
    (state,) = states
    shapes = _shapes(model, states, windows=windows)
    return state, shapes[state]


def _windowed(model: Model, one: FunctionRoles, many: FunctionRoles | None) -> Decoder:
    """A decoder of which some layers, or all, see the newest tokens alone."""
    signature = CacheSignature.from_metadata(model.metadata)
    tokens = _limits([one.mask, one.sliding], model)[one.sliding]
    rings = {slot.state for slot in signature.slots if slot.ring} if signature is not None else set[str]()
    if signature is None or not rings:
        return Decoder(one, many, *_state(model, one.name, windows=True), Window(tokens))
    states = _states(model, one.name)
    local = [name for name in states if name in rings]
    whole = [name for name in states if name not in rings]
    if len(local) != 1 or len(whole) > 1:
        raise SetError(
            "the client keeps a state of the layers with a window and one of the others, and the program has "
            f"{', '.join(states)}: kv-to-state{{layout=unified,update=ring}}"
        )
    shapes = _shapes(model, states, windows=True)
    window = Window(tokens, local[0], shapes[local[0]])
    if whole:
        return Decoder(one, many, whole[0], shapes[whole[0]], window)
    _, heads, _, size = window.shape
    return Decoder(one, many, "", (0, heads, signature.context, size), window)


def _states(model: Model, name: str) -> dict[str, Var]:
    return {key: var for key, var in model.function(name).inputs.items() if is_state(var)}


def _shapes(model: Model, states: Mapping[str, Var], *, windows: bool) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for name, var in states.items():
        shape, kind = shape_of(var), dtype_name(var)
        if len(shape) != 4 or kind != "fp16" or shape[0] % 2 or any(map(is_symbolic, shape)):
            raise SetError(
                f"state {name!r} is {kind} {list(shape)}, not fp16 (2 layers, heads, slots, size): "
                "kv-to-state{layout=unified}"
            )
        found[name] = tuple(map(int, shape))
    for why in _otherwise(model, {name: shape[0] // 2 for name, shape in found.items()}, windows=windows):
        raise SetError(f"{why}, which the client does not know")
    return found


def _otherwise(model: Model, layers: Mapping[str, int], *, windows: bool) -> Iterator[str]:
    """What the model says of its cache that a client of plain states, of so many layers each, would not expect."""
    signature = CacheSignature.from_metadata(model.metadata)
    if signature is None:
        return
    if signature.rings and not windows:
        yield "some layers keep a ring of the newest tokens"
    if signature.axis != 2 or any(slot.axis not in (None, 2) for slot in signature.slots):
        yield "the slots of the cache are in another axis than the third"
    for slot in signature.slots:
        keys = layers.get(slot.state, 0)
        if slot.rows != 1 or ("key" in slot.past and slot.row >= keys) or ("value" in slot.past and slot.row < keys):
            yield f"the state has not one row for each layer, keys first ({slot.past} is in row {slot.row})"
    limits = windows_of(signature.masks, model.metadata)
    if not windows and any(window < signature.context for window in limits.values()):
        yield f"its mask slides ({next(iter(limits.values()))} tokens)"


def _check(model: Model, roles: FunctionRoles, made: Decoder) -> None:
    inputs, slots = model.function(roles.name).inputs, {roles.mask: made.slots}
    states = {made.state: made.shape}
    if made.window is not None:
        states[made.window.state] = made.window.shape
        slots[roles.sliding] = made.window.ring or made.slots
    for state, shape in states.items():
        if state and (state not in inputs or tuple(shape_of(inputs[state])) != shape):
            raise SetError(f"function {roles.name!r} has not the state {state!r} of {list(shape)}, which all share")
    for mask, columns in slots.items():
        wanted = (1, 1, roles.length, columns)
        if shape_of(inputs[mask]) != wanted:
            raise SetError(f"{mask!r} of function {roles.name!r} is {list(shape_of(inputs[mask]))}, not {list(wanted)}")
    if roles.positions and shape_of(inputs[roles.positions]) not in ((1, roles.length), (roles.length,)):
        raise SetError(f"{roles.positions!r} of function {roles.name!r} are not the positions of {roles.length} tokens")

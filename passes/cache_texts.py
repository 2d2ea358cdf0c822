"""What a model says of the inputs and outputs of its cache, before and after that becomes states, or the other way."""

from __future__ import annotations

from milopt.mil import shape_of
from milopt.package import Model
from milopt.signature import CacheSignature, outer

__all__ = ["describe_pasts", "describe_states", "taken_texts"]


def taken_texts(model: Model, signature: CacheSignature) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """What the model says of inputs and outputs that go, or whose meaning changes, for the way back.

    Each text with the inputs and outputs that it describes.
    """
    names = dict.fromkeys(outer(each) for slot in signature.slots for each in (slot.past, slot.present))
    said: dict[str, list[str]] = {}
    for name in (*names, *signature.masks):
        texts = (model.text_of(function, name) for function in model.functions)
        if text := next((each for each in texts if each), ""):
            said.setdefault(text, []).append(name)
    return tuple((text, tuple(those)) for text, those in said.items())


def describe_states(model: Model, function: str, signature: CacheSignature) -> None:
    """Say what masks and the position mean now, behind what was said of them."""
    position, rings = signature.counts or signature.position, dict(signature.rings)
    if not signature.prefix:
        for mask in signature.masks:
            old, new = model.text_of(function, mask), _mask_text(signature, rings.get(mask), position)
            model.describe(function, mask, f"{old} (since kv-to-state: m{new[1:-1]})" if old else new)
    if signature.position:
        model.describe(function, position, _position_text(signature))


def _mask_text(signature: CacheSignature, ring: int | None, position: str) -> str:
    if ring is not None:
        return (
            f"Mask over the {ring} slots of a ring: token t is in slot t mod {ring}, and column j is about the "
            f"newest token t < {position} + Q with t mod {ring} = j, if there is one."
        )
    return (
        f"Mask over the {signature.context} slots of the states: column j is slot j, and the new tokens are "
        f"slots {position} and following."
    )


def _position_text(signature: CacheSignature) -> str:
    rings = [slot.ring for slot in signature.slots if slot.ring]
    if len(rings) == len(signature.slots):
        return "The position of the first new token, counted from 0; its slot is the remainder by the ring's size."
    slot = "The first slot the new tokens are written to"
    text = f"{slot}; {signature.position} + Q must not exceed {signature.context}."
    return f"{text} Their slots in a ring are the remainders by its size." if rings else text


def describe_pasts(model: Model, function: str, signature: CacheSignature, *, own: bool) -> None:
    """Say again what was said before kv-to-state; of a program that is not its ``own`` work, what mask columns are."""
    texts = {name: text for text, names in signature.texts for name in names}
    for name in dict.fromkeys(outer(each) for slot in signature.slots for each in (slot.past, slot.present)):
        if name in texts:
            model.describe(function, name, texts[name])
    if signature.prefix:
        return
    for name in signature.masks:
        columns = shape_of(model.functions[function].inputs[name])[-1]
        text = f"Mask over the columns [past | new] of the cache: {columns}."
        if own:
            model.describe(function, name, texts.get(name, "" if texts else text))
        else:
            model.describe(function, name, f"{model.text_of(function, name)} {text}".lstrip())

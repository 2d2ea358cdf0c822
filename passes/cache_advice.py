"""What is known to go wrong with states on devices: one line each, with the constraint's number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from milopt.mil import Function, is_state, shape_of
from milopt.signature import CacheSignature

__all__ = ["advice"]

# Constraints S4, S6: what third parties measured on the Neural Engine; advice, never a reason to refuse.
_STATES = 2
_MULTIPLE = 32


def advice(functions: Mapping[str, Function], signature: CacheSignature) -> list[str]:
    """Notes on the states of a model whose functions all have the same; none where nothing is known against them."""
    first = next(iter(functions.values()))
    states = {name: shape_of(var) for name, var in first.inputs.items() if is_state(var)}
    found: list[str] = []
    if len(states) > _STATES:
        found.append(f"S4: {len(states)} states; with more than {_STATES} the Neural Engine fails at prediction")
    if len(shapes := {shape[1:] for shape in states.values()}) > 1:
        found.append(f"S5: states of {len(shapes)} different shapes fail on the Neural Engine of M1 and A14")
    odd = "S6: {} slots are no multiple of {}, and the Neural Engine may not load the model"
    return [*found, *(odd.format(size, _MULTIPLE) for size in _odd(signature))]


def _odd(signature: CacheSignature) -> Iterable[int]:
    sizes = dict.fromkeys(slot.ring or signature.context for slot in signature.slots)
    return [size for size in sizes if size % _MULTIPLE]

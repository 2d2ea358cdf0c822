"""The contracts: names, element types, shapes, ranges, states and metadata that a client looks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from milopt.errors import MiloptError
from milopt.signature import CacheSignature, CacheSlot

if TYPE_CHECKING:
    from milopt.interpreter import Plan

__all__ = ["APPLE", "Contract", "Tensor", "contract_named", "contract_names", "recognised"]


@dataclass(frozen=True)
class Tensor:
    """An input, an output or a state. Sizes are numbers or names; those of one name are equal.

    ``without`` is what becomes of a client that does not find it.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    without: str


@dataclass(frozen=True)
class Contract:
    """What one kind of client expects of the default function of a package.

    Each call is given ``tokens`` and ``mask``, and row ``q - 1`` of ``logits`` is read. The new tokens go to slots
    ``[end - q, end)`` of the states ``keys`` and ``values``, where ``end`` is the number of the mask's columns; sizes
    in ``ranged`` may be anything from 1 to the states' number of slots. ``metadata`` are keys, each with what becomes
    of a client that misses it. ``source`` is where all this is written.
    """

    name: str
    client: str
    source: str
    tokens: Tensor
    mask: Tensor
    logits: Tensor
    keys: Tensor
    values: Tensor
    ranged: tuple[str, ...]
    metadata: Mapping[str, str]

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return self.tokens, self.mask

    @property
    def states(self) -> tuple[Tensor, ...]:
        return self.keys, self.values


_CACHE = ("layers", "batch", "heads", "context", "size")
_STOPS = "the client stops: it is stateful only with both keyCache and valueCache (LanguageModel.swift)"

APPLE = Contract(
    name="apple",
    client="swift-transformers 1.3, swift-chat, and Apple's On Device Llama 3.1 with Core ML",
    source="huggingface/swift-transformers Sources/Models/LanguageModel.swift; Examples/Mistral7B/export.py",
    tokens=Tensor("inputIds", "int32", (1, "query"), "the client stops: it finds no input for the tokens"),
    mask=Tensor(
        "causalMask", "fp16", (1, 1, "rows", "end"), "the client never says how many tokens there are: no slot is known"
    ),
    logits=Tensor("logits", "fp16", (1, "query", "vocabulary"), "the client stops: it finds no scores"),
    keys=Tensor("keyCache", "fp16", _CACHE, _STOPS),
    values=Tensor("valueCache", "fp16", _CACHE, _STOPS),
    ranged=("query", "rows", "end"),
    metadata={
        "co.huggingface.exporters.name": "the client finds no tokenizer and stops: models must have a name that "
        "identifies them",
    },
)

_CONTRACTS = {each.name: each for each in (APPLE,)}


def contract_names() -> tuple[str, ...]:
    """The names of all contracts."""
    return tuple(_CONTRACTS)


def contract_named(name: str) -> Contract:
    """MiloptError, with the names there are, for an unknown one."""
    if name not in _CONTRACTS:
        raise MiloptError(f"there is no contract named {name!r}; there is: {', '.join(_CONTRACTS)}")
    return _CONTRACTS[name]


def recognised(plans: Mapping[str, Plan]) -> CacheSignature | None:
    """The cache of a program of one function that keeps a contract by its names, whoever made it; else ``None``."""
    if len(plans) != 1:
        return None
    (plan,) = plans.values()
    return next((found for each in _CONTRACTS.values() if (found := _signature(plan, each)) is not None), None)


def _signature(plan: Plan, contract: Contract) -> CacheSignature | None:
    keys, values = (plan.states.get(each.name) for each in contract.states)
    if keys is None or values is None or set(plan.inputs) != {each.name for each in contract.inputs}:
        return None
    shape = tuple(dim for dim in keys.shape or () if isinstance(dim, int))
    if len(shape) != len(contract.keys.shape) or len(values.shape or ()) != len(shape):
        return None
    layers, batch, _, context, _ = shape
    slots = tuple(
        CacheSlot(f"past_{kind}_{layer}", f"present_{kind}_{layer}", state.name, layer * batch, batch)
        for layer in range(layers)
        for kind, state in (("key", contract.keys), ("value", contract.values))
    )
    return CacheSignature(slots, "", (contract.mask.name,), context, axis=2, prefix=True, stacked=True)

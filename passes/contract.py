"""A language model as the clients that exist expect it: their names, their shapes, their states, their metadata."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from milopt.contracts.styles import Contract, contract_named
from milopt.mil import Function, Var, dtype_name, is_symbolic, shape_of, target
from milopt.package import Model
from milopt.passes.cache import KvToState
from milopt.passes.cache_pairs import find_pairs, kind_of
from milopt.passes.contract_writing import TRACE, Roles, rewrite, writes_of
from milopt.pipeline import Pass
from milopt.reports import NoMatch, Report, require, require_opset
from milopt.signature import METADATA_KEY, WINDOW_KEY, CacheSignature, windows_of

__all__ = ["CONTRACT_KEY", "ClientContract"]

CONTRACT_KEY = "milopt.contract"
"""Metadata: which client's contract a package keeps."""

_TOKENS = ("input_ids", "inputIds", "tokens")
_POSITIONS = ("position_ids", "positionIds", "positions")
_SOURCE_KEY = "milopt.source"
# Contracts that are of several files: no rewrite of one program keeps them.
_FOLDERS = ("anemll", "coreml-llm")
_RANGED = "its shapes are fixed, and a client feeds any number of tokens: convert it with --shapes ranged"


@dataclass(frozen=True)
class ClientContract(Pass):
    """A decoder of ranged shapes  ->  the names, states, ranges and metadata that a kind of client expects.

    ``style="apple"`` is what swift-transformers, swift-chat and Apple's On Device Llama use: inputs ``inputIds`` int32
    (1, q) and ``causalMask`` fp16 (1, 1, q, end), output ``logits`` fp16 (1, q, V), states ``keyCache`` and
    ``valueCache`` fp16 (layers, 1, heads, context, D), every range from 1 to the context. The new tokens go to slots
    ``[end - q, end)``. Caches that are inputs and outputs become states first, as by ``kv-to-state``, with ``context``
    slots (those that it was converted for, without one). ``hub`` is the model's name on the Hub, ``ORG/NAME``, by
    which clients find the tokenizer.

    Clients send a mask of zeros, with one row, and some with a column too many, so that the first slot is never
    written. Therefore the program itself hides from a token all later ones, all slots before the first that was ever
    written, and, in layers of a sliding window, what is too old; the mask given is added to what is left. Positions are
    counted from the first slot written: a program that took them as an input does not any more.

    A slot counts as written where the keys of the first layer are not all zero. A conversation's first token whose keys
    are all zero gets 2^-24, the smallest fp16 number, in one of them.

    Clients with ``style="anemll"`` and ``"coreml-llm"`` load folders, which the command ``milopt contract`` writes.

    All or nothing is rewritten:

    1. the program has one function, of iOS18 or later, that is called with any number of tokens;
    2. its inputs are tokens, positions, masks and the cache: keys and values of every layer, fp16, (1, H, S, D);
    3. it returns fp16 logits of all tokens, called ``logits``;
    4. a cache in states must read a prefix, in a pair of states written by ``slice_update``.
    """

    name: ClassVar[str] = "contract"
    after: ClassVar[tuple[str, ...]] = ("canonicalize", "fp16-safe-norm", "rope-table", "fuse-sdpa", "kv-to-state")
    opset: ClassVar[int] = 9

    style: Literal["apple", "anemll", "coreml-llm"] = "apple"
    hub: str = ""
    context: int = 0

    def run(self, model: Model) -> Report:
        report, name, function = Report(self.name, tried=1), model.default_function, model.function()
        if self.style in _FOLDERS:
            text = "the {} contract is of a folder, which milopt contract --style {} writes"
            report.decline(name, "", text, self.style, self.style)
            return report
        contract = contract_named(self.style)
        if model.metadata.get(CONTRACT_KEY) == contract.name:
            report.notes.append(f"{name}: it keeps the {contract.name} contract already")
            return report
        try:
            signature = CacheSignature.from_metadata(model.metadata)
            roles = self._roles(model, function, signature)
            if signature is None:
                signature = self._with_states(model, function, report)
        except NoMatch as why:
            report.decline(name, why.at, why.text, *why.arguments)
            return report
        if signature is None:
            return report
        roles = replace(roles, counter=signature.position)
        rewrite(function, contract, roles, signature.context)
        report.applied = 1
        report.signature = _signed(signature, contract, roles)
        self._tell(model, name, contract, report.signature, report)
        return report

    def _roles(self, model: Model, function: Function, signature: CacheSignature | None) -> Roles:
        require(not model.aside, "the pass runs on some functions only, and the contract is of all")
        count = len(model.functions)
        require(count == 1, "the client calls one function, and there are {}: {}", count, ", ".join(model.functions))
        require_opset(function.opset_version, target.iOS18)
        if signature is None:
            cached = _check_pasts(function)
            presents = {pair.present for pair in find_pairs(function)}
        else:
            cached, presents = _check_states(function, signature), set[str]()
            if signature.position:
                cached.add(signature.position)
        roles = _inputs(function, cached, model)
        _check_logits(function, presents)
        return roles

    def _with_states(self, model: Model, function: Function, report: Report) -> CacheSignature | None:
        """The signature of the program after its cache became states; ``None``, with the reasons, where it can't."""
        position = next(name for name in _free("current_pos") if name not in function.inputs)
        made = KvToState(context=self.context, position=position).run(model)
        report.misses += made.misses
        report.notes += made.notes
        return made.signature

    def _tell(self, model: Model, name: str, contract: Contract, signature: CacheSignature, report: Report) -> None:
        """What the package says of itself."""
        context = signature.context
        texts = {
            contract.tokens.name: "Ids of the new tokens.",
            contract.mask.name: "Added to the attention scores; zeros will do, in one row. Its number of columns, end, "
            f"says where the q new tokens go: slots [end - q, end) of {context}. What comes later than a token, and "
            "slots that were never written, are hidden by the program itself.",
            contract.logits.name: "Scores of the next token after every new token.",
        }
        for feature, text in texts.items():
            model.describe(name, feature, text)
        if model.metadata.pop(WINDOW_KEY, None) is not None:
            report.notes.append("the sliding window is part of the program now: the mask given says nothing of it")
        model.metadata[METADATA_KEY] = signature.to_json()
        model.metadata[CONTRACT_KEY] = contract.name
        for key in contract.metadata:
            known = self.hub or model.metadata.get(key) or model.metadata.get(_SOURCE_KEY, "")
            model.metadata[key] = known or name
            if "/" not in known:
                report.notes.append(
                    f"{key} is {model.metadata[key]!r}, which is no name on the Hub: say hub=ORG/NAME, by which "
                    "clients find the tokenizer"
                )


def _free(stem: str) -> Iterable[str]:
    yield stem
    number = 0
    while True:
        number += 1
        yield f"{stem}_{number}"


def _check_pasts(function: Function) -> set[str]:
    """The inputs that hold the past."""
    pairs = list(find_pairs(function))
    require(pairs, "there is no cache: no output is a concat of an input and something new")
    kinds = [kind_of(pair.var) for pair in pairs]
    for pair, kind in zip(pairs, kinds, strict=True):
        require(is_symbolic(pair.columns) and is_symbolic(pair.query), _RANGED, at=pair.var)
        shape = shape_of(pair.var)
        plain = len(shape) == 4 and shape[0] == 1 and pair.axis == 2
        require(
            plain, "the cache is {} with slots in axis {}, not (1, heads, slots, size)", shape, pair.axis, at=pair.var
        )
        require(kind in ("key", "value"), "is it a key or a value?", at=pair.var)
    keys, values = kinds.count("key"), kinds.count("value")
    require(keys == values, "{} layers have keys, and {} values", keys, values)
    return {pair.past for pair in pairs}


def _check_states(function: Function, signature: CacheSignature) -> set[str]:
    """The states, which are as ``kv-to-state{read=prefix}`` makes them."""
    states = {slot.state for slot in signature.slots}
    require(signature.prefix, _RANGED if not signature.rings else "its sliding layers are rings: {}", _RANGED)
    require(not signature.counts, "input {} counts slots, and a client's first slot may not be 0", signature.counts)
    names = ", ".join(sorted(states))
    require(states == {"key_cache", "value_cache"}, "its states are {}: kv-to-state{{layout=pair}}", names)
    plain = signature.axis == 2 and all(slot.axis is None and slot.rows == 1 for slot in signature.slots)
    require(plain, "the cache is not (1, heads, slots, size)")
    for state in sorted(states):
        writes_of(function, state)
    return states


def _inputs(function: Function, cached: set[str], model: Model) -> Roles:
    """What each of the other inputs is for."""
    tokens, positions, masks = "", "", list[str]()
    for name, var in function.inputs.items():
        if name in cached:
            continue
        kind, shape = dtype_name(var), shape_of(var)
        if kind == "int32" and (name in _TOKENS or name in _POSITIONS):
            require(len(shape) == 2 and shape[0] == 1, "is {}: the client feeds one sequence", shape, at=var)
            require(is_symbolic(shape[1]), _RANGED, at=var)
            tokens, positions = (name, positions) if name in _TOKENS else (tokens, name)
            continue
        is_mask = kind == "fp16" and len(shape) == 4 and shape[:2] == (1, 1) and is_symbolic(shape[3])
        require(is_mask, "the client gives no {} {}", kind, shape, at=var)
        masks.append(name)
    require(tokens, "no input takes token ids: {} are known", ", ".join(_TOKENS))
    require(masks, "no mask tells how many columns there are")
    windows = windows_of(masks, model.metadata)
    full = [name for name in masks if name not in windows]
    told = len(masks) == 1 or (len(masks) == 2 and len(full) == 1)
    require(told, "it takes {} masks, and the client has one: {}", len(masks), ", ".join(masks))
    main = full[0] if full else masks[0]
    return Roles(tokens, positions, main, tuple((name, windows.get(name, 0)) for name in masks))


def _check_logits(function: Function, presents: set[str]) -> None:
    outputs: list[Var] = [var for var in function.outputs if var.name not in presents]
    names = [var.name for var in outputs]
    require(names == ["logits"], "the client reads logits alone, and it returns {}", ", ".join(names))
    (logits,) = outputs
    shape, kind = shape_of(logits), dtype_name(logits)
    require(kind == "fp16", "the client reads fp16, and these are {}", kind, at=logits)
    rows = len(shape) == 3 and is_symbolic(shape[1]) and not is_symbolic(shape[2])
    require(rows, "the client reads row q - 1 of (1, q, vocabulary), and these are {}: --logits all", shape, at=logits)


def _signed(signature: CacheSignature, contract: Contract, roles: Roles) -> CacheSignature:
    states = {"key_cache": contract.keys.name, "value_cache": contract.values.name}
    others = [name for name, _ in roles.masks if name != roles.mask]
    return replace(
        signature,
        slots=tuple(replace(slot, state=states[slot.state]) for slot in signature.slots),
        position="",
        masks=(contract.mask.name,),
        stacked=True,
        trace=TRACE,
        renamed=(
            (roles.tokens, contract.tokens.name),
            *((name, "") for name in (roles.positions,) if name),
            *((name, contract.mask.name) for name in (*others, roles.mask)),
        ),
    )

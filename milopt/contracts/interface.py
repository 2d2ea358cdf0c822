"""What can be checked without running a package: names, element types, shapes, ranges, states, metadata."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

from milopt.contracts.findings import Finding
from milopt.contracts.styles import Contract, Tensor
from milopt.errors import PackageError
from milopt.inspection.features import Feature
from milopt.inspection.functions import FunctionFacts, facts_of
from milopt.mil import Target
from milopt.package import Model
from milopt.package.describing import build_description

__all__ = ["interface_findings"]

_ARRAY_TYPES = {"fp16": "float16", "int32": "int32"}
_FIRST = Target.iOS18
# A client refuses an input of no more sizes than this (LanguageModel.swift).
_FEWEST_SIZES = 1


def interface_findings(model: Model, contract: Contract) -> list[Finding]:
    """One finding for everything that the contract names, in the order a client meets it."""
    found = [_version(model), *_metadata(model, contract)]
    described = copy.copy(model)
    try:
        described.description = build_description(model)
    except PackageError as error:
        found.append(Finding("description", False, f"Core ML can't be told of it: {error}"))
    facts = facts_of(described, model.default_function)
    found += _inputs(facts, contract)
    found += _states(facts, contract)
    found += _logits(facts, contract)
    context = _context(facts, contract)
    if context is not None:
        found += _ranges(facts, contract, context)
    return found


def _version(model: Model) -> Finding:
    functions = list(model.functions)
    if model.spec_version < _FIRST:
        text = f"specification version {model.spec_version}: states need {int(_FIRST)} ({_FIRST.name})"
        return Finding("version", False, text)
    if len(functions) > 1:
        text = f"{len(functions)} functions, and the client calls {model.default_function!r} alone"
        return Finding("version", False, text)
    return Finding("version", True, f"specification version {model.spec_version}, one function")


def _metadata(model: Model, contract: Contract) -> Iterator[Finding]:
    for key, without in contract.metadata.items():
        value = model.metadata.get(key, "").strip()
        if not value:
            yield Finding(f"metadata {key}", False, f"it is not there: {without}")
        elif "/" not in value:
            yield Finding(f"metadata {key}", True, f"{value!r}: no name on the Hub, so the client needs the tokenizer")
        else:
            yield Finding(f"metadata {key}", True, repr(value))


def _inputs(facts: FunctionFacts, contract: Contract) -> Iterator[Finding]:
    wanted = {each.name for each in contract.inputs}
    for tensor in contract.inputs:
        yield _tensor("input", tensor, facts.inputs)
    for extra in facts.inputs:
        if extra.name not in wanted and not extra.optional:
            text = f"{_text(extra)}: the client gives no such input, and each prediction fails"
            yield Finding(f"input {extra.name}", False, text)


def _states(facts: FunctionFacts, contract: Contract) -> Iterator[Finding]:
    wanted = {each.name for each in contract.states}
    for tensor in contract.states:
        yield _tensor("state", tensor, facts.states)
    for extra in facts.states:
        if extra.name not in wanted:
            yield Finding(f"state {extra.name}", False, f"{_text(extra)}: the contract has no such state")
    both = [each for each in facts.states if each.name in wanted]
    if len(both) == len(wanted):
        same = len({(each.shape[:2], each.shape[3:4]) for each in both}) == 1
        text = "as many layers, sequences and slots" if same else "the states differ in layers, sequences or slots"
        yield Finding("states together", same, text)


def _logits(facts: FunctionFacts, contract: Contract) -> Iterator[Finding]:
    yield _tensor("output", contract.logits, facts.outputs)


def _tensor(what: str, tensor: Tensor, features: Sequence[Feature]) -> Finding:
    """Whether it is there, of the right type, and of a shape whose named sizes are numbers or open as they must be."""
    check = f"{what} {tensor.name}"
    feature = next((each for each in features if each.name == tensor.name), None)
    if feature is None:
        names = ", ".join(each.name for each in features) or "none"
        return Finding(check, False, f"it is not among: {names}; {tensor.without}")
    wanted = f"{tensor.dtype} ({', '.join(map(str, tensor.shape))})"
    if feature.dtype != tensor.dtype:
        return Finding(check, False, f"{_text(feature)}, not {wanted}: the client's arrays don't fit")
    if feature.array_type not in ("", _ARRAY_TYPES[tensor.dtype]):
        text = f"{_text(feature)}, described as {feature.array_type}: Core ML refuses to load the package"
        return Finding(check, False, text)
    if len(feature.shape) != len(tensor.shape):
        text = f"{_text(feature)}, not {wanted}: the client reads another axis than it means to"
        return Finding(check, False, text)
    for size, want in zip(feature.shape, tensor.shape, strict=True):
        if isinstance(want, int) and size != want:
            return Finding(check, False, f"{_text(feature)}, not {wanted}: the client's arrays don't fit")
        if want in ("query", "end") and size is not None:
            text = f"{_text(feature)}: {want} is fixed, and the client stops: expecting ranged query sequence length"
            return Finding(check, False, text)
    return Finding(check, True, _text(feature))


def _context(facts: FunctionFacts, contract: Contract) -> int | None:
    """How many slots the states have."""
    axis = contract.keys.shape.index("context")
    for each in facts.states:
        if each.name == contract.keys.name and len(each.shape) == len(contract.keys.shape):
            return each.shape[axis]
    return None


def _ranges(facts: FunctionFacts, contract: Contract, context: int) -> Iterator[Finding]:
    """From 1 to the context wherever a client chooses a size."""
    features = {each.name: each for each in facts.inputs}
    for tensor in contract.inputs:
        feature = features.get(tensor.name)
        if feature is None or len(feature.shape) != len(tensor.shape):
            continue
        for axis, size in enumerate(tensor.shape):
            if size in contract.ranged and feature.shape[axis] is None:
                passed, text = _range(feature, axis, context)
                yield Finding(f"range of {size} in {tensor.name}", passed, text)


def _range(feature: Feature, axis: int, context: int) -> tuple[bool, str]:
    if feature.shapes:
        return False, "its shapes are enumerated: the client takes the first of them for the only one"
    if axis >= len(feature.ranges):
        return False, "no range is given: Core ML takes the default shape alone"
    low, high = feature.ranges[axis]
    text = f"{low} to {'any' if high is None else high}"
    if high is not None and high - low <= _FEWEST_SIZES:
        return False, f"{text}: the client stops: expecting ranged query sequence length"
    if low > 1:
        return False, f"{text}: the client's first calls have 1, and fail"
    if high is None or high > context:
        return False, f"{text}, and the states have {context} slots: the client goes on beyond them"
    if high < context:
        return False, f"{text}, and the states have {context} slots: the client never fills them"
    return True, text


def _text(feature: Feature) -> str:
    return f"{feature.dtype} ({', '.join('?' if size is None else str(size) for size in feature.shape)})"

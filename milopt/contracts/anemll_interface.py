"""What can be checked of a set in ANEMLL's form without running it: functions, names, types, shapes, the states."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from milopt.contracts.anemll_head import head_finding
from milopt.contracts.anemll_reading import AnemllFolder
from milopt.contracts.anemll_states import function_names, state_findings
from milopt.contracts.findings import Finding
from milopt.errors import PackageError
from milopt.inspection.functions import facts_of
from milopt.mil import Target
from milopt.package import Model
from milopt.package.describing import build_description
from milopt.sets.deployment import interface

__all__ = ["interface_findings"]

_FIRST = Target.iOS18
_KEYS = ("context_length", "batch_size", "num_chunks")


def interface_findings(folder: AnemllFolder) -> list[Finding]:
    """One finding for each package and function, in the order the client meets them."""
    names = folder.parameters.names
    models = (folder.embeddings, *folder.chunks, folder.head)
    found = [_version(name, model) for name, model in zip(names, models, strict=True)]
    width, finding = _embeddings(folder, names[0])
    found.append(finding)
    for name, model in zip(names[1:-1], folder.chunks, strict=True):
        found += _chunk(folder, name, model, width)
    found += state_findings(folder, names[1:-1])
    found.append(head_finding(folder, names[-1], width))
    for at, (name, model) in enumerate(zip(names, models, strict=True)):
        found += _metadata(folder, name, model, at if 0 < at < len(models) - 1 else 0)
    return found


def _version(name: str, model: Model) -> Finding:
    if model.spec_version < _FIRST:
        text = f"specification version {model.spec_version}: functions and states need {int(_FIRST)} ({_FIRST.name})"
        return Finding(f"version of {name}", False, text)
    return Finding(f"version of {name}", True, f"specification version {model.spec_version}")


def _embeddings(folder: AnemllFolder, name: str) -> tuple[int | None, Finding]:
    """How wide hidden_states are, and whether tokens can be fed one by one and in blocks."""
    check, function = f"{name}", folder.embeddings.default_function
    known, batch = interface(folder.embeddings, function), folder.parameters.batch
    if list(known["inputs"]) != ["input_ids"] or "hidden_states" not in known["outputs"]:
        text = f"it takes {_listed(known['inputs'])} and gives {_listed(known['outputs'])}: the client gives input_ids"
        return None, Finding(check, False, f"{text} and reads hidden_states")
    kind, *shape = known["outputs"]["hidden_states"]
    width = shape[-1] if shape and isinstance(shape[-1], int) else None
    if kind != "fp16" or len(shape) != 3 or width is None:
        return None, Finding(check, False, f"hidden_states are {kind} {shape}, not fp16 (1, T, H)")
    if known["inputs"]["input_ids"][0] != "int32":
        return width, Finding(check, False, f"input_ids are {known['inputs']['input_ids'][0]}, not int32")
    shapes = _shapes(folder.embeddings, function)
    wanted = {(1, 1), (1, batch)}
    if shapes != wanted:
        said = ", ".join(map(str, sorted(shapes))) or "none"
        text = f"input_ids take {said}: the client gives (1, 1), and blocks of (1, {batch})"
        return width, Finding(check, False, text)
    return width, Finding(check, True, f"input_ids int32 (1, 1) or (1, {batch}) -> hidden_states fp16 (1, T, {width})")


def _shapes(model: Model, function: str) -> set[tuple[int, ...]]:
    """The shapes that the description lists for ``input_ids``."""
    described = copy.copy(model)
    try:
        described.description = build_description(model)
    except PackageError:
        return set()
    (feature,) = (each for each in facts_of(described, function).inputs if each.name == "input_ids")
    fixed = tuple(dim for dim in feature.shape if dim is not None)
    return set(feature.shapes) or ({fixed} if len(fixed) == len(feature.shape) else set())


def _chunk(folder: AnemllFolder, name: str, model: Model, width: int | None) -> Iterator[Finding]:
    context, batch = folder.parameters.context, folder.parameters.batch
    for function in function_names(folder):
        check, length = f"{function} of {name}", 1 if function.startswith("infer") else batch
        if function not in model.functions:
            yield Finding(check, False, f"there is no such function: it has {', '.join(model.functions)}")
            continue
        wanted: dict[str, list[Any]] = {
            "hidden_states": ["fp16", 1, length, width],
            "position_ids": ["int32", length],
            "causal_mask": ["fp16", 1, 1, length, context],
            "current_pos": ["int32", 1],
        }
        known = interface(model, function)
        wrong = _wrong("input", known["inputs"], wanted)
        wrong += _wrong("output", known["outputs"], {"output_hidden_states": ["fp16", 1, length, width]}, more=True)
        yield from (Finding(check, False, each) for each in wrong)
        if not wrong:
            yield Finding(check, True, f"4 inputs and output_hidden_states for {length} of {context} tokens")


def _wrong(
    what: str, known: Mapping[str, list[Any]], wanted: Mapping[str, list[Any]], *, more: bool = False
) -> list[str]:
    """What the client gives or reads, and what is there instead; it cares about no ``more`` outputs."""
    found: list[str] = []
    for name, kind in wanted.items():
        if name not in known:
            found.append(f"{what} {name} is not among: {_listed(known)}; the client's call fails")
        elif known[name] != kind and None not in kind:
            found.append(f"{what} {name} is {_text(known[name])}, not {_text(kind)}: the client's arrays don't fit")
    if not more:
        found += [
            f"{what} {name}, {_text(kind)}, is none the client gives: its call fails"
            for name, kind in known.items()
            if name not in wanted
        ]
    return found


def _metadata(folder: AnemllFolder, name: str, model: Model, chunk: int) -> Iterator[Finding]:
    said = folder.parameters
    wanted: dict[str, str] = dict(zip(_KEYS, map(str, (said.context, said.batch, said.chunks)), strict=True))
    functions = function_names(folder)
    if chunk:
        wanted |= {"chunk_no": str(chunk), "functions": ",".join(functions)}
    if said.argmax and model is folder.head:
        wanted["argmax_in_model"] = "true"
    for key, value in wanted.items():
        own = model.metadata.get(f"com.anemll.{key}")
        if key == "functions" and own is not None and set(own.split(",")) == set(functions):
            continue
        if own != value:
            text = "it is not there" if own is None else f"it is {own!r}"
            yield Finding(f"metadata of {name}", False, f"com.anemll.{key}: {text}, and the set's is {value!r}")
            return
    yield Finding(f"metadata of {name}", True, ", ".join(f"{key} {value}" for key, value in wanted.items()))


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(names) or "nothing"


def _text(kind: list[Any]) -> str:
    return f"{kind[0]} ({', '.join(map(str, kind[1:]))})"

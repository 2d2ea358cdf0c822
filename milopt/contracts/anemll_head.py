"""What ANEMLL's client reads of a head: logits in slices, or the largest of each slice and its place there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from milopt.contracts.anemll_reading import AnemllFolder, Parameters
from milopt.contracts.findings import Finding
from milopt.package import Model
from milopt.sets.anemll_argmax import chosen_sizes
from milopt.sets.anemll_running import ARGMAX, logits_names
from milopt.sets.deployment import interface

__all__ = ["head_finding", "head_words"]


def head_finding(folder: AnemllFolder, name: str, width: int | None) -> Finding:
    """The head's input, of ``width``, and its outputs, held against ``meta.yaml``."""
    known = interface(folder.head, folder.head.default_function)
    inputs, wanted = known["inputs"], ["fp16", 1, 1, width]
    if list(inputs) != ["hidden_states"]:
        return Finding(name, False, f"it takes {_listed(inputs)}, and the client gives hidden_states: its call fails")
    if width is not None and inputs["hidden_states"] != wanted:
        text = f"hidden_states are {inputs['hidden_states']}, not {wanted}: the client's arrays don't fit"
        return Finding(name, False, text)
    if folder.parameters.argmax:
        return _chosen(folder.head, folder.parameters, name, known["outputs"])
    return _logits(folder.parameters, name, width, known["outputs"])


def head_words(folder: AnemllFolder) -> int:
    """The size of the vocabulary, as far as the outputs tell it that :func:`head_finding` looks for."""
    if folder.parameters.argmax:
        return sum(folder.parameters.layout)
    outputs = interface(folder.head, folder.head.default_function)["outputs"]
    kinds = [outputs[each] for each in logits_names(outputs, folder.parameters.slices) if each in outputs]
    return sum(kind[-1] for kind in kinds if isinstance(kind[-1], int))


def _logits(said: Parameters, name: str, width: int | None, outputs: Mapping[str, list[Any]]) -> Finding:
    slices = said.slices
    numbered = [f"logits{at}" for at in range(1, slices + 1)]
    if list(outputs) == ["output_logits"]:
        numbered = ["output_logits"]
    elif set(numbered) != set(outputs):
        text = f"it gives {_listed(outputs)}, and meta.yaml says {slices} slices: the client joins logits1 to"
        more = ", since meta.yaml does not say argmax_in_model" if ARGMAX[0] in outputs else ""
        return Finding(name, False, f"{text} logits{slices}, and nothing else{more}")
    for each in numbered:
        kind, *shape = outputs[each]
        if kind != "fp16" or len(shape) != 3 or shape[:2] != [1, 1] or not isinstance(shape[2], int):
            return Finding(name, False, f"{each} is {kind} {shape}, not fp16 (1, 1, words)")
    words = sum(outputs[each][-1] for each in numbered)
    return Finding(name, True, f"hidden_states fp16 (1, 1, {width}) -> {words} logits in {len(numbered)} outputs")


def _chosen(head: Model, said: Parameters, name: str, outputs: Mapping[str, list[Any]]) -> Finding:
    """chat.py and InferenceManager.swift of Anemll 0.3.5: one place and one logit for each slice."""
    wanted = dict(zip(ARGMAX, (["int32", said.slices], ["fp16", said.slices]), strict=True))
    for each, kind in wanted.items():
        if each not in outputs:
            text = f"it gives {_listed(outputs)}, and no {each}: meta.yaml says argmax_in_model, and the client stops"
            return Finding(name, False, text)
        if outputs[each] != kind:
            text = f"{each} is {_kind(outputs[each])}, not {_kind(kind)}: the client's arrays don't fit"
            return Finding(name, False, text)
    layout = said.layout
    if not layout:
        text = "meta.yaml says neither lm_head_chunk_sizes nor vocab_size: the client guesses which words are meant"
        return Finding(name, False, text)
    own = chosen_sizes(head.function())
    if own and own != layout:
        at = next((at for at, sizes in enumerate(zip(own, layout, strict=False), 1) if sizes[0] != sizes[1]), len(own))
        text = f"its slices are of {_short(own)} words, and the client takes them for {_short(layout)}"
        return Finding(name, False, f"{text}: it says other words from slice {at} on")
    if sum(layout) != (said.words or sum(layout)):
        return Finding(
            name, False, f"lm_head_chunk_sizes are {sum(layout)} words together, and vocab_size {said.words}"
        )
    return Finding(name, True, f"the largest of {sum(layout)} logits in each of {said.slices} slices, and its place")


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(names) or "nothing"


def _kind(kind: list[Any]) -> str:
    return f"{kind[0]} ({', '.join(map(str, kind[1:]))})"


def _short(sizes: tuple[int, ...]) -> str:
    return ", ".join(map(str, sizes[:3])) + (", ..." if len(sizes) > 3 else "")

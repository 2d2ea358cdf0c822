"""What can be checked of CoreML-LLM's package without running it: names, types, shapes, the state, the vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from milopt.contracts.findings import Finding
from milopt.mil import Target
from milopt.package import Model
from milopt.sets.coreml_llm import CONFIG, STATE, UPDATE
from milopt.sets.deployment import interface
from milopt.sets.renaming import TOKENS

__all__ = ["interface_findings", "words_of"]


def interface_findings(model: Model, config: dict[str, Any]) -> Iterator[Finding]:
    """One finding for each name that the client gives or reads, held against ``model_config.json``."""
    if model.spec_version < Target.iOS18:
        text = f"specification version {model.spec_version}: states need {int(Target.iOS18)} (iOS18)"
        yield Finding("version", False, text)
        return
    known, context = interface(model, model.default_function), config.get("context_length")
    states = known["states"]
    if list(states) != [STATE]:
        yield Finding("state", False, f"it has {', '.join(states) or 'none'}, and the contract {STATE}")
    else:
        kind, *shape = states[STATE]
        layers = config.get("num_hidden_layers")
        if kind != "fp16" or len(shape) != 4 or shape[0] % 2 or shape[2] != context:
            text = f"{STATE} is {kind} {shape}, not fp16 (2 layers, heads, {context}, size)"
            yield Finding("state", False, text)
        elif layers is not None and shape[0] // 2 != layers:
            text = f"{STATE} has keys and values of {shape[0] // 2} layers, {CONFIG} {layers!r:.50}"
            yield Finding("state", False, text)
        else:
            yield Finding("state", True, f"{STATE} {kind} {shape}")
    wanted: dict[str, list[Any]] = {
        "input_ids": ["int32", 1, 1],
        "position_ids": ["int32", 1],
        "causal_mask": ["fp16", 1, 1, 1, context],
        UPDATE: ["fp16", 1, 1, context, 1],
    }
    yield from _features("input", known["inputs"], wanted)
    for name, kind in known["inputs"].items():
        if name not in wanted:
            yield Finding(f"input {name}", False, f"{kind[0]} {kind[1:]}: the client gives no such input")
    yield from _features("output", known["outputs"], {"token_id": ["int32", 1], "token_logit": ["fp16", 1]})
    if TOKENS in known["inputs"]:
        yield _vocabulary(words_of(model), config.get("vocab_size"))


def _vocabulary(words: int | None, said: Any) -> Finding:
    check = f"vocab_size and {TOKENS}"
    if words is None:
        return Finding(check, True, "no table is looked up with them: its size is not known")
    if words != said:
        return Finding(check, False, f"the table has {words} rows, and {CONFIG} says {said!r:.50}")
    return Finding(check, True, f"{words} rows")


def _features(what: str, known: dict[str, list[Any]], wanted: dict[str, list[Any]]) -> Iterator[Finding]:
    for name, kind in wanted.items():
        if name not in known:
            yield Finding(f"{what} {name}", False, f"it is not among: {', '.join(known) or 'none'}")
        elif known[name] != kind:
            text = f"{known[name][0]} {known[name][1:]}, not {kind[0]} {kind[1:]}: the client's arrays don't fit"
            yield Finding(f"{what} {name}", False, text)
        else:
            yield Finding(f"{what} {name}", True, f"{kind[0]} {kind[1:]}")


def words_of(model: Model) -> int | None:
    """The size of the vocabulary: how many rows the table has that ids are looked up in; None where there is none."""
    ids = model.function().inputs[TOKENS]
    sizes = [int(user.inputs["x"].shape[0]) for user in ids.child_ops if user.op_type == "gather"]
    return min(sizes, default=None)

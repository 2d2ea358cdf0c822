"""Does a folder keep CoreML-LLM's contract for one package? What it reads first, then its loop in the interpreter."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np

from milopt.contracts.anemll_client import DecoderCalls, causal_rows, check_sizes, package_of
from milopt.contracts.clients import Logits
from milopt.contracts.comparing import CLOSE, SAME, is_compressed
from milopt.contracts.findings import Finding, Findings
from milopt.errors import EvaluationError, MiloptError
from milopt.interpreter import Plan, Precision, State, compile
from milopt.mil import Target
from milopt.package import Model, load
from milopt.sets.coreml_llm import CONFIG, PACKAGE, STATE, TOKENIZER_FOLDER, UPDATE, Monolith
from milopt.sets.deployment import interface
from milopt.sets.roles import decoder_of

__all__ = ["STYLE", "Choice", "check_coreml_llm", "compare_monolith", "said"]

Tell: TypeAlias = Callable[[str], None]
STYLE = "coreml-llm"
_LOOP = "the client's loop"
_PROMPT = 6
_HARMLESS = frozenset({".DS_Store", "README.md", "LICENSE", ".gitattributes", "model.mlmodelc", "vision.mlpackage"})
_NUMBERS = ("hidden_size", "context_length", "vocab_size", "eos_token_id")


@dataclass(frozen=True)
class Choice:
    """What one call gives: the likeliest next token, and its logit."""

    token: int
    logit: float


def said(model: Model, tokens: Sequence[int], prompt: int, precision: Precision, count: int = 0) -> list[Choice]:
    """What the package chooses after each of ``tokens`` from the last of the ``prompt`` on, all on one state, one by
    one; ``count`` more of its own follow.

    EvaluationError where a call fails, or a choice is no token.
    """
    plan = compile(model, precision=precision)
    context = _context(plan)
    state, found = State(plan.states), list[Choice]()
    fed, place = list(tokens), 0
    while place < len(fed):
        update: Any = np.zeros((1, 1, context, 1), np.float16)
        update[0, 0, min(place, context - 1), 0] = 1
        inputs: dict[str, Any] = {
            "input_ids": np.array([[fed[place]]], np.int32),
            "position_ids": np.array([place], np.int32),
            "causal_mask": causal_rows(place, 1, context),
            UPDATE: update,
        }
        given = plan.run(inputs, state)
        if place >= prompt - 1:
            choice = Choice(int(given["token_id"].flatten()[0]), float(given["token_logit"].flatten()[0]))
            found.append(choice)
            if len(found) <= count:
                fed.append(choice.token)
        place += 1
    return found


def check_coreml_llm(
    folder: str | os.PathLike[str],
    *,
    reference: Any | None = None,
    pickles: bool = False,
    tokens: int = 16,
    agreement: float = 1.0,
    seed: int = 0,
    tell: Tell | None = None,
) -> Findings:
    """Whether CoreML-LLM's client can run the package in ``folder``, and whether it gets the right answer.

    A random prompt and ``tokens`` tokens behind it are fed one by one, as the client does, with the slot to write in
    ``update_mask``. With a ``reference``, the package it was made of or a transformers model or its directory, the
    tokens are its answer, and each choice must be its own. One more conversation, in the declared precision, must give
    finite numbers. MiloptError where the folder is none of this form, or the reference can't be read.
    """
    root, say = Path(folder), tell or _say_nothing
    if tokens < 1:
        raise MiloptError(f"a conversation has one token at least, not {tokens}")
    say("look at the files")
    config = _config(root)
    found = [*_files(root), *_settings(config)]
    if (root / PACKAGE).is_dir():
        model = load(root / PACKAGE)
        own = list(_interface(model, config))
        found += own
        if all(each.passed for each in own):
            say("a conversation")
            found += _conversation(model, reference, pickles, tokens, agreement, seed)
    return Findings(root.name, STYLE, tuple(found))


def compare_monolith(model: Model, made: Monolith, *, tokens: int = 16, seed: int = 0) -> Finding:
    """Whether the package chooses what the program it was made of does, in float64."""
    return _held(made.model, *_asked(made.model, model, False, tokens, seed), agreement=1.0)


def _config(root: Path) -> dict[str, Any]:
    if not root.is_dir():
        raise MiloptError(f"{root}: there is no such folder")
    file = root / CONFIG
    if not file.is_file():
        raise MiloptError(f"{root} is no CoreML-LLM folder: it has no {CONFIG}")
    try:
        config: Any = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise MiloptError(f"{file} can't be read: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise MiloptError(f"{file} is no mapping")
    return cast("dict[str, Any]", config)


def _files(root: Path) -> Iterator[Finding]:
    if (root / PACKAGE).is_dir():
        yield Finding(f"file {PACKAGE}", True, "there; the client compiles it when it loads it")
    else:
        yield Finding(f"file {PACKAGE}", False, "it is missing: the client finds no model and stops")
    tokenizer = root / TOKENIZER_FOLDER / "tokenizer.json"
    if tokenizer.is_file():
        yield Finding(f"file {TOKENIZER_FOLDER}/tokenizer.json", True, "there")
    else:
        text = "it is missing: the client finds no tokenizer and stops"
        yield Finding(f"file {TOKENIZER_FOLDER}/tokenizer.json", False, text)
    for each in sorted(root.iterdir()):
        if each.name not in (PACKAGE, CONFIG, TOKENIZER_FOLDER, *_HARMLESS):
            yield Finding(f"file {each.name}", False, "the client does not look for it: it is not of this folder")


def _settings(config: dict[str, Any]) -> Iterator[Finding]:
    """Numbers that the client would else take for those of Gemma 4 (ModelConfig.swift)."""
    for key in _NUMBERS:
        value = config.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            yield Finding(f"{key} of {CONFIG}", True, str(value))
        else:
            text = "it is not there" if key not in config else f"it is {value!r:.50}, no number"
            yield Finding(f"{key} of {CONFIG}", False, f"{text}: the client takes Gemma 4's")


def _interface(model: Model, config: dict[str, Any]) -> Iterator[Finding]:
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


def _features(what: str, known: dict[str, list[Any]], wanted: dict[str, list[Any]]) -> Iterator[Finding]:
    for name, kind in wanted.items():
        if name not in known:
            yield Finding(f"{what} {name}", False, f"it is not among: {', '.join(known) or 'none'}")
        elif known[name] != kind:
            text = f"{known[name][0]} {known[name][1:]}, not {kind[0]} {kind[1:]}: the client's arrays don't fit"
            yield Finding(f"{what} {name}", False, text)
        else:
            yield Finding(f"{what} {name}", True, f"{kind[0]} {kind[1:]}")


def _conversation(
    model: Model, reference: Any | None, pickles: bool, tokens: int, agreement: float, seed: int
) -> Iterator[Finding]:
    try:
        given, prompt, wanted, whose = _asked(model, reference, pickles, tokens, seed)
        yield _held(model, given, prompt, wanted, whose, agreement=agreement)
        plain = said(model, given, prompt, "float64")
        rounded = said(model, given, prompt, "declared")
    except EvaluationError as error:
        yield Finding(_LOOP, False, f"the client's call fails: {error}")
        return
    if bad := [each for each in rounded if not np.isfinite(each.logit)]:
        text = f"the logits of {len(bad)} of {len(rounded)} tokens are not finite (milopt lint-numerics says where)"
        yield Finding("declared precision", False, text)
        return
    same = sum(one.token == other.token for one, other in zip(plain, rounded, strict=True))
    yield Finding("declared precision", True, f"finite; {same} of {len(plain)} tokens as without rounding")


def _asked(
    model: Model, reference: Any | None, pickles: bool, tokens: int, seed: int
) -> tuple[list[int], int, Logits | None, str]:
    """The tokens of a conversation, how many are the prompt, the logits on the way, and who says so; None if nobody."""
    plan = compile(model, precision="float64")
    context, words = _context(plan), _words(model)
    prompt = max(1, min(_PROMPT, context // 2))
    count = min(tokens, context - prompt)
    start = [int(each) for each in np.random.default_rng(seed).integers(words, size=prompt)]
    if reference is None:
        own = said(model, start, prompt, "float64", count)
        return [*start, *(each.token for each in own[:count])], prompt, None, ""
    if (whole := package_of(reference)) is not None:
        decoder = decoder_of(whole, several=False)
        calls = DecoderCalls(whole, decoder, "float64")
        check_sizes(calls, decoder, context, words)
        fed, rows = list(start), list[Logits]()
        for place in range(prompt + count):
            row = calls.infer(fed[place], place, causal_rows(place, 1, context))
            if place >= prompt - 1:
                rows.append(row)
                fed.append(int(row.argmax()))
        return fed[:-1], prompt, np.stack(rows), "the package"
    from milopt.contracts.reference import answer

    told = answer(reference, prompt, count, context=context, vocabulary=words, seed=seed, pickles=pickles)
    return list(told.tokens), prompt, told.logits[prompt - 1 :], "transformers"


def _held(
    model: Model, given: list[int], prompt: int, wanted: Logits | None, whose: str, *, agreement: float
) -> Finding:
    """The chosen token must be the likeliest of ``wanted``, or tie with it, and its logit what is said there."""
    own = said(model, given, prompt, "float64")
    words = _words(model)
    for at, each in enumerate(own):
        if not 0 <= each.token < words or not np.isfinite(each.logit):
            return Finding(_LOOP, False, f"choice {at} is token {each.token} with logit {each.logit:g}: no such answer")
    if wanted is None:
        return Finding(_LOOP, True, f"{len(own)} tokens of an answer; no reference to hold them against")
    largest, close = (
        max(float(np.abs(wanted).max()), float(np.finfo(np.float64).tiny)),
        SAME if whose == "the package" else CLOSE,
    )
    same = sum(each.token == int(row.argmax()) for each, row in zip(own, wanted, strict=True))
    gaps = [float(row.max() - row[each.token]) / largest for each, row in zip(own, wanted, strict=True)]
    off = [abs(each.logit - float(row[each.token])) / largest for each, row in zip(own, wanted, strict=True)]
    alike = sum(gap <= 2 * close for gap in gaps) / len(gaps)
    exact = max(off) <= close or (whose == "transformers" and is_compressed(model))
    text = f"{same} of {len(own)} tokens as {whose}, logits off by {max(off):.2g} of the largest"
    passed = alike >= (agreement if whose == "transformers" else 1.0) and exact
    return Finding(_LOOP, passed, text if passed else f"{text}, first at token {int(np.argmax(np.maximum(gaps, off)))}")


def _context(plan: Plan) -> int:
    shape = list(plan.inputs["causal_mask"].shape or [0])
    return int(shape[-1])


def _words(model: Model) -> int:
    """The size of the vocabulary: how many rows the table has that ids are looked up in."""
    ids = model.function().inputs["input_ids"]
    sizes = [int(user.inputs["x"].shape[0]) for user in ids.child_ops if user.op_type == "gather"]
    if not sizes:
        raise MiloptError("no table is looked up with input_ids: the size of the vocabulary is not known")
    return min(sizes)


def _say_nothing(_: str) -> None:
    pass

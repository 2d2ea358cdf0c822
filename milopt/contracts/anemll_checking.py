"""Does a folder keep ANEMLL's contract? Its files and interfaces first, then the client's loop in the interpreter."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np

from milopt.contracts.anemll_client import AnemllCalls, Calls, DecoderCalls, answered, check_sizes, followed, package_of
from milopt.contracts.anemll_interface import interface_findings
from milopt.contracts.anemll_reading import AnemllFolder, Parameters, read_folder
from milopt.contracts.clients import Logits
from milopt.contracts.comparing import CLOSE, SAME, difference, is_compressed, not_finite, same_tokens, ties
from milopt.contracts.findings import Finding, Findings
from milopt.errors import EvaluationError, MiloptError
from milopt.package import Model
from milopt.sets.anemll import AnemllSet
from milopt.sets.anemll_files import CONFIG
from milopt.sets.deployment import interface
from milopt.sets.roles import decoder_of

__all__ = ["STYLE", "check_anemll", "compare_with"]

Tell: TypeAlias = Callable[[str], None]
STYLE = "anemll"
_LOOP, _BLOCKS = "the client's loop", "the prompt in blocks"


def check_anemll(
    folder: str | os.PathLike[str],
    *,
    reference: Any | None = None,
    pickles: bool = False,
    tokens: int = 16,
    agreement: float = 1.0,
    seed: int = 0,
    tell: Tell | None = None,
) -> Findings:
    """Whether ANEMLL's clients can run the set in ``folder``, and whether they get the right answer.

    A random prompt, longer than a block where the context allows, is fed as they do: in padded blocks through
    ``prefill``, then token by token through ``infer``, all on one state made of the first chunk's ``prefill``. The
    same fed token by token must give the same logits, in float64. With a ``reference``, the package that the set was
    cut from, the tokens are its answer, and the logits must be its own; with a transformers model or its directory it
    is as in :func:`milopt.contracts.check`. One more conversation in the declared precision must give finite numbers.

    MiloptError where the folder is no such set, or a file of it or the reference can't be read.
    """
    root, say = Path(folder), tell or _say_nothing
    if tokens < 1:
        raise MiloptError(f"a conversation has one token at least, not {tokens}")
    say("look at the files")
    made, found = read_folder(root)
    if made is not None:
        found += interface_findings(made)
        found.append(_config(root, made))
        if all(each.passed or each.check.startswith(("metadata", "file")) for each in found):
            found += _conversations(made, reference, pickles, tokens, agreement, seed, say)
    return Findings(root.name, STYLE, tuple(found))


def _config(root: Path, made: AnemllFolder) -> Finding:
    """What ``config.json`` says of the model must be what the packages are."""
    try:
        config: Any = json.loads((root / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return Finding(CONFIG, False, f"it can't be read: {' '.join(str(error).split())}")
    if not isinstance(config, dict):
        return Finding(CONFIG, False, "it is no mapping")
    said = cast("dict[str, Any]", config)
    states = interface(made.chunks[0], "prefill")["states"] if "prefill" in made.chunks[0].functions else {}
    shape = next(iter(states.values()), ["", None, None, None, None])
    words = [kind[-1] for kind in interface(made.head, made.head.default_function)["outputs"].values()]
    known: dict[str, Any] = {
        "num_hidden_layers": shape[1] // 2 if len(shape) > 1 and isinstance(shape[1], int) else None,
        "vocab_size": sum(words) if all(isinstance(each, int) for each in words) else None,
    }
    for key, value in known.items():
        if value is not None and key in said and said[key] != value:
            return Finding(CONFIG, False, f"{key} is {said[key]!r:.50}, and the packages have {value}")
    return Finding(CONFIG, True, ", ".join(f"{key} {said[key]}" for key in known if key in said) or "says nothing")


def _conversations(
    made: AnemllFolder, reference: Any | None, pickles: bool, tokens: int, agreement: float, seed: int, say: Tell
) -> list[Finding]:
    say("prepare the packages")
    sizes, calls = made.parameters, AnemllCalls(made, "float64")
    prompt, count = _lengths(sizes, tokens)
    words = _words(made)
    found: list[Finding] = []
    try:
        given, wanted, whose = _asked(calls, sizes, words, reference, pickles, prompt, count, seed, say)
        say("a conversation: the prompt in blocks")
        calls.reset()
        plain = followed(calls, given, prompt, sizes.context, sizes.batch, blocks=True)
        found.append(_held(_LOOP, plain, wanted, whose, agreement, compressed=_compressed(made)))
        say("a conversation: token by token")
        calls.reset()
        single = followed(calls, given, prompt, sizes.context, sizes.batch, blocks=False)
        found.append(_alike(plain, single))
        say("a conversation in the declared precision")
        rounded = AnemllCalls(made, "declared")
        found.append(_declared(followed(rounded, given, prompt, sizes.context, sizes.batch, blocks=True), plain))
    except EvaluationError as error:
        found.append(Finding(_LOOP, False, f"the client's call fails: {error}"))
    return found


def compare_with(model: Model, made: AnemllSet, *, tokens: int = 16, seed: int = 0) -> Finding:
    """Whether the set answers as the program that it was cut from, in float64."""
    sizes = Parameters(made.context, made.batch, len(made.chunks), made.slices, made.prefix, made.bits)
    folder = AnemllFolder(sizes, made.embeddings, made.chunks, made.head)
    prompt, count = _lengths(sizes, tokens)
    start = [int(each) for each in np.random.default_rng(seed).integers(_words(folder), size=prompt)]
    whole = DecoderCalls(model, decoder_of(model, batch=made.batch), "float64")
    given = answered(whole, start, count, sizes.context, sizes.batch)
    whole.reset()
    wanted = followed(whole, given, prompt, sizes.context, sizes.batch, blocks=True)
    got = followed(AnemllCalls(folder, "float64"), given, prompt, sizes.context, sizes.batch, blocks=True)
    return _held(_LOOP, got, wanted, "the package", 1.0, compressed=False)


def _lengths(sizes: Parameters, tokens: int) -> tuple[int, int]:
    """How long the prompt is, more than a block where there is room, and how many tokens follow."""
    prompt = max(1, min(sizes.batch + 2, sizes.context // 2))
    count = min(tokens, sizes.context - 1 - prompt)
    if count < 1:
        raise MiloptError(f"a context of {sizes.context} has no room for a conversation")
    return prompt, count


def _words(made: AnemllFolder) -> int:
    """The size of the vocabulary."""
    outputs = interface(made.head, made.head.default_function)["outputs"]
    return sum(int(kind[-1]) for kind in outputs.values())


def _compressed(made: AnemllFolder) -> bool:
    return any(map(is_compressed, (made.embeddings, *made.chunks, made.head)))


def _asked(
    calls: Calls,
    sizes: Parameters,
    words: int,
    reference: Any | None,
    pickles: bool,
    prompt: int,
    count: int,
    seed: int,
    say: Tell,
) -> tuple[Sequence[int], Logits | None, str]:
    """The tokens of the conversation, the logits that are right where somebody knows, and who does."""
    start = [int(each) for each in np.random.default_rng(seed).integers(words, size=prompt)]
    if reference is None:
        say("ask the set")
        return answered(calls, start, count, sizes.context, sizes.batch), None, ""
    model = package_of(reference)
    if model is not None:
        say("ask the package")
        decoder = decoder_of(model, batch=sizes.batch)
        whole = DecoderCalls(model, decoder, "float64")
        check_sizes(whole, decoder, sizes.context, words)
        given = answered(whole, start, count, sizes.context, sizes.batch)
        whole.reset()
        return given, followed(whole, given, prompt, sizes.context, sizes.batch, blocks=True), "the package"
    from milopt.contracts.reference import answer

    say("ask the reference")
    told = answer(reference, prompt, count, context=sizes.context, vocabulary=words, seed=seed, pickles=pickles)
    return told.tokens, told.logits[prompt - 1 :], "transformers"


def _held(check: str, got: Logits, wanted: Logits | None, whose: str, agreement: float, *, compressed: bool) -> Finding:
    if (what := not_finite(got)) is not None:
        return Finding(check, False, what)
    if wanted is None:
        return Finding(check, True, f"{len(got)} tokens of an answer: what the others are held against")
    off, first = difference(got, wanted)
    same = same_tokens(got, wanted, 1)
    text = f"{int(same.sum())} of {len(same)} tokens as {whose}, off by {off:.2g} of the largest logit"
    if whose == "transformers":
        alike = same | ties(got, wanted, 1)
        passed = float(alike.mean()) >= agreement and (off <= CLOSE or compressed)
    else:
        passed = off <= SAME
    return Finding(check, passed, text if passed else f"{text}, first at token {first}")


def _alike(got: Logits, single: Logits) -> Finding:
    if (what := not_finite(single)) is not None:
        return Finding(_BLOCKS, False, what)
    off, first = difference(got, single)
    if off <= SAME:
        return Finding(_BLOCKS, True, f"as token by token, off by {off:.1g} of the largest logit")
    text = f"off by {off:.2g} of the largest logit from token by token, first at token {first}"
    return Finding(_BLOCKS, False, f"{text}: prefill and infer compute different things, or keep other keys")


def _declared(got: Logits, plain: Logits) -> Finding:
    check = "declared precision"
    if (what := not_finite(got)) is not None:
        return Finding(check, False, f"{what} (milopt lint-numerics says where)")
    same = same_tokens(got, plain, 1)
    return Finding(check, True, f"finite; {int(same.sum())} of {len(same)} tokens as without rounding")


def _say_nothing(_: str) -> None:
    pass

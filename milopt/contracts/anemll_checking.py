"""Does a folder keep ANEMLL's contract? Its files and interfaces first, then the client's loop in the interpreter."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from milopt.contracts.anemll_client import AnemllCalls, Calls, DecoderCalls, answered, check_sizes, followed, package_of
from milopt.contracts.anemll_config import config_finding
from milopt.contracts.anemll_head import head_words
from milopt.contracts.anemll_interface import interface_findings
from milopt.contracts.anemll_reading import AnemllFolder, Parameters, read_folder
from milopt.contracts.anemll_verdicts import LOOP, alike, declared, held
from milopt.contracts.anemll_windows import conversations
from milopt.contracts.clients import Logits
from milopt.contracts.comparing import is_compressed
from milopt.contracts.findings import Finding, Findings
from milopt.errors import EvaluationError, MiloptError
from milopt.package import Model
from milopt.sets.anemll import AnemllSet
from milopt.sets.roles import Decoder, decoder_of

__all__ = ["STYLE", "check_anemll", "compare_with"]

Tell: TypeAlias = Callable[[str], None]
STYLE = "anemll"


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
        found.append(config_finding(root, made))
        if all(each.passed or each.check.startswith(("metadata", "file")) for each in found):
            found += _conversations(made, reference, pickles, tokens, agreement, seed, say)
    return Findings(root.name, STYLE, tuple(found))


def _conversations(
    made: AnemllFolder, reference: Any | None, pickles: bool, tokens: int, agreement: float, seed: int, say: Tell
) -> list[Finding]:
    say("prepare the packages")
    sizes, calls = made.parameters, AnemllCalls(made, "float64")
    rounded = AnemllCalls(made, "declared")
    words, whole = head_words(made), _whole(reference, sizes)
    slices = sizes.layout if sizes.argmax else ()
    found: list[Finding] = []
    try:
        lengths = _lengths(sizes, tokens, whole)
        for prompt, count in lengths:
            known = len(found)
            given, wanted, whose = _asked(calls, sizes, words, reference, whole, pickles, prompt, count, seed, say)
            say("a conversation: the prompt in blocks")
            plain = _followed(calls, given, prompt, sizes)
            found.append(held(plain, wanted, whose, agreement, compressed=_compressed(made), slices=slices))
            say("a conversation: token by token")
            found.append(alike(plain, _followed(calls, given, prompt, sizes, blocks=False), slices=slices))
            say("a conversation in the declared precision")
            found.append(declared(_followed(rounded, given, prompt, sizes), plain, slices=slices))
            if len(lengths) > 1:
                found[known:] = [replace(each, check=f"{each.check}, {prompt} tokens") for each in found[known:]]
    except EvaluationError as error:
        found.append(Finding(LOOP, False, f"the client's call fails: {error}"))
    return found


def compare_with(model: Model, made: AnemllSet, *, tokens: int = 16, seed: int = 0) -> Finding:
    """Whether the set answers as the program that it was cut from, in float64."""
    sizes = Parameters(
        made.context,
        made.batch,
        len(made.chunks),
        made.slices,
        made.prefix,
        made.bits,
        argmax=made.argmax,
        sizes=made.words,
        window=made.window,
    )
    folder = AnemllFolder(sizes, made.embeddings, made.chunks, made.head)
    whole, calls = DecoderCalls(model, _decoder(model, sizes), "float64"), AnemllCalls(folder, "float64")
    got: list[Logits] = []
    wanted: list[Logits] = []
    for prompt, count in _lengths(sizes, tokens, whole):
        start = [int(each) for each in np.random.default_rng(seed).integers(head_words(folder), size=prompt)]
        whole.reset()
        given = answered(whole, start, count, sizes.context, sizes.batch, padded=not sizes.window)
        wanted.append(_followed(whole, given, prompt, sizes))
        got.append(_followed(calls, given, prompt, sizes))
    slices = made.words if made.argmax else ()
    return held(np.concatenate(got), np.concatenate(wanted), "the package", 1.0, compressed=False, slices=slices)


def _decoder(model: Model, sizes: Parameters) -> Decoder:
    return decoder_of(model, batch=sizes.batch, windows=True)


def _whole(reference: Any | None, sizes: Parameters) -> DecoderCalls | None:
    """Conversations with the reference, where it is a package."""
    model = package_of(reference)
    return DecoderCalls(model, _decoder(model, sizes), "float64") if model is not None else None


def _followed(calls: Calls, tokens: Sequence[int], prompt: int, sizes: Parameters, *, blocks: bool = True) -> Logits:
    """The logits of another conversation; the client that knows windows does not pad a prompt's last block."""
    calls.reset()
    return followed(calls, tokens, prompt, sizes.context, sizes.batch, blocks=blocks, padded=not sizes.window)


def _lengths(sizes: Parameters, tokens: int, whole: DecoderCalls | None) -> list[tuple[int, int]]:
    """How long prompts are, and how many tokens follow each."""
    known = whole.decoder.window if whole is not None else None
    window = sizes.window or (known.tokens if known is not None else 0)
    found = conversations(sizes.context, sizes.batch, window, tokens)
    if not found:
        raise MiloptError(f"a context of {sizes.context} has no room for a conversation")
    return found


def _compressed(made: AnemllFolder) -> bool:
    return any(map(is_compressed, (made.embeddings, *made.chunks, made.head)))


def _asked(
    calls: Calls,
    sizes: Parameters,
    words: int,
    reference: Any | None,
    whole: DecoderCalls | None,
    pickles: bool,
    prompt: int,
    count: int,
    seed: int,
    say: Tell,
) -> tuple[Sequence[int], Logits | None, str]:
    """The tokens of the conversation, the logits that are right where somebody knows, and who does."""
    start = [int(each) for each in np.random.default_rng(seed).integers(words, size=prompt)]
    padded = not sizes.window
    if reference is None:
        say("ask the set")
        calls.reset()
        return answered(calls, start, count, sizes.context, sizes.batch, padded=padded), None, ""
    if whole is not None:
        say("ask the package")
        check_sizes(whole, whole.decoder, sizes.context, words)
        given = answered(whole, start, count, sizes.context, sizes.batch, padded=padded)
        return given, _followed(whole, given, prompt, sizes), "the package"
    from milopt.contracts.reference import answer

    say("ask the reference")
    told = answer(reference, prompt, count, context=sizes.context, vocabulary=words, seed=seed, pickles=pickles)
    return told.tokens, told.logits[prompt - 1 :], "transformers"


def _say_nothing(_: str) -> None:
    pass

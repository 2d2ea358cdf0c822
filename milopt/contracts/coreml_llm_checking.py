"""Does a folder keep CoreML-LLM's contract for one package? What it reads first, then its loop in the interpreter."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from milopt.contracts.comparing import CLOSE, SAME, is_compressed
from milopt.contracts.coreml_llm_client import Asked, asked, said, vocabulary
from milopt.contracts.coreml_llm_interface import interface_findings
from milopt.contracts.coreml_llm_reading import file_findings, read_config, settings_findings
from milopt.contracts.findings import Finding, Findings
from milopt.errors import EvaluationError, MiloptError
from milopt.package import Model, load
from milopt.sets.coreml_llm import PACKAGE, Monolith

__all__ = ["STYLE", "check_coreml_llm", "compare_monolith"]

Tell: TypeAlias = Callable[[str], None]
STYLE = "coreml-llm"
_LOOP = "the client's loop"


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
    config = read_config(root)
    found = [*file_findings(root), *settings_findings(root, config)]
    if (root / PACKAGE).is_dir():
        model = load(root / PACKAGE)
        own = list(interface_findings(model, config))
        found += own
        if all(each.passed for each in own):
            say("a conversation")
            found += _conversation(model, reference, pickles, tokens, agreement, seed)
    return Findings(root.name, STYLE, tuple(found))


def compare_monolith(model: Model, made: Monolith, *, tokens: int = 16, seed: int = 0) -> Finding:
    """Whether the package chooses what the program it was made of does, in float64."""
    return _held(made.model, asked(made.model, model, False, tokens, seed), agreement=1.0)


def _conversation(
    model: Model, reference: Any | None, pickles: bool, tokens: int, agreement: float, seed: int
) -> Iterator[Finding]:
    try:
        given = asked(model, reference, pickles, tokens, seed)
        yield _held(model, given, agreement=agreement)
        plain = said(model, given.tokens, given.prompt, "float64")
        rounded = said(model, given.tokens, given.prompt, "declared")
    except EvaluationError as error:
        yield Finding(_LOOP, False, f"the client's call fails: {error}")
        return
    if bad := [each for each in rounded if not np.isfinite(each.logit)]:
        text = f"the logits of {len(bad)} of {len(rounded)} tokens are not finite (milopt lint-numerics says where)"
        yield Finding("declared precision", False, text)
        return
    same = sum(one.token == other.token for one, other in zip(plain, rounded, strict=True))
    yield Finding("declared precision", True, f"finite; {same} of {len(plain)} tokens as without rounding")


def _held(model: Model, given: Asked, *, agreement: float) -> Finding:
    """The chosen token must be the likeliest of those asked, or tie with it, and its logit what is said there."""
    own = said(model, given.tokens, given.prompt, "float64")
    words, wanted, whose = vocabulary(model), given.logits, given.whose
    for at, each in enumerate(own):
        if not 0 <= each.token < words or not np.isfinite(each.logit):
            return Finding(_LOOP, False, f"choice {at} is token {each.token} with logit {each.logit:g}: no such answer")
    if wanted is None:
        return Finding(_LOOP, True, f"{len(own)} tokens of an answer; no reference to hold them against")
    largest = max(float(np.abs(wanted).max()), float(np.finfo(np.float64).tiny))
    close = SAME if whose == "the package" else CLOSE
    same = sum(each.token == int(row.argmax()) for each, row in zip(own, wanted, strict=True))
    gaps = [float(row.max() - row[each.token]) / largest for each, row in zip(own, wanted, strict=True)]
    off = [abs(each.logit - float(row[each.token])) / largest for each, row in zip(own, wanted, strict=True)]
    alike = sum(gap <= 2 * close for gap in gaps) / len(gaps)
    exact = max(off) <= close or (whose == "transformers" and is_compressed(model))
    text = f"{same} of {len(own)} tokens as {whose}, logits off by {max(off):.2g} of the largest"
    passed = alike >= (agreement if whose == "transformers" else 1.0) and exact
    return Finding(_LOOP, passed, text if passed else f"{text}, first at token {int(np.argmax(np.maximum(gaps, off)))}")


def _say_nothing(_: str) -> None:
    pass

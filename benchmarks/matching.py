"""What applying rules costs, by the number of ops in the program, beside coremltools' own fusion passes.

    python -m benchmarks.matching [--sizes 2000,5000,10000,20000] [--runs N] [--print]

Fifty rules, milopt's own and more in :mod:`benchmarks.rules`, are applied together to decoder-like programs of
2,000 to 20,000 ops (constants not counted). Twice: "rewriting" is the first application, in which rules fire at every
layer, "matching" the second one, which has to look at every op and finds nothing left to do. The exponent is the slope
of the logarithms, 1 where time grows with the number of ops. Beside it, on the same programs and in the same process,
coremltools' passes that look for patterns, each run on its own (``COREMLTOOLS``); they stop at the second application
too. Then every pass of the registry that leaves weights alone runs by itself on 5,000 ops with one place for it to
change. Times are processor seconds, the least of three runs. Writes benchmarks/results/matching.md.
"""

from __future__ import annotations

import argparse
import importlib
import platform
import time
from collections.abc import Callable
from math import log
from pathlib import Path
from typing import Any

import numpy as np

import milopt
from benchmarks.rules import RULES, decoder, one_spot
from milopt.mil import Program, operations
from milopt.rules import apply

HERE = Path(__file__).resolve().parent
RUNS = 3
# passes of coremltools' default pipeline that look for patterns of a few ops
COREMLTOOLS = (
    "cast_optimization",
    "divide_to_multiply",
    "fuse_conv_batchnorm",
    "fuse_conv_bias",
    "fuse_conv_scale",
    "fuse_elementwise_to_batchnorm",
    "fuse_gelu_exact",
    "fuse_gelu_tanh_approximation",
    "fuse_layernorm_or_instancenorm",
    "fuse_leaky_relu",
    "fuse_linear_bias",
    "fuse_matmul_weight_bias",
    "fuse_onehot_matmul_to_gather",
    "fuse_pad_conv",
    "fuse_reduce_mean",
    "fuse_squeeze_expand_dims",
    "fuse_stack_split",
    "fuse_transpose_matmul",
    "merge_affine_dequantize_with_consecutive_ops",
    "merge_consecutive_paddings",
    "merge_consecutive_relus",
    "merge_consecutive_reshapes",
    "merge_consecutive_transposes",
    "noop_elimination",
    "prelu_to_lrelu",
    "reduce_transposes",
    "replace_stack_reshape",
)


def count(program: Program) -> int:
    return sum(op.op_type != "const" for function in program.functions.values() for op in operations(function))


def timed(call: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """What it returns, and the processor time it takes: others on the machine do not count."""
    begun = time.process_time()
    result = call(*arguments)
    return result, time.process_time() - begun


def measure(ops: int, *, runs: int = RUNS) -> dict[str, float]:
    """Seconds for a program of about ``ops`` ops."""
    seconds: dict[str, list[float]] = {"rewriting": [], "matching": [], "coremltools": []}
    size = fired = 0
    registry: Any = importlib.import_module("coremltools.converters.mil.mil.passes.pass_registry").PASS_REGISTRY
    for _ in range(runs):
        program = decoder(ops)
        size = count(program)
        report, spent = timed(apply, RULES, program)
        seconds["rewriting"].append(spent)
        fired = report.applied
        seconds["matching"].append(timed(apply, RULES, program)[1])
        other = decoder(ops)
        for again in (False, True):
            spent = sum(timed(registry[f"common::{name}"], other)[1] for name in COREMLTOOLS)
            if again:
                seconds["coremltools"].append(spent)
    return {"ops": size, "fired": fired, **{name: min(each) for name, each in seconds.items()}}


def exponent(rows: list[dict[str, float]], name: str) -> float:
    """The slope of log(seconds) over log(ops), by least squares."""
    x = np.array([log(row["ops"]) for row in rows])
    y = np.array([log(row[name]) for row in rows])
    return float(np.polyfit(x, y, 1)[0])


# a pass alone: what it needs to be told
PASSES = ("canonicalize", "fp16-safe-norm", "rope-table{context=64}", "fuse-sdpa", "kv-to-state", "linear-to-conv")


def measure_pass(text: str, ops: int, *, runs: int = RUNS) -> tuple[int, int, float]:
    """The ops of the program, the rewrites and the seconds of one pass that finds one place to change."""
    seconds: list[float] = []
    size = applied = 0
    for _ in range(runs):
        model = milopt.load(one_spot(ops))
        size = count(model.program)
        report, spent = timed(milopt.Pipeline.parse(text).run, model)
        seconds.append(spent)
        applied = sum(part.applied for part in report.parts)
    return size, applied, min(seconds)


def lines(rows: list[dict[str, float]], passes: list[tuple[str, int, int, float]], runs: int) -> list[str]:
    said = [
        "# Matching",
        "",
        f"{len(RULES)} rules together; {len(COREMLTOOLS)} passes of coremltools 9.0 that look for patterns, one after "
        f"another. Processor seconds, the least of {runs}, {platform.machine()}, Python {platform.python_version()}.",
        "",
        "| ops | rewrites | rewriting s | matching s | matching µs/op | coremltools s | coremltools / matching |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        cells = (
            f"{row['ops']:,.0f}",
            f"{row['fired']:,.0f}",
            f"{row['rewriting']:.2f}",
            f"{row['matching']:.2f}",
            f"{1e6 * row['matching'] / row['ops']:.0f}",
            f"{row['coremltools']:.2f}",
            f"{row['coremltools'] / row['matching']:.1f}",
        )
        said.append(f"| {' | '.join(cells)} |")
    slopes = ", ".join(f"{name} {exponent(rows, name):.2f}" for name in ("rewriting", "matching", "coremltools"))
    said += [
        "",
        f"Exponent of the growth with the ops (1 is linear): {slopes}.",
        "",
        "## One place in a large program",
        "",
    ]
    said += ["| pass | ops | rewrites | s |", "|---|---:|---:|---:|"]
    said += [f"| {name} | {size:,} | {applied} | {seconds:.3f} |" for name, size, applied, seconds in passes]
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--sizes", default="2000,5000,10000,20000", help="ops of the programs")
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--print", action="store_true", help="write no file")
    options = parser.parse_args()
    measure(200, runs=1)  # what is imported and cached once
    rows = [measure(int(size), runs=options.runs) for size in options.sizes.split(",")]
    passes = [(text, *measure_pass(text, 5000, runs=options.runs)) for text in PASSES]
    text = "\n".join(lines(rows, passes, options.runs)) + "\n"
    print(text, end="")
    if not options.print:
        (HERE / "results" / "matching.md").write_text(text)


if __name__ == "__main__":
    main()

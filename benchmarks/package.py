"""What loading and saving a package costs, beside coremltools' own way.

    python -m benchmarks.package [--parameters 400M] [--rounds 3] [--folder DIR] [--coremltools | --no-coremltools]

A synthetic fp16 decoder of about that many parameters is written to a temporary folder (in ``--folder``; three times
its size is needed there), loaded and saved again, each way in a process of its own, in turn; the rounds' medians are
told, and the range of the total. Time is that of load and save, after the imports; neither waits until the bytes are
on the disk (milopt does so only to replace a package). Memory is the process's anonymous memory (``RssAnon`` of
``/proc/PID/status``: private pages that no file backs, the pages of the mapped weight file apart), sampled every 2 ms
from outside, less what the imports left. Linux only. Above 1B coremltools' way is left out unless asked for. A plain
copy of the files tells what the disk alone takes. coremltools' way is ``milproto.load``, ``mil_convert`` (which runs
its default passes unless told not to) and ``save``.
Writes benchmarks/results/package.md.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
VOCABULARY = 16384
HEAD = 64
TOKENS = 8
_SAMPLE = 0.002  # seconds
_CHUNK = 1 << 24  # elements drawn at a time


@dataclass(frozen=True)
class Shape:
    """A decoder: ``layers`` of attention and a gated MLP, and the embedding that is also its head."""

    hidden: int
    inner: int
    layers: int

    @property
    def parameters(self) -> int:
        return VOCABULARY * self.hidden + self.layers * (4 * self.hidden**2 + 3 * self.hidden * self.inner)


def shape_of(parameters: int) -> Shape:
    """The decoder of about that many parameters, with widths in use at that size."""
    hidden, inner = (1024, 2816) if parameters < 10**9 else (3072, 8192)
    layer = 4 * hidden**2 + 3 * hidden * inner
    return Shape(hidden, inner, max(1, round((parameters - VOCABULARY * hidden) / layer)))


def draw(path: Path, elements: int) -> Any:
    """fp16 numbers around zero, in a file: what is drawn takes no memory."""
    numbers: Any = np.memmap(path, np.float16, "w+", shape=(elements,))
    rng = np.random.default_rng(0)
    for at in range(0, elements, _CHUNK):
        size = min(_CHUNK, elements - at)
        # sign and mantissa at random, an exponent of 2**-5
        bits: Any = rng.integers(0, 1 << 16, size, dtype=np.uint16)
        numbers[at : at + size] = ((bits & 0x83FF) | 0x2800).view(np.float16)
    return numbers


def make(package: Path, parameters: int) -> None:
    """Write the decoder's package."""
    from milopt.mil import Target, mb, types
    from milopt.package import load

    shape = shape_of(parameters)
    raw = package.with_suffix(".raw")
    numbers = draw(raw, shape.parameters)
    taken = 0

    def weight(*dims: int) -> Any:
        nonlocal taken
        begin, taken = taken, taken + int(np.prod(dims))
        return numbers[begin:taken].reshape(dims)

    def norm(x: Any) -> Any:
        square = mb.reduce_mean(x=mb.mul(x=x, y=x), axes=[-1], keep_dims=True)
        return mb.mul(x=x, y=mb.rsqrt(x=square, epsilon=np.float16(1e-5)))

    def heads(x: Any) -> Any:
        return mb.transpose(x=mb.reshape(x=x, shape=(1, TOKENS, shape.hidden // HEAD, HEAD)), perm=(0, 2, 1, 3))

    def attention(x: Any) -> Any:
        q, k, v = (heads(mb.linear(x=x, weight=weight(shape.hidden, shape.hidden))) for _ in range(3))
        mixed = mb.scaled_dot_product_attention(query=q, key=k, value=v)
        joined = mb.reshape(x=mb.transpose(x=mixed, perm=(0, 2, 1, 3)), shape=(1, TOKENS, shape.hidden))
        return mb.linear(x=joined, weight=weight(shape.hidden, shape.hidden))

    def gated(x: Any) -> Any:
        gate, up = (mb.linear(x=x, weight=weight(shape.inner, shape.hidden)) for _ in range(2))
        return mb.linear(x=mb.mul(x=mb.silu(x=gate), y=up), weight=weight(shape.hidden, shape.inner))

    def build(tokens: Any) -> Any:
        table = mb.const(val=weight(VOCABULARY, shape.hidden))
        x = mb.gather(x=table, indices=tokens, axis=0)
        for _ in range(shape.layers):
            x = mb.add(x=x, y=attention(norm(x)))
            x = mb.add(x=x, y=gated(norm(x)))
        return mb.linear(x=norm(x), weight=table, name="logits")

    inputs = [mb.TensorSpec(shape=(1, TOKENS), dtype=types.int32)]
    load(mb.program(input_specs=inputs, opset_version=Target.iOS18)(build)).save(package)
    raw.unlink()


def by_milopt(source: Path, target: Path) -> dict[str, float]:
    from milopt.package import load

    ready()
    start = time.perf_counter()
    model = load(source)
    loaded = time.perf_counter()
    model.save(target)
    return {"load": loaded - start, "save": time.perf_counter() - loaded}


def by_coremltools(source: Path, target: Path, *, passes: bool = True) -> dict[str, float]:
    import coremltools
    from coremltools.converters.mil.frontend.milproto.load import load as milproto_load

    converter: Any = importlib.import_module("coremltools.converters.mil.converter")
    ready()
    start = time.perf_counter()
    model = coremltools.models.MLModel(str(source), skip_model_load=True)
    program = milproto_load(model.get_spec(), 9, model.weights_dir)
    loaded = time.perf_counter()
    converted: Any = converter.mil_convert(
        program,
        convert_from="milinternal",
        convert_to="mlprogram",
        compute_units=coremltools.ComputeUnit.CPU_ONLY,
        pass_pipeline=coremltools.PassPipeline.DEFAULT if passes else coremltools.PassPipeline.EMPTY,
        skip_model_load=True,
        specification_version=9,
    )
    converted.save(str(target))
    return {"load": loaded - start, "save": time.perf_counter() - loaded}


def by_copying(source: Path, target: Path) -> dict[str, float]:
    ready()
    start = time.perf_counter()
    shutil.copytree(source, target)
    return {"load": 0.0, "save": time.perf_counter() - start}


COREMLTOOLS = ("coremltools", "coremltools without passes")
WAYS: dict[str, Callable[[Path, Path], dict[str, float]]] = {
    "milopt": by_milopt,
    "a copy of the files": by_copying,
    COREMLTOOLS[0]: by_coremltools,
    COREMLTOOLS[1]: partial(by_coremltools, passes=False),
}


def ready() -> None:
    """Tell the parent that the imports are done, and wait until it watches."""
    print("ready", flush=True)
    sys.stdin.readline()


def anonymous(pid: int) -> int:
    """The process's anonymous memory in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def measure(way: str, source: Path, target: Path) -> dict[str, float]:
    """Seconds, and the peak of anonymous memory above what the imports left."""
    command = [sys.executable, "-m", "benchmarks.package", "--run", way, str(source), str(target)]
    os.sync()  # what was written before must not slow the writing that is measured
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as run:
        assert run.stdin is not None
        assert run.stdout is not None
        while run.stdout.readline().strip() != "ready":
            if run.poll() is not None:
                raise RuntimeError(f"the run by {way} failed")
        before = peak = anonymous(run.pid)
        run.stdin.write("\n")
        run.stdin.flush()
        while run.poll() is None:
            peak = max(peak, anonymous(run.pid))
            time.sleep(_SAMPLE)
        found: dict[str, float] = json.loads(run.stdout.read().splitlines()[-1])
    return {**found, "total": found["load"] + found["save"], "memory": peak - before}


def parameters_of(text: str) -> int:
    unit = {"M": 10**6, "B": 10**9}.get(text[-1:].upper())
    return int(float(text[:-1]) * unit) if unit else int(text)


def report(parameters: int, rounds: int, folder: Path | None, ways: list[str]) -> str:
    with tempfile.TemporaryDirectory(dir=folder, prefix="milopt-benchmark-") as place:
        source = Path(place) / "model.mlpackage"
        subprocess.run([sys.executable, "-m", "benchmarks.package", "--make", str(source), str(parameters)], check=True)
        size = sum(each.stat().st_size for each in source.rglob("*") if each.is_file())
        lines = [f"{shape_of(parameters).parameters / 1e9:.2f}B parameters, {size / 2**20:,.0f} MiB", ""]
        lines += [f"| median of {rounds} | load, s | save, s | total, s | range, s | times milopt's | memory, MiB |"]
        lines += ["|---|---|---|---|---|---|---|"]
        found = in_turn(ways, source, Path(place), rounds)
        first = median(each["total"] for each in found[ways[0]])
        for way, each in found.items():
            middle = {key: median(one[key] for one in each) for key in ("load", "save", "total")}
            totals = sorted(one["total"] for one in each)
            seconds = " | ".join(f"{middle[key]:.2f}" for key in ("load", "save", "total"))
            memory = max(one["memory"] for one in each) / 2**20
            spread = f"{totals[0]:.2f} to {totals[-1]:.2f}"
            lines.append(f"| {way} | {seconds} | {spread} | {middle['total'] / first:.1f} | {memory:.0f} |")
            print(lines[-1], flush=True)
    return "\n".join(lines)


def in_turn(ways: list[str], source: Path, place: Path, rounds: int) -> dict[str, list[dict[str, float]]]:
    """What each way took, round by round; a slow minute of the machine so meets all of them."""
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            target = place / f"{way}.mlpackage"
            found[way].append(measure(way, source, target))
            shutil.rmtree(target)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parameters", type=parameters_of, nargs="+", default=[400 * 10**6])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the packages are written")
    parser.add_argument("--coremltools", action=argparse.BooleanOptionalAction, help="measure coremltools' way too")
    parser.add_argument("--make", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        make(Path(options.make[0]), int(options.make[1]))
        return
    if options.run:
        way, source, target = options.run
        print(json.dumps(WAYS[way](Path(source), Path(target))))
        return
    tables: list[str] = []
    for parameters in options.parameters:
        beside = options.coremltools if options.coremltools is not None else parameters < 10**9
        tables.append(
            report(
                parameters,
                options.rounds,
                options.folder,
                ["milopt", "a copy of the files", *(COREMLTOOLS if beside else ())],
            )
        )
    text = f"# Loading and saving a package\n\n{(__doc__ or '').strip()}\n\n" + "\n\n".join(tables) + "\n"
    (HERE / "results" / "package.md").write_text(text)


if __name__ == "__main__":
    main()

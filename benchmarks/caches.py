"""Attention and caches of every decoder family and of packages by others, after milopt's passes: docs/caches.md.

    python -m benchmarks.caches [FAMILY ...] [--workers N] [--again] [--output FILE]

The models are those of tests/huggingface/families.py, with a window of 8 tokens and room for hundreds: converted with
static and with flexible shapes, rewritten by ``PASSES``, and asked greedily for 200 tokens beyond the window. Layers
that slide also get rings. Conversions by torch.export are counted too, and have rows where they differ. The packages
are those of ../shared/models, where that exists.

What was measured is kept in benchmarks/results/caches.json, with a digest of the sources it depends on; only what is
stale, or new, is measured again.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import multiprocessing
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.cache_rows import CONTEXT, PASSES, STEPS, TOLERANCE, Found, Row, found, measure
from tests.huggingface.families import FAMILIES, WINDOW
from tests.models.packages import PACKAGES, SHARED

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "docs" / "caches.md"
STORE = ROOT / "benchmarks" / "results" / "caches.json"
SHAPES = ("static", "flexible")
_SOURCES = (
    "benchmarks/cache_rows.py", "benchmarks/cache_counts.py", "tests/huggingface/families.py",
    "milopt/session.py", "milopt/plans.py", "milopt/blocks.py",
    "milopt/signature.py", "milopt/cachecolumns.py", "milopt/cachedrive/*.py", "milopt/huggingface/*.py",
    "milopt/interpreter/**/*.py", "passes/canonical.py", "passes/attention*.py", "passes/gqa*.py", "passes/repeats.py",
    "passes/tiles.py", "passes/cache*.py", "passes/slots*.py", "passes/resizing.py",
)  # fmt: skip
_COUNTS = ("sites", "fused", "refused", "tiles", "sizes", "states")
_LIBRARIES = ("torch", "transformers", "coremltools", "numpy")


def packages() -> list[Path]:
    """Those that have attention."""
    chosen: list[Path] = []
    for package in PACKAGES:
        text = b"".join(each.read_bytes() for each in package.path.rglob("*.mlmodel"))
        attends = b"scaled_dot_product_attention" in text or (b"softmax" in text and text.count(b"matmul") > 1)
        chosen += [package.path] if attends else []
    return chosen


def digest() -> str:
    """Of the sources, but for what they say in words, and of the libraries that the numbers depend on."""
    whole = hashlib.sha256()
    for pattern in _SOURCES:
        for path in sorted(ROOT.glob(pattern)):
            whole.update(path.relative_to(ROOT).as_posix().encode() + _code(path).encode())
    for name in _LIBRARIES:
        whole.update(f"{name} {version(name)}".encode())
    return whole.hexdigest()[:16]


def _code(path: Path) -> str:
    """A module without comments and docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body: Any = getattr(node, "body", None)
        told: Any = body[0].value if isinstance(body, list) and body and isinstance(body[0], ast.Expr) else None
        if isinstance(told, ast.Constant) and isinstance(told.value, str):
            del body[0]
    return ast.dump(tree)


_PREFACE = """# Attention and caches

Made by `make caches`, with {versions}. Decoders are those of
tests/huggingface/families.py: two layers, random weights, grouped heads, a sliding window of {window} tokens and a
context of {context}; after `{passes}`.
*Rings*: `kv-to-state{{update=ring}}`, in which layers that slide keep the window alone.

*sites*: attentions in a function, written out or as the op, of which so many are *fused* now, and so many *refused*;
a softmax is one where it stands between two products of activations. *tiles*: ops that repeat keys and values, *sizes*:
ops that choose or divide sizes. *states*: cached tensors that became states, two for each layer. *float64*: how many of
{steps} greedy tokens, beginning beyond the window, are those that transformers gives with weights rounded alike (those
of Gemma's norms are such that fp16 holds 1 + w). *fp16*: the same in declared fp16 through the states. *error*: the
largest difference of its logits until the first other token, as a share of the largest logit. *theirs*: the same of
transformers itself in half precision, with angles in fp32, over all tokens; the error may be {tolerance:g} times that.
(How much fp16 costs is a property of the model: where scores are large, roundings of queries and keys by 2^-11 move the
weights of nearly equal keys by per cents, as at one token of phi-3-long.) *margin*: how far apart, in the same measure,
the reference has the two tokens where fp16 gives another: less than twice the error.

Conversions by torch.export have a row where their numbers are others.
"""

_BY_OTHERS = """
## Packages by others

Upgraded to iOS18, with `finite-mask`, then the same passes; weights of graphs that came without are made up, and masks
that were among them are -1e4. *written* and *present*: attentions that are written out, and those that are the op,
before; *fused*: those that are the op after. *verified*: the comparison with the package before.
"""


def document(store: dict[str, Any]) -> str:
    """The tables of everything that is known."""
    versions = ", ".join(f"{name} {version(name)}" for name in _LIBRARIES)
    lines = [
        _PREFACE.format(
            versions=versions, window=WINDOW, context=CONTEXT, passes=PASSES, steps=STEPS, tolerance=TOLERANCE
        )
    ]
    lines += _heads("family", "route", "shapes", *_COUNTS, "float64", "fp16", "error", "theirs", "margin")
    for name in (name for name, family in FAMILIES.items() if family.kind == "decoder"):
        for shapes in SHAPES:
            lines += [str(Row(**row)) for row in store.get(f"{name}, {shapes}", {}).get("rows", ())]
    lines += [_BY_OTHERS, *_heads("package", "written", "present", "fused", "refused", "tiles", "states", "verified")]
    for key, held in sorted(store.items()):
        lines += [str(Found(**row)) for row in held["rows"] if key.startswith("package ")]
    return "\n".join(lines) + "\n"


def _heads(*cells: str) -> list[str]:
    return [f"| {' | '.join(cells)} |", f"|{'---|' * len(cells)}"]


def jobs(families: Iterable[str]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """The key of each piece of work, and what it is called with."""
    for name in families:
        for shapes in SHAPES:
            yield f"{name}, {shapes}", (name, shapes)
    if SHARED.is_dir():
        for path in packages():
            yield f"package {path.stem}", (path,)


def work(key: str, arguments: tuple[Any, ...]) -> tuple[str, list[dict[str, Any]]]:
    rows = [found(*arguments)] if key.startswith("package ") else measure(*arguments)
    return key, [asdict(row) for row in rows]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.caches", description="Attention and caches.")
    parser.add_argument("families", nargs="*", metavar="FAMILY")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--again", action="store_true", help="measure what is up to date, too")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    given = parser.parse_args(arguments)
    store: dict[str, Any] = json.loads(STORE.read_text()) if STORE.exists() else {}
    families = given.families or [name for name, family in FAMILIES.items() if family.kind == "decoder"]
    known = digest()
    stale = [job for job in jobs(families) if given.again or store.get(job[0], {}).get("digest") != known]
    print(f"{len(stale)} of {len(list(jobs(families)))} to measure", file=sys.stderr)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(given.workers, mp_context=context) as pool:
        for done in as_completed([pool.submit(work, *job) for job in stale]):
            key, rows = done.result()
            store[key] = {"digest": known, "rows": rows}
            STORE.write_text(json.dumps(store, indent=1, sort_keys=True) + "\n")
            given.output.write_text(document(store), encoding="utf-8")
            print(*((Found if key.startswith("package ") else Row)(**row) for row in rows), sep="\n", flush=True)
    given.output.write_text(document(store), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

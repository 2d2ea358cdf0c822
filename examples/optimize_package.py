"""Optimize a package that already exists, and prove that it still computes the same."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import milopt

sys.path.insert(0, str(Path(__file__).parent))
from tiny import converted


def main(folder: Path) -> milopt.Verdict:
    before, after = folder / "before.mlpackage", folder / "after.mlpackage"
    converted().save(str(before))

    model = milopt.load(before)
    pipeline = milopt.Pipeline.parse("canonicalize,fuse-sdpa,linear-to-conv")
    report = pipeline.run(model, verify="stage")
    model.save(after)
    print(report)

    verdict = milopt.compare(before, after)
    print(verdict)
    return verdict


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))

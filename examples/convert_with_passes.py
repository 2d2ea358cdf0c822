"""Let coremltools run milopt's passes while it converts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import milopt

sys.path.insert(0, str(Path(__file__).parent))
from tiny import converted


def main() -> Any:
    passes = milopt.coremltools_pipeline("fuse-sdpa,linear-to-conv")
    mlmodel = converted(pass_pipeline=passes)
    program = milopt.load(mlmodel).program
    kinds = sorted({op.op_type for op in program.functions["main"].operations} - {"const"})
    print("ops:", ", ".join(kinds))
    return mlmodel


if __name__ == "__main__":
    main()

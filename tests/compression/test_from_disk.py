"""Weights of a file, which no loop may write to, are compressed as those in memory are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from milopt.package import load
from milopt.pipeline import Pipeline
from milopt.text import text

from .support import linear_program, weights

SPECS = [
    "palettize{bits=4,granularity=tensor}",
    "palettize{bits=4,group_size=16}",
    "palettize{bits=3,per_channel_scale=true}",
    "palettize{bits=4,cluster_dim=2}",
    "palettize{bits=4,lut_dtype=int8}",
    "quantize{dtype=int4,block_size=32}",
    "quantize{dtype=int8,granularity=channel}",
    "quantize{dtype=int8,granularity=tensor,clip=mse}",
    "quantize{dtype=uint8,granularity=channel,symmetric=false}",
    "budget{size=0.3}",
]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("spec", SPECS)
def test_a_saved_package_gives_the_same(spec: str, dtype: Any, tmp_path: Path) -> None:
    saved = load(linear_program(weights((64, 64), dtype=dtype))).save(tmp_path / "plain.mlpackage")
    model, other = load(linear_program(weights((64, 64), dtype=dtype))), load(saved)
    assert Pipeline.parse(spec).run(model)
    assert Pipeline.parse(spec).run(other)
    assert text(other, weights="hash") == text(model, weights="hash")

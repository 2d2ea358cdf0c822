"""What passes declare: names, order, opsets, metrics, options; and that what they hand on can't be changed."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from types import ModuleType
from typing import Any

import pytest

import milopt.passes
from milopt.metrics import Exact, Lossy, Metric
from milopt.registry import names, pass_class

NORMS = ("canonicalize", "fp16-safe-norm", "rope-table", "fuse-sdpa", "kv-to-state")

# name -> what comes before it, the lowest opset of what it writes, its metric, its options
DECLARED: dict[str, tuple[tuple[str, ...], int, Metric, dict[str, Any]]] = {
    "canonicalize": ((), 6, Exact(), {}),
    "fp16-safe-norm": (("canonicalize",), 6, Exact(safe_in=("declared", "declared-strict")), {}),
    "rope-table": (("canonicalize",), 6, Lossy(min_snr_db=35), {"context": None, "approximate": False}),
    "finite-mask": (("canonicalize",), 6, Exact(), {"value": -1e4}),
    "scale-residual": (
        ("canonicalize", "fp16-safe-norm"),
        6,
        Exact(rtol=1e-5, safe_in=("declared",)),
        {"limit": 32768.0, "trials": 1, "seed": 0, "inputs": None},
    ),
    "fp32-islands": (("canonicalize",), 6, Exact(safe_in=("declared",)), {}),
    "fuse-sdpa": (("canonicalize",), 9, Exact(), {}),
    "pack-gqa": (("canonicalize", "fuse-sdpa"), 6, Exact(), {}),
    "decompose-sdpa": (
        ("canonicalize", "fuse-sdpa", "pack-gqa", "kv-to-state"),
        6,
        Exact(),
        {"style": "matmul", "rows": 512},
    ),
    "kv-to-state": (
        ("canonicalize", "fuse-sdpa"),
        9,
        Exact(),
        {"layout": "pair", "update": "slice", "context": 0, "read": "auto", "position": "current_pos"},
    ),
    "state-to-kv": (("kv-to-state",), 6, Exact(), {}),
    "contract": (
        ("canonicalize", "fp16-safe-norm", "rope-table", "fuse-sdpa", "kv-to-state"),
        9,
        Exact(),
        {"style": "apple", "hub": "", "context": 0},
    ),
    "linear-to-conv": (("canonicalize", "fuse-sdpa", "kv-to-state"), 6, Exact(), {"tied": "copy"}),
    "conv1x1-to-linear": (("canonicalize",), 6, Exact(), {"images": False}),
    "layout-bc1s": (
        ("canonicalize", "fuse-sdpa", "kv-to-state", "pack-gqa", "decompose-sdpa", "linear-to-conv"),
        6,
        Exact(),
        {"sequence": 64, "io": "public"},
    ),
    "split-head": (
        ("canonicalize", "linear-to-conv", "layout-bc1s"),
        6,
        Exact(),
        {"slices": 0, "limit": 16384, "output": "logits", "k": 8},
    ),
    "dma-notch": (
        ("linear-to-conv", "layout-bc1s", "split-head", "palettize", "quantize"),
        6,
        Exact(),
        {"within": 16384, "period": 1048576},
    ),
    "palettize": (
        NORMS,
        7,
        Lossy(min_snr_db=0.5),
        {
            "bits": 6,
            "granularity": "grouped-channel",
            "group_size": 16,
            "axis": None,
            "per_channel_scale": False,
            "cluster_dim": 1,
            "lut_dtype": "float",
            "weighting": "none",
            "feedback": False,
            "calibration": "",
            "recompress": False,
            "min_elements": 2048,
            "embedding": True,
        },
    ),
    "budget": (
        NORMS,
        7,
        Lossy(min_snr_db=0.5),
        {
            "size": None,
            "loss": None,
            "bits": (2, 3, 4, 6, 8),
            "groups": (0, 16),
            "feedback": False,
            "calibration": "",
            "recompress": False,
            "min_elements": 2048,
        },
    ),
    "quantize": (
        NORMS,
        7,
        Lossy(min_snr_db=0.5),
        {
            "dtype": "int4",
            "granularity": "block",
            "block_size": 32,
            "axis": None,
            "symmetric": True,
            "clip": "minmax",
            "recompress": False,
            "min_elements": 2048,
        },
    ),
    "decompress": ((), 6, Exact(), {}),
}


@pytest.mark.parametrize("name", DECLARED)
def test_passes(name: str) -> None:
    made = pass_class(name)()
    options = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
    assert made.name == name
    assert (made.after, made.opset, made.metric, options) == DECLARED[name]


def test_no_pass_of_its_own_is_forgotten() -> None:
    assert list(DECLARED) == [name for name in names() if pass_class(name).__module__.startswith("milopt.passes.")]


def modules() -> list[ModuleType]:
    found = pkgutil.iter_modules(milopt.passes.__path__, "milopt.passes.")
    return [importlib.import_module(each.name) for each in found]


def test_what_is_handed_on_is_frozen() -> None:
    """But for what collects results while a pass runs."""
    found = {value for module in modules() for value in vars(module).values() if dataclasses.is_dataclass(value)}
    own: list[Any] = [each for each in found if getattr(each, "__module__", "").startswith("milopt.passes.")]
    thawed = {each.__name__ for each in own if not each.__dataclass_params__.frozen}
    assert thawed == {"CompressionReport", "Made", "Plan", "Slots", "Totals", "Weight", "_Stream", "_Tie", "_Way"}
    assert {"Pair", "Place", "Tabulated", "PalettePlan", "Plan", "_Norm"} <= {each.__name__ for each in own}


def test_the_folder_is_no_package_of_its_own() -> None:
    """Run under another name, it would hold second copies of all passes."""
    loader: Any = milopt.passes.__loader__
    code = compile(loader.get_source("milopt.passes"), str(milopt.passes.__file__), "exec")
    with pytest.raises(ImportError) as error:
        exec(code, {"__name__": "passes"})
    assert str(error.value) == "import milopt.passes, not passes"
    exec(code, {"__name__": "milopt.passes"})

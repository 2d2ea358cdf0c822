"""The packages in ../shared/models, and inputs for them."""

from __future__ import annotations

import io
import runpy
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from milopt.interpreter import Plan
from milopt.verify.drawing import Style, draw
from milopt.verify.freezing import Frozen

__all__ = ["PACKAGES", "SHARED", "Package", "inputs_of", "refill", "shapes_of"]

SHARED = Path(__file__).resolve().parents[3] / "shared"

# Beyond its smallest size a ranged dimension is tried this much larger, where its range allows.
_STEPS = (0, 6, 36)


@dataclass(frozen=True)
class Package:
    """A package of the folder; ``refilled`` if its weights are to be made up, ``slow`` if that or a run takes long."""

    path: Path
    refilled: bool
    slow: bool

    @property
    def name(self) -> str:
        return self.path.stem


# What no type tells: of how many of 256 frames a recording consists, and how fast to speak.
_GIVEN = {"length": 200, "speed": 1.0}
# Hundreds of MB of weights, or many seconds of computing.
_SLOW = frozenset(
    {"bert_base_text-classification", "bibyu_u2netp", "distilbert_float16", "gpt2_fp16", "whispertiny_Encoder"}
)


def _find() -> tuple[Package, ...]:
    found = [*SHARED.glob("models/real/*.mlpackage"), *SHARED.glob("models/stories260K/*.mlpackage")]
    graphs = [*SHARED.glob("models/graphs/*.mlpackage")]
    return tuple(Package(path, path in graphs, path.stem in _SLOW) for path in sorted(found) + sorted(graphs))


PACKAGES = _find()


def refill(path: Path, folder: Path) -> Path:
    """A copy of the package with synthetic weights, in ``folder``; one that is there already is returned as it is."""
    copy = folder / path.name
    if not copy.exists():
        # in this process: a new one would spend seconds on importing coremltools
        with mock.patch.object(sys, "argv", ["refill.py", str(path), str(copy)]), redirect_stdout(io.StringIO()):
            runpy.run_path(str(SHARED / "tools" / "refill.py"), run_name="__main__")
    return copy


def shapes_of(frozen: Frozen, plan: Plan) -> Iterator[dict[str, tuple[int, ...]]]:
    """Shapes to try for the inputs of ``plan``: the default ones, those listed, and several sizes of every range.

    Dimensions with equal ranges get equal sizes: a package does not say which of its dimensions must agree.
    """
    flexible = {name: each for name, each in frozen.flexible[plan.function].items() if name in plan.inputs}
    fixed = {name: info.shape or () for name, info in plan.inputs.items()}
    default = {name: flexible[name].default if name in flexible else shape for name, shape in fixed.items()}
    tried = [default]
    listed = {name: each.shapes for name, each in flexible.items() if each.shapes}
    tried += [
        default | {name: shapes[index] for name, shapes in listed.items()}
        for index in range(min(map(len, listed.values()), default=0))
    ]
    ranged = {name: each.ranges for name, each in flexible.items() if each.ranges}
    tried += [
        default | {name: tuple(_size(*bounds, step) for bounds in each) for name, each in ranged.items()}
        for step in (_STEPS if ranged else ())
    ]
    seen: list[dict[str, Any]] = []
    for shapes in tried:
        if shapes not in seen:
            seen.append(shapes)
            yield {name: tuple(dim for dim in shape if isinstance(dim, int)) for name, shape in shapes.items()}


def _size(low: int, high: int, step: int) -> int:
    return low + step if high < 0 else min(high, low + step)


def inputs_of(
    frozen: Frozen, plan: Plan, shapes: dict[str, tuple[int, ...]], *, seed: int = 0
) -> dict[str, np.ndarray[Any, Any]]:
    """Random values for every input, by its role: token ids that exist, masks that are causal, pictures of 0 to 255."""
    rng = np.random.default_rng(seed)
    roles = frozen.roles[plan.function]
    return {
        name: draw(info, shapes[name], roles[name], rng, Style(ordinary=True, positive="magnitude" in name), None)
        for name, info in plan.inputs.items()
        if name not in _GIVEN
    } | {name: np.full(shapes[name], _GIVEN[name]) for name in plan.inputs if name in _GIVEN}

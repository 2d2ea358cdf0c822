"""Stand-alone scripts that repeat a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from milopt.metrics import Metric

__all__ = ["Recipe", "reproduction"]

_SCRIPT = '''\
"""Repeats a comparison of two packages: python {file} BEFORE.mlpackage AFTER.mlpackage{more}

{message}
"""

import sys

{imports}
from milopt.metrics import {metric_name}
from milopt.verify import compare

before, after = sys.argv[1:3]
{given}verdict = compare(
    before,
    after,
    trials={trials},
    metric={metric},
    inputs={inputs},
    seed={seed},
    function={function!r},
)
print(verdict)
sys.exit(0 if verdict else 1)
'''


@dataclass(frozen=True)
class Recipe:
    """What determines the inputs of a comparison: random ones follow from the seed, ``given`` ones do not."""

    seed: int = 0
    trials: int = 0
    function: str | None = None
    given: int = 0
    prompts: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def of(
        cls, seed: int, trials: int, function: str | None, given: Sequence[Mapping[str, Any] | Sequence[int]]
    ) -> Recipe:
        prompts = tuple(tuple(each) for each in given if not isinstance(each, Mapping))
        return cls(seed, trials, function, len(given) - len(prompts), prompts)


def reproduction(metric: Metric, recipe: Recipe, message: str) -> str:
    """The script's text. Arrays that the caller gave are read from ``.npz`` files, further arguments of the script."""
    arrays = recipe.given > 0
    lists = ", ".join(str(list(prompt)) for prompt in recipe.prompts)
    given = "inputs = [dict(np.load(path)) for path in sys.argv[3:]]\n" if arrays else ""
    return _SCRIPT.format(
        file="reproduce.py",
        more="".join(f" INPUTS{index + 1}.npz" for index in range(recipe.given)),
        message="\n".join(line.rstrip() for line in message.replace('"""', "'''").replace("\\", "/").splitlines()),
        imports="import numpy as np" if arrays else "",
        metric_name=type(metric).__name__,
        given=given,
        trials=recipe.trials,
        metric=repr(metric),
        inputs=(f"[*inputs, {lists}]" if arrays else f"[{lists}]") if arrays or lists else None,
        seed=recipe.seed,
        function=recipe.function,
    ).replace("import sys\n\n\n", "import sys\n\n")

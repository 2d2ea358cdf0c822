"""Does what will be converted compute what the unmodified model computes? Asked of every trace, on random inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from milopt.huggingface.errors import SelfCheckError
from milopt.huggingface.recording import Calls, first_parting

__all__ = ["RELATIVE", "difference", "named", "parting_module", "parts", "require_same"]

# Both sides are float32 and differ in the order of sums: by 8e-7 of the largest logit on small random models, 2.4e-6 on
# SmolLM2-135M. One past slot too many or too few, a position off by one, or one look ahead moved logits by 0.07 to 0.7
# of the largest on SmolLM2-135M, and by 0.008 to 1 on the small models.
RELATIVE = 1e-4


def require_same(
    what: str,
    wanted: Mapping[str, torch.Tensor],
    got: Mapping[str, torch.Tensor],
    *,
    tolerance: float = RELATIVE,
    where: Callable[[], str | None] = lambda: None,
) -> float:
    """The largest difference relative to the largest wanted value of its output.

    :class:`SelfCheckError` when it is more than ``tolerance``; ``where`` is then asked for the module in which the
    difference begins.
    """
    differences = {name: difference(value, got[name]) for name, value in wanted.items()}
    worst = max(differences, key=lambda name: differences[name])
    if not differences[worst] <= tolerance:
        module = where()
        place = f", first in {module}" if module is not None else ""
        if not wanted[worst].isfinite().all():
            raise SelfCheckError(
                f"the unmodified model itself does not answer with finite numbers: {worst}{place}; a weight may be "
                "damaged",
                differences[worst],
                module,
            )
        raise SelfCheckError(
            f"{what} does not compute what the unmodified model computes: {worst} differs by {differences[worst]:.3g} "
            f"of its largest value (at most {tolerance:g} is rounding){place}; "
            "torch or transformers may be too new for milopt",
            differences[worst],
            module,
        )
    return differences[worst]


def difference(wanted: torch.Tensor, got: torch.Tensor) -> float:
    """The largest difference as a share of the largest wanted value; infinite for NaN or other shapes."""
    if wanted.shape != got.shape:
        return math.inf
    scale = wanted.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    found = float((wanted - got).abs().max() / scale)
    return math.inf if math.isnan(found) else found


def parting_module(model: Any, expected: Calls, got: Calls) -> str | None:
    """The module of ``model``, with its class, in which the calls ``got`` first part from those ``expected``."""

    def tested(what: str) -> Callable[[str], bool]:
        def differs(path: str) -> bool:
            one, other = getattr(expected.get(path), what, None), getattr(got.get(path), what, None)
            return one is not None and other is not None and bool(parts(one, other))

        return differs

    return named(model, first_parting(expected, tested("given"), tested("taken")))


def named(model: Any, path: str | None) -> str | None:
    """A module by its path and its class."""
    return path if path is None else f"{path or 'the model'} ({type(model.get_submodule(path)).__name__})"


def parts(one: torch.Tensor, other: torch.Tensor) -> bool | None:
    """Whether two values differ by more than rounding; ``None`` where they can't be compared.

    Of a whole prompt, the last tokens are compared. A converter may have dropped or joined axes: then the numbers are
    still in the same order.
    """
    if one.shape == other.shape:
        return difference(one, other) > RELATIVE
    axes = [axis for axis in range(one.dim()) if one.dim() == other.dim() and one.shape[axis] != other.shape[axis]]
    if len(axes) == 1 and (length := other.shape[axes[0]]) < one.shape[axes[0]]:
        return difference(one.narrow(axes[0], one.shape[axes[0]] - length, length), other) > RELATIVE
    return difference(one.flatten(), other.flatten()) > RELATIVE if one.numel() == other.numel() else None

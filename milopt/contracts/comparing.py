"""When two conversations say the same, up to what rounding may do."""

from __future__ import annotations

from typing import Any

import numpy as np

from milopt.contracts.clients import Logits
from milopt.mil import is_constexpr, operations
from milopt.package import Model

__all__ = ["CLOSE", "SAME", "difference", "is_compressed", "not_finite", "same_tokens", "ties"]

# Sessions of one program in float64 differ by the order of sums.
SAME = 1e-6
# Weights are rounded alike, but not the other constants: fp16 tables of angles move logits by 1.5e-3 of the largest on
# the small models of tests/huggingface/families.py, and by 1.2e-4 on SmolLM2-135M. A mistake moves them by 8e-3 at
# least. Tokens whose logits are no further apart than twice that are a tie, which either may win.
CLOSE = 3e-3


def not_finite(got: Logits) -> str | None:
    """Which tokens' logits no client can use."""
    bad: Any = ~np.isfinite(got).all(-1)
    if not bad.any():
        return None
    text = f"the logits of {int(bad.sum())} of {len(bad)} tokens are not finite, first of token {bad.argmax()}"
    return f"{text}: the client answers with nonsense"


def difference(got: Logits, wanted: Logits) -> tuple[float, int]:
    """The largest difference, as a share of the largest logit, and the first token that is off by more than half."""
    off: Any = np.abs(got - wanted).max(-1) / max(float(np.abs(wanted).max()), np.finfo(np.float64).tiny)
    off = np.where(np.isnan(off), np.inf, off)
    return float(off.max()), int(np.argmax(off >= off.max() / 2))


def same_tokens(got: Logits, wanted: Logits, prompt: int) -> Any:
    """For each row that a client reads, the prompt's last and all behind it: is the likeliest token the same?"""
    return got[prompt - 1 :].argmax(-1) == wanted[prompt - 1 :].argmax(-1)


def ties(got: Logits, wanted: Logits, prompt: int) -> Any:
    """Where the likeliest token is none by more than what rounding may add to one logit and take from the other."""
    rows, chosen = wanted[prompt - 1 :], got[prompt - 1 :].argmax(-1)
    gap = rows.max(-1) - np.take_along_axis(rows, chosen[:, None], axis=-1)[:, 0]
    return gap <= 2 * CLOSE * np.abs(wanted).max()


def is_compressed(model: Model) -> bool:
    return any(is_constexpr(op.op_type) for function in model.functions.values() for op in operations(function))

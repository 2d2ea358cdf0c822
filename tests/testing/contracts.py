"""Decoders that a client's contract fits, and the same with one thing that no client gives or reads."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from milopt.mil import Program, target, types
from milopt.testing.notes import noted
from milopt.testing.scope import Draw
from tests.passes.contract_programs import model

__all__ = ["broken_clients", "clients"]

_BREAKS: dict[str, dict[str, Any]] = {
    "fixed shapes": {"query": 4},
    "fp32": {"kind": types.fp32},
    "logits of the last token": {"logits": "last"},
    "another input": {"more": "segment_ids"},
    "no states": {"opset": target.iOS17},
    "two masks": {"windows": (5, 0)},
}


def _options(draw: Draw) -> dict[str, Any]:
    return {
        "positions": draw(st.sampled_from(["rotary", "table", "none"])),
        "windows": (0,) * draw(st.integers(1, 3)),
        "seed": draw(st.integers(0, 99)),
    }


@st.composite
def clients(draw: Draw) -> Program:
    """Tokens, positions, one mask and pasts of any length; logits of every token and the presents."""
    return model(**_options(draw)).program


@st.composite
def broken_clients(draw: Draw) -> Program:
    """The same with one thing that the pass has to notice."""
    broken = draw(st.sampled_from(sorted(_BREAKS)))
    return noted(model(**{**_options(draw), **_BREAKS[broken]}).program, f"changed: {broken}")

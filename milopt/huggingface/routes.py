"""How a torch module becomes what coremltools reads. A route is one way to do that.

Importing this module imports torch; milopt does so only while it converts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch

from milopt.huggingface.errors import ConversionError
from milopt.huggingface.exporting import export
from milopt.huggingface.features import Signature

__all__ = ["Captured", "Route", "capture"]

Route: TypeAlias = Literal["trace", "export"]


@dataclass(frozen=True)
class Captured:
    """``form`` is what coremltools converts, ``call`` runs it on the wrapper's positional inputs."""

    form: Any
    call: Callable[..., Any]


Capture: TypeAlias = Callable[[torch.nn.Module, "tuple[torch.Tensor, ...]", "Signature | None"], Captured]


def capture(
    route: str, wrapper: torch.nn.Module, feeds: Mapping[str, torch.Tensor], signature: Signature | None = None
) -> Captured:
    """``wrapper`` by that route, captured on ``feeds``; sizes are flexible where ``signature`` says so."""
    if route not in _ROUTES:
        raise ConversionError(f"unknown route {route!r}: {', '.join(_ROUTES)}")
    return _ROUTES[route](wrapper, tuple(feeds.values()), signature)


def _traced(wrapper: torch.nn.Module, feeds: tuple[torch.Tensor, ...], signature: Signature | None) -> Captured:
    """TorchScript's tracer, which keeps the names of modules. All sizes stay open that the model computes with."""
    del signature
    jit: Any = torch.jit
    # milopt compares the trace itself, on other inputs than it was made with
    module = jit.trace(wrapper, feeds, check_trace=False)
    return Captured(module, module)


def _exported(wrapper: torch.nn.Module, feeds: tuple[torch.Tensor, ...], signature: Signature | None) -> Captured:
    """torch.export's program, which keeps the lines of Python. Sizes are open where ``signature`` leaves them open."""
    program = export(wrapper, feeds, signature)
    return Captured(program, program.module())


_ROUTES: dict[str, Capture] = {"trace": _traced, "export": _exported}

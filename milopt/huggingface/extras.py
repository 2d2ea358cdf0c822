"""The optional packages of ``milopt[huggingface]``, imported when they are first needed."""

from __future__ import annotations

import importlib
from typing import Any

from milopt.errors import MiloptError

__all__ = ["extra"]


def extra(name: str, *, error: type[MiloptError] = MiloptError) -> Any:
    """The imported package ``name``; without it, an ``error`` that says what to install."""
    try:
        return importlib.import_module(name)
    except ImportError as problem:
        raise error(f"{name} is missing ({problem}): pip install 'milopt[huggingface]'") from problem

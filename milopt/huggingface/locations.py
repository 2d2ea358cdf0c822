"""Where in a model's source a node of an exported program comes from: its line of Python, and its modules."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

__all__ = ["modules", "node_location", "raised_at"]

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')
# Where an exception comes from in these, what called them is of interest.
_LIBRARIES = frozenset({"torch", "sympy"})
# The outermost name is the model's own in milopt's wrapper, which means nothing to its author.
_WRAPPER = 1


def modules(meta: Mapping[str, Any]) -> list[tuple[str, str]]:
    """``(name, class)`` of the modules an exported node was called in, outermost first: ``layers.0``, ``self_attn``."""
    found: list[tuple[str, str]] = []
    outer = ""
    stack: dict[str, tuple[str, Any]] = meta.get("nn_module_stack") or {}
    for path, kind in stack.values():
        # a module that calls another's method comes back to a path that is not inside the one before
        name = path.removeprefix(f"{outer}.") if outer else path
        if name:
            found.append((name, str(kind).rpartition(".")[2]))
        outer = path
    return found


def node_location(meta: Mapping[str, Any]) -> str:
    """``modeling_llama.py:248 in model.layers.0.self_attn``, as far as an exported node's ``meta`` tells."""
    frames = _FRAME.findall(meta.get("stack_trace") or "")
    line = f"{PurePath(frames[-1][0]).name}:{frames[-1][1]}" if frames else ""
    module = ".".join(name for name, _ in modules(meta)[_WRAPPER:])
    return f"{line} in {module}" if line and module else line or module


def raised_at(problem: BaseException) -> str:
    """``modeling_llama.py:248``: the innermost line outside torch that an exception went through; often empty.

    The function that caught the exception does not count.
    """
    place, frame = "", problem.__traceback__
    while frame is not None and (frame := frame.tb_next) is not None:
        file = PurePath(frame.tb_frame.f_code.co_filename)
        if _LIBRARIES.isdisjoint(file.parts):
            place = f"{file.name}:{frame.tb_lineno}"
    return place

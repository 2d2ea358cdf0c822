"""What each module of a torch model took in and gave out in one call, and where two calls part.

Importing this module imports torch; milopt does so only while it converts.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch

__all__ = ["Calls", "ModuleCall", "called_path", "first_parting", "recording", "running"]


@dataclass(frozen=True)
class ModuleCall:
    """The first tensor that a module took and the first that it returned; ``None`` where there was none."""

    taken: torch.Tensor | None
    given: torch.Tensor | None


Calls: TypeAlias = dict[str, ModuleCall]
"""Path of a module inside the model -> its call, in the order in which the calls ended. The model itself is ``""``."""

Test: TypeAlias = Callable[[str], bool]


@contextmanager
def recording(model: Any) -> Generator[Calls]:
    """While this lasts, every call of a module of ``model`` is kept; of several calls of one module, the last."""
    calls: Calls = {}
    handles: list[Any] = []

    def hook(path: str) -> Any:
        def keep(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
            calls.pop(path, None)
            calls[path] = ModuleCall(_first((*args, *kwargs.values())), _first((result,)))

        return keep

    for path, module in model.named_modules():
        handles.append(module.register_forward_hook(hook(path), with_kwargs=True))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def running(model: Any) -> Generator[list[str]]:
    """The paths of the modules that are being called, outermost first; an exception leaves those it went through."""
    stack: list[str] = []
    handles: list[Any] = []

    def enter(path: str) -> Any:
        def push(*_: Any) -> None:
            stack.append(path)

        return push

    def leave(*_: Any) -> None:
        stack.pop()

    for path, module in model.named_modules():
        handles += [module.register_forward_pre_hook(enter(path)), module.register_forward_hook(leave)]
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()


def _first(values: Iterable[Any]) -> torch.Tensor | None:
    """The first float tensor among ``values`` and what they hold."""
    for value in values:
        if isinstance(value, torch.Tensor):
            if value.is_floating_point():
                return value.detach()
            continue
        inner: Iterable[Any] = ()
        if isinstance(value, Mapping):
            inner = cast("Mapping[str, Any]", value).values()
        elif isinstance(value, (tuple, list)):
            inner = cast("Iterable[Any]", value)
        if (found := _first(inner)) is not None:
            return found
    return None


def first_parting(paths: Iterable[str], given_differs: Test, taken_differs: Test) -> str | None:
    """The path of the innermost module in which two runs part; ``None`` if nowhere.

    ``paths`` are modules in the order in which their calls ended; the tests say of a module whether what it gave, or
    what it took, differs between the runs. It is the first module whose result differs. Where what it took differs
    already, the difference was made on the way to it, by the module around it.
    """
    known = dict.fromkeys(paths)
    path = next((each for each in known if given_differs(each)), None)
    while path and taken_differs(path):
        path = path.rpartition(".")[0]
        while path and path not in known:  # lists of modules are not called
            path = path.rpartition(".")[0]
    return path


def called_path(model: torch.nn.Module, path: str) -> tuple[str, ...]:
    """``path`` without lists of modules, which are never called: how torch's tracer names the module's scope."""
    names: list[str] = []
    module = model
    for name in path.split(".") if path else ():
        module = module.get_submodule(name)
        if not isinstance(module, (torch.nn.ModuleList, torch.nn.ModuleDict)):
            names.append(name)
    return tuple(names)

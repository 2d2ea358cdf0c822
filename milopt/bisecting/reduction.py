"""The smallest program that still shows something."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from milopt.bisecting.pieces import bypassed, cut, function_alone, region, with_outputs, with_sizes
from milopt.mil import is_constant_like
from milopt.package import Model
from milopt.package.naming import make_names_unique

__all__ = ["reduce_model"]

# Each try runs the pass and both programs. Programs that are cut to the neighbourhood first need 20 to 60.
_MOST_TRIES = 150
# What an unknown dimension is tried with: without knowing it, the program can't be cut at values that have it.
_SIZES = (2, 1, 16, 64)


def reduce_model(
    model: Model,
    shows: Callable[[Model], bool],
    *,
    near: Mapping[str | None, Sequence[str]] | None = None,
    most_tries: int = _MOST_TRIES,
) -> Model:
    """A smaller model for which ``shows`` is still true; ``model`` itself where there is none. It stays as it is.

    First one function alone, then the neighbourhood of the ops or values ``near`` (by function; ``None`` for any), as
    small as possible; then outputs and ops are taken away one by one until none can be. At most ``most_tries`` programs
    are tried.
    """
    reducer = _Reducer(model, shows, most_tries)
    reducer.run(near or {})
    return reducer.best


class _Reducer:
    def __init__(self, model: Model, shows: Callable[[Model], bool], most_tries: int) -> None:
        self.best = model.clone()
        self.best.attachments = {}
        make_names_unique(self.best.program)
        self.shows, self.left = shows, most_tries

    def run(self, near: Mapping[str | None, Sequence[str]]) -> None:
        if self.best.metadata:
            self.smaller(iter([_without_metadata(self.best)]))
        order = sorted(self.best.functions, key=lambda name: name not in near)
        if len(order) > 1:
            self.smaller(function_alone(self.best, name) for name in order)
        function = next((name for name in order if name in self.best.functions), order[0])
        self.smaller(with_sizes(self.best, function, size) for size in _SIZES)
        names = [*near.get(function, ()), *near.get(None, ())]
        self.smaller(_neighbourhoods(self.best, function, names))
        while self.smaller(_steps(self.best, function)):
            pass

    def smaller(self, candidates: Iterator[Model | None]) -> bool:
        """Keep the first candidate that shows it."""
        for candidate in candidates:
            if candidate is None:
                continue
            if not self.left:
                return False
            self.left -= 1
            if self.shows(candidate):
                self.best = candidate
                return True
        return False


def _without_metadata(model: Model) -> Model:
    """What a package says of its cache, for one, may be untrue of a part of the program."""
    made = model.clone()
    made.metadata = {}
    return made


def _neighbourhoods(model: Model, function: str, names: list[str]) -> Iterator[Model | None]:
    graph, before, radius = model.functions[function], set[str](), 0
    while (names_now := region(graph, names, radius)) != before or not radius:
        yield cut(model, function, names_now) if names_now else None
        before, radius = names_now, radius * 2 or 1


def _steps(model: Model, function: str) -> Iterator[Model | None]:
    """Every program that is one step smaller, those that lose most first."""
    graph = model.functions[function]
    outputs = [var.name for var in graph.outputs]
    if len(outputs) > 1:
        yield from (with_outputs(model, function, [name]) for name in outputs)
        yield from (with_outputs(model, function, [name for name in outputs if name != gone]) for gone in outputs)
    ops = [op for op in graph.operations if not is_constant_like(op)]
    names = [op.name for op in ops]
    if len(names) == 1:
        return
    for op in reversed(ops):
        yield cut(model, function, set(names) - {op.name})
    for name in reversed(names):
        yield from bypassed(model, function, name)

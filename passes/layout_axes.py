"""Which axes of a program's values are one and the same, and where reshapes cut them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from itertools import pairwise
from math import isqrt, prod
from typing import Any

from milopt.mil import Operation, Var, constant, is_symbolic, shape_of

__all__ = ["MOVES", "Axes", "Numbering", "moved"]

MOVES = frozenset({"transpose", "reshape", "expand_dims", "squeeze"})

# Symbols count as primes that no dimension has as a factor, so that 2·s is told from 3·s and from 64.
_FIRST = (1 << 31) - 1


def _prime_below(number: int) -> int:
    while True:
        number -= 2
        if all(number % factor for factor in range(3, isqrt(number) + 1, 2)):
            return number


class Numbering:
    """Dimensions as numbers: a number for itself, a symbol for a prime of its own, multiples for multiples."""

    def __init__(self) -> None:
        self._primes: dict[str, int] = {}
        self.symbols: dict[int, Any] = {}

    def number(self, dim: Any) -> int:
        if not is_symbolic(dim):
            return int(dim)
        factor, symbol = dim.as_coeff_Mul()
        if not factor.is_Integer:
            factor, symbol = 1, dim
        prime = self._primes.get(str(symbol))
        if prime is None:
            prime = _prime_below(min(self.symbols, default=_FIRST))
            self._primes[str(symbol)] = prime
            self.symbols[prime] = symbol
        return int(factor) * prime

    def shape(self, var: Var) -> tuple[int, ...]:
        return tuple(map(self.number, shape_of(var)))


_Axis = tuple[Var, int]


class Axes:
    """Classes of axes that are cut alike. ``opaque`` are moves that can't be told as cuts and joints of axes."""

    def __init__(self) -> None:
        self.numbering = Numbering()
        self.opaque: set[Operation] = set()
        self._parent: dict[_Axis, _Axis] = {}
        self._segments: list[tuple[Operation, list[_Axis], list[_Axis]]] = []
        self._cuts: dict[_Axis, set[int]] = {}

    def root(self, axis: _Axis) -> _Axis:
        parent = self._parent
        while (above := parent.get(axis, axis)) != axis:
            parent[axis] = parent.get(above, above)
            axis = above
        return axis

    def unite(self, axes: Iterable[_Axis]) -> None:
        """Let these axes be cut alike; they have the same size."""
        first, *others = map(self.root, axes)
        for each in others:
            if each != first:
                self._parent[each] = first

    def disagreement(self, axes: Iterable[_Axis]) -> str | None:
        """What is wrong with axes that should be one: their types give them other sizes. ``None`` where all is well.

        Two symbols may be one length: MIL has a new one for what it can't tell.
        """
        (one, place), *others = axes
        for var, at in others:
            sizes = [shape_of(each)[where] for each, where in ((one, place), (var, at))]
            if self._size((var, at)) != self._size((one, place)) and not all(map(is_symbolic, sizes)):
                return f"{one.name} has {sizes[0]} on axis {place} where {var.name} has {sizes[1]} on axis {at}"
        return None

    def add_move(self, op: Operation) -> None:
        """Take in what a transpose, reshape, expand_dims or squeeze says about axes."""
        x, y = op.inputs["x"], op.outputs[0]
        before, after = self.numbering.shape(x), self.numbering.shape(y)
        if op.op_type == "transpose":
            order = [int(each) % x.rank for each in constant(op.inputs["perm"])]
            if [before[source] for source in order] != list(after):
                self.opaque.add(op)
                return
            for at, source in enumerate(order):
                self.unite([(y, at), (x, source)])
            return
        pairs = segments(before, after)
        if pairs is None:
            self.opaque.add(op)
            return
        for sources, targets in pairs:
            if len(sources) == len(targets) == 1:
                self.unite([(x, sources[0]), (y, targets[0])])
            else:
                self._segments.append((op, [(x, at) for at in sources], [(y, at) for at in targets]))

    def _size(self, axis: _Axis) -> int:
        return self.numbering.number(shape_of(axis[0])[axis[1]])

    def settle(self) -> None:
        """Carry cuts from axis to axis until nothing changes; reshapes that don't fit the others become opaque."""
        while True:
            self._cuts.clear()
            culprit = self._carry()
            if culprit is None:
                return
            self.opaque.add(culprit)
            self._segments = [each for each in self._segments if each[0] is not culprit]

    def _carry(self) -> Operation | None:
        changed = True
        while changed:
            changed = False
            for op, sources, targets in self._segments:
                offsets = self._offsets(sources) | self._offsets(targets)
                ordered = sorted(offsets)
                if any(high % low for low, high in pairwise(ordered)):
                    return op
                for axes in (sources, targets):
                    low = 1
                    for axis in reversed(axes):
                        high = low * self._size(axis)
                        own = self._cuts.setdefault(self.root(axis), set())
                        inside = {each // low for each in offsets if low < each < high}
                        if not inside <= own:
                            own |= inside
                            changed = True
                            if any(high % low for low, high in pairwise(sorted(own))):
                                return op
                        low = high
        return None

    def _offsets(self, axes: Sequence[_Axis]) -> set[int]:
        """Where a run of axes is cut, as products of the sizes behind."""
        found: set[int] = set()
        low = 1
        for axis in reversed(axes):
            found |= {low * each for each in self._cuts.get(self.root(axis), ())}
            low *= self._size(axis)
            found.add(low)
        return found

    def pieces(self, var: Var) -> list[list[int]]:
        """For each axis the sizes of its pieces, outer ones first; none for an axis of length 1."""
        found: list[list[int]] = []
        for at, size in enumerate(self.numbering.shape(var)):
            cuts = [*sorted(self._cuts.get(self.root((var, at)), ())), size]
            sizes = [high // low for low, high in zip([1, *cuts], cuts, strict=False)]
            found.append([each for each in reversed(sizes) if each != 1])
        return found


def segments(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]] | None:
    """The shortest runs of axes with the same product, in order, unit axes left out; ``None`` where there is none."""
    if prod(before) != prod(after):
        return None
    ends = set(_products(before)).intersection(_products(after))
    return list(zip(_runs(before, ends), _runs(after, ends), strict=True))


def _products(shape: Sequence[int]) -> list[int]:
    """The product of the sizes up to each axis."""
    return [prod(shape[:end]) for end in range(1, len(shape) + 1)]


def _runs(shape: Sequence[int], ends: AbstractSet[int]) -> list[list[int]]:
    """The axes longer than 1, in runs that end where the product of all sizes so far is among ``ends``."""
    runs: list[list[int]] = []
    run: list[int] = []
    for at, (size, high) in enumerate(zip(shape, _products(shape), strict=True)):
        if size == 1:
            continue
        run.append(at)
        if high in ends:
            runs.append(run)
            run = []
    return runs


def moved(op: Operation, layout: tuple[tuple[int, ...], ...], sizes: Sequence[int], shape: Sequence[int]) -> Any:
    """The layout of what a move makes of ``layout``; ``None`` where it can't be told. ``shape`` is the result's."""
    if op.op_type == "transpose":
        return tuple(layout[int(each) % len(layout)] for each in constant(op.inputs["perm"]))
    pieces = [piece for axis in layout for piece in axis]
    found: list[tuple[int, ...]] = []
    for size in shape:
        axis: list[int] = []
        while size != 1:
            if not pieces or size % sizes[pieces[0]]:
                return None
            axis.append(pieces.pop(0))
            size //= sizes[axis[-1]]
        found.append(tuple(axis))
    return None if pieces else tuple(found)

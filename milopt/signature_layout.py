"""What a package says of inputs, outputs and states that it takes, gives or keeps in another layout than before."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from milopt.errors import PackageError
from milopt.signature import METADATA_KEY, CacheSignature

__all__ = ["LAYOUT_KEY", "LayoutSignature", "Relaid"]

LAYOUT_KEY = "milopt.layout"


@dataclass(frozen=True)
class Relaid:
    """One tensor: it was of the shape ``public``, and is of the shape ``stored`` now.

    ``x.reshape(split).transpose(perm).reshape(stored)`` makes one of the other.
    """

    name: str
    public: tuple[int, ...]
    split: tuple[int, ...]
    perm: tuple[int, ...]
    stored: tuple[int, ...]

    def __post_init__(self) -> None:
        sizes = {prod(each) for each in (self.public, self.split, self.stored)}
        if len(sizes) != 1 or sorted(self.perm) != list(range(len(self.split))):
            raise ValueError(f"{self.name!r} is not {list(self.public)} in another order")

    def store(self, tensor: Any) -> Any:
        """A torch tensor as the program wants it; a view where torch can give one."""
        return tensor.reshape(self.split).permute(self.perm).reshape(self.stored)

    def show(self, tensor: Any) -> Any:
        """What the program has, as it was before."""
        inverse = sorted(range(len(self.perm)), key=self.perm.__getitem__)
        return tensor.reshape([self.split[at] for at in self.perm]).permute(inverse).reshape(self.public)


@dataclass(frozen=True)
class LayoutSignature:
    """The tensors in another layout, by function. States are the same in all."""

    functions: Mapping[str, tuple[Relaid, ...]]

    def of(self, function: str) -> dict[str, Relaid]:
        """Those of a function, by name."""
        return {each.name: each for each in self.functions.get(function, ())}

    def public_cache(self, cache: CacheSignature) -> CacheSignature:
        """What is said of a cache whose states are relaid, as if they were not."""
        return self._moved(cache, lambda perm, axis: perm[axis])

    def stored_cache(self, cache: CacheSignature) -> CacheSignature:
        """The same the other way round."""
        return self._moved(cache, lambda perm, axis: perm.index(axis))

    def _moved(self, cache: CacheSignature, moved: Callable[[tuple[int, ...], int], int]) -> CacheSignature:
        """``cache`` with other axes of slots. PackageError where a state has no such axis."""
        relaid = {each.name: each for several in self.functions.values() for each in several}
        slots = list(cache.slots)
        for at, slot in enumerate(slots):
            if (state := relaid.get(slot.state)) is None:
                continue
            axis = cache.axis_of(slot)
            if axis not in state.perm:
                raise PackageError(f"metadata {LAYOUT_KEY!r} says nothing of axis {axis} of state {slot.state!r}")
            slots[at] = replace(slot, axis=moved(state.perm, axis))
        return replace(cache, slots=tuple(slots))

    def public_metadata(self, metadata: Mapping[str, str]) -> dict[str, str]:
        """The metadata of a package as they would be without the other layouts."""
        shown = {key: text for key, text in metadata.items() if key != LAYOUT_KEY}
        if (cache := CacheSignature.from_metadata(metadata)) is not None:
            shown[METADATA_KEY] = self.public_cache(cache).to_json()
        return shown

    def handed_on(self, cache: CacheSignature, shapes: Mapping[str, Mapping[str, tuple[int, ...]]]) -> LayoutSignature:
        """The same where the states of ``cache`` are inputs and outputs now, whose ``shapes`` are given by function."""
        functions: dict[str, tuple[Relaid, ...]] = {}
        states = {slot.state for slot in cache.slots}
        for function, known in shapes.items():
            own = self.of(function)
            moved = [
                _like(own[slot.state], name, known[name])
                for slot in cache.slots
                if slot.state in own
                for name in (slot.past, slot.present)
            ]
            functions[function] = (*(each for name, each in own.items() if name not in states), *moved)
        return LayoutSignature(functions)

    def to_json(self) -> str:
        """The text for the metadata."""
        functions = {
            name: {each.name: [each.public, each.split, each.perm, each.stored] for each in several}
            for name, several in self.functions.items()
        }
        return json.dumps(functions, separators=(",", ":"))

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> LayoutSignature | None:
        """What a package says of itself; ``None`` when it says nothing. Raises PackageError when it can't be read."""
        if (text := metadata.get(LAYOUT_KEY)) is None:
            return None
        try:
            functions: dict[str, dict[str, list[list[int]]]] = json.loads(text)
            return cls(
                {
                    function: tuple(Relaid(name, *_shapes(shapes)) for name, shapes in several.items())
                    for function, several in functions.items()
                }
            )
        except (ValueError, TypeError, AttributeError) as error:
            raise PackageError(f"metadata {LAYOUT_KEY!r} does not describe layouts: {error}") from error


def _like(state: Relaid, name: str, stored: tuple[int, ...]) -> Relaid:
    """A tensor whose axes are in the order of a state's."""
    public = tuple(stored[state.perm.index(at)] for at in range(len(stored)))
    return Relaid(name, public, public, state.perm, stored)


def _shapes(shapes: list[list[int]]) -> tuple[tuple[int, ...], ...]:
    if len(shapes) != 4:
        raise ValueError(f"{len(shapes)} shapes")
    return tuple(tuple(int(each) for each in shape) for shape in shapes)

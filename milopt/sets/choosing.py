"""Which cuts there may be between the chunks of a program, and which of them are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from milopt.mil import Operation, Var, is_constant_like, is_symbolic, shape_of
from milopt.package import Model
from milopt.package.tensors import Stored, stored_tensors
from milopt.sets.deployment import entry_bytes
from milopt.sets.errors import SetError
from milopt.sets.partition import Weights, balanced, fewest
from milopt.sets.places import After, Place, places_of
from milopt.sets.stream import Stream, reads, stream_of

__all__ = ["EmbeddingPart", "HeadPart", "Layers", "cut_places", "layers_of"]

EmbeddingPart: TypeAlias = Literal["first", "package", "table"]
HeadPart: TypeAlias = Literal["last", "package"]


def cut_places(model: Model) -> dict[Place, dict[str, Var]]:
    """Where the program can be cut, in order, and what each of its functions hands over there.

    Functions have to have the same places; those that some lack are left out.
    """
    found = {name: places_of(stream_of(function)) for name, function in model.functions.items()}
    first = next(iter(found.values()))
    return {
        place: {name: each[place] for name, each in found.items()}
        for place in first
        if all(place in each for each in found.values())
    }


@dataclass(frozen=True)
class Layers:
    """Where cuts may be: ``before`` the first chunk, ``inner`` ones between chunks, ``behind`` the last.

    ``weights`` are those between two neighbouring inner places, and at both ends.
    """

    values: Mapping[Place, Mapping[str, Var]]
    before: tuple[Place, ...]
    inner: tuple[Place, ...]
    behind: tuple[Place, ...]
    weights: tuple[Weights, ...]

    def chosen(self, count: int | None, max_bytes: int | None, at: Sequence[int] | None) -> tuple[list[Place], str]:
        if at is not None:
            return self._given(at), f"{len(at) + 1} chunks: cut where it was said"
        if max_bytes is not None:
            count = fewest(self.weights, max_bytes)
            why = f"the fewest of which none stores more than {max_bytes:,} bytes"
        else:
            why = "as many as wanted"
        assert count is not None
        if count < 1:
            raise SetError(f"the number of chunks is 1 or more, not {count}")
        if count > len(self.weights):
            raise SetError(
                f"{count} chunks are too many: the program has {len(self.weights)} layers that can be cut apart"
            )
        cuts, largest = balanced(self.weights, count)
        noun = "chunk" if count == 1 else "chunks"
        return [self.inner[cut - 1] for cut in cuts], f"{count} {noun}, {why}; the largest stores {largest:,} bytes"

    def _given(self, at: Sequence[int]) -> list[Place]:
        known = {place.layer: place for place in self.inner}
        for layer in at:
            if layer not in known:
                raise SetError(f"no cut can be made behind layer {layer}: there are {_listed(sorted(known))}")
        if sorted(set(at)) != list(at):
            raise SetError(f"the layers to cut behind are given once each and in order, not {_listed(at)}")
        return [known[layer] for layer in at]


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"


def layers_of(
    model: Model, streams: Mapping[str, Stream], after: After, embedding: EmbeddingPart, head: HeadPart
) -> Layers:
    """SetError where the embedding, the head or the attention can't be cut off as it is wanted."""
    values = cut_places(model)
    for name, function in model.functions.items():
        for var in function.inputs.values():
            if not values and any(map(is_symbolic, shape_of(var))):
                raise SetError(
                    f"input {var.name!r} of function {name!r} has an open size, and what is handed over needs a fixed "
                    "one: convert with fixed query lengths"
                )
    first = [place for place in values if place.after == "embedding"]
    tail = [place for place in values if place.after == "layers"]
    if embedding != "first" and not first:
        raise SetError("nothing comes before the layers that could be a part of its own: leave the embedding there")
    if head != "last" and not tail:
        raise SetError("nothing comes behind the layers that could be a part of its own: leave the head there")
    wanted = ("attention",) if after == "attention" else ("mlp", "layer")
    inner = [place for place in values if place.after in wanted]
    if not inner and after == "attention":
        raise SetError("no layer has a place between its attention and what follows: cut behind whole layers")
    before = tuple(first) if embedding != "first" else ()
    behind = tuple(tail) if head != "last" else ()
    weights = _weights(model, streams, values, (*before, *inner, *behind))
    return Layers(values, before, tuple(inner), behind, weights[len(before) : len(weights) - len(behind)])


def _weights(
    model: Model,
    streams: Mapping[str, Stream],
    values: Mapping[Place, Mapping[str, Var]],
    places: Sequence[Place],
) -> tuple[Weights, ...]:
    """The stored tensors that the stream's ops use between the places, in all functions together."""
    stored = {op: each for each in stored_tensors(model) if each.file is not None for _, op in each.places}
    found: tuple[dict[object, int], ...] = tuple({} for _ in range(len(places) + 1))
    for name, stream in streams.items():
        for op, part in stream.made_in(tuple(values[place][name] for place in places)).items():
            for each in _tensors(op, stored):
                found[part][each.key] = entry_bytes(each)
    return found


def _tensors(op: Operation, stored: Mapping[Operation, Stored]) -> list[Stored]:
    todo = [var.op for var in reads(op) if var.op is not None and is_constant_like(var.op)]
    found: list[Stored] = []
    while todo:
        each = todo.pop()
        if each in stored:
            found.append(stored[each])
        todo += [var.op for var in reads(each) if var.op is not None]
    return found

"""Every decoder family of the front door, cut into all numbers of chunks."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import pytest

from milopt.mil import shape_of
from milopt.package import Model
from milopt.pipeline import Pipeline
from milopt.sets import chunk, cut_places, verify
from tests.huggingface.families import CONTEXT, FAMILIES, Family

pytestmark = pytest.mark.slow

DECODERS = [name for name, family in FAMILIES.items() if family.kind == "decoder"]
ENDS: dict[str, Any] = {"embedding": "package", "head": "package"}
# Beside the stream a token has cosines and sines, of two kinds where some layers turn otherwise, of its head's size.
_VALUES, _ELEMENTS = 4, 24


def _forms(family: Family) -> Iterator[Model]:
    """As it is converted, and after the default pipeline."""
    from milopt.huggingface import convert

    model = convert(family.make(), context=CONTEXT, query_lengths=(1, 8))
    yield model
    Pipeline.default().run(model, verify=None)
    yield model


@pytest.mark.parametrize("name", DECODERS)
def test_all_numbers_of_chunks(name: str) -> None:
    family = FAMILIES[name]
    for model in _forms(family):
        layers = [place for place in cut_places(model) if place.after in ("mlp", "layers")]
        assert [place.layer for place in layers] == list(range(family.layers))
        for count in range(1, family.layers + 1):
            made = chunk(model, count=count, **ENDS)
            assert (verdict := verify(model, made, trials=1)), f"{name}, {count} chunks: {verdict}"
            _check_interfaces(model, made, count)
        assert (verdict := verify(model, chunk(model, count=family.layers, shared="recompute"), trials=1)), verdict


def _check_interfaces(model: Model, made: Any, count: int) -> None:
    """A boundary is the residual stream, and shared values smaller than the inputs they are made of."""
    stream = {str(place): values["decode"] for place, values in cut_places(model).items()}
    widths = {shape_of(var)[-1] * (shape_of(var)[1] if len(shape_of(var)) > 2 else 1) for var in stream.values()}
    assert len(widths) == 1, "the stream is as wide everywhere"
    for part in made.parts:
        takes = part.steps["decode"].takes
        handed = {name: source for name, source in takes.items() if "/" in source}
        assert ("hidden_states" in handed) == (part.name != "embeddings")
        if part.name in ("embeddings", "head") or count == 1:
            assert set(handed) <= {"hidden_states"}
        beside = handed.keys() - {"hidden_states"}
        inputs = made.files[part.file].function(part.steps["decode"].function).inputs
        assert len(beside) <= _VALUES
        assert all(prod(shape_of(inputs[name])) <= _ELEMENTS for name in beside)

"""How many chunks a device asks for, and what is known to go wrong there."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from milopt.errors import MiloptError
from milopt.package import Model
from milopt.sets import SetError, advise, chunk, targets, warnings_for
from milopt.sets.targets import TARGETS
from tests.sets.programs import Transformer

ENDS: dict[str, Any] = {"embedding": "package", "head": "package"}


@pytest.fixture(scope="module")
def model() -> Model:
    return Transformer(mlp=(24, 24, 24)).model()


def _limited(monkeypatch: pytest.MonkeyPatch, name: str, limit: int) -> None:
    monkeypatch.setitem(TARGETS, name, replace(TARGETS[name], limit=limit))


def test_limits_and_where_they_are_from() -> None:
    assert {name: each.limit for name, each in TARGETS.items()} == {
        "iphone": 10**9,
        "ipad": 10**9,
        "mac": 2 * 10**9,
    }
    assert all("Anemll" in each.source or "coremltools#1807" in each.source for each in TARGETS.values())


def test_the_reason_says_the_size_and_who_found_the_limit(model: Model) -> None:
    told = advise(model, "iphone")
    assert told.chunks == 1
    assert re.fullmatch(r"1 chunk: the program's [\d,]+ bytes of weights fit in one file; .*Anemll.*", told.reason)


def test_as_many_chunks_as_it_takes(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    _limited(monkeypatch, "mac", 12_000)
    told = advise(model, "mac")
    assert told.chunks == 2
    assert "do not fit in one file" in told.reason
    made = chunk(model, count=told.chunks, **ENDS)
    assert not any("bytes of weights" in each for each in warnings_for(made, "mac"))
    assert any("bytes of weights" in each for each in warnings_for(chunk(model, count=1, **ENDS), "mac"))
    _limited(monkeypatch, "mac", 4_000)
    with pytest.raises(SetError, match="no cut between layers keeps every chunk within 3,999 bytes"):
        advise(model, "mac")


def test_a_file_as_large_as_the_limit_is_too_large(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    made = chunk(model, count=1)
    size = made.sizes()["chunk_01of01.mlpackage"]
    _limited(monkeypatch, "iphone", size)
    assert f"chunk_01of01.mlpackage has {size:,} bytes of weights: " in "\n".join(warnings_for(made, "iphone"))
    _limited(monkeypatch, "iphone", size + 1)
    assert "bytes of weights" not in "\n".join(warnings_for(made, "iphone"))


def test_a_package_that_may_run_on_the_gpu(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "_SILENT_GPU", 20_000)
    (large,) = warnings_for(chunk(model, count=1), "mac")[:1]
    assert "above 1.4 GB a package was seen to run on the GPU" in large


def test_hazards_of_states(model: Model) -> None:
    pair = "\n".join(warnings_for(chunk(model, count=1), "iphone"))
    assert "no multiples of 32" in pair
    assert "several functions with a state" in pair
    assert "more than two states" not in pair
    assert "several functions" not in "\n".join(warnings_for(chunk(model, count=1), "mac"))
    many = chunk(Transformer(mlp=(24, 24), states="layers").model((1,)), count=1)
    told = "\n".join(warnings_for(many, "iphone"))
    assert "more than two states" in told
    assert "several functions" not in told
    assert warnings_for(chunk(model, count=1, **ENDS), "mac")
    assert not [each for each in warnings_for(chunk(model, count=1, **ENDS), "mac") if each.startswith("head")]


def test_an_unknown_target(model: Model) -> None:
    with pytest.raises(MiloptError, match="there is no target 'watch'; there are: iphone, ipad, mac"):
        advise(model, "watch")

"""Families with a sliding window as ANEMLL's clients load them, with caches of the whole context and with rings."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from milopt.contracts.anemll_checking import compare_with
from milopt.package import Model
from milopt.pipeline import DEFAULT, Pipeline
from milopt.sets.anemll import anemll_set
from tests.huggingface.families import FAMILIES, Family

pytestmark = pytest.mark.slow

SLIDING = [name for name, family in FAMILIES.items() if family.kind == "decoder" and family.window]
# No multiple of a block of 5, which begins below the window of 8 and ends beyond it, and four turns of the ring.
CONTEXT, BLOCK = 48, 5


def _forms(family: Family, update: str) -> Iterator[Model]:
    """As it is converted, and after the default pipeline."""
    from milopt.huggingface import convert

    plain = convert(family.make(), context=CONTEXT, query_lengths=(1, BLOCK))
    cache = f"kv-to-state{{layout=unified,update={update}}}"
    for passes in (cache, DEFAULT.replace("kv-to-state", cache)):
        model = plain.clone()
        Pipeline.parse(passes).run(model, verify=None)
        yield model


@pytest.mark.parametrize("update", ["slice", "ring"])
@pytest.mark.parametrize("name", SLIDING)
def test_the_set_answers_as_the_program_beyond_the_window(name: str, update: str) -> None:
    for model in _forms(FAMILIES[name], update):
        made = anemll_set(model, count=2, slices=2)
        assert (made.window == 8) == (update == "ring")
        finding = compare_with(model, made, tokens=8)
        assert finding.passed, f"{name}: {finding}"

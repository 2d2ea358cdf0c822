"""Every program in docs/found.md still goes wrong as it says there, and numpy agrees on what it computes."""

from __future__ import annotations

import importlib
import re
from typing import Any

import numpy as np
import pytest

from milopt.mil import dtype_name
from tests.found.document import Entry, computed, entries, rewritten

ENTRIES = list(entries())
VERSION: str = importlib.import_module("coremltools").__version__
MENDED = f"coremltools {VERSION} no longer does this: say so in docs/found.md"

numeric = pytest.mark.parametrize("entry", [e for e in ENTRIES if e.after is not None], ids=lambda e: e.title)


def close(one: Any, other: Any) -> bool:
    """To the six digits that the document gives."""
    return one.shape == other.shape and np.allclose(one, other, rtol=5e-6, atol=1e-9)


def test_there_are_entries() -> None:
    assert len(ENTRIES) >= 10
    assert len({each.title for each in ENTRIES}) == len(ENTRIES)
    # each says in one way what goes wrong
    for each in ENTRIES:
        assert (each.after is not None) + bool(each.crash) + bool(each.shapes) + bool(each.types) == 1, each.title


@numeric
def test_the_program_computes_what_numpy_says(entry: Entry) -> None:
    found = computed(entry.program(), entry.given())
    assert close(found, entry.by_hand("before"))
    assert close(found, entry.before)


@numeric
def test_the_pass_makes_another_of_it(entry: Entry) -> None:
    found = computed(rewritten(entry), entry.given())
    assert not close(found, entry.before), MENDED
    assert close(found, entry.by_hand("after")), f"{entry.title}: wrong in another way now"
    assert close(found, entry.after)


@pytest.mark.parametrize("entry", [e for e in ENTRIES if e.crash], ids=lambda e: e.title)
def test_the_pass_crashes(entry: Entry) -> None:
    computed(entry.program(), entry.given())
    expected = re.escape(entry.crash.partition(": ")[2])
    with pytest.raises((ValueError, IndexError, AttributeError), match=expected) as raised:
        rewritten(entry)
    assert entry.crash in f"{type(raised.value).__name__}: {raised.value}"


@pytest.mark.parametrize("entry", [e for e in ENTRIES if e.shapes], ids=lambda e: e.title)
def test_the_pass_changes_a_shape(entry: Entry) -> None:
    assert close(computed(entry.program(), entry.given()), entry.by_hand("before"))
    after = rewritten(entry).function().outputs[0].shape
    assert (entry.by_hand("before").shape, tuple(after)) == entry.shapes, MENDED


@pytest.mark.parametrize("entry", [e for e in ENTRIES if e.types], ids=lambda e: e.title)
def test_the_pass_changes_a_type(entry: Entry) -> None:
    made = entry.program()
    (before,) = made.functions["main"].outputs
    (after,) = rewritten(entry).function().outputs
    assert (dtype_name(before), dtype_name(after)) == entry.types, MENDED

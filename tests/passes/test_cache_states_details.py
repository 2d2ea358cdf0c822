"""kv-to-state: every op that it writes, and its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from milopt.mil import mb, types
from milopt.package import Model
from milopt.passes.cache import KvToState

from .cache_small import golden, named, small
from .test_cache_forms import agree

CASES: dict[str, tuple[Callable[[], Model], dict[str, Any]]] = {
    "tokens go to their slots": (small, {}),
    "rows of one state": (lambda: small(2, layers=2), {"layout": "unified"}),
    "every slot, slots last": (lambda: small(2, perm=(0, 1, 3, 2)), {"update": "mask"}),
    "every slot, slots before two axes": (lambda: small(2, perm=(0, 2, 1, 3), apart=(0,)), {"update": "mask"}),
    "every slot of rows of one state": (small, {"update": "mask", "layout": "unified"}),
    "any number of tokens": (lambda: small(None, None), {}),
    "any number of tokens that positions place": (
        lambda: small(None, None, counter=(1, "q")),
        {"position": "counter"},
    ),
    "any number of tokens that a mask places": (lambda: small(None, None), {"position": "mask"}),
    "positions of one axis": (lambda: small(2, counter=(2,)), {"position": "counter"}),
    "a position": (lambda: small(counter=(1,)), {"position": "counter"}),
    "a past that forgets": (lambda: small(returned="kept", kind=types.fp32), {}),
    "several tokens into a ring": (lambda: small(2, returned="kept"), {}),
    "a mask of another size": (lambda: small(2, returned="new", apart=(0,)), {"context": 9}),
}
WRITTEN = golden("cache_states.mil")


@pytest.mark.parametrize("case", CASES)
def test_what_is_written(case: str) -> None:
    """The first lines, where the others write the values as they write the keys."""
    build, options = CASES[case]
    made = build()
    assert KvToState(**options).run(made)
    assert named(made)[: len(WRITTEN[case])] == WRITTEN[case]


@pytest.mark.parametrize("case", CASES)
def test_what_is_computed(case: str) -> None:
    build, options = CASES[case]
    agree(build(), **options)


def test_one_token_needs_no_choice() -> None:
    """Wherever the slots are, it goes to its slot as it is."""
    for perm in ((0, 1, 2, 3), (0, 1, 3, 2), (0, 2, 1, 3)):
        made = small(1, perm=perm)
        assert KvToState(update="mask").run(made)
        assert not [line for line in named(made) if "_placed" in line or "_placing" in line or "maximum" in line]


def test_names_that_are_taken() -> None:
    def extra(args: dict[str, Any], found: dict[str, Any]) -> list[Any]:
        return [mb.relu(x=args["x"], name="key_cache_read"), args["x"]]

    made = small(extra=extra)
    assert KvToState().run(made)
    lines = named(made)
    assert "key_cache_read_1 = read_state(input=key_cache)" in lines
    assert lines[-1] == "-> mixed0, key_cache_read, x"

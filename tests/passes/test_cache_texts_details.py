"""What kv-to-state and state-to-kv say of inputs and outputs, and what they note about states on devices."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from milopt.mil import mb, types
from milopt.package import Model, load
from milopt.passes.cache import KvToState
from milopt.passes.cache_advice import advice
from milopt.passes.cache_inverse import StateToKv
from milopt.passes.cache_texts import describe_states, taken_texts
from milopt.signature import METADATA_KEY, CacheSignature, CacheSlot

from .cache_small import small
from .programs import fp16, ints, program_of
from .test_cache_inverse_details import functions

SLOTS = (
    "Mask over the 6 slots of the states: column j is slot j, and the new tokens are slots current_pos and following."
)
POSITION = "The first slot the new tokens are written to; current_pos + Q must not exceed {}."
TURN = " Their slots in a ring are the remainders by its size."
ROUND = "The position of the first new token, counted from 0; its slot is the remainder by the ring's size."
COLUMNS = "Mask over the columns [past | new] of the cache: {}."


def ring(size: int) -> str:
    return (
        f"Mask over the {size} slots of a ring: token t is in slot t mod {size}, and column j is about the newest "
        f"token t < current_pos + Q with t mod {size} = j, if there is one."
    )


def said(made: Model) -> dict[str, str]:
    names = [*made.function().inputs, *(var.name for var in made.function().outputs)]
    return {name: text for name in names if (text := made.text_of("main", name))}


def states(made: Model, **options: Any) -> Model:
    assert KvToState(**options).run(made)
    return made


def described_as(*rings: int, **fields: Any) -> dict[str, str]:
    """What is said of a mask and the position, of two tensors that are kept so, of six slots where there is no ring."""
    given: dict[str, Any] = {"mask": fp16(1, 6), "counter": ints(1), "current_pos": ints(1)}
    made = load(program_of(lambda **inputs: [mb.identity(x=each) for each in inputs.values()], **given))
    slots = [CacheSlot(f"past{at}", f"present{at}", f"state{at}", 0, 1, ring=ring) for at, ring in enumerate(rings)]
    cache = CacheSignature(tuple(slots), "current_pos", ("mask",), 6, 2)
    describe_states(made, "main", replace(cache, **fields))
    return said(made)


def test_what_is_said_of_states() -> None:
    assert described_as(0, 0) == {"mask": SLOTS, "current_pos": POSITION.format(6)}
    assert described_as(0, 0, prefix=True) == {"current_pos": POSITION.format(6)}
    other = SLOTS.replace("current_pos", "counter")
    assert described_as(0, 0, position="", counts="counter") == {"mask": other}
    assert described_as(0, 0, position="", masks=()) == {}


def test_what_is_said_of_rings() -> None:
    over = (("mask", 4),)
    assert described_as(4, 4, rings=over) == {"mask": ring(4), "current_pos": ROUND}
    assert described_as(4, 0, rings=over) == {"mask": ring(4), "current_pos": POSITION.format(6) + TURN}
    assert described_as(0, 4, rings=(("other", 4),)) == {"mask": SLOTS, "current_pos": POSITION.format(6) + TURN}
    other = ring(4).replace("current_pos", "counter")
    assert described_as(4, 4, rings=over, position="", counts="counter") == {"mask": other}


def described() -> Model:
    made = small()
    for name, text in (("mask", "What may be seen."), ("past_k0", "Keys."), ("past_v0", "Values."), ("v0", "Values.")):
        made.describe("main", name, text)
    return made


def test_what_was_said_before() -> None:
    """Behind it comes what the mask means now; it is all said again after the way back."""
    made = described()
    before = said(made)
    report = KvToState().run(made)
    assert said(made) == {
        "mask": f"What may be seen. (since kv-to-state: m{SLOTS[1:-1]})",
        "current_pos": POSITION.format(6),
    }
    assert report.signature is not None
    assert report.signature.texts == (
        ("Keys.", ("past_k0",)),
        ("Values.", ("past_v0", "v0")),
        ("What may be seen.", ("mask",)),
    )
    assert StateToKv().run(made)
    assert said(made) == before


def test_what_is_said_of_pasts() -> None:
    """A package of which nothing had been said; one of which something had, but nothing of masks; one by others."""
    made = states(small())
    assert StateToKv().run(made)
    assert said(made) == {"mask": COLUMNS.format(6)}
    made = small()
    made.describe("main", "k0", "Keys.")
    assert StateToKv().run(states(made))
    assert said(made) == {"k0": "Keys."}
    for text, told in (("", COLUMNS.format(6)), ("What may be seen.", f"What may be seen. {COLUMNS.format(6)}")):
        made = states(small())
        made.describe("main", "mask", text)
        made.metadata.pop(METADATA_KEY)
        assert StateToKv().run(made)
        assert said(made) == {"mask": told}
    made = states(small(None, None))
    assert StateToKv().run(made)
    assert said(made) == {}


# --- notes about devices

SHAPES = "S5: states of 2 different shapes fail on the Neural Engine of M1 and A14"
ODD = "S6: {} slots are no multiple of 32, and the Neural Engine may not load the model"
MANY = "S4: {} states; with more than 2 the Neural Engine fails at prediction"


def notes(*shapes: tuple[int, ...], rings: tuple[int, ...] = (0,), context: int = 32) -> list[str]:
    """What is noted of states of these shapes, besides an input, and of tensors in such rings."""
    inputs = {f"state{at}": mb.state_tensor_placeholder(shape, types.fp16) for at, shape in enumerate(shapes)}

    def build(x: Any, **held: Any) -> Any:
        return mb.identity(x=x)

    made = program_of(build, x=fp16(7), **inputs)
    slots = tuple(CacheSlot(f"past{at}", "", "", 0, 1, ring=ring) for at, ring in enumerate(rings))
    return advice(made.functions, CacheSignature(slots, "", (), context, 2))


@pytest.mark.parametrize(
    ("slots", "expected"),
    [(1, [ODD.format(1)]), (16, [ODD.format(16)]), (32, []), (33, [ODD.format(33)]), (64, []), (96, [])],
)
def test_numbers_of_slots(slots: int, expected: list[str]) -> None:
    """Of the context, and of rings; each number once."""
    assert notes(context=slots) == expected
    assert notes(rings=(slots, slots)) == expected
    assert notes(rings=(slots, 0), context=5) == [*expected, ODD.format(5)]


def test_texts_of_any_function() -> None:
    made = functions(small(), small())
    made.describe("other0", "past_k0", "Keys.")
    signature = CacheSignature((CacheSlot("past_k0", "k0", "state", 0, 1),), "", (), 6, 2)
    assert taken_texts(made, signature) == (("Keys.", ("past_k0",)),)
    assert KvToState().run(made)
    assert StateToKv().run(made)
    assert [made.text_of(name, "past_k0") for name in ("main", "other0")] == ["Keys.", "Keys."]


def test_numbers_and_shapes_of_states() -> None:
    """The number of rows makes no shape another one."""
    one, other = (1, 2, 32, 4), (1, 3, 32, 4)
    assert notes(one, one) == notes(one, (5, 2, 32, 4)) == []
    assert notes(one, one, one) == [MANY.format(3)]
    assert notes(one, other) == [SHAPES]
    assert notes(one, other, (1, 2, 5, 4), context=6) == [MANY.format(3), SHAPES.replace("2", "3", 1), ODD.format(6)]


def test_notes_of_a_rewrite() -> None:
    made = KvToState().run(small(1, (5, 7), layers=2, masks=("one", "other"), returned=("kept", "all")))
    assert made.notes == [MANY.format(4), SHAPES, ODD.format(6), ODD.format(8)]

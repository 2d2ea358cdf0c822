"""What happens when the context is full: refused, shifted, or round and round."""

from __future__ import annotations

import numpy as np
import pytest

from milopt.errors import MiloptError
from milopt.generate import Chat, generate
from milopt.passes.cache import KvToState
from milopt.sampling import Sampler, Sampling
from milopt.session import Session
from milopt.signature import WINDOW_KEY
from tests.verify.decoders import VOCABULARY, Decoder

CONTEXT = 12
TOKENS = np.random.default_rng(8).integers(0, VOCABULARY, 30).tolist()
# logits are computed in float64 and handed out as float32: equal up to the last of its bits
EPSILON = 2e-6


def session(overflow: str, *, rewritten: bool = True, queries: tuple[int, ...] = (1, 4)) -> Session:
    model = Decoder().stateless(queries)
    if rewritten:
        assert KvToState().run(model)
    return Session(model, precision="float64", overflow=overflow)  # type: ignore[arg-type]


def test_an_error_by_default() -> None:
    made = session("error")
    with pytest.raises(MiloptError, match="30 tokens do not fit a context of 12"):
        made.feed(TOKENS)
    assert made.position == 0


@pytest.mark.parametrize("rewritten", [True, False])
@pytest.mark.parametrize("parts", [(30,), (12, 18), (7, 20, 3), (1,) * 30])
def test_a_ring_sees_the_last_tokens_of_the_context(parts: tuple[int, ...], rewritten: bool) -> None:
    wide = Decoder(context=32).stateless()
    wide.metadata[WINDOW_KEY] = str(CONTEXT)
    wanted = Session(wide, precision="float64").feed(TOKENS)
    made, rows, done = session("ring", rewritten=rewritten), list[np.ndarray](), 0
    for part in parts:
        rows.append(made.feed(TOKENS[done : done + part]))
        done += part
    np.testing.assert_allclose(np.concatenate(rows), wanted, atol=EPSILON)
    assert made.position == 30


def test_a_shift_begins_anew_with_the_newer_half() -> None:
    made = session("shift")
    logits = made.feed(TOKENS[:20])
    one, two, three = session("error"), session("error"), session("error")
    np.testing.assert_allclose(logits[:12], one.feed(TOKENS[:12]), atol=EPSILON)
    np.testing.assert_allclose(logits[12:18], two.feed(TOKENS[6:18])[6:], atol=EPSILON)
    np.testing.assert_allclose(logits[18:], three.feed(TOKENS[12:20])[6:], atol=EPSILON)
    assert made.position == 8


@pytest.mark.parametrize("overflow", ["shift", "ring"])
def test_generation_goes_on(overflow: str) -> None:
    made = session(overflow)
    assert len(list(generate(made, TOKENS[:5], Sampler(Sampling(temperature=0)), max_tokens=20))) == 20
    again = made.fork()
    assert again.overflow == overflow
    made.reset()
    np.testing.assert_array_equal(made.feed(TOKENS[:3]), again.feed(TOKENS[:3]))


def test_what_can_not_be() -> None:
    with pytest.raises(MiloptError, match="overflow is error, shift or ring, not 'wrap'"):
        session("wrap")
    with pytest.raises(MiloptError, match="feeds single tokens, and no function of the model takes one"):
        session("ring", queries=(4,))
    with pytest.raises(MiloptError, match="a chat needs a session that keeps all it was fed"):
        Chat(session("shift"), None)  # type: ignore[arg-type]

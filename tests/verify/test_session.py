"""Sessions: any way of feeding the same tokens gives the same logits, and nothing is written beyond the context."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from milopt.blocks import Block, blocks
from milopt.errors import MiloptError
from milopt.mil import Function, Program, Var, mb, target
from milopt.package import Model, load
from milopt.passes.cache import KvToState
from milopt.plans import Plans
from milopt.session import Session
from tests.verify.decoders import LAYERS, VOCABULARY, Decoder

CONTEXT = 12
TOKENS = np.random.default_rng(5).integers(0, VOCABULARY, CONTEXT + 1).tolist()
FORMS: dict[str, Callable[[], Model]] = {
    "stateless": lambda: Decoder().stateless(),
    "stateful": lambda: Decoder().stateful(),
    "rewritten": lambda: _rewritten(),
}


def _rewritten() -> Model:
    model = Decoder().stateless()
    assert KvToState().run(model)
    return model


@pytest.fixture(scope="module", params=list(FORMS))
def plans(request: pytest.FixtureRequest) -> Plans:
    return Plans(FORMS[request.param](), precision="float64")


@pytest.fixture(scope="module")
def one_by_one() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Logits of every token, fed alone: no padding, no blocks."""
    session = Session(Decoder().stateless(), precision="float64")
    return np.concatenate([session.feed([token]) for token in TOKENS[:CONTEXT]])


# logits are computed in float64 and handed out as float32: equal up to the last of its bits
EPSILON = 2e-6


@pytest.mark.parametrize("count", [1, 3, 4, 5, 9, CONTEXT - 1, CONTEXT])
def test_all_at_once(plans: Plans, count: int, one_by_one: np.ndarray) -> None:
    session = Session(plans)
    logits = session.feed(TOKENS[:count])
    assert logits.shape == (count, VOCABULARY)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, one_by_one[:count], atol=EPSILON)
    assert session.position == count


@pytest.mark.parametrize("parts", [(3, 4, 5), (5, 1, 6), (11, 1), (2, 10), (9, 3)])
def test_in_parts(plans: Plans, parts: tuple[int, ...], one_by_one: np.ndarray) -> None:
    """Padded rows of one part are overwritten by the next, and hidden until then."""
    session = Session(plans)
    done = 0
    for part in parts:
        logits = session.feed(TOKENS[done : done + part])
        np.testing.assert_allclose(logits, one_by_one[done : done + part], atol=EPSILON)
        done += part
    assert done == session.position == CONTEXT


def test_one_token_too_many(plans: Plans, one_by_one: np.ndarray) -> None:
    session = Session(plans)
    with pytest.raises(MiloptError, match=r"13 tokens do not fit a context of 12$") as raised:
        session.feed(TOKENS)
    assert "\n" not in str(raised.value)
    assert session.position == 0
    session.feed(TOKENS[:CONTEXT])
    with pytest.raises(MiloptError, match="1 token does not fit a context of 12, of which 12 are used"):
        session.feed(TOKENS[:1])
    session.reset()
    np.testing.assert_allclose(session.feed(TOKENS[:2]), one_by_one[:2], atol=EPSILON)


def test_forks_are_independent_and_share_plans(plans: Plans, one_by_one: np.ndarray) -> None:
    first = Session(plans)
    first.feed(TOKENS[:6])
    second = first.fork()
    assert second.plans is first.plans
    np.testing.assert_allclose(second.feed(TOKENS[:3]), one_by_one[:3], atol=EPSILON)
    np.testing.assert_allclose(first.feed(TOKENS[6:8]), one_by_one[6:8], atol=EPSILON)


def test_last_only_and_progress(plans: Plans, one_by_one: np.ndarray) -> None:
    told: list[tuple[int, int]] = []
    logits = Session(plans).feed(TOKENS[:10], last_only=True, progress=lambda done, total: told.append((done, total)))
    np.testing.assert_allclose(logits, one_by_one[9:10], atol=EPSILON)
    assert told == [(4, 10), (8, 10), (10, 10)]


def test_nothing_to_feed(plans: Plans) -> None:
    assert Session(plans).feed([]).shape == (0, VOCABULARY)


@pytest.mark.parametrize("token", [-1, VOCABULARY])
def test_tokens_must_exist(plans: Plans, token: int) -> None:
    session = Session(plans)
    with pytest.raises(MiloptError, match=f"token {token} is not one of the vocabulary's {VOCABULARY}"):
        session.feed([1, token])
    assert session.position == 0


def test_padding_never_reaches_beyond_the_context() -> None:
    """Every block of every prompt length lies within the context, padding included."""
    for lengths in ((1, 4), (1, 3, 8), (1, 64)):
        for context in (64, 67):
            for start in range(context):
                position = start
                for block in blocks(lengths, start, context - start, context):
                    assert position + block.length <= context
                    assert 0 < block.count <= block.length
                    position += block.count
                assert position == context


def test_blocks() -> None:
    assert list(blocks((1, 4), 0, 7, 12)) == [Block(4, 4), Block(4, 3)]
    assert list(blocks((1, 4), 4, 7, 12)) == [Block(4, 4), Block(4, 3)]
    assert list(blocks((1, 4), 4, 8, 12)) == [Block(4, 4), Block(4, 4)]
    assert list(blocks((1, 4), 9, 3, 12)) == [Block(1, 1)] * 3
    assert list(blocks((1, 4), 3, 5, 12)) == [Block(4, 4), Block(1, 1)]
    assert list(blocks((1, 4, 16), 0, 3, 32)) == [Block(4, 3)]


def test_slots_that_only_a_longer_block_could_reach() -> None:
    session = Session(Decoder().stateless([5]), precision="float64")
    session.feed(TOKENS[:8])
    assert session.query_lengths == (5,)
    with pytest.raises(MiloptError, match=r"the last 4 of 12 slots can't be used: no function takes fewer than 5"):
        session.feed(TOKENS[8:9])
    assert session.position == 8


def test_declared_precision_rounds() -> None:
    """fp16 shows, and the two forms round alike: the same values, in the same dtypes."""
    exact, rounded = (Session(Decoder().stateful(), precision=each) for each in ("float64", "declared"))
    again = Session(Decoder().stateless())
    first, second, third = (each.feed(TOKENS[:9]) for each in (exact, rounded, again))
    assert 1e-5 < np.abs(first - second).max() < 0.1
    assert np.abs(second - third).max() < 0.1


def test_a_model_without_a_cache() -> None:
    @mb.program(input_specs=[mb.TensorSpec((2, 2))], opset_version=target.iOS18)
    def program(x: Var) -> Var:
        out: Var = mb.relu(x=x)
        return out

    model: Program = program
    with pytest.raises(MiloptError, match="no key/value cache that milopt knows: function 'main' takes x"):
        Session(load(model))


def test_an_input_nobody_can_provide() -> None:
    model = Decoder().stateless([1])
    shape = (1, 2, CONTEXT - 1, 4)
    specs = [mb.TensorSpec((1, 1)), mb.TensorSpec((1, 1, 1, CONTEXT)), mb.TensorSpec(shape)]

    @mb.function(input_specs=specs, opset_version=target.iOS18)
    def main(embeddings: Var, causal_mask: Var, past_key_0: Var) -> tuple[Var, Var]:
        present = mb.concat(values=(past_key_0, np.zeros((1, 2, 1, 4), np.float32)), axis=2, name="present_key_0")
        return mb.reduce_sum(x=mb.add(x=causal_mask, y=embeddings), axes=[-1], name="logits"), present

    function: Function = main
    model.program.functions["decode"] = function
    with pytest.raises(MiloptError, match="function 'decode' has no input 'input_ids' of 1 entries"):
        Session(model)


def test_layers_are_those_of_the_model(plans: Plans) -> None:
    assert len(plans.layout.signature.slots) == 2 * LAYERS
    assert (plans.context, plans.query_lengths, plans.vocabulary) == (CONTEXT, (1, 4), VOCABULARY)

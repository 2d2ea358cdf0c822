"""Sampling, generating, and several turns in one state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from milopt.errors import EvaluationError, MiloptError
from milopt.generate import Answer, Chat, generate
from milopt.huggingface import Tokenizer
from milopt.sampling import Sampler, Sampling
from milopt.session import Session
from tests.cli.support import with_tokenizer
from tests.verify.decoders import Decoder

LOGITS = np.log([0.1, 0.4, 0.2, 0.3])


def candidates(**options: Any) -> tuple[list[int], list[float]]:
    tokens, chances = Sampler(Sampling(**options)).candidates(LOGITS)
    return tokens.tolist(), chances.tolist()


@pytest.mark.parametrize(
    ("options", "tokens", "chances"),
    [
        ({"temperature": 1.0}, [1, 3, 2, 0], [0.4, 0.3, 0.2, 0.1]),
        # p^(1/T): squares for T = 1/2, roots for T = 2
        ({"temperature": 0.5}, [1, 3, 2, 0], [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
        ({"temperature": 1.0, "top_k": 2}, [1, 3], [4 / 7, 3 / 7]),
        ({"temperature": 1.0, "top_k": 9}, [1, 3, 2, 0], [0.4, 0.3, 0.2, 0.1]),
        ({"temperature": 1.0, "top_p": 0.6}, [1, 3], [4 / 7, 3 / 7]),
        ({"temperature": 1.0, "top_p": 0.75}, [1, 3, 2], [4 / 9, 3 / 9, 2 / 9]),
        ({"temperature": 1.0, "top_p": 0.01}, [1], [1.0]),
        # the nucleus is taken of the three that top_k leaves: 4/9 is not 0.5 yet, 7/9 is
        ({"temperature": 1.0, "top_k": 3, "top_p": 0.5}, [1, 3], [4 / 7, 3 / 7]),
        # the temperature comes first: at T = 1/2 the likeliest alone has more than half
        ({"temperature": 0.5, "top_p": 0.5}, [1], [1.0]),
    ],
)
def test_candidates(options: Any, tokens: list[int], chances: list[float]) -> None:
    found, probabilities = candidates(**options)
    assert found == tokens
    assert probabilities == pytest.approx(chances, rel=1e-12)  # float64


def test_the_temperature_zero_takes_the_first_of_the_likeliest() -> None:
    assert Sampler(Sampling())(np.array([1.0, 5.0, 5.0, 2.0])) == 1


def test_tiny_temperatures_do_not_overflow() -> None:
    assert Sampler(Sampling(temperature=1e-300, seed=0))(np.array([-60000.0, 60000.0, 59999.0])) == 1


def test_drawn_shares_are_the_chances() -> None:
    draw = Sampler(Sampling(temperature=1.0, seed=7))
    counts = np.bincount([draw(LOGITS) for _ in range(4000)], minlength=4) / 4000
    # 0.04: five standard deviations of a share among 4000 draws, sqrt(0.25 / 4000) = 0.008
    np.testing.assert_allclose(counts, [0.1, 0.4, 0.2, 0.3], atol=0.04)


def test_a_seed_repeats_the_draws_and_another_does_not() -> None:
    def drawn(seed: int) -> list[int]:
        draw = Sampler(Sampling(temperature=1.0, seed=seed))
        return [draw(LOGITS) for _ in range(40)]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


@settings(max_examples=100, deadline=None)
@given(
    arrays.arrays(np.float32, st.integers(1, 30), elements=st.floats(-1000, 1000, width=32)),
    st.floats(0.01, 10),
    st.integers(0, 40),
    st.floats(0.01, 1),
)
def test_candidates_are_always_a_distribution(logits: Any, temperature: float, top_k: int, top_p: float) -> None:
    tokens, chances = Sampler(Sampling(temperature, top_k, top_p)).candidates(logits)
    assert len(tokens) == len(chances) == len(set(tokens.tolist())) >= 1
    assert tokens[0] == np.argmax(logits)
    assert abs(chances.sum() - 1) < 1e-9
    assert np.all(np.diff(chances) <= 1e-15)  # likeliest first, up to float64's rounding
    assert not top_k or len(tokens) <= top_k


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "the temperature is 0 or more, not -1.0"),
        ({"temperature": float("nan")}, "the temperature is 0 or more, not nan"),
        ({"top_k": -1}, r"top-k is 0 \(all\) or more, not -1"),
        ({"top_p": 0.0}, "top-p is above 0 and at most 1, not 0.0"),
        ({"top_p": 1.5}, "top-p is above 0 and at most 1, not 1.5"),
        ({"seed": -3}, "the seed is 0 or more, not -3"),
    ],
)
def test_settings_that_are_wrong(options: Any, message: str) -> None:
    with pytest.raises(MiloptError, match=message):
        Sampling(**options)


def test_logits_that_are_not_numbers() -> None:
    with pytest.raises(EvaluationError, match="not numbers"):
        Sampler(Sampling())(np.array([0.0, np.nan]))


# --- one answer


class Counting:
    """A model whose likeliest token is the one after the last fed, of ten; it remembers what it was fed."""

    context = 12

    def __init__(self) -> None:
        self.fed: list[list[int]] = []
        self.position = 0

    def feed(
        self, tokens: Sequence[int], *, last_only: bool = False, progress: Callable[[int, int], None] | None = None
    ) -> Any:
        del last_only
        self.fed.append(list(tokens))
        self.position += len(tokens)
        return np.eye(10, dtype=np.float32)[[(token + 1) % 10 for token in tokens]]

    def reset(self) -> None:
        self.position = 0


@pytest.mark.parametrize(
    ("prompt", "most", "tokens", "stop"),
    [
        ([1, 2], 3, [3, 4, 5], "length"),
        ([4, 5], 20, [6, 7, 8], "end"),
        ([8], 20, [], "end"),
        ([0] * 10, 20, [1, 2, 3], "context"),
    ],
)
def test_where_an_answer_ends(prompt: list[int], most: int, tokens: list[int], stop: str) -> None:
    answer, model = Answer(), Counting()
    assert list(generate(model, prompt, Sampler(Sampling()), max_tokens=most, eos_ids=(9,), answer=answer)) == tokens
    assert (answer.tokens, answer.stop, answer.fed) == (tokens, stop, len(prompt))
    assert model.fed[0] == prompt  # in one go, and then the answer token by token
    assert [token for each in model.fed[1:] for token in each] == tokens[: len(model.fed) - 1]
    assert model.position <= model.context


def test_prompts_that_do_not_fit() -> None:
    for prompt, most, message in (([0] * 13, 1, "13 tokens"), ([], 1, "no token"), ([1], 0, "1 or more, not 0")):
        model = Counting()
        with pytest.raises(MiloptError, match=message):
            list(generate(model, prompt, Sampler(Sampling()), max_tokens=most))
        assert model.fed == []


# --- conversations


@pytest.fixture(scope="module")
def model() -> Any:
    return with_tokenizer(Decoder(context=40).stateful())


class Fed(Session):
    """A session that counts what it is fed."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.count = 0

    def feed(self, tokens: Sequence[int], **options: Any) -> Any:
        self.count += len(tokens)
        return super().feed(tokens, **options)


def said(chat: Chat, text: str, **options: Any) -> str:
    return "".join(chat.ask(text, max_tokens=4, **options))


def test_turns_share_a_state_and_equal_one_long_prompt(model: Any) -> None:
    words = Tokenizer.of(model)
    session = Fed(model)
    chat = Chat(session, words)
    first = said(chat, "word1 word2")
    assert len(first.split()) == 4
    fed = session.count
    answer = Answer()
    second = said(chat, "word3", answer=answer)
    assert session.position == session.count  # nothing was fed twice
    assert answer.fed == session.count - fed - len(answer.tokens) + 1  # the last token is never fed

    fresh = Session(model)
    tokens = words.encode(f"<user> word1 word2 <answer> {first} <user> word3 <answer>")
    again: list[int] = []
    logits = fresh.feed(tokens)
    for _ in answer.tokens:
        again.append(int(logits[-1].argmax()))
        logits = fresh.feed([again[-1]])
    assert again == answer.tokens
    assert words.decode(again) == second
    assert [each["role"] for each in chat.messages] == ["user", "assistant"] * 2


@pytest.fixture
def raw(model: Any) -> Chat:
    return Chat(Session(model), Tokenizer.of(model), raw=True)


def test_reset_forgets(raw: Chat) -> None:
    first = said(raw, "word1 word2")
    assert said(raw, "word1 word2") != first  # it comes after the first turn, and so means something else
    raw.reset()
    assert raw.messages == []
    assert said(raw, "word1 word2") == first


def test_an_answer_that_is_stopped_stays_part_of_the_conversation(raw: Chat) -> None:
    stream = raw.ask("word1 word2", max_tokens=4)
    start = next(stream)
    stream_any: Any = stream
    stream_any.close()
    assert raw.messages[-1]["content"].startswith(start.strip())
    assert said(raw, "word5")


def test_a_turn_that_does_not_fit_leaves_the_conversation(raw: Chat) -> None:
    said(raw, "word1")
    before = list(raw.messages)
    with pytest.raises(MiloptError, match=r"the conversation has \d+ tokens, but the model's context is 40"):
        said(raw, "word2 " * 60)
    assert raw.messages == before
    assert said(raw, "word3")


def test_a_system_message_needs_the_template(model: Any) -> None:
    with pytest.raises(MiloptError, match="a system message is part of the chat template"):
        Chat(Session(model), Tokenizer.of(model), system="word1", raw=True)

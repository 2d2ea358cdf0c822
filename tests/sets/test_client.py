"""Folders for ANEMLL's and CoreML-LLM's clients, run by a session as those run them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import milopt
from milopt.errors import MiloptError
from milopt.generate import generate
from milopt.interpreter import Plan, State
from milopt.mil import rename_input
from milopt.package import Model, load
from milopt.sampling import Sampler, Sampling
from milopt.sets import ClientSet, SetError, client_style, load_client
from milopt.sets.anemll import anemll_set
from milopt.sets.coreml_llm import monolith
from tests.cli.support import with_tokenizer
from tests.sets.programs import CONTEXT, VOCABULARY, Transformer

DECODER = Transformer(states="unified", mlp=(24, 24))
TOKENS = [5, 9, 33, 2, 60, 7, 1, 40]


@pytest.fixture(scope="module")
def model() -> Model:
    return with_tokenizer(DECODER.model())


@pytest.fixture(scope="module")
def folders(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clients")
    anemll_set(model, count=2, slices=4).save(root / "logits")
    anemll_set(model, count=2, slices=4, argmax=True).save(root / "argmax")
    monolith(model).save(root / "monolith")
    return root


@pytest.fixture(scope="module")
def wanted(model: Model) -> Any:
    """The package's logits of all tokens."""
    return milopt.Session(model, precision="float64").feed(TOKENS)


def _session(folder: Path) -> milopt.Session:
    return milopt.Session(load_client(folder), precision="float64")


def _agree(got: Any, wanted: Any, given: int) -> None:
    """The package's logits, of which ``given`` are given back in each row, the largest among them."""
    assert (np.isfinite(got).sum(-1) == given).all()
    np.testing.assert_array_equal(got[np.isfinite(got)], wanted[np.isfinite(got)])
    np.testing.assert_array_equal(got.argmax(-1), wanted.argmax(-1))


FORMS = [("logits", VOCABULARY, VOCABULARY), ("argmax", 4, 1), ("monolith", 1, 1)]


@pytest.mark.parametrize(("form", "given", "candidates"), FORMS)
def test_its_logits_are_the_packages(form: str, given: int, candidates: int, folders: Path, wanted: Any) -> None:
    session = _session(folders / form)
    assert (session.context, session.plans.candidates) == (CONTEXT, candidates)
    _agree(session.feed(TOKENS), wanted, given)
    session.reset()
    _agree(session.feed(TOKENS, last_only=True), wanted[-1:], given)
    assert session.position == len(TOKENS)
    for last_only in (False, True):
        assert session.feed([], last_only=last_only).shape == (0, VOCABULARY)


@pytest.mark.parametrize(("form", "given", "candidates"), FORMS)
@pytest.mark.parametrize("turns", [(1, 7), (2, 3, 3), (5, 1, 2), (3, 5)])
def test_several_turns_on_one_state(
    form: str, given: int, candidates: int, turns: tuple[int, ...], folders: Path, wanted: Any
) -> None:
    del candidates
    session, done = _session(folders / form), 0
    for count in turns:
        got = session.feed(TOKENS[done : done + count], last_only=True)
        done += count
        _agree(got, wanted[done - 1 : done], given)
    other = session.fork()
    _agree(other.feed(TOKENS[:2], last_only=True), wanted[1:2], given)
    assert (session.position, other.position) == (len(TOKENS), 2)


class _Counted(Plan):
    """A plan that says when it ran, and from which place."""

    calls: list[tuple[str, int]]
    inner: Plan

    @classmethod
    def of(cls, plan: Plan, calls: list[tuple[str, int]]) -> _Counted:
        made = cls(**{field.name: getattr(plan, field.name) for field in fields(Plan)})
        object.__setattr__(made, "inner", plan)
        object.__setattr__(made, "calls", calls)
        return made

    def run(self, inputs: Mapping[str, Any], state: State | None = None, listeners: Iterable[object] = ()) -> Any:
        self.calls.append((self.function, int(np.asarray(inputs["current_pos"])[0])))
        return self.inner.run(inputs, state, listeners)


def test_a_prompt_goes_in_blocks_and_its_last_token_alone(folders: Path) -> None:
    session, calls = _session(folders / "logits"), list[tuple[str, int]]()
    for function in session.plans.functions.values():
        function.plan = _Counted.of(function.plan, calls)
    session.feed(TOKENS, last_only=True)
    assert calls == [("prefill", 0), ("prefill", 4), ("infer", 7)]  # the second block is padded
    calls.clear()
    session.feed(TOKENS[:3], last_only=True)
    assert calls == [("prefill", 8), ("infer", 10)]  # a block of 4 ends at slot 12, where the context does
    assert session.position == CONTEXT - 1
    with pytest.raises(MiloptError, match="2 tokens do not fit a context of 12, of which 11 are used"):
        session.feed([1, 2])
    session.feed([1])
    with pytest.raises(MiloptError, match="1 token does not fit a context of 12, of which 12 are used"):
        session.feed([1])


def test_blocks_never_reach_beyond_the_context(model: Model, folders: Path) -> None:
    tokens = [*range(1, CONTEXT + 1)]
    session, whole = _session(folders / "logits"), milopt.Session(model, precision="float64")
    for count in (9, 3):
        got, wanted = (each.feed(tokens[:count], last_only=True) for each in (session, whole))
        np.testing.assert_array_equal(got, wanted)


def test_a_full_context_is_shifted_if_wanted(model: Model, folders: Path) -> None:
    session = milopt.Session(load_client(folders / "logits"), precision="float64", overflow="shift")
    whole = milopt.Session(model, precision="float64", overflow="shift")
    tokens = [int(each) for each in np.random.default_rng(0).integers(VOCABULARY, size=3 * CONTEXT)]
    np.testing.assert_array_equal(session.feed(tokens, last_only=True), whole.feed(tokens, last_only=True))


def test_greedy_answers_are_the_packages(model: Model, folders: Path) -> None:
    def answer(made: Model | ClientSet) -> list[int]:
        session = milopt.Session(made, precision="float64")
        return list(generate(session, TOKENS[:3], Sampler(Sampling()), max_tokens=20))

    wanted = answer(model)
    assert len(wanted) == CONTEXT - 3 + 1
    assert [answer(load_client(folders / form)) for form, *_ in FORMS] == [wanted] * 3


def _without(name: str) -> Callable[[Path], None]:
    return lambda folder: shutil.rmtree(folder / name)


def _replaced(file: str, old: str, new: str) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new))

    return changed


def _renamed(name: str) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        model = load(folder / name)
        rename_input(model.function(), "causal_mask", "mask")
        model.save(folder / name, overwrite=True)

    return changed


FIRST = "model_FFN_PF_chunk_01of02.mlpackage"


@pytest.mark.parametrize(
    ("form", "change", "message"),
    [
        ("logits", _without(FIRST), f"file {FIRST}: it is missing"),
        ("logits", _renamed(FIRST), "input causal_mask is not among"),
        ("logits", _replaced("meta.yaml", "split_lm_head: 4", "split_lm_head: 3"), "meta.yaml says 3 slices"),
        (
            "logits",
            _replaced("meta.yaml", "parameters:", "parameters:\n    model_type: x\n    monolithic_model: y"),
            "one",
        ),
        ("argmax", _replaced("meta.yaml", "argmax_in_model: true", ""), "does not say argmax_in_model"),
        ("monolith", _without("model.mlpackage"), "has no model.mlpackage"),
        ("monolith", _renamed("model.mlpackage"), "input causal_mask: it is not among"),
        ("monolith", _replaced("model_config.json", '"vocab_size": 64', '"vocab_size": 63'), "the table has 64 rows"),
        ("monolith", _replaced("model_config.json", '"context_length": 12', '"length": 12'), "context_length of"),
    ],
)
def test_what_can_not_be_run_is_said_in_a_line(
    form: str, change: Callable[[Path], None], message: str, folders: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders / form, tmp_path / "folder"))
    change(folder)
    with pytest.raises(MiloptError, match=r"^[^\n]*$") as caught:
        load_client(folder)
    assert message in str(caught.value)


def test_what_the_client_alone_needs_is_no_obstacle(folders: Path, tmp_path: Path, wanted: Any) -> None:
    folder = Path(shutil.copytree(folders / "logits", tmp_path / "folder"))
    for name in ("config.json", "tokenizer_config.json", "milopt.json"):
        (folder / name).unlink()
    model = load(folder / FIRST)
    model.metadata.clear()
    model.save(folder / FIRST, overwrite=True)
    _agree(_session(folder).feed(TOKENS, last_only=True), wanted[-1:], VOCABULARY)


def test_which_form_a_folder_has(folders: Path, tmp_path: Path) -> None:
    assert [client_style(folders / form) for form, *_ in FORMS] == ["anemll", "anemll", "coreml-llm"]
    assert client_style(tmp_path) is None
    with pytest.raises(SetError, match=r"is no folder for a client: it has neither meta\.yaml nor model_config\.json"):
        load_client(tmp_path)
    with pytest.raises(SetError, match=r"but a client's folder: milopt\.sets\.load_client reads it"):
        milopt.sets.load(folders / "logits")


def test_a_choice_that_is_no_word(folders: Path) -> None:
    made = load_client(folders / "monolith")
    made.words = 2
    with pytest.raises(MiloptError, match=r"the program chose token \d+, which is none of its 2"):
        milopt.Session(made).feed([1])


@pytest.mark.parametrize("rotating", [False, True])
def test_functions_for_beyond_a_window(rotating: bool, tmp_path: Path) -> None:
    """From the window on those for beyond it are called, in whole blocks that begin there."""
    transformer = Transformer(states="unified", context=20, table=20, window=3, sliding=(0, 2), ring=6 * rotating)
    model = transformer.model()
    made = load_client(anemll_set(model, count=2, slices=4).save(tmp_path / "set"))
    assert made.window == 3 * rotating
    session, calls = milopt.Session(made, precision="float64"), list[tuple[str, int]]()
    for function in session.plans.functions.values():
        function.plan = _Counted.of(function.plan, calls)
    whole = milopt.Session(model, precision="float64")
    tokens = [int(each) for each in np.random.default_rng(3).integers(VOCABULARY, size=20)]
    for begin, end in ((0, 9), (9, 11), (11, 20)):
        got, wanted = (each.feed(tokens[begin:end], last_only=True) for each in (session, whole))
        # 1e-9: the masks are computed otherwise, and sums ordered otherwise, in float64
        np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-9)
    places = [place for name, place in calls if name == "prefill"]
    assert places == ([3, 11, 15] if rotating else [0, 4, 11, 15])
    if rotating:
        with pytest.raises(MiloptError, match="overflow=ring needs a cache that does not turn by itself: use shift"):
            milopt.Session(made, overflow="ring")

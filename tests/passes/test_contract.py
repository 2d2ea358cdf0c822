"""contract: a decoder as a client expects it, for clients of every habit; and what it can't be made of."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from milopt.contracts import check
from milopt.contracts.clients import HABITS, feed
from milopt.contracts.styles import APPLE
from milopt.interpreter import Plan, State, compile
from milopt.mil import Program, dtype_name, is_dead, is_state, mb, rename_input, shape_of, target, types
from milopt.package import Model, load
from milopt.passes.cache import KvToState
from milopt.passes.contract import ClientContract
from milopt.pipeline import Pipeline
from milopt.reports import Report
from milopt.session import Session
from milopt.signature import WINDOW_KEY, CacheSignature
from milopt.text import text
from milopt.verify import compare

from .cache_programs import Layer, flexible
from .contract_programs import CONTEXT, HEADS, SIZE, VOCABULARY, model

KINDS: dict[str, Callable[[], Model]] = {
    "rotary": model,
    "table": lambda: model("table"),
    "none": lambda: model("none"),
    "sliding": lambda: model(windows=(5, 5)),
    "some sliding": lambda: model("table", windows=(5, 0)),
    "one layer": lambda: model(windows=(0,)),
}
TOKENS = [7, 3, 11, 18, 2, 2, 9, 14, 5, 1, 16, 8]
SILENT = [4, *TOKENS[:6]]


def contracted(made: Model, trials: int = 2, **options: Any) -> tuple[Model, Report]:
    """``made`` after the pass, compared with what it was, step by step."""
    before = made.clone()
    report = ClientContract(**options).run(made)
    assert report, str(report)
    made.program.validate()
    verdict = compare(before, made, trials=trials, signature=report.signature)
    assert verdict, str(verdict)
    assert not [op for op in made.function().operations if is_dead(op)]
    return made, report


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def made(kind: str) -> Model:
    return contracted(KINDS[kind](), trials=4)[0]


@pytest.fixture(scope="module")
def plan(made: Model) -> Plan:
    return compile(made, precision="float64")


@pytest.fixture(scope="module")
def wanted(kind: str) -> Any:
    return answer(KINDS[kind](), TOKENS)


@lru_cache(maxsize=4)
def silent(positions: str) -> tuple[Plan, Any]:
    """A model whose token 4 has an embedding of zeros, and what it answers to a text that begins with it."""
    made, _ = contracted(model(positions, silent=4))
    return compile(made, precision="float64"), answer(model(positions, silent=4), SILENT)


def answer(made: Model, tokens: list[int]) -> Any:
    """The logits of the program before the pass, all tokens at once."""
    session = Session(made, precision="float64")
    return np.concatenate([session.feed([each]) for each in tokens])


@pytest.mark.parametrize("habit", HABITS, ids=lambda habit: habit.name)
def test_every_client_gets_the_same_answer(plan: Plan, wanted: Any, habit: Any) -> None:
    # the session returns float32
    np.testing.assert_allclose(feed(plan, APPLE, TOKENS, 5, habit), wanted, rtol=1e-5, atol=1e-5)


def test_the_interface(made: Model, tmp_path: Path) -> None:
    function = load(made.save(tmp_path / "apple.mlpackage")).function()
    layers = shape_of(function.inputs["keyCache"])[0]
    found = {
        name: (dtype_name(var), tuple(dim if isinstance(dim, int) else "?" for dim in shape_of(var)))
        for name, var in function.inputs.items()
    }
    state = (layers, 1, HEADS, CONTEXT, SIZE)
    assert found == {
        "inputIds": ("int32", (1, "?")),
        "causalMask": ("fp16", (1, 1, "?", "?")),
        "keyCache": ("fp16", state),
        "valueCache": ("fp16", state),
    }
    assert [name for name, var in function.inputs.items() if is_state(var)] == ["keyCache", "valueCache"]
    assert [var.name for var in function.outputs] == ["logits"]


def test_the_checker_agrees(made: Model, tmp_path: Path) -> None:
    findings = check(made.save(tmp_path / "apple.mlpackage"), tokens=4)
    assert findings, str(findings)


def test_ranges_are_written(tmp_path: Path) -> None:
    made, _ = contracted(model())
    saved = load(made.save(tmp_path / "apple.mlpackage"))
    found = {each.name: each.type.multiArrayType for each in saved.description.input}
    bounds = {
        name: [(each.lowerBound, each.upperBound) for each in array.shapeRange.sizeRanges]
        for name, array in found.items()
    }
    assert bounds == {
        "inputIds": [(1, 1), (1, CONTEXT)],
        "causalMask": [(1, 1), (1, 1), (1, CONTEXT), (1, CONTEXT)],
    }
    assert {name: tuple(array.shape) for name, array in found.items()} == {
        "inputIds": (1, 1),
        "causalMask": (1, 1, 1, 1),
    }


def test_what_the_package_says_of_itself() -> None:
    made, report = contracted(model("table", windows=(5, 0)), hub="org/other")
    assert made.metadata["co.huggingface.exporters.name"] == "org/other"
    assert made.metadata["milopt.contract"] == "apple"
    assert WINDOW_KEY not in made.metadata
    assert report.notes[-1] == "the sliding window is part of the program now: the mask given says nothing of it"
    assert any(note.startswith("S6: 16 slots") for note in report.notes)
    assert report.signature == CacheSignature.from_metadata(made.metadata)
    assert report.signature is not None
    assert report.signature.renamed == (
        ("input_ids", "inputIds"),
        ("position_ids", ""),
        ("sliding_mask", "causalMask"),
        ("causal_mask", "causalMask"),
    )
    assert report.signature.former().masks == ("sliding_mask", "causal_mask")
    assert made.text_of(None, "causalMask").startswith("Added to the attention scores; zeros will do, in one row.")
    assert "slots [end - q, end) of 16" in made.text_of(None, "causalMask")
    assert made.text_of(None, "inputIds") == "Ids of the new tokens."
    assert made.text_of(None, "logits") == "Scores of the next token after every new token."


@pytest.mark.parametrize(
    ("source", "there", "hub", "named"),
    [
        ("org/tiny", None, "", "org/tiny"),
        ("org/tiny", "org/there", "", "org/there"),
        ("org/tiny", "org/there", "org/given", "org/given"),
        ("tiny", None, "", "tiny"),
        (None, None, "", "main"),
    ],
)
def test_the_name_on_the_hub(source: str | None, there: str | None, hub: str, named: str) -> None:
    """The one given, the one that is there, or the source's; one without a slash is no name."""
    made, key = model(windows=(0,)), "co.huggingface.exporters.name"
    given = {"milopt.source": source, key: there}
    made.metadata |= {name: text for name, text in given.items() if text is not None}
    if source is None:
        del made.metadata["milopt.source"]
    report = ClientContract(hub=hub).run(made)
    assert made.metadata[key] == named
    said = f"{key} is {named!r}, which is no name on the Hub: say hub=ORG/NAME, by which clients find the tokenizer"
    assert [note for note in report.notes if "Hub" in note] == ([] if "/" in named else [said])


def test_again_changes_nothing() -> None:
    made, _ = contracted(model())
    before = text(made.program)
    report = ClientContract().run(made)
    assert not report
    assert report.notes == ["main: it keeps the apple contract already"]
    assert text(made.program) == before


@pytest.mark.parametrize("position", ["current_pos", "causal_mask"])
def test_a_cache_in_states(position: str) -> None:
    made = model("table")
    assert KvToState(position=position).run(made)
    made, report = contracted(made)
    assert report.signature is not None
    assert (report.signature.position, report.signature.stacked) == ("", True)
    assert check(made, tokens=4)


@pytest.mark.parametrize("verify", ["each", "end"])
def test_in_a_pipeline(verify: str) -> None:
    made = model(windows=(5,))
    pipeline = Pipeline.parse("canonicalize,fuse-sdpa,kv-to-state,contract{style=apple,hub=a/b}")
    assert pipeline.run(made, verify=verify)
    assert check(made, tokens=4)


def test_passes_behind_it_are_verified_too() -> None:
    made = model("table", windows=(5, 0))
    report = Pipeline.parse("contract,linear-to-conv").run(made, verify="each")
    assert [bool(part) for part in report.parts] == [True, True]
    assert check(made, tokens=4)


def test_a_client_that_hides_tokens_is_heard() -> None:
    """The mask given is added: -inf is as good as any number that hides, and a row that hides all is no NaN."""
    made, _ = contracted(model())
    plan = compile(made, precision="float64")
    results: list[Any] = []
    for hidden in (-1e4, -65504.0, -np.inf):
        mask: Any = np.zeros((1, 1, 4, 4), np.float16)
        mask[..., 1] = hidden
        results.append(
            np.asarray(
                plan.run({"inputIds": np.array([TOKENS[:4]], np.int32), "causalMask": mask}, State(plan.states))[
                    "logits"
                ]
            )
        )
    plain = feed(plan, APPLE, TOKENS[:4], 4, HABITS[1])
    assert np.isfinite(results[2]).all()
    np.testing.assert_allclose(results[0][0, 2:], results[2][0, 2:], rtol=1e-9)
    np.testing.assert_allclose(results[1], results[2], rtol=1e-9)
    assert np.abs(results[0][0, 3] - plain[3]).max() > 1e-3
    np.testing.assert_allclose(results[0][0, 0], plain[0], rtol=1e-9)
    declared = compile(made)
    mask = np.full((1, 1, 1, 4), -np.inf, np.float16)
    got = declared.run({"inputIds": np.array([TOKENS[:4]], np.int32), "causalMask": mask}, State(declared.states))
    assert np.isfinite(np.asarray(got["logits"])).all()


@pytest.mark.parametrize("habit", HABITS, ids=lambda habit: habit.name)
@pytest.mark.parametrize("positions", ["rotary", "table"])
def test_a_first_token_of_zeros_was_written_all_the_same(positions: str, habit: Any) -> None:
    """Its keys are zero, as those of a slot that was never written; with a table of positions they are not."""
    plan, wanted = silent(positions)
    # the trace in its keys, 2^-24, is 6e-8
    np.testing.assert_allclose(feed(plan, APPLE, SILENT, 3, habit), wanted, rtol=1e-5, atol=1e-5)


def test_slots_that_are_left_out() -> None:
    """However many slots a client leaves out before its first token, they are hidden and not counted."""
    made, _ = contracted(model("table"))
    plan = compile(made, precision="float64")
    wanted = answer(model("table"), TOKENS[:6])
    for spare in (2, 5):
        state, got = State(plan.states), list[Any]()
        for stop in (4, 5, 6):
            first = stop - 1 if got else 0
            mask = np.zeros((1, 1, 1, stop + spare), np.float16)
            got.append(
                plan.run({"inputIds": np.array([TOKENS[first:stop]], np.int32), "causalMask": mask}, state)["logits"][0]
            )
        np.testing.assert_allclose(np.concatenate(got), wanted, rtol=1e-5, atol=1e-5)


def test_the_whole_context_at_once() -> None:
    made, _ = contracted(model("table"))
    tokens = [int(each) for each in np.random.default_rng(0).integers(VOCABULARY, size=CONTEXT)]
    plan = compile(made, precision="float64")
    at_once = feed(plan, APPLE, tokens, CONTEXT, HABITS[1])
    np.testing.assert_allclose(at_once, feed(plan, APPLE, tokens, 1, HABITS[1]), rtol=1e-9, atol=1e-9)


def test_a_conversation_after_a_longer_one_in_the_same_state() -> None:
    """What an earlier conversation left behind the new one's end is not looked at."""
    made, _ = contracted(model("table"))
    plan = compile(made, precision="float64")
    state, inputs = State(plan.states), np.array([TOKENS], np.int32)
    plan.run({"inputIds": inputs, "causalMask": np.zeros((1, 1, 1, len(TOKENS)), np.float16)}, state)
    again = plan.run({"inputIds": inputs[:, 3:8], "causalMask": np.zeros((1, 1, 1, 5), np.float16)}, state)["logits"][0]
    np.testing.assert_allclose(np.asarray(again), answer(model("table"), TOKENS[3:8]), rtol=1e-5, atol=1e-5)


def test_milopt_itself_runs_it() -> None:
    """With the package's own words of its cache, and without any, by the names alone."""
    made, _ = contracted(model())
    wanted = answer(model(), TOKENS)
    for told in (True, False):
        if not told:
            for key in [key for key in made.metadata if key.startswith("milopt.")]:
                del made.metadata[key]
        session = Session(made, precision="float64")
        got = np.concatenate((session.feed(TOKENS[:7]), session.feed(TOKENS[7:])))
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
        assert session.context == CONTEXT


def test_what_is_written() -> None:
    """All up to the first layer's attention: what a token may see, where it stands, the trace, both states."""
    made, _ = contracted(model("table", windows=(3, 0)))
    wanted = Path(__file__).with_name("contract.mil").read_text(encoding="utf-8").splitlines()
    assert text(made.program).splitlines()[: len(wanted)] == wanted


def _state_form(**options: Any) -> Model:
    made = model()
    assert KvToState(**options).run(made)
    return made


def _two_functions() -> Model:
    program = Program()
    for name in ("one", "two"):
        program.add_function(name, model().function())
    program.default_function_name = "one"
    program.export_as_multifunction = True
    made = load(program)
    made.metadata["milopt.context"] = str(CONTEXT)
    return made


def _without(key: str) -> Model:
    made = model(windows=(5, 0))
    del made.metadata[key]
    return made


def _renamed_state() -> Model:
    made = _state_form()
    rename_input(made.function(), "value_cache", "values")
    return made


def _without_tokens() -> Model:
    made = model("table")
    rename_input(made.function(), "input_ids", "positions")
    rename_input(made.function(), "position_ids", "positionIds")
    return made


def _no_cache() -> Model:
    @mb.program(input_specs=[mb.TensorSpec((1, 4))], opset_version=target.iOS18)
    def program(x: Any) -> Any:
        return mb.relu(x=x)

    return load(program)


def _static_states() -> Model:
    made = model(query=4)
    assert KvToState().run(made)
    return made


_RANGED = "its shapes are fixed, and a client feeds any number of tokens: convert it with --shapes ranged"
REFUSALS: dict[str, tuple[Callable[[], Model], str]] = {
    "fixed shapes": (lambda: model(query=4), _RANGED),
    "states of fixed shapes": (_static_states, _RANGED),
    "two functions": (_two_functions, "the client calls one function, and there are 2: one, two"),
    "no cache": (_no_cache, "there is no cache: no output is a concat of an input and something new"),
    "fp32": (lambda: model(kind=types.fp32), "the client gives no fp32 (1, 1, "),
    "logits of the last": (
        lambda: model(logits="last"),
        "the client reads row q - 1 of (1, q, vocabulary), and these are (1, 1, 19): --logits all",
    ),
    "another input": (lambda: model(more="segment_ids"), "the client gives no int32 (1, "),
    "masks of which none slides": (
        lambda: _without(WINDOW_KEY),
        "it takes 2 masks, and the client has one: sliding_mask, causal_mask",
    ),
    "one state": (lambda: _state_form(layout="unified"), "its states are kv_cache: kv-to-state{layout=pair}"),
    "a state of another name": (_renamed_state, "there is no state value_cache"),
    "keys that are stored transposed": (
        lambda: flexible([Layer(transposed=True)]),
        "the cache is (1, 2, 4, is",
    ),
    "keys and values in one tensor": (
        lambda: flexible([Layer(together=True)]),
        "the cache is (2, 1, 2, is",
    ),
    "no tokens": (flexible, "the client gives no fp16 (1, is"),
    "no tokens, but positions": (
        lambda: _without_tokens(),
        "no input takes token ids: input_ids, inputIds, tokens are known",
    ),
    "counted slots": (
        lambda: _state_form(position="position_ids"),
        "input position_ids counts slots, and a client's first slot may not be 0",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name: str) -> None:
    build, reason = REFUSALS[name]
    made = build()
    before = text(made.program), dict(made.metadata)
    report = ClientContract().run(made)
    assert not report
    assert [miss.reason.startswith(reason) for miss in report.misses] == [True], [miss.reason for miss in report.misses]
    assert (text(made.program), dict(made.metadata)) == before


def test_some_functions_only() -> None:
    made = _two_functions()
    with made.only(["one"]):
        report = ClientContract().run(made)
    assert [miss.reason for miss in report.misses] == [
        "the pass runs on some functions only, and the contract is of all"
    ]


def test_an_older_opset() -> None:
    report = ClientContract().run(model(opset=target.iOS17))
    assert report.too_old()


def test_no_context_is_known() -> None:
    made = model()
    del made.metadata["milopt.context"]
    assert not ClientContract().run(made.clone())
    made, _ = contracted(made, context=8)
    assert shape_of(made.function().inputs["keyCache"]) == (2, 1, HEADS, 8, SIZE)

"""``contract --style anemll --argmax``: a head that chooses within each slice, as clients of Anemll 0.3.5 know it."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from milopt.cli import main
from milopt.contracts import check
from milopt.contracts.anemll_checking import compare_with
from milopt.contracts.anemll_reading import Parameters
from milopt.contracts.anemll_verdicts import alike, held
from milopt.errors import MiloptError
from milopt.interpreter import compile
from milopt.mil import mb
from milopt.package import Model, load
from milopt.pipeline import Pipeline
from milopt.sets import SetError
from milopt.sets.anemll import anemll_set
from milopt.sets.anemll_argmax import chosen_sizes
from milopt.sets.deployment import interface
from tests.cli.support import with_tokenizer
from tests.sets.programs import VOCABULARY, WIDTH, Transformer

DECODER = Transformer(states="unified", mlp=(24, 24))
HEAD = "model_lm_head.mlpackage"
# 64 words in 5 slices are no equal ones
SLICES = (13, 13, 13, 13, 12)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_tokenizer(DECODER.model()).save(tmp_path_factory.mktemp("whole") / "whole.mlpackage")


@pytest.fixture(scope="module")
def good(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets") / "good"
    return anemll_set(load(package), count=2, slices=5, argmax=True).save(folder)


def test_what_it_gives(good: Path) -> None:
    yaml: Any = importlib.import_module("yaml")
    head = load(good / HEAD)
    assert interface(head, "main") == {
        "inputs": {"hidden_states": ["fp16", 1, 1, WIDTH]},
        "outputs": {"argmax_idx": ["int32", 5], "argmax_val": ["fp16", 5]},
        "states": {},
    }
    assert chosen_sizes(head.function()) == SLICES
    assert head.metadata["com.anemll.argmax_in_model"] == "true"
    assert head.metadata["com.anemll.vocab_size"] == "64"
    assert head.metadata["com.anemll.lm_head_chunk_sizes"] == "13,13,13,13,12"
    said: Any = yaml.safe_load((good / "meta.yaml").read_text())["model_info"]["parameters"]
    known = {key: said[key] for key in ("split_lm_head", "argmax_in_model", "vocab_size", "lm_head_chunk_sizes")}
    assert known == {
        "split_lm_head": 5,
        "argmax_in_model": True,
        "vocab_size": 64,
        "lm_head_chunk_sizes": list(SLICES),
    }
    others = [each for each in good.glob("*.mlpackage") if each.name != HEAD]
    assert not any("com.anemll.argmax_in_model" in load(each).metadata for each in others)


def test_the_places_are_counted_from_each_slice() -> None:
    rows = np.random.default_rng(2).standard_normal((1, 1, WIDTH)).astype(np.float16)
    split, chosen = (
        compile(anemll_set(DECODER.model(), count=2, slices=5, argmax=each).head, precision="float64").run(
            {"hidden_states": rows}
        )
        for each in (False, True)
    )
    for at in range(5):
        logits = split[f"logits{at + 1}"].flatten()
        assert int(chosen["argmax_idx"][at]) == int(logits.argmax())
        assert float(chosen["argmax_val"][at]) == float(logits.max())


@pytest.mark.parametrize(
    "passes", ["split-head{slices=5,output=slices}", "canonicalize,linear-to-conv,layout-bc1s{sequence=1}"]
)
def test_of_other_heads(passes: str) -> None:
    model = DECODER.model()
    Pipeline.parse(passes).run(model, verify=None)
    made = anemll_set(model, count=2, slices=5, argmax=True)
    assert interface(made.head, "main")["outputs"] == {"argmax_idx": ["int32", 5], "argmax_val": ["fp16", 5]}
    assert chosen_sizes(made.head.function()) == SLICES
    finding = compare_with(model, made, tokens=4)
    assert finding.passed, finding
    assert "5 of 5 tokens as the package" in finding.detail


def test_a_good_set(good: Path, package: Path) -> None:
    found = check(good, "anemll", reference=package, tokens=3)
    assert found, str(found)
    assert "the largest of 64 logits in each of 5 slices, and its place" in str(found)
    assert check(good, "anemll", tokens=3)


def test_another_program_is_noticed(good: Path) -> None:
    other = Transformer(states="unified", mlp=(24, 23))
    assert not compare_with(DECODER.model(), anemll_set(other.model(), count=2, slices=5, argmax=True)).passed
    (failed,) = check(good, "anemll", reference=other.model(), tokens=3).failed
    assert failed.check == "the client's loop"


def _meta(old: str, new: str) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        text = (folder / "meta.yaml").read_text()
        assert old in text
        (folder / "meta.yaml").write_text(text.replace(old, new))

    return changed


def _head(change: Callable[[Model], None]) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        model = load(folder / HEAD)
        change(model)
        model.save(folder / HEAD, overwrite=True)

    return changed


def _called_otherwise(model: Model) -> None:
    output = model.function().outputs[0]
    output.name = "places"
    assert output.op is not None
    output.op.name = "places"


def _unsigned(model: Model) -> None:
    del model.metadata["com.anemll.argmax_in_model"]


def _as_rows(model: Model) -> None:
    function = model.function()
    places, values = function.outputs
    with function:
        rows = mb.expand_dims(x=places, axes=[0])
    values.name, rows.name = "argmax_val", "argmax_rows"
    places.name = "places"
    rows.name = "argmax_idx"
    function.set_outputs([rows, values])
    function.output_types = None


_SIZES = "    lm_head_chunk_sizes:\n    - 13\n    - 13\n    - 13\n    - 13\n    - 12\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_meta("argmax_in_model: true", "argmax_in_model: false"), "nothing else, since meta.yaml does not say argmax"),
        (
            _meta("- 13\n    - 12", "- 12\n    - 13"),
            "its slices are of 13, 13, 13, ... words, and the client takes them",
        ),
        (_meta("- 12\n", "- 12\n    - 5\n"), ""),
        (_meta("vocab_size: 64", "vocab_size: 65"), "are 64 words together, and vocab_size 65"),
        (_meta(_SIZES, ""), ""),
        (_meta("split_lm_head: 5", "split_lm_head: 4"), "argmax_idx is int32 (5), not int32 (4)"),
        (
            _meta("lm_head_chunk_sizes:\n    - 13", "lm_head_chunk_sizes:\n    - many"),
            "meta.yaml: lm_head_chunk_sizes is",
        ),
        (_head(_called_otherwise), "it gives places, argmax_val, and no argmax_idx"),
        (_head(lambda model: model.metadata.clear()), "com.anemll.context_length: it is not there"),
        (
            _head(_unsigned),
            "com.anemll.argmax_in_model: it is not",
        ),
        (_head(_as_rows), "argmax_idx is int32 (1, 5), not int32 (5)"),
    ],
)
def test_what_a_client_would_stumble_over(
    change: Callable[[Path], None], message: str, good: Path, tmp_path: Path
) -> None:
    """Without a message the client divides ``vocab_size`` as the head is divided, and is right."""
    folder = Path(shutil.copytree(good, tmp_path / "set"))
    change(folder)
    try:
        failed = [str(each) for each in check(folder, "anemll", tokens=2).failed]
    except MiloptError as error:
        failed = [str(error)]
    assert all("\n" not in each for each in failed)
    assert any(message in each for each in failed) if message else not failed, failed


def test_sizes_as_clients_read_them() -> None:
    def layout(**said: Any) -> tuple[int, ...]:
        return Parameters(12, 4, 2, 4, "model", (0, 0, 0), True, **said).layout

    assert layout(words=10) == (3, 3, 2, 2)
    assert layout(words=10, sizes=(1, 2, 3, 4)) == (1, 2, 3, 4)
    assert layout(words=10, sizes=(5, 5)) == (3, 3, 2, 2)
    assert layout() == ()


def test_a_place_of_another_word_is_another_answer() -> None:
    """Of a choice both have to be right: the place, and the logit."""
    wanted = np.array([[1.0, 3.0, 2.0, 0.5, 0.25, 4.0]])

    def given(*places: int, value: float | None = None) -> Any:
        row = np.full_like(wanted, -np.inf)
        for place in places:
            row[0, place] = wanted[0, place] if value is None else value
        return row

    def passes(got: Any) -> bool:
        return held(got, wanted, "the package", 1.0, compressed=False, slices=(3, 3)).passed

    assert passes(given(1, 5))
    assert not passes(given(2, 5))
    assert not passes(given(1, 4))
    assert not passes(given(1, 5, value=4.0))
    moved = given(1, 5)
    moved[0, [1, 2]] = -np.inf, 3.0
    assert not passes(moved)
    assert not passes(given(1))
    assert alike(given(1, 5), given(1, 5), slices=(3, 3)).passed
    assert not alike(given(1, 5), given(1, 4), slices=(3, 3)).passed


def test_a_head_that_chooses_of_all_words_is_none_for_it() -> None:
    model = DECODER.model()
    Pipeline.parse("split-head{output=argmax}").run(model, verify=None)
    with pytest.raises(SetError, match="the head gives argmax_idx, argmax_val, and the client reads logits1"):
        anemll_set(model, count=2, argmax=True)


def test_the_commands(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "set"
    assert main(["contract", str(package), "-o", str(folder), "--count", "2", "--slices", "4", "--argmax"]) == 0
    assert "tokens as the package, off by 0 of the largest logit" in " ".join(capsys.readouterr().out.split())
    assert main(["check-contract", str(folder), "--style", "anemll", "--reference", str(package), "--tokens", "2"]) == 0
    assert f"the largest of {VOCABULARY} logits in each of 4 slices" in " ".join(capsys.readouterr().out.split())
    assert main(["contract", str(package), "-o", str(tmp_path / "c"), "--style", "coreml-llm", "--argmax"]) == 2
    assert "--argmax is for anemll: the package of coreml-llm chooses the next token anyhow" in capsys.readouterr().err

"""``check-contract --style anemll``: a set as it should be, and everything that its clients would stumble over."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from milopt.cli import main
from milopt.contracts import check
from milopt.errors import MiloptError
from milopt.mil import add_input, rename_input
from milopt.package import Model, load
from milopt.sets.anemll import anemll_set
from milopt.sets.coreml_llm import monolith
from tests.cli.support import contents, with_tokenizer
from tests.sets.programs import Transformer

# two layers, one in each chunk
DECODER = Transformer(states="unified", mlp=(24, 24))
FIRST, SECOND = "model_FFN_PF_chunk_01of02.mlpackage", "model_FFN_PF_chunk_02of02.mlpackage"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_tokenizer(DECODER.model()).save(tmp_path_factory.mktemp("whole") / "whole.mlpackage")


@pytest.fixture(scope="module")
def good(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return anemll_set(load(package), count=2, slices=4).save(tmp_path_factory.mktemp("sets") / "good")


def test_a_good_set(good: Path, package: Path) -> None:
    (good / ".DS_Store").write_bytes(b"")
    found = check(good, "anemll", reference=package, tokens=3)
    assert found, str(found)
    assert "4 of 4 tokens as the package" in str(found)
    assert len(found.found) == 30


def test_a_good_set_without_a_reference(good: Path) -> None:
    found = check(good, "anemll", tokens=3)
    assert found, str(found)
    assert "as token by token" in str(found)


def _damaged(good: Path, tmp_path: Path, change: Callable[[Path], None]) -> list[str]:
    folder = Path(shutil.copytree(good, tmp_path / "set"))
    change(folder)
    failed = check(folder, "anemll", tokens=2).failed
    assert all("\n" not in str(each) for each in failed)
    return [str(each).removeprefix("FAILS: ") for each in failed]


def _package(name: str, change: Callable[[Model], None]) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        model = load(folder / name)
        change(model)
        model.save(folder / "fresh.mlpackage")
        shutil.rmtree(folder / name)
        (folder / "fresh.mlpackage").rename(folder / name)

    return changed


def _removed(name: str) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return changed


def _added(name: str) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        (folder / name).write_text("")

    return changed


def _meta(old: str, new: str) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        file = folder / "meta.yaml"
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))

    return changed


def _rename(function: str, old: str, new: str) -> Callable[[Model], None]:
    return lambda model: rename_input(model.function(function), old, new)


def _extra(model: Model) -> None:
    add_input(model.function("infer"), "update_mask", (1, 1, 12, 1), "fp16")


def _another(model: Model) -> None:
    for function in model.functions.values():
        function.outputs[0].name = "hidden"
        assert function.outputs[0].op is not None
        function.outputs[0].op.name = "hidden"


def _decode_alone(model: Model) -> None:
    del model.program.functions["prefill"]


def _without(key: str) -> Callable[[Model], None]:
    def changed(model: Model) -> None:
        del model.metadata[f"com.anemll.{key}"]

    return changed


def _config(**changes: Any) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        said = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**said, **changes}))

    return changed


def _of_other(**options: Any) -> Callable[[Path], None]:
    """The second chunk of another program's set."""

    def changed(folder: Path) -> None:
        other = anemll_set(Transformer(states="unified", **options).model(), count=2, slices=4)
        shutil.rmtree(folder / SECOND)
        other.chunks[1].save(folder / SECOND)

    return changed


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (_removed(SECOND), [f"file {SECOND}: it is missing: the client finds no such"]),
        (_removed("tokenizer.json"), ["file tokenizer.json: it is missing"]),
        (_added("notes.txt"), ["file notes.txt: meta.yaml does not lead to it"]),
        (_meta("num_chunks: 2", "num_chunks: 1"), ["PF_chunk_01of01.mlpackage: it is missing", FIRST, SECOND]),
        (_meta("split_lm_head: 4", "split_lm_head: 8"), ["lm_head.mlpackage: it gives logits1, logits2, logits3"]),
        (_meta("batch_size: 4", "batch_size: 6"), ["input_ids take (1, 1), (1, 4): the client gives (1, 1), and"]),
        (
            _package(FIRST, _rename("infer", "causal_mask", "mask")),
            ["input causal_mask is not among", "input mask, fp16"],
        ),
        (_package(FIRST, _extra), ["input update_mask, fp16 (1, 1, 12, 1), is none the client gives: its call fails"]),
        (_package(SECOND, _another), ["output output_hidden_states is not among: hidden"]),
        (_package(FIRST, _decode_alone), ["there is no such function: it has infer"]),
        (_package(FIRST, _without("chunk_no")), ["com.anemll.chunk_no: it is not there, and the set's is '1'"]),
        (_package(SECOND, _rename("infer", "model_model_kv_cache_0", "cache")), ["state of infer", "makes one state"]),
        (_of_other(mlp=(24, 24, 24)), ["the client makes one state, of the first chunk's, for all"]),
        (_config(num_hidden_layers=5), ["config.json: num_hidden_layers is 5, and the packages have 2"]),
    ],
)
def test_what_a_client_would_stumble_over(
    change: Callable[[Path], None], messages: list[str], good: Path, tmp_path: Path
) -> None:
    told = _damaged(good, tmp_path, change)
    for message in messages:
        assert any(message in each for each in told), told
    assert told


def test_another_answer_than_the_packages(good: Path, package: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(good, tmp_path / "set"))
    _of_other(mlp=(24, 23))(folder)
    (failed,) = check(folder, "anemll", reference=package, tokens=3).failed
    assert failed.check == "the client's loop"
    assert "tokens as the package, off by" in failed.detail


def test_prefill_that_leaves_other_keys_behind(good: Path, tmp_path: Path) -> None:
    """Both functions are right by themselves, and of different programs."""
    transformer = Transformer(states="unified", mlp=(24, 24), weights={"key1": DECODER.weights["value1"]})
    other = anemll_set(transformer.model(), count=2, slices=4)
    folder = Path(shutil.copytree(good, tmp_path / "set"))
    for at, name in enumerate((FIRST, SECOND)):
        model = load(folder / name)
        model.program.functions["prefill"] = other.chunks[at].program.functions["prefill"]
        shutil.rmtree(folder / name)
        model.save(folder / name)
    (failed,) = check(folder, "anemll", tokens=3).failed
    assert failed.check == "the prompt in blocks"
    assert "prefill and infer compute different things" in failed.detail


_PARAMETERS = "model_info: {parameters: {context_length: 8, batch_size: 4, num_chunks: %s}}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is no ANEMLL set: it has no meta.yaml"),
        ("a: [", "meta.yaml can't be read: while parsing"),
        ("a: 1", "meta.yaml has no model_info: parameters:, where the client looks for everything"),
        (
            "model_info: {parameters: {context_length: many}}",
            "context_length is 'many', not a number from 1 to 2147483647",
        ),
        (_PARAMETERS % "1000000000000", "num_chunks is '1000000000000', not a number from 1 to 999"),
        (_PARAMETERS % ("9" * 5000), "meta.yaml can't be read: Exceeds the limit"),
        (_PARAMETERS % "2001-99-99", "meta.yaml can't be read: month must be in 1..12"),
        (_PARAMETERS % "!!python/object/apply:os.system ['true']", "could not determine a constructor"),
        (_PARAMETERS % "{a: 1}", "num_chunks is no number"),
        (_PARAMETERS % "1, model_prefix: ../other", "the prefix '../other' is no beginning of a file name"),
        (_PARAMETERS % '1, model_prefix: "a\\nb"', "is no beginning of a file name"),
        ("[" * 100_000, "meta.yaml can't be read: maximum recursion"),
    ],
)
def test_no_set_at_all(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "meta.yaml").write_text(content)
    with pytest.raises(MiloptError, match=r"^[^\n]*$") as caught:
        check(tmp_path, "anemll")
    assert message in str(caught.value)


def test_the_commands(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "set"
    arguments = ["contract", str(package), "-o", str(folder), "--count", "2", "--prefix", "tiny", "--slices", "4"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "tokens as the package, off by 0 of the largest logit" in " ".join(out.split())
    assert "xcrun coremlcompiler compile" in out
    assert main(["check-contract", str(folder), "--style", "anemll", "--tokens", "2"]) == 0
    assert "set keeps the anemll contract: 30 checks passed" in capsys.readouterr().out
    before = contents(folder)
    assert main(arguments) == 2
    assert "exists; give --force to replace it" in capsys.readouterr().err
    assert main([*arguments[:2], "-o", str(folder), "--force", "--batch-size", "3"]) == 2
    assert "no function takes 3 tokens: they take 1, 4" in capsys.readouterr().err
    assert contents(folder) == before
    (folder / "config.json").unlink()
    assert main(["check-contract", str(folder), "--style", "anemll"]) == 1
    assert "file config.json" in capsys.readouterr().out


def test_files_of_the_source(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, folder = tmp_path / "source", tmp_path / "set"
    source.mkdir()
    common = ["contract", str(package), "-o", str(folder), "--no-verify", "--source", str(source)]
    assert main(common) == 2
    assert "has no config.json and no tokenizer" in capsys.readouterr().err
    (source / "config.json").write_text('{"vocab_size": 64}')
    (source / "model.safetensors").write_text("")
    assert main(common) == 0
    assert (folder / "config.json").read_text() == '{"vocab_size": 64}'
    assert not (folder / "model.safetensors").exists()


def test_blocks_that_do_not_fill_the_context(tmp_path: Path) -> None:
    model = with_tokenizer(Transformer(states="unified", mlp=(24,)).model((1, 5)))
    folder = anemll_set(model, count=1, slices=4).save(tmp_path / "set")
    (failed,) = check(folder, "anemll").failed
    assert failed.check == "meta.yaml"
    assert "no whole blocks" in failed.detail


@pytest.mark.parametrize("style", ["anemll", "coreml-llm"])
def test_a_reference_of_another_size(style: str, good: Path, package: Path, tmp_path: Path) -> None:
    weights = {"embedding": DECODER.weights["embedding"][:32], "head": DECODER.weights["head"][:32]}
    other = replace(DECODER, weights={**DECODER.weights, **weights}).model()
    folder = good if style == "anemll" else monolith(load(package)).save(tmp_path / "folder")
    with pytest.raises(MiloptError, match="the reference has 32 words, and what it is held against 64"):
        check(folder, style, reference=other, tokens=2)

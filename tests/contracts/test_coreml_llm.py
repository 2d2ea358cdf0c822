"""``contract --style coreml-llm``: one package that chooses tokens, and what its client would stumble over."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from milopt.cli import main
from milopt.contracts import check
from milopt.contracts.coreml_llm_checking import compare_monolith
from milopt.errors import MiloptError
from milopt.interpreter import State, compile
from milopt.mil import add_input, rename_input
from milopt.package import Model, load
from milopt.pipeline import Pipeline
from milopt.sets import SetError
from milopt.sets.coreml_llm import monolith
from milopt.sets.deployment import interface
from tests.cli.support import contents, with_tokenizer
from tests.sets.programs import CONTEXT, HEADS, SIZE, Transformer

DECODER = Transformer(states="unified", mlp=(24, 24))


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_tokenizer(DECODER.model()).save(tmp_path_factory.mktemp("whole") / "whole.mlpackage")


@pytest.fixture(scope="module")
def good(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return monolith(load(package)).save(tmp_path_factory.mktemp("folders") / "good")


def test_the_interface_is_the_clients(good: Path) -> None:
    assert interface(load(good / "model.mlpackage"), "main") == {
        "inputs": {
            "input_ids": ["int32", 1, 1],
            "position_ids": ["int32", 1],
            "causal_mask": ["fp16", 1, 1, 1, CONTEXT],
            "update_mask": ["fp16", 1, 1, CONTEXT, 1],
        },
        "outputs": {"token_id": ["int32", 1], "token_logit": ["fp16", 1]},
        "states": {"kv_cache_0": ["fp16", 4, HEADS, CONTEXT, SIZE]},
    }
    config = json.loads((good / "model_config.json").read_text())
    assert (config["hidden_size"], config["num_hidden_layers"], config["vocab_size"]) == (16, 2, 64)
    assert (config["context_length"], config["head_dim"], config["eos_token_id"]) == (CONTEXT, SIZE, 0)
    assert {each.name for each in (good / "hf_model").iterdir()} == {
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


@pytest.mark.parametrize(
    "passes",
    ["", "canonicalize,palettize{bits=4,min_elements=100}", "canonicalize,linear-to-conv,layout-bc1s{sequence=1}"],
)
def test_it_chooses_what_the_program_does(passes: str) -> None:
    model = DECODER.model()
    if passes:
        Pipeline.parse(passes).run(model, verify=None)
    finding = compare_monolith(model, monolith(model), tokens=4)
    assert finding.passed, finding
    assert "5 of 5 tokens as the package" in finding.detail


def test_another_program_does_not() -> None:
    other = Transformer(states="unified", mlp=(24, 23))
    assert not compare_monolith(DECODER.model(), monolith(other.model()), tokens=4).passed


def test_the_mask_alone_says_where_it_writes() -> None:
    made = monolith(DECODER.model()).model
    plan = compile(made, precision="float64")
    mask: Any = np.zeros((1, 1, 1, CONTEXT), np.float16)

    def state_after(slot: int | None) -> Any:
        state, update = State(plan.states), np.zeros((1, 1, CONTEXT, 1), np.float16)
        if slot is not None:
            update[0, 0, slot] = 1
        ids, place = np.array([[5]], np.int32), np.array([2], np.int32)
        plan.run({"input_ids": ids, "position_ids": place, "causal_mask": mask, "update_mask": update}, state)
        return np.abs(state["kv_cache_0"]).sum((1, 3)) > 0

    for slot in (0, 7):
        np.testing.assert_array_equal(state_after(slot), np.tile(np.arange(CONTEXT) == slot, (4, 1)))
    assert not state_after(None).any()


def test_a_good_folder(good: Path, package: Path) -> None:
    (good / ".DS_Store").write_bytes(b"")
    assert check(good, "coreml-llm", tokens=3)
    found = check(good, "coreml-llm", reference=package, tokens=3)
    assert found, str(found)
    assert "4 of 4 tokens as the package, logits off by 0" in str(found)


def _changed(change: Callable[[Model], None]) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        model = load(folder / "model.mlpackage")
        change(model)
        model.save(folder / "fresh.mlpackage")
        shutil.rmtree(folder / "model.mlpackage")
        (folder / "fresh.mlpackage").rename(folder / "model.mlpackage")

    return changed


def _called(old: str, new: str) -> Callable[[Path], None]:
    return _changed(lambda model: rename_input(model.function(), old, new))


def _more(model: Model) -> None:
    add_input(model.function(), "per_layer", (1, 1), "fp16")


def _config(**changes: Any) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        file = folder / "model_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return changed


def _removed(name: str) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        shutil.rmtree(folder / name)

    return changed


def _added(folder: Path) -> None:
    (folder / "chunk1.mlpackage").mkdir()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_removed("model.mlpackage"), "file model.mlpackage: it is missing"),
        (_removed("hf_model"), "hf_model/tokenizer.json: it is missing"),
        (_added, "file chunk1.mlpackage: the client does not look for it"),
        (_config(eos_token_id=[0, 1]), "eos_token_id of model_config.json: it is [0, 1], no number"),
        (_config(context_length=16), "kv_cache_0 is fp16 [4, 2, 12, 8], not fp16 (2 layers, heads, 16, size)"),
        (_config(num_hidden_layers=3), "kv_cache_0 has keys and values of 2 layers, model_config.json 3"),
        (_called("kv_cache_0", "kv_cache"), "state: it has kv_cache, and the contract kv_cache_0"),
        (_called("update_mask", "write_mask"), "input update_mask: it is not among"),
        (_changed(_more), "input per_layer: fp16 [1, 1]: the client gives no such input"),
    ],
)
def test_what_the_client_would_stumble_over(
    change: Callable[[Path], None], message: str, good: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(good, tmp_path / "folder"))
    change(folder)
    failed = [str(each) for each in check(folder, "coreml-llm", tokens=2).failed]
    assert any(message in each for each in failed), failed
    assert all("\n" not in each for each in failed)


def test_another_answer_than_the_packages(package: Path, tmp_path: Path) -> None:
    other = with_tokenizer(Transformer(states="unified", mlp=(24, 23)).model())
    folder = monolith(other).save(tmp_path / "other")
    (failed,) = check(folder, "coreml-llm", reference=package, tokens=3).failed
    assert failed.check == "the client's loop"
    assert "tokens as the package, logits off by" in failed.detail


def test_what_can_not_be_made() -> None:
    with pytest.raises(SetError, match=r"the program has key_cache, value_cache: kv-to-state\{layout=unified\}"):
        monolith(Transformer().model())
    with pytest.raises(SetError, match="no function takes one token: they take 4"):
        monolith(DECODER.model((4,)))
    split = DECODER.model()
    Pipeline.parse("split-head{slices=4,output=slices}").run(split, verify=None)
    with pytest.raises(SetError, match="the head gives logits1, logits2, logits3, logits4, and the client reads the"):
        monolith(split)


def test_no_folder_of_this_form(tmp_path: Path) -> None:
    with pytest.raises(MiloptError, match=r"is no CoreML-LLM folder: it has no model_config\.json"):
        check(tmp_path, "coreml-llm")
    with pytest.raises(MiloptError, match="the coreml-llm contract is of a folder, not of one model"):
        check(DECODER.model(), "coreml-llm")


def test_the_pass_says_who_makes_it() -> None:
    for style in ("anemll", "coreml-llm"):
        report = Pipeline.parse(f"contract{{style={style}}}").run(DECODER.model(), verify=None)
        assert f"which milopt contract --style {style} writes" in str(report)


def test_the_commands(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "folder"
    command = ["contract", str(package), "-o", str(folder), "--style", "coreml-llm"]
    assert main([*command, "--count", "2"]) == 2
    assert "it is not cut, and takes no batch" in capsys.readouterr().err
    assert main([*command, "--prefix", "tiny"]) == 0
    out = capsys.readouterr().out
    assert "tokens as the package, logits off by 0 of the largest" in " ".join(out.split())
    assert json.loads((folder / "model_config.json").read_text())["model_name"] == "tiny"
    assert main(["check-contract", str(folder), "--style", "coreml-llm", "--tokens", "2"]) == 0
    assert "folder keeps the coreml-llm contract: 17 checks passed" in capsys.readouterr().out
    before = contents(folder)
    assert main(command) == 2
    assert "exists; give --force to replace it" in capsys.readouterr().err
    assert main([*command[:3], str(tmp_path), "--style", "coreml-llm", "--force"]) == 2
    assert "is no CoreML-LLM folder; it is not replaced even with --force" in capsys.readouterr().err
    assert contents(folder) == before

"""``--source``: another model's ``config.json`` is refused, and what can't be compared is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from milopt.cli import main
from milopt.package import Model
from milopt.pipeline import Pipeline
from milopt.sets import SetError
from milopt.sets.anemll import anemll_set
from milopt.sets.coreml_llm import monolith
from tests.sets.programs import HEADS, SIZE, VOCABULARY, WIDTH, Transformer

DECODER = Transformer(states="unified", mlp=(24, 24))
RIGHT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "num_hidden_layers": 2,
    "hidden_size": WIDTH,
    "num_attention_heads": HEADS,
    "head_dim": SIZE,
}


@pytest.fixture(scope="module")
def model() -> Model:
    return DECODER.model()


def _carried(said: dict[str, Any]) -> dict[str, bytes]:
    return {"config.json": json.dumps(said).encode()}


@pytest.mark.parametrize(
    "said",
    [
        {},
        RIGHT,
        {**RIGHT, "num_attention_heads": 4, "num_key_value_heads": HEADS},
        {**RIGHT, "head_dim": None},
        {"n_layer": 2, "n_embd": WIDTH, "n_head": HEADS},
        {**RIGHT, "num_attention_heads": 4, "multi_query": True},
        {**RIGHT, "hidden_size": 99, "word_embed_proj_dim": WIDTH},
        {"vocab_size": 9, "text_config": RIGHT},
        {**RIGHT, "vocab_size": "many", "num_hidden_layers": True},
    ],
)
def test_what_fits_or_says_nothing(said: dict[str, Any], model: Model) -> None:
    assert json.loads(anemll_set(model, count=2, carried=_carried(said)).files["config.json"]) == said
    monolith(model, carried=_carried(said))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"vocab_size": 65}, "vocab_size is 65, and the program has 64"),
        ({"num_hidden_layers": 3}, "num_hidden_layers is 3, and the program has 2"),
        ({"n_layer": 3}, "n_layer is 3, and the program has 2"),
        ({"hidden_size": 32}, "hidden_size is 32, and the program has 16"),
        ({"head_dim": 16}, "head_dim is 16, and the program has 8"),
        ({"num_attention_heads": 4}, "num_attention_heads is 4, and the program has 2"),
        ({"num_attention_heads": 4, "num_key_value_heads": 1}, "num_key_value_heads is 1, and the program has 2"),
        (
            {"hidden_size": WIDTH, "num_attention_heads": 4, "num_key_value_heads": HEADS},
            "hidden_size / num_attention_heads is 4, and the program has 8",
        ),
        ({**RIGHT, "text_config": {"num_hidden_layers": 5}}, "num_hidden_layers is 5, and the program has 2"),
    ],
)
def test_another_models(said: dict[str, Any], message: str, model: Model) -> None:
    for make in (
        lambda: anemll_set(model, count=2, carried=_carried(said)),
        lambda: monolith(model, carried=_carried(said)),
    ):
        with pytest.raises(SetError, match=r"^config\.json of the source is another model's: [^\n]*$") as caught:
            make()
        assert message in str(caught.value)


def test_of_compressed_heads_in_slices(model: Model) -> None:
    made = model.clone()
    Pipeline.parse("canonicalize,linear-to-conv,palettize{bits=4,min_elements=100}").run(made, verify=None)
    anemll_set(made, count=2, slices=4, argmax=True, carried=_carried(RIGHT))
    with pytest.raises(SetError, match="hidden_size is 17"):
        anemll_set(made, count=2, slices=4, carried=_carried({"hidden_size": 17}))


def test_the_command(model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package, source = model.save(tmp_path / "whole.mlpackage"), tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_bytes(_carried({**RIGHT, "vocab_size": 32_000})["config.json"])
    for style in ("anemll", "coreml-llm"):
        command = ["contract", str(package), "-o", str(tmp_path / "out"), "--style", style, "--source", str(source)]
        assert main(command) == 2
        said = "config.json of the source is another model's: vocab_size is 32000, and the program has 64"
        assert capsys.readouterr().err == f"error: {said}\n"
    assert not (tmp_path / "out").exists()

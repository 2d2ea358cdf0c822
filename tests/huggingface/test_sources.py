"""Models that can't be converted: one line each."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from milopt.huggingface import ConversionError, convert, trace
from milopt.huggingface.families import masks_of
from milopt.huggingface.sources import open_source
from tests.huggingface.families import FAMILIES
from tests.huggingface.support import library, llama

_FITTING: dict[str, Any] = {"context": 16, "query_lengths": (1, 4)}


def _refused(source: Any, words: str, **options: Any) -> None:
    with pytest.raises(ConversionError, match=words) as caught:
        convert(source, **(_FITTING | options))
    assert "\n" not in str(caught.value)


def test_a_path_that_does_not_exist(tmp_path: Path) -> None:
    _refused(tmp_path / "absent", "absent: no such file or directory")


def test_an_empty_folder(tmp_path: Path) -> None:
    _refused(str(tmp_path), "holds neither config.json nor a .gguf file")


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.txt").write_text("text")
    _refused(tmp_path / "model.txt", "neither a directory nor a .gguf file")


def test_two_gguf_files(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    _refused(tmp_path, r"holds 2 \.gguf files, name one: a\.gguf, b\.gguf")


def test_a_damaged_gguf_file(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="milopt[huggingface] is not installed")
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + bytes(4))
    _refused(tmp_path, r"a\.gguf: not a readable GGUF file")


def test_a_model_name_that_is_not_on_disk() -> None:
    _refused(
        "nobody/nothing-1B", r"nobody/nothing-1B: no such file .*; to fetch this one: hf download nobody/nothing-1B\)"
    )


def test_a_model_name_in_the_cache(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = tmp_path / "models--someone--tiny-1"
    (hub / "refs").mkdir(parents=True)
    (hub / "refs/main").write_text("0123abcd")
    shutil.copytree(folder, hub / "snapshots/0123abcd")
    snapshot = library("huggingface_hub").snapshot_download
    monkeypatch.setattr("huggingface_hub.snapshot_download", functools.partial(snapshot, cache_dir=tmp_path))
    source = open_source("someone/tiny-1", context=16)
    assert (source.name, source.architecture, source.kind) == ("tiny-1", "LlamaForCausalLM", "decoder")


def test_an_unsupported_architecture_in_a_folder(tmp_path: Path) -> None:
    library("transformers").T5Config(architectures=["T5ForConditionalGeneration"]).save_pretrained(tmp_path)
    _refused(tmp_path, "T5ForConditionalGeneration is an encoder with a decoder")


def test_a_stack_of_layers_without_a_head() -> None:
    transformers = library("transformers")
    config = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=8, bos_token_id=1, eos_token_id=2)
    _refused(transformers.GPT2Model(config), "GPT2Model is neither a causal language model nor an encoder")


def test_layers_of_another_kind() -> None:
    config = library("transformers").Lfm2Config(num_hidden_layers=2, layer_types=["conv", "full_attention"])
    with pytest.raises(ConversionError, match="Lfm2ForCausalLM has layers of type 'conv'"):
        masks_of("Lfm2ForCausalLM", config)


def test_something_that_is_no_model() -> None:
    _refused(3, "a int is neither a path nor a transformers model")


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rope_that_depends_on_the_length(kind: str) -> None:
    parameters = {"rope_type": kind, "original_max_position_embeddings": 24, "rope_theta": 10000.0, "factor": 2.0}
    factors = {name: [1.5] * 8 for name in ("short_factor", "long_factor")} if kind == "longrope" else {}
    model = llama(rope_parameters={**parameters, **factors})
    _refused(model, f"RoPE of type '{kind}' .* fixed up to 24 positions only, and the context is 25", context=25)
    assert trace(model, context=24, query_length=2).difference < 1e-5


def test_a_context_beyond_the_positions() -> None:
    _refused(llama(), "context 65 is more than the 64 positions", context=65)


def test_a_context_beyond_learned_positions() -> None:
    _refused(FAMILIES["gpt-2"].make(), "context 129 is more than the 128 positions", context=129)


@pytest.mark.parametrize(
    ("lengths", "words"),
    [
        ((), "at least one is needed"),
        ((0, 4), "each must be 1 or more"),
        ((4, 1), "must be ascending"),
        ((4, 4), "must be ascending"),
        ((1, 16), "query length 16 leaves no past in a context of 16"),
    ],
)
def test_query_lengths_that_do_not_fit(lengths: tuple[int, ...], words: str) -> None:
    _refused(llama(), words, query_lengths=lengths)


def test_an_unknown_dtype() -> None:
    _refused(llama(), "unknown dtype 'int4'", dtype="int4")


def test_a_folder_without_weights(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "config.json", tmp_path)
    _refused(tmp_path, r"holds no \.safetensors")


def test_truncated_weights(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "config.json", tmp_path)
    weights = (folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    _refused(tmp_path, r"model\.safetensors: tensor .* bytes")


def test_weights_that_do_not_fill_the_model(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    shutil.copy(folder / "model.safetensors", tmp_path)
    _refused(tmp_path, r"the checkpoint does not fit the model, missing: model\.layers\.2\.")


def test_weights_of_other_shapes_than_the_config_says(folder: Path, tmp_path: Path) -> None:
    _edited(folder, tmp_path, vocab_size=96)
    _refused(
        tmp_path,
        r"the checkpoint does not fit the model: lm_head\.weight is \(512, 64\) there and \(96, 64\) by its config, "
        r"model\.embed_tokens\.weight is",
    )


def test_a_config_that_makes_no_sense(folder: Path, tmp_path: Path) -> None:
    """Of what transformers says, that which tells what is wrong."""
    _edited(folder, tmp_path, rms_norm_eps="small")
    _refused(tmp_path, r"transformers can't load its config: Validation error for field 'rms_norm_eps': .*float")
    _edited(folder, tmp_path, hidden_act="zilu")
    _refused(tmp_path, r"transformers can't load it: KeyError: 'zilu'")


def test_a_tokenizer_that_makes_no_sense(folder: Path, tmp_path: Path) -> None:
    _edited(folder, tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"a": 1}')
    _refused(tmp_path, "transformers can't load its tokenizer: KeyError: 'added_tokens'")


def _edited(folder: Path, into: Path, **settings: Any) -> None:
    """The folder's model with another config."""
    config = json.loads((folder / "config.json").read_text())
    (into / "config.json").write_text(json.dumps({**config, **settings}))
    shutil.copy(folder / "model.safetensors", into)

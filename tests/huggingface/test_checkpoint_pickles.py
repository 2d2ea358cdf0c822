"""PyTorch's .bin checkpoints: read where they are allowed and hold nothing but tensors."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from milopt.huggingface import ConversionError, convert
from milopt.huggingface.pickled import read_pickled
from milopt.huggingface.sources import open_source
from milopt.huggingface.standins import is_stand_in, real_weights
from tests.huggingface.support import llama

_ran: list[str] = []


def _folder(path: Path, content: Any, **settings: Any) -> Path:
    config = llama(**settings).config
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(path)
    torch.save(content, path / "pytorch_model.bin")
    return path


def test_they_have_to_be_allowed(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"holds no \.safetensors .* read with --pickles"):
        convert(_folder(tmp_path, llama().state_dict()), context=16)


def test_tensors_are_read(tmp_path: Path) -> None:
    wanted = llama().state_dict()
    got = open_source(_folder(tmp_path, wanted), context=16, pickles=True, stand_ins=True).model.state_dict()
    assert all(torch.equal(got[name], value) for name, value in wanted.items())


def test_a_transposed_tensor(tmp_path: Path) -> None:
    state = llama(vocab_size=2048).state_dict()
    name = "lm_head.weight"
    turned = {**state, name: state[name].T.contiguous().T}
    assert not turned[name].is_contiguous()
    model = open_source(_folder(tmp_path, turned, vocab_size=2048), context=16, pickles=True, stand_ins=True).model
    assert is_stand_in(model.lm_head.weight)
    with real_weights():
        assert torch.equal(model.lm_head.weight.clone(), state[name])


def test_shards(tmp_path: Path) -> None:
    state = llama().state_dict()
    places = {name: f"pytorch_model-{index % 2}.bin" for index, name in enumerate(state)}
    for file in set(places.values()):
        torch.save({name: state[name] for name in state if places[name] == file}, tmp_path / file)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    got = read_pickled(tmp_path)
    assert all(torch.equal(got[name](), value) for name, value in state.items())


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    for number in range(2):
        torch.save({"x": torch.full((2,), float(number))}, tmp_path / f"{number}.bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"x": "0.bin", "y": "1.bin"}}))
    _refused(tmp_path, "'x' is in two files")


def test_parameters_and_negated_views(tmp_path: Path) -> None:
    negated = torch.complex(torch.ones(3), torch.arange(3.0)).conj().imag
    assert negated.is_neg()
    torch.save({"x": torch.nn.Parameter(torch.arange(4.0)), "y": negated}, tmp_path / "pytorch_model.bin")
    got = read_pickled(tmp_path)
    assert got["x"]().numpy().tolist() == [0, 1, 2, 3]
    assert got["y"]().numpy().tolist() == [0, -1, -2]


def test_a_tensor_larger_than_its_file(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(1, 1).expand(1 << 20, 1 << 20)}, tmp_path / "pytorch_model.bin")
    _refused(tmp_path, "'x' of .* is larger than the file")


class _Evil:
    def __reduce__(self) -> Any:
        return _ran.append, ("code ran",)


class _Command:
    def __reduce__(self) -> Any:
        return subprocess.run, (["true"],)


@pytest.mark.parametrize("content", [{"x": _Evil()}, {"x": _Command()}, {"x": torch.nn.Linear(2, 2)}, {"x": Path("a")}])
@pytest.mark.parametrize("protocol", [2, 4])
def test_code_is_refused_and_does_not_run(content: Any, protocol: int, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "pytorch_model.bin", pickle_protocol=protocol)
    _refused(tmp_path, "its pickle names .* which is no part of a tensor; such a file can run code")
    assert not _ran


@pytest.mark.parametrize("content", [[1, 2], {"x": 3}, {3: torch.ones(2)}])
def test_something_else_than_tensors(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "pytorch_model.bin")
    _refused(tmp_path, "which is no tensor|and no tensors by name")


def test_a_bare_pickle(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"x": 3}))
    _refused(tmp_path, "not a zip archive of tensors")


def test_the_old_form(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(2)}, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    _refused(tmp_path, "not a zip archive of tensors")


def test_a_truncated_archive(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(200)}, tmp_path / "pytorch_model.bin")
    content = (tmp_path / "pytorch_model.bin").read_bytes()
    (tmp_path / "pytorch_model.bin").write_bytes(content[: len(content) // 2])
    _refused(tmp_path, "not a zip archive of tensors")


def test_a_compressed_archive(tmp_path: Path) -> None:
    file = io.BytesIO()
    torch.save({"x": torch.ones(2)}, file)
    with (
        zipfile.ZipFile(file) as archive,
        zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as other,
    ):
        for name in archive.namelist():
            other.writestr(name, archive.read(name))
    _refused(tmp_path, "is compressed")


def test_a_second_pickle(tmp_path: Path) -> None:
    file = io.BytesIO()
    torch.save({"x": torch.ones(2)}, file)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("archive/other.pkl", pickle.dumps(1))
    (tmp_path / "pytorch_model.bin").write_bytes(file.getvalue())
    _refused(tmp_path, "holds 2 pickles")


@pytest.mark.parametrize("name", ["../pytorch_model.bin", "absent.bin", "x" * 5000, "x\0.bin"])
def test_an_index_that_leads_elsewhere(name: str, tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    _refused(tmp_path, "which is no file there")


def _refused(folder: Path, words: str) -> None:
    with pytest.raises(ConversionError, match=words) as caught:
        read_pickled(folder)
    assert "\n" not in str(caught.value)

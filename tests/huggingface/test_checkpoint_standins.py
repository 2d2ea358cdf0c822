"""Stand-ins: parameters without memory while a model is converted, and their real elements in the package."""

from __future__ import annotations

import gc
import importlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch

from benchmarks.memory import anonymous_bytes
from milopt.errors import PackageError
from milopt.huggingface import convert, standins
from milopt.huggingface.attaching import Attached, Unattached, standing_in
from milopt.huggingface.standins import StandIn, any_stand_ins, is_stand_in, real_weights, realize, stand_in, view_of
from milopt.mil import operations
from milopt.package import Model
from milopt.package.loading import load_with
from milopt.text import text
from tests.huggingface.families import FAMILIES

_SHAPE = (300, 500)


@pytest.fixture
def real() -> torch.Tensor:
    return torch.randn(_SHAPE, generator=torch.Generator().manual_seed(0)).bfloat16()


def _standing(real: torch.Tensor) -> torch.Tensor:
    return stand_in(lambda: real, tuple(real.shape))


def test_small_ones_are_real() -> None:
    row = torch.ones(1 << 20, dtype=torch.float16)
    assert torch.equal(stand_in(lambda: row, tuple(row.shape)), row.float())
    assert not is_stand_in(stand_in(lambda: row, tuple(row.shape)))


def test_it_computes_with_the_real_elements(real: torch.Tensor) -> None:
    tensor, x = _standing(real), torch.randn(4, 500)
    assert is_stand_in(tensor)
    assert tensor.dtype == torch.float32
    assert torch.isinf(tensor).all()
    with real_weights():
        assert torch.equal(torch.nn.functional.linear(x, tensor), x @ real.float().T)
        assert torch.equal(torch.nn.functional.embedding(torch.tensor([7, 299]), tensor), real[[7, 299]].float())
    assert not torch.isfinite(x @ tensor.T).any()


@pytest.mark.parametrize("parameter", [False, True])
def test_views_made_before_are_real_too(parameter: bool, real: torch.Tensor) -> None:
    tensor = _standing(real)
    tensor = torch.nn.Parameter(tensor, requires_grad=False) if parameter else tensor
    views = [tensor.T, tensor[10:20, 3], tensor.reshape(500, 300), tensor[-1]]
    wanted = [real.T, real[10:20, 3], real.reshape(500, 300), real[-1]]
    with real_weights():
        assert all(torch.equal(each.clone(), other.float()) for each, other in zip(views, wanted, strict=True))


def test_arrays_tell_which_elements_they_are(real: torch.Tensor) -> None:
    array: Any = _standing(real).numpy()
    for each in (array, array.T, array[5:, ::7], array.reshape(2, 150, 500)[1], array.T[None, 3:]):
        view = view_of(each)
        assert view is not None
        whole: Any = real.float().numpy()
        wanted = np.lib.stride_tricks.as_strided(whole.reshape(-1)[view.offset :], each.shape, each.strides)
        assert np.array_equal(view.real().float().numpy(), wanted)
        twin = view.cast("float16")
        assert (twin.dtype, twin.shape) == (np.float16, each.shape)
        again = view_of(twin)
        assert again is not None
        assert (again.offset, again.strides, again.dtype) == (view.offset, view.strides, "float16")
    assert view_of(np.ascontiguousarray(array.T)) is None
    assert view_of(array.view(np.int32)) is None
    assert view_of(array[::-1]) is None


def test_no_two_are_equal(real: torch.Tensor) -> None:
    one, other = _standing(real), _standing(real)
    assert torch.equal(one, one)
    assert not torch.equal(one, other)


def test_they_take_no_memory() -> None:
    elements = torch.zeros(1).expand(20_000, 5_000)
    before = anonymous_bytes()
    kept = [stand_in(lambda: elements, (20_000, 5_000)) for _ in range(4)]
    assert float(kept[0].max()) == float("inf")
    # 1.6 GB, all read
    assert anonymous_bytes() - before < 40e6


def test_addresses_are_given_back(real: torch.Tensor) -> None:
    gc.collect()
    assert not any_stand_ins()
    tensor = _standing(real)
    view = tensor.T.numpy()
    del tensor
    gc.collect()
    assert any_stand_ins()
    assert float(view[0, 0]) == float("inf") or float(view[0, 0]) == -float("inf")
    del view
    gc.collect()
    assert not any_stand_ins()


def test_realize(real: torch.Tensor) -> None:
    layer = torch.nn.Linear(500, 300, bias=False)
    layer.weight = torch.nn.Parameter(_standing(real), requires_grad=False)
    realize(layer)
    assert torch.equal(layer.weight, real.float())


def test_elements_that_fp16_can_not_hold(real: torch.Tensor) -> None:
    real[4, 4] = 70_000.0
    view = view_of(StandIn(lambda: real, _SHAPE).array("float16"))
    assert view is not None
    with pytest.raises(Unattached, match="larger than fp16's largest"):
        Attached().attach({0: view})


def test_an_array_of_another_shape_is_no_weight(tmp_path: Path) -> None:
    model = convert(FAMILIES["llama"].make(), context=16, query_lengths=(2,))
    model.save(tmp_path / "a.mlpackage")
    mlmodel = ct.models.MLModel(str(tmp_path / "a.mlpackage"), skip_model_load=True)
    with pytest.raises(PackageError, match="tensor at offset 64 is not the fp"):
        load_with(mlmodel, {64: np.zeros((1, 1), np.float16)})


def test_equal_views_become_one_array(real: torch.Tensor) -> None:
    attached, standing = Attached(), StandIn(lambda: real, _SHAPE)
    whole = standing.array("float16")
    first = attached.attach({0: _view(whole), 64: _view(whole.T)})
    second = attached.attach({128: _view(whole)})
    assert np.array_equal(first[0], real.half().numpy())
    assert np.array_equal(first[64], real.T.half().numpy())
    assert second[128] is first[0]


def test_a_single_element(real: torch.Tensor) -> None:
    """A view without axes, as ``weight[3, 4]`` is."""
    array = StandIn(lambda: real, _SHAPE).array("float32")
    views = {0: _view(array[3, 4, ...]), 64: _view(array[:, 5])}
    found = Attached().attach(views)
    assert (found[0].shape, float(found[0])) == ((), float(real[3, 4]))
    assert np.array_equal(found[64], real[:, 5].float().numpy())


def _view(array: Any) -> standins.View:
    view = view_of(array)
    assert view is not None
    return view


def _with_stand_ins(model: Any, monkeypatch: pytest.MonkeyPatch) -> int:
    """The model's matrices become stand-ins; how many."""
    monkeypatch.setattr(standins, "FEWEST", 1000)
    known: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            if id(parameter) not in known:
                real = parameter.detach().clone()
                standing = _standing(real)
                known[id(parameter)] = torch.nn.Parameter(standing, requires_grad=False)
            module._parameters[name] = known[id(parameter)]
    return sum(map(is_stand_in, model.parameters()))


def _weights(model: Model) -> list[bytes]:
    values = [
        op.outputs[0].val
        for function in model.functions.values()
        for op in operations(function)
        if op.op_type == "const"
    ]
    return [each.tobytes() for each in values if isinstance(each, np.ndarray)]


@pytest.mark.parametrize(
    ("family", "route"), [("llama-3", "trace"), ("llama-3", "export"), ("gpt-2", "trace"), ("gemma-2", "trace")]
)
def test_the_program_is_the_same(family: str, route: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    options: Any = {"context": 16, "query_lengths": (1, 4), "route": route}
    wanted = convert(FAMILIES[family].make(), **options)
    model = FAMILIES[family].make()
    assert _with_stand_ins(model, monkeypatch) > 9
    got = convert(model, **options)
    assert text(got.program) == text(wanted.program)
    assert _weights(got) == _weights(wanted)
    assert all(is_stand_in(each) for each in model.parameters() if each.dim() == 2 and each.numel() > 1000)


def test_coremltools_is_as_before() -> None:
    helper: Any = importlib.import_module("coremltools.converters.mil.backend.mil.helper")
    cast: Any = importlib.import_module("coremltools.converters.mil.mil.ops.defs.iOS15.elementwise_unary").cast
    before = helper._get_offset_by_writing_data, cast.__dict__["get_cast_value"]
    with standing_in():
        assert helper._get_offset_by_writing_data is not before[0]
        # an infinite constant of another thread's conversion is none of ours
        kept = _standing(torch.randn(_SHAPE))
        value = SimpleNamespace(val=np.full(4, np.inf, np.float32), sym_type=None, name="x")
        loading: Any = importlib.import_module("coremltools.converters.mil.backend.mil.load")
        with pytest.raises(Unattached, match="x is not finite"):
            loading.create_immediate_value(value)
        with ThreadPoolExecutor(1) as pool:
            problem = pool.submit(loading.create_immediate_value, value).exception()
        assert not isinstance(problem, Unattached)
        del kept
    assert (helper._get_offset_by_writing_data, cast.__dict__["get_cast_value"]) == before


def test_without_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    model = FAMILIES["qwen2"].make()
    wanted = convert(FAMILIES["qwen2"].make(), context=16, query_lengths=(4,), dtype="float32")
    _with_stand_ins(model, monkeypatch)
    assert _weights(convert(model, context=16, query_lengths=(4,), dtype="float32")) == _weights(wanted)


@pytest.mark.parametrize("route", ["trace", "export"])
def test_what_is_computed_from_stand_ins_is_converted_with_real_ones(
    route: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the rows of BERT's table of positions are looked up at conversion
    wanted = convert(FAMILIES["bert"].make(), context=16, route=route)
    model = FAMILIES["bert"].make()
    assert _with_stand_ins(model, monkeypatch)
    got = convert(model, context=16, route=route)
    assert _weights(got) == _weights(wanted)
    assert not any(map(is_stand_in, model.parameters()))


def test_a_directory_converts_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = FAMILIES["llama"].make()
    model.save_pretrained(tmp_path / "model")
    wanted = convert(model, context=16, query_lengths=(1, 4))
    monkeypatch.setattr(standins, "FEWEST", 1000)
    got = convert(tmp_path / "model", context=16, query_lengths=(1, 4))
    files: list[bytes] = []
    for name, each in (("wanted", wanted), ("got", got)):
        each.save(tmp_path / f"{name}.mlpackage")
        files.append(next((tmp_path / f"{name}.mlpackage").rglob("weight.bin")).read_bytes())
    assert len(files[0]) == len(files[1])
    assert sorted(_weights(got)) == sorted(_weights(wanted))

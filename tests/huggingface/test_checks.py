"""The self-check of a trace, and what is as before after a conversion, also one that failed."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from milopt.huggingface import ConversionError, SelfCheckError, convert, trace, wrapper
from milopt.huggingface.quiet import gguf_read_once, tracing_quietly, transformers_quiet
from milopt.huggingface.repairs import coremltools_repaired
from milopt.huggingface.selfcheck import require_same
from milopt.session import Session
from tests.huggingface.support import CONTEXT, library, llama

_PATCHED = [
    ("coremltools.converters.mil.frontend.torch.ops", "_cast"),
    ("coremltools.converters.mil.frontend.torch.ops", "_scatter"),
    ("coremltools.converters.mil.frontend.torch.ops", "_tqdm"),
    ("coremltools.converters.mil.mil.passes.pass_pipeline", "tqdm"),
    ("transformers.modeling_gguf_pytorch_utils", "tqdm"),
    ("gguf", "GGUFReader"),
    ("gguf", "get_tensor_name_map"),
]


def _globals() -> list[object]:
    library("gguf")
    logs, hub = library("transformers.utils.logging"), library("huggingface_hub.utils")
    return [
        *(getattr(importlib.import_module(module), name) for module, name in _PATCHED),
        list(logging.getLogger("coremltools").filters),
        list(warnings.filters),
        logs.get_verbosity(),
        logs.is_progress_bar_enabled(),
        hub.are_progress_bars_disabled(),
    ]


@pytest.mark.parametrize("change", [coremltools_repaired, tracing_quietly, transformers_quiet, gguf_read_once])
def test_everything_patched_is_put_back_after_an_exception(change: Callable[[], AbstractContextManager[None]]) -> None:
    before = _globals()

    def fail() -> None:
        with change():
            assert _globals() != before
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert _globals() == before


def test_a_conversion_that_fails_inside_coremltools_puts_everything_back(monkeypatch: pytest.MonkeyPatch) -> None:
    ops: Any = importlib.import_module("coremltools.converters.mil.frontend.torch.ops")
    original, held = ops._cast, list[bool]()

    def fail(*_: object, **__: object) -> None:
        held.append(ops._cast is not original)
        raise RuntimeError("no converter")

    trace(llama(), context=CONTEXT, query_length=2)  # imports modules that add warning filters of their own
    before = _globals()
    monkeypatch.setattr("coremltools.convert", fail)
    with pytest.raises(ConversionError, match="can't convert LlamaForCausalLM: RuntimeError: no converter"):
        convert(llama(), context=CONTEXT, query_lengths=(2,))
    assert held == [True]
    assert _globals() == before


def test_the_model_given_is_as_before() -> None:
    model = llama().train()
    model.set_attn_implementation("sdpa")
    model.model.layers[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    training = [module.training for module in model.modules()]
    traced = trace(model, context=CONTEXT, query_length=2)
    assert traced.difference < 1e-5  # float32 sums in another order: 4e-7 of the largest value was seen
    assert model.config._attn_implementation == "sdpa"
    assert [module.training for module in model.modules()] == training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_half_precision_model_is_traced_as_a_copy() -> None:
    model = llama().half()
    trace(model, context=CONTEXT, query_length=1)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}


def test_a_wrapper_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    forward: Any = wrapper.PastPresent.forward

    def shifted(self: Any, input_ids: Any, position_ids: Any, causal_mask: Any, *past: Any) -> Any:
        return forward(self, input_ids, position_ids + torch.arange(2), causal_mask, *past)

    monkeypatch.setattr(wrapper.PastPresent, "forward", shifted)
    model = llama().train()
    before = model.config._attn_implementation
    with pytest.raises(SelfCheckError, match="milopt's wrapper of the model does not compute") as caught:
        trace(model, context=CONTEXT, query_length=2)
    assert caught.value.difference > 1e-3
    assert "\n" not in str(caught.value)
    assert model.config._attn_implementation == before
    assert model.training


def test_a_trace_that_froze_its_inputs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    forward: Any = wrapper.PastPresent.forward

    def frozen(self: Any, input_ids: Any, position_ids: Any, *rest: Any) -> Any:
        return forward(self, torch.tensor(input_ids.tolist()), position_ids, *rest)

    monkeypatch.setattr(wrapper.PastPresent, "forward", frozen)
    with pytest.raises(SelfCheckError, match="torch's trace of the model does not compute"):
        trace(llama(), context=CONTEXT, query_length=2)


@pytest.mark.parametrize("rows", [slice(0, 1), slice(None)])
def test_rows_that_are_not_numbers_are_no_rows_left_out(rows: slice, monkeypatch: pytest.MonkeyPatch) -> None:
    class Spoilt(Session):
        def __init__(self, model: Any, *, precision: Any = "declared", **options: Any) -> None:
            super().__init__(model, precision=precision, **options)
            self.spoils = precision == broken

        def feed(self, *given: Any, **options: Any) -> Any:
            logits = np.array(super().feed(*given, **options))
            if self.spoils:
                logits[rows] = np.nan
            return logits

    monkeypatch.setattr("milopt.huggingface.programcheck.Session", Spoilt)
    told: list[str] = []
    broken = "declared"  # no error: passes may repair it
    convert(llama(num_hidden_layers=1), context=8, query_lengths=(2,), progress=told.append)
    assert any("the program is off by inf of the largest logit" in each for each in told)
    broken = "float64"
    with pytest.raises(SelfCheckError, match=r"the program on random tokens does not compute .* differ by inf"):
        convert(llama(num_hidden_layers=1), context=8, query_lengths=(2,))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.001])
@pytest.mark.parametrize("place", ["logits", "present_key_0", "present_value_0"])
def test_every_result_is_checked(place: str, value: float) -> None:
    wanted = {"logits": torch.ones(1, 2, 5), "present_key_0": torch.ones(1, 1, 5, 2), "present_value_0": torch.ones(3)}
    got = {name: each.clone() for name, each in wanted.items()}
    assert require_same("it", wanted, got) == 0
    got[place].view(-1)[-1] = value
    with pytest.raises(SelfCheckError, match=f"{place} differs by .* first in here;"):
        require_same("it", wanted, got, where=lambda: "here")
    got[place] = wanted[place][:, None]
    with pytest.raises(SelfCheckError, match=f"{place} differs by inf"):
        require_same("it", wanted, got)


def test_a_damaged_weight_is_the_models_fault() -> None:
    model = llama(num_hidden_layers=1)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3, 4] = float("nan")
    words = r"the unmodified model itself does not answer with finite numbers: .*, first in model\.layers\.0\.mlp"
    with pytest.raises(SelfCheckError, match=words):
        convert(model, context=8, query_lengths=(2,))


def test_weights_beyond_fp16_are_told() -> None:
    model = llama(num_hidden_layers=1)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3, 4] = 1e6
    with pytest.raises(SelfCheckError, match=r"rounded to fp16 .* beyond 65504; convert it with dtype float32"):
        convert(model, context=8, query_lengths=(2,))
    assert convert(model, context=8, query_lengths=(2,), dtype="float32")


def test_no_file_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = convert(llama(num_hidden_layers=1), context=8, query_lengths=(2,))
    assert list(tmp_path.rglob("weight.bin")) == []
    # what was loaded does not depend on the files
    (embedding,) = [op for op in model.function().operations if op.op_type == "gather"]
    assert np.array_equal(embedding.x.val, llama(num_hidden_layers=1).model.embed_tokens.weight.detach().half())


def test_nothing_is_printed_or_warned(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        convert(llama(num_hidden_layers=1), context=8, query_lengths=(2,))
    assert capfd.readouterr() == ("", "")
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    # Python tells of temporary folders that coremltools leaves to the garbage collector, to those who ask for it
    assert [str(each.message) for each in caught if not issubclass(each.category, ResourceWarning)] == []

"""The export route: the same function as the trace route's, and where in the source something is wrong."""

from __future__ import annotations

import functools
import importlib
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch

from milopt.huggingface import ConversionError, SelfCheckError, Traced, convert, lower, trace
from milopt.huggingface.exporting import export
from milopt.huggingface.features import Feature, Sizes
from milopt.huggingface.repairs import coremltools_repaired, registry
from milopt.interpreter import compile
from milopt.mil import Program, arguments, constant, dtype_name, is_symbolic, operations, shape_of
from milopt.package import Model
from milopt.text import text
from tests.huggingface.families import CONTEXT, FAMILIES
from tests.huggingface.support import library, llama

Array = np.ndarray[Any, Any]


@functools.cache
def _traced(route: str) -> Traced:
    """A Llama of one layer, whose embedding is its head."""
    return trace(llama(num_hidden_layers=1, tie_word_embeddings=True), context=CONTEXT, query_length=4, route=route)


def _captures(model: Any, query_length: int | None) -> Iterator[Traced]:
    return (trace(model, context=CONTEXT, query_length=query_length, route=route) for route in ("trace", "export"))


def _require_equal_programs(captures: Iterable[Traced]) -> None:
    """The same ops on the same values in the same order, and weights of the same names."""
    forms = list(captures)
    traced, exported = (lower(each, "float32") for each in forms)
    assert text(exported, weights="hash") == text(traced, weights="hash")
    paths = {f"model_{name.replace('.', '_')}" for name, _ in forms[0].wrapper.model.named_parameters()}
    pairs = zip(_constants(traced), _constants(exported), strict=True)
    # what a trace casts to the type it has already, and what either cuts out of a parameter, has a number for a name
    named = [pair for pair in pairs if pair[0] in paths]
    assert named
    assert all(one == other for one, other in named)


def _constants(model: Model) -> list[str]:
    """The names of the constants, in the order of the ops that use them."""
    return [
        var.op.name
        for op in operations(model.function())
        for _, var in arguments(op)
        # smaller ones may be numbered after the values they are used with
        if op.op_type != "const" and constant(var) is not None and np.size(constant(var)) >= 64 and var.op is not None
    ]


def test_both_routes_give_the_same_program() -> None:
    _require_equal_programs(map(_traced, ("trace", "export")))


@pytest.mark.slow
@pytest.mark.parametrize("query_length", [4, 1])
@pytest.mark.parametrize("name", FAMILIES)
def test_both_routes_give_the_same_program_of_every_family(name: str, query_length: int) -> None:
    _require_equal_programs(_captures(FAMILIES[name].make(), query_length))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.kind != "image-encoder"])
def test_flexible_programs_of_both_routes_agree(name: str) -> None:
    _require_equal_functions(_captures(FAMILIES[name].make(), None))


@pytest.mark.slow
def test_programs_for_several_prompts_and_their_last_token_agree() -> None:
    model = llama(num_hidden_layers=1)
    _require_equal_functions(
        trace(model, context=CONTEXT, query_length=None, route=route, batch=2, logits="last")
        for route in ("trace", "export")
    )


def _require_equal_functions(captures: Iterable[Traced]) -> None:
    """The same inputs and outputs and the same numbers; torch.export writes sizes that are open in other ops."""
    signatures: list[list[tuple[str, str, list[int | None]]]] = []
    results: list[dict[str, Array]] = []
    for traced in captures:
        model = lower(traced, "float32")
        signatures.append(_signature(model))
        results.append(_outputs(traced, model))
    assert [each[:2] for each in signatures[0]] == [each[:2] for each in signatures[1]]
    for (name, _, traced_sizes), (_, _, sizes) in zip(*signatures, strict=True):
        # coremltools does not work out what is left for the -1 of GPT-J's last view in a trace
        known = [each for each in zip(traced_sizes, sizes, strict=True) if None not in each]
        assert all(one == other for one, other in known), name
        assert traced_sizes.count(None) - sizes.count(None) in (0, 1), name
    for name, value in results[0].items():
        # the same float32 weights in float64: no difference was seen, and sums in another order would make 1e-15
        np.testing.assert_allclose(results[1][name], value, rtol=0, atol=1e-12 * np.abs(value).max(), err_msg=name)


def _signature(model: Model) -> list[tuple[str, str, list[int | None]]]:
    """Names, dtypes and shapes of inputs and outputs in their order; open sizes have other symbols in every program."""
    function = model.function()
    values = [*function.inputs.items(), *((var.name, var) for var in function.outputs)]
    return [
        (name, dtype_name(var), [None if is_symbolic(size) else size for size in shape_of(var)]) for name, var in values
    ]


def _outputs(traced: Traced, model: Model) -> dict[str, Array]:
    """What the program gives on every sample of its capture."""
    plan = compile(model, precision="float64")
    return {
        f"{index}/{name}": value.numpy()
        for index, sample in enumerate(traced.samples)
        for name, value in plan.run({each: sample.feeds[each].numpy() for each in plan.inputs}).items()
    }


@functools.cache
def _converted(route: str) -> Program:
    """That Llama right after coremltools' passes, when its ops still have scopes."""
    traced = _traced(route)
    with coremltools_repaired():
        program: Program = ct.convert(
            traced.module,
            inputs=[
                ct.TensorType(name, feature.shape, dtype=np.int32 if feature.integer else np.float32)
                for name, feature in traced.interface.inputs.items()
            ],
            outputs=[ct.TensorType(name) for name in traced.interface.outputs],
            convert_to="milinternal",
            minimum_deployment_target=ct.target.iOS18,
            compute_precision=ct.precision.FLOAT32,
        )
    return program


def _scopes(route: str, source: str) -> dict[str, list[Any]]:
    """Op name -> its scopes of that source, for every op that computes."""
    ops = [op for op in operations(_converted(route).functions["main"]) if op.op_type != "const"]
    return {
        op.name: next((names for each, names in op.scopes.items() if each.name == source), list[Any]()) for op in ops
    }


def test_every_op_knows_its_line() -> None:
    lines = _scopes("export", "EXIR_STACK_TRACE")
    assert {name: found for name, found in lines.items() if ".py" not in str(found)} == {}
    assert any("modeling_llama.py" in str(found) for found in lines.values())


def test_exported_ops_name_the_modules_that_traced_ones_do() -> None:
    exported, traced = (
        {tuple(names[:-1]) for names in _scopes(route, "TORCHSCRIPT_MODULE_NAME").values()}
        for route in ("export", "trace")
    )
    assert exported == traced
    assert ("model", "model", "0", "self_attn", "q_proj") in exported


def _wrong_silu(context: Any, node: Any) -> None:
    ops: Any = importlib.import_module("coremltools.converters.mil.frontend.torch.ops")
    ops.relu(context, node)


def test_a_wrong_converter_is_found_by_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    traced = _traced("export")
    monkeypatch.setitem(registry(), "silu", _wrong_silu)
    place = r"activations\.py:\d+ in model\.layers\.0\.mlp\.act_fn, torch's aten\.silu\.default"
    with pytest.raises(SelfCheckError, match=f"the converted program does not compute .* first in {place}"):
        lower(traced, "float32")


def test_an_op_without_converter_is_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(registry(), "silu")
    traced = trace(llama(num_hidden_layers=1), context=CONTEXT, query_length=4, route="export")
    targets = [str(node.target) for node in traced.module.graph.nodes]
    assert "aten.silu.default" not in targets
    assert "aten.sigmoid.default" in targets
    assert traced.difference < 1e-6  # the same formula in float32: the last bit of some values


def _mlp_then(monkeypatch: pytest.MonkeyPatch, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Let every MLP of a Llama be followed by ``function``."""
    mlp = library("transformers.models.llama.modeling_llama").LlamaMLP
    forward = mlp.forward

    def followed(self: Any, x: torch.Tensor) -> torch.Tensor:
        return function(forward(self, x))

    monkeypatch.setattr(mlp, "forward", followed)


def test_an_op_that_nobody_knows_is_told_with_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    special: Any = torch.special
    _mlp_then(monkeypatch, special.bessel_j0)
    place = r"\w+\.py:\d+ in model\.layers\.0\.mlp"
    with pytest.raises(ConversionError, match=rf"no converter for aten\.special_bessel_j0\.default at {place}$"):
        trace(llama(num_hidden_layers=1), context=CONTEXT, query_length=4, route="export")


def test_control_flow_on_values_is_told_with_its_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def branch(x: torch.Tensor) -> torch.Tensor:
        return x if float(x.sum()) > -1e9 else x + 1

    _mlp_then(monkeypatch, branch)
    with pytest.raises(ConversionError, match=r"^torch can't export the model at test_exporting\.py:\d+: ") as caught:
        trace(llama(num_hidden_layers=1), context=CONTEXT, query_length=4, route="export")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert not hasattr(importlib.import_module("torch.export._trace"), "print")


def _newer_masks(monkeypatch: pytest.MonkeyPatch, change: Callable[[torch.Tensor], torch.Tensor | None]) -> None:
    """A transformers that does something else with a mask of four dimensions than to hand it to attention."""
    modeling = library("transformers.models.llama.modeling_llama")
    make = modeling.create_causal_mask

    def other(*args: Any, **kwargs: Any) -> Any:
        mask = make(*args, **kwargs)
        return mask if kwargs["attention_mask"] is None else change(mask)

    monkeypatch.setattr(modeling, "create_causal_mask", other)


_OTHER_MASKS: dict[str, Callable[[torch.Tensor], torch.Tensor | None]] = {
    "ignored": lambda mask: None,
    "one row for all": lambda mask: mask[:, :, -1:],
    "off by one": lambda mask: mask.roll(1, -1),
    "new before past": lambda mask: mask.flip(-1),
}


@pytest.mark.parametrize("route", ["trace", "export"])
@pytest.mark.parametrize("what", _OTHER_MASKS)
def test_a_transformers_with_other_masks_is_refused(route: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _newer_masks(monkeypatch, _OTHER_MASKS[what])
    with pytest.raises(SelfCheckError, match=r"wrapper of the model does not compute .*first in model\.layers\.0"):
        trace(llama(num_hidden_layers=1), context=CONTEXT, query_length=4, route=route)


def _short(mask: torch.Tensor) -> torch.Tensor:
    return mask[..., 1:]


@pytest.mark.parametrize("route", ["trace", "export"])
def test_a_transformers_with_masks_of_another_shape_is_refused(route: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _newer_masks(monkeypatch, _short)
    with pytest.raises(ConversionError, match=r"can't be run on milopt's interface in model\.layers\.0") as caught:
        trace(llama(num_hidden_layers=1), context=CONTEXT, query_length=4, route=route)
    assert "\n" not in str(caught.value)


def test_a_torch_that_exports_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    kind: Any = torch.export.ExportedProgram
    decompose = kind.run_decompositions

    def other(self: Any, table: Any) -> Any:
        program = decompose(self, table)
        for node in program.graph.nodes:
            if node.target is torch.ops.aten.silu.default:
                node.target = torch.ops.aten.relu.default
        program.graph_module.recompile()
        return program

    monkeypatch.setattr(kind, "run_decompositions", other)
    message = r"torch's export of the model does not compute .* first in model\.layers\.0\.mlp\.act_fn \(SiLU"
    with pytest.raises(SelfCheckError, match=message):
        trace(llama(num_hidden_layers=1), context=CONTEXT, query_length=4, route="export")


@dataclass(frozen=True)
class _Signature:
    inputs: dict[str, Feature]
    outputs: dict[str, Feature]
    is_flexible: bool = True


class _Adds(torch.nn.Module):
    def forward(self, x: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        return x + rest[0]


def _two(one: int | Sizes, other: int | Sizes) -> _Signature:
    return _Signature({"x": Feature((2, one), ""), "y": Feature((2, other), "")}, {"z": Feature((2, one), "")})


def _shapes(program: Any) -> Mapping[str, list[str]]:
    return {
        node.name: [str(size) for size in node.meta["val"].shape]
        for node in program.graph.nodes
        if node.op == "placeholder"
    }


def test_sizes_of_one_name_are_one_symbol() -> None:
    size = Sizes("length", 1, 9, 5)
    (_, x), (_, y) = _shapes(export(_Adds(), (torch.ones(2, 5), torch.ones(2, 5)), _two(size, size))).values()
    assert x == y
    assert not x.isdigit()


class _MayTakeMore(torch.nn.Module):
    def forward(self, x: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        return sum(rest, x * 2)


def test_a_wrapper_may_be_given_none_of_the_inputs_it_could_take() -> None:
    inputs = {"x": Feature((2, Sizes("length", 1, 9, 5)), "")}
    (shape,) = _shapes(export(_MayTakeMore(), (torch.ones(2, 5),), _Signature(inputs, {}))).values()
    assert not shape[1].isdigit()


@pytest.mark.parametrize("sizes", [(Sizes("one", 1, 9, 5), Sizes("other", 1, 9, 5)), (Sizes("one", 1, 9, 5), 5)])
def test_sizes_that_the_model_does_not_leave_open_are_refused(sizes: tuple[int | Sizes, int | Sizes]) -> None:
    with pytest.raises(ConversionError, match=r"torch can't export the model|torch's export of the model") as caught:
        export(_Adds(), (torch.ones(2, 5), torch.ones(2, 5)), _two(*sizes))
    assert "\n" not in str(caught.value)


def test_nothing_is_printed_or_warned(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        convert(llama(num_hidden_layers=1), context=8, query_lengths=(2,), route="export")
    assert capfd.readouterr() == ("", "")
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    # Python tells of temporary folders that coremltools leaves to the garbage collector, to those who ask for it
    assert [str(each.message) for each in caught if not issubclass(each.category, ResourceWarning)] == []

"""A clone is another program with the same text and the same arrays."""

from __future__ import annotations

import copy
import gc
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil.mil import Block, Operation, Var
from coremltools.converters.mil.mil.passes import pass_registry
from coremltools.converters.mil.mil.scope import ScopeSource

from milopt.mil import Program, mb, operations
from milopt.package import load
from milopt.text import text

from .support import counter, linear, loop, tree, two_functions
from .test_writing import compressed_ios18


def graph_of(program: Program) -> dict[int, Any]:
    """Every op, value and block that can be reached from the program, by id."""
    found: dict[int, Any] = {}
    seen: dict[int, Any] = {}
    todo: list[Any] = [program]
    while todo:
        thing = todo.pop()
        if id(thing) in seen or isinstance(thing, (type, ModuleType, FunctionType, np.ndarray)):
            continue
        seen[id(thing)] = thing
        if isinstance(thing, (Operation, Var, Block)):
            found[id(thing)] = thing
        todo += gc.get_referents(thing)
    return found


@pytest.mark.parametrize("build", [linear, counter, two_functions, loop])
def test_clone_shares_nothing_but_the_arrays(build: Any) -> None:
    model = load(build())
    clone = model.clone()
    assert text(clone) == text(model)
    clone.program.validate()
    ours, theirs = graph_of(model.program), graph_of(clone.program)
    assert len(ours) == len(theirs)
    assert not ours.keys() & theirs.keys()
    for name, function in model.functions.items():
        pairs = zip(operations(function), operations(clone.functions[name]), strict=True)
        for op, copied in pairs:
            assert (op.name, op.op_type, op.scopes) == (copied.name, copied.op_type, copied.scopes)
            assert [var.name for var in op.outputs] == [var.name for var in copied.outputs]
            val, copied_val = op.outputs[0].val, copied.outputs[0].val
            assert not isinstance(val, np.ndarray) or val is copied_val


def test_rewriting_the_clone_leaves_the_original() -> None:
    model = load(loop())
    before = text(model, weights="hash")
    clone = model.clone()
    clone.metadata["key"] = "value"
    function = clone.function()
    with function:
        function.set_outputs([mb.tanh(x=function.inputs["x"], name="y")])
    registry: Any = pass_registry.PASS_REGISTRY
    registry["common::dead_code_elimination"](clone.program)
    assert text(clone) == "main[CoreML6](%x: fp32[1, 4]) {\n  %0: fp32[1, 4] = tanh(x=%x)\n} -> (y=%0)\n"
    assert text(model, weights="hash") == before
    assert model.metadata == {}


def test_clone_in_the_middle_of_a_conversion() -> None:
    """Before the frontend's passes: complex values, torch scopes, none of which a package can hold."""

    class Spectrum(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            fft: Any = torch.fft
            return fft.rfft(x).abs()

    traced: Any = torch.jit.trace(Spectrum().eval(), torch.zeros(2, 8))  # type: ignore[no-untyped-call]
    program = ct.convert(
        traced,
        inputs=[ct.TensorType("x", shape=(2, 8))],
        convert_to="milinternal",
        pass_pipeline=ct.PassPipeline.EMPTY,
    )
    clone = load(program).clone()
    assert "complex" in text(program)
    assert text(clone) == text(program)
    scopes = [op.scopes[ScopeSource.TORCHSCRIPT_MODULE_TYPE] for op in operations(clone.function())]
    assert scopes == [op.scopes[ScopeSource.TORCHSCRIPT_MODULE_TYPE] for op in operations(load(program).function())]
    assert ["fft_rfft"] in scopes


def test_clone_of_packed_weights(tmp_path: Path) -> None:
    """Boxes that are not opened yet are not shared; what is put into one stays out of the other."""
    package = load(compressed_ios18()).save(tmp_path / "a.mlpackage")
    model = load(package)
    for copied in (model.clone().program, copy.deepcopy(model.program)):
        op = next(op for op in operations(copied.functions["main"]) if op.op_type == "constexpr_blockwise_shift_scale")
        data: Any = op.inputs["data"]
        data._sym_val.val = np.zeros_like(data.val)
        op.inputs["scale"].op.outputs[0].name = "renamed"
    assert tree(model.save(tmp_path / "b.mlpackage")) == tree(package)


def test_clone_can_be_saved(tmp_path: Path) -> None:
    model = load(two_functions())
    model.attachments["a.txt"] = b"a"
    saved = load(model.clone().save(tmp_path / "a.mlpackage"))
    assert text(saved, weights="hash") == text(model, weights="hash")
    assert saved.attachments == {"a.txt": b"a"}
    assert saved.default_function == "decode"

"""What coremltools' own loader refuses, alters or is poisoned by."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coremltools.converters.mil.mil import program as pymil_program
from coremltools.proto import MIL_pb2

from milopt import interpreter
from milopt.errors import UnsupportedOps
from milopt.mil import Target, get_new_symbol, is_dead, mb, operations, replace_uses, types
from milopt.opaque import Opaque
from milopt.package import Model, load
from milopt.package.origin import origin_of
from milopt.text import text

from .packages import block_of, edited, op_named, text_value
from .support import counter, linear, loop, program_of, spec_of, two_functions, write_spec


def op_of(model: Model, output: str) -> Any:
    return next(op for op in operations(model.function()) for var in op.outputs if var.name == output)


def saved_again(package: Path) -> Any:
    return spec_of(load(package).save(package.with_name("again.mlpackage"), overwrite=True))


def test_op_that_pymil_does_not_know_is_carried(tmp_path: Path) -> None:
    def change(spec: Any) -> None:
        op = op_named(block_of(spec), "y")
        op.type = "no_such_op"
        op.attributes["extra"].CopyFrom(text_value("kept"))
        op.inputs["second"].arguments.add().value.CopyFrom(text_value("inside"))
        op.blocks.add().attributes["of the block"].CopyFrom(text_value("too"))

    package = edited(tmp_path, change)
    model = load(package)
    op = op_of(model, "y")
    assert isinstance(op, Opaque)
    assert (op.op_type, sorted(op.inputs), op.inputs["second"].val) == ("no_such_op", ["second", "x"], "inside")
    assert op.inputs["x"].child_ops == [op]
    assert 'no_such_op(second="inside", x=%0)' in text(model)
    assert saved_again(package) == spec_of(package)
    assert text(model.clone(), weights="hash") == text(model, weights="hash")
    with pytest.raises(UnsupportedOps, match="no_such_op"):
        interpreter.compile(model)


def test_op_that_pymil_does_not_know_is_not_dead(tmp_path: Path) -> None:
    def change(spec: Any) -> None:
        block = block_of(spec)
        op = block.operations.add(type="writes_somewhere")
        op.inputs["x"].arguments.add(name="y")

    model = load(edited(tmp_path, change))
    op = next(op for op in operations(model.function()) if op.op_type == "writes_somewhere")
    assert not is_dead(op)
    with model.function():
        new = mb.tanh(x=model.function().inputs["x"])
    assert op.inputs["x"].name == "y"
    op.set_inputs(x=new)
    assert op.x is op.inputs["x"] is new
    assert not hasattr(op, "y")
    assert new.child_ops == [op]


def test_inputs_that_pymil_refuses(tmp_path: Path) -> None:
    """A relu of integers, which no opset of PyMIL's has: carried, evaluated, written back."""

    def build(x: Any) -> Any:
        return mb.relu(x=x, name="y")

    def change(spec: Any) -> None:
        function = spec.mlProgram.functions["main"]
        for named in (function.inputs[0], op_named(block_of(spec), "y").outputs[0]):
            named.type.tensorType.dataType = MIL_pb2.DataType.INT32
        for feature in (*spec.description.input, *spec.description.output):
            feature.type.multiArrayType.dataType = 131072 | 32

    inputs = [mb.TensorSpec(shape=(4,), dtype=types.fp32)]
    program = program_of(mb.program(input_specs=inputs, opset_version=Target.iOS16)(build))
    package = edited(tmp_path, change, program)
    model = load(package)
    assert isinstance(op_of(model, "y"), Opaque)
    assert saved_again(package) == spec_of(package)
    result = interpreter.compile(model).run({"x": np.array([-1, 2, -3, 4], np.int32)})["y"]
    np.testing.assert_array_equal(result, [0, 2, 0, 4])


def test_inputs_that_give_no_defaults(tmp_path: Path) -> None:
    """The default bias of a linear op has the size of its weight, which here nobody knows."""

    def build(x: Any) -> Any:
        return mb.linear(x=x, weight=mb.const(val=np.ones((2, 4), np.float32)), name="y")

    def change(spec: Any) -> None:
        block = block_of(spec)
        op = op_named(block, "y")
        weight = op_named(block, op.inputs["weight"].arguments[0].name)
        del op.inputs["bias"]
        weight.type = "computed_somehow"
        del weight.attributes["val"]
        weight.outputs[0].type.tensorType.dimensions[0].unknown.variadic = False

    inputs = [mb.TensorSpec(shape=(1, 4), dtype=types.fp32)]
    program = program_of(mb.program(input_specs=inputs, opset_version=Target.iOS16)(build))
    package = edited(tmp_path, change, program)
    model = load(package)
    assert "linear(" in text(model)
    assert saved_again(package) == spec_of(package)


def test_prelu_that_type_inference_refuses(tmp_path: Path) -> None:
    """coremltools 9.0 refuses alphas that differ on rank 3 and 5; a published model has them."""
    alphas = np.array([0.1, 0.2, 0.3], np.float32)

    def build(x: Any) -> Any:
        return mb.prelu(x=x, alpha=alphas, name="y")

    def change(spec: Any) -> None:
        alpha = next(op for op in block_of(spec).operations if op.type == "const").attributes["val"]
        alpha.immediateValue.tensor.floats.values[:] = alphas.tolist()

    def equal(x: Any) -> Any:
        return mb.prelu(x=x, alpha=np.full(3, 0.5, np.float32), name="y")

    inputs = [mb.TensorSpec(shape=(1, 3, 2), dtype=types.fp32)]
    with pytest.raises(ValueError, match="all the values of alpha are same"):
        mb.program(input_specs=inputs, opset_version=Target.iOS15)(build)
    program = program_of(mb.program(input_specs=inputs, opset_version=Target.iOS15)(equal))
    package = edited(tmp_path, change, program)
    model = load(package)
    op = op_of(model, "y")
    assert not isinstance(op, Opaque)
    np.testing.assert_array_equal(op.inputs["alpha"].val, alphas)
    x = np.random.default_rng(0).standard_normal((1, 3, 2)).astype(np.float32)
    expected = np.where(x >= 0, x, alphas[:, None] * x)
    np.testing.assert_allclose(interpreter.compile(model).run({"x": x})["y"], expected, rtol=1e-6)
    assert saved_again(package) == spec_of(package)


def test_strings_that_look_like_symbols(tmp_path: Path) -> None:
    """``make_list`` with the shape string of PyMIL's next symbols used to make every later load fail."""

    def build(x: Any) -> Any:
        ls = mb.make_list(init_length=1, dynamic_length=True, elem_shape=(4,), dtype="fp32")
        ls = mb.list_write(ls=ls, index=0, value=x)
        return mb.list_read(ls=ls, index=0, name="y")

    inputs = [mb.TensorSpec(shape=(4,), dtype=types.fp32)]
    program = program_of(mb.program(input_specs=inputs, opset_version=Target.iOS16)(build))
    ahead = pymil_program.k_num_internal_syms + 2

    def change(spec: Any) -> None:
        block = block_of(spec)
        make = next(op for op in block.operations if op.type == "make_list")
        shape = op_named(block, make.inputs["elem_shape"].arguments[0].name)
        value = shape.attributes["val"]
        value.CopyFrom(text_value(f"is{ahead}"))
        shape.outputs[0].type.CopyFrom(value.type)
        for op in block.operations:
            for output in op.outputs:
                if output.type.HasField("listType"):
                    output.type.listType.type.tensorType.dimensions[0].unknown.variadic = False

    package = edited(tmp_path, change, program)
    register = dict(pymil_program.k_used_symbols)
    model = load(package)
    assert f'elem_shape=("is{ahead}")' in text(model)
    assert pymil_program.k_used_symbols == register
    assert [get_new_symbol() for _ in range(4)]  # PyMIL's own counter is not in its way
    assert saved_again(package) == spec_of(package)


def test_poisoned_register_is_no_obstacle(shared: Path) -> None:
    """Where another loader left PyMIL's counter before a symbol it has, the counter is moved past it."""
    package = shared / "models/stories260K/stories260K_ios18_stateful.mlpackage"
    before = text(load(package))
    poison = pymil_program.k_num_internal_syms
    pymil_program.Symbol(f"is{poison}")
    try:
        assert text(load(package)) == before
    finally:
        pymil_program.k_num_internal_syms = max(pymil_program.k_num_internal_syms, poison + 1)


def test_loading_in_threads(shared: Path) -> None:
    packages = [shared / f"models/real/{name}.mlpackage" for name in ("dtln128_part1", "silero_v6_encoder")] * 4
    expected = [text(load(package)) for package in packages]
    found: dict[int, str] = {}

    def run(index: int) -> None:
        found[index] = text(load(packages[index]))

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(packages))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[index] for index in range(len(packages))] == expected


def test_names_do_not_depend_on_what_was_loaded_before(shared: Path) -> None:
    package = shared / "models/stories260K/stories260K_ios18_stateful.mlpackage"

    def names(model: Model) -> list[str]:
        return [f"{var.name} {var.shape}" for op in operations(model.function()) for var in op.outputs]

    first = names(load(package))
    load(shared / "models/real/dtln128_part1.mlpackage")
    assert names(load(package)) == first
    assert any("dim0" in name for name in first)


def test_texts_and_attributes_survive_with_the_ops(tmp_path: Path) -> None:
    def change(spec: Any) -> None:
        block = block_of(spec)
        spec.mlProgram.docString = "of the program"
        spec.mlProgram.attributes["buildInfo"].CopyFrom(text_value("by hand"))
        spec.mlProgram.functions["main"].attributes["of the function"].CopyFrom(text_value("a"))
        block.attributes["of the block"].CopyFrom(text_value("b"))
        for op in block.operations:
            op.attributes["of the op"].CopyFrom(text_value("c"))
            if op.type == "const":
                op.attributes["val"].docString = "of the value"
        del block.operations[-1].attributes["name"]

    package = edited(tmp_path, change)
    spec = spec_of(package)
    assert saved_again(package) == spec
    clone = load(package).clone().save(tmp_path / "clone.mlpackage")
    assert spec_of(clone) == spec


def test_a_pass_changes_only_what_it_changes(tmp_path: Path) -> None:
    def change(spec: Any) -> None:
        for op in block_of(spec).operations:
            op.attributes["of the op"].CopyFrom(text_value(op.type))

    package = edited(tmp_path, change)
    model = load(package)
    function = model.function()
    relu = op_of(model, "y")
    with function:
        new = mb.tanh(x=relu.inputs["x"], before_op=relu, name="new")
    replace_uses(relu.outputs[0], new)
    function.remove_ops([relu])
    before, after = block_of(spec_of(package)), block_of(spec_of(model.save(tmp_path / "after.mlpackage")))
    assert list(after.operations)[:-1] == list(before.operations)[:-1]
    assert (after.operations[-1].type, list(after.operations[-1].attributes)) == ("tanh", ["name"])


@pytest.mark.parametrize("build", [linear, counter, two_functions, loop])
def test_defaults_are_there_for_passes_and_not_in_the_package(build: Any, tmp_path: Path) -> None:
    package = load(build()).save(tmp_path / "a.mlpackage")
    spec = spec_of(package)
    removed = 0
    for function in spec.mlProgram.functions.values():
        (block,) = function.block_specializations.values()
        for op in block.operations:
            if "keep_dims" in op.inputs:
                del op.inputs["keep_dims"]
                removed += 1
    write_spec(package, spec)
    if removed:
        assert op_of(load(package), "y") is not None
        reduced = next(op for op in operations(load(package).function()) if op.op_type == "reduce_sum")
        assert bool(reduced.inputs["keep_dims"].val) is False
    assert saved_again(package) == spec


def test_values_of_shapes_are_known(shared: Path) -> None:
    """What PyMIL infers from shapes is there, and weights are left where they are."""
    model = load(shared / "models/stories260K/stories260K_ios18_stateful.mlpackage")
    shapes = [op for op in operations(model.function()) if op.op_type == "shape"]
    assert shapes
    assert all(op.outputs[0].sym_val is not None for op in shapes)
    computed = [op for op in operations(model.function()) if op.op_type != "const" and op.outputs[0].val is not None]
    assert all(np.size(op.outputs[0].val) <= 1024 for op in computed)


def test_functions_of_different_opsets(tmp_path: Path) -> None:
    def change(spec: Any) -> None:
        function = spec.mlProgram.functions["decode"]
        function.block_specializations["CoreML7"].CopyFrom(function.block_specializations["CoreML8"])
        del function.block_specializations["CoreML8"]
        function.opset = "CoreML7"

    package = edited(tmp_path, change, two_functions())
    model = load(package)
    assert {name: int(function.opset_version) for name, function in model.functions.items()} == {
        "prefill": 9,
        "decode": 8,
    }
    assert saved_again(package) == spec_of(package)


def test_packed_weights_are_unpacked_when_asked_for(shared: Path) -> None:
    model = load(shared / "models/stories260K/stories260K_ios18_stateful_int4blk.mlpackage")
    weights = [op for op in operations(model.function()) if op.op_type == "constexpr_blockwise_shift_scale"]
    data: Any = weights[0].inputs["data"]
    assert data._sym_val._value is None
    clone = model.clone()
    assert (data.val.dtype, data.val.shape, data.val.min() >= -8, data.val.max() < 8) == (
        np.int8,
        data.shape,
        True,
        True,
    )
    assert data.val is data.val
    twin = next(op for op in operations(clone.function()) if op.name == weights[0].name).inputs["data"]
    assert np.shares_memory(twin.val, data.val)
    assert origin_of(data.op) is not None

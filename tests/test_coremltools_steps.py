"""coremltools' passes in a milopt pipeline: what they change, how they are judged, and what becomes of their faults."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from coremltools.converters.mil.mil.passes.graph_pass import AbstractGraphPass
from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY

import milopt
from milopt.census import op_counts
from milopt.cli import main
from milopt.coremltools_steps import CoremltoolsPass, coremltools_names, step_class
from milopt.errors import EvaluationError, PassError, VerificationError
from milopt.metrics import Lossy
from milopt.mil import Program, constant, mb, operations, remove_if_dead, target, types
from milopt.opaque import Opaque
from milopt.package import Model, load
from milopt.pipeline import Pipeline
from milopt.text import text
from tests.package.support import program_of, two_functions, weight
from tests.verify.decoders import Decoder

FOLD = "ct:common::const_elimination"


def folding() -> Model:
    """``y = linear(x) + (1 + 2)``, with the sum of constants spelled out."""

    def build(x: Any) -> Any:
        three = mb.add(x=np.array([1], np.float32), y=np.array([2], np.float32), name="three")
        return mb.add(x=mb.linear(x=x, weight=weight(32, 16).astype(np.float32), name="hidden"), y=three, name="y")

    spec = [mb.TensorSpec(shape=(1, 16), dtype=types.fp32)]
    return load(program_of(mb.program(input_specs=spec, opset_version=target.iOS17)(build)))


def weight_of(model: Model, function: str = "main") -> Any:
    op = next(op for op in operations(model.functions[function]) if op.op_type == "linear")
    return constant(op.inputs["weight"])


def test_a_step_is_run_judged_and_reported() -> None:
    model = folding()
    pipeline = Pipeline.parse(f"{FOLD},ct:common::noop_elimination")
    report = pipeline.run(model, verify="each")
    folded, idle = report.parts
    assert (folded.name, folded.applied, folded.notes) == (FOLD, 1, ["ops: -1 add"])
    assert op_counts(model.function())["add"] == 1
    assert not idle
    assert [verdict.subject for verdict in report.verdicts] == [FOLD]  # what changed nothing is not compared
    assert str(pipeline) == f"{FOLD},ct:common::noop_elimination"
    assert Pipeline.parse(str(pipeline)) == pipeline


def test_the_weights_are_neither_copied_nor_read(tmp_path: Path) -> None:
    model = load(folding().save(tmp_path / "in.mlpackage"))
    before = weight_of(model)
    every = "const_elimination,dead_code_elimination,topological_reorder,dedup_op_and_var_names,reduce_transposes"
    Pipeline.parse(",".join(f"ct:common::{name}" for name in every.split(","))).run(model)
    assert np.shares_memory(before, weight_of(model))


def test_what_changes_nothing_says_so() -> None:
    model = folding()
    Pipeline.parse(FOLD).run(model)
    before = text(model, weights="hash")
    report = Pipeline.parse(FOLD).run(model, verify="each")
    assert not report
    assert report.verdicts == []
    assert text(model, weights="hash") == before


def test_options_and_the_metric_of_a_pass_that_rounds() -> None:
    model = folding()
    spec = "ct:common::add_fp16_cast{skip_ops_by_type='linear,silu'}"
    report = Pipeline.parse(f"{FOLD},{spec}").run(model, verify="each")
    kinds = {op.op_type: str(op.outputs[0]) for op in operations(model.function())}
    assert "fp32" in kinds["linear"]
    assert "fp16" in str(next(op for op in operations(model.function()) if op.op_type == "add").inputs["x"])
    assert report.verdicts[-1].subject == spec
    assert report.verdicts[-1].metric == Lossy(min_snr_db=30)


def test_an_option_that_coremltools_keeps_on_the_class_stays_with_the_step() -> None:
    theirs: Any = PASS_REGISTRY.passes["common::const_deduplication"]
    before = theirs._const_threshold
    step = Pipeline.parse("ct:common::const_deduplication{const_threshold=3}")
    step.run(folding())
    assert theirs._const_threshold == before == 100


def test_every_function_is_visited_and_weights_stay_shared() -> None:
    model = load(two_functions())
    report = Pipeline.parse("ct:common::const_deduplication,ct:common::expand_dynamic_linear").run(model, verify="end")
    assert set(model.functions) == {"decode", "prefill"}
    assert all(report.verdicts)
    decoder = Decoder().stateless()
    arrays = [weight_of(decoder, name) for name in decoder.functions]
    report = Pipeline.parse("ct:common::guard_negative_gather_indices").run(decoder, verify="each")
    assert report.parts[0].notes == ["ops: +2 add, +2 greater_equal, +2 select, +2 shape, +2 slice_by_index"]
    assert all(op_counts(each)["select"] == 1 for each in decoder.functions.values())
    assert arrays[0] is arrays[1] is weight_of(decoder, "decode") is weight_of(decoder, "prefill4")


def test_new_ops_have_names_of_their_own(tmp_path: Path) -> None:
    model = Decoder().stateless()
    Pipeline.parse("ct:common::guard_negative_gather_indices,ct:common::add_int16_cast").run(model)
    for function in model.functions.values():
        names = [op.name for op in operations(function)]
        assert len(names) == len(set(names))
    assert milopt.compare(Decoder().stateless(), load(model.save(tmp_path / "out.mlpackage")))


def test_constants_that_are_not_folded_can_be_judged() -> None:
    def build(x: Any) -> Any:
        moved = mb.add(x=x, y=mb.cast(x=np.array([1, 2, 3, 4], np.float16), dtype="fp32", name="shift"), name="moved")
        return mb.relu(x=mb.relu(x=moved), name="y")

    spec = [mb.TensorSpec(shape=(2, 4), dtype=types.fp32)]
    model = load(program_of(mb.program(input_specs=spec, opset_version=target.iOS17)(build)))
    report = Pipeline.parse("ct:common::merge_consecutive_relus").run(model, verify="each")
    assert all(report.verdicts)
    assert op_counts(model.function()) == {"cast": 1, "add": 1, "relu": 1}


# --- faults


Planted = Callable[[Callable[[Program], None]], str]


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Planted:
    """Register a pass that does what a function does, for one test; returns the step's name."""

    def plant(work: Callable[[Program], None]) -> str:
        def apply(self: object, prog: Program) -> None:
            work(prog)

        theirs = type("planted", (cast("Any", AbstractGraphPass),), {"apply": apply})
        name = f"test::{request.node.name}_{work.__name__}"
        monkeypatch.setitem(PASS_REGISTRY.passes, name, theirs)
        return f"ct:{name}"

    return plant


def test_a_pass_that_raises_leaves_the_model_as_it_was(planted: Planted) -> None:
    def half(program: Program) -> None:
        function = program.functions["main"]
        function.set_outputs([function.inputs["x"]])
        function.remove_ops([op for op in function.operations if op.op_type == "add"][::-1])
        raise KeyError("nothing\nfound")

    model = folding()
    before, name = text(model, weights="hash"), planted(half)
    with pytest.raises(PassError) as error:
        Pipeline.parse(name).run(model)
    assert str(error.value) == f"{name}: coremltools raises KeyError: 'nothing\\nfound'"
    assert text(model, weights="hash") == before
    assert milopt.compare(folding(), model)


def test_a_pass_that_leaves_no_valid_program(planted: Planted) -> None:
    def break_it(program: Program) -> None:
        op: Any = next(op for op in program.functions["main"].operations if op.op_type == "linear")
        op.outputs[0].add_child_op(op)  # it does not use its own output

    model = folding()
    before, name = text(model), planted(break_it)
    with pytest.raises(PassError, match="leaves what is no valid program: "):
        Pipeline.parse(name).run(model)
    assert text(model) == before
    model.program.validate()


def test_a_program_that_can_not_be_run_names_the_pass(planted: Planted) -> None:
    def compute_the_scale(program: Program) -> None:
        """As ``common::add_fp16_cast`` does with a compressed weight until its casts are folded."""
        function = program.functions["main"]
        op: Any = next(op for op in operations(function) if op.op_type == "linear")
        data, zero, axis = np.ones((32, 16), np.int8), np.int8(0), np.int32(0)
        with function:
            made = mb.constexpr_affine_dequantize(
                quantized_data=data, zero_point=zero, scale=np.float32(1), axis=axis, before_op=op, name="weight"
            )
            scale = mb.cast(x=np.float16(1), dtype="fp32", before_op=made.op, name="scale")
        made.op.set_inputs(scale=scale, no_check_var_types=True, type_inference=False)
        op.set_inputs(weight=made, no_check_var_types=True, type_inference=False)

    name = planted(compute_the_scale)
    with pytest.raises(EvaluationError, match=f"what {name} leaves can't be run: constexpr_affine_dequantize 'weight'"):
        Pipeline.parse(name).run(folding(), verify="each")


def test_a_wrong_pass_is_caught(planted: Planted) -> None:
    def double(program: Program) -> None:
        function = program.functions["main"]
        with function:
            made = mb.add(x=function.outputs[0], y=function.outputs[0], name="doubled")
        made.name = "y"
        function.set_outputs([made])

    name = planted(double)
    with pytest.raises(VerificationError, match=f"{name}: differs: output y"):
        Pipeline.parse(name).run(folding(), verify="each")


def test_new_weights_alone_are_a_change(planted: Planted) -> None:
    def negate(program: Program) -> None:
        function = program.functions["main"]
        op: Any = next(op for op in operations(function) if op.op_type == "linear")
        with function:
            op.set_inputs(weight=mb.const(val=-constant(op.weight), before_op=op), type_inference=False)
        remove_if_dead(list(function.operations))

    def copy(program: Program) -> None:
        op: Any = next(op for op in operations(program.functions["main"]) if op.op_type == "linear")
        with program.functions["main"]:
            op.set_inputs(weight=mb.const(val=constant(op.weight).copy(), before_op=op), type_inference=False)
        remove_if_dead(list(program.functions["main"].operations))

    model = folding()
    before = text(model)
    assert not Pipeline.parse(planted(copy)).run(model)  # the same bytes elsewhere are no change
    report = Pipeline.parse(planted(negate)).run(model)
    assert text(model) == before  # the structure is the same
    assert report.parts[0].applied == 1
    assert report.parts[0].notes == ["as many ops of every type as before"]


def test_ops_that_pymil_does_not_know(planted: Planted) -> None:
    def unknown() -> Model:
        model = folding()
        op: Any = next(op for op in operations(model.function()) if op.op_type == "linear")
        kind: Any = type("mystery", (Opaque,), {"__module__": __name__})
        op.__class__ = kind
        return model

    def remove(program: Program) -> None:
        function = program.functions["main"]
        op = next(op for op in operations(function) if isinstance(op, Opaque))
        function.set_outputs([function.inputs["x"]])
        function.remove_ops([each for each in function.operations if each.op_type in ("mystery", "add")][::-1])
        assert op.enclosing_block is None

    model = unknown()
    Pipeline.parse(f"{FOLD},ct:common::dead_code_elimination").run(model)
    assert any(isinstance(op, Opaque) for op in operations(model.function()))  # carried on
    before, name = text(model), planted(remove)
    with pytest.raises(PassError, match=f"{name} removed hidden, a mystery, which PyMIL does not know"):
        Pipeline.parse(name).run(model)
    assert text(model) == before


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("ct:const_elimination", "coremltools has no pass named 'const_elimination'; did you mean ct:common::const_e"),
        ("ct:common::const_eliminate", "no pass named 'common::const_eliminate'; did you mean ct:common::const_elim"),
        ("ct:xyzzy", "coremltools has no pass named 'xyzzy'; `milopt passes ct:` lists them"),
        ("ct:milopt::palettize", "ct:milopt::palettize is milopt's own pass: write palettize"),
        (f"{FOLD}{{size=1}}", f"{FOLD} has no option 'size'; its options are: skip_const_by_size"),
        (f"{FOLD}{{skip_const_by_size=many}}", f"{FOLD}: Expected to get float threshold, but got `many`"),
        ("ct:compression::palettize_weights", "can't be a step: it needs a configuration object"),
        ("ct:compression::WeightDecompressor", "can't be a step: coremltools makes it only with arguments"),
    ],
)
def test_what_is_no_step_is_told_in_a_line(spec: str, told: str) -> None:
    milopt.coremltools_pipeline("fuse-sdpa")  # milopt's own passes are registered, and no steps
    with pytest.raises(PassError) as error:
        Pipeline.parse(spec)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_every_pass_can_be_asked_for() -> None:
    refused = {name for name in coremltools_names() if name.startswith("ct:compression::")}
    assert len(refused) == 6
    for name in set(coremltools_names()) - refused:
        step = step_class(name)()
        assert isinstance(step, CoremltoolsPass)
        assert str(step) == step.name == name
        assert step == step_class(name)()
        assert type(step).__doc__
    for name in refused:
        with pytest.raises(PassError, match="can't be a step"):
            step_class(name)


def test_the_command_lists_and_describes_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["passes", "ct:"]) == 0
    listed = capsys.readouterr().out
    assert "skip_const_by_size=None" in listed
    assert "milopt::" not in listed
    assert main(["passes", "ct:common::add_fp16_cast"]) == 0
    assert "compared: at least 30 dB" in capsys.readouterr().out

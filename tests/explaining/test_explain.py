"""Explanations: what would be rewritten, what comes near, the text around it, and the line of the rule."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import milopt
from milopt.cli import main
from milopt.errors import MiloptError, PassError
from milopt.explaining import Explanation, Spot, explain
from milopt.mil import Program, mb, operations, target, types
from milopt.package import Model, load
from milopt.passes.attention import FuseAttention
from milopt.passes.cache import KvToState
from milopt.text import text
from tests.package.support import program_of
from tests.verify.decoders import Decoder

HEADS, QUERIES, KEYS, SIZE = 2, 3, 5, 4


def attention(*, twice: bool = False, sigmoid: bool = False, mask: int = KEYS, opset: Any = target.iOS18) -> Program:
    """Attention that fuses, or with a softmax used twice, a sigmoid in its place, or a mask of few columns."""

    def build(q: Any, k: Any, v: Any, m: Any) -> Any:
        scores = mb.matmul(x=q, y=k, transpose_y=True, name="scores")
        scaled = mb.mul(x=scores, y=np.float32(0.5), name="scaled")
        masked = mb.add(x=scaled, y=m, name="masked")
        weights = mb.sigmoid(x=masked, name="weights") if sigmoid else mb.softmax(x=masked, axis=-1, name="weights")
        y = mb.matmul(x=weights, y=v, name="y")
        return (y, mb.relu(x=weights, name="z")) if twice else y

    def tensor(*shape: int) -> Any:
        return mb.TensorSpec(shape=(1, HEADS, *shape), dtype=types.fp32)

    specs = [tensor(QUERIES, SIZE), tensor(KEYS, SIZE), tensor(KEYS, SIZE), tensor(QUERIES, mask)]
    return program_of(mb.program(input_specs=specs, opset_version=opset)(build))


def line_of(thing: Any, needle: str) -> int:
    lines, start = inspect.getsourcelines(thing)
    return start + next(at for at, line in enumerate(lines) if needle in line)


def only(explanation: Explanation) -> Spot:
    (spot,) = explanation.spots
    return spot


def test_what_would_be_rewritten() -> None:
    program = attention()
    before = text(program)
    found = explain("fuse-sdpa", program)
    assert text(program) == before  # nothing is
    assert (found.rewritten, found.missed) == (1, 0)
    spot = only(found)
    assert (spot.rewritten, spot.rule, spot.function, spot.place) == (True, "FuseAttention", "main", "y")
    marks = [line.split("#")[1].strip() for line in spot.excerpt if line.startswith("  * ")]
    assert marks == ["scores", "scaled", "masked", "weights"]
    assert [line for line in spot.excerpt if line.startswith("  > ")] == [
        "  > %4: fp32[1, 2, 3, 4] = matmul(x=%3, y=%v)  # y"
    ]
    assert "main: y: would be rewritten" in str(found)


def test_a_pattern_that_wanted_another_op_names_its_line() -> None:
    spot = only(explain("fuse-sdpa", attention(sigmoid=True), "y"))
    assert (spot.depth, spot.declined) == (1, False)
    assert spot.reason.startswith("wanted softmax or ")
    assert spot.reason.endswith(", found sigmoid")
    assert (spot.root, spot.place) == ("y", "weights")
    file, _, line = spot.source.rpartition(":")
    assert Path(file).name == "attention.py"
    assert int(line) == line_of(FuseAttention.pattern, "op.softmax(")
    assert [each[2] for each in spot.excerpt] == [" ", ">", "*"]  # the sum, the sigmoid, the matmul
    told = str(explain("fuse-sdpa", attention(sigmoid=True)))
    assert "nothing comes near" in told
    assert "op=op.softmax(x=scores, axis=...)" in told


def test_a_value_used_elsewhere() -> None:
    spot = only(explain("fuse-sdpa", attention(twice=True)))
    assert "used outside the match" in spot.reason
    assert spot.place == "weights"
    assert spot.depth == 5
    assert int(spot.source.rpartition(":")[2]) == line_of(FuseAttention.pattern, "op.softmax(")
    assert any("relu" in line for line in spot.excerpt)


def test_a_condition_names_its_line() -> None:
    spot = only(explain("fuse-sdpa", attention(mask=1)))
    assert spot.declined
    assert "columns" in spot.reason
    assert int(spot.source.rpartition(":")[2]) == line_of(FuseAttention.check, "columns for {} keys")
    assert spot.place == "m"  # an input: what uses it is marked
    assert next(line for line in spot.excerpt if line.startswith("  > ")).endswith("# masked")


def test_a_function_that_is_too_old_is_told_of() -> None:
    found = explain("fuse-sdpa", attention(opset=target.iOS17))
    assert found.rewritten == 0
    assert "iOS18" in str(found)


@pytest.mark.parametrize("op", ["scores", "masked", "weights", "y"])
def test_asked_about_any_op_of_a_match(op: str) -> None:
    found = explain("fuse-sdpa", attention(), op)
    assert (found.rewritten, found.op) == (1, op)
    assert only(found).place == "y"


def test_asked_about_an_op_that_no_rule_looked_at() -> None:
    found = explain("fuse-sdpa", attention(twice=True), "z")
    assert found.spots == ()
    assert found.remark == "z (relu) is part of nothing that fuse-sdpa looked at; its rules were tried at: matmul"


def test_asked_about_what_a_report_leaves_out() -> None:
    model = Decoder().stateless((1,))
    name = next(op.name for op in operations(model.function()) if op.op_type == "transpose")
    report = milopt.Pipeline.parse("canonicalize").run(model.clone())
    assert not [miss for miss in report.all_misses() if name in (miss.root, miss.place)]
    rules = {spot.rule for spot in explain("canonicalize", model, name).spots}
    assert {"DropStill", "NormalizePerm", "MergeTransposes"} <= rules


@pytest.mark.parametrize(
    ("name", "hint"),
    [("score", "; did you mean scores?"), ("weigths", "; did you mean weights?"), ("xyzzy", "")],
)
def test_an_unknown_op(name: str, hint: str) -> None:
    with pytest.raises(MiloptError) as error:
        explain("fuse-sdpa", attention(), name)
    assert str(error.value).startswith(f"there is no op or value named {name!r}{hint}")
    assert hint or "?" not in str(error.value)


def test_passes_that_are_no_rules_tell_their_refusals() -> None:
    decoder = Decoder().stateless((1,))
    reason = "too small: 128 of 2048 numbers"
    (spot,) = (spot for spot in explain("palettize", decoder).spots if spot.reason == reason)
    assert spot.declined
    assert Path(spot.source.rpartition(":")[0]).name == "compression.py"
    assert any(line.startswith("  > ") and "linear(" in line for line in spot.excerpt)
    assert any(line.strip().startswith("w1: fp16[8, 16]") for line in spot.excerpt)
    assert len(spot.also) == 3


def test_passes_that_are_no_rules_tell_what_they_change() -> None:
    decoder = Decoder().stateless((1,))
    spot = only(explain("palettize{min_elements=1}", decoder))
    assert (spot.rewritten, spot.rule) == (True, "palettize")
    assert spot.reason == "const becomes constexpr_lut_to_dense"
    states = explain(KvToState(), decoder)
    assert only(states).reason == "concat goes"
    assert only(states).also == ("present_value_0", "present_key_1", "present_value_1")
    assert only(explain("ct:common::const_elimination", folded())).reason == "add becomes const"


def folded() -> Model:
    def build(x: Any) -> Any:
        return mb.mul(x=x, y=mb.add(x=np.array([1], np.float32), y=np.array([2], np.float32), name="three"), name="y")

    specs = [mb.TensorSpec(shape=(2,), dtype=types.fp32)]
    return load(program_of(mb.program(input_specs=specs, opset_version=target.iOS16)(build)))


def test_of_several_passes_the_last_is_explained() -> None:
    decoder = Decoder().stateless((1,))
    assert explain("linear-to-conv", decoder).rewritten == 9
    assert explain("fuse-sdpa,linear-to-conv,fuse-sdpa", decoder).rewritten == 0
    assert explain("canonicalize,linear-to-conv", decoder).subject == "linear-to-conv"


def test_a_rule_that_is_in_no_pass_yet() -> None:
    told = explain(FuseAttention(), attention())
    assert (told.subject, told.rewritten) == (FuseAttention().name, 1)
    assert explain([FuseAttention()], attention(sigmoid=True)).rewritten == 0
    with pytest.raises(PassError, match=r"FuseAttention is a class of rules: write FuseAttention\(\)"):
        explain(cast("Any", FuseAttention), attention())


def test_one_function_of_several() -> None:
    decoder = Decoder().stateless((1, 4))
    assert explain("fuse-sdpa", decoder).rewritten == 4
    found = explain("fuse-sdpa", decoder, function="prefill4")
    assert (found.rewritten, {spot.function for spot in found.spots}) == (2, {"prefill4"})
    assert list(decoder.functions) == ["decode", "prefill4"]
    with pytest.raises(MiloptError, match="no function 'main'"):
        explain("fuse-sdpa", decoder, function="main")


def test_equal_reasons_are_told_once_and_only_so_many() -> None:
    decoder = Decoder().stateless((1, 4))
    (spot,) = explain("fuse-sdpa", decoder).spots
    assert [": " in each and each.split(": ")[0] for each in spot.also] == [False, "prefill4", "prefill4"]
    assert len(explain("canonicalize", decoder, most=2).spots) == 2
    assert len(explain("canonicalize", decoder, most=9).spots) > 2


def test_a_pass_that_is_wrong_is_told() -> None:
    with pytest.raises(PassError, match="did you mean fuse-sdpa"):
        explain("fuse-spda", attention())
    with pytest.raises(MiloptError, match="the pipeline is empty"):
        explain(milopt.Pipeline(()), attention())


# --- the command


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = load(attention(sigmoid=True)).save(tmp_path / "in.mlpackage")
    assert main(["explain", "fuse-sdpa", str(package), "--op", "weights"]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert "matched 1 ops, then wanted softmax or " in told.out
    assert main(["explain", "fuse-sdpa", str(package), "--op", "weights", "--json"]) == 0
    (spot,) = json.loads(capsys.readouterr().out)["spots"]
    assert (spot["rule"], spot["place"], spot["depth"]) == ("FuseAttention", "weights", 1)
    assert spot["excerpt"]
    assert main(["explain", "fuse-sdpa", str(package), "--op", "weight"]) == 2
    assert capsys.readouterr().err == "error: there is no op or value named 'weight'; did you mean weights?\n"
    assert [each.name for each in tmp_path.iterdir()] == ["in.mlpackage"]

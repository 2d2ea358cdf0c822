"""A pass that needs a newer opset says so once, and what to give; given it, the model is upgraded first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import milopt
from milopt.building import Builder
from milopt.cli import main
from milopt.errors import MiloptError
from milopt.matching import Match
from milopt.mil import Program, Target, mb, target
from milopt.package import Model, load
from milopt.pattern import Ops, Value
from milopt.pipeline import Pipeline
from milopt.rules import Rule, apply
from milopt.upgrading import Upgrade
from tests.passes.test_attention import attention
from tests.passes.test_cache import decoder


def two_attentions(opset: target) -> Program:
    @mb.program(input_specs=[mb.TensorSpec((1, 2, 5, 4))], opset_version=opset)
    def program(x: Any) -> Any:
        for _ in range(2):
            scores = mb.mul(x=mb.matmul(x=x, y=x, transpose_y=True), y=np.float32(0.5))
            x = mb.matmul(x=mb.softmax(x=scores, axis=-1), y=x)
        return x

    assert isinstance(program, Program)
    return program


def hint(name: str, opset: str, needed: str = "iOS18") -> str:
    return (
        f"{name} writes ops of {needed}, function 'main' is {opset}: upgrade with --minimum-deployment-target {needed} "
        f'(milopt.upgrade(model, "{needed}"))'
    )


def test_fuse_sdpa_says_it_once() -> None:
    report = Pipeline.parse("fuse-sdpa").run(load(two_attentions(target.iOS16)))
    (part,) = report.parts
    declined = [miss.reason for miss in part.misses if miss.declined]
    assert declined == ["needs iOS18, the function is iOS16"] * 2
    assert part.too_old() == [hint("fuse-sdpa", "iOS16")]
    assert str(report).count("minimum-deployment-target") == 1
    assert not part.nearest()


def test_other_reasons_are_no_hints() -> None:
    report = Pipeline.parse("fuse-sdpa").run(load(attention(axis=2, mask=None)))
    assert report.parts[0].too_old() == []
    assert report.parts[0].nearest()


@pytest.mark.parametrize(
    ("passes", "opset", "needed"),
    [
        ("quantize{min_elements=1}", target.iOS17, "iOS18"),
        ("palettize{min_elements=1}", target.iOS15, "iOS16"),
        ("palettize{min_elements=1,bits=3}", target.iOS16, "iOS18"),
    ],
)
def test_compression_says_it_once(passes: str, opset: target, needed: str) -> None:
    report = Pipeline.parse(passes).run(linears(opset))
    assert report.parts[0].too_old() == [hint(passes.partition("{")[0], opset.name, needed)]


class Attend(Rule[None]):
    """A rule that does not ask for the opset of the op that it builds."""

    def pattern(self, op: Ops, /, x: Value) -> Any:
        return op.softmax(x=x, axis=-1)

    def check(self, m: Match, /) -> None:
        del m

    def rewrite(self, op: Builder, m: Match, facts: None, /) -> Any:
        return op.scaled_dot_product_attention(query=m.x, key=m.x, value=m.x)


def test_a_rule_of_others_that_builds_what_is_newer() -> None:
    report = apply(Attend(), load(two_attentions(target.iOS17)))
    assert report.too_old() == [hint("Attend", "iOS17")]
    assert [miss.reason for miss in report.misses] == ["needs iOS18, the function is iOS17"] * 2


def linears(opset: target) -> Model:
    @mb.program(input_specs=[mb.TensorSpec((1, 64))], opset_version=opset)
    def program(x: Any) -> Any:
        rng = np.random.default_rng(0)
        for _ in range(2):
            x = mb.linear(x=x, weight=rng.standard_normal((64, 64)).astype(np.float32))
        return x

    return load(program)


def test_tables_for_groups() -> None:
    """iOS16 has one table per weight: it is made, and what would be better is said."""
    report = Pipeline.parse("palettize{min_elements=1,bits=4}").run(linears(target.iOS16))
    (part,) = report.parts
    assert part.applied == 2
    assert not part.too_old()
    assert [note for note in part.notes if "upgrade with" in note] == [
        "tables for groups of channels are of iOS18, function 'main' is iOS16, so that its weights get one each: "
        'upgrade with --minimum-deployment-target iOS18 (milopt.upgrade(model, "iOS18"))'
    ]
    for passes, model in (
        ("palettize{min_elements=1,bits=4,granularity=tensor}", linears(target.iOS16)),
        ("palettize{min_elements=1,bits=4}", linears(target.iOS18)),
    ):
        assert "upgrade with" not in str(Pipeline.parse(passes).run(model))


def test_kv_to_state_says_it_once() -> None:
    report = Pipeline.parse("kv-to-state").run(load(decoder(opset=target.iOS17)))
    assert report.parts[0].too_old() == [hint("kv-to-state", "iOS17")]


def test_after_what_it_says_the_pass_works() -> None:
    for passes, model in (
        ("fuse-sdpa", load(two_attentions(target.iOS15))),
        ("kv-to-state", load(decoder(opset=target.iOS17))),
        ("quantize{min_elements=1}", linears(target.iOS16)),
    ):
        pipeline = Pipeline((Upgrade("iOS18"), *Pipeline.parse(passes).passes))
        report = pipeline.run(model, verify="each")
        assert report.parts[0].name == "upgrade"
        assert report.parts[1].applied
        assert "minimum-deployment-target" not in str(report)
        assert all(report.verdicts)
        assert len(report.verdicts) == 2


def test_an_upgrade_is_of_all_functions_where_the_others_are_of_some() -> None:
    pipeline = Pipeline((Upgrade("iOS26"),))
    model = load(two_attentions(target.iOS18))
    model.program.functions["other"] = load(two_attentions(target.iOS18)).function()
    pipeline.run(model, functions=["main"])
    assert {each.opset_version for each in model.functions.values()} == {Target.iOS26}


def test_a_pass_checks_its_target_when_it_is_made() -> None:
    with pytest.raises(MiloptError, match="there is no deployment target 'iOS99'"):
        Upgrade("iOS99")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return load(two_attentions(target.iOS16)).save(tmp_path / "old.mlpackage")


def test_the_command_line(old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = tmp_path / "new.mlpackage"
    given = ["optimize", str(old), "-o", str(new), "--passes", "fuse-sdpa"]
    assert main(given) == 0
    assert _words(hint("fuse-sdpa", "iOS16")) in _words(capsys.readouterr().out)
    assert main([*given, "--force", "--minimum-deployment-target", "macOS15"]) == 0
    output = _words(capsys.readouterr().out)
    assert "upgrade: specification version 7 -> 9 (iOS18)" in output
    assert "upgrade: function 'main': iOS16 -> iOS18, 0 of 8 ops translated" in output
    assert "upgrade{target=macOS15}, fuse-sdpa: no difference in 3 trials" in output
    saved = milopt.load(new)
    assert saved.spec_version == 9
    assert sum(op.op_type == "scaled_dot_product_attention" for op in saved.function().operations) == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("iOS15", "the model is for iOS16 (specification version 7); iOS15 is older, and milopt only upgrades"),
        ("ios18", "there is no deployment target 'ios18'; did you mean iOS18?"),
    ],
)
def test_bad_targets_on_the_command_line(
    name: str, message: str, old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = tmp_path / "new.mlpackage"
    assert main(["optimize", str(old), "-o", str(new), "--minimum-deployment-target", name]) == 2
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", f"error: {message}\n")
    assert not new.exists()


def _words(output: str) -> str:
    """The output in one line: the console breaks long ones."""
    return " ".join(output.split())

"""Which form of attention a pipeline writes, by target and by request."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from benchmarks.layout import decoder
from milopt.errors import PassError
from milopt.mil import target
from milopt.package import load
from milopt.passes.attention_policy import POLICY, ComputeUnits, attention_passes, with_attention, with_passes
from milopt.pipeline import Pipeline
from tests.testing.attentions import Spelling, spelled

from .support import op_types


def test_every_target_has_a_row_and_every_row_its_sources() -> None:
    assert set(POLICY) == {(units, exists) for units in get_args(ComputeUnits) for exists in (True, False)}
    for choice in POLICY.values():
        assert choice.why
        assert choice.sources
        if choice.passes:
            Pipeline.parse(choice.passes)


@pytest.mark.parametrize("units", get_args(ComputeUnits))
def test_a_row_does_to_a_program_what_it_says(units: Any) -> None:
    written = {"all": "scaled", "cpu-and-gpu": "scaled", "cpu-and-ne": "einsum", "cpu": "matmul"}[units]
    model = load(spelled(Spelling(gqa="tile", number=0.25)))
    report = with_passes(Pipeline.parse("canonicalize"), attention_passes(units).passes).run(model, verify="each")
    assert all(report.verdicts)
    assert any(op.startswith(written) for op in op_types(model.program))
    assert "tile" not in op_types(model.program)


@pytest.mark.parametrize("units", get_args(ComputeUnits))
def test_below_ios18_no_row_writes_the_op(units: Any) -> None:
    model = load(spelled(Spelling(opset=target.iOS16)))
    with_passes(Pipeline.parse("canonicalize"), attention_passes(units, fused_exists=False).passes).run(model)
    assert ("einsum" if units == "cpu-and-ne" else "matmul") in op_types(model.program)
    assert not any(op.startswith("scaled") for op in op_types(model.program))


def test_where_layouts_come_behind_matmuls_move_least() -> None:
    """Per layer: two transposes, two products and one softmax; the row without layouts has a product for each head."""
    laid = attention_passes("cpu-and-ne", laid_out=True)
    assert laid.passes == "fuse-sdpa,decompose-sdpa{style=matmul}"
    assert {"L9", "L21"} <= set(laid.sources)
    assert attention_passes("cpu-and-ne", laid_out=True, fused_exists=False) == POLICY["cpu-and-ne", False]
    assert attention_passes("all", laid_out=True) == POLICY["all", True]
    counts: dict[str, list[int]] = {}
    for name, row in (("laid", laid), ("plain", attention_passes("cpu-and-ne"))):
        for layers in (1, 2):
            model = load(decoder(layers, fused=True))
            with_passes(Pipeline.parse("linear-to-conv,layout-bc1s"), row.passes).run(model)
            kinds = op_types(model.program)
            for kind in ("transpose", "matmul", "einsum", "softmax"):
                counts.setdefault(f"{name} {kind}", []).append(kinds.count(kind))
    layer = {kind: second - first for kind, (first, second) in counts.items()}
    assert [layer[f"laid {kind}"] for kind in ("transpose", "matmul", "einsum", "softmax")] == [2, 2, 0, 1]
    assert layer["plain einsum"] > 2
    assert layer["plain transpose"] == 4


@pytest.mark.parametrize(
    ("choice", "before", "after"),
    [
        ("keep", "canonicalize,fuse-sdpa,kv-to-state", "canonicalize,kv-to-state"),
        (
            "fused",
            "canonicalize,fuse-sdpa,kv-to-state,palettize",
            "canonicalize,fuse-sdpa,kv-to-state,pack-gqa,palettize",
        ),
        ("fused", "canonicalize", "canonicalize,fuse-sdpa,pack-gqa"),
        ("fused", "kv-to-state,palettize", "fuse-sdpa,kv-to-state,pack-gqa,palettize"),
        (
            "split-einsum",
            "fuse-sdpa,pack-gqa,linear-to-conv",
            "fuse-sdpa,decompose-sdpa{style=split-einsum},linear-to-conv",
        ),
        ("matmul", "fuse-sdpa,pack-gqa,linear-to-conv", "fuse-sdpa,decompose-sdpa,linear-to-conv"),
    ],
)
def test_a_pipeline_with_another_attention(choice: Any, before: str, after: str) -> None:
    assert str(with_attention(Pipeline.parse(before), choice)) == after


def test_the_default_pipeline_takes_every_choice() -> None:
    for choice in ("fused", "split-einsum", "matmul", "keep"):
        names = [each.name for each in with_attention(Pipeline.default(), choice).passes]
        assert ("fuse-sdpa" in names) == (choice != "keep")


def test_unknown_names_are_refused() -> None:
    wrong: Any = "gpu"
    with pytest.raises(PassError, match="attention is fused, split-einsum, matmul, keep, not 'gpu'"):
        with_attention(Pipeline.default(), wrong)
    with pytest.raises(PassError, match="compute units are all, cpu-and-gpu, cpu-and-ne, cpu, not 'gpu'"):
        attention_passes(wrong)


def test_the_command(tmp_path: Any) -> None:
    from milopt.cli import main

    package = str(load(spelled(Spelling(number=0.25))).save(tmp_path / "in.mlpackage"))
    for choice, kind in (("fused", "scaled"), ("split-einsum", "einsum"), ("matmul", "matmul"), ("keep", "softmax")):
        out = str(tmp_path / f"{choice}.mlpackage")
        assert main(["optimize", package, "-o", out, "--passes", "canonicalize,fuse-sdpa", "--attention", choice]) == 0
        assert any(op.startswith(kind) for op in op_types(load(out).program))
    assert main(["optimize", package, "-o", str(tmp_path / "x.mlpackage"), "--attention", "fast"]) == 2

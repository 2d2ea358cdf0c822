"""milopt's passes in a coremltools conversion."""

from __future__ import annotations

from collections import Counter
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY

import milopt
from milopt.coremltools_passes import register
from milopt.errors import PassError
from milopt.mil import Program, operations
from milopt.registry import names
from tests.cli.support import WrongPass


class Attention(torch.nn.Module):
    """One eager attention of four heads."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(32, 96)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.inner(x).view(1, 6, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        weights = torch.softmax(q @ k.transpose(-1, -2) * 0.5, dim=-1)  # not 1/sqrt(8)
        mixed: torch.Tensor = weights @ v
        return mixed.transpose(1, 2).reshape(1, 6, 32)


@pytest.fixture(scope="module")
def traced() -> Any:
    untyped: Any = torch
    untyped.manual_seed(0)
    return untyped.jit.trace(Attention().eval(), torch.zeros(1, 6, 32))


def converted(traced: Any, pipeline: Any) -> Program:
    converter: Any = ct
    made: Program = converter.convert(
        traced,
        inputs=[converter.TensorType("x", (1, 6, 32))],
        outputs=[converter.TensorType("y")],
        convert_to="milinternal",
        minimum_deployment_target=converter.target.iOS18,
        compute_precision=converter.precision.FLOAT32,
        pass_pipeline=pipeline,
    )
    return made


def kinds(program: Program) -> Counter[str]:
    return Counter(op.op_type for op in operations(program.functions["main"]))


def test_a_pass_in_coremltools_own_pipeline(traced: Any) -> None:
    register()
    converter: Any = ct
    pipeline = converter.PassPipeline.DEFAULT
    plain = converted(traced, converter.PassPipeline.DEFAULT)
    assert kinds(plain)["softmax"] == 1
    pipeline.append_pass("milopt::fuse-sdpa")
    fused = converted(traced, pipeline)
    assert kinds(fused)["scaled_dot_product_attention"] == 1
    assert kinds(fused)["softmax"] == 0
    assert milopt.compare(plain, fused)


def test_a_pipeline_of_milopt(traced: Any) -> None:
    pipeline = milopt.coremltools_pipeline("fuse-sdpa,linear-to-conv,palettize{bits=8,min_elements=1}")
    made = kinds(converted(traced, pipeline))
    assert (made["scaled_dot_product_attention"], made["linear"], made["constexpr_lut_to_dense"]) == (1, 0, 1)
    x = np.random.default_rng(0).standard_normal((1, 6, 32)).astype(np.float32)
    got = milopt.evaluate(converted(traced, milopt.coremltools_pipeline("fuse-sdpa,linear-to-conv")), {"x": x})["y"]
    # 1e-5: both in fp32 (1e-7), sums of 32 products
    np.testing.assert_allclose(got, traced(torch.tensor(x)).detach().numpy(), rtol=1e-5, atol=1e-5)


def test_options_are_those_of_the_text() -> None:
    pipeline = milopt.coremltools_pipeline("palettize{bits=4,group_size=8}")
    assert pipeline.passes[-1] == "milopt::palettize"
    options = {each.option_name: each.option_val for each in pipeline.get_options("milopt::palettize")}
    assert options == {"bits": "4", "group_size": "8"}


def test_the_base_is_kept_and_left_as_it_is() -> None:
    converter: Any = ct
    base = converter.PassPipeline(["common::dead_code_elimination"], "mine")
    made = milopt.coremltools_pipeline("fuse-sdpa", base=base)
    assert made.passes == ["common::dead_code_elimination", "milopt::fuse-sdpa"]
    assert base.passes == ["common::dead_code_elimination"]
    assert "milopt::fuse-sdpa" not in converter.PassPipeline.DEFAULT.passes


def test_registering_twice_is_harmless_and_only_under_milopt() -> None:
    registry: Any = PASS_REGISTRY
    first = register()
    known = dict(registry.passes)
    assert register() == first == tuple(f"milopt::{name}" for name in names())
    assert dict(registry.passes) == known
    assert not [name for name in names() if f"common::{name}" in known]
    assert set(first) <= set(known)


def test_wrong_texts_are_told_before_the_conversion() -> None:
    with pytest.raises(PassError, match="did you mean fuse-sdpa"):
        milopt.coremltools_pipeline("fuse-sdp")
    with pytest.raises(PassError, match="palettize is there twice with different options"):
        milopt.coremltools_pipeline("palettize{bits=4},palettize{bits=8}")


def test_options_of_other_types_than_text(traced: Any) -> None:
    register()
    converter: Any = ct
    pipeline = converter.PassPipeline(["milopt::palettize"], "mine")
    pipeline.set_options("milopt::palettize", {"bits": 8, "min_elements": 1, "embedding": True})
    assert kinds(converted(traced, pipeline))["constexpr_lut_to_dense"] == 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"bit": "4"}, "palettize has no option 'bit'"),
        ({"bits": "5"}, "palettize: bits is one of"),
        ({"group_size": 0}, "palettize: group_size must be at least 1, not 0"),
    ],
)
def test_wrong_options_stop_the_conversion(options: dict[str, Any], told: str, traced: Any) -> None:
    register()
    converter: Any = ct
    pipeline = converter.PassPipeline(["milopt::palettize"], "mine")
    pipeline.set_options("milopt::palettize", options)
    with pytest.raises(PassError, match=told):
        converted(traced, pipeline)


def test_steps_of_coremltools_become_its_own_passes_again() -> None:
    spec = "ct:common::const_elimination{skip_const_by_size=1e6},fuse-sdpa,ct:common::fuse_gelu_exact"
    made = milopt.coremltools_pipeline(spec)
    assert made.passes[-3:] == ["common::const_elimination", "milopt::fuse-sdpa", "common::fuse_gelu_exact"]
    (option,) = made.get_options("common::const_elimination")
    assert (option.option_name, option.option_val) == ("skip_const_by_size", 1e6)
    assert not made.get_options("common::fuse_gelu_exact")


def test_a_pass_that_has_no_name_for_others() -> None:
    with pytest.raises(PassError, match="wrong has no name that coremltools could call it by"):
        milopt.coremltools_pipeline(milopt.Pipeline((WrongPass(),)))

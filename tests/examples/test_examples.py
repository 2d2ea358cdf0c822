"""The examples run, and show what they say."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import milopt

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> Any:
    """The example as a module, loaded from its file."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(EXAMPLES), *sys.path])


def op_types(model: Any) -> set[str]:
    return {op.op_type for op in milopt.load(model).program.functions["main"].operations}


def test_optimize_package(tmp_path: Path) -> None:
    assert example("optimize_package").main(tmp_path)
    kinds = op_types(tmp_path / "after.mlpackage")
    assert {"conv", "scaled_dot_product_attention"} <= kinds
    assert not kinds & {"linear", "softmax"}


def test_compress_on_a_cluster(tmp_path: Path) -> None:
    distributed: Any = pytest.importorskip("distributed", reason="dask's distributed is not installed")
    source, destination = str(tmp_path / "before.mlpackage"), str(tmp_path / "after.mlpackage")
    example("tiny").converted().save(source)
    with distributed.LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster:
        example("compress_on_a_cluster").main(source, destination, cluster.scheduler_address)
    assert "constexpr_lut_to_dense" in op_types(destination)


def test_convert_with_passes() -> None:
    kinds = op_types(example("convert_with_passes").main())
    assert {"conv", "scaled_dot_product_attention"} <= kinds
    assert not kinds & {"linear", "softmax"}


def test_write_a_rule() -> None:
    module = example("write_a_rule")
    report = module.main()
    assert report.applied == 1
    assert [miss.reason for miss in report.misses if miss.near] == ["x is not the same value as before"]
    module.test_silu()


def test_the_rules_test_would_catch_a_wrong_rule() -> None:
    """The same pattern rewritten into relu: the example's own test must fail on it."""
    module = example("write_a_rule")

    def to_relu(self: Any, op: milopt.Builder, m: milopt.Match, facts: None, /) -> Any:
        return op.relu(x=m.x)

    module.SigmoidToSilu.rewrite = to_relu
    with pytest.raises(AssertionError):
        module.test_silu()


def test_every_example_is_tested() -> None:
    # tiny is what two others start from
    tested = {"optimize_package", "convert_with_passes", "write_a_rule", "compress_on_a_cluster", "tiny"}
    assert {path.stem for path in EXAMPLES.glob("*.py")} == tested
    assert np.all([len(path.read_text().splitlines()) < 60 for path in EXAMPLES.glob("*.py")])

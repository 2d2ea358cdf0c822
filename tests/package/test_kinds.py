"""Models that are no ML Programs: every command says so in one line."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coremltools.proto import Model_pb2

from milopt.cli import main
from milopt.errors import PackageError
from milopt.package import load
from tests.package.support import linear, spec_of, write_spec

ct: Any = importlib.import_module("coremltools")
datatypes: Any = importlib.import_module("coremltools.models.datatypes")
networks: Any = importlib.import_module("coremltools.models.neural_network")
COMMANDS = ("inspect", "optimize", "run", "diff", "verify")


def network(inputs: str = "x", outputs: str = "y", *, updatable: bool = False) -> Any:
    """A neural network of one layer, from coremltools' own builder."""
    three = datatypes.Array(3)
    made = networks.NeuralNetworkBuilder([(inputs, three)], [(outputs, three)], disable_rank5_shape_mapping=True)
    made.add_inner_product("layer", np.ones((3, 3)), None, 3, 3, False, inputs, outputs)
    if updatable:
        made.make_updatable(["layer"])
    return made.spec


def pipeline(*specs: Any, kind: str = "pipeline") -> Any:
    spec = Model_pb2.Model(specificationVersion=7)
    held = getattr(spec, kind)
    (held if kind == "pipeline" else held.pipeline).models.extend(specs)
    return spec


def package_of(folder: Path, spec: Any) -> Path:
    path = load(linear()).save(folder / "model.mlpackage")
    write_spec(path, spec)
    return path


def file_of(folder: Path, spec: Any) -> Path:
    path = folder / "model.mlmodel"
    path.write_bytes(spec.SerializeToString())
    return path


def program_spec(folder: Path) -> Any:
    return spec_of(load(linear()).save(folder / "program.mlpackage"))


NETWORK = "is a neural network; milopt reads ML Programs only; convert the source model again, as an mlprogram"


def refused(source: Any) -> str:
    with pytest.raises(PackageError) as caught:
        load(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("place", [package_of, file_of])
def test_neural_networks(place: Any, tmp_path: Path) -> None:
    assert refused(place(tmp_path, network())).endswith(NETWORK)


def test_updatable_networks_and_other_kinds(tmp_path: Path) -> None:
    spec = network(updatable=True)
    assert spec.isUpdatable
    assert refused(file_of(tmp_path, spec)).endswith(NETWORK)
    spec = Model_pb2.Model(specificationVersion=5)
    spec.identity.SetInParent()
    assert refused(file_of(tmp_path, spec)).endswith("is an identity; milopt reads ML Programs only")
    spec.nonMaximumSuppression.SetInParent()
    assert "is a non maximum suppression; " in refused(file_of(tmp_path, spec))


def test_a_model_of_coremltools_is_refused_like_its_file() -> None:
    made = ct.models.MLModel(network(), skip_model_load=True)
    assert refused(made) == f"the model {NETWORK}"


@pytest.mark.parametrize("kind", ["pipeline", "pipelineClassifier", "pipelineRegressor"])
def test_pipelines_tell_their_members(kind: str, tmp_path: Path) -> None:
    words = {"pipelineClassifier": "pipeline classifier", "pipelineRegressor": "pipeline regressor"}.get(kind, kind)
    told = refused(package_of(tmp_path, pipeline(network(), network("y", "z"), kind=kind)))
    assert told == (
        f"model.mlpackage is a {words} of 2 models (neural network, neural network); milopt reads ML Programs only, "
        "and none inside a pipeline"
    )


def test_an_ml_program_inside_a_pipeline(tmp_path: Path) -> None:
    found = pipeline(network(), program_spec(tmp_path))
    assert refused(file_of(tmp_path, found)).endswith(
        "is a pipeline of 2 models (neural network, ML Program); milopt reads ML Programs only, and none inside a "
        "pipeline: save models[1] by itself first"
    )


def test_a_pipeline_that_coremltools_makes(tmp_path: Path) -> None:
    models = [ct.models.MLModel(network(*names), skip_model_load=True) for names in (("x", "y"), ("y", "z"))]
    ct.utils.make_pipeline(*models).save(str(tmp_path / "made.mlpackage"))
    assert "is a pipeline of 2 models (neural network, neural network)" in refused(tmp_path / "made.mlpackage")


def test_a_pipeline_of_many_is_told_shortly(tmp_path: Path) -> None:
    told = refused(file_of(tmp_path, pipeline(*[network()] * 40)))
    assert "of 40 models (" in told
    assert "neural network and 34 more)" in told


def test_an_ml_program_in_a_single_file(tmp_path: Path) -> None:
    assert "is an ML Program in a single file; milopt reads packages" in refused(
        file_of(tmp_path, program_spec(tmp_path))
    )


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "junk.mlmodel").write_bytes(b"\xff" * 100)
    assert "is truncated or no model" in refused(tmp_path / "junk.mlmodel")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("what", ["network file", "network package", "pipeline package"])
def test_every_command_says_it_in_one_line(
    command: str, what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = network() if what.startswith("network") else pipeline(network(), program_spec(tmp_path))
    path = file_of(tmp_path, spec) if what.endswith("file") else package_of(tmp_path, spec)
    other = load(linear()).save(tmp_path / "other.mlpackage")
    arguments: dict[str, list[Path | str]] = {
        "optimize": [path, "-o", tmp_path / "out.mlpackage"],
        "diff": [other, path],
        "verify": [other, path],
    }
    assert main([command, *map(str, arguments.get(command, [path]))]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
    assert ("is a neural network; " if what.startswith("network") else "none inside a pipeline: save models[1]") in (
        told.err
    )
    assert not (tmp_path / "out.mlpackage").exists()

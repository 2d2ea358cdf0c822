"""``load``: a path, a coremltools model or a PyMIL program becomes a :class:`Model`."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

from coremltools.models import MLModel
from coremltools.proto import Model_pb2

from milopt.errors import MiloptError, PackageError
from milopt.mil import Program, Target
from milopt.package.carried import Carried
from milopt.package.collecting import uncollected
from milopt.package.container import SPEC, Container, Item, inside, open_container
from milopt.package.describing import note_description
from milopt.package.kinds import refuse_kind
from milopt.package.model import Model
from milopt.package.parts import copied
from milopt.package.publishing import recover
from milopt.package.reading import read_program
from milopt.package.weights import Weights
from milopt.package.writing import FILE

__all__ = ["load", "load_with"]

_MOST = 2**31 - 1  # bytes of a file that is read whole; protobuf takes no more


def load(source: str | os.PathLike[str] | MLModel | Program | Model) -> Model:
    """A :class:`Model` from a ``.mlpackage``, a coremltools model or a PyMIL program; a Model is returned as it is.

    Only ML Programs are read. Weights are views of the mapped weight file: nothing is copied, and replacing or
    deleting the package afterwards is fine. :class:`~milopt.errors.PackageError` says in one line what can't be read.
    """
    if isinstance(source, Model):
        return source
    if isinstance(source, Program):
        return _from_program(source)
    if isinstance(source, MLModel):
        return _from_mlmodel(source)
    try:
        path = Path(source)
    except TypeError as error:
        kind = type(source).__name__
        raise MiloptError(f"can't load a {kind}: give a path, an MLModel or a PyMIL Program") from error
    return _from_package(path)


def _from_program(program: Program) -> Model:
    if not program.functions:
        raise PackageError("the program has no function")
    default = program.default_function_name
    if default not in program.functions:
        if len(program.functions) > 1:
            raise PackageError(
                f"the program's default function {default!r} is not among: {', '.join(program.functions)}"
            )
        default = next(iter(program.functions))
    opsets = [int(function.opset_version) for function in program.functions.values()]
    return Model(program, max(int(Target.iOS15), *opsets), default)


def load_with(mlmodel: MLModel, instead: Mapping[int, Any]) -> Model:
    """A coremltools model, whose weight file holds no elements at the offsets in ``instead``: those arrays are there.

    The arrays have the types and shapes that the model's specification gives them.
    """
    return _from_mlmodel(mlmodel, instead)


def _from_mlmodel(mlmodel: MLModel, instead: Mapping[int, Any] = MappingProxyType({})) -> Model:
    folder = Path(mlmodel.weights_dir) if mlmodel.weights_dir else None
    package = Path(mlmodel.package_path) if mlmodel.package_path else None

    def find(path: str) -> Path:
        head, *rest = PurePosixPath(path).parts
        if folder is None or head != "weights" or not rest:
            raise PackageError(f"the model has no weight file {path}")
        return inside(folder, "/".join(rest), folder.name)

    container = open_container(package) if package and package.is_dir() else None
    return _from_spec(mlmodel.get_spec(), Weights(find, "the model", instead), "the model", container)


def _from_package(root: Path) -> Model:
    with suppress(OSError):  # nothing is there to be put back, or it can't be; what is wrong is said below
        recover(root)
    container = open_container(root)
    spec = Model_pb2.Model()
    content = _content(container, container.spec.path)
    try:
        spec.ParseFromString(content)
    except Exception as error:  # protobuf's DecodeError; its class depends on the implementation in use
        raise PackageError(f"{container.name}: {container.spec.path} is truncated or no model: {error}") from error
    folder = PurePosixPath(container.spec.path).parent
    weights = Weights(lambda path: container.file(str(folder / path)), container.name)
    return _from_spec(spec, weights, container.name, container)


def _from_spec(spec: Any, weights: Weights, where: str, container: Container | None) -> Model:
    refuse_kind(spec, where)
    description = copy.deepcopy(spec.description)  # a copy: the part would keep the whole specification alive
    carried = _carried(spec, container, where)
    order = [each.name for each in description.functions]
    with uncollected():
        program = read_program(spec.mlProgram, weights, order, where)
    default = description.defaultFunctionName or "main"
    if default not in program.functions:
        raise PackageError(f"{where}: the default function {default!r} is not among: {', '.join(program.functions)}")
    program.default_function_name = default
    program.export_as_multifunction = bool(order)
    metadata = description.metadata
    model = Model(
        program,
        int(spec.specificationVersion),
        default,
        description,
        dict(metadata.userDefined),
        metadata.author,
        metadata.license,
        metadata.versionString,
        metadata.shortDescription,
        dict(_attachments(container, weights)) if container else {},
        carried,
    )
    note_description(model)
    return model


def _carried(spec: Any, container: Container | None, where: str) -> Carried:
    program = spec.mlProgram
    return Carried(
        container.spec if container else SPEC,
        {item.path: item for item in container.items} if container else {},
        spec.isUpdatable,
        program.docString,
        copied(program.attributes, where),
        {name: copied(function.attributes, where) for name, function in program.functions.items()},
    )


def _attachments(container: Container, weights: Weights) -> Iterator[tuple[str, bytes]]:
    """All files that the manifest names, but the specification and its weights."""
    place = PurePosixPath(container.spec.path).parent
    own = {container.spec.path, *(str(place / path) for path in (FILE, *weights.paths))}
    for item in container.items:
        for path in _files(container, item):
            if path not in own:
                own.add(path)
                yield path, _content(container, path)


def _files(container: Container, item: Item) -> Iterator[str]:
    data = container.root / "Data"
    start = inside(container.root, f"Data/{item.path}", container.name)
    if not start.is_dir():
        if start.exists() or not _is_weights(container, item):
            yield item.path
        return
    for folder, _, files in os.walk(data / item.path):
        for name in sorted(files):
            yield (Path(folder) / name).relative_to(data).as_posix()


def _is_weights(container: Container, item: Item) -> bool:
    """Whether the item is the folder of weights, which a model without any may lack."""
    return PurePosixPath(item.path) == PurePosixPath(container.spec.path).parent / "weights"


def _content(container: Container, path: str) -> bytes:
    try:
        file = container.file(path)
        if file.stat().st_size > _MOST:
            raise PackageError(f"{container.name}: {path} has {file.stat().st_size} bytes; at most {_MOST} are read")
        return file.read_bytes()
    except OSError as error:
        raise PackageError(f"{container.name}: {path} can't be read: {error.strerror}") from error

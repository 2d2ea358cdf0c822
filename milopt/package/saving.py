"""``save``: a :class:`Model` becomes a package on the disk."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from coremltools.proto import Model_pb2

from milopt.errors import PackageError
from milopt.mil import Target
from milopt.package.container import MANIFEST, Item, relative_path
from milopt.package.describing import build_description
from milopt.package.publishing import published
from milopt.package.writing import write_program

if TYPE_CHECKING:
    from milopt.package.model import Model

__all__ = ["save"]


def save(model: Model, path: Path, *, overwrite: bool) -> Path:
    """See :meth:`Model.save`."""
    _check(model)
    description = build_description(model)
    with published(path, overwrite=overwrite) as folder:
        _write(model, description, folder)
    return path


def _check(model: Model) -> None:
    if model.spec_version not in set(map(int, Target)):
        raise PackageError(f"there is no specification version {model.spec_version}")
    if model.default_function not in model.functions:
        raise PackageError(
            f"the default function {model.default_function!r} is not among: {', '.join(model.functions)}"
        )
    spec = PurePosixPath(model.carried.spec.path)
    for each in model.attachments:
        path = relative_path(each, "attachment")
        if path == spec or spec.parent / "weights" in (path, *path.parents):
            raise PackageError(f"an attachment can't be called {each!r}: that is the model's own file")


def _write(model: Model, description: Any, folder: Path) -> None:
    """Write the package's files; the same model gives the same bytes."""
    data, carried = folder / "Data", model.carried
    place = data / PurePosixPath(carried.spec.path).parent
    weights = place / "weights"
    weights.mkdir(parents=True)
    spec = Model_pb2.Model(specificationVersion=model.spec_version, description=description)
    spec.isUpdatable = carried.updatable
    spec.mlProgram.CopyFrom(write_program(model.program, model.spec_version, carried, weights))
    (data / carried.spec.path).write_bytes(spec.SerializeToString(deterministic=True))
    for path, content in model.attachments.items():
        file = data / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    stored = Item(weights.relative_to(data).as_posix(), "weights", "com.apple.CoreML", "CoreML Model Weights")
    items = [carried.spec, *([stored] if any(weights.iterdir()) else []), *_attached(model)]
    if stored not in items:
        weights.rmdir()
    (folder / MANIFEST).write_text(_manifest(carried.spec, items))


def _attached(model: Model) -> Iterable[Item]:
    """The manifest's entries for the attachments: those they came with, new ones for new files."""
    items: dict[str, Item] = {}
    for path in sorted(model.attachments):
        pure = PurePosixPath(path)
        known = [item for each in (pure, *pure.parents) if (item := model.carried.items.get(str(each)))]
        item = known[0] if known else Item(path, pure.name, "milopt", "")
        items[item.path] = item
    return items.values()


def _manifest(root: Item, items: Iterable[Item]) -> str:
    def key(item: Item) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"mlpackage:{item.path}")).upper()

    entries = {
        key(item): {"author": item.author, "description": item.description, "name": item.name, "path": item.path}
        for item in items
    }
    content = {"fileFormatVersion": "1.0.0", "itemInfoEntries": entries, "rootModelIdentifier": key(root)}
    return json.dumps(content, indent=4, sort_keys=True) + "\n"

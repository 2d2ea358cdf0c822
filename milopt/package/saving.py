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
from milopt.package.carried import Carried
from milopt.package.container import MANIFEST, Item, relative_path
from milopt.package.describing import build_description
from milopt.package.publishing import published
from milopt.package.writing import FILE, write_program

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
        if relative_path(each, "attachment") in (spec, spec.parent / FILE):
            raise PackageError(f"an attachment can't be called {each!r}: that is the model's own file")


def _write(model: Model, description: Any, folder: Path) -> None:
    """Write the package's files; the same model gives the same bytes."""
    data, carried = folder / "Data", model.carried
    place = PurePosixPath(carried.spec.path).parent
    (data / place).mkdir(parents=True)
    spec = Model_pb2.Model(specificationVersion=model.spec_version, description=description)
    spec.isUpdatable = carried.updatable
    program, weights = write_program(model.program, model.spec_version, carried, data / place)
    spec.mlProgram.CopyFrom(program)
    (data / carried.spec.path).write_bytes(spec.SerializeToString(deterministic=True))
    stored = sorted(str(place / path) for path in weights)
    for path, content in model.attachments.items():
        if str(PurePosixPath(path)) in stored:
            raise PackageError(f"an attachment can't be called {path!r}: that is a weight file")
        file = data / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    items = _items(carried, stored, model.attachments)
    (folder / MANIFEST).write_text(_manifest(carried.spec, [carried.spec, *items]))


def _items(carried: Carried, weights: Iterable[str], attachments: Iterable[str]) -> Iterable[Item]:
    """The manifest's entries for all files but the specification: those they came with, new ones for new files."""
    items: dict[str, Item] = {}
    for path, is_weight in [*((path, True) for path in weights), *((path, False) for path in sorted(attachments))]:
        pure = PurePosixPath(path)
        known = [item for each in (pure, *pure.parents) if (item := carried.items.get(str(each)))]
        item = known[0] if known else _weights_item(carried, pure) if is_weight else Item(path, pure.name, "milopt", "")
        items[item.path] = item
    return items.values()


def _weights_item(carried: Carried, path: PurePosixPath) -> Item:
    """The folder beside the specification that holds the weight file, or the file itself where there is none."""
    place = PurePosixPath(carried.spec.path).parent
    top = place / path.relative_to(place).parts[0]
    return Item(str(top), top.name, "com.apple.CoreML", "CoreML Model Weights")


def _manifest(root: Item, items: Iterable[Item]) -> str:
    def key(item: Item) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"mlpackage:{item.path}")).upper()

    entries = {
        key(item): {"author": item.author, "description": item.description, "name": item.name, "path": item.path}
        for item in items
    }
    content = {"fileFormatVersion": "1.0.0", "itemInfoEntries": entries, "rootModelIdentifier": key(root)}
    return json.dumps(content, indent=4, sort_keys=True) + "\n"

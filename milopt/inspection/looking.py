"""``inspect``: everything that is in a package, as plain facts."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from coremltools.models import MLModel

from milopt.errors import MiloptError
from milopt.inspection.compression import Compressed, compressed_weights
from milopt.inspection.functions import FunctionFacts, facts_of
from milopt.inspection.weights import Duplicate, Tensor, duplicates_in, facts_of_tensors
from milopt.mil import Program, Target
from milopt.package import Model, load
from milopt.package.attributes import plain_attributes
from milopt.package.tensors import stored_tensors

__all__ = ["Inspection", "inspect"]


@dataclass(frozen=True)
class Inspection:
    """What :func:`milopt.inspect` found.

    ``files`` are the package's files with their sizes, none of a model in memory. ``targets`` are the systems, as
    coremltools names them, that ``specification_version`` is for. ``weights`` are constants as stored, the largest
    first; ``duplicates`` those stored more than once; ``compressed`` weights with what they are made of. ``build_info``
    are the program's own attributes, which tell what made it. ``attachments`` are further files with their sizes.
    """

    package: str
    files: dict[str, int]
    specification_version: int
    targets: tuple[str, ...]
    default_function: str
    functions: tuple[FunctionFacts, ...]
    weights: tuple[Tensor, ...]
    duplicates: tuple[Duplicate, ...]
    compressed: tuple[Compressed, ...]
    author: str
    license: str
    version: str
    description: str
    metadata: dict[str, str]
    build_info: dict[str, Any]
    attachments: dict[str, int]
    updatable: bool

    @property
    def bytes(self) -> int:
        """The size of the package."""
        return sum(self.files.values())

    @property
    def weight_bytes(self) -> int:
        """The bytes of all tensors, each counted once."""
        return sum(each.bytes for each in self.weights)

    @property
    def weight_files(self) -> dict[str | None, int]:
        """Bytes of tensors by weight file; ``None`` stands for the specification."""
        found: dict[str | None, int] = {}
        for each in self.weights:
            found[each.file] = found.get(each.file, 0) + each.bytes
        return found

    @property
    def shared(self) -> tuple[Tensor, ...]:
        """Tensors that several functions use."""
        return tuple(each for each in self.weights if len(each.functions) > 1)

    @property
    def saved(self) -> int:
        """The bytes that sharing saves: what it would take more if every constant had a tensor of its own."""
        return sum(each.saved for each in self.weights)

    def only(self, functions: Sequence[str]) -> Inspection:
        """The same of these functions alone: what they hold, and with whom they share it."""
        known = {each.name: each for each in self.functions}
        for name in functions:
            if name not in known:
                raise MiloptError(f"no function {name!r}; this model has: {', '.join(known)}")
        named = set(functions)
        tensors = tuple(each for each in self.weights if named & set(each.functions))
        names = {each.name for each in tensors}
        return replace(
            self,
            functions=tuple(known[name] for name in dict.fromkeys(functions)),
            weights=tensors,
            duplicates=tuple(each for each in self.duplicates if names & set(each.names)),
            compressed=tuple(each for each in self.compressed if named & set(each.functions)),
        )

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values for JSON; sizes are in bytes, and a dimension known at run time is ``null``."""
        facts = cast("dict[str, Any]", _plain(self))
        facts["bytes"], facts["weight_bytes"] = self.bytes, self.weight_bytes
        facts["weight_files"] = {name or "": size for name, size in self.weight_files.items()}
        facts["saved_by_sharing"] = self.saved
        facts["compression"] = dict(Counter(each.steps[0].op for each in self.compressed))
        facts["functions"] = {each.pop("name"): each for each in facts["functions"]}
        for function in facts["functions"].values():
            for part in ("inputs", "outputs", "states"):
                function[part] = {each["name"]: _stated(each) for each in function[part]}
        for text, one in zip(facts["compressed"], self.compressed, strict=True):
            text["stored_as"] = str(one)
        return facts


def inspect(
    source: str | os.PathLike[str] | MLModel | Program | Model, *, functions: Sequence[str] | None = None
) -> Inspection:
    """What is in a package or a model: interface, ops, tensors, compression, metadata; see :class:`Inspection`.

    Weights are not read, but for the first bytes of tensors of one type and size, and the whole of those that agree in
    these: so it is told what is stored twice. ``functions`` leaves the others out. PackageError where the package
    can't be read.
    """
    model = load(source)
    path = Path(source) if isinstance(source, (str, os.PathLike)) else None
    stored = stored_tensors(model)
    found = Inspection(
        path.name if path else f"the {type(source).__name__}",
        _files(path) if path else {},
        model.spec_version,
        tuple(name for name, each in Target.__members__.items() if int(each) == model.spec_version),
        model.default_function,
        tuple(facts_of(model, name) for name in model.functions),
        facts_of_tensors(stored),
        duplicates_in(stored),
        compressed_weights(model),
        model.author,
        model.license,
        model.version,
        model.short_description,
        dict(model.metadata),
        plain_attributes(model.carried.attributes),
        {name: len(content) for name, content in model.attachments.items()},
        model.carried.updatable,
    )
    return found if functions is None else found.only(functions)


def _files(package: Path) -> dict[str, int]:
    files = sorted(each for each in package.rglob("*") if each.is_file())
    return {each.relative_to(package).as_posix(): each.stat().st_size for each in files}


def _plain(value: Any) -> Any:
    kind: Any = value.__class__
    if dataclasses.is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if kind is dict:
        return {key: _plain(value[key]) for key in value}
    return [_plain(each) for each in value] if kind in (tuple, list) else value


def _stated(feature: dict[str, Any]) -> dict[str, Any]:
    """Kind, type and shape, and what else is said of it."""
    always = ("kind", "dtype", "shape")
    return {
        key: each
        for key, each in feature.items()
        if key in always or (key != "name" and each not in (None, "", [], False))
    }

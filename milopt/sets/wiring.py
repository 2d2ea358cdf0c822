"""Do the parts of a set fit each other? What one hands over must be what the other takes, and states must agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from milopt.package import Model
from milopt.sets.deployment import DeploymentSet, Part, Table, interface
from milopt.sets.errors import SetError

__all__ = ["Interface", "Kind", "wired"]

Kind: TypeAlias = "list[Any]"
"""An element type by MIL's name, and the sizes."""

_FLOATS = {"float16": "fp16", "float32": "fp32"}


@dataclass(frozen=True)
class Interface:
    """What the caller gives a function of a set, gets from it, and keeps for it."""

    inputs: dict[str, Kind]
    outputs: dict[str, Kind] = field(default_factory=dict[str, Kind])
    states: dict[str, Kind] = field(default_factory=dict[str, Kind])


def wired(made: DeploymentSet, function: str) -> Interface:
    """The interface of a function of the set; SetError names the first part that does not fit the others."""
    whole = Interface(dict(made.inputs[function]))
    known = dict(whole.inputs)
    for part in made.parts:
        step, own = part.steps[function], _own(made, part, function, known)
        for what, there, said in (("input", own.inputs, step.takes), ("output", own.outputs, step.gives)):
            for name in (*there, *said):
                if (name in there) != (name in said):
                    whose = "the set says nothing of it" if name in there else f"it has {', '.join(there) or 'none'}"
                    raise SetError(f"{part.name} and the set disagree about {what} {name!r}: {whose}")
        for name, source in step.takes.items():
            if source not in known:
                raise SetError(f"{part.name} takes {source!r}, which no part before it makes")
            if own.inputs[name] != known[source]:
                raise SetError(
                    f"{part.name} takes {name!r} as {_text(own.inputs[name])}, but gets {_text(known[source])}"
                )
        for name, kind in own.states.items():
            if whole.states.setdefault(name, kind) != kind:
                raise SetError(
                    f"{part.name} has state {name!r} as {_text(kind)}, a part before it as {_text(whole.states[name])}"
                )
        known.update({key: own.outputs[name] for name, key in step.gives.items()})
    for name in made.outputs[function]:
        if name not in known:
            raise SetError(f"no part of the set makes output {name!r} of function {function!r}")
        whole.outputs[name] = known[name]
    return whole


def _own(made: DeploymentSet, part: Part, function: str, known: Mapping[str, Kind]) -> Interface:
    step, file = part.steps[function], made.files[part.file]
    if isinstance(file, Model):
        found = interface(file, step.function)
        return Interface(found["inputs"], found["outputs"], found["states"])
    indices = known.get(step.takes.get("indices", ""), ["int32", 1])
    return Interface({"indices": indices}, {"rows": [row_type(file, part.name), *indices[1:], file.array.shape[1]]})


def row_type(table: Table, name: str) -> str:
    """MIL's name of the rows' element type."""
    kind = _FLOATS.get(table.array.dtype.name)
    if kind is None or table.array.ndim != 2:
        raise SetError(f"{name} is a table of {table.array.ndim} axes of {table.array.dtype}, not rows of floats")
    return kind


def _text(kind: Kind) -> str:
    return f"{kind[0]} [{', '.join(map(str, kind[1:]))}]"

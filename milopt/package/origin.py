"""What a package said of an op or a function that PyMIL has no place for.

Kept on the object itself, so that it lives as long as the op does: a pass that leaves an op alone keeps it, and a
clone shares it. It is written once, when the package is read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

__all__ = ["FunctionOrigin", "Origin", "Role", "function_origin", "origin_of"]


class Role(Enum):
    """How the value of a ``const`` op is written in the package."""

    OP = "an op of its own"
    LITERAL = "inside the op that takes it"
    DEFAULT = "not at all: the op that takes it has this default"


@dataclass(eq=False)
class Origin:
    """Of an op. Attributes and types are protos, ``MIL.Value`` and ``MIL.ValueType``.

    ``name`` is the package's, ``assigned`` the one it was given here. ``types`` pairs an output's type as read with the
    proto that says more than it. ``inline`` are the inputs written as attributes, ``blocks`` the attributes of nested
    blocks. Of a constant: its ``role``, the ``owner`` and ``argument`` that it belongs to unless it is an op, the
    weight file (``path``), and the whole ``value`` where writing what is ``held`` would not give the same. Of the
    update of a state, which are two ops in a package: the one that writes (``write``), and whether one ``reads``.
    """

    name: str | None = None
    assigned: str = ""
    attributes: dict[str, Any] = field(default_factory=dict[str, Any])
    types: dict[int, tuple[Any, Any]] = field(default_factory=dict[int, tuple[Any, Any]])
    inline: tuple[str, ...] = ()
    blocks: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    role: Role = Role.OP
    owner: Origin | None = None
    argument: str = ""
    path: str | None = None
    value: Any = None
    held: Any = None
    write: Origin | None = None
    reads: bool = False


@dataclass(eq=False)
class FunctionOrigin:
    """Of a function: the names in it, the types of its inputs and of blocks' inputs, and its block's attributes.

    ``described`` pairs the type of an input, output or state with its description, both as they were read.
    """

    names: frozenset[str] = frozenset()
    types: dict[str, tuple[Any, Any]] = field(default_factory=dict[str, tuple[Any, Any]])
    attributes: dict[str, Any] = field(default_factory=dict[str, Any])
    described: dict[str, tuple[Any, bytes]] = field(default_factory=dict[str, tuple[Any, bytes]])


def origin_of(op: Any) -> Origin | None:
    """What the package said of the op; ``None`` for an op that was made since."""
    return getattr(op, "package_origin", None)


def function_origin(function: Any) -> FunctionOrigin | None:
    """What the package said of the function."""
    return getattr(function, "package_origin", None)

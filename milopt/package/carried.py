"""What a package holds that no pass looks at, kept so that it can be written back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from milopt.package.container import SPEC, Item

__all__ = ["Carried"]


@dataclass
class Carried:
    """The parts of a package that PyMIL has no place for.

    ``spec`` is the manifest's entry of the specification, ``items`` the entries of attachments by path. Attributes
    are ``MIL.Value`` protos: of the program (``buildInfo``) and of functions.
    """

    spec: Item = SPEC
    items: dict[str, Item] = field(default_factory=dict[str, Item])
    updatable: bool = False
    doc: str = ""
    attributes: dict[str, Any] = field(default_factory=dict[str, Any])
    function_attributes: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])

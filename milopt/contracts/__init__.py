"""What clients of Core ML language models expect of a package, as data, and a checker.

    from milopt.contracts import check
    assert check("model.mlpackage", "apple"), "a client would fail"

Names are imported when they are first used: the checker runs programs, the data are about names and shapes only.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from milopt.contracts.checking import check
    from milopt.contracts.findings import Finding, Findings
    from milopt.contracts.styles import Contract, Tensor, contract_named, contract_names

__all__ = ["Contract", "Finding", "Findings", "Tensor", "check", "contract_named", "contract_names"]

_HOMES = {
    "checking": ("check",),
    "findings": ("Finding", "Findings"),
    "styles": ("Contract", "Tensor", "contract_named", "contract_names"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'milopt.contracts' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"milopt.contracts.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])

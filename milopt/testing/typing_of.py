"""Which element types an op takes for an input, as coremltools declares them."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

from milopt.mil import Target, types

__all__ = ["kinds_of"]

_registry: Any = importlib.import_module("coremltools.converters.mil.mil.ops.registry").SSAOpRegistry


@cache
def kinds_of(op_type: str, name: str, opset: Target) -> tuple[frozenset[str], tuple[str, ...]]:
    """The types that an input may have (none: any), and the other inputs that must have the same."""
    versions: dict[Any, Any] = _registry.core_ops.get(op_type, {})
    fitting = [version for version in versions if version <= opset]
    if not fitting:
        return frozenset(), ()
    cls = versions[max(fitting)]
    inputs: dict[str, Any] = cls.input_spec.input_types
    asked = inputs.get(name)
    if asked is None:
        return frozenset(), ()
    domain = _domain_of(asked)
    allowed = cls.type_domains.get(domain, ()) if domain is not None else getattr(asked, "type_domain", ())
    mates = tuple(
        each for each, kind in inputs.items() if domain is not None and each != name and _domain_of(kind) == domain
    )
    return frozenset(str(types.builtin_to_string(each)) for each in allowed or ()), mates


def _domain_of(kind: Any) -> str | None:
    domain: str | None = getattr(kind, "_type_domain_id", None)
    return domain

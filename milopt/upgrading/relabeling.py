"""An op is given the class that its type has in a newer opset, with its inputs as they are."""

from __future__ import annotations

from typing import Any, cast

from coremltools.converters.mil.mil.input_type import InternalInputType

from milopt.mil import Operation
from milopt.opaque import Opaque
from milopt.package.arguments import add_defaults
from milopt.package.making import set_type_domains
from milopt.package.origin import origin_of
from milopt.reports import require
from milopt.upgrading.editing import Edit, has_default

__all__ = ["relabel"]

# coremltools' many ways to say no
_REFUSALS = (ValueError, TypeError, AttributeError, KeyError, IndexError)


def relabel(op: Operation, kind: Any, edit: Edit) -> None:
    """Make ``op`` one of PyMIL's class ``kind``; NoMatch where that does not take its inputs."""
    state = cast("Any", op)
    set_type_domains(kind)
    spec: dict[str, Any] = kind.input_spec.input_types
    given = {name: value for name, value in state._input_vars.items() if value is not None}
    unknown = sorted(name for name in given if name not in spec)
    require(not unknown, "it has an input {}, which {} does not", ", ".join(unknown), kind.__name__)
    try:
        checked = {name: each for name, each in given.items() if _is_checked(op, name, spec[name])}
        kind.input_spec.validate_inputs(op.name, op.op_type, checked)
    except _REFUSALS as error:
        require(False, "its inputs are refused: {}", " ".join(str(error).split())[:300])
    state.__class__ = kind
    state._input_types, state._type_domains = spec, kind.type_domains
    state._input_vars = {**dict.fromkeys(spec), **given}
    for name in spec:
        setattr(op, name, given.get(name))
    add_defaults(op, origin_of(op), edit.unique(op))
    require(not isinstance(op, Opaque), "its defaults are not known")


def _is_checked(op: Operation, name: str, kind: Any) -> bool:
    """PyMIL checks the inputs that someone gave an op; its defaults may be of another float type than the others."""
    if isinstance(kind, InternalInputType):
        return False
    return not (kind.optional and has_default(op, name))

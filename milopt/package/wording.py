"""How the inputs of an op are written: by the name of a value, as a literal, as an attribute, or not at all.

An input of an op that came from a package is written as it was. For new ones coremltools' rules hold: the constants
of ``constexpr_*`` are attributes before iOS18 and literals since, as are those of two ops that Core ML reads only so.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Any

import numpy as np

from milopt.literals import default_of
from milopt.mil import Operation, Target, Var, flat, is_constexpr
from milopt.opaque import Opaque
from milopt.package.origin import Role, origin_of

__all__ = ["Form", "Forms"]

_LITERALS = {"classify": frozenset({"classes"}), "reshape_like": frozenset({"begins", "ends", "end_masks"})}


class Form(Enum):
    """How one value of an input is written."""

    NAME = auto()
    VALUE = auto()
    ATTRIBUTE = auto()
    OMITTED = auto()


class Forms:
    """Answers for one program, each question once."""

    def __init__(self) -> None:
        self._known: dict[tuple[Operation, str, Var], Form] = {}

    def of(self, op: Operation, argument: str, var: Var) -> Form:
        key = (op, argument, var)
        if key not in self._known:
            self._known[key] = _form(op, argument, var)
        return self._known[key]

    def has_op(self, constant: Operation) -> bool:
        """Whether a ``const`` is written as an op: something names its value, or nothing uses it and it was one."""
        var = constant.outputs[0]
        if var.consuming_blocks:
            return True
        if not var.child_ops:
            origin = origin_of(constant)
            return origin is None or origin.role is Role.OP
        uses = (
            (user, name)
            for user in dict.fromkeys(var.child_ops)
            for name, value in user.inputs.items()
            if var in flat(value)
        )
        return any(self.of(user, name, var) is Form.NAME for user, name in uses)


def _form(op: Operation, argument: str, var: Var) -> Form:
    if var.op is None or var.op.op_type != "const" or isinstance(var.op, Opaque):
        return Form.NAME
    origin, owner = origin_of(var.op), origin_of(op)
    if origin is not None and owner is not None and origin.owner is owner and origin.argument == argument:
        if origin.role is Role.DEFAULT:
            return Form.OMITTED if _is_default(op, argument, var) else Form.NAME
        return Form.ATTRIBUTE if argument in owner.inline else Form.VALUE
    if is_constexpr(op.op_type):
        if _has_attributes(op) or (owner is not None and argument in owner.inline):
            return Form.ATTRIBUTE
        as_read = owner is not None and origin is not None and origin.role is Role.OP
        return Form.NAME if as_read else Form.VALUE
    if argument in _LITERALS.get(op.op_type, ()) and not (owner is not None and origin is not None):
        return Form.VALUE
    return Form.NAME


def _has_attributes(op: Operation) -> bool:
    return not isinstance(op, Opaque) and op.opset_version <= Target.iOS17


def _is_default(op: Operation, argument: str, var: Var) -> bool:
    """Whether leaving the input out still means this value: a default may depend on other inputs."""
    try:
        default: Any = default_of(op, argument)
    except (ValueError, TypeError, AttributeError, KeyError, IndexError):
        return False
    given, usual = np.asarray(var.val), np.asarray(default)
    return given.shape == usual.shape and bool(np.array_equal(given, usual.astype(given.dtype)))

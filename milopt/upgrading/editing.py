"""What translating ops needs: a builder in the new opset, new ops in the place of old ones, and a way to refuse."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from milopt.building import Builder
from milopt.literals import default_of
from milopt.mil import Operation, Var, constant, dtype_name, is_symbolic, remove_ops, replace_uses, shape_of
from milopt.package.making import new_op, new_value
from milopt.package.weights import Packed
from milopt.reports import require

__all__ = ["Edit", "Translation", "drop_unused", "has_default", "insert", "keep_type", "move"]


@dataclass
class Edit:
    """The upgrade of one function. ``taken`` holds the names of its values, the other fields what can be shared."""

    taken: set[str]
    guarded: dict[object, Var] = field(default_factory=dict[object, Var])
    packed: dict[object, Packed] = field(default_factory=dict[object, Packed])

    def builder(self, op: Operation) -> Builder:
        """Builds ops of the new opset before ``op``."""
        return Builder(op, self.taken)

    def unique(self, op: Operation) -> Callable[[str], str]:
        return self.builder(op).unique

    def rebind(self, op: Operation, name: str, new: Var) -> None:
        """Give ``op`` another input; the constant that it had goes unless something else uses it."""
        old = op.inputs[name]
        cast("Any", op).set_inputs(no_check_var_types=True, **{name: new})
        drop_unused([old])

    def replace(self, op: Operation, new: Sequence[Var]) -> None:
        """Let ``new`` have the names, the types and the uses of the results of ``op``, which goes."""
        names = [var.name for var in op.outputs]
        for old, var in zip(op.outputs, new, strict=True):
            keep_type(var, old)
            replace_uses(old, var)
        name = op.name
        remove_ops([op])
        for var, wanted in zip(new, names, strict=True):
            var.name = wanted
        if len(new) == 1 and new[0].op is not None:
            new[0].op.name = name


Translation = Callable[[Operation, Edit], bool]
"""Makes an op mean in the new opset what it meant; False where it does already. NoMatch where that is not possible.

The op is of its old class while this runs, and is given that of the new opset after it unless it was replaced.
"""


def keep_type(var: Var, old: Var) -> None:
    """Give ``var`` the type of ``old``, whose open dimensions have names; NoMatch where the two disagree."""
    shape, wanted = shape_of(var), shape_of(old)
    fits = len(shape) == len(wanted) and all(
        is_symbolic(one) or is_symbolic(other) or one == other for one, other in zip(shape, wanted, strict=True)
    )
    require(
        fits and dtype_name(var) == dtype_name(old),
        "its result {} would be {}[{}], not {}[{}]",
        *(old.name, dtype_name(var), ", ".join(map(str, shape)), dtype_name(old), ", ".join(map(str, wanted))),
    )
    cast("Any", var)._sym_type = old.sym_type


def drop_unused(values: Iterable[Var]) -> None:
    """Remove those constants among the values that nothing uses."""
    for var in dict.fromkeys(values):
        if var.op is not None and var.op.op_type == "const" and not var.child_ops and not var.consuming_blocks:
            remove_ops([var.op])


def has_default(op: Operation, name: str) -> bool:
    """Whether the input is the value that it has when it is left out.

    Of such a constant PyMIL does not ask that it has the type of the op's other inputs, unless someone gives it.
    """
    value, default = constant(op.inputs[name]), default_of(op, name)
    if value is None or default is None:
        return False
    held: Any = np.asarray(value)
    return bool(np.array_equal(held, np.asarray(default).astype(held.dtype)))


def insert(kind: Any, name: str, before: Operation, inputs: Mapping[str, Var], type_: Any) -> Operation:
    """An op of PyMIL's class ``kind`` with one result of ``type_``, before another op; nothing is inferred."""
    op = new_op(kind, name, before.enclosing_block, inputs)
    move(op, before)
    new_value(name, type_, op)
    return op


def move(op: Operation, before: Operation) -> None:
    """Put an op of the same block before another one."""
    operations: Any = before.enclosing_block.operations
    operations.remove(op)
    operations.insert_op_before(op, before)
